"""Products of 8 bits and fewer as a calibration carries them, from readings of an engine's kernels.

    products    the form alone (`forms`), without what an engine adds: its casts, which training has kernels of its own
                for, their launches, odd rows, the host. Every pass is the same kernel: tensor cores read narrow
                operands along the depth, so that training casts them in two orders (NVIDIA Transformer Engine, FP8
                primer)
    grouped     the calibration's 16-bit ones, as much less or more efficient as the products inside the engine's fused
                layers are than those inside its layers in 16 bits: as shares of the type's peak, and of bandwidth

Errors are those of the form on shapes left out; no residual, which would be of casts as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from moemodel.calibration.least_squares import minimise
from moemodel.calibration.published.kernels.fitted import FOLDS, conditions_of, fit_kernels
from moemodel.calibration.published.kernels.forms import OPERANDS, PRODUCT, Kernels, products
from moemodel.calibration.published.kernels.grouped import layers
from moemodel.calibration.published.kernels.readings import Readings
from moemodel.model.core.arrays import FloatArray
from moemodel.model.device.roofline import FEATURES, RooflineChip, form_of, operator_time
from moemodel.model.hardware.gpu import Gpu
from moemodel.model.operators.work import GEMM_PASSES, Kind, Pass, Shape
from moemodel.model.records.calibration import Calibration, KernelDtype, KernelFit, OperatorFit, Parameter

WIDE = "bfloat16"
OTHER_GROUPED_ERROR = 0.15  # log; assumed: products taken out of whole layers, whose form divides them
BACKWARD_ERROR = 0.10  # log; assumed: that a backward pass keeps its ratio to the forward one
_SLOWEST = 5.0  # log of the least efficiency that is tried; assumed
_OUTLIER = 0.1  # log; assumed
_GROUND = "the same kernel as forward, of operands in another order"


def kernel_fits(base: Calibration, gpu: Gpu, tables: Sequence[Readings]) -> list[KernelFit]:
    """Fits of all types that there are enough readings of: products, and grouped products.

    Args:
        base: calibration of the GPU, with 16-bit products as they are used.
        gpu: its description.
        tables: readings of the GPU in the types of `KernelDtype`, one of a type and kind at most; grouped ones in 16
            bits too, which the engine's narrow ones are held against.
    """
    grouped = [table for table in tables if table.family == "grouped"]
    wide = next((table for table in grouped if table.dtype == WIDE), None)
    made = [_products(base, gpu, table) for table in tables if table.family == "products" and table.dtype != WIDE]
    made += [_grouped(base, gpu, table, wide) for table in grouped if table is not wide]
    return [fit for fits in made for fit in fits]


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
        parameters |= _as_in_16_bits(held)
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


def _as_in_16_bits(held: OperatorFit | None) -> dict[str, Parameter]:
    """What readings don't tell: a launch, behind those of an engine's casts and of its host, and uneven widths."""
    grounds = {
        "t0": "that of a product in 16 bits; an engine's casts are launched too",
        "t1": "that of a product in 16 bits",
        "alignment": "no reading has an uneven width",
    }
    known = {} if held is None else held.parameters
    return {name: assumed(known[name], 1.0, ground) for name, ground in grounds.items() if name in known}


@dataclass(frozen=True, kw_only=True)
class GroupedPace:
    """Efficiencies of the products inside fused layers over those of a fit of grouped products: of computing, and of
    moving bytes."""

    computing: float
    moving: float

    def over(self, other: GroupedPace) -> GroupedPace:
        """Against those inside other layers."""
        return GroupedPace(computing=self.computing / other.computing, moving=self.moving / other.moving)

    def applied(self, fit: OperatorFit, ground: str) -> dict[str, Parameter]:
        """Parameters of a fit at this pace; no efficiency above 1."""
        return {
            name: p if factor is None else assumed(p, min(factor, 1.0 / p.value), f"times {factor:.3f}, {ground}")
            for name, p in fit.parameters.items()
            for factor in (self._of(name),)
        }

    def _of(self, name: str) -> float | None:
        if name == "memory_efficiency":
            return self.moving
        return self.computing if name.startswith("efficiency") else None


def _grouped(base: Calibration, gpu: Gpu, table: Readings, wide: Readings | None) -> Iterator[KernelFit]:
    old = base.operator(Kind.GROUPED_GEMM, Pass.FORWARD)
    if old is None:
        return
    pace, ground = grouped_pace(base, gpu, table, old), f"as {table.source} has it"
    if wide is not None:
        pace = pace.over(grouped_pace(base, gpu, wide, old))
        ground += f" against {wide.source}"
    for direction in GEMM_PASSES:
        fit = base.operator(Kind.GROUPED_GEMM, direction)
        if fit is None:
            continue
        backward = 0.0 if direction is Pass.FORWARD else BACKWARD_ERROR
        error = float(np.sqrt(fit.log_error**2 + OTHER_GROUPED_ERROR**2 + backward**2))
        yield KernelFit(
            dtype=_dtype(table),
            operand_B=OPERANDS[table.dtype][1],
            kind=fit.kind,
            direction=direction,
            parameters=pace.applied(fit, ground),
            log_error=round(error, 5),
            measured=fit.measured,
            points=len(table),
        )


def grouped_pace(base: Calibration, gpu: Gpu, table: Readings, old: OperatorFit) -> GroupedPace:
    """At which the form of grouped products has the times of the products inside a table's layers, launches apart."""
    inside = _Inside.of(base, gpu, table)
    alone = _without_launch(old, OPERANDS[table.dtype][1])

    def errors(x: FloatArray) -> FloatArray:
        pace = GroupedPace(computing=float(np.exp(x[0])), moving=float(np.exp(x[1])))
        paced = alone.model_copy(update={"parameters": pace.applied(alone, "tried")})
        return np.asarray(np.log(inside.by(paced) / inside.time_s))

    fullest = max(p.value for name, p in old.parameters.items() if name.startswith("efficiency"))
    high = -np.log([fullest, old.parameters["memory_efficiency"].value])  # efficiencies of 1
    x = minimise(errors, high - 0.5, low=high - _SLOWEST, high=high, loss="soft_l1", scale=_OUTLIER)
    return GroupedPace(computing=float(np.exp(x[0])), moving=float(np.exp(x[1])))


def grouped_s(base: Calibration, gpu: Gpu, table: Readings, old: OperatorFit) -> tuple[FloatArray, FloatArray]:
    """Times of the products inside a table's layers, and what a fit of grouped products gives of them."""
    inside = _Inside.of(base, gpu, table)
    return inside.time_s, inside.by(old)


@dataclass(frozen=True, kw_only=True)
class _Inside:
    """The products inside fused layers.

    Attributes:
        shapes: of the first and of the second; `time_s` of both together, at the reference clock of `chip`.
    """

    shapes: tuple[Shape, Shape]
    time_s: FloatArray
    chip: RooflineChip

    @classmethod
    def of(cls, base: Calibration, gpu: Gpu, table: Readings) -> _Inside:
        """Of a table's layers, whose form tells them from what lies around them."""
        kernels, conditions = layers(table), conditions_of(table, base, gpu)
        fit = fit_kernels(kernels, table.time_s, table.fold(FOLDS) == FOLDS - 1, conditions)
        clock_Hz = np.array([[conditions.chip.clock_Hz]])
        first, second = (
            Shape(m=kernels.rows, n=n, k=k, experts=kernels.active, skew=kernels.skew)
            for n, k in ((kernels.gated * kernels.inner, kernels.hidden), (kernels.hidden, kernels.inner))
        )
        time_s = kernels.products_s(fit.parameters, conditions.chip, clock_Hz)[:, 0]
        return cls(shapes=(first, second), time_s=time_s, chip=conditions.chip)

    def by(self, fit: OperatorFit) -> FloatArray:
        """What a fit gives of them."""
        clock_Hz = np.array([self.chip.clock_Hz])
        return np.asarray(sum(operator_time(fit, self.chip, s, clock_Hz).time_s_UK[:, 0] for s in self.shapes))


def _without_launch(fit: OperatorFit, operand_B: float) -> KernelFit:
    """The form alone of grouped products of such operands; inside a fused layer nothing is launched."""
    none = {name: p.model_copy(update={"value": 0.0}) for name, p in fit.parameters.items() if name in ("t0", "t1")}
    return KernelFit(
        dtype="fp8",  # of none of them anything follows here
        operand_B=operand_B,
        kind=fit.kind,
        direction=fit.direction,
        parameters=fit.parameters | none,
        log_error=fit.log_error,
        points=fit.points,
    )


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


def assumed(p: Parameter, factor: float, ground: str) -> Parameter:
    """A parameter times a factor, on a ground."""
    return Parameter.assumed(float(f"{p.value * factor:.5g}"), p.unit, f"{ground}: {p.source}", p.error)


def lent(fit: KernelFit, lender: Gpu, log_error: float) -> KernelFit:
    """A fit taken over from another GPU of the architecture, as shares of peaks; errors of taking over are added."""
    parameters = {name: assumed(p, 1.0, f"as on {lender.name}") for name, p in fit.parameters.items()}
    return fit.model_copy(
        update={"parameters": parameters, "log_error": round(float(np.hypot(fit.log_error, log_error)), 5)}
    )
