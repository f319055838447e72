"""A calibration with what kernel readings say of its GPU put over it.

    products, attention without windows (bf16, forward)   fitted: form, residual, error on shapes held out
    grouped products, forward                             the base's, at the speed of the products inside fused layers
    products of 8 bits and fewer                          fitted, beside those of 16 bits (`narrow`)
    all their other passes                                the base's, slower or faster as the forward pass is
    all else                                              the base's, power too (see `power`)

Readings are of an engine's kernels and of forward passes alone: that training's are as good is assumed, and said.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

import moemodel
from moemodel.calibration.derive.transfer import derive_calibration
from moemodel.calibration.published.kernels.fitted import (
    FOLDS,
    FittedKernels,
    conditions_of,
    fit_kernels,
)
from moemodel.calibration.published.kernels.forms import ATTENTION, PRODUCT, Kernels, attention, products
from moemodel.calibration.published.kernels.narrow import (
    BACKWARD_ERROR,
    OTHER_GROUPED_ERROR,
    WIDE,
    assumed,
    grouped_s,
    kernel_fits,
    measured_range,
    robust_spread,
)
from moemodel.calibration.published.kernels.readings import Family, Readings
from moemodel.calibration.store.catalogue import list_calibrations, shipped
from moemodel.model.core.errors import InputError
from moemodel.model.device.roofline import FEATURES, chip_of_calibration, form_of, operator_time
from moemodel.model.hardware.gpu import Gpu, read_gpu
from moemodel.model.operators.work import Kind, Pass
from moemodel.model.records.calibration import Calibration, KernelDtype, KernelFit, OperatorFit, Parameter

_FAMILIES: tuple[Family, ...] = ("products", "attention", "grouped")
FEWEST_SHAPES = 100  # of a fit that replaces one; assumed

_BASE = "h200-sxm-141gb"  # measured by this project, and nearest to what readings are of


def base_of(gpu: Gpu) -> Calibration:
    """What readings of a GPU are put over: its shipped calibration if this project measured it, else a derived one.

    Raises:
        CalibrationError: its description says too little to derive from.
    """
    if gpu.name in list_calibrations():
        known = shipped(gpu.name)
        if any(fit.parameters["t0"].origin == "measured" for fit in known.operators):
            return known
    return derive_calibration(shipped(_BASE), read_gpu(_BASE), gpu)


@dataclass(frozen=True, kw_only=True)
class HeldOutReadings:
    """|predicted / measured - 1| of shapes that were left out of a fit."""

    name: str
    rows: int
    median: float
    mean: float


def overlay_readings(
    base: Calibration, gpu: Gpu, tables: Sequence[Readings]
) -> tuple[Calibration, list[HeldOutReadings]]:
    """Put readings of a GPU over a calibration of it.

    Args:
        base: of the GPU, measured or derived.
        gpu: its description.
        tables: readings of the GPU; attention with windows is left aside.

    Returns:
        The calibration, and errors on a fifth of the shapes, left out of a fit made for that.

    Raises:
        InputError: none of the tables can replace anything.
    """
    tables = [table for table in tables if table.gpu == gpu.name]
    operators, errors = list(base.operators), []
    used: list[Readings] = []
    for family in _FAMILIES:
        table = _largest(tables, family)
        if table is None:
            continue
        used.append(table)
        if family == "grouped":
            operators = _with_grouped(operators, base, gpu, table)
            continue
        fit, error = _operator(base, gpu, table)
        errors.append(error)
        operators = _with_forward(operators, base, fit, table)
    narrow = narrow_tables(tables)
    used += [table for table in narrow if table.dtype != WIDE]
    if not used:
        found = ", ".join(f"{len(table)} of {table.family} in {table.dtype}" for table in tables) or "none"
        raise InputError(
            f"readings of {gpu.name}: found {found}; needed: at least {FEWEST_SHAPES} of products, grouped or "
            "attention (without windows) in bfloat16, or of products or grouped in fewer bits"
        )
    over = base.model_copy(update={"operators": operators})
    return base.model_copy(
        update={
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "moemodel_version": moemodel.__version__,
            "provenance": _provenance(base, used),
            "operators": [_compact(fit) for fit in operators],
            "kernels": with_kernels(base.kernels, kernel_fits(over, gpu, narrow)),
        }
    ), errors


def narrow_tables(tables: Sequence[Readings]) -> list[Readings]:
    """Of each type of fewer bits and each kind of product the table that is used, and of grouped ones in 16 bits."""
    families: tuple[Family, ...] = ("products", "grouped")
    wanted = [(family, dtype) for family in families for dtype in get_args(KernelDtype)]
    found = (_largest(tables, family, dtype) for family, dtype in (*wanted, ("grouped", WIDE)))
    return [table for table in found if table is not None]


def with_kernels(old: Sequence[KernelFit], new: Sequence[KernelFit]) -> list[KernelFit]:
    """Fits of kernels, the new ones in place of old ones of as many bits, which would else be taken where they are
    nearer to the peak.
    """
    replaced = {(_bits(fit), fit.kind) for fit in new}
    return [*(fit for fit in old if (_bits(fit), fit.kind) not in replaced), *new]


def _bits(fit: KernelFit) -> int:
    return 4 if fit.dtype == "nvfp4" else 8


def _largest(tables: Sequence[Readings], family: Family, dtype: str = WIDE) -> Readings | None:
    """Of tables of one kind the one with most rows that can be used: kernels of two sorts are not mixed."""
    found = [table for table in tables if table.family == family and table.dtype == dtype]
    if family == "attention":
        found = [table.take(table.column("window_size") == 0) for table in found]
    found = [table for table in found if len(table) >= FEWEST_SHAPES]
    return max(found, key=len) if found else None


def _provenance(base: Calibration, used: Sequence[Readings]) -> str:
    rows = "; ".join(f"{table.family}: {table.source}" for table in used)
    kind = "held by the power limit" if any(table.limit_W for table in used) else "in bursts"
    return (
        f"Fitted, not measured by this project, to kernels of an inference engine {kind} ({rows}). Backward passes "
        "keep their ratio to the forward ones, which is assumed. All else is as in the calibration underneath: "
        f"{base.provenance}"
    )


# ---- forward passes that are fitted ---------------------------------------------------------------------------------


def _operator(base: Calibration, gpu: Gpu, table: Readings) -> tuple[OperatorFit, HeldOutReadings]:
    kernels = products(table, chip_of_calibration(base)) if table.family == "products" else attention(table)
    names = FEATURES[form_of(kernels.kind)]
    kernels = replace(kernels, features=kernels.features[:, : len(names)])
    conditions = conditions_of(table, base, gpu)
    fold, time_s = table.fold(FOLDS), table.time_s
    seen = fold != 0
    trial = fit_kernels(kernels.take(seen), time_s[seen], fold[seen] == FOLDS - 1, conditions)
    off = trial.time_s(kernels.take(~seen)) / time_s[~seen] - 1 if (~seen).any() else np.abs(np.expm1(trial.missed))
    error = HeldOutReadings(
        name=f"{kernels.kind}/{Pass.FORWARD}",
        rows=len(off),
        median=float(np.median(np.abs(off))),
        mean=float(np.abs(off).mean()),
    )
    whole = fit_kernels(kernels, time_s, fold == FOLDS - 1, conditions)
    return _written(base, kernels, whole, table, robust_spread(np.log1p(off))), error


def _written(base: Calibration, kernels: Kernels, fit: FittedKernels, table: Readings, log_error: float) -> OperatorFit:
    names = FEATURES[form_of(kernels.kind)]
    free = PRODUCT if kernels.kind is Kind.GEMM else ATTENTION
    held = base.operator(kernels.kind, Pass.FORWARD)
    parameters = {
        name: Parameter.fitted(float(f"{value:.5g}"), free[name].unit, table.source)
        for name, value in fit.parameters.items()
    }
    if kernels.kind is Kind.GEMM and held is not None and "alignment" in held.parameters:
        parameters["alignment"] = assumed(held.parameters["alignment"], 1.0, "no reading has an uneven width")
    explained = float(np.std(fit.residual.log_ratio(kernels.features)))
    return OperatorFit(
        kind=kernels.kind,
        direction=Pass.FORWARD,
        parameters=parameters,
        residual=fit.residual.record(names, explained, log_error),
        log_error=round(log_error, 5),
        measured=measured_range(kernels),
        points=len(np.unique(kernels.features, axis=0)),
    )


# ---- what follows them ----------------------------------------------------------------------------------------------


def _with_forward(
    operators: list[OperatorFit], base: Calibration, fit: OperatorFit, table: Readings
) -> list[OperatorFit]:
    """Operators with one forward pass replaced, and its kin (other passes, attention without a mask) scaled like it."""
    pace = _pace(base, fit, table)
    kin = {fit.kind} | ({Kind.ATTENTION_FULL} if fit.kind is Kind.ATTENTION else set())
    made = [_scaled(old, pace) if old.kind in kin else old for old in operators]
    return [fit if (old.kind, old.direction) == (fit.kind, fit.direction) else old for old in made]


def _pace(base: Calibration, fit: OperatorFit, table: Readings) -> float:
    """Time of the fitted forward pass over the base's, the median over large shapes of the table."""
    old, chip = base.operator(fit.kind, fit.direction), chip_of_calibration(base)
    if old is None:
        return 1.0
    large = table.take(table.time_s >= np.quantile(table.time_s, 0.5))
    kernels = products(large, chip) if large.family == "products" else attention(large)
    clock = np.array([chip.clock_Hz])
    new_s, old_s = (operator_time(one, chip, kernels.shape, clock).time_s_UK for one in (fit, old))
    return float(np.median(new_s / old_s))


def _scaled(fit: OperatorFit, time_factor: float) -> OperatorFit:
    """An operator that takes so much longer than it did, launches apart."""
    ground = f"times {1 / time_factor:.3f}, as the forward pass of readings has it; its ratio to that pass is assumed"
    changed = {
        name: assumed(p, 1 / time_factor, ground)
        for name, p in fit.parameters.items()
        if name.startswith(("efficiency", "memory_efficiency"))
    }
    return fit.model_copy(
        update={
            "parameters": fit.parameters | changed,
            "log_error": round(float(np.hypot(fit.log_error, BACKWARD_ERROR)), 5),
        }
    )


def _with_grouped(operators: list[OperatorFit], base: Calibration, gpu: Gpu, table: Readings) -> list[OperatorFit]:
    """Grouped products as much slower or faster than the base's as those inside the table's layers are, as a whole.

    Computing and moving bytes apart, as narrow kernels are held against these (`narrow`), they are less true of runs:
    an engine's kernels for few rows an expert read better and compute worse than a library's for training.
    """
    old = base.operator(Kind.GROUPED_GEMM, Pass.FORWARD)
    if old is None:
        return operators
    new_s, old_s = grouped_s(base, gpu, table, old)
    large = table.time_s >= np.quantile(table.time_s, 0.5)
    pace = float(np.median((new_s / old_s)[large]))
    error = float(np.hypot(old.log_error, OTHER_GROUPED_ERROR))
    return [
        _scaled(one, pace).model_copy(update={"log_error": round(error, 5)}) if one.kind is Kind.GROUPED_GEMM else one
        for one in operators
    ]


def _compact(fit: OperatorFit) -> OperatorFit:
    """With a residual of as many digits as tell: what is carried over has all that a float has."""
    if fit.residual is None:
        return fit
    whole = fit.residual
    points = [[round(x, 4) for x in point] for point in whole.points]
    weights = [float(f"{weight:.7g}") for weight in whole.weights]
    return fit.model_copy(update={"residual": whole.model_copy(update={"points": points, "weights": weights})})
