"""Products of 8 bits and fewer as a calibration carries them, from readings of an engine's kernels.

    products    the form alone (`forms`), without what an engine adds: its casts, which training's have kernels of
                their own for, odd rows, the host. Every pass is the same kernel: tensor cores read narrow operands
                along the depth, so that training casts them in two orders (NVIDIA Transformer Engine, FP8 primer)
    grouped     16-bit ones at the pace of the products inside fused layers, against what the 16-bit form gives with
                tensor cores as much faster as data sheets say; backward passes keep their ratio to forward ones

Errors are those of the form on shapes left out; no residual, which would be of casts as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

import numpy as np

from moemodel.calibration.published.kernels.fitted import FOLDS, conditions_of, fit_kernels
from moemodel.calibration.published.kernels.forms import OPERANDS, PRODUCT, Kernels, products
from moemodel.calibration.published.kernels.grouped import layers
from moemodel.calibration.published.kernels.readings import Readings
from moemodel.model.core.arrays import FloatArray
from moemodel.model.device.roofline import FEATURES, RooflineChip, form_of, operator_time
from moemodel.model.hardware.gpu import Gpu
from moemodel.model.operators.work import GEMM_PASSES, Kind, Pass, Shape
from moemodel.model.records.calibration import Calibration, KernelDtype, KernelFit, OperatorFit, Parameter

OTHER_GROUPED_ERROR = 0.15  # log; assumed: products taken out of whole layers, whose form divides them
BACKWARD_ERROR = 0.10  # log; assumed: that a backward pass keeps its ratio to the forward one
_GROUND = "the same kernel as forward, of operands in another order"


def kernel_fits(base: Calibration, gpu: Gpu, tables: Sequence[Readings]) -> list[KernelFit]:
    """Fits of all types that there are enough readings of: products, and grouped products.

    Args:
        base: calibration of the GPU, with 16-bit products as they are used.
        gpu: its description.
        tables: readings of the GPU, of one type and kind a table at most.
    """
    return [fit for table in tables for fit in _of_table(base, gpu, table)]


def _of_table(base: Calibration, gpu: Gpu, table: Readings) -> Iterator[KernelFit]:
    if table.dtype not in get_args(KernelDtype):
        return
    if table.family == "products":
        yield from _products(base, gpu, table)
    elif table.family == "grouped":
        yield from _grouped(base, gpu, table)


def _products(base: Calibration, gpu: Gpu, table: Readings) -> Iterator[KernelFit]:
    conditions, fold, time_s = conditions_of(table, base, gpu), table.fold(FOLDS), table.time_s
    kernels = products(table, conditions.chip)
    seen = fold != 0
    trial = fit_kernels(kernels.take(seen), time_s[seen], fold[seen] == FOLDS - 1, conditions)
    off = np.log(trial.form_s(kernels.take(~seen)) / time_s[~seen]) if (~seen).any() else trial.missed
    log_error = robust_spread(off)
    whole = fit_kernels(kernels, time_s, fold == FOLDS - 1, conditions)
    held = base.operator(Kind.GEMM, Pass.FORWARD)
    for direction in GEMM_PASSES:
        forward = direction is Pass.FORWARD
        parameters = {
            name: Parameter.fitted(float(f"{whole.parameters[name]:.5g}"), free.unit, table.source)
            if forward
            else Parameter.assumed(float(f"{whole.parameters[name]:.5g}"), free.unit, f"{_GROUND}: {table.source}")
            for name, free in PRODUCT.items()
        }
        if held is not None and "alignment" in held.parameters:
            parameters["alignment"] = assumed(held.parameters["alignment"], 1.0, "no reading has an uneven width")
        yield KernelFit(
            dtype=_dtype(table),
            operand_B=OPERANDS[table.dtype][1],
            kind=Kind.GEMM,
            direction=direction,
            parameters=parameters,
            log_error=round(log_error if forward else float(np.hypot(log_error, BACKWARD_ERROR)), 5),
            measured=measured_range(kernels),
            points=len(np.unique(kernels.features, axis=0)),
        )


def _grouped(base: Calibration, gpu: Gpu, table: Readings) -> Iterator[KernelFit]:
    old = base.operator(Kind.GROUPED_GEMM, Pass.FORWARD)
    if old is None:
        return
    pace = grouped_pace(base, gpu, table, old)
    for direction in GEMM_PASSES:
        fit = base.operator(Kind.GROUPED_GEMM, direction)
        if fit is None:
            continue
        slower = scaled_fit(fit, pace, table.source)
        backward = 0.0 if direction is Pass.FORWARD else BACKWARD_ERROR
        error = float(np.sqrt(fit.log_error**2 + OTHER_GROUPED_ERROR**2 + backward**2))
        yield KernelFit(
            dtype=_dtype(table),
            operand_B=OPERANDS[table.dtype][1],
            kind=fit.kind,
            direction=direction,
            parameters=slower.parameters,
            log_error=round(error, 5),
            measured=fit.measured,
            points=len(table),
        )


def grouped_pace(base: Calibration, gpu: Gpu, table: Readings, old: OperatorFit) -> float:
    """Time of the products inside a table's layers over what a fit of grouped products gives, of the longer layers."""
    kernels, conditions = layers(table), conditions_of(table, base, gpu)
    fit = fit_kernels(kernels, table.time_s, table.fold(FOLDS) == FOLDS - 1, conditions)
    clock = np.array([conditions.chip.clock_Hz])
    new_s = kernels.products_s(fit.parameters, conditions.chip, clock[:, None])[:, 0]
    sides = ((kernels.gated * kernels.inner, kernels.hidden), (kernels.hidden, kernels.inner))
    old_s = sum(
        _grouped_s(
            old, conditions.chip, Shape(m=kernels.rows, n=n, k=k, experts=kernels.active, skew=kernels.skew), clock
        )
        for n, k in sides
    )
    large = table.time_s >= np.quantile(table.time_s, 0.5)
    return float(np.median((new_s / old_s)[large]))


def _grouped_s(fit: OperatorFit, chip: RooflineChip, shape: Shape, clock_Hz: FloatArray) -> FloatArray:
    return operator_time(fit, chip, shape, clock_Hz).time_s_UK[:, 0]


def _dtype(table: Readings) -> KernelDtype:
    return next(dtype for dtype in get_args(KernelDtype) if dtype == table.dtype)


def robust_spread(errors: FloatArray) -> float:
    """As `fit.operators` takes it: robust, and half the root mean square at least."""
    return float(max(1.4826 * np.median(np.abs(errors)), 0.5 * np.sqrt(np.mean(np.square(errors)))))


def measured_range(kernels: Kernels) -> dict[str, tuple[float, float]]:
    """Smallest and largest of each feature that a calibration has."""
    names = FEATURES[form_of(kernels.kind)]
    return {
        name: (round(float(2 ** column.min()), 3), round(float(2 ** column.max()), 3))
        for name, column in zip(names, kernels.features.T[: len(names)], strict=True)
    }


def scaled_fit(fit: OperatorFit, time_factor: float, source: str) -> OperatorFit:
    """An operator that takes so much longer than it did, launches apart."""
    ground = f"times {1 / time_factor:.3f}, as {source} has it; its ratio to that is assumed"
    changed = {
        name: assumed(p, 1 / time_factor, ground)
        for name, p in fit.parameters.items()
        if name.startswith(("efficiency", "memory_efficiency"))
    }
    return fit.model_copy(update={"parameters": fit.parameters | changed})


def assumed(p: Parameter, factor: float, ground: str) -> Parameter:
    """A parameter times a factor, on a ground."""
    return Parameter.assumed(float(f"{p.value * factor:.5g}"), p.unit, f"{ground}: {p.source}", p.error)


def lent(fit: KernelFit, lender: Gpu, log_error: float) -> KernelFit:
    """A fit taken over from another GPU of the architecture, as shares of peaks; errors of taking over are added."""
    parameters = {name: assumed(p, 1.0, f"as on {lender.name}") for name, p in fit.parameters.items()}
    return fit.model_copy(
        update={"parameters": parameters, "log_error": round(float(np.hypot(fit.log_error, log_error)), 5)}
    )
