"""Training under several frameworks, predicted against measured: over the committed folders of `moemodel run`.

    python bench/frameworks.py [--json] [--runs] [--calibration FILE] [--folder FOLDER]

Every run is predicted anew, by the shipped calibration of its GPU, with the load of the experts and the die temperature
that were measured; nothing is fitted to these runs. Means over runs of |predicted/measured - 1|:

    step_time_mape, energy_mape, memory_mape    of a step, and of the peak that torch's allocator counted
    phase_energy_mape    forward, backward and optimizer, with what of them the device stands idle for the host, against
                         what the meter attributes to them, where it can tell
    pairs_right, pairs   pairs of backends that train the same model on the same batch, whose energies at equal samples
                         differ by more than 5 %: in how many the prediction says which takes less
    forecast_step_time_mape, forecast_covered    as predicted before the run (predicted.json), without the router's
                         counts: error, and share of measured times in the 90 % interval
    BACKEND              an object of the same figures of one backend
    runs, not_done       that were done; that were not, by status
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from moemodel.calibration.store.catalogue import calibration_or_stand_in
from moemodel.model.core.documents import parse_yaml, read_json
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration, read_calibration
from moemodel.model.records.run import (
    MANIFEST,
    PREDICTED,
    RESULT,
    RoutingRecord,
    RunManifest,
    RunResult,
    routing_file,
)
from moemodel.model.results.measured import PredictedQuantities, predict_as_run

_FOLDER = Path(__file__).parent / "measured" / "frameworks"
_PHASES = ("forward", "backward", "optimizer")
_APART = 0.05  # of energies, below which the issue asks for no order

Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunOnce:
    """One run that was done.

    Attributes:
        place: of its folder.
        plan: that was run.
        result: of it.
        skew: mean over steps and layers of the busiest expert's rows over the mean; None without experts.
        forecast: what was predicted before it began; None where nothing was.
    """

    place: Path
    plan: Plan
    result: RunResult
    skew: float | None
    forecast: Mapping[str, Any] | None

    @property
    def job(self) -> tuple[object, ...]:
        """What another backend's run has to share to be compared."""
        plan = self.plan
        parts = (plan.architecture, plan.layers, plan.sequence_length, plan.global_batch, plan.cluster.gpus)
        return (*parts, plan.precision)


def read_runs(folder: Path) -> tuple[list[RunOnce], Counter[str]]:
    """The runs below a folder that were done, and how many were not, by status."""
    done, others = [], Counter[str]()
    for file in sorted(folder.rglob(RESULT)):
        result = read_json(file, RunResult)
        if result.status != "done":
            others[result.status] += 1
            continue
        manifest = read_json(file.parent / MANIFEST, RunManifest)
        forecast = file.parent / PREDICTED
        done.append(
            RunOnce(
                place=file.parent,
                plan=parse_yaml(manifest.plan_yaml, Plan, str(file.parent)),
                result=result,
                skew=measured_skew(file.parent, len(result.ranks)),
                forecast=json.loads(forecast.read_text()) if forecast.exists() else None,
            )
        )
    return done, others


def measured_skew(folder: Path, ranks: int) -> float | None:
    """Rows of the busiest expert over the mean, over all ranks; the mean over steps and layers."""
    rows: dict[tuple[int, int], list[int]] = {}
    for rank in range(ranks):
        file = folder / routing_file(rank)
        for line in file.read_text().splitlines() if file.exists() else ():
            record = RoutingRecord.model_validate_json(line)
            known = rows.setdefault((record.step, record.layer), [0] * len(record.rows_E))
            rows[record.step, record.layer] = [a + b for a, b in zip(known, record.rows_E, strict=True)]
    skews = [max(row) * len(row) / sum(row) for row in rows.values() if sum(row)]
    return fmean(skews) if skews else None


@cache
def _shipped(gpu: str) -> Calibration | None:
    return calibration_or_stand_in(None, gpu, key="cluster.gpu")


def predicted(run: RunOnce, calibration: Calibration | None) -> PredictedQuantities:
    """A run, with its router's counts and its die's temperature."""
    used = calibration or _shipped(run.plan.cluster.gpu)
    assert used is not None
    temperatures_C = [rank.temperature_C for rank in run.result.ranks if rank.temperature_C is not None]
    row = {"expert_skew": run.skew, "temperature_C": fmean(temperatures_C) if temperatures_C else None}
    return predict_as_run(run.plan, used, row)


def _errors(run: RunOnce, found: PredictedQuantities) -> dict[str, float]:
    """Predicted over measured - 1, of what was measured."""
    result = run.result
    peaks_B = [rank.peak_allocated_B for rank in result.ranks if rank.peak_allocated_B is not None]
    measured = {
        "step_time": result.step_time_s,
        "energy": None if result.energy_J is None else result.energy_J / result.steps,
        "memory": max(peaks_B) if peaks_B else None,
    }
    return {name: found.values[name] / value - 1 for name, value in measured.items() if value and name in found.values}


def _phase_errors(run: RunOnce, found: PredictedQuantities) -> list[float]:
    errors: list[float] = []
    if run.plan.parallel.pp > 1:
        return errors
    for phase in _PHASES:
        energies_J = [rank.phases[phase].energy_J for rank in run.result.ranks if phase in rank.phases]
        known_J = [energy_J for energy_J in energies_J if energy_J is not None]
        if known_J and len(known_J) == len(run.result.ranks) and found.phase_energy_J:
            errors.append(found.phase_energy_J[phase] * run.result.steps / sum(known_J) - 1)
    return errors


def _mape(errors: Iterable[float]) -> float | None:
    known = [abs(error) for error in errors]
    return fmean(known) if known else None


def figures(runs: Sequence[RunOnce], calibration: Calibration | None) -> Figures:
    """Of some runs, all backends together."""
    found = [predicted(run, calibration) for run in runs]
    errors = [_errors(run, one) for run, one in zip(runs, found, strict=True)]
    names = ("step_time", "energy", "memory")
    return {
        **{f"{name}_mape": _mape(e[name] for e in errors if name in e) for name in names},
        "phase_energy_mape": _mape(
            error for run, one in zip(runs, found, strict=True) for error in _phase_errors(run, one)
        ),
        **_forecasts(runs),
        "runs": len(runs),
    }


def _forecasts(runs: Sequence[RunOnce]) -> Figures:
    errors, inside = [], []
    for run in runs:
        step = None if run.forecast is None else run.forecast["step"]["step_time_s"]
        if step is None or run.result.step_time_s is None or step["value"] is None:
            continue
        low, high = step["interval"]
        errors.append(step["value"] / run.result.step_time_s - 1)
        inside.append(low <= run.result.step_time_s <= high)
    return {"forecast_step_time_mape": _mape(errors), "forecast_covered": fmean(inside) if inside else None}


def pairs(runs: Sequence[RunOnce], calibration: Calibration | None) -> tuple[int, int]:
    """Pairs of backends whose energies differ: in how many the prediction says which takes less, of how many."""
    right = of = 0
    by_job: dict[tuple[object, ...], dict[str, list[RunOnce]]] = {}
    for run in runs:
        if run.result.energy_J is not None:
            by_job.setdefault(run.job, {}).setdefault(run.plan.backend, []).append(run)
    for backends in by_job.values():
        for a, b in itertools.combinations(sorted(backends), 2):
            measured = [fmean(r.result.energy_J or 0.0 for r in backends[x]) for x in (a, b)]
            if max(measured) <= (1 + _APART) * min(measured):
                continue
            said = [fmean(predicted(r, calibration).values["energy"] for r in backends[x]) for x in (a, b)]
            of += 1
            right += (said[0] < said[1]) == (measured[0] < measured[1])
    return right, of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--runs", action="store_true", help="print the errors of every run too")
    parser.add_argument("--calibration", type=Path, help="instead of the shipped ones")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="folder of runs")
    arguments = parser.parse_args()
    runs, others = read_runs(arguments.folder)
    if not runs:
        skipped = f"skipped: there is no run that was done below {arguments.folder}"
        print(json.dumps({"skipped": skipped}) if arguments.json else skipped)
        return
    own = read_calibration(arguments.calibration) if arguments.calibration else None
    right, of = pairs(runs, own)
    result: Figures = figures(runs, own) | {"pairs_right": right, "pairs": of, "not_done": dict(others)}
    for backend in sorted({run.plan.backend for run in runs}):
        result[backend] = figures([run for run in runs if run.plan.backend == backend], own)
    if arguments.json:
        print(json.dumps(result))
        return
    if arguments.runs:
        for run in runs:
            shown = " ".join(f"{name} {error:+.1%}" for name, error in _errors(run, predicted(run, own)).items())
            print(f"{run.place.relative_to(arguments.folder)!s:70s} {shown} skew {run.skew and round(run.skew, 2)}")
    for name, value in result.items():
        print(f"{name:24s} {value:.4g}" if isinstance(value, float) else f"{name:24s} {value}")


if __name__ == "__main__":
    main()
