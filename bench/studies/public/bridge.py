"""Megatron-Bridge's tables of tokens per second, on H100 and on Blackwell, as plans that a user would write.

What the rows leave out stands in the configurations of their releases (`studies.bridge_recipes`). Loads are balanced by
force (moe_router_force_load_balancing), or by dropping. Weights are in 8 bits beside products of 8 (fp8_param_gather of
training/mixed_precision.py, in all releases); where Llama is fine-tuned, their other order is made in every pass
(disable_parameter_transpose_cache of llama3_llm_finetune.py). Rows of LoRA train adapters of rank 32
(recipes/common.py) on linear_qkv (the same configurations). DeepSeek-V3 and Nemotron 3 Super train modules of
multi-token prediction too (layouts with an m; nemotron_3_super.py: mtp_num_layers).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from moemodel.model.plan.spec import EIGHT_BITS
from studies.bridge_recipes import H100, recipe
from studies.public.models import model
from studies.public.run import PublicRun, plan_or_refusal
from studies.runs import BLACKWELL, BLACKWELL_COLUMNS, BRIDGE, SYSTEMS, degree

# by letters and digits of the table's name, without what stands in brackets
_MODELS = {
    "llama38b": "llama-3-8b",
    "llama370b": "llama-3-70b",
    "llama31405b": "llama-3.1-405b",
    "gptoss120b": "gpt-oss-120b",
    "qwen330ba3b": "qwen3-30b-a3b",
    "qwen3235ba22b": "qwen3-235b-a22b",
    "deepseekv3": "deepseek-v3",
    "kimik2": "kimi-k2",
    "mixtral8x7b": "mixtral-8x7b",
    "nemotron3nano": "nemotron-3-nano",
    "nemotron3super": "nemotron-3-super",
}
_DENSE = ("llama-3-8b", "llama-3-70b", "llama-3.1-405b")
# account_for_embedding_in_pipeline_split, and of the loss (recipes/llama, recipes/qwen/qwen3_moe.py); layouts of
# DeepSeek-V3 and Kimi-K2 such as "Et|(tt|)*30mL" (perf_recipes/*/h100): 61 layers, and three for the ends
_STAGE_LAYERS = {
    "llama-3.1-405b": {"embedding": 1, "head": 1},
    "qwen3-235b-a22b": {"embedding": 1, "head": 1},
    "deepseek-v3": {"embedding": 1, "head": 2},
    "kimi-k2": {"embedding": 1, "head": 2},
}
_WITH_MODULES = ("deepseek-v3", "nemotron-3-super")


def bridge(folder: Path, *, experts: bool) -> list[PublicRun]:
    """Runs on H100, of dense models or of those with experts; what is neither read stands with the latter."""
    table = pd.read_csv(folder / BRIDGE).to_dict("records")
    return [_run(record, H100) for record in table if (_name(record) in _DENSE) is not experts]


def blackwell(folder: Path) -> list[PublicRun]:
    """Runs on Blackwell."""
    table = pd.read_csv(folder / BLACKWELL).rename(columns=BLACKWELL_COLUMNS | {"task": "mode"}).to_dict("records")
    return [_run(record, SYSTEMS[str(record["system"])]) for record in table]


def _name(record: Mapping[Any, Any]) -> str | None:
    return _MODELS.get(re.sub(r"[^a-z0-9]", "", str(record["model"]).split(" (")[0].lower()))


def _run(record: Mapping[Any, Any], gpu: str) -> PublicRun:
    gpus, batch, seq = (int(record[key]) for key in ("gpus", "gbs", "seq"))
    named, name = str(record["model"]), _name(record)
    label = f"{named} x{gpus} {record['precision']} {str(record['release']).split()[0]} {gpu}"
    time_s = (batch * seq / (gpus * float(record["tok_s_gpu"])),)
    if name is None:
        return PublicRun(label=label, plans=(f"{named} is no model that is read here",), time_s=time_s, is_read=False)
    return PublicRun(label=label, plans=(plan_or_refusal(_document(record, name, gpu)),), time_s=time_s)


def _document(record: Mapping[Any, Any], name: str, gpu: str) -> dict[str, Any]:
    gpus = int(record["gpus"])
    tp, pp, cp, vp, ep = (degree(record[key]) for key in ("tp", "pp", "cp", "vp", "ep"))
    release = str(record["release"]).split()[0]
    used = recipe(name, gpu, release)
    pp, ep = used.pp or pp, used.ep or ep
    precision, mode = _precision(str(record["precision"]).lower()), str(record["mode"]).split()[0]
    is_cast = precision in EIGHT_BITS
    return {
        "sequence_length": int(record["seq"]),
        "global_batch": int(record["gbs"]),
        "micro_batch": used.micro_batch or int(record["mbs"]),
        "precision": precision,
        "transpose_cache": False if is_cast and mode in ("SFT", "LoRA") else None,
        "lora": {"rank": 32, "targets": ["qkv"]} if mode == "LoRA" else None,
        **as_released(name, gpu, release, precision),
        "cluster": {"gpu": gpu, "gpus": gpus},
        "parallel": {
            "dp": gpus // (tp * pp * cp),
            "tp": tp,
            "pp": pp,
            "cp": cp,
            "ep": ep,
            "virtual_stages": used.virtual_stages or vp,
            "zero_stage": 3 if degree(record["fsdp"]) > 1 else 1,
            "sequence_parallel": tp > 1,
        },
    }


def as_released(name: str, gpu: str, release: str, precision: str) -> dict[str, Any]:
    """Of a plan of a model in this precision, what a release's configuration says beside degrees and batches; exchanges
    of tensor parallelism of 4 bits stay exposed (configs/llama/llama31_llm_pretrain.py)."""
    used = recipe(name, gpu, release)
    return {
        "architecture": model(name),
        "parameter_dtype": "fp8" if precision in EIGHT_BITS else None,
        "recompute": used.recompute,
        "backend": "megatron-core",
        "stage_layers": _STAGE_LAYERS.get(name),
        "multi_token": True if name in _WITH_MODULES else None,
        "cuda_graphs": used.cuda_graphs,
        "tp_comm_overlap": False if precision == "nvfp4" else used.tp_overlap,
        "routing": used.routing,
    }


def _precision(said: str) -> str:
    """In a plan's words: scaling of a tensor (CS, current; DS, delayed), of blocks (MX), or nothing said, which its
    release's configurations for the H100 give as fp8 (v0.1.0rc4)."""
    if said == "bf16":
        return "bf16-mixed"
    return {"fp8-mx": "mxfp8", "mxfp8": "mxfp8", "nvfp4": "nvfp4"}.get(said, "fp8")
