"""Published tables of step times as plans that a user would write.

    fsdp          llm-foundry's dense GPTs under FSDP on H100, in bf16 and in fp8
    foundry_a100  the same on A100, in 2023 or in 2022
    sailor        models under Megatron-DeepSpeed on GH200

A row of a model, or of a plan, that is not known here is named, and not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from studies.public.models import config_file, model, mpt
from studies.public.run import PublicRun, plan_or_refusal
from studies.runs import FSDP, SHARDED

SAILOR = "gh200-iteration-times"
FOUNDRY_A100 = Path(__file__).parents[2] / "measured" / "llm-foundry-a100.csv"


def fsdp(folder: Path, precision: str) -> list[PublicRun]:
    """llm-foundry's rows on H100 in a precision, as its file calls it."""
    return _fsdp_table(folder / FSDP, precision)


def foundry_a100(year: Literal[2022, 2023]) -> list[PublicRun]:
    """llm-foundry's rows of October 2023, all on eight A100 80 GB; or those of 2022, all on A100 40 GB but two of 70 B.

    In 2022 gradients travelled in 16 bits (MP Mode, PURE), which no plan of `fsdp-1.13` says.
    """
    return _fsdp_table(FOUNDRY_A100, {2022: "bf16", 2023: "amp_bf16"}[year])  # Composer's name before 0.12, and after


def _fsdp_table(file: Path, precision: str) -> list[PublicRun]:
    table = pd.read_csv(file)
    return list(_fsdp_runs(table[table["Precision"] == precision].to_dict("records")))


# Composer's amp_fp8 casts in Transformer Engine's layers, which of the frameworks here megatron-core runs
_FSDP_GPUS = {"h100_80gb": "h100-sxm-80gb", "a100_80gb": "a100-sxm-80gb", "a100_40gb": "a100-sxm-40gb"}
_FSDP_SOFTWARE = {
    "bf16": {"precision": "bf16-mixed", "backend": "fsdp-1.13"},
    "amp_bf16": {"precision": "bf16-mixed", "backend": "fsdp"},
    "amp_fp8": {"precision": "fp8", "backend": "fsdp"},
}

# "1600 Gbps node-node interconnect (RoCE)", of eight GPUs, is all that is said; 10 us as of any Ethernet
_A100_NETWORK = {"internode": {"network": "ethernet", "bandwidth_GBps": 25, "latency_us": 10}}


def _fsdp_runs(records: Iterable[Mapping[Any, Any]]) -> Iterator[PublicRun]:
    for r in records:
        gpus, seq, batch = (int(r[name]) for name in ("# GPUs", "SeqLen (T)", "GlobalBatchSize"))
        gpu = _FSDP_GPUS[str(r["GPU"])]
        label, architecture = f"{r['Model']} seq{seq} x{gpus} mb{r['MicroBatchSize']}", mpt(str(r["Model"]), seq)
        time_s = (batch * seq / gpus / float(r["Throughput (T/s/GPU)"]),)
        if architecture is None:
            yield PublicRun(label=label, plans=("of no size that is known here",), time_s=time_s, is_read=False)
            continue
        document = {
            "architecture": architecture,
            "sequence_length": seq,
            "global_batch": batch,
            "micro_batch": int(r["MicroBatchSize"]),
            **_FSDP_SOFTWARE[str(r["Precision"])],
            "recompute": "full" if r["Activation Checkpointing"] else "none",
            "cluster": {"gpu": gpu, "gpus": gpus, **(_A100_NETWORK if gpu.startswith("a100") and gpus > 8 else {})},
            "parallel": {"dp": gpus, "zero_stage": SHARDED[str(r["Sharding Strategy"])]},
        }
        yield PublicRun(label=label, plans=(plan_or_refusal(document),), time_s=time_s)


# OPT-350M as Sailor's Megatron-DeepSpeed builds it (opt_model.py): norms first, no projections, a head of its own, and
# GPT-2's vocabulary, padded to a multiple of 128 tp = 512
_OPT = {
    "model_type": "opt",
    "vocab_size": 50688,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "ffn_dim": 4096,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


def sailor(folder: Path) -> list[PublicRun]:
    """Sailor's runs on nodes of four GH200, a file a model, whose memory nvidia-smi was asked for.

    What its script and container say stands in `studies.runs.gh200`.
    """
    files = sorted((folder / SAILOR).glob("*.csv"))
    return [_sailor_run(file.stem, record) for file in files for record in pd.read_csv(file).to_dict("records")]


def _sailor_run(name: str, r: Mapping[Any, Any]) -> PublicRun:
    dp, tp, pp = (int(r[degree]) for degree in ("dp", "tp", "pp"))
    is_opt = name == "opt_350m"
    document = {
        "architecture": config_file("opt-350m-sailor", _OPT) if is_opt else model(name.replace("_2_7b", "_2.7b")),
        "sequence_length": int(r["sequence_length"]),
        "global_batch": int(r["global_batch"]),
        "micro_batch": int(r["micro_batch"]),
        "precision": "fp32",
        "backend": "megatron-deepspeed",
        # stages of 4, 7, 7, 6 and 11, 13 layers (sailor/Planner/simulations/validation/clariden/OPT-350)
        "stage_layers": {"embedding": 2} if is_opt else None,
        "cluster": {"gpu": "gh200-96gb", "gpus": dp * tp * pp, "gpus_per_node": 4, "internode": "slingshot-11"},
        "parallel": {"dp": dp, "tp": tp, "pp": pp},
    }
    return PublicRun(
        label=f"{name} dp{dp} tp{tp} pp{pp} mb{r['micro_batch']}",
        plans=(plan_or_refusal(document),),
        time_s=(float(r["iteration_s"]),),
        memory_B=float(r["peak_memory_B"]),
        of_memory="device",
    )
