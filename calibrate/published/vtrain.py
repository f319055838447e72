"""Fit operators, host and optimizer of one GPU to iteration times of GPT training under Megatron-LM 2.x.

A few constants, the same for all rows, go through `model.predict.predict` itself; robust least squares on log time
finds them. What iteration times don't determine is held (`_HELD_*`), and so are the links, at what a sweep of
collectives gave (`fit_links`).

Gauss-Newton: predictions are linearised in the logarithm of the constants, the linear problem is solved with bounds and
a soft-L1 loss, and so on from there. Derivatives are kept and used again nearby, so that the many fits of a
cross-validation, which all begin at the same start, share most of their predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from moemodel.calibration.least_squares import NearbySlopes, minimise
from moemodel.calibration.published.data import AllReduce, Rows
from moemodel.model.architecture.spec import Architecture, Attention, Layer, Mlp
from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray
from moemodel.model.device.roofline import form_of, shape_features
from moemodel.model.frameworks.base import Precision
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.hardware.gpu import Gpu
from moemodel.model.hardware.link import Link
from moemodel.model.network.cluster import Internode
from moemodel.model.network.collectives import Collective, Network
from moemodel.model.operators.work import PASSES, Kind, Pass
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.recompute import Recompute
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import (
    SCHEMA_VERSION,
    Calibration,
    GovernorFit,
    HostLane,
    MemoryFit,
    NetworkFit,
    OperatorFit,
    Parameter,
    PowerFit,
    ThermalFit,
)
from moemodel.model.records.parameter_names import NETWORK, POWER
from moemodel.model.step.layer_operators import Workload
from moemodel.model.step.system import System

BACKEND = "megatron-v2"
# The rows' model has 16-bit parameters, and an Adam without float32 copies of them (vTrain, src/trainer.py).
PRECISION: Precision = "bf16"
_VOCABULARY = 50257  # of the rows' model, not padded (vTrain, src/model/gpt_model.py)
_DTYPE = "fp16"


@dataclass(frozen=True, kw_only=True)
class BoundedParameter:
    """A constant to fit: where it starts, how far it may go, and what it is."""

    start: float
    low: float
    high: float
    unit: str
    meaning: str


FREE: dict[str, BoundedParameter] = {
    "product": BoundedParameter(
        start=0.85, low=0.5, high=1.0, unit="1", meaning="share of the tensor cores' peak in a wave of 256x128 tiles"
    ),
    "alignment": BoundedParameter(
        start=0.5, low=0.25, high=1.0, unit="1", meaning="rate kept by products of odd width (the vocabulary)"
    ),
    "elementwise": BoundedParameter(
        start=0.65, low=0.4, high=0.95, unit="1", meaning="share of bandwidth of elementwise kernels"
    ),
    "gap": BoundedParameter(
        start=2e-5, low=1e-7, high=5e-5, unit="s", meaning="fixed device time of a kernel, tracing included"
    ),
    "kernel": BoundedParameter(
        start=5e-5, low=1e-6, high=2e-4, unit="s", meaning="host time of a kernel, tracing included"
    ),
    "loss": BoundedParameter(
        start=2e-3, low=1e-5, high=5e-3, unit="s", meaning="host time of the loss of a micro-batch"
    ),
    "optimizer": BoundedParameter(
        start=0.6, low=0.3, high=0.95, unit="1", meaning="share of bandwidth of the optimizer"
    ),
    "optimizer_layer": BoundedParameter(
        start=1e-4, low=1e-6, high=1e-3, unit="s", meaning="host time of the optimizer, per layer"
    ),
    "boundary": BoundedParameter(
        start=0.1, low=0.01, high=1.0, unit="1", meaning="share of NVLink that the rows' stage-to-stage transfers reach"
    ),
}

# Held: the rows don't determine them (freeing them moves left-out errors by 0.05 points); so
# they are assumed, some as starts in `calibrate.fit.operators`.
_HELD_PRODUCT = {
    "p": 4.0,
    "quantisation": 1.0,  # a wave of tiles takes as long for one tile as for all SMs
    "split_depth": 512.0,
    "split_gain": 1.0,
    "depth0": 32.0,  # one step of the main loop
}
# A tile of a x b loads a + b for a b products: rates relative to 256x128, as 1 / (1 + 5 (1/a + 1/b)); the 5 is assumed
_TILES = {
    "efficiency_256x128": 1.0,
    "efficiency_128x128": 0.982,
    "efficiency_128x64": 0.948,
    "efficiency_64x64": 0.916,
}
# Memory-bound: the rows ran at one clock. Assumed.
_HELD_STREAM = {"p": 4.0, "cache_size": 0.6, "issue_efficiency": 50.0}
# Without effect: the rows have no flash attention.
_HELD_ATTENTION = {"p": 4.0, "quantisation": 0.5, "efficiency": 0.6, "head_dim0": 16.0, "seq0": 400.0}
_OPTIMIZER_KINDS = (Kind.ADAMW, Kind.ADAMW_MIXED, Kind.GRAD_NORM)


def operator_parameters(kind: Kind, constants: Mapping[str, float]) -> dict[str, float]:
    """Parameters of an operator's form from the constants."""
    form = form_of(kind)
    if form in ("product", "grouped"):
        tiles = {name: constants["product"] * relative for name, relative in _TILES.items()}
        own = {"memory_efficiency": constants["elementwise"], "alignment": constants["alignment"]}
        return {"t0": constants["gap"], **_HELD_PRODUCT, **tiles, **own}
    if form == "attention":  # the rows have none: only there so that a calibration is complete
        return {"t0": constants["gap"], **_HELD_ATTENTION, "memory_efficiency": constants["elementwise"]}
    share = constants["optimizer" if kind in _OPTIMIZER_KINDS else "elementwise"]
    return {"t0": constants["gap"], **_HELD_STREAM, "memory_efficiency": share, "cache_efficiency": share}


def host_parameters(constants: Mapping[str, float]) -> dict[str, float]:
    """Host time of blocks, s."""
    return {
        "kernel": constants["kernel"],
        "head_and_loss/forward": constants["loss"],
        "layer/step": constants["optimizer_layer"],
        "step/step": constants["optimizer_layer"],
    }


# ---- the rows as plans ----------------------------------------------------------------------------------------------


def gpt(hidden: int, heads: int, layers: int, seq: int) -> Architecture:
    """The rows' model: GPT-2's layers, learned positions, an output head of its own."""
    width = hidden // heads
    layer = Layer(
        attentions=(
            Attention(heads=heads, kv_heads=heads, head_dim=width, bias_qkv=True, bias_out=True, rotary=False),
        ),
        feed_forward=Mlp(width=4 * hidden, activation="gelu", gated=False, bias=True),
        norm="layer",
        norm_bias=True,
    )
    return Architecture(
        name=f"gpt-{hidden}x{layers}",
        hidden=hidden,
        vocab=_VOCABULARY,
        embedding_width=hidden,
        tied=False,
        decoder=(layer,) * layers,
        learned_positions=seq,
    )


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that share an architecture, as plans; `place` is where they stand among all rows."""

    architecture: Architecture
    plans: PlanBatch
    place: IntArray


def groups(rows: Rows, recompute: Recompute = Recompute.NONE) -> list[Group]:
    """The rows as batches of plans, one for each architecture."""
    keys = np.stack([rows.hidden, rows.heads, rows.layers, rows.seq], axis=1)
    found = []
    for key in np.unique(keys, axis=0):
        place = np.flatnonzero((keys == key).all(axis=1))
        hidden, heads, layers, seq = (int(value) for value in key)
        plans = PlanBatch.of(
            **{name: rows.column(name)[place] for name in ("dp", "tp", "pp", "micro_batch", "global_batch", "seq")},
            **dict.fromkeys(("ep", "cp", "virtual_stages", "skew"), 1),
            **dict.fromkeys(("zero_stage", "sequence_parallel", "schedule"), 0),
            recompute=int(recompute),
            clock_Hz=np.inf,
            power_cap_W=np.inf,
        )
        found.append(Group(architecture=gpt(hidden, heads, layers, seq), plans=plans, place=place))
    return found


# ---- links ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Links:
    """What a sweep of all-reduces says of a node's links; `log_error` is its root mean square log error."""

    start_s: float
    step_s: float
    efficiency: float
    log_error: float


def fit_links(data: AllReduce, bandwidth_Bps: float) -> Links:
    """The ring of `model.network.collectives`, by robust least squares on log time."""

    def time_s(x: FloatArray) -> FloatArray:
        start, step, efficiency = np.exp(x)
        n = data.ranks
        moved = 2 * (n - 1) / n * data.size_B / (bandwidth_Bps * efficiency)
        return np.asarray(start + moved + 2 * (n - 1) * step)

    def errors(x: FloatArray) -> FloatArray:
        return np.asarray(np.log(time_s(x) / data.time_s))

    best = minimise(errors, np.log([20e-6, 2e-6, 0.8]), loss="soft_l1", scale=0.05)
    start, step, efficiency = np.exp(best)
    spread = float(np.sqrt(np.mean(np.square(errors(best)))))
    return Links(start_s=float(start), step_s=float(step), efficiency=float(efficiency), log_error=spread)


# ---- the machine that the rows ran on -------------------------------------------------------------------------------


def chip_parameters(gpu: Gpu) -> dict[str, Parameter]:
    """The chip that operator fits refer to, from the GPU's description.

    Raises:
        ValueError: the description leaves out what is needed.
    """
    if not (gpu.multiprocessors and gpu.memory_bandwidth_Bps and gpu.l2_B):
        raise ValueError(f"GPU description {gpu.name} lacks multiprocessors, memory bandwidth or cache")
    values = {
        "multiprocessors": (float(gpu.multiprocessors), "1"),
        "flops_per_cycle": (gpu.peak(_DTYPE).flops_per_cycle / gpu.multiprocessors, "1"),
        "bandwidth_Bps": (gpu.memory_bandwidth_Bps, "B/s"),
        "l2_B": (float(gpu.l2_B), "B"),
    }
    source = f"GPU description {gpu.name}"
    return {name: Parameter.datasheet(value, unit, source) for name, (value, unit) in values.items()}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the rows ran on, as far as it is known: one network for all, no limit on power."""

    gpu: Gpu
    links: Links
    nic_Bps: float = 1e9  # between nodes; rows of one node don't use it
    nic_latency_s: float = 1e-5  # likewise without effect

    def machine(self, constants: Mapping[str, float]) -> System:
        """A machine whose operators, host and transfers between stages follow from the constants."""
        bandwidth = self.gpu.nvlink_Bps or self.nic_Bps
        network = Network(
            gpus_per_node=self.gpu.gpus_per_node,
            node_Bps=bandwidth,
            nic_Bps=self.nic_Bps,
            node_latency_s=self.links.step_s,
            nic_latency_s=self.nic_latency_s,
            efficiency=dict.fromkeys(Collective, self.links.efficiency) | {Collective.SEND_RECV: constants["boundary"]},
            start_s=self.links.start_s,
            overlap=0.0,
        )
        return System(
            gpu=self.gpu,
            internode=Internode(link=Link(bandwidth_GBps=self.nic_Bps * 1e-9, latency_us=self.nic_latency_s * 1e6)),
            calibration=_bare_calibration(self.gpu, constants),
            network=network,
            memory_B=np.inf,
            power_limit_W=np.inf,
            peak_flops_per_s=self.gpu.peak(_DTYPE).flops_per_s,
            framework=framework_of(BACKEND),
            precision=PRECISION,
        )


def _bare_calibration(gpu: Gpu, constants: Mapping[str, float]) -> Calibration:
    """Times only: no power, no governor, one clock."""
    clock_Hz = gpu.peak(_DTYPE).clock_Hz
    operators = [
        OperatorFit(
            kind=kind,
            direction=direction,
            parameters=_bare(operator_parameters(kind, constants)),
            log_error=0,
            points=0,
        )
        for kind in Kind
        for direction in PASSES[kind]
    ]
    return Calibration(
        schema_version=SCHEMA_VERSION,
        name="times-only",
        gpu=gpu.name,
        created="",
        moemodel_version="",
        provenance="Times only, while constants are fitted.",
        clock_reference_Hz=clock_Hz,
        clock_range_Hz=(0.999 * clock_Hz, clock_Hz),  # no width is no range
        clock_measured_Hz=(clock_Hz, clock_Hz),
        composition_error=_bare({"x": 0.0})["x"],
        chip=chip_parameters(gpu),
        operators=operators,
        host=[HostLane(backend=BACKEND, blocks=_bare(host_parameters(constants)), log_error=0)],
        power=PowerFit(parameters=_bare(_NO_POWER | {"knee_Hz": clock_Hz}), log_error=0, points=0),
        governor=GovernorFit(parameters=_bare({"sustained_share": 1.0, "gain": 1e7}), log_error=0),  # any gain
        thermal=ThermalFit(parameters=_bare(_NO_HEAT)),
        network=NetworkFit(parameters=_bare(_LINKS_UNUSED), log_error=0),
        memory=MemoryFit(parameters=_bare({"context": 0.0, "workspace": 0.0, "fragmentation": 0.0})),
    )


_NO_POWER = dict.fromkeys(POWER.required, 0.0)


# Without resistances, times and inlet have no effect.
_NO_HEAT = {"die_C_per_W": 0.0, "die_time": 1.0, "sink_C_per_W": 0.0, "sink_time": 1.0, "inlet_C": 25.0}
_LINKS_UNUSED = dict.fromkeys(NETWORK.required, 1.0) | {"link_power": 0.0}  # `Cluster` makes the network


def _bare(values: Mapping[str, float]) -> dict[str, Parameter]:
    return {name: Parameter.fitted(value, "", "") for name, value in values.items()}


def predicted_s(batches: list[Group], machine: System) -> FloatArray:
    """Step time of every row."""
    time_s = np.zeros(sum(len(group.place) for group in batches))
    for group in batches:
        time_s[group.place] = predict(group.architecture, group.plans, machine).step_time_s
    return time_s


# ---- the fit --------------------------------------------------------------------------------------------------------

_SCALE = 0.05  # assumed: log error beyond which a row counts less (soft L1)
_STEP = 1e-3  # of a logarithm, in differences
_FARTHEST = 0.7  # that one linearisation may move a logarithm
_NEAR = 0.25  # derivatives are used again within this
_CLOSE = 2e-3  # converged
_WORTHWHILE, _PATIENCE = 1e-3, 2  # or the sum of losses has not fallen by this share for so many rounds
_ROUNDS = 12  # at most; the rules above end a fit that converges


@dataclass
class StepFitter:
    """Fits the constants to rows; `time_s` gives the step time of every row under some constants.

    Attributes:
        time_s: constants -> predicted time of all rows.
        measured_s: what they are compared with.
    """

    time_s: Callable[[Mapping[str, float]], FloatArray]
    measured_s: FloatArray
    _values: dict[bytes, FloatArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._jacobian = NearbySlopes(function=self._log_time, step=_STEP, near=_NEAR)

    def fit(self, rows: BoolArray | None = None) -> dict[str, float]:
        """Constants fitted to some rows (all, by default), always from the same start."""
        picked = np.ones(len(self.measured_s), dtype=bool) if rows is None else rows
        low, high = (np.log([getattr(f, edge) for f in FREE.values()]) for edge in ("low", "high"))
        x = np.log([f.start for f in FREE.values()])
        best, best_cost, idle = x, np.inf, 0
        for _ in range(_ROUNDS):
            missed = self._log_time(x)[picked] - np.log(self.measured_s[picked])
            cost = _robust(missed)
            idle = 0 if cost < (1 - _WORTHWHILE) * best_cost else idle + 1
            if cost < best_cost:
                best, best_cost = x, cost
            if idle == _PATIENCE:
                break
            move = _solve(missed, self._jacobian(x)[picked], low - x, high - x)
            if np.abs(move).max() < _CLOSE:
                break
            x = x + move
        return dict(zip(FREE, np.exp(best).tolist(), strict=True))

    def _log_time(self, x: FloatArray) -> FloatArray:
        key = x.tobytes()
        if key not in self._values:
            self._values[key] = np.log(self.time_s(dict(zip(FREE, np.exp(x).tolist(), strict=True))))
        return self._values[key]


def _robust(missed: FloatArray) -> float:
    return float(np.sum(np.sqrt(1 + np.square(missed / _SCALE)) - 1))


def _solve(missed: FloatArray, jacobian: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """The best move of a linearised problem, within bounds. A constant that no row depends on stays."""
    nearest, farthest = np.clip(low, -_FARTHEST, -1e-9), np.clip(high, 1e-9, _FARTHEST)

    def linear(move: FloatArray) -> FloatArray:
        return np.asarray(missed + jacobian @ move)

    def slope(_: FloatArray) -> FloatArray:
        return jacobian

    start = np.zeros(jacobian.shape[1])
    return minimise(
        linear, start, low=nearest, high=farthest, loss="soft_l1", scale=_SCALE, slopes=slope, evaluations=50
    )


def measured_boxes(batches: list[Group]) -> dict[tuple[Kind, Pass], list[tuple[float, float]]]:
    """Smallest and largest of each feature, log2, of every operator that the rows ran."""
    boxes: dict[tuple[Kind, Pass], list[tuple[float, float]]] = {}
    for group in batches:
        work = Workload(group.architecture, group.plans, framework=framework_of(BACKEND), precision=PRECISION)
        for call in work.layer(group.architecture.layers[0]) + work.embedding() + work.head():
            features = shape_features(call.kind, call.shape)
            own = [(float(c.min()), float(c.max())) for c in features.T]
            seen = boxes.get((call.kind, call.direction), own)
            boxes[call.kind, call.direction] = [
                (min(a, c), max(b, d)) for (a, b), (c, d) in zip(seen, own, strict=True)
            ]
    return boxes
