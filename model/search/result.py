"""What a search found, as it is stored: the front with a whole plan each, the picks, what was refused and why.

`cli` writes it to `moemodel-search.json`, where whoever reruns the best plans on hardware reads it.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, cast

from pydantic import ConfigDict, Field, model_validator

from moemodel import __version__
from moemodel.model.core.documents import Real, Strict, Whole, parse_yaml, read_json
from moemodel.model.core.errors import InputError
from moemodel.model.core.shown import shortened
from moemodel.model.plan.spec import Plan, plan_text
from moemodel.model.records.calibration import CalibrationRef
from moemodel.model.results.estimate import Estimate, finite
from moemodel.model.results.feasibility import Verdict
from moemodel.model.results.outcome import Outcome, PhaseOutcome
from moemodel.model.search.document import Search
from moemodel.model.search.power import Drawn
from moemodel.model.search.quantities import ObjectiveName
from moemodel.model.step.system import System

SCHEMA_VERSION = 2  # 2: a reference for each number of GPUs, objectives, unknown energies, the best behind the front
DEFAULT_FILE = "moemodel-search.json"

Probability = Annotated[Real, Field(ge=0, le=1)]


class Figure(Strict):
    """A value and its central 90 % interval; null where its error isn't known."""

    value: Real
    interval: tuple[Real, Real] | None

    @classmethod
    def of(cls, estimate: Estimate) -> Figure:
        """What is known."""
        low, high = estimate.low, estimate.high
        return cls(value=estimate.value, interval=None if low is None or high is None else (low, high))

    def times(self, factor: float) -> Figure:
        """In another unit."""
        interval = None if self.interval is None else (self.interval[0] * factor, self.interval[1] * factor)
        return Figure(value=self.value * factor, interval=interval)

    @classmethod
    def known(cls, estimate: Estimate | None) -> Figure | None:
        """What is known, or None."""
        return None if estimate is None or math.isnan(estimate.value) else cls.of(estimate)


class RunFigures(Strict):
    """The whole run, as a prediction gives it; null what isn't known: without power, or without a price."""

    hours: Figure
    energy_kWh: Figure | None
    emissions_kgCO2e: Figure | None
    cost: Figure | None


class PhaseFigures(Strict):
    """A part of a step: time of the mean GPU, energy of all GPUs; null what isn't known."""

    time_s: Real
    energy_J: Real | None
    clock_MHz: Real | None

    @classmethod
    def of(cls, phase: PhaseOutcome) -> PhaseFigures:
        """What is known."""
        clock_MHz = None if phase.clock_Hz is None else finite(phase.clock_Hz * 1e-6)
        return cls(time_s=phase.time_s, energy_J=finite(phase.energy_J), clock_MHz=clock_MHz)


class Entry(Strict):
    """One plan and what it costs; per step unless the name says otherwise. Null what isn't known.

    Attributes:
        number: place on the front, 1 the best in the first objective; those of `next_best` follow; 0 a reference.
        plan_yaml: the plan, as `moemodel predict` reads it.
        gpu_energy_J: of all GPUs; `it_energy_J` of their hosts too, where `site.host_power_W` is given.
        power_per_gpu_W: mean of one GPU; `hottest_gpu_power_W` of the one that draws most;
            `cluster_power_W` of all GPUs and hosts.
        node_power_W, peak_power_per_gpu_W, peak_node_power_W, peak_cluster_power_W: see `search.power`.
        clock_MHz: true SM clock that the GPUs sustain.
        phases: forward, backward, optimizer, communication that nothing hides, and idle, which add up to the step and
            to the energy of the GPUs; empty in results of earlier versions.
        memory_B: peak of the fullest GPU; `memory_verdict` whether that fits, `fit_probability` how likely.
        run: the whole run; null where the search gives no tokens.
        time_vs_reference, it_energy_vs_reference: share that it takes more than the reference on as many GPUs
            (negative: less); null where there is none.
        not_distinguishable_from: numbers of plans from which neither its time nor its energy tells it apart
            (`moemodel.model.search.distinguish`).
        outside: choices of a reference that are not among those of the search.
        notes: of the prediction.
    """

    number: Whole
    plan_yaml: str
    step_time_s: Figure
    tokens_per_s_per_gpu: Figure
    gpu_energy_J: Figure | None
    it_energy_J: Figure | None
    power_per_gpu_W: Figure | None
    hottest_gpu_power_W: Figure | None
    cluster_power_W: Figure | None
    node_power_W: Figure | None = None
    peak_power_per_gpu_W: Figure | None = None
    peak_node_power_W: Figure | None = None
    peak_cluster_power_W: Figure | None = None
    clock_MHz: Figure | None
    memory_B: Figure
    memory_verdict: Verdict
    fit_probability: Probability
    phases: dict[str, PhaseFigures] = Field(default_factory=dict)
    run: RunFigures | None
    time_vs_reference: Real | None = None
    it_energy_vs_reference: Real | None = None
    not_distinguishable_from: tuple[Whole, ...] = ()
    outside: tuple[str, ...] = ()
    notes: tuple[str, ...]

    @cached_property
    def plan(self) -> Plan:
        """The plan."""
        return parse_yaml(self.plan_yaml, Plan, f"plan {self.number}")


class Change(Strict):
    """By what share one figure is more than another (negative: less), and the central 90 % interval of that share.

    Attributes:
        share: of the predicted values.
        interval: what errors that both plans share leave open; null where that isn't known.
        told_apart: the interval does not hold 0.
    """

    share: Real
    interval: tuple[Real, Real] | None
    told_apart: bool | None


class Difference(Strict):
    """What a pick has that the fastest plan of the front has not.

    Attributes:
        pick: its name; `number` its place on the front, `fastest` that of the fastest.
        choices: what is chosen otherwise, such as "tp 2 instead of 1".
        step_time, it_energy: what it takes more; energy null where power was not measured.
        phases_J: energy of each phase less that of the fastest, J a step; of hosts too, where they have power.
    """

    pick: str
    number: Whole
    fastest: Whole
    choices: tuple[str, ...]
    step_time: Change
    it_energy: Change | None
    phases_J: dict[str, Real]


class Refusal(Strict):
    """Combinations that one reason refused; each combination counts once, for the first reason that applies."""

    reason: str
    says: str
    plans: Whole


class Counts(Strict):
    """How many there were: combinations, those predicted in full, those within all limits, those on the front.

    `outdone`: of large spaces those that were not predicted, since a bound showed that they are beaten whatever their
    clock; which of them keep the limits isn't known, and `feasible` counts none of them.
    """

    combinations: Whole
    refused: tuple[Refusal, ...]
    predicted: Whole
    outdone: Whole = 0
    feasible: Whole
    front: Whole


class SearchResult(Strict):
    """What a search found.

    Attributes:
        objectives: what was optimized, one or two: names of `model.search.quantities`.
        front: members of the Pareto front of the objectives that were kept, the best in the first one first.
        next_best: the best plans in the first objective of which no clock is on the front, each at its best clock: what
            a validation reruns too where the front is short.
        picks: what the members with a name are called -> their number.
        references: what `moemodel init` would propose for the same batch, without a search, that keeps the limits, for
            each number of GPUs of the search for which there is such a plan.
        differences: of each pick from the fastest plan of the front.
        notes: on all of it, a sentence each.

    >>> import moemodel
    >>> found = moemodel.search("examples/search-two-gpus.yaml")
    >>> fastest = found.front[found.picks["fastest"] - 1]
    >>> fastest.number, fastest.plan.cluster.gpus
    (1, 2)
    """

    schema_version: Whole
    moemodel_version: str
    search: Search
    calibration: CalibrationRef
    counts: Counts
    objectives: tuple[ObjectiveName, ...]
    front: tuple[Entry, ...]
    next_best: tuple[Entry, ...] = ()
    picks: dict[str, Whole]
    references: tuple[Entry, ...]
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...]

    @model_validator(mode="after")
    def _picks_are_there(self) -> SearchResult:
        for name, number in self.picks.items():
            if not 1 <= number <= len(self.front):
                raise ValueError(f"picks: {shortened(name)} is {number}; allowed: 1 to {len(self.front)}")
        return self

    def reference(self, gpus: int) -> Entry | None:
        """The one on so many GPUs."""
        return next((entry for entry in self.references if entry.plan.cluster.gpus == gpus), None)

    def to_json(self) -> str:
        """The text of the file: the same result gives the same bytes."""
        return self.model_dump_json(indent=1, by_alias=True) + "\n"


class _Version(Strict):
    model_config = ConfigDict(extra="ignore")
    schema_version: Whole


def read_search_result(path: Path | str) -> SearchResult:
    """A stored result.

    Raises:
        InputError: missing, not JSON, of another schema version, or malformed; with the place.
    """
    version = read_json(Path(path), _Version).schema_version
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema_version: found {version}; this moemodel reads {SCHEMA_VERSION}. "
            "Search again with `moemodel optimize`"
        )
    return read_json(Path(path), SearchResult)


def entry_of(number: int, answer: Outcome, machine: System) -> Entry:
    """One plan as it is stored, from its prediction.

    Args:
        number: see `Entry`.
        answer: the prediction.
        machine: what it runs on.
    """
    run, gpus = answer.run, answer.plan.cluster.gpus
    hosts_W = gpus * answer.plan.site.host_power_W
    return Entry(
        number=number,
        plan_yaml=plan_text(answer.plan),
        step_time_s=Figure.of(answer.step_time_s),
        tokens_per_s_per_gpu=Figure.of(answer.tokens_per_s_per_gpu),
        gpu_energy_J=Figure.known(answer.gpu_energy_J),
        it_energy_J=Figure.known(answer.it_energy_J),
        power_per_gpu_W=Figure.known(answer.power_W),
        hottest_gpu_power_W=Figure.known(answer.hottest_power_W),
        cluster_power_W=Figure.known(answer.power_W * gpus + Estimate(value=hosts_W, low=hosts_W, high=hosts_W)),
        **_other_powers(answer, machine),
        clock_MHz=Figure.known(answer.clock_Hz * 1e-6),
        memory_B=Figure.of(answer.memory_B),
        memory_verdict=answer.verdict,
        fit_probability=answer.fit_probability,
        phases={name: PhaseFigures.of(phase) for name, phase in answer.phases.items()},
        run=None
        if run is None
        else RunFigures(
            hours=Figure.of(run.hours),
            energy_kWh=Figure.known(run.energy_kWh),
            emissions_kgCO2e=Figure.known(run.emissions_kg),
            cost=Figure.known(run.cost),
        ),
        notes=answer.notes,
    )


def _other_powers(answer: Outcome, machine: System) -> dict[str, Figure]:
    """Of nodes, and peaks, known as well as the power of the GPU that draws most. Nothing where none was measured."""
    hottest = answer.hottest_power_W
    if math.isnan(hottest.value):
        return {}
    low, high = (1.0 if end is None else end / hottest.value for end in (hottest.low, hottest.high))
    powers = {name: float(watts[0]) for name, watts in Drawn.of_one(answer, machine).powers().items()}
    return {
        name: Figure(value=powers[name], interval=(powers[name] * low, powers[name] * high))
        for name in ("node_power_W", "peak_power_per_gpu_W", "peak_node_power_W", "peak_cluster_power_W")
    }


def figure_of(entry: Entry, name: ObjectiveName) -> Figure | None:
    """What can be optimized of a plan, by name; None where it isn't known."""
    run = entry.run
    if name == "gpus":
        return Figure(value=float(entry.plan.cluster.gpus), interval=None)
    if name == "power_per_gpu_W":
        return entry.hottest_gpu_power_W
    if not name.startswith("run_"):
        return cast("Figure | None", getattr(entry, name))
    if run is None:
        return None
    figures = {
        "run_hours": run.hours,
        "run_days": run.hours.times(1 / 24),
        "run_kWh": run.energy_kWh,
        "run_kgCO2e": run.emissions_kgCO2e,
        "run_cost": run.cost,
    }
    return figures[name]


def version() -> str:
    """Of the package that searched."""
    return __version__
