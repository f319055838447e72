"""What runs have in common, in what they differ, and what was predicted of them."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moemodel.model.core.interval import INTERVAL
from moemodel.validation.compare.cells import Cell, gpu_name, key_of, label_of, order_of, settings_of, telling
from moemodel.validation.compare.differences import Difference, differences
from moemodel.validation.compare.equal import at_samples
from moemodel.validation.compare.folders import Run, read_runs
from moemodel.validation.compare.forecast import Expected, Forecast
from moemodel.validation.compare.quantities import ALL
from moemodel.validation.compare.welch import FEW, Spread

# A quantity that is predicted -> the one that was measured, both of one step.
PREDICTED = {"step_time": "step_time", "energy": "step_energy", "memory": "memory"}

_TEST = (
    f"Spread: means and standard deviations over repeats. Whether two differ: Welch's interval of the difference of "
    f"means at {INTERVAL:.0%}; one that holds 0 is called none. Of many pairs one in ten differs by chance."
)
_NUMBERS = re.compile(r"[0-9.]+")  # in which notes of the meter that say the same differ
_LOSSES = (
    "Only the task's loss is compared, the mean of the last tenth of the steps; what routers add to it is left out."
)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A run that was not done, which is a result too.

    Attributes:
        name: of the run.
        label: of its cell.
        status: out of memory, refused, failed, or cut short.
        reason: why.
        largest_term: of the predicted memory, for one that ran out of it.
        predicted_B: its predicted peak memory.
        place: of its folder.
    """

    name: str
    label: str
    status: str
    reason: str
    largest_term: str | None
    predicted_B: float | None
    place: Path


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was predicted of a cell before it ran, beside what it measured; both of one step.

    Attributes:
        cell: its label.
        quantity: step time, energy of all GPUs, peak memory; or a phase, of which it is the energy.
        predicted: before the run.
        measured: over the repeats.
        error: predicted over measured, less 1.
        inside: whether the interval holds what was measured; None without one.
    """

    cell: str
    quantity: str
    predicted: Expected
    measured: Spread
    error: float
    inside: bool | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs beside each other, at equal samples.

    Attributes:
        samples: at which all are compared: the fewest that a run that is done has; None where none is done.
        cells: of the runs that are done, sorted by model, batch and settings, then by framework.
        differences: of pairs of cells that differ in one thing.
        checks: of predictions.
        ended: runs that were not done.
        notes: what the figures rest on.
        folders: that were given.
    """

    samples: int | None
    cells: tuple[Cell, ...]
    differences: tuple[Difference, ...]
    checks: tuple[Check, ...]
    ended: tuple[Ended, ...]
    notes: tuple[str, ...]
    folders: tuple[Path, ...]

    @property
    def done(self) -> int:
        """How many runs are compared."""
        return sum(len(cell.runs) for cell in self.cells)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, ready for `json.dumps`; units in the names are SI, shares are of 1."""
        return {
            "samples": self.samples,
            "runs": self.done,
            "interval_level": INTERVAL,
            "cells": [_cell_json(cell) for cell in self.cells],
            "differences": [_difference_json(one) for one in self.differences],
            "predicted": [_check_json(one) for one in self.checks],
            "ended": [_ended_json(one) for one in self.ended],
            "notes": list(self.notes),
        }


def compare_folders(folders: Sequence[Path]) -> Comparison:
    """Read runs, and hold them against each other.

    Raises:
        InputError: see `folders.read_runs`.
    """
    found = read_runs(folders)
    comparison = compare_runs(found.runs)
    notes = (*found.notes, *comparison.notes)
    return Comparison(**{**vars(comparison), "notes": notes, "folders": tuple(folders)})


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Runs that were read, held against each other."""
    settings = [settings_of(run) for run in runs]
    names, _ = telling(settings)
    done = [run for run in runs if run.done]
    samples = min((run.result.samples for run in done if run.result is not None), default=None)
    cells = tuple(_cells(runs, settings, names, samples))
    return Comparison(
        samples=samples,
        cells=cells,
        differences=tuple(differences(cells)),
        checks=tuple(check for cell in cells for check in checks_of(cell)),
        ended=tuple(_ended(run, label_of(own, names)) for run, own in zip(runs, settings, strict=True) if not run.done),
        # of those that were not done, GPU and data stand as they were asked for, not as they were found
        notes=(*_together_notes(*telling([cell.settings for cell in cells])), *_notes(cells, samples)),
        folders=(),
    )


def _cells(
    runs: Sequence[Run], settings: Sequence[Mapping[str, Hashable]], names: Sequence[str], samples: int | None
) -> Iterator[Cell]:
    groups: dict[Hashable, list[int]] = {}
    for index, run in enumerate(runs):
        if run.done:
            groups.setdefault(key_of(settings[index]), []).append(index)
    for members in sorted(groups.values(), key=lambda members: order_of(settings[members[0]], names)):
        assert samples is not None
        own = settings[members[0]]
        yield Cell(label=label_of(own, names), settings=own, runs=tuple(at_samples(runs[i], samples) for i in members))


def _ended(run: Run, label: str) -> Ended:
    result, memory = run.result, None if run.forecast is None else run.forecast.values.get("memory")
    return Ended(
        name=run.manifest.name,
        label=label,
        status="cut short" if result is None else result.status,
        reason="it has no result: it was cut short, or is still running" if result is None else result.reason or "",
        largest_term=None if result is None else result.largest_term,
        predicted_B=None if memory is None else memory.value,
        place=run.place,
    )


# ---- what was predicted ---------------------------------------------------------------------------------------------


def forecast_of(cell: Cell) -> Forecast | None:
    """What was predicted of the runs of a cell, where they ran on the GPU that it was predicted for."""
    found = next((each.run.forecast for each in cell.runs if each.run.forecast is not None), None)
    return None if found is None or _of_another_gpu(cell, found) else found


def _of_another_gpu(cell: Cell, found: Forecast) -> bool:
    return found.gpu is not None and gpu_name(found.gpu) != cell.settings["gpu"]


def checks_of(cell: Cell) -> Iterator[Check]:
    """Every figure that was predicted of a cell and was measured, too."""
    found = forecast_of(cell)
    if found is None:
        return
    for quantity, measured in PREDICTED.items():
        expected, spread = found.values.get(quantity), cell.spread(measured)
        if expected is not None and spread is not None and spread.mean > 0:
            yield _check(cell, quantity, expected, spread)
    for phase, energy_J in found.phases.items():
        spread = _of_a_step(cell, phase)
        if spread is not None and spread.mean > 0:
            yield _check(cell, phase, Expected(value=energy_J), spread)


def _of_a_step(cell: Cell, phase: str) -> Spread | None:
    """A phase's energy in one step."""
    spread, steps = cell.phase(phase), cell.runs[0].steps
    if spread is None:
        return None
    std = None if spread.std is None else spread.std / steps
    return Spread(mean=spread.mean / steps, std=std, runs=spread.runs)


def _check(cell: Cell, quantity: str, expected: Expected, measured: Spread) -> Check:
    edges = expected.interval
    return Check(
        cell=cell.label,
        quantity=quantity,
        predicted=expected,
        measured=measured,
        error=expected.value / measured.mean - 1,
        inside=None if edges is None else edges[0] <= measured.mean <= edges[1],
    )


# ---- what is to be said ---------------------------------------------------------------------------------------------


def _together_notes(names: Sequence[str], together: Sequence[str]) -> Iterator[str]:
    if together:
        yield (
            f"What differs in {', '.join(names)} differs in {', '.join(together)} too; which of them makes a "
            "difference is not told."
        )


def _notes(cells: Sequence[Cell], samples: int | None) -> Iterator[str]:
    if samples is None:
        yield "No run is done: there is nothing to compare."
        return
    yield from _samples_notes(cells, samples)
    yield _TEST
    yield from _repeats_notes(cells)
    yield _LOSSES
    yield from _model_notes(cells)
    yield from _forecast_notes(cells)
    yield from _version_notes(cells)
    yield from _meter_notes(cells)


def _samples_notes(cells: Sequence[Cell], samples: int) -> Iterator[str]:
    longer = [run for cell in cells for run in cell.runs if run.part < 1]
    if longer:
        by_part = sorted({name for run in longer for name in run.by_part})
        yield (
            f"{len(longer)} of the runs went on to more samples and are compared at the first {samples:,}, the fewest "
            f"that a run has. Not step by step but by the part of the run: {', '.join(by_part)}."
        )
    broken = sorted({cell.label for cell in cells for run in cell.runs if run.steps % 1})
    if broken:
        yield f"{samples:,} samples are no whole number of steps, so the last counts by its part: {'; '.join(broken)}."


def _repeats_notes(cells: Sequence[Cell]) -> Iterator[str]:
    once = [cell.label for cell in cells if len(cell.runs) == 1]
    few = [cell.label for cell in cells if 1 < len(cell.runs) < FEW]
    if once:
        yield f"Run once, so without a spread that differences could be held against: {'; '.join(once)}."
    if few:
        yield f"Few repeats (two), so intervals are wide and rest on next to nothing: {'; '.join(few)}."


def _model_notes(cells: Sequence[Cell]) -> Iterator[str]:
    if len({cell.settings["model"] for cell in cells}) > 1:
        yield (
            "Losses of different models are per token of their own vocabulary and task; they can be compared where "
            "both are the same."
        )
    if len({cell.settings["gpu"] for cell in cells}) > 1:
        yield "The runs are of different GPUs."


def _forecast_notes(cells: Sequence[Cell]) -> Iterator[str]:
    without, elsewhere, differently = [], [], []
    for cell in cells:
        forecasts = [each.run.forecast for each in cell.runs if each.run.forecast is not None]
        if not forecasts:
            without.append(cell.label)
        elif _of_another_gpu(cell, forecasts[0]):
            elsewhere.append(f"{cell.label} (for {forecasts[0].gpu}, run on {cell.settings['gpu']})")
        elif any(one != forecasts[0] for one in forecasts):
            differently.append(cell.label)
    yield from _listed("Nothing was predicted of", without)
    yield from _listed("Predicted for another GPU than ran, so the prediction is left out", elsewhere)
    yield from _listed("Repeats were predicted differently; the prediction of the first is shown", differently)
    if any(cell.settings["cluster.gpus"] != 1 and forecast_of(cell) for cell in cells):
        yield (
            "Predicted phases leave exposed communication and waiting out, which measured ones of several GPUs hold."
        )


def _listed(text: str, items: Sequence[str]) -> Iterator[str]:
    if items:
        yield f"{text}: {'; '.join(items)}."


def _version_notes(cells: Sequence[Cell]) -> Iterator[str]:
    found = []
    for cell in cells:
        versions = [each.run.manifest.versions for each in cell.runs]
        names = sorted(name for name in set().union(*versions) if len({one.get(name) for one in versions}) > 1)
        if names:
            found.append(f"{cell.label} ({', '.join(names)})")
    yield from _listed("Repeats ran with different versions of software", found)


def _meter_notes(cells: Sequence[Cell]) -> Iterator[str]:
    for name in ("energy", "emissions", "loss"):
        missing = [cell.label for cell in cells if cell.spread(name) is None]
        yield from _listed(f"Not measured: {ALL[name].label}, of", missing)
    said: dict[str, list[str]] = {}
    for cell in cells:
        for each in cell.runs:
            for note in dict.fromkeys(note for rank in _ranks(each.run) for note in rank.notes):
                said.setdefault(_NUMBERS.sub("#", note), []).append(note)
    for notes in said.values():
        more = f" (and alike of {len(notes) - 1} other runs)" if len(notes) > 1 else ""
        yield f"The meter: {notes[0]}{more}"


def _ranks(run: Run) -> Sequence[Any]:
    return () if run.result is None else run.result.ranks


# ---- as JSON --------------------------------------------------------------------------------------------------------


def _cell_json(cell: Cell) -> dict[str, Any]:
    return {
        "label": cell.label,
        "backend": cell.settings["backend"],
        "model": cell.settings["model"],
        "global_batch": cell.settings["global_batch"],
        "runs": [str(each.run.place) for each in cell.runs],
        "quantities": {name: _spread_json(found) for name in ALL if (found := cell.spread(name)) is not None},
        "phases_J": {
            name: _spread_json(found) for name in cell.runs[0].phases if (found := cell.phase(name)) is not None
        },
    }


def _spread_json(found: Spread) -> dict[str, Any]:
    interval = None if found.interval is None else list(found.interval)
    return {"mean": found.mean, "std": found.std, "runs": found.runs, "interval": interval}


def _difference_json(one: Difference) -> dict[str, Any]:
    return {
        "factor": one.factor,
        "quantity": one.quantity,
        "a": one.a,
        "b": one.b,
        "share": one.share,
        "interval": None if one.interval is None else list(one.interval),
        "verdict": one.verdict,
        "runs": [one.of_a.runs, one.of_b.runs],
        "few_repeats": one.few,
    }


def _check_json(one: Check) -> dict[str, Any]:
    return {
        "cell": one.cell,
        "quantity": one.quantity,
        "predicted": one.predicted.value,
        "interval": None if one.predicted.interval is None else list(one.predicted.interval),
        "measured": _spread_json(one.measured),
        "error": one.error,
        "inside": one.inside,
    }


def _ended_json(one: Ended) -> dict[str, Any]:
    return {
        "name": one.name,
        "label": one.label,
        "status": one.status,
        "reason": one.reason,
        "largest_term": one.largest_term,
        "predicted_memory_B": one.predicted_B,
        "folder": str(one.place),
    }
