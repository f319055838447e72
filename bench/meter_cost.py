"""What the meter costs a training step of about 50 ms, and what CodeCarbon does beside it.

    python bench/meter_cost.py [--json] [--seconds S] [--device cpu] [--codecarbon]

Trains a small model and alternates stretches of steps with and without an instrument, in one process; each
stretch with one is paired with the mean of the bare ones beside it, so that drift of clocks and temperature cancels.
`share_of_step` is the median of the paired differences over the time of a bare step; its standard error comes from the
pairs' spread. A stretch begins and ends on an idle device. On a GPU if there is one, else on the CPU, where the noise
of the machine is larger than the meter. `host_time_per_call_s` is the host's time for a step's calls, over their
number.

With --codecarbon, each of CodeCarbon's levels (`profiler/emissions/codecarbon.py`) is such an instrument too, alone:
`codecarbon_session_share_of_step`, `codecarbon_step_share_of_step`, `codecarbon_phase_share_of_step`. Steps and phases
include the waiting for the device that they need. Stretches with the session level are longer, and it measures every
second instead of every 15, so that each holds what CodeCarbon does in its threads: an upper bound.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from moemodel.model.core.errors import MoeModelError
from moemodel.profiler.emissions.codecarbon import LEVELS, CodeCarbonLevels
from moemodel.profiler.meter.energy_meter import Meter

_STEP_S = 0.05
_STRETCH = 12  # steps
_SESSION_STRETCH = 40
_WARM_S = 3.0
_CALLS = 8  # a step: begin and end of it and of three phases
_GPU_WIDTH, _CPU_WIDTH = 4096, 256
_LAYERS = 8
_NOTHING = nullcontext()

Scope = Callable[[str], AbstractContextManager[None]]


class Instrument(Protocol):
    """What a loop is annotated for."""

    def step(self) -> AbstractContextManager[None]: ...
    def phase(self, name: str) -> AbstractContextManager[None]: ...


class Loop:
    """A training loop; its steps last about 50 ms by the number of rows in a batch."""

    def __init__(self, device: torch.device) -> None:
        width = _GPU_WIDTH if device.type == "cuda" else _CPU_WIDTH
        kind = torch.bfloat16 if device.type == "cuda" else torch.float32
        layers = [layer for _ in range(_LAYERS) for layer in (_block(device, width))]
        self.device = device
        self._model = nn.Sequential(*layers).to(device, kind)
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=1e-4)
        self._input = torch.randn(64, width, device=device, dtype=kind)

    def fit_step_time(self) -> None:
        """Choose the batch so that a step takes about `_STEP_S`; also warms the device up."""
        width = self._input.shape[1]
        end_s = time.perf_counter() + _WARM_S
        while time.perf_counter() < end_s:
            begin_s = time.perf_counter()
            self.run(4, None)
            step_s = (time.perf_counter() - begin_s) / 4
            wanted = int(len(self._input) * min(max(_STEP_S / step_s, 0.25), 4.0))
            if abs(step_s / _STEP_S - 1) > 0.1:
                self._input = torch.randn(max(wanted, 8), width, device=self.device, dtype=self._input.dtype)

    def run(self, steps: int, instrument: Instrument | None) -> float:
        """Steps on a device that is idle before and after: seconds a step."""
        self.wait()
        begin_s = time.perf_counter()
        for _ in range(steps):
            with instrument.step() if instrument else _NOTHING:
                self.step(instrument.phase if instrument else _no_phase)
        self.wait()
        return (time.perf_counter() - begin_s) / steps

    def step(self, phase: Scope) -> None:
        """Queue one step."""
        with phase("forward"):
            loss = self._model(self._input).float().square().mean()
        with phase("backward"):
            loss.backward()
        with phase("optimizer"):
            self._optimizer.step()
            self._optimizer.zero_grad()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _block(device: torch.device, width: int) -> list[nn.Module]:
    """On a GPU memory-bound layers, far below the power cap; at the cap the clock depends on the rest before it."""
    if device.type == "cuda":
        return [nn.LayerNorm(width), nn.ReLU()]
    return [nn.Linear(width, width), nn.GELU()]


def _no_phase(_: str) -> AbstractContextManager[None]:
    return _NOTHING


@dataclass
class Subject:
    """An instrument whose cost is measured.

    Attributes:
        name: before its figures; "" for the meter.
        begin: makes one for a stretch, running; its threads must not run in a bare stretch.
        settle: steps before a stretch, until it runs as it always does.
        stretch: steps.
        differences_s: of a step with it and without, a pair each.
        extra: other figures, of the last stretch.
    """

    name: str
    begin: Callable[[], AbstractContextManager[Instrument]]
    settle: int
    stretch: int = _STRETCH
    differences_s: list[float] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def figures(self, step_s: float) -> dict[str, Any]:
        """Its share of a step, and how exactly that is known."""
        error_s = 1.25 * statistics.stdev(self.differences_s) / len(self.differences_s) ** 0.5  # of a median
        prefix = f"{self.name}_" if self.name else ""
        return {
            f"{prefix}share_of_step": statistics.median(self.differences_s) / step_s,
            f"{prefix}standard_error": error_s / step_s,
            f"{prefix}pairs": len(self.differences_s),
            **{f"{prefix}{name}": value for name, value in self.extra.items()},
        }


def meter_subject(device: torch.device) -> Subject:
    """The meter, without files."""

    @contextmanager
    def begin() -> Iterator[Instrument]:
        with Meter(devices=[device], read_every=4) as meter:
            yield meter
        subject.extra["notes"] = list(meter.summary().notes)

    subject = Subject("", begin, settle=10)  # until the counter's rhythm is known
    return subject


def codecarbon_subject(level: str, device: torch.device, folder: Path) -> Subject:
    """One level of CodeCarbon's, alone."""

    @contextmanager
    def begin() -> Iterator[Instrument]:
        options: dict[str, Any] = {"run": "meter-cost", "model": level, "country": "CAN", "region": "quebec"}
        with CodeCarbonLevels(folder, levels=(level,), devices=[device], measure_every_s=1.0, **options) as carbon:
            yield carbon
        found = carbon.summary()
        cost = found.levels[level]
        subject.extra = {
            "readings_per_step": cost.readings / max(found.steps, 1),
            "inside_s_per_step": cost.inside_s_per_step,
            "waited_s_per_step": cost.waited_s / max(found.steps, 1),
            "background_s_per_s": None if cost.background_s is None else cost.background_s / found.duration_s,
        }

    stretch = _SESSION_STRETCH if level == "session" else _STRETCH
    subject = Subject(f"codecarbon_{level}", begin, settle=2, stretch=stretch)
    return subject


def measure(seconds: float, device: torch.device, *, codecarbon: bool = False) -> dict[str, Any]:
    """Alternate bare stretches and those with an instrument for about `seconds`."""
    loop = Loop(device)
    loop.fit_step_time()
    with tempfile.TemporaryDirectory() as folder:
        subjects = [meter_subject(device)]
        if codecarbon:
            subjects += [codecarbon_subject(level, device, Path(folder)) for level in LEVELS]
            for subject in subjects:  # the first of each finds the hardware: seconds
                with subject.begin():
                    pass
        bare_s = _alternate(loop, subjects, seconds)
    step_s = statistics.median(bare_s)
    found: dict[str, Any] = {"step_time_s": step_s}
    for subject in subjects:
        found |= subject.figures(step_s)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return found | {"host_time_per_call_s": call_time_s(device), "device": name}


def _alternate(loop: Loop, subjects: list[Subject], seconds: float) -> list[float]:
    """Fill in the subjects' differences, two each at least; seconds of a bare step in each bare stretch."""
    bare_s = [loop.run(_STRETCH, None)]
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s or len(subjects[-1].differences_s) < 2:
        for subject in subjects:
            with subject.begin() as instrument:
                loop.run(subject.settle, instrument)
                with_s = loop.run(subject.stretch, instrument)
            loop.run(subject.settle, None)
            bare_s.append(loop.run(_STRETCH, None))
            subject.differences_s.append(with_s - (bare_s[-2] + bare_s[-1]) / 2)
    return bare_s


def call_time_s(device: torch.device, steps: int = 400) -> float:
    """The host's time of one call of the meter, readings included, on steps that do nothing."""
    with Meter(devices=[device]) as meter:
        times_s = []
        for _ in range(steps // 16):
            begin_s = time.perf_counter()
            for _ in range(16):
                with meter.step():
                    for name in ("forward", "backward", "optimizer"):
                        with meter.phase(name):
                            pass
            times_s.append((time.perf_counter() - begin_s) / 16 / _CALLS)
    return statistics.median(times_s)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="Cost of the meter to a training step of about 50 ms.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seconds", type=float, help="of alternating stretches; 35, with --codecarbon 70")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--codecarbon", action="store_true", help="CodeCarbon's three levels too")
    arguments = parser.parse_args()
    device = torch.device("cuda", 0) if arguments.device == "cuda" else torch.device("cpu")
    seconds = arguments.seconds if arguments.seconds is not None else 70.0 if arguments.codecarbon else 35.0
    try:
        found = measure(seconds, device, codecarbon=arguments.codecarbon)
    except MoeModelError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if arguments.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:42} {value}")


if __name__ == "__main__":
    main()
