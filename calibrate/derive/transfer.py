"""A calibration taken over to another GPU: shares from the one that was measured, figures from the data sheet.

    operators   efficiencies, as shares of what the data sheet gives, and times of launch and tail: as they are; rates,
                bandwidth and cache: the data sheet's
    clocks      range: the data sheet's; what was fitted (where voltage rises, what tensor cores sustain in a burst), as
                shares of the highest clock
    products    of another architecture: share of the peak that a large one reaches in a burst, as a public test has it
                (`public_rates.json`), where there is one
    power       the same architecture: energies of a unit of work as they are; what idle and clocked multiprocessors
                draw, by their number. Another one: powers by the limits; energies so that all units at their peak rate
                draw as large a share of the limit, then all times the factor at which a large product settles, under
                the limit, at the rate that public tests saw it sustain with random operands, or else at the same
                share of its burst
                Voltage below the clocks that were measured drops where public readings of the board show it
    cooling     degrees a watt by the limits: what ships with a GPU cools it at its limit
    links       shares of their bandwidth, times to start a message: as they are; power by bandwidth
    memory, host   as they are

How wrong that is, `record` says, from GPUs whose truth is known; intervals are as wide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from moemodel.calibration.derive.large_product import LargeProduct, public_burst_share, public_sustained_rate
from moemodel.calibration.derive.public_voltage import published_drop
from moemodel.calibration.derive.record import DerivingRecord, deriving_record
from moemodel.model.core.errors import CalibrationError
from moemodel.model.device.power import power_model
from moemodel.model.device.roofline import ATTENTIONS, PRODUCTS, RooflineChip
from moemodel.model.hardware.gpu import Gpu, Peak
from moemodel.model.records.calibration import Calibration, KernelFit, NetworkFit, OperatorFit, Parameter, PowerFit

_LARGEST_LOG_FACTOR = 3.0  # on energies: twenty times more or less, beyond any two GPUs
_HALVINGS = 30  # of that range: to 1e-8
_ROUNDS = 4  # of products whose rate follows their efficiency nearly
_IDLE = ("base_W", "tree_W", "leak_W_per_C")
_OF_WORK = ("flop_J", "vector_op_J", "cache_J_per_B", "dram_J_per_B", "active_W")


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """What a data sheet must say of a GPU to derive from it."""

    multiprocessors: float
    bandwidth_Bps: float
    l2_B: float
    limit_W: float
    peak: Peak
    links_Bps: float


def sheet_of(gpu: Gpu) -> Sheet | None:
    """What is needed, or None: the description does not say all of it. Of 16-bit rates bf16's, or fp16's without it."""
    peak, links_Bps = gpu.peak_16_bit, gpu.nvlink_Bps or gpu.pcie_Bps
    if (
        gpu.multiprocessors is None
        or gpu.memory_bandwidth_Bps is None
        or gpu.l2_B is None
        or gpu.power_limit_W is None
        or peak is None
        or links_Bps is None
    ):
        return None
    return Sheet(
        multiprocessors=float(gpu.multiprocessors),
        bandwidth_Bps=gpu.memory_bandwidth_Bps,
        l2_B=float(gpu.l2_B),
        limit_W=gpu.power_limit_W,
        peak=peak,
        links_Bps=links_Bps,
    )


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """The GPU that was measured, and the one that a calibration is made for.

    Attributes:
        old, new: their descriptions; `old_sheet`, `new_sheet` what is needed of these.
    """

    old: Gpu
    new: Gpu
    old_sheet: Sheet
    new_sheet: Sheet

    @property
    def same_architecture(self) -> bool:
        """Whether they are built alike."""
        return self.old.architecture == self.new.architecture

    @property
    def limits(self) -> float:
        """Power limit of the new one over that of the old one."""
        return self.new_sheet.limit_W / self.old_sheet.limit_W

    @property
    def peaks(self) -> float:
        """The same of 16-bit products."""
        return self.new_sheet.peak.flops_per_s / self.old_sheet.peak.flops_per_s

    def parameters(
        self, old: Mapping[str, Parameter], factors: Mapping[str, float] | None = None
    ) -> dict[str, Parameter]:
        """Parameters taken over, those named times their factor."""
        source = f"as on {self.old.name}"
        return {
            name: Parameter.assumed(p.value, p.unit, f"{source}: {p.source}")
            if factors is None or name not in factors
            else Parameter.assumed(
                p.value * factors[name], p.unit, f"{source}, by data sheets times {factors[name]:.4g}"
            )
            for name, p in old.items()
        }


def derive_calibration(base: Calibration, base_gpu: Gpu, gpu: Gpu) -> Calibration:
    """The calibration of one GPU taken over to another.

    Args:
        base: that was measured, or fitted to what others measured.
        base_gpu: the GPU that it is of.
        gpu: the other.

    Raises:
        CalibrationError: a description lacks what is needed (`sheet_of`).
    """
    pair = _pair(base_gpu, gpu)
    record = deriving_record(same_architecture=pair.same_architecture)
    low_Hz, high_Hz = base.clock_range_Hz
    highest_Hz = gpu.clock_max_Hz or pair.new_sheet.peak.clock_Hz
    clocks = highest_Hz / high_Hz
    made = base.model_copy(
        update={
            "name": gpu.name,
            "gpu": gpu.name,
            "derived_from": base_gpu.name,
            "provenance": _provenance(base, pair, record),
            "clock_reference_Hz": base.clock_reference_Hz * clocks,
            "clock_range_Hz": (gpu.clock_min_Hz or low_Hz * clocks, highest_Hz),
            "clock_measured_Hz": tuple(clock_Hz * clocks for clock_Hz in base.clock_measured_Hz),
            "composition_error": base.composition_error.model_copy(
                update={"value": math.hypot(base.composition_error.value, record.time_log_error)}
            ),
            "chip": _chip(pair),
            "operators": _operators(base, pair, 1.0),
            "kernels": _kernels(base, pair, 1.0),
            "host": [lane.model_copy(update={"blocks": pair.parameters(lane.blocks)}) for lane in base.host],
            "governor": base.governor.model_copy(
                update={"parameters": pair.parameters(base.governor.parameters, {"tensor_clock": clocks})}
            ),
            "thermal": base.thermal.model_copy(
                update={
                    "parameters": pair.parameters(
                        base.thermal.parameters, dict.fromkeys(("die_C_per_W", "sink_C_per_W"), 1 / pair.limits)
                    )
                }
            ),
            "network": _network(base.network, pair),
            "memory": base.memory.model_copy(update={"parameters": pair.parameters(base.memory.parameters)}),
        }
    )
    share = None if pair.same_architecture else public_burst_share(gpu)
    if share is not None:
        made = _with_bursts(made, base, pair, share)
    return made.model_copy(update={"power": _power(base, made, pair, record, clocks)})


def _pair(old: Gpu, new: Gpu) -> _Pair:
    sheets = []
    for gpu in (old, new):
        sheet = sheet_of(gpu)
        if sheet is None:
            raise CalibrationError(
                f"gpu {gpu.name}: nothing can be derived from a description without multiprocessors, "
                "memory_bandwidth_Bps, l2_B, power_limit_W, links (nvlink_Bps or pcie_Bps) and a peak of bf16 or fp16"
            )
        sheets.append(sheet)
    return _Pair(old=old, new=new, old_sheet=sheets[0], new_sheet=sheets[1])


def _provenance(base: Calibration, pair: _Pair, record: DerivingRecord) -> str:
    kind = "the same" if pair.same_architecture else "another"
    return (
        f"Derived: nobody measured it. Taken over from {pair.old.name} ({kind} architecture) by data sheets: shares of "
        f"rates and bandwidths as there, power and clocks by the limits; how fast its clock answers to power, and what "
        f"clock its tensor cores sustain in a burst, are {pair.old.name}'s. {record.told} What it rests on: "
        f"{base.provenance}"
    )


def _with_bursts(made: Calibration, base: Calibration, pair: _Pair, share: float) -> Calibration:
    """With products of which a large one reaches that share of its peak in a burst; not all its time follows."""
    factor = 1.0
    for _ in range(_ROUNDS):
        factor *= share * pair.new_sheet.peak.flops_per_s / LargeProduct.of(made).burst_flops_per_s
        made = made.model_copy(update={"operators": _operators(base, pair, factor)})
    return made.model_copy(update={"kernels": _kernels(base, pair, factor)})


def _operators(base: Calibration, pair: _Pair, factor: float) -> list[OperatorFit]:
    return [
        fit.model_copy(update={"parameters": pair.parameters(fit.parameters, _efficiencies(fit, factor))})
        for fit in base.operators
    ]


def _kernels(base: Calibration, pair: _Pair, factor: float) -> list[KernelFit]:
    """Of types that the new GPU's tensor cores multiply, blocks that a kernel scales itself as their elements."""
    return [
        fit.model_copy(update={"parameters": pair.parameters(fit.parameters, _efficiencies(fit, factor))})
        for fit in base.kernels
        if fit.dtype.removesuffix("_block") in pair.new.peaks
    ]


def _efficiencies(fit: OperatorFit, factor: float) -> dict[str, float] | None:
    """Of what runs on tensor cores; None: as they are."""
    if factor == 1 or fit.kind not in (*PRODUCTS, *ATTENTIONS):
        return None
    return {name: factor for name in fit.parameters if name.startswith("efficiency")}


def _chip(pair: _Pair) -> dict[str, Parameter]:
    """What operators are shares of."""
    new = pair.new_sheet
    figures = {
        "multiprocessors": (new.multiprocessors, "1"),
        "flops_per_cycle": (new.peak.flops_per_cycle / new.multiprocessors, "1"),
        "bandwidth_Bps": (new.bandwidth_Bps, "B/s"),
        "l2_B": (new.l2_B, "B"),
    }
    if pair.new.simd_lanes is not None:
        figures["simd_lanes"] = (float(pair.new.simd_lanes), "1")
    source = f"GPU description {pair.new.name}"
    return {name: Parameter.datasheet(value, unit, source) for name, (value, unit) in figures.items()}


def _network(fit: NetworkFit, pair: _Pair) -> NetworkFit:
    """Of links of the same kind all that was fitted; of others no curves, whose messages are of other links' size."""
    links = pair.new_sheet.links_Bps / fit.parameters["bandwidth"].value
    powers = {name: links for name in fit.parameters if name.endswith("link_power")}
    kind = "NVLink" if pair.new.nvlink_Bps else "PCIe"
    source = f"GPU description {pair.new.name}, {kind}, each direction"
    bandwidth = Parameter.datasheet(pair.new_sheet.links_Bps, "B/s", source)
    same = (pair.new.nvlink_Bps is None) == (pair.old.nvlink_Bps is None)
    return fit.model_copy(
        update={
            "parameters": pair.parameters(fit.parameters, powers) | {"bandwidth": bandwidth},
            "curves": fit.curves if same else [],
        }
    )


def _power(base: Calibration, made: Calibration, pair: _Pair, record: DerivingRecord, clocks: float) -> PowerFit:
    """What it draws; `made` is the rest of the new calibration."""
    fit = base.power
    factors = {"knee_Hz": clocks} | _power_factors(pair)
    update = {"log_error": math.hypot(fit.log_error, record.power_log_error), "points": fit.points}

    def with_factors(found: Mapping[str, float]) -> PowerFit:
        parameters = pair.parameters(fit.parameters, found) | published_drop(pair.new)
        return fit.model_copy(update=update | {"parameters": parameters})

    if pair.same_architecture:
        return with_factors(factors)
    first = with_factors(factors)
    more = _energy_factor(made.model_copy(update={"power": first}), base, pair)
    return with_factors(factors | {name: factors[name] * more for name in _OF_WORK})


def _power_factors(pair: _Pair) -> dict[str, float]:
    """On what is drawn idle, and on energies of work."""
    old, new = pair.old_sheet, pair.new_sheet
    if pair.same_architecture:
        return dict.fromkeys((*_IDLE, "active_W"), new.multiprocessors / old.multiprocessors)
    rates = {
        "flop_J": pair.peaks,
        "vector_op_J": _vector_rate(pair.new, new) / _vector_rate(pair.old, old),
        "cache_J_per_B": new.bandwidth_Bps / old.bandwidth_Bps,
        "dram_J_per_B": new.bandwidth_Bps / old.bandwidth_Bps,
        "active_W": 1.0,
    }
    return dict.fromkeys(_IDLE, pair.limits) | {name: pair.limits / rate for name, rate in rates.items()}


def _vector_rate(gpu: Gpu, sheet: Sheet) -> float:
    """Operations of SIMD lanes at the clock of the peak; of unstated lanes as many as `device.roofline` takes."""
    return sheet.multiprocessors * (gpu.simd_lanes or RooflineChip.simd_lanes) * sheet.peak.clock_Hz


def _energy_factor(made: Calibration, base: Calibration, pair: _Pair) -> float:
    """On all energies of work, at which a large product settles where public tests saw it, or at the share of its burst
    that the base's does."""
    old, new = LargeProduct.of(base), LargeProduct.of(made)
    power, seen = power_model(made), public_sustained_rate(pair.new)
    if seen is None:
        share = old.sustained_share(power_model(base), _held_W(base, pair.old_sheet.limit_W))
        held_W, wanted = _held_W(made, pair.new_sheet.limit_W), share * new.burst_flops_per_s
    else:
        held_W, wanted = _held_W(made, seen.limit_W), seen.flops_per_s
    low, high = -_LARGEST_LOG_FACTOR, _LARGEST_LOG_FACTOR
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = new.times_energy(math.exp(middle)).sustained_flops_per_s(power, held_W)
        low, high = (middle, high) if found > wanted else (low, middle)
    return math.exp((low + high) / 2)


def _held_W(calibration: Calibration, limit_W: float) -> float:
    """What the governor holds power at under a limit."""
    return calibration.governor.parameters["sustained_share"].value * limit_W
