"""Megatron-LM on eight B200 (SimuMax): a run a stage, whose memory was read; the step time stands with the first.

A case's name spells its plan: l layers, mbc micro-batches. SimuMax's scripts
(run_pretrain_llama3.sh, run_pretrain_deepseekv2.sh) give the rest: distributed optimizer, sequence parallelism with
tp, 4,096 tokens, 16 heads of keys and values in Llama 3 405B, one dense layer in both DeepSeeks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moemodel.model.plan.spec import Plan
from studies.public.models import config_file
from studies.public.run import PublicRun, plan_or_refusal

B200 = "b200-measured/training.json"
_MiB = 2.0**20
_DEGREES = ("tp", "pp", "dp", "cp", "ep")

# deepseek-ai/DeepSeek-V2 and -V3, config.json, but for the layers
_DEEPSEEK: Mapping[str, Any] = {
    "model_type": "deepseek_v3",
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "first_k_dense_replace": 1,
    "tie_word_embeddings": False,
}
_V2 = {"vocab_size": 102400, "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536}
_V2 |= {"n_routed_experts": 160, "num_experts_per_tok": 6, "n_shared_experts": 2}
_V3 = {"vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048}
_V3 |= {"n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1}
_LLAMA: Mapping[str, Any] = {"model_type": "llama", "vocab_size": 128256, "tie_word_embeddings": False}
_70B = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8}
_405B = {"hidden_size": 16384, "intermediate_size": 53248, "num_attention_heads": 128, "num_key_value_heads": 16}
_CONFIGS: dict[str, Mapping[str, Any]] = {
    "llama3-70b": {**_LLAMA, **_70B},
    "llama3-405b": {**_LLAMA, **_405B},
    "deepseekv2": {**_DEEPSEEK, **_V2},
    "deepseekv3": {**_DEEPSEEK, **_V3},
}


def b200(folder: Path) -> list[PublicRun]:
    """All cases."""
    cases = json.loads((folder / B200).read_text(encoding="utf-8"))
    return [run for case in cases for run in _runs(case)]


def _runs(case: Mapping[str, Any]) -> Iterator[PublicRun]:
    if str(case["model"]) not in _CONFIGS:
        why = f"{case['model']} is no model that is known here"
        yield PublicRun(label=str(case["case"]), plans=(why,), time_s=(case["real_ms"] * 1e-3,), is_read=False)
        return
    plan = plan_or_refusal(_document(case))
    stages = plan.parallel.pp if isinstance(plan, Plan) else 1
    ranks = [rank["max_allocated_mb"] * _MiB for rank in case["peak_memory_by_rank_mb"].values()]
    each = len(ranks) // stages
    for stage in range(stages):
        yield PublicRun(
            label=f"{case['case']} stage {stage}",
            plans=(plan,),
            time_s=() if stage else (case["real_ms"] * 1e-3,),
            memory_B=max(ranks[stage * each : (stage + 1) * each]),
            stage=stage,
        )


def _document(case: Mapping[str, Any]) -> dict[str, Any]:
    name, layers = str(case["case"]), _number(str(case["case"]), "l", 1)
    degrees = {axis: _number(name, axis, 1) for axis in _DEGREES}
    gpus = degrees["tp"] * degrees["pp"] * degrees["dp"] * degrees["cp"]
    return {
        "architecture": _architecture(str(case["model"]), layers),
        "sequence_length": _number(name, "seq", 4096),
        "global_batch": _number(name, "mbc", 1) * degrees["dp"],
        "backend": "megatron",
        "cluster": {"gpu": "b200-sxm-180gb", "gpus": gpus},
        "parallel": degrees
        | {"virtual_stages": int(case.get("vp_size", 1)), "zero_stage": 1, "sequence_parallel": degrees["tp"] > 1},
    }


def _architecture(name: str, layers: int) -> str:
    return config_file(f"{name}-l{layers}", {**_CONFIGS[name], "num_hidden_layers": layers})


def _number(case: str, key: str, missing: int) -> int:
    found = re.search(rf"(?:^|_){key}(\d+)(?:_|$)", case)
    return missing if found is None else int(found[1])
