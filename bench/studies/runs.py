"""Training runs that others published, as plans, and the few constants by which their software differs from ours.

A published row becomes a plan of an architecture (`Row`), a set of rows a `Study`: what ran them, which constants it
may fit, and which rows stay out and why. Predictions go through `model.predict.predict` with the calibration of this
project's H100, adapted (`adapted`) to another chip with the same SMs, to a width of elements, and by the constants:

    products, attention, elementwise, optimizer    rate of those kernels over what was calibrated
    host                                           host time over what was calibrated
    internode                                      bandwidth between nodes over what the network states
    context, cached                                memory beside tensors, B; what the allocator keeps over tensors

All start at 1 (`context` and `cached` at what was calibrated): the prediction without any fit, "zero-shot". A fit is a
robust least squares of log time with a weak prior there; `left_out` predicts every group of rows by a fit that did not
see it. Nothing is fitted to single rows.

Where the sources say more of a run than its row does, the study's comment names the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from moemodel.calibration.least_squares import NearbySlopes, best_of, minimise
from moemodel.calibration.store.catalogue import shipped
from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture, Attention, Layer, Mlp, Moe
from moemodel.model.core.arrays import BoolArray, FloatArray
from moemodel.model.core.errors import InputError
from moemodel.model.device.attention import rescale_for_attention
from moemodel.model.device.precision import rescale_for_precision, scaled
from moemodel.model.device.roofline import ATTENTIONS, PRODUCTS
from moemodel.model.frameworks.base import FusedOperator, OverlapAxis, Precision
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.hardware.gpu import Gpu, read_gpu
from moemodel.model.hardware.link import read_link
from moemodel.model.network.cluster import Internode
from moemodel.model.network.collectives import network_of
from moemodel.model.operators.work import Kind
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.dispatch import DispatchChoices
from moemodel.model.plan.recompute import Recompute, recompute_number
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration, HostLane, OperatorFit, Parameter
from moemodel.model.schedule.pipeline_layout import PipelineLayout
from moemodel.model.step.system import System
from studies.bridge_recipes import recipe
from studies.mlperf_settings import settings_of

GH200 = "gh200-iteration-times/opt_350m.csv"
BLACKWELL = "blackwell-throughput/megatron_bridge.csv"
FSDP = "h100-iteration-times/llm_foundry_fsdp.csv"
BRIDGE = "h100-iteration-times/megatron_bridge.csv"
MLPERF = "h100-iteration-times/mlperf_v3.1_v5.1.csv"

_CALIBRATED = "h100-sxm-80gb"
_OPTIMIZERS = (Kind.ADAMW, Kind.ADAMW_MIXED, Kind.GRAD_NORM, Kind.ACCUMULATE)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One published measurement: a plan, and what it took.

    Attributes:
        label: names it in a table.
        architecture, plan: what ran; columns of `PlanBatch`.
        software: key of the study's machines.
        time_s: of a step, measured.
        memory_B: of the fullest GPU, measured, if it was.
        group: rows of one group are left out of a fit together.
        host_bound: the host rather than the device decides how long it took, by the measurements themselves.
    """

    label: str
    architecture: Architecture
    plan: Mapping[str, float]
    software: str
    time_s: float
    group: str
    memory_B: float = np.nan
    host_bound: bool = False


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A constant to fit: it starts at `start` and stays between `low` and `high`."""

    start: float
    low: float
    high: float


def _rate(low: float = 0.15, high: float = 1.5) -> Constant:  # assumed: seven times slower, half as fast again
    return Constant(start=1.0, low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class Software:
    """What a framework makes of the hardware.

    Attributes:
        gpu: description of the chip.
        backend, precision: of the model.
        internode: network between nodes, by name.
        overlapped: exchanges that run behind computation (`frameworks.base.Framework`); None: what the backend says.
        gradient_B: bytes of a gradient element on the wire; None: as the backend has it.
        unfused: operators that the framework fuses, but not here.
        cast_B: bytes that casting an element to 8 bits moves; None: what the framework says.
    """

    gpu: str
    backend: str
    precision: Precision
    internode: str = "infiniband-ndr"
    overlapped: frozenset[OverlapAxis] | None = None
    gradient_B: float | None = None
    unfused: frozenset[FusedOperator] = frozenset()
    cast_B: float | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """A published set of rows.

    Attributes:
        name: in tables.
        rows: what is predicted.
        software: what ran them, by key.
        constants: that are fitted to step times; `memory_constants` to memory.
        left_out: rows of the file that aren't predicted: reason -> how many.
    """

    name: str
    rows: list[Row]
    software: Mapping[str, Software]
    constants: Mapping[str, Constant]
    memory_constants: Mapping[str, Constant] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)


# ---- machines -------------------------------------------------------------------------------------------------------


def machine(software: Software, constants: Mapping[str, float], *, limited: bool = False) -> System:
    """What some software makes of its hardware under some constants; those not named are 1.

    `limited`: by the memory of the chip; else nothing runs out of it.
    """
    gpu = read_gpu(software.gpu)
    calibration = adapted(shipped(_CALIBRATED), gpu, software, constants)
    attention = framework_of(software.backend).attention
    calibration = rescale_for_attention(calibration, attention, gpu, asked=False)
    link = read_link(software.internode)
    link = link.model_copy(update={"bandwidth_GBps": link.bandwidth_GBps * constants.get("internode", 1.0)})
    network = network_of(calibration, gpu, None, link)
    usual = framework_of(software.backend)
    recipe = usual.precisions[software.precision]
    if software.cast_B is not None:
        recipe = replace(recipe, cast_B=software.cast_B)
    framework = replace(
        usual,
        precisions={**usual.precisions, software.precision: recipe},
        fused_kernels=usual.fused_kernels - software.unfused,
        gradient_wire_B=usual.gradient_wire_B if software.gradient_B is None else software.gradient_B,
        overlapped=usual.overlapped if software.overlapped is None else software.overlapped,
    )
    return System(
        gpu=gpu,
        internode=Internode(link=link),
        calibration=calibration,
        network=network,
        memory_B=float(gpu.memory_B) if limited and gpu.memory_B else np.inf,
        power_limit_W=gpu.power_limit_W or np.inf,
        peak_flops_per_s=gpu.peak("bf16").flops_per_s,
        framework=framework,
        precision=software.precision,
    )


def adapted(calibration: Calibration, gpu: Gpu, software: Software, constants: Mapping[str, float]) -> Calibration:
    """A calibration for another chip with the same SMs, in the software's precision, by the constants."""
    bandwidth_Bps = gpu.memory_bandwidth_Bps or calibration.chip["bandwidth_Bps"].value
    memory = {name: constants[key] for name, key in _MEMORY.items() if key in constants}
    of_chip = calibration.model_copy(
        update={
            "gpu": gpu.name,
            "chip": _changed(calibration.chip, {"bandwidth_Bps": bandwidth_Bps}),
            "operators": [_operator(fit, constants) for fit in calibration.operators],
            "host": [_host(lane, constants.get("host", 1.0)) for lane in calibration.host],
            "memory": calibration.memory.model_copy(
                update={"parameters": _changed(calibration.memory.parameters, memory)}
            ),
        }
    )
    return rescale_for_precision(of_chip, framework_of(software.backend), software.precision, gpu)


def rates_changed(calibration: Calibration, constants: Mapping[str, float]) -> Calibration:
    """A calibration whose kernels and host are as much faster or slower as constants say; those not named are 1."""
    return calibration.model_copy(
        update={
            "operators": [_operator(fit, constants) for fit in calibration.operators],
            "kernels": [_operator(fit, constants) for fit in calibration.kernels],
            "host": [_host(lane, constants.get("host", 1.0)) for lane in calibration.host],
        }
    )


def _host(lane: HostLane, factor: float) -> HostLane:
    return lane.model_copy(update={"blocks": scaled(lane.blocks, dict.fromkeys(lane.blocks, factor))})


_MEMORY = {"context": "context", "fragmentation": "cached"}
_STREAM_RATES = ("memory_efficiency", "cache_efficiency", "issue_efficiency")


_FitT = TypeVar("_FitT", bound=OperatorFit)


def _operator(fit: _FitT, constants: Mapping[str, float]) -> _FitT:
    if fit.kind in PRODUCTS:
        name, rates = "products", tuple(p for p in fit.parameters if p.startswith("efficiency_"))
    elif fit.kind in ATTENTIONS:
        name, rates = "attention", ("efficiency",)
    else:
        name, rates = "optimizer" if fit.kind in _OPTIMIZERS else "elementwise", _STREAM_RATES
    factors = dict.fromkeys(rates, constants.get(name, 1.0))
    return fit.model_copy(update={"parameters": scaled(fit.parameters, factors)})


def _changed(parameters: Mapping[str, Parameter], values: Mapping[str, float]) -> dict[str, Parameter]:
    return {
        name: p.model_copy(update={"value": values[name]}) if name in values else p for name, p in parameters.items()
    }


# ---- predictions and fits -------------------------------------------------------------------------------------------

PLAN_DEFAULTS: dict[str, float] = {
    "dp": 1,
    "tp": 1,
    "pp": 1,
    "ep": 1,
    "cp": 1,
    "zero_stage": 0,
    "sequence_parallel": 0,
    "virtual_stages": 1,
    "micro_batch": 1,
    "global_batch": 1,
    "seq": 2048,
    "recompute": Recompute.NONE,
    "schedule": 0,
    "skew": 1.0,
    "clock_Hz": np.inf,
    "power_cap_W": np.inf,
    **DispatchChoices().numbers,
}


class Predictor:
    """Step time and memory of a study's rows under constants; rows of one architecture and software go together."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.time_s = np.array([row.time_s for row in study.rows])
        self.memory_B = np.array([row.memory_B for row in study.rows])
        self.groups = np.array([row.group for row in study.rows])
        places: dict[tuple[int, str], list[int]] = {}
        for place, row in enumerate(study.rows):
            places.setdefault((id(row.architecture), row.software), []).append(place)
        self._batches = [(np.array(rows), *self._batch(rows)) for rows in places.values()]
        self._known: dict[tuple[tuple[str, float], ...], tuple[FloatArray, FloatArray]] = {}
        self._slopes = [
            NearbySlopes(function=partial(self._log, which=which), step=-_STEP, near=_NEAR) for which in (0, 1)
        ]

    def _batch(self, places: Sequence[int]) -> tuple[Architecture, PlanBatch, str]:
        rows = [self.study.rows[place] for place in places]
        columns = {name: [row.plan.get(name, default) for row in rows] for name, default in PLAN_DEFAULTS.items()}
        return rows[0].architecture, PlanBatch.of(**columns), rows[0].software

    def predicted(self, constants: Mapping[str, float]) -> tuple[FloatArray, FloatArray]:
        """Step time, s, and memory, B, of every row."""
        key = tuple(sorted(constants.items()))
        if key not in self._known:
            machines = {name: machine(software, constants) for name, software in self.study.software.items()}
            time_s, memory_B = np.zeros(len(self.time_s)), np.zeros(len(self.time_s))
            for places, architecture, plans, software in self._batches:
                prediction = predict(architecture, plans, machines[software])
                time_s[places], memory_B[places] = prediction.step_time_s, prediction.memory_B
            self._known[key] = time_s, memory_B
        return self._known[key]

    def fit(self, rows: BoolArray, *, memory: bool = False) -> dict[str, float]:
        """Constants fitted to the step time (or memory) of some rows."""
        free, which = self._free(int(memory)), int(memory)
        names = tuple(free)
        goal = np.log((self.memory_B if memory else self.time_s)[rows])
        start, low, high = (np.log([getattr(free[name], edge) for name in names]) for edge in ("start", "low", "high"))
        prior = _PRIOR * np.eye(len(names))

        def off(x: FloatArray) -> FloatArray:
            return np.asarray(np.append(self._log(x, which)[rows] - goal, prior @ (x - start)))

        def slope(x: FloatArray) -> FloatArray:
            return np.vstack([self._slopes[which](x)[rows], prior])

        minima = [
            minimise(
                off,
                at,
                low=low,
                high=high,
                loss="soft_l1",
                scale=_SCALE,
                slopes=slope,
                tolerance=_CLOSE,
                slack=_AT_EDGE,
            )
            for at in _starts(names, start)
        ]
        best = best_of(minima, off, _soft)
        return dict(zip(names, np.exp(best).tolist(), strict=True))

    def _free(self, which: int) -> Mapping[str, Constant]:
        """The constants that step time (0) or memory (1) is fitted by."""
        return self.study.memory_constants if which else self.study.constants

    def _log(self, x: FloatArray, which: int) -> FloatArray:
        """Logarithm of every row's step time (0) or memory (1) under logarithms of its constants."""
        constants = dict(zip(self._free(which), np.exp(x).tolist(), strict=True))
        return np.asarray(np.log(self.predicted(constants)[which]))

    def left_out(self, *, memory: bool = False) -> FloatArray:
        """Predicted over measured of every row, by a fit that left out its whole group."""
        goal, which = (self.memory_B if memory else self.time_s), int(memory)
        ratio = np.zeros(len(goal))
        for group in dict.fromkeys(self.groups):
            rows = self.groups == group
            ratio[rows] = (self.predicted(self.fit(~rows, memory=memory))[which] / goal)[rows]
        return ratio


def _starts(names: Sequence[str], start: FloatArray) -> list[FloatArray]:
    """Logarithms to begin a fit at: a step waits for the slower of host and device, so that as long as the device is
    the slower one nothing shows how slow the host may be."""
    slower = np.array([np.log(_SLOW_HOST) if name == "host" else 0.0 for name in names])
    return [start, start + slower] if slower.any() else [start]


def _soft(off: FloatArray) -> float:
    """What the fit makes least of its residuals (`calibration.least_squares`, soft_l1)."""
    return float(np.sum(np.sqrt(1 + (off / _SCALE) ** 2) - 1))


_SLOW_HOST = 2.0  # assumed: a host that is slower than the one that was measured
_PRIOR = 0.05  # assumed: log error of a row that moving a constant by a factor e counts as
_STEP, _NEAR = 1e-3, 0.1  # of a logarithm: in differences, and within which derivatives are used again
_AT_EDGE, _CLOSE = 1e-6, 1e-3  # of a logarithm; as good as converged
_SCALE = 0.05  # assumed: log error beyond which a row counts less (soft L1)


# ---- the published rows ---------------------------------------------------------------------------------------------


def _table(folder: Path, name: str) -> pd.DataFrame:
    path = folder / name
    if not path.exists():
        raise InputError(f"{path}: no such file; give the folder that holds the published data")
    return pd.read_csv(path)


def _opt_350m() -> Architecture:
    """OPT-350M as Sailor's Megatron-DeepSpeed builds it: norms first, no projections, head of its own (opt_model.py).

    GPT-2's vocabulary, padded to a multiple of 128 tp = 512.
    """
    attention = Attention(heads=16, kv_heads=16, head_dim=64, bias_qkv=True, bias_out=True, rotary=False)
    layer = Layer(
        attentions=(attention,),
        feed_forward=Mlp(width=4096, activation="relu", gated=False, bias=True),
        norm="layer",
        norm_bias=True,
    )
    return Architecture(
        name="opt-350m (Sailor)",
        hidden=1024,
        vocab=50688,
        embedding_width=1024,
        tied=False,
        learned_positions=2048,
        decoder=(layer,) * 24,
    )


_FLATTENED = 1.1  # assumed: a sequence takes a device less than a tenth longer in a smaller micro-batch


def _sequence_s(record: Mapping[Any, Any]) -> float:
    """Time that a stage works on a sequence, pipeline bubbles left out."""
    dp, pp = int(record["dp"]), int(record["pp"])
    passes = int(record["global_batch"]) / dp / int(record["micro_batch"])
    return float(record["iteration_s"]) * dp * pp / int(record["global_batch"]) * passes / (passes + pp - 1)


def gh200(folder: Path) -> Study:
    """OPT-350M on GH200 (Sailor).

    Its launch script asks for neither fp16 nor bf16 and no flash attention (ae_scripts/clariden_scripts/run_opt.slurm),
    its container lets float32 products run as TF32 (NGC PyTorch 24.10 sets TORCH_ALLOW_TF32_CUBLAS_OVERRIDE), gradients
    are reduced after the last backward pass (deepspeed/pipe_engine.py), memory is what nvidia-smi says is used, the
    allocator's cache included. Nodes of four GH200 on Slingshot (Alps). How layers are cut into stages stands in
    sailor/Planner/simulations/validation/clariden/OPT-350.

    Rows are bound by the host where a sequence takes a GPU a tenth longer, pipeline bubbles left out, than at the
    largest micro-batch of as many stages: what a device does for a sequence hardly depends on it, what a host does is
    for a pass.
    Sailor's own profile of this model and GPU (sailor_planner/profiles/OPT-350/GH-96) flattens there, too: a layer
    under tp 4 takes 2.7 ms forward for 8 sequences, 1.8 for 4, 1.5 for 2.

    Groups are numbers of nodes. Micro-batch sizes could not be left out so: rows of one sequence are bound by the host
    and say nothing of the GPU, nine of the fifteen have eight sequences and say nothing of the host (error then: 44 %).
    """
    table = _table(folder, GH200)
    # stages of 4, 7, 7, 6 and 11, 13 layers there
    architecture = PipelineLayout.of(_opt_350m(), account_for_embedding=2, account_for_loss=0)
    records = _records(table)
    largest_s: dict[int, float] = {}  # of those of a number of stages the fastest; smaller ones are overwritten
    for record in sorted(records, key=lambda r: (int(r["micro_batch"]), -_sequence_s(r))):
        largest_s[int(record["pp"])] = _sequence_s(record)
    rows = []
    for record in records:
        dp, tp, pp = (int(record[name]) for name in ("dp", "tp", "pp"))
        nodes = dp * tp * pp // 4
        plan = {name: record[name] for name in ("dp", "tp", "pp", "micro_batch", "global_batch")}
        rows.append(
            Row(
                label=f"dp{dp} tp{tp} pp{pp} mb{record['micro_batch']}",
                architecture=architecture,
                plan=plan | {"seq": record["sequence_length"]},
                software="sailor",
                time_s=float(record["iteration_s"]),
                memory_B=float(record["peak_memory_B"]),
                group=f"{nodes} nodes",
                host_bound=_sequence_s(record) > _FLATTENED * largest_s[pp],
            )
        )
    software = Software(
        gpu="gh200-96gb",
        backend="megatron-deepspeed",
        precision="fp32",
        internode="slingshot-11",
    )
    return Study(
        name="GH200 OPT-350M",
        rows=rows,
        software={"sailor": software},
        # assumed: hosts differ by more than kernels do
        constants={"products": _rate(), "elementwise": _rate(), "host": _rate(0.3, 6.0), "internode": _rate(0.1, 1.5)},
        memory_constants={
            # as the H100 of this project (its calibration), and 3 % as assumed there; bounds assumed
            "context": Constant(start=1.26e9, low=5e8, high=8e9),
            "cached": Constant(start=0.03, low=0.001, high=0.5),
        },
    )


# d_model, n_heads, n_layers of llm-foundry's scripts/train/yamls/pretrain.
_MPT = {"760m": (1536, 12, 24), "1b": (2048, 16, 24), "3b": (2560, 20, 32), "7b": (4096, 32, 32), "13b": (5120, 40, 40)}


def _mpt(name: str) -> Architecture:
    """A model of MosaicML (llm-foundry, scripts/train/yamls/pretrain), whose learned positions hardly take time."""
    hidden, heads, layers = _MPT[name]
    attention = Attention(heads=heads, kv_heads=heads, head_dim=128, bias_qkv=True, bias_out=True, rotary=False)
    layer = Layer(
        attentions=(attention,),
        feed_forward=Mlp(width=4 * hidden, activation="gelu", gated=False, bias=True),
        norm="layer",
        norm_bias=True,
    )
    return Architecture(
        name=f"mpt-{name}",
        hidden=hidden,
        vocab=50368,
        embedding_width=hidden,
        tied=True,
        learned_positions=2048,
        decoder=(layer,) * layers,
    )


SHARDED = {"FULL_SHARD": 3, "SHARD_GRAD_OP": 2}  # ZeRO stages (torch.distributed.fsdp.ShardingStrategy)


def fsdp(folder: Path) -> Study:
    """MosaicML's dense models under FSDP in bf16 (llm-foundry, 2023).

    What its software is, `model/frameworks/fsdp.py` says.
    """
    table = _table(folder, FSDP)
    bf16 = table["Precision"] == "amp_bf16"
    models = {name: _mpt(name) for name in _MPT}
    rows = []
    for record in _records(table[bf16]):
        gpus, seq, batch = (int(record[name]) for name in ("# GPUs", "SeqLen (T)", "GlobalBatchSize"))
        rows.append(
            Row(
                label=f"{record['Model']} seq{seq} x{gpus}",
                architecture=models[str(record["Model"])],
                plan={
                    "dp": gpus,
                    "zero_stage": SHARDED[str(record["Sharding Strategy"])],
                    "micro_batch": int(record["MicroBatchSize"]),
                    "global_batch": batch,
                    "seq": seq,
                    "recompute": Recompute.FULL if record["Activation Checkpointing"] else Recompute.NONE,
                },
                software="fsdp",
                time_s=batch * seq / gpus / float(record["Throughput (T/s/GPU)"]),
                group=str(record["Model"]),
            )
        )
    return Study(
        name="H100 FSDP (llm-foundry)",
        rows=rows,
        software={"fsdp": Software(gpu=_CALIBRATED, backend="fsdp", precision="bf16-mixed")},
        constants={"products": _rate(), "attention": _rate(), "elementwise": _rate()},
        left_out={"in FP8": int((~bf16).sum())},
    )


def llama_405b() -> Architecture:
    """Llama 3.1 405B (Grattafiori et al. 2024, table 3)."""
    model = read_architecture("llama-3-70b")
    layer = model.decoder[0]
    attention = replace(layer.attentions[0], heads=128, kv_heads=8, head_dim=128)
    feed_forward = Mlp(width=53248, activation="silu", gated=True)
    layers = (replace(layer, attentions=(attention,), feed_forward=feed_forward),) * 126
    model = replace(model, name="llama-3.1-405b", hidden=16384, embedding_width=16384, decoder=layers)
    # account_for_embedding_in_pipeline_split, and of the loss
    return PipelineLayout.of(model, account_for_embedding=1, account_for_loss=1)


def _qwen_235b() -> Architecture:
    """Qwen3-235B-A22B (its config.json on Hugging Face)."""
    model = read_architecture("qwen3-30b-a3b")
    layer = model.decoder[0]
    if not isinstance(layer.feed_forward, Moe):
        raise InputError(f"{model.name}: found a dense layer where experts were expected")
    attention = replace(layer.attentions[0], heads=64, kv_heads=4, head_dim=128)
    layers = (replace(layer, attentions=(attention,), feed_forward=replace(layer.feed_forward, width=1536)),) * 94
    return replace(model, name="qwen3-235b-a22b", hidden=4096, embedding_width=4096, decoder=layers)


def _gpt_oss() -> Architecture:
    """gpt-oss-120b (its config.json on Hugging Face); every other layer's window of 128 tokens is counted as full."""
    attention = Attention(heads=64, kv_heads=8, head_dim=64, bias_qkv=True, bias_out=True)
    experts = Moe(experts=128, top_k=4, width=2880, activation="silu", gated=True, bias=True)
    layer = Layer(attentions=(attention,), feed_forward=experts, norm="rms")
    return Architecture(
        name="gpt-oss-120b", hidden=2880, vocab=201088, embedding_width=2880, tied=False, decoder=(layer,) * 36
    )


_MODELS: dict[str, Callable[[], Architecture]] = {
    "LLAMA3_8B": lambda: read_architecture("llama-3-8b"),
    "LLAMA3_70B": lambda: read_architecture("llama-3-70b"),
    "LLAMA3.1_405B": llama_405b,
    "GPT OSS 120B": _gpt_oss,
    "Qwen3_30B_a3B": lambda: read_architecture("qwen3-30b-a3b"),
    "Qwen3_235B_a22B": _qwen_235b,
    # stages "Et|(tt|)*30mL" (perf_recipes/deepseek/h100/deepseek_v3.py): 61 layers, and three for the ends
    "DeepSeekV3": lambda: PipelineLayout.of(
        read_architecture("deepseek-v3"), account_for_embedding=1, account_for_loss=2
    ),
}
_DENSE = ("LLAMA3_8B", "LLAMA3_70B", "LLAMA3.1_405B")
_RECIPE_NAMES = {
    "LLAMA3_8B": "llama-3-8b",
    "LLAMA3_70B": "llama-3-70b",
    "LLAMA3.1_405B": "llama-3.1-405b",
    "GPT OSS 120B": "gpt-oss-120b",
    "Qwen3_30B_a3B": "qwen3-30b-a3b",
    "Qwen3_235B_a22B": "qwen3-235b-a22b",
    "DeepSeekV3": "deepseek-v3",
}

# 8-bit products take the peak of fp8. Containers of 2025 and 2026 of one table.
_CORE = Software(gpu=_CALIBRATED, backend="megatron-core", precision="bf16-mixed")
_CORE_FP8 = replace(_CORE, precision="fp8")
# Submissions scale by what was largest in steps before (fp8_recipe of their configurations), so that kernels which make
# operands write them in 8 bits (transformer_engine/pytorch/module/layernorm_linear.py, layernorm_mlp.py). Beyond what
# they move in 16: norms 1 B an element (8 bits, read and written again in the other order), the activation and its
# gradient none; attention's output, and gradients of what no activation follows, are read (2) and written in both
# orders (2). Of GPT-3's products, whose inputs are 1, 1, 1 and 4 hidden sizes wide and their outputs 3, 1, 4 and 1, in
# the mean 26 B of 16
_CORE_DELAYED = replace(_CORE_FP8, cast_B=26 / 16)
_MOE_OVERLAPPED: frozenset[OverlapAxis] = frozenset({"pp", "parameters", "gradients"})
_DENSE_CONSTANTS = {"products": _rate()}


_EXPERT_CONSTANTS = {"products": _rate(), "elementwise": _rate()}


def bridge(folder: Path, *, experts: bool) -> Study:
    """Megatron-Bridge's benchmarks on H100: dense models, or those with experts, whose loads are balanced by force."""
    table = _table(folder, BRIDGE)
    models: dict[str, Architecture] = {}
    rows: list[Row] = []
    unknown = lora = 0
    for record in _records(table):
        name, mode = str(record["model"]).split(" (")[0], str(record["mode"])
        lora += mode.startswith("LoRA") and not experts
        unknown += name not in _MODELS and experts
        if name not in _MODELS or mode.startswith("LoRA") or (name in _DENSE) is experts:
            continue
        architecture = models.setdefault(name, _MODELS[name]())
        rows.append(_bridge_row(record, name, architecture))
    software = _EXPERT_SOFTWARE if experts else {"BF16": _CORE, "FP8": _CORE_FP8}
    reasons = {"with LoRA": lora, "with state-space layers": unknown}
    return Study(
        name=f"H100 Megatron-Bridge, {'experts' if experts else 'dense'}",
        rows=rows,
        software=software,
        constants=_EXPERT_CONSTANTS if experts else _DENSE_CONSTANTS,
        left_out={reason: count for reason, count in reasons.items() if count},
    )


def _bridge_row(record: Mapping[str, Any], name: str, architecture: Architecture, *, gpu: str = _CALIBRATED) -> Row:
    gpus, batch, seq = (int(record[key]) for key in ("gpus", "gbs", "seq"))
    tp, pp, cp, vp, ep = (degree(record[key]) for key in ("tp", "pp", "cp", "vp", "ep"))
    release = str(record["release"]).split()[0]
    software = "BF16" if str(record["precision"]) == "BF16" else "FP8"
    used = recipe(_RECIPE_NAMES[name], gpu, release)
    pp, ep = used.pp or pp, used.ep or ep
    if name == "GPT OSS 120B":
        software += _TURNED_APART
    return Row(
        label=f"{name} x{gpus} {record['precision']} {release}",
        architecture=architecture,
        plan={
            "dp": gpus // (tp * pp * cp),
            "tp": tp,
            "pp": pp,
            "cp": cp,
            "ep": ep,
            "virtual_stages": used.virtual_stages or vp,
            "zero_stage": 3 if degree(record["fsdp"]) > 1 else 1,
            "sequence_parallel": int(tp > 1),
            "micro_batch": used.micro_batch or int(record["mbs"]),
            "global_batch": batch,
            "seq": seq,
            "recompute": recompute_number(used.recompute),
            **DispatchChoices(dispatch=used.dispatch, dispatch_overlap=used.overlap or None).numbers,
        },
        software=software,
        time_s=batch * seq / (gpus * float(record["tok_s_gpu"])),
        group=name,
    )


SYSTEMS = {
    "DGX-B200": "b200-sxm-180gb",
    "DGX-B300": "b300-sxm-288gb",
    "DGX-GB200": "gb200-186gb",
    "DGX-GB300": "gb300-288gb",
}


@dataclass(frozen=True, kw_only=True)
class SystemRow:
    """A published run of a model on one of several systems, in one of several precisions.

    Attributes:
        gpu, precision: that it ran on and in.
        release: that both were of; `row` the rest.
    """

    gpu: str
    precision: str
    release: str
    row: Row


def bridge_blackwell(folder: Path) -> list[SystemRow]:
    """Megatron-Bridge's benchmarks on Blackwell, of the models that are known here."""
    table = _table(folder, BLACKWELL).rename(columns=BLACKWELL_COLUMNS)
    found = []
    for record in _records(table):
        name = str(record["model"])
        if name not in _MODELS:
            continue
        gpu = SYSTEMS[str(record["system"])]
        row = _bridge_row(record, name, _MODELS[name](), gpu=gpu)
        precision = str(record["precision"]).lower()
        release = str(record["release"]).split()[0]
        found.append(SystemRow(gpu=gpu, precision=precision, release=release, row=row))
    return found


BLACKWELL_COLUMNS = {
    "System": "system",
    "#-GPUs": "gpus",
    "Precision": "precision",
    "GBS": "gbs",
    "MBS": "mbs",
    "Sequence Length": "seq",
    "TP": "tp",
    "PP": "pp",
    "CP": "cp",
    "VP": "vp",
    "EP": "ep",
    "Tokens / sec / GPU": "tok_s_gpu",
    "FSDP": "fsdp",
}


_EXPERT_SOFTWARE = {
    name: replace(base, overlapped=_MOE_OVERLAPPED) for name, base in (("BF16", _CORE), ("FP8", _CORE_FP8))
}
# GPT OSS turns queries and keys by YaRN with an mscale, which Transformer Engine's kernel does not know
# (megatron/core/models/common/embeddings/rope_utils.py)
_TURNED_APART = " turned apart"
_EXPERT_SOFTWARE |= {
    name + _TURNED_APART: replace(base, unfused=frozenset({"rotary"})) for name, base in _EXPERT_SOFTWARE.items()
}


def degree(cell: object) -> int:
    """A degree; 1 where the table has none."""
    text = str(cell).removesuffix(".0")
    return max(int(text), 1) if text.isdigit() else 1


_MLPERF_MODELS: dict[str, Callable[[], Architecture]] = {
    "gpt3": lambda: replace(read_architecture("gpt3-175b"), vocab=51200),  # 50257 and padding, as Megatron pads
    "llama31_405b": llama_405b,
    "llama31_8b": lambda: read_architecture("llama-3-8b"),
}
TIMED = re.compile("train_step_tim(e|ing)")


def mlperf(folder: Path) -> Study:
    """MLPerf Training submissions on H100 and H200, all with 8-bit products: a system's median step time."""
    table = _table(folder, MLPERF)
    timed = table[table["stat_key"].map(lambda key: TIMED.fullmatch(str(key)) is not None)]
    models = {name: model() for name, model in _MLPERF_MODELS.items()}
    rows: list[Row] = []
    lora = set(table.loc[table["benchmark"] == "llama2_70b_lora", "system"])
    for names, results in timed.groupby(["benchmark", "submitter", "system"], sort=False):
        benchmark, submitter, system = map(str, names)
        if benchmark not in models:
            continue
        first = results.iloc[0]
        settings = settings_of(first)
        if settings is None:
            raise InputError(f"{folder / MLPERF}: no plan is known of {system}, {benchmark}")
        tp, pp, cp, vp = (int(settings[key]) for key in ("tp", "pp", "cp", "virtual_stages"))
        gpus = int(first["nodes"]) * int(first["acc_per_node"])
        rows.append(
            Row(
                label=f"{benchmark} {submitter} x{gpus}",
                architecture=models[benchmark],
                plan={
                    "dp": gpus // (tp * pp * cp),
                    "tp": tp,
                    "pp": pp,
                    "cp": cp,
                    "virtual_stages": vp,
                    "zero_stage": 1,
                    "sequence_parallel": int(tp > 1),
                    "global_batch": int(first["gbs"]),
                    "seq": int(first["seq"]),
                },
                software="h200" if "H200" in str(first["accelerator"]) else "h100",
                time_s=float(results["median"].median()),
                group=str(benchmark),
            )
        )
    return Study(
        name="MLPerf Training 3.1 and 5.1",
        rows=rows,
        software={"h100": _CORE_DELAYED, "h200": replace(_CORE_DELAYED, gpu="h200-sxm-141gb")},
        constants=_DENSE_CONSTANTS,
        left_out={"systems that fine-tune with LoRA": len(lora)},
    )


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in record.items()} for record in table.to_dict("records")]
