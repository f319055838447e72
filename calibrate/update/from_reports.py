"""Refit a calibration with what a validation has shown, and tell whether that helps plans that the fit did not see.

A validation measures whole steps, so it informs few things, each of them common to all plans:

    kernels     time of every operator over what was calibrated: what adding up operators leaves out
    host        time the host needs to queue kernels
    links       bandwidth that collectives reach; `start` their latency; `overlap` what hides behind computation
    dynamic     energy of operators; `link_power` of collectives
    workspace   memory that libraries keep

Each is a factor on parameters, starts at 1 and is held there by a prior as wide as the calibration's own error of it;
step times, powers and memories count by the errors that the calibration states for them, robustly (soft L1). There is
no constant of a single plan. Every kind of plan is then predicted by a fit that saw none of its kind, and a part (time
with power; memory) is kept only where that beats the calibration as it was.

Written for reports of `model.results.validation`, one or several of one kind of GPU.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

import moemodel
from moemodel.calibration.update.fitter import FittedFactor, Fitter, MeasuredRun, Part
from moemodel.calibration.update.scale_factors import ScaleFactor, memory_knobs, power_knobs, time_knobs
from moemodel.model.core.arrays import IntArray
from moemodel.model.core.errors import CalibrationError, InputError
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration, Parameter
from moemodel.model.results.measured import mean_of, reduce_ranks
from moemodel.model.results.validation import Report

FEWEST = 3  # plans, and kinds of plans: with fewer nothing can be left out


@dataclass(frozen=True, kw_only=True)
class Update:
    """The outcome of an update.

    Attributes:
        calibration: with the parts that help, or with all of them if that was asked for.
        parts: what was fitted.
        kept: names of the parts that are in it.
        plans: that it rests on; `left_out` says what was left out together.
    """

    calibration: Calibration
    parts: tuple[Part, ...]
    kept: tuple[str, ...]
    plans: int
    left_out: str


def update(calibration: Calibration, reports: Sequence[Report], source: str, *, force: bool = False) -> Update:
    """Refit a calibration.

    Args:
        calibration: to start from.
        reports: of validations on GPUs of its kind.
        source: what parameters shall say of the reports.
        force: keep every part, whether it helps or not.

    Raises:
        CalibrationError: of another GPU than a report, or lacks an operator.
        InputError: too few plans were measured, or a report was counted before.
    """
    for report in reports:
        if report.environment.gpu != calibration.gpu:
            raise CalibrationError(
                f"the report of {report.created} is of {report.environment.gpu}, but calibration {calibration.name} "
                f"is of {calibration.gpu}; give a calibration of that GPU with --calibration"
            )
    _refuse_twice(calibration, reports)
    runs = runs_of_reports(reports)
    if len(runs) < FEWEST:
        raise InputError(
            f"the reports hold {len(runs)} plans that were measured; needed: at least {FEWEST}, so that some can be "
            "left out of the fit"
        )
    groups, left_out = _groups(runs)
    said = f"{source}: {len(runs)} plans on {_devices(reports)}"
    parts, kept, new = [], [], calibration
    for name, fitted, shown, knobs in _parts(calibration):
        fitter = Fitter(calibration, runs, knobs, fitted)
        if not fitter.informed:
            continue
        part = fitter.part(name, shown, groups)
        parts.append(part)
        if part.helps or force:
            kept.append(name)
            new = _moved(new, knobs, part.moved, said)
    if kept:
        new = _renewed(new, kept, said)
    return Update(calibration=new, parts=tuple(parts), kept=tuple(kept), plans=len(runs), left_out=left_out)


def _refuse_twice(calibration: Calibration, reports: Sequence[Report]) -> None:
    """A report counts once: given twice, what is left out of a fit would be in it."""
    seen: set[tuple[str, str | None]] = set()
    for report in reports:
        one = (report.created, report.environment.device.uuid)
        if one in seen:
            raise InputError(f"the report of {report.created} is given twice; give each once")
        seen.add(one)
        if report.created in calibration.provenance:
            raise InputError(
                f"the report of {report.created} is in calibration {calibration.name} already; update the one before it"
            )


def _devices(reports: Sequence[Report]) -> str:
    found = (f"{r.environment.gpus} x {r.environment.device.name}, {r.created}" for r in reports)
    return "; ".join(dict.fromkeys(found))


def _parts(calibration: Calibration) -> list[tuple[str, tuple[str, ...], tuple[str, ...], list[ScaleFactor]]]:
    """What is fitted together: its name, the quantities that are fitted, those whose errors count, the factors.

    Energy is the product of the two that are fitted.
    """
    time = [*time_knobs(calibration), *power_knobs(calibration)]
    return [
        ("time and power", ("step_time", "power"), ("step_time", "energy"), time),
        ("memory", ("memory",), ("memory",), memory_knobs(calibration)),
    ]


# ---- what was measured ----------------------------------------------------------------------------------------------


def runs_of_reports(reports: Sequence[Report]) -> list[MeasuredRun]:
    """The plans of reports that were measured."""
    return [
        MeasuredRun(
            name=plan.name if len(reports) == 1 else f"{plan.name} ({report.created})",
            kind=kind_of(plan.plan),
            plan=plan.plan,
            row=mean_of([reduce_ranks(visit.rows) for visit in plan.visits]),
        )
        for report in reports
        for plan in report.plans
        if plan.visits
    ]


def kind_of(plan: Plan) -> str:
    """The parallelism that a plan uses, whatever its degrees: such as "zero 3" or "tp, pp zero-bubble"."""
    p = plan.parallel
    words = [f"zero {p.zero_stage}" if p.zero_stage else "dp"] if p.dp > 1 else []
    words += ["tp with sp" if p.sequence_parallel else "tp"] if p.tp > 1 else []
    words += [f"pp {'interleaved' if p.virtual_stages > 1 else plan.schedule}"] if p.pp > 1 else []
    words += ["ep"] if p.ep > 1 else []
    words += ["cp"] if p.cp > 1 else []
    return ", ".join(words) or "one GPU"


def _groups(runs: Sequence[MeasuredRun]) -> tuple[IntArray, str]:
    """Which runs are left out of a fit together, and how to call that: kinds of plans, or plans where they are few."""
    kinds = list(dict.fromkeys(run.kind for run in runs))
    if len(kinds) >= FEWEST:
        return np.array(
            [kinds.index(run.kind) for run in runs]
        ), f"{len(kinds)} kinds of plans, each left out as a whole"
    return np.arange(len(runs)), f"{len(runs)} plans, each left out by itself"


# ---- what is written ------------------------------------------------------------------------------------------------


def _moved(
    calibration: Calibration, knobs: Sequence[ScaleFactor], moved: Sequence[FittedFactor], source: str
) -> Calibration:
    """With the factors on its parameters, which say so."""
    by_name = {knob.name: knob for knob in knobs}
    for one in moved:
        changed = by_name[one.name].change(calibration, one.factor)
        calibration = _noted(calibration, changed, one, source)
    return calibration


def _noted(before: Calibration, after: Calibration, moved: FittedFactor, source: str) -> Calibration:
    """Every parameter that differs is a fitted one, and says to what it was fitted."""

    def noted(old: Mapping[str, Parameter], new: Mapping[str, Parameter], error: float | None) -> dict[str, Parameter]:
        return {
            name: p
            if p.value == old[name].value
            else p.model_copy(
                update={
                    "origin": "fitted",
                    "error": old[name].error if error is None else error,
                    "source": f"{old[name].source}; times {p.value / old[name].value:.4g} by {source}",
                }
            )
            for name, p in new.items()
        }

    def part(name: str) -> object:
        old, new = getattr(before, name), getattr(after, name)
        return new.model_copy(update={"parameters": noted(old.parameters, new.parameters, moved.error)})

    operators = [
        new.model_copy(update={"parameters": noted(old.parameters, new.parameters, None)})
        for old, new in zip(before.operators, after.operators, strict=True)
    ]
    host = [
        new.model_copy(update={"blocks": noted(old.blocks, new.blocks, moved.error)})
        for old, new in zip(before.host, after.host, strict=True)
    ]
    return after.model_copy(
        update={"operators": operators, "host": host} | {name: part(name) for name in ("power", "network", "memory")}
    )


def _renewed(calibration: Calibration, kept: Sequence[str], source: str) -> Calibration:
    return calibration.model_copy(
        update={
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "moemodel_version": moemodel.__version__,
            "provenance": f"{calibration.provenance} Updated ({', '.join(kept)}) by {source}.",
        }
    )
