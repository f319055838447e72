"""One run at a number of samples that others reached too.

A run of batch B has done n samples after n / B steps. Where that is no whole number, its last step counts by its part.
What was not measured step by step (phases, emissions; energies and times where a step has none) counts by the part of
the run, n / samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from moemodel.model.records.run import RankResult, RunResult
from moemodel.validation.compare.folders import Run

_LAST_SHARE = 0.1  # of the steps, whose mean is the loss: as in `result.json`


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A phase's time on the mean GPU in s, and the energy of all GPUs in J; None where the meter can't tell."""

    time_s: float
    energy_J: float | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A run at so many samples.

    Attributes:
        run: it is of.
        samples, steps: that are looked at; steps may be no whole number.
        values: by quantity (`quantities.ALL`), in SI units; what was not measured is left out.
        phases: by name.
        by_part: quantities that count by the part of the run, not step by step.
    """

    run: Run
    samples: int
    steps: float
    values: Mapping[str, float]
    phases: Mapping[str, Phase]
    by_part: tuple[str, ...]

    @property
    def part(self) -> float:
        """Of the run that is looked at."""
        whole = 0 if self.run.result is None else self.run.result.samples
        return self.samples / whole if whole else 1.0


def at_samples(run: Run, samples: int) -> Measured:
    """A run that is done, at a number of samples that is not more than its own."""
    result = run.result
    assert result is not None
    steps, part = samples / run.plan.global_batch, samples / result.samples
    duration, energy = _duration(run, result, steps, part), _energy(run, result, steps, part)
    emissions_kg = None if result.emissions_kg is None else result.emissions_kg * part
    values = {
        "energy": energy.value,
        "duration": duration.value,
        "emissions": emissions_kg,
        "loss": task_loss(run, steps),
        "memory": _most([rank.peak_allocated_B for rank in result.ranks]),
        "step_time": None if duration.value is None else duration.value / steps,
        "step_energy": None if energy.value is None else energy.value / steps,
        "power": _power(energy.value, duration.value, len(result.ranks)),
        "clock": _mean([rank.clock_Hz for rank in result.ranks]),
        "temperature": _mean([rank.temperature_C for rank in result.ranks]),
        **_routing(run, steps),
    }
    counted = {"energy": energy.by_part, "duration": duration.by_part, "emissions": part < 1, "phases": part < 1}
    return Measured(
        run=run,
        samples=samples,
        steps=steps,
        values={name: float(value) for name, value in values.items() if value is not None},
        phases=phases(result.ranks, part, energy.value),
        by_part=tuple(name for name, by_part in counted.items() if by_part),
    )


@dataclass(frozen=True, kw_only=True)
class _Counted:
    """A sum, and whether it counts by the part of the run."""

    value: float | None
    by_part: bool


def _duration(run: Run, result: RunResult, steps: float, part: float) -> _Counted:
    """Of the slowest rank."""
    times_s = [first([step.time_s for step in of_rank], steps) for of_rank in run.steps]
    known = [time_s for time_s in times_s if time_s is not None]
    if known and len(known) == len(times_s):
        return _Counted(value=max(known), by_part=False)
    return _Counted(value=None if result.duration_s is None else result.duration_s * part, by_part=part < 1)


def _energy(run: Run, result: RunResult, steps: float, part: float) -> _Counted:
    """Of all ranks. The whole run's is the meter's sum, which no step's smoothing touches."""
    if part == 1:
        return _Counted(value=result.energy_J, by_part=False)
    energies_J = [first([step.energy_J for step in of_rank], steps) for of_rank in run.steps]
    known = [energy_J for energy_J in energies_J if energy_J is not None]
    if known and len(known) == len(energies_J):
        return _Counted(value=sum(known), by_part=False)
    return _Counted(value=None if result.energy_J is None else result.energy_J * part, by_part=True)


def first(values: Sequence[float | None], steps: float) -> float | None:
    """The sum over the first so many steps, the last by its part; None where one is unknown."""
    whole = math.floor(steps + 1e-9)
    rest = steps - whole if steps - whole > 1e-9 else 0.0
    counted = values[: whole + (1 if rest else 0)]
    known = [value for value in counted if value is not None]
    if not known or len(known) < len(counted):
        return None
    return sum(known[:whole]) + (rest * known[whole] if rest else 0.0)


def task_losses(run: Run) -> list[float | None]:
    """Of each step, the mean over the ranks that have one."""
    return [_mean([step.task_loss for step in of_step]) for of_step in zip(*run.steps, strict=True)]


def task_loss(run: Run, steps: float) -> float | None:
    """The mean of the last tenth of the first so many steps."""
    whole = max(1, math.floor(steps + 1e-9))
    losses = [loss for loss in task_losses(run)[:whole] if loss is not None]
    return fmean(losses[-max(1, round(_LAST_SHARE * len(losses))) :]) if losses else None


def phases(ranks: Sequence[RankResult], part: float, energy_J: float | None) -> dict[str, Phase]:
    """Phases that all ranks have, in the order of a step; and the energy that is in none of them."""
    names = [name for name in ranks[0].phases if all(name in rank.phases for rank in ranks)] if ranks else []
    found = {name: _phase(name, ranks, part) for name in names}
    known_J = [phase.energy_J for phase in found.values() if phase.energy_J is not None]
    if energy_J is not None and known_J and len(known_J) == len(found):
        found["rest"] = Phase(time_s=0.0, energy_J=max(0.0, energy_J - sum(known_J)))
    return found


def _phase(name: str, ranks: Sequence[RankResult], part: float) -> Phase:
    energies_J = [rank.phases[name].energy_J for rank in ranks]
    known_J = [energy_J for energy_J in energies_J if energy_J is not None]
    whole_J = sum(known_J) * part if len(known_J) == len(ranks) else None
    return Phase(time_s=fmean(rank.phases[name].time_s for rank in ranks) * part, energy_J=whole_J)


def _power(energy_J: float | None, duration_s: float | None, ranks: int) -> float | None:
    return energy_J / duration_s / ranks if energy_J is not None and duration_s else None


def _routing(run: Run, steps: float) -> dict[str, float | None]:
    """Means over the whole steps."""
    if run.routing is None:
        return {}
    whole = max(1, math.floor(steps + 1e-9))
    series = {"skew": run.routing.skew_S, "dropped": run.routing.dropped_S, "entropy": run.routing.entropy_S}
    known = {name: values_S[:whole][np.isfinite(values_S[:whole])] for name, values_S in series.items()}
    return {name: float(values_S.mean()) if values_S.size else None for name, values_S in known.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _most(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None
