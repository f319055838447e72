"""From what was measured to a report: every plan predicted as it ran, errors, rank agreement, regret."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean, stdev
from typing import Any

from moemodel.model.core.interval import Z
from moemodel.model.plan.spec import Plan, plan_text
from moemodel.model.records.calibration import Calibration, reference_to
from moemodel.model.results.measured import (
    QUANTITIES,
    PredictedQuantities,
    known,
    mean_of,
    predict_as_run,
    reduce_ranks,
)
from moemodel.model.results.validation import (
    SCHEMA_VERSION,
    Errors,
    Measured,
    PlanReport,
    Predicted,
    QuantityReport,
    Ranking,
    Report,
    Visit,
)
from moemodel.model.search.result import version
from moemodel.validation.records.session import RequestedPlan, RunRecord, ValidationSpec
from moemodel.validation.report.ranking import Ranked, kendall, regrets
from moemodel.validation.select.runnable import comparison_group, not_held

RANKED = ("step_time", "energy")
_SAME_LOSS = 0.01  # relative; assumed: 16-bit sums in another order differ by less

_INPUTS = (
    "What the router did and how warm the dies were are inputs of a prediction, as measured; the forecast is what was "
    "known before: the plan's own skew, and the steady state of a long run."
)
_CHOICE = (
    "Rank agreement and regret are those of the forecast, which is what a choice rests on, among plans that train the "
    "same model on the same batch."
)


def report_of(spec: ValidationSpec, records: Sequence[RunRecord], calibration: Calibration) -> Report:
    """The report on the runs that ended so far.

    Args:
        spec: what was asked.
        records: runs that ended.
        calibration: of the GPU, to predict them with.

    Raises:
        InputError, CalibrationError: a plan can't be predicted.
    """
    results = results_of(spec.plans, records, calibration)
    done = {(record.plan, record.visit.repeat) for record in records if record.visit}
    failed = {record.plan for record in records if record.failed}
    return Report(
        schema_version=SCHEMA_VERSION,
        moemodel_version=version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        search=spec.search,
        repeats=spec.repeats,
        seconds=spec.seconds,
        seed=spec.seed,
        complete=all(a.name in failed or (a.name, repeat) in done for a, repeat in spec.order()),
        environment=spec.environment,
        calibration=reference_to(calibration),
        plans=results.plans,
        errors=results.errors,
        ranking=results.ranking,
        set_aside=spec.set_aside,
        notes=(_INPUTS, _CHOICE, *spec.notes, *_different_losses(results.plans)),
    )


def _different_losses(plans: Sequence[PlanReport]) -> list[str]:
    """A note for each model and batch whose plans begin with different losses, though weights and data are the same."""
    groups: dict[Hashable, dict[str, float]] = {}
    for plan in plans:
        loss = mean_of([reduce_ranks(visit.rows) for visit in plan.visits]).get("loss_first") if plan.visits else None
        if loss is not None:
            groups.setdefault(comparison_group(plan.plan), {})[plan.name] = loss
    notes = []
    for losses in groups.values():
        low, high = (pick(losses, key=lambda name: losses[name]) for pick in (min, max))
        if losses[high] > (1 + _SAME_LOSS) * losses[low]:
            notes.append(
                f"{low} begins with a loss of {losses[low]:.4g}, {high} with {losses[high]:.4g}, from the same weights "
                "and data: one of them may not compute what its plan says."
            )
    return notes


@dataclass(frozen=True, kw_only=True)
class Results:
    """Plans, the fastest by forecast first; and over all of them, errors and rank agreement of each quantity."""

    plans: tuple[PlanReport, ...]
    errors: dict[str, Errors]
    ranking: dict[str, Ranking]


def results_of(asked: Iterable[RequestedPlan], records: Sequence[RunRecord], calibration: Calibration) -> Results:
    """Predicted against measured, of plans and of all of them together.

    Raises:
        InputError, CalibrationError: a plan can't be predicted.
    """
    plans = tuple(sorted((plan_report(one, records, calibration) for one in asked), key=_fastest_first))
    return Results(
        plans=plans,
        errors={name: errors for name in QUANTITIES if (errors := errors_of(plans, name)) is not None},
        ranking={name: ranking for name in RANKED if (ranking := ranking_of(plans, name)) is not None},
    )


def _fastest_first(plan: PlanReport) -> float:
    forecast = plan.quantities["step_time"].forecast
    return math.inf if forecast is None else forecast.value


# ---- one plan -------------------------------------------------------------------------------------------------------


def plan_report(asked: RequestedPlan, records: Sequence[RunRecord], calibration: Calibration) -> PlanReport:
    """One plan: what it measured, and what it should have."""
    visits = tuple(record.visit for record in records if record.plan == asked.name and record.visit)
    plan, notes = _as_it_ran(asked, visits)
    runs = [reduce_ranks(visit.rows) for visit in visits]
    mean = mean_of(runs) if runs else {}
    as_run = predict_as_run(plan, calibration, mean) if runs else None
    forecast = predict_as_run(plan, calibration)
    return PlanReport(
        name=asked.name,
        roles=asked.roles,
        asked_yaml=asked.asked_yaml,
        plan_yaml=plan_text(plan),
        notes=(*asked.notes, *notes),
        quantities={
            name: quantity
            for name, column in QUANTITIES.items()
            if (quantity := _quantity(name, [run.get(column) for run in runs], as_run, forecast)) is not None
        },
        temperature_C=mean.get("temperature_C"),
        expert_skew=mean.get("expert_skew"),
        visits=visits,
        failures=tuple(record.failed for record in records if record.plan == asked.name and record.failed),
    )


def _as_it_ran(asked: RequestedPlan, visits: Sequence[Visit]) -> tuple[Plan, list[str]]:
    """The plan without a clock that was not held in every run, and a note that says so."""
    plan = asked.plan
    if plan.clock_MHz is None or all(visit.clock_held for visit in visits):
        return plan, []
    why = next((visit.clock_note for visit in visits if visit.clock_note), "the driver didn't")
    return plan.model_copy(update={"clock_MHz": None}), [not_held(plan.clock_MHz, why)]


def _quantity(
    name: str, values: Sequence[Any], as_run: PredictedQuantities | None, forecast: PredictedQuantities
) -> QuantityReport | None:
    readings = [float(value) for value in values if known(value) and value > 0]  # what is 0 was not measured
    if name not in forecast.values and not readings:
        return None
    predicted = None if as_run is None else _predicted(as_run, name)
    errors = [predicted.value / reading - 1 for reading in readings] if predicted else []
    return QuantityReport(
        predicted=predicted,
        forecast=_predicted(forecast, name),
        measured=Measured(mean=fmean(readings), std=_std(readings), n=len(readings)) if readings else None,
        error=predicted.value / fmean(readings) - 1 if predicted and readings else None,
        error_std=_std(errors),
    )


def _std(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def _predicted(found: PredictedQuantities, name: str) -> Predicted | None:
    if not math.isfinite(found.values.get(name, math.nan)):
        return None
    value, spread = found.values[name], found.spreads.get(name)
    factor = None if spread is None else math.exp(Z * spread)
    return Predicted(value=value, interval=None if factor is None else (value / factor, value * factor))


# ---- all plans ------------------------------------------------------------------------------------------------------


def errors_of(plans: Sequence[PlanReport], name: str) -> Errors | None:
    """Errors of a quantity over the plans that measured it; None where none did."""
    found = [(plan.name, _errors_of(plan.quantities[name])) for plan in plans if name in plan.quantities]
    there = [(plan, one) for plan, one in found if one is not None]
    if not there:
        return None
    worst, of_worst = max(there, key=lambda one: one[1].prediction)
    forecasts = [one.forecast for _, one in there if one.forecast is not None]
    covered = [one.covered for _, one in there if one.covered is not None]
    return Errors(
        mape=fmean(one.prediction for _, one in there),
        worst=of_worst.prediction,
        worst_plan=worst,
        forecast_mape=fmean(forecasts) if forecasts else None,
        covered=fmean(covered) if covered else None,
        plans=len(there),
    )


@dataclass(frozen=True, kw_only=True)
class _Errors:
    """Absolute errors of the prediction and the forecast of one plan, and whether the interval held the measurement."""

    prediction: float
    forecast: float | None
    covered: bool | None


def _errors_of(quantity: QuantityReport) -> _Errors | None:
    measured, predicted, forecast = quantity.measured, quantity.predicted, quantity.forecast
    if measured is None or predicted is None or quantity.error is None:
        return None
    interval = predicted.interval
    return _Errors(
        prediction=abs(quantity.error),
        forecast=None if forecast is None else abs(forecast.value / measured.mean - 1),
        covered=None if interval is None else interval[0] <= measured.mean <= interval[1],
    )


def ranked(plans: Sequence[PlanReport], name: str) -> list[Ranked]:
    """Plans as their forecasts rank them by a quantity; those without one of the two figures are left out."""
    found = []
    for plan in plans:
        quantity = plan.quantities.get(name)
        if quantity is not None and quantity.forecast is not None and quantity.measured is not None:
            found.append(
                Ranked(
                    name=plan.name,
                    group=comparison_group(plan.plan),
                    predicted=quantity.forecast.value,
                    measured=quantity.measured.mean,
                    error=(quantity.measured.std or 0.0) / math.sqrt(quantity.measured.n),
                )
            )
    return found


def _without_their_first(plans: Sequence[PlanReport], name: str) -> set[str]:
    """Plans of groups whose first choice, by forecast, was not measured: what choosing it costs is not known."""
    groups: dict[Hashable, list[PlanReport]] = {}
    for plan in plans:
        quantity = plan.quantities.get(name)
        if quantity is not None and quantity.forecast is not None:
            groups.setdefault(comparison_group(plan.plan), []).append(plan)
    lost: set[str] = set()
    for group in groups.values():
        first = min(group, key=lambda plan: _forecast(plan, name))
        if first.quantities[name].measured is None:
            lost.update(plan.name for plan in group)
    return lost


def _forecast(plan: PlanReport, name: str) -> float:
    forecast = plan.quantities[name].forecast
    return math.inf if forecast is None else forecast.value


def ranking_of(plans: Sequence[PlanReport], name: str) -> Ranking | None:
    """How well a quantity is ranked; None where fewer than two plans have it.

    Regret is that of groups whose first choice was measured.
    """
    found = ranked(plans, name)
    lost = _without_their_first(plans, name)
    if len(found) < 2:
        return None
    tau, pairs = kendall(found)
    worst = max(regrets([one for one in found if one.name not in lost]), key=lambda regret: regret.share, default=None)
    return Ranking(
        tau=tau,
        pairs=pairs,
        regret=None if worst is None else worst.share,
        chosen=None if worst is None else worst.chosen,
        best=None if worst is None else worst.best,
    )
