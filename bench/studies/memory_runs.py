"""Training runs of others that say what they hold in memory, or only that they ran or did not.

    b200       Megatron-LM on 8 B200 (SimuMax's measurements, by its scripts): the allocator's peak on every stage; the
               case's name spells the plan
    golden     functional tests of Megatron-LM: the same on the last stage. Those whose attention is known: as
               `--attention-backend` says, or one kernel under today's Transformer Engine (`dev`); runs that begin by
               loading a checkpoint (`2nd`) left out
    nanotron   Hugging Face's Ultra-Scale Playbook: what the allocator reserved, or that memory ran out
    bridge     Megatron-Bridge's benchmarks on H100 (`studies.runs`), which ran

What is predicted beside the allocator's count (context, fragmentation) is left out of what is compared with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture, Attention, Layer, Mlp, Moe
from moemodel.model.frameworks.base import Framework
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.recompute import Recompute
from moemodel.model.plan.stage_layers import EndSlots, EndStages, cut_as_said, cut_by_cost
from moemodel.model.results.measured import BESIDE_THE_ALLOCATOR
from moemodel.model.schedule.pipeline_layout import stages
from moemodel.model.step.memory import MemoryModel
from studies.runs import llama_405b

B200 = "b200-measured/training.json"
GOLDEN = "megatron-golden/cases.jsonl"
NANOTRON = "nanotron/plans.csv"
_GiB = 2.0**30


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """One run.

    Attributes:
        label: names it in a table.
        architecture, plan: what ran; columns of `PlanBatch`, of which those left out are 1 or nothing.
        framework: that ran it.
        gpu: on which.
        stage: of the pipeline that was measured, from 0; None: the fullest.
        measured_B: the allocator's count; NaN where the run is only known to have run or not.
        ran: it did, rather than run out of memory.
    """

    label: str
    architecture: Architecture
    plan: Mapping[str, float]
    framework: Framework
    gpu: str = "h100-sxm-80gb"
    stage: int | None = None
    measured_B: float = np.nan
    ran: bool = True


@dataclass(frozen=True, kw_only=True)
class PredictedMemory:
    """Of one run: what the allocator should count, and all that the GPU should hold, B."""

    allocated_B: float
    peak_B: float


_REST: dict[str, float] = dict.fromkeys(("dp", "tp", "pp", "ep", "cp", "virtual_stages", "skew", "micro_batch"), 1)
_REST |= {"zero_stage": 0, "sequence_parallel": 0, "recompute": Recompute.NONE, "schedule": 0}
_REST |= {"clock_Hz": np.inf, "power_cap_W": np.inf}


def predicted(row: MemoryRow) -> PredictedMemory:
    """Of one run, on its device."""
    plans = PlanBatch.of(**_REST | dict(row.plan))
    model = MemoryModel(
        row.architecture,
        plans,
        framework=row.framework,
        precision="bf16-mixed",
        calibration=shipped(row.gpu),
    )
    classes = stages(row.architecture, int(plans.pp[0]), int(plans.virtual_stages[0]))
    if row.stage is not None:
        classes = tuple(c for c in classes if c.first <= row.stage)[-1:]
    found = [model.stage(stage) for stage in classes]
    allocated = [
        float(memory.peak_B[0] - sum(memory.terms_B[name][0] for name in BESIDE_THE_ALLOCATOR)) for memory in found
    ]
    return PredictedMemory(allocated_B=max(allocated), peak_B=max(float(memory.peak_B[0]) for memory in found))


# ---- B200 -----------------------------------------------------------------------------------------------------------

_B200_SEQ = 4096  # SimuMax's strategies where the case names none
_DEEPSEEK_DENSE = 1  # of its layers, the first (run_pretrain_deepseekv2.sh: MOE_LAYER_FREQ)
_DEEPSEEK_V2_LAYERS = 60
_LLAMA_405B_GROUPS = 16  # run_pretrain_llama3.sh: num_query_groups; the published model has 8


def b200(folder: Path) -> Iterator[MemoryRow]:
    """One row a case and stage."""
    deepseek = read_architecture("deepseek-v3")
    dense = sum(isinstance(layer.feed_forward, Mlp) for layer in deepseek.decoder)
    models = {
        "llama3-70b": read_architecture("llama-3-70b"),
        "llama3-405b": _with_kv_heads(llama_405b(), _LLAMA_405B_GROUPS),
        "deepseekv2": _deepseek_v2(deepseek),
        "deepseekv3": deepseek,
    }
    first = dict.fromkeys(("deepseekv2", "deepseekv3"), dense - _DEEPSEEK_DENSE)
    for case in json.loads((folder / B200).read_text(encoding="utf-8")):
        name, model = str(case["case"]), str(case["model"])
        start, layers = first.get(model, 0), _number(name, "l", 1)
        degrees = {axis: _number(name, axis, 1) for axis in ("tp", "pp", "dp", "cp", "ep")}
        plan = degrees | {
            "zero_stage": 1,
            "sequence_parallel": int(degrees["tp"] > 1),
            "global_batch": _number(name, "mbc", 1) * degrees["dp"],
            "seq": _number(name, "seq", _B200_SEQ),
        }
        known = models[model]
        ranks = [rank["max_allocated_mb"] * 2.0**20 for rank in case["peak_memory_by_rank_mb"].values()]
        per_stage = len(ranks) // degrees["pp"]
        for stage in range(degrees["pp"]):
            yield MemoryRow(
                label=f"{name} stage {stage}",
                architecture=replace(known, decoder=known.decoder[start : start + layers]),
                plan=plan,
                framework=replace(framework_of("megatron"), workspace_B={"others": _products_B("b200")}),
                gpu="b200-sxm-180gb",
                stage=stage,
                measured_B=max(ranks[stage * per_stage : (stage + 1) * per_stage]),
            )


def _with_kv_heads(model: Architecture, heads: int) -> Architecture:
    """The same with so many heads of keys and values in every layer."""
    layers = tuple(
        replace(layer, attentions=tuple(replace(attention, kv_heads=heads) for attention in layer.attentions))
        for layer in model.decoder
    )
    return replace(model, decoder=layers)


def _deepseek_v2(v3: Architecture) -> Architecture:
    """DeepSeek-V2 (its config.json on Hugging Face), of whose 60 layers the first is dense as the first three of V3."""

    def layer(known: Layer) -> Layer:
        if isinstance(known.feed_forward, Moe):
            sizes = replace(known.feed_forward, experts=160, top_k=6, width=1536, shared_width=3072)
            return replace(known, feed_forward=replace(sizes, router="softmax_topk", score_correction=False))
        return replace(known, feed_forward=replace(known.own_feed_forward, width=12288))

    layers = tuple(map(layer, v3.decoder[:_DEEPSEEK_V2_LAYERS]))
    return replace(
        v3, name="deepseek-v2", hidden=5120, embedding_width=5120, vocab=102400, decoder=layers, multi_token=()
    )


def _number(case: str, key: str, missing: int) -> int:
    found = re.search(rf"(?:^|_){key}(\d+)(?:_|$)", case)
    return missing if found is None else int(found[1])


# ---- Megatron-LM's functional tests ---------------------------------------------------------------------------------

_VOCABULARY = 50257  # of GPT-2's tokenizer, their default
# What changes memory in ways that no plan here says
_OTHERS: tuple[str, ...] = (
    *("--optimizer", "--spec", "--mtp-num-layers", "--multi-latent-attention", "--use-megatron-fsdp", "--fp8-format"),
    "--cross-entropy-loss-fusion",
    *("--encoder-num-layers", "--vocab-size", "--tokenizer-type"),
    *("--num-experts", "--hybrid-layer-pattern"),
)
_GPUS, _GPUS_GB200 = 8, 4  # of a node of its runners
_GPU = {"a100": "a100-sxm-80gb", "h100": "h100-sxm-80gb", "gb200": "gb200-186gb"}


def golden(folder: Path) -> Iterator[MemoryRow]:
    """Dense GPT in bf16 on one node, whose memory follows from the arguments."""
    with (folder / GOLDEN).open(encoding="utf-8") as lines:
        for case in map(json.loads, lines):
            a, name, file = case["args"], str(case["case"]), str(case["file"])
            plain = _plain_attention(a, file)
            if plain is None or case.get("max_allocated_B") is None:
                continue
            excluded = any(key in a for key in _OTHERS) or re.search("release|uninstall|grpo", name)
            if not name.startswith("gpt/") or excluded or "--bf16" not in a or "_2nd" in file:
                continue
            yield _golden_row(case, a, plain=plain)


def _plain_attention(a: Mapping[str, Any], file: str) -> bool | None:
    """Whether attention is several kernels; None: the arguments don't say, and older libraries chose otherwise."""
    if a.get("--transformer-impl") == "local" or a.get("--attention-backend") == "unfused":
        return True
    return False if a.get("--attention-backend") == "flash" or "_dev_" in file else None


def _products_B(gpu: str, *, configured: bool = False) -> float:
    """Workspaces of Transformer Engine, and of torch's two threads before it took Blackwell for Hopper; `configured`:
    to 8 of 4 MiB each (CUBLAS_WORKSPACE_CONFIG)."""
    engine, torch = (4.0, 8.125) if gpu == "a100" else (32.0, 8.125 if gpu == "b200" else 32.0)
    return (engine + 2 * (32.0 if configured else torch)) * 2.0**20


def _golden_row(case: Mapping[str, Any], a: Mapping[str, Any], *, plain: bool) -> MemoryRow:
    tp, pp, cp = (int(a.get(f"--{key}-parallel-size") or 1) for key in ("tensor-model", "pipeline-model", "context"))
    per_chunk = a.get("--num-layers-per-virtual-pipeline-stage")
    virtual = a.get("--num-virtual-stages-per-pipeline-rank") or (
        1 if per_chunk is None else a["--num-layers"] // pp // per_chunk
    )
    dropout = float(a.get("--hidden-dropout", 0.1)) > 0
    workspace_B = _products_B(case["gpu"], configured="CUBLAS_WORKSPACE_CONFIG" in case["env"])
    framework = replace(
        framework_of("megatron"), flash_attention=not plain, dropout=dropout, workspace_B={"others": workspace_B}
    )
    one_node = case["gpu"] == "gb200" and "1node" in case["case"]
    return MemoryRow(
        label=f"{case['case']} {case['gpu']} {case['file']}",
        architecture=_as_cut(_gpt(a, tp), a, pp=pp, virtual=virtual),
        plan={
            "dp": (_GPUS_GB200 if one_node else _GPUS) // (tp * pp * cp),
            "tp": tp,
            "pp": pp,
            "cp": cp,
            "virtual_stages": virtual,
            "zero_stage": int("--use-distributed-optimizer" in a),
            "replicas": int(a.get("--num-distributed-optimizer-instances") or 1),
            "sequence_parallel": int("--sequence-parallel" in a),
            "micro_batch": a["--micro-batch-size"],
            "global_batch": a["--global-batch-size"],
            "seq": a["--seq-length"],
            "recompute": Recompute.FULL if a.get("--recompute-granularity") == "full" else Recompute.NONE,
        },
        framework=framework,
        gpu=_GPU[case["gpu"]],
        stage=pp - 1,
        measured_B=float(case["max_allocated_B"]),
    )


def _as_cut(model: Architecture, a: Mapping[str, Any], *, pp: int, virtual: int) -> Architecture:
    """Into stages, as the arguments say."""
    slots = [int(f"--account-for-{end}-in-pipeline-split" in a) for end in ("embedding", "loss")]
    ends = [a.get(f"--decoder-{end}-pipeline-num-layers") for end in ("first", "last")]
    if any(slots):
        return cut_as_said(model, EndSlots(embedding=slots[0], head=slots[1]), pp=pp, virtual=virtual)
    if ends == [None, None]:
        return model
    return cut_as_said(model, EndStages(first=ends[0], last=ends[1]), pp=pp, virtual=virtual)


def _gpt(a: Mapping[str, Any], tp: int) -> Architecture:
    hidden, heads, gated = a["--hidden-size"], a["--num-attention-heads"], "--swiglu" in a
    rotary = a.get("--position-embedding-type") == "rope" or "--use-rotary-position-embeddings" in a
    bias, multiple = "--disable-bias-linear" not in a, 128 * tp
    width = int(4 * hidden * 2 / 3) // 64 * 64 if gated else 4 * hidden
    attention = Attention(
        heads=heads, kv_heads=heads, head_dim=hidden // heads, bias_qkv=bias, bias_out=bias, rotary=rotary
    )
    layer = Layer(
        attentions=(attention,),
        feed_forward=Mlp(
            width=a.get("--ffn-hidden-size", width), activation="silu" if gated else "gelu", gated=gated, bias=bias
        ),
        norm="layer",
        norm_bias=True,
    )
    return Architecture(
        name="gpt",
        hidden=hidden,
        vocab=-(-_VOCABULARY // multiple) * multiple,
        embedding_width=hidden,
        tied="--untie-embeddings-and-output-weights" not in a,
        learned_positions=0 if rotary else a["--max-position-embeddings"],
        decoder=(layer,) * a["--num-layers"],
    )


# ---- nanotron -------------------------------------------------------------------------------------------------------


def nanotron(folder: Path) -> Iterator[MemoryRow]:
    """Rows without a pipeline, and those with one after its memory was mended (`after_pp_fix`)."""
    table = pd.read_csv(folder / NANOTRON)
    known: dict[tuple[int, int], Architecture] = {}
    for record in table.to_dict("records"):
        if record["pp"] > 1 and not record["after_pp_fix"]:
            continue
        hidden, layers = int(record["hidden_size"]), int(record["num_layers"])
        architecture = known.setdefault((hidden, layers), _llama_like(record))
        tp, dp, micro_batch = (int(record[key]) for key in ("tp", "dp", "mbs"))
        yield MemoryRow(
            label=f"{hidden} dp{dp} tp{tp} pp{record['pp']} zero{record['zero_stage']} mb{micro_batch}",
            architecture=architecture,
            plan={
                "dp": dp,
                "tp": tp,
                "pp": int(record["pp"]),
                "zero_stage": int(record["zero_stage"]),
                "sequence_parallel": int(tp > 1),
                "micro_batch": micro_batch,
                "global_batch": micro_batch * dp * int(record["batch_accum"]),
                "seq": int(record["seq_len"]),
            },
            framework=framework_of("nanotron"),
            measured_B=float(record["Mem Res (GB)"]) * _GiB,
            ran=record["status"] == "Success",
        )


def _llama_like(record: Mapping[Any, Any]) -> Architecture:
    hidden, heads = int(record["hidden_size"]), int(record["num_heads"])
    layer = Layer(
        attentions=(Attention(heads=heads, kv_heads=heads, head_dim=hidden // heads),),
        feed_forward=Mlp(width=int(record["interm_dim"]), activation="silu", gated=True),
        norm="rms",
    )
    small = hidden == 2048  # the model whose embedding is shared
    llama = Architecture(
        name=f"llama-{hidden}",
        hidden=hidden,
        vocab=int(record["vocab_size"]),
        embedding_width=hidden,
        tied=small,
        decoder=(layer,) * int(record["num_layers"]),
    )
    return cut_by_cost(llama)
