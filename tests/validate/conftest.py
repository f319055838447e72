"""A launcher that runs nothing: what it measures is what a calibration predicts, so that errors are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from moemodel.model.hardware.gpu import read_gpu
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.records.profile import DeviceInfo, IterationRow
from moemodel.model.results.measured import QUANTITIES, predict_as_run
from moemodel.model.results.validation import Environment
from moemodel.profiler.training.launch import Failure, LaunchOptions, Measured, PlanVisit
from moemodel.validation.records.session import ValidationSpec
from moemodel.validation.run import Options, spec_of
from moemodel.validation.select.plans import Chosen
from moemodel.validation.select.runnable import Choice, Hardware
from tests.reports import environment_of

TEMPERATURE_C = 55.0
DEVICE = DeviceInfo(
    name="NVIDIA H100 80GB HBM3", vendor="nvidia", uuid="GPU-1", memory_B=80 << 30, power_limit_W=700.0, driver="580"
)


def rows_of(plan: Plan, truth: Calibration, factor: float = 1.0) -> list[IterationRow]:
    """What a run would measure if `truth` were true: a row for each rank; `factor` on its time."""
    values = predict_as_run(plan, truth, {"temperature_C": TEMPERATURE_C}).values
    gpus = plan.cluster.gpus
    measured: dict[str, Any] = {column: values[name] for name, column in QUANTITIES.items() if name in values}
    measured["energy_J"] = values["energy"] / gpus * factor
    measured["step_time_s"] *= factor
    about: dict[str, Any] = {"plan": plan.name, "steps": 20, "temperature_C": TEMPERATURE_C}
    return [IterationRow(rank=rank, **(measured | about)) for rank in range(gpus)]


@dataclass(kw_only=True)
class FakeLaunch:
    """Stands for `profiler.training.launch.launch`.

    Attributes:
        truth: what is measured.
        failing: name of a plan -> the kind of its failure.
        noise: repeat -> factor on the time.
        held: whether clocks that are asked for are held.
        until: run that Ctrl-C comes before; None: it doesn't.
        visits: what was asked for, a list for each launch.
        made: name and repeat of the runs that were made.
    """

    truth: Calibration
    failing: dict[str, str] = field(default_factory=dict)
    noise: tuple[float, ...] = (1.0, 0.99, 1.01)
    held: bool = True
    until: int | None = None
    visits: list[list[tuple[str, int]]] = field(default_factory=list)
    made: list[tuple[str, int]] = field(default_factory=list)

    def __call__(
        self,
        visits: Sequence[PlanVisit],
        *,
        folder: Path,
        options: LaunchOptions,  # noqa: ARG002 - the launcher's signature
        report: Callable[[str], None],  # noqa: ARG002
    ) -> Iterator[Measured | Failure]:
        self.visits.append([(visit.plan.name, visit.repeat) for visit in visits])
        for visit in visits:
            if self.until is not None and len(self.made) == self.until:
                raise KeyboardInterrupt
            self.made.append((visit.plan.name, visit.repeat))
            if visit.plan.name in self.failing:
                kind: Any = self.failing[visit.plan.name]
                yield Failure(visit=visit, kind=kind, reason="it did <that>", log=folder / "jobs" / "0")
                continue
            asked = visit.plan.clock_MHz
            plan = visit.plan if self.held else visit.plan.model_copy(update={"clock_MHz": None})
            yield Measured(
                visit=visit,
                rows=rows_of(plan, self.truth, self.noise[visit.repeat % len(self.noise)]),
                clock_asked_MHz=asked,
                clock_held=None if asked is None else self.held,
                clock_note=None if asked is None or self.held else "no permission",
                seconds=6.0,
            )


@pytest.fixture
def fake(calibration: Calibration) -> FakeLaunch:
    """Measures what the calibration predicts, but for noise of 1 % in time."""
    return FakeLaunch(truth=calibration)


@pytest.fixture
def hardware() -> Callable[..., Hardware]:
    """Two H100 whose clocks can be held, with some of that changed."""

    def make(**changes: Any) -> Hardware:
        plain = {"gpu": read_gpu("h100"), "gpus": 2, "no_locks": None, "power_limit_W": 700.0}
        return Hardware(**plain | {"unable": lambda _: None} | changes)

    return make


@pytest.fixture
def environment() -> Environment:
    return environment_of(device=DEVICE, clocks="lock", libraries={"torch": "2.11.0"}, host={"cores": 32})


@pytest.fixture
def ask(environment: Environment, plan_of: Callable[..., Plan]) -> Callable[..., ValidationSpec]:
    """A question about some plans; by default three of OPT-350M on one or two GPUs."""

    def make(*plans: Plan, **options: Any) -> ValidationSpec:
        found = plans or (
            plan_of(name="one", micro_batch=4),
            plan_of(name="two", micro_batch=4, cluster={"gpus": 2}, parallel={"dp": 2}),
            plan_of(name="tensor", micro_batch=4, cluster={"gpus": 2}, parallel={"tp": 2}),
        )
        choices = tuple(Choice(asked=plan, plan=plan, roles=(f"file {plan.name}.yaml",)) for plan in found)
        return spec_of(Chosen(choices=choices, set_aside=()), environment, Options(**options), None)

    return make
