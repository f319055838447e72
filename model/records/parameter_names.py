"""Names of the parameters that each part of a calibration holds: what the model reads, and so what a file must have.

A part's consumer stands beside it. A name that a consumer does not read is a mistake, as one that is missing is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moemodel.model.operators.work import Kind


@dataclass(frozen=True, kw_only=True)
class Names:
    """Names of a part's parameters.

    Attributes:
        required: all of these.
        optional: these may be left out; the model then goes on without.
        together: of the optional ones, those that are all there or none.
        positive: of both, those that it divides by.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    together: tuple[str, ...] = ()
    positive: tuple[str, ...] = ()

    def validate_names(self, found: Iterable[str], values: Iterable[float]) -> str | None:
        """What is wrong with parameters, and what is allowed; None: nothing."""
        given = dict(zip(found, values, strict=True))
        needed = self.together if any(name in given for name in self.together) else ()
        missing = [name for name in (*self.required, *needed) if name not in given]
        foreign = [name for name in given if name not in self.required and name not in self.optional]
        low = [name for name in self.positive if name in given and not given[name] > 0]
        known = (name for name in given if name not in foreign and name not in low)
        far = [reason for name in known if (reason := out_of_range(name, given[name]))]
        if not (missing or foreign or low or far):
            return None
        kinds = (("missing", missing), ("unknown", foreign), ("not above 0", low), ("out of range", far))
        wrong = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds if names)
        optional = f"; optional: {', '.join(self.optional)}" if self.optional else ""
        return f"{wrong} (required: {', '.join(self.required)}{optional})"


_POWER_W = (0.0, 1e5)
_TIME_S = (0.0, 1e3)  # of a call
_SHARE = (0.0, 1.0)
_RATE = (1.0, 1e18)
_SIZE_B = (0.0, 1e15)
_EFFICIENCY = (1e-9, 1e6)  # of a fitted form, where a small or a large one stands for "no matter"
_CLOCK_Hz = (1e6, 1e12)
_ENERGY_J = (0.0, 1e-3)  # of an operation, of a byte

# What each parameter may be. Bounds are assumed: signs as physics has them, sizes a hundred times beyond those of any
# GPU, so that what a typing error or another unit gives is refused instead of predicted.
_RANGES: dict[str, tuple[float, float]] = {
    # operators
    "t0": _TIME_S,
    "t1": _TIME_S,
    "p": (0.1, 50.0),
    "quantisation": (0.0, 10.0),
    "split_depth": (1e-3, 1e9),
    "split_gain": (0.0, 100.0),
    "depth0": (0.0, 1e9),
    "head_dim0": (0.0, 1e9),
    "seq0": (0.0, 1e9),
    "cache_size": (1e-6, 1e6),
    **dict.fromkeys(("efficiency", "memory_efficiency", "cache_efficiency", "issue_efficiency"), _EFFICIENCY),
    "alignment": _EFFICIENCY,
    # chip
    "multiprocessors": (1.0, 1e6),
    "flops_per_cycle": (1e-3, 1e9),
    "simd_lanes": (1.0, 1e6),
    "bandwidth_Bps": _RATE,
    "l2_B": (1.0, 1e15),
    # power
    **dict.fromkeys(("base_W", "tree_W", "active_W"), _POWER_W),
    **dict.fromkeys(("flop_J", "vector_op_J", "cache_J_per_B", "dram_J_per_B"), _ENERGY_J),
    "leak_W_per_C": (0.0, 1e3),
    "rise_per_C": (0.0, 1.0),
    "leak_reference_C": (-100.0, 300.0),
    "knee_Hz": _CLOCK_Hz,
    "voltage_slope": (0.0, 100.0),
    **dict.fromkeys(("drop_from_Hz", "drop_to_Hz"), _CLOCK_Hz),
    "drop_share": (0.1, 1.0),
    # thermal
    **dict.fromkeys(("die_C_per_W", "sink_C_per_W"), (0.0, 100.0)),
    **dict.fromkeys(("die_time", "sink_time"), (1e-6, 1e6)),
    "inlet_C": (-100.0, 150.0),
    # governor
    "sustained_share": (1e-3, 2.0),
    "gain": (0.0, 1e15),
    "tensor_clock": _CLOCK_Hz,
    "tensor_sharpness": (0.1, 30.0),
    # network, each of the first five for single collectives too
    "start_latency": _TIME_S,
    "step_latency": _TIME_S,
    "overlap": _SHARE,
    "memory_overlap": _SHARE,
    "link_power": _POWER_W,
    "bandwidth": _RATE,
    "skew_share": (0.0, 10.0),
    "host_call": _TIME_S,
    # memory
    "context": _SIZE_B,
    "workspace": _SIZE_B,
    "fragmentation": (0.0, 10.0),
    "log_error": (0.0, 20.0),
}


def out_of_range(name: str, value: float) -> str | None:
    """What a parameter is and may be, if it is what none can be; None: it may be that."""
    low, high = _RANGES[name] if name in _RANGES else _RANGES[_of_any(name)]
    return None if low <= value <= high else f"{name} is {value:g}, allowed {low:g} to {high:g}"


def _of_any(name: str) -> str:
    """The name without the collective that it is of."""
    if name.startswith("efficiency_"):
        return "efficiency"
    collective = next(c for c in _COLLECTIVES if name.startswith(f"{c}_"))
    return name.removeprefix(f"{collective}_")


# The forms of `device.roofline`.
_PRODUCT_DIVISORS = (
    "p",
    "split_depth",
    "memory_efficiency",
    "efficiency_256x128",
    "efficiency_128x128",
    "efficiency_128x64",
    "efficiency_64x64",
)
_PRODUCT = Names(
    required=("t0", *_PRODUCT_DIVISORS, "split_gain", "depth0", "quantisation"),
    optional=("t1", "alignment"),
    positive=(*_PRODUCT_DIVISORS, "alignment"),
)
_ATTENTION_DIVISORS = ("p", "efficiency", "memory_efficiency")
_ATTENTION = Names(
    required=("t0", *_ATTENTION_DIVISORS, "head_dim0", "seq0", "quantisation"),
    optional=("t1",),
    positive=_ATTENTION_DIVISORS,
)
_STREAM_DIVISORS = ("p", "memory_efficiency", "cache_efficiency", "cache_size", "issue_efficiency")
_STREAM = Names(required=("t0", *_STREAM_DIVISORS), optional=("t1",), positive=_STREAM_DIVISORS)

_PRODUCT_FEATURES = ("m", "n", "k", "batch")
_GROUPED_FEATURES = ("m", "n", "k", "experts", "skew")
_ATTENTION_FEATURES = ("batch", "heads", "kv_heads", "seq", "head_dim")
_STREAM_FEATURES = ("m", "n", "experts", "top_k")


def operator_names(kind: Kind) -> Names:
    """Parameters of an operator's form."""
    if kind in (Kind.GEMM, Kind.GROUPED_GEMM):
        return _PRODUCT
    return _ATTENTION if kind in (Kind.ATTENTION, Kind.ATTENTION_FULL) else _STREAM


def operator_features(kind: Kind) -> tuple[str, ...]:
    """Features of an operator's shape, in the order that residuals have them."""
    if kind is Kind.GEMM:
        return _PRODUCT_FEATURES
    if kind is Kind.GROUPED_GEMM:
        return _GROUPED_FEATURES
    return _ATTENTION_FEATURES if kind in (Kind.ATTENTION, Kind.ATTENTION_FULL) else _STREAM_FEATURES


_CHIP = ("multiprocessors", "flops_per_cycle", "bandwidth_Bps", "l2_B")
CHIP = Names(required=_CHIP, optional=("simd_lanes",), positive=(*_CHIP, "simd_lanes"))  # roofline.RooflineChip
_DROP = ("drop_from_Hz", "drop_to_Hz", "drop_share")
POWER = Names(  # power.PowerModel
    required=(
        "base_W",
        "tree_W",
        "active_W",
        "flop_J",
        "vector_op_J",
        "cache_J_per_B",
        "dram_J_per_B",
        "leak_W_per_C",
        "rise_per_C",
        "leak_reference_C",
        "knee_Hz",
        "voltage_slope",
    ),
    optional=_DROP,
    together=_DROP,
    positive=("knee_Hz", *_DROP),
)
THERMAL = Names(  # thermal.ThermalModel
    required=("die_C_per_W", "die_time", "sink_C_per_W", "sink_time", "inlet_C"), positive=("die_time", "sink_time")
)
GOVERNOR = Names(  # operator_cost.OperatorCostModel, system.System
    required=("sustained_share", "gain"),
    optional=("tensor_clock", "tensor_sharpness"),
    together=("tensor_clock", "tensor_sharpness"),
    positive=("sustained_share", "tensor_clock", "tensor_sharpness"),
)
_SHARES = (  # of the links, for each network.Collective
    "efficiency_all_reduce",
    "efficiency_reduce_scatter",
    "efficiency_all_gather",
    "efficiency_all_to_all",
    "efficiency_send_recv",
)
_COLLECTIVES = tuple(name.removeprefix("efficiency_") for name in _SHARES)
_OF_COLLECTIVES = ("start_latency", "step_latency", "overlap", "memory_overlap", "link_power")  # where it was measured
NETWORK = Names(  # network.network_of, power.power_model
    required=("bandwidth", "step_latency", "start_latency", "overlap", "link_power", *_SHARES),
    optional=(
        *(f"{collective}_{name}" for collective in _COLLECTIVES for name in _OF_COLLECTIVES),
        "skew_share",
        "host_call",
    ),
    positive=("bandwidth", *_SHARES),
)
MEMORY = Names(required=("context", "workspace", "fragmentation"), optional=("log_error",))  # memory, outcome
