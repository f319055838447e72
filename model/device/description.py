"""A calibration for a GPU whose description is not the one that it was made on.

Operators are fitted as shares of what the data sheet gives (`roofline`), collectives as shares of their links. Where a
description of the user's own says otherwise under the same name (more memory bandwidth, fewer multiprocessors), those
shares are taken of its figures: the calibration is rescaled, what was changed is said, and its intervals widen. Figures
that are more than twice apart are of another GPU, and are refused. Power limit, memory, cooling and GPUs a node are
read from the description in any case.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from moemodel.model.core.dtypes import Dtype
from moemodel.model.core.errors import CalibrationError
from moemodel.model.core.interval import Z
from moemodel.model.hardware.gpu import Gpu
from moemodel.model.records.calibration import Calibration, Parameter

_SAME = 1e-3  # relative: what rounding a figure to four digits may change
_ANOTHER = 2.0  # assumed: within a generation data sheets differ by less (H100 SXM, PCIe, NVL, H200: 1.0 to 1.95)
# Log error that rescaling adds, over the largest logarithm of new over old figure: the 90 % interval (Z of it)
# reaches to where nothing follows the figure. Assumed: nobody measured how kernels follow.
_NOT_FOLLOWED = 1 / Z
_DTYPE: Dtype = "bf16"  # that profiles are of
_FROM_THE_DRIVER = "PCIe generation and width"  # source of links that were found, whatever the description says


@dataclass(frozen=True, kw_only=True)
class Change:
    """A figure that the description gives otherwise than the calibration has it.

    Attributes:
        name: in the description; `unit` of both values.
        was, now: of the calibration, of the description.
    """

    name: str
    unit: str
    was: float
    now: float

    @property
    def log_ratio(self) -> float:
        """How far apart they are."""
        return abs(math.log(self.now / self.was))

    def __str__(self) -> str:
        unit = "" if self.unit == "1" else f" {self.unit}"
        return f"{self.name} {self.now:.4g} instead of {self.was:.4g}{unit}"


def rescale_for_description(calibration: Calibration, gpu: Gpu) -> tuple[Calibration, tuple[Change, ...]]:
    """The calibration with the figures of a GPU's description, and what they changed; itself where nothing differs.

    Raises:
        CalibrationError: a figure is more than twice another: that is no description of the GPU that was measured.
    """
    if not calibration.has_times:  # there is nothing to rescale
        return calibration, ()
    changes = tuple(change for change in _compared(calibration, gpu) if change.log_ratio > _SAME)
    if not changes:
        return calibration, ()
    rates = [change for change in changes if not change.name.startswith("clock_")]
    far = [change for change in rates if change.log_ratio > math.log(_ANOTHER)]
    if far:
        raise CalibrationError(
            f"calibration {calibration.name} is of another GPU than the description of {gpu.name}: "
            f"{', '.join(map(str, far))}; give the description a name of its own (without --calibration `moemodel "
            "predict` then gives memory, FLOPs, bytes and volumes of communication), or measure that GPU with "
            "`moemodel profile`"
        )
    now = {change.name: change.now for change in changes}
    low_Hz, high_Hz = calibration.clock_range_Hz
    composition = calibration.composition_error
    more = _NOT_FOLLOWED * max((change.log_ratio for change in rates), default=0.0)
    links = _with(calibration.network.parameters, {"bandwidth": now["links_Bps"]} if "links_Bps" in now else {})
    return calibration.model_copy(
        update={
            "chip": _with(calibration.chip, {part: now[name] for name, part in _CHIP.items() if name in now}),
            "network": calibration.network.model_copy(update={"parameters": links}),
            "clock_range_Hz": (now.get("clock_min_Hz", low_Hz), now.get("clock_max_Hz", high_Hz)),
            "composition_error": composition.model_copy(update={"value": math.hypot(composition.value, more)}),
        }
    ), changes


_CHIP = {  # of the description -> of `Calibration.chip`
    "multiprocessors": "multiprocessors",
    "memory_bandwidth_Bps": "bandwidth_Bps",
    "l2_B": "l2_B",
    f"peaks.{_DTYPE} FLOPs per cycle and multiprocessor": "flops_per_cycle",
}


def _compared(calibration: Calibration, gpu: Gpu) -> Iterator[Change]:
    """Every figure of a description that a calibration has too."""
    peak = gpu.peaks.get(_DTYPE)
    multiprocessors = gpu.multiprocessors
    per_cycle = peak.flops_per_cycle / multiprocessors if peak and multiprocessors else None
    figures = (multiprocessors, gpu.memory_bandwidth_Bps, gpu.l2_B, per_cycle)
    for (name, part), figure in zip(_CHIP.items(), figures, strict=True):
        held = calibration.chip[part]
        if figure is not None and held.origin == "datasheet":
            yield Change(name=name, unit=held.unit, was=held.value, now=float(figure))
    links, link_Bps = calibration.network.parameters["bandwidth"], gpu.nvlink_Bps or gpu.pcie_Bps
    if link_Bps and links.origin == "datasheet" and not links.source.startswith(_FROM_THE_DRIVER):
        yield Change(name="links_Bps", unit=links.unit, was=links.value, now=link_Bps)
    ends = (("clock_min_Hz", gpu.clock_min_Hz), ("clock_max_Hz", gpu.clock_max_Hz))
    for (name, clock_Hz), held_Hz in zip(ends, calibration.clock_range_Hz, strict=True):
        if clock_Hz is not None:
            yield Change(name=name, unit="Hz", was=held_Hz, now=clock_Hz)


def _with(parameters: dict[str, Parameter], values: dict[str, float]) -> dict[str, Parameter]:
    """Parameters with some values changed."""
    return parameters | {name: parameters[name].model_copy(update={"value": value}) for name, value in values.items()}
