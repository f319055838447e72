"""Published tables of step times that `studies.runs` reads, as plans that a user would write.

    fsdp       llm-foundry's dense GPTs under FSDP, in bf16 and in fp8
    bridge     Megatron-Bridge on H100: dense models, and those with experts
    blackwell  the same on B200, B300, GB200 and GB300
    mlperf     MLPerf Training submissions on H100 and H200

What a row's software does that a plan cannot say is named in `studies.runs` and left to the framework.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from moemodel.model.plan.recompute import recompute_name
from studies.public.models import model, mpt
from studies.public.run import PublicRun, plan_or_refusal
from studies.runs import FSDP, SHARDED, Row, Study, bridge, bridge_blackwell, mlperf

_MODELS = {  # by the names that `studies.runs` gives them
    "LLAMA3_8B": "llama-3-8b",
    "LLAMA3_70B": "llama-3-70b",
    "LLAMA3.1_405B": "llama-3.1-405b",
    "GPT OSS 120B": "gpt-oss-120b",
    "Qwen3_30B_a3B": "qwen3-30b-a3b",
    "Qwen3_235B_a22B": "qwen3-235b-a22b",
    "DeepSeekV3": "deepseek-v3",
    "gpt3": "gpt3-mlperf",
    "llama31_405b": "llama-3.1-405b",
    "llama31_8b": "llama-3-8b",
}
_DEGREES = ("dp", "tp", "pp", "cp", "ep", "virtual_stages", "zero_stage")


def fsdp(folder: Path, precision: str) -> list[PublicRun]:
    """llm-foundry's rows in a precision, as its file calls it."""
    table = pd.read_csv(folder / FSDP)
    return list(_fsdp_runs(table[table["Precision"] == precision].to_dict("records")))


# Composer's amp_fp8 casts in Transformer Engine's layers, which of the frameworks here megatron-core runs
_FSDP_SOFTWARE = {
    "amp_bf16": {"precision": "bf16-mixed", "backend": "torch"},
    "amp_fp8": {"precision": "fp8", "backend": "megatron-core"},
}


def _fsdp_runs(records: Iterable[Mapping[Any, Any]]) -> Iterator[PublicRun]:
    for r in records:
        gpus, seq, batch = (int(r[name]) for name in ("# GPUs", "SeqLen (T)", "GlobalBatchSize"))
        document = {
            "architecture": mpt(str(r["Model"]), seq),
            "sequence_length": seq,
            "global_batch": batch,
            "micro_batch": int(r["MicroBatchSize"]),
            **_FSDP_SOFTWARE[str(r["Precision"])],
            "recompute": "full" if r["Activation Checkpointing"] else "none",
            "cluster": {"gpu": "h100-sxm-80gb", "gpus": gpus},
            "parallel": {"dp": gpus, "zero_stage": SHARDED[str(r["Sharding Strategy"])]},
        }
        yield PublicRun(
            label=f"{r['Model']} seq{seq} x{gpus} mb{r['MicroBatchSize']}",
            plans=(plan_or_refusal(document),),
            time_s=(batch * seq / gpus / float(r["Throughput (T/s/GPU)"]),),
        )


def bridge_runs(folder: Path, *, experts: bool) -> list[PublicRun]:
    """Megatron-Bridge's runs on H100."""
    return _of_study(bridge(folder, experts=experts))


def mlperf_runs(folder: Path) -> list[PublicRun]:
    """Of each system the median step."""
    return _of_study(mlperf(folder))


def _of_study(study: Study) -> list[PublicRun]:
    software = study.software
    return [_run(row, software[row.software].gpu, software[row.software].precision) for row in study.rows]


def blackwell_runs(folder: Path) -> list[PublicRun]:
    """Megatron-Bridge's runs on Blackwell."""
    return [_run(row.row, row.gpu, row.precision, row.gpu) for row in bridge_blackwell(folder)]


def _run(row: Row, gpu: str, precision: str, said: str = "") -> PublicRun:
    p = {key: int(value) for key, value in row.plan.items()}
    document = {
        "architecture": model(_MODELS[row.group]),
        "sequence_length": p["seq"],
        "global_batch": p["global_batch"],
        "micro_batch": p.get("micro_batch", 1),
        "precision": "bf16-mixed" if precision == "bf16" else precision,
        "recompute": recompute_name(p.get("recompute", 0)),
        "backend": "megatron-core",
        "cluster": {"gpu": gpu, "gpus": p["dp"] * p["tp"] * p["pp"] * p["cp"]},
        "routing": {"skew": "balanced"},  # moe_router_force_load_balancing of its configurations; nothing to dense ones
        "parallel": {degree: p.get(degree, 1) for degree in _DEGREES}
        | {"sequence_parallel": bool(p["sequence_parallel"])},
    }
    return PublicRun(label=f"{row.label} {said}".strip(), plans=(plan_or_refusal(document),), time_s=(row.time_s,))
