"""Predicted against measured: one comparison a training run, from rows of a profile's `iterations` table.

Rows of the ranks of one run are one run (`model.results.measured`), and what the router did and how warm the die was
are inputs of its prediction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moemodel.model.core.documents import parse_yaml
from moemodel.model.core.interval import Z
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration, reference_to
from moemodel.model.results.measured import QUANTITIES, Row, known, predict_as_run, reduce_ranks
from moemodel.model.results.validation import Report
from moemodel.validation.records.session import RequestedPlan, RunRecord
from moemodel.validation.report.build import results_of


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One quantity of one run, SI units; `spread` is the predicted standard deviation of its logarithm, or None."""

    predicted: float
    measured: float
    spread: float | None = None

    @property
    def error(self) -> float:
        """Relative error, signed."""
        return self.predicted / self.measured - 1

    @property
    def covered(self) -> bool:
        """The measurement lies in the 90 % interval; False where there is none."""
        return self.spread is not None and abs(math.log(self.predicted / self.measured)) <= Z * self.spread


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One run: its name, its quantities (those that were measured), and the predicted share of waiting for the host."""

    name: str
    quantities: dict[str, Quantity]
    host_share: float


def compare(rows: Iterable[Row], calibration: Calibration) -> list[Comparison]:
    """Predict every measured run.

    Args:
        rows: of a profile's `iterations` table; those of a run's ranks one after another.
        calibration: of the GPU that they ran on.

    Raises:
        InputError: a row's plan is not one.
        CalibrationError: the calibration is of another GPU, or lacks an operator.
    """
    return [_compare(reduce_ranks(run), calibration) for run in runs_of(rows)]


def runs_of(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows of table `iterations` by run: a plan's rows with ascending ranks belong together."""
    run: list[Row] = []
    for row in rows:
        if run and not (row.get("plan") == run[-1].get("plan") and _follows(row, run[-1])):
            yield run
            run = []
        run.append(row)
    if run:
        yield run


def _follows(row: Row, before: Row) -> bool:
    rank, last = row.get("rank"), before.get("rank")
    return rank is not None and last is not None and int(rank) > int(last)


def _compare(row: Row, calibration: Calibration) -> Comparison:
    return compare_run(parse_yaml(row["plan_yaml"], Plan, str(row["plan"])), row, calibration, name=str(row["plan"]))


def compare_run(plan: Plan, row: Row, calibration: Calibration, *, name: str) -> Comparison:
    """Predict one run, given as one row.

    Args:
        plan: as it ran.
        row: what it measured.
        calibration: of the GPU that it ran on.
        name: of the comparison.

    Raises:
        InputError: unknown architecture or GPU.
        CalibrationError: the calibration is of another GPU, or lacks an operator.
    """
    found = predict_as_run(plan, calibration, row)
    return Comparison(
        name=name,
        quantities={
            name: Quantity(predicted=value, measured=float(row[QUANTITIES[name]]), spread=found.spreads.get(name))
            for name, value in found.values.items()
            if known(row.get(QUANTITIES[name]))
        },
        host_share=found.host_share,
    )


def mape(found: Sequence[Comparison], name: str) -> float:
    """Mean absolute relative error of a quantity over the runs that have it.

    Raises:
        ValueError: none has.
    """
    errors = [abs(run.quantities[name].error) for run in found if name in run.quantities]
    if not errors:
        raise ValueError(f"no run measured {name}")
    return float(np.mean(errors))


def coverage(found: Sequence[Comparison], name: str) -> float:
    """Share of the runs whose measurement lies in the 90 % interval.

    Raises:
        ValueError: none measured it.
    """
    held = [run.quantities[name].covered for run in found if name in run.quantities]
    if not held:
        raise ValueError(f"no run measured {name}")
    return float(np.mean(held))


def predicted_again(report: Report, calibration: Calibration) -> Report:
    """The same measurements, held against another calibration's predictions.

    Raises:
        InputError, CalibrationError: a plan can't be predicted.
    """
    asked = tuple(
        RequestedPlan(name=p.name, asked_yaml=p.asked_yaml, plan_yaml=p.plan_yaml, roles=p.roles, notes=p.notes)
        for p in report.plans
    )
    records = [RunRecord(plan=plan.name, visit=visit) for plan in report.plans for visit in plan.visits]
    records += [RunRecord(plan=plan.name, failed=failed) for plan in report.plans for failed in plan.failures]
    results = results_of(asked, records, calibration)
    return report.model_copy(update={"calibration": reference_to(calibration), **vars(results)})
