"""A comparison as tables for other programs: CSV, in SI units that the names of columns end in."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from moemodel.validation.compare.cells import Cell
from moemodel.validation.compare.comparison import Comparison
from moemodel.validation.compare.equal import Measured, task_losses
from moemodel.validation.compare.quantities import ALL

# Quantity -> its column.
COLUMNS = {
    "energy": "energy_J", "duration": "duration_s", "emissions": "emissions_kg", "loss": "task_loss_nats",
    "memory": "peak_memory_B", "step_time": "step_time_s", "step_energy": "step_energy_J", "power": "power_W",
    "clock": "clock_Hz", "temperature": "temperature_C", "skew": "load_skew", "dropped": "dropped_share",
    "entropy": "router_entropy_nats",
}  # fmt: skip

Row = Sequence[Any]
_SPREAD = ("mean", "std", "runs", "interval_low", "interval_high")


def all_tables(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Name and text of every table that has a row."""
    made: dict[str, tuple[Row, Callable[[Comparison], Iterator[Row]]]] = {
        "runs.csv": (_RUNS, _runs),
        "cells.csv": (("cell", "quantity", *_SPREAD), _cells),
        "phases.csv": (("cell", "phase", "time_s", *(f"energy_J_{name}" for name in _SPREAD)), _phases),
        "differences.csv": (_DIFFERENCES, _differences),
        "predicted.csv": (_PREDICTED, _predicted),
        "ended.csv": (("run", "cell", "status", "reason", "largest_term", "predicted_memory_B", "folder"), _ended),
        "steps.csv": (_STEPS, _steps),
        "experts.csv": (("folder", "cell", "layer", "expert", "rows"), _experts),
    }
    for name, (heads, rows_of) in made.items():
        rows = list(rows_of(comparison))
        if rows:
            yield name, _text([heads, *rows])


def _text(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _members(comparison: Comparison) -> Iterator[tuple[Cell, Measured]]:
    for cell in comparison.cells:
        for run in cell.runs:
            yield cell, run


_RUNS = (
    "run", "cell", "backend", "model", "global_batch", "gpus", "gpu", "repeat", "seed", "samples_of_run",
    "samples_compared", "steps_compared", *COLUMNS.values(), "by_part", "folder",
)  # fmt: skip


def _runs(comparison: Comparison) -> Iterator[Row]:
    for cell, one in _members(comparison):
        manifest, plan = one.run.manifest, one.run.plan
        yield (
            manifest.name, cell.label, plan.backend, one.run.model, plan.global_batch, plan.cluster.gpus, manifest.gpu,
            manifest.repeat, manifest.seed, manifest.samples, one.samples, one.steps,
            *(one.values.get(name) for name in COLUMNS), " ".join(one.by_part), one.run.place,
        )  # fmt: skip


def _cells(comparison: Comparison) -> Iterator[Row]:
    for cell in comparison.cells:
        for name in ALL:
            found = cell.spread(name)
            if found is not None:
                yield cell.label, COLUMNS[name], found.mean, found.std, found.runs, *(found.interval or (None, None))


def _phases(comparison: Comparison) -> Iterator[Row]:
    for cell in comparison.cells:
        for name in cell.runs[0].phases:
            found = cell.phase(name)
            times_s = [one.phases[name].time_s for one in cell.runs if name in one.phases]
            spread: Row = (None,) * 5
            if found is not None:
                spread = (found.mean, found.std, found.runs, *(found.interval or (None, None)))
            yield cell.label, name, None if name == "rest" else float(np.mean(times_s)), *spread


_DIFFERENCES = (
    "factor", "quantity", "a", "b", "mean_a", "mean_b", "share_of_a", "interval_low", "interval_high", "verdict",
    "runs_a", "runs_b", "few_repeats",
)  # fmt: skip


def _differences(comparison: Comparison) -> Iterator[Row]:
    for one in comparison.differences:
        yield (
            one.factor, COLUMNS[one.quantity], one.a, one.b, one.of_a.mean, one.of_b.mean, one.share,
            *(one.interval or (None, None)), one.verdict, one.of_a.runs, one.of_b.runs, one.few,
        )  # fmt: skip


_PREDICTED = (
    "cell", "quantity", "predicted", "interval_low", "interval_high", "measured_mean", "measured_std", "runs", "error",
    "inside_interval",
)  # fmt: skip


def _predicted(comparison: Comparison) -> Iterator[Row]:
    columns = {"step_time": "step_time_s", "energy": "step_energy_J", "memory": "peak_memory_B"}
    for one in comparison.checks:
        yield (
            one.cell, columns.get(one.quantity, f"{one.quantity}_step_energy_J"), one.predicted.value,
            *(one.predicted.interval or (None, None)), one.measured.mean, one.measured.std, one.measured.runs,
            one.error, one.inside,
        )  # fmt: skip


def _ended(comparison: Comparison) -> Iterator[Row]:
    for one in comparison.ended:
        yield one.name, one.label, one.status, one.reason, one.largest_term, one.predicted_B, one.place


_STEPS = (
    "folder", "cell", "step", "samples", "time_s", "energy_J", "task_loss_nats", "load_skew", "dropped_share",
    "router_entropy_nats",
)  # fmt: skip


def _steps(comparison: Comparison) -> Iterator[Row]:
    """The steps that are compared; time of the slowest rank, energy of all."""
    for cell, one in _members(comparison):
        losses, routing = task_losses(one.run), one.run.routing
        routed = None if routing is None else np.stack([routing.skew_S, routing.dropped_S, routing.entropy_S], axis=1)
        for number, of_step in enumerate(zip(*one.run.steps, strict=True)):
            if number >= one.steps:
                break
            times_s, energies_J = [step.time_s for step in of_step], [step.energy_J for step in of_step]
            time_s = None if None in times_s else max(time_s for time_s in times_s if time_s is not None)
            energy_J = None if None in energies_J else sum(found for found in energies_J if found is not None)
            series = (None, None, None) if routed is None else [_known(value) for value in routed[number].tolist()]
            samples = (number + 1) * one.run.plan.global_batch
            yield one.run.place, cell.label, number, samples, time_s, energy_J, losses[number], *series


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _experts(comparison: Comparison) -> Iterator[Row]:
    """Rows of every expert over the compared steps, a last part of one left out."""
    for cell, one in _members(comparison):
        routing = one.run.routing
        for layer in () if routing is None else routing.layers:
            assert routing is not None
            for expert, rows in enumerate(routing.rows_E(layer, max(1, int(one.steps + 1e-9))).tolist()):
                yield one.run.place, cell.label, layer, expert, int(rows)
