"""Kernels of one table fitted: form, residual, and how wrong they are on shapes that were held out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moemodel.calibration.fit.sparse_residual import SparseResidual, fit_sparse_residual
from moemodel.calibration.published.kernels.clocks import Conditions
from moemodel.calibration.published.kernels.forms import Timed, attention, chip_in, fit_form, products
from moemodel.calibration.published.kernels.grouped import layers
from moemodel.calibration.published.kernels.operands import operands_energy
from moemodel.calibration.published.kernels.power import Drawn
from moemodel.calibration.published.kernels.readings import Family, Readings
from moemodel.model.core.arrays import BoolArray, FloatArray
from moemodel.model.device.operator_cost import tensor_limit
from moemodel.model.device.power import power_model
from moemodel.model.device.roofline import RooflineChip, chip_of_calibration
from moemodel.model.hardware.gpu import Gpu
from moemodel.model.operators.work import Kind, Pass
from moemodel.model.records.calibration import Calibration

FOLDS = 5
FEWEST = 40  # rows below which a form of some fifteen parameters says nothing; assumed
POINTS = 350  # of a residual, at most: the files that ship stay below 300 kB
_KIND: dict[Family, Kind] = {
    "products": Kind.GEMM,
    "grouped": Kind.GROUPED_GEMM,
    "attention": Kind.ATTENTION,
}


@dataclass(frozen=True, kw_only=True)
class FittedKernels:
    """What was fitted to some rows of a table.

    Attributes:
        parameters: of the form; `residual` over the kernels' features.
        conditions: that the rows were taken under.
        missed: log(measured / form) of the rows fitted, each at its clock.
    """

    parameters: dict[str, float]
    residual: SparseResidual
    conditions: Conditions
    missed: FloatArray

    def time_s(self, kernels: Timed) -> FloatArray:
        """Of kernels repeated under the same conditions, [U]."""
        clocks = np.broadcast_to(self.conditions.clock_Hz_K, (len(kernels.features), len(self.conditions.clock_Hz_K)))
        factor = np.exp(self.residual.log_ratio(kernels.features))[:, None]
        time_s_UK = kernels.time_s(self.parameters, self.conditions.chip, clocks) * factor
        return self.conditions.settled_s(kernels.work, time_s_UK)

    def form_s(self, kernels: Timed) -> FloatArray:
        """The same by the form alone, without the residual."""
        clocks = np.broadcast_to(self.conditions.clock_Hz_K, (len(kernels.features), len(self.conditions.clock_Hz_K)))
        time_s_UK = kernels.time_s(self.parameters, self.conditions.chip, clocks)
        return self.conditions.settled_s(kernels.work, time_s_UK)

    def drawn(self, kernels: Timed, time_s: FloatArray) -> Drawn:
        """Kernels that take so long each, as their power wants them: SMs are busy in all but launches and the host's
        part."""
        top_Hz = np.full((len(time_s), 1), self.conditions.top_Hz)
        whole_s = kernels.time_s(self.parameters, self.conditions.chip, top_Hz)[:, 0]
        device_s = kernels.device_s(self.parameters, self.conditions.chip, top_Hz)[:, 0]
        busy_s = time_s * np.minimum(1.0, device_s / whole_s)
        return Drawn(work=kernels.work, time_s=time_s, busy_s=busy_s, features=kernels.features)


def timed(readings: Readings, chip: RooflineChip) -> Timed:
    """The kernels of a table, on a chip."""
    if readings.family == "products":
        return products(readings, chip)
    return attention(readings) if readings.family == "attention" else layers(readings)


def split_by_kernel(readings: Readings) -> list[Readings]:
    """A table by what takes a form of its own: attention with a window, or without."""
    if readings.family != "attention":
        return [readings]
    whole = readings.column("window_size") == 0
    parts = (readings.take(whole), readings.take(~whole))
    return [part for part in parts if len(part)]


def conditions_of(readings: Readings, base: Calibration, gpu: Gpu) -> Conditions:
    """Under which a table's kernels ran, as a calibration of their GPU has its clocks and power.

    Its energies are of random numbers. Products in 16 bits under a power limit were of less (`operands`): priced as if
    they were of random numbers, they would have run at clocks lower than they did, and a form fitted to them would make
    products of training faster than they are. Those of fewer bits and fused layers keep their energies, in want of a
    rate of random operands.

    Raises:
        InputError: the GPU's description has no peak of the table's data type.
    """
    chip = chip_of_calibration(base)
    own = chip_in(chip, gpu, readings.dtype)
    power = power_model(base)
    rate = own.flops_per_cycle / chip.flops_per_cycle  # as `device.precision`: tensor cores draw as much in any type
    limit_W, share = readings.limit_W, base.governor.parameters["sustained_share"].value
    return Conditions(
        chip=own,
        top_Hz=base.clock_range_Hz[1],
        fast=tensor_limit(base),
        power=replace(power, flop_J=power.flop_J / rate),
        factor=power.factor(_KIND[readings.family], Pass.FORWARD) * _operands(readings, base),
        limit_W=None if limit_W is None else share * limit_W,
    )


def _operands(readings: Readings, base: Calibration) -> float:
    """Energy of what a table's products multiplied, over that of random numbers; 1: nothing tells of it."""
    wide = readings.family == "products" and readings.dtype == "bfloat16"
    return operands_energy(base, readings.table, readings.limit_W) if wide and readings.limit_W is not None else 1.0


def clocks_of(kernels: Timed, conditions: Conditions, time_s: FloatArray) -> FloatArray:
    """True clocks at which times were measured."""
    return conditions.clock_Hz(kernels.work, np.repeat(time_s[:, None], len(conditions.clock_Hz_K), axis=1))


def fit_kernels(kernels: Timed, time_s: FloatArray, inner: BoolArray, conditions: Conditions) -> FittedKernels:
    """Fit rows of one table.

    Args:
        kernels: of the rows; `time_s` what they took.
        inner: rows whose shapes lengths of the residual are judged by.
        conditions: that they ran under, as far as is known.
    """
    conditions, parameters = _possible(kernels, time_s, conditions)
    clock_Hz = clocks_of(kernels, conditions, time_s)
    missed = np.log(time_s / kernels.time_s(parameters, conditions.chip, clock_Hz[:, None])[:, 0])
    residual = fit_sparse_residual(kernels.features, missed, inner, POINTS)
    return FittedKernels(parameters=parameters, residual=residual, conditions=conditions, missed=missed)


_FULL = 0.995  # of what a tile can reach: a fit that stops there wants more
_LIGHTER = (0.9, 0.8)  # energies of operands that switch less than training's; up to 40 % less (arXiv 2409.18324)


def _possible(kernels: Timed, time_s: FloatArray, conditions: Conditions) -> tuple[Conditions, dict[str, float]]:
    """Conditions under which no product was faster than tensor cores are, and the form then; the last that are known.

    Nobody noted clocks. What makes them higher than a calibration has them: operands that take less energy, where the
    power limit held them; in a burst, no fast limit.
    """
    others = (
        [replace(conditions, fast=replace(conditions.fast, clock_Hz=np.inf))]
        if conditions.limit_W is None
        else [replace(conditions, factor=lighter * conditions.factor) for lighter in _LIGHTER]
    )
    for tried in (conditions, *others):
        clock_Hz = clocks_of(kernels, tried, time_s)
        parameters = fit_form(kernels, tried.chip, clock_Hz, time_s)
        if all(value < _FULL for name, value in parameters.items() if name.startswith("efficiency_")):
            break
    return tried, parameters
