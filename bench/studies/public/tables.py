"""Published tables of step times that `studies.runs` reads, as plans that a user would write.

    fsdp       llm-foundry's dense GPTs under FSDP, in bf16 and in fp8
    sailor     models under Megatron-DeepSpeed on GH200
    mlperf     MLPerf Training submissions on H100 and H200

A row of a model, or of a plan, that is not known here is named, and not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from studies.public.models import config_file, model, mpt
from studies.public.run import PublicRun, plan_or_refusal
from studies.runs import FSDP, MLPERF, MLPERF_PLANS, SHARDED, TIMED

SAILOR = "gh200-iteration-times"


def fsdp(folder: Path, precision: str) -> list[PublicRun]:
    """llm-foundry's rows in a precision, as its file calls it."""
    table = pd.read_csv(folder / FSDP)
    return list(_fsdp_runs(table[table["Precision"] == precision].to_dict("records")))


# Composer's amp_fp8 casts in Transformer Engine's layers, which of the frameworks here megatron-core runs
_FSDP_GPUS = {"h100_80gb": "h100-sxm-80gb", "a100_80gb": "a100-sxm-80gb", "a100_40gb": "a100-sxm-40gb"}
_FSDP_SOFTWARE = {
    "amp_bf16": {"precision": "bf16-mixed", "backend": "fsdp"},
    "amp_fp8": {"precision": "fp8", "backend": "fsdp"},
}


def _fsdp_runs(records: Iterable[Mapping[Any, Any]]) -> Iterator[PublicRun]:
    for r in records:
        gpus, seq, batch = (int(r[name]) for name in ("# GPUs", "SeqLen (T)", "GlobalBatchSize"))
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
            "cluster": {"gpu": _FSDP_GPUS[str(r["GPU"])], "gpus": gpus},
            "parallel": {"dp": gpus, "zero_stage": SHARDED[str(r["Sharding Strategy"])]},
        }
        yield PublicRun(label=label, plans=(plan_or_refusal(document),), time_s=time_s)


# model, and how its pipeline is cut: account_for_embedding_in_pipeline_split, and of the loss
_MLPERF: dict[str, tuple[str, dict[str, int] | None]] = {
    "gpt3": ("gpt3-mlperf", None),
    "llama31_405b": ("llama-3.1-405b", {"embedding": 1, "head": 1}),
    "llama31_8b": ("llama-3-8b", None),
}

# What configurations and programs beside the results set (mlcommons/training_results_v3.1 and _v5.1). All: conf/
# custom.yaml, fp8_recipe delayed (in v3.1 nothing else was there) but HPE, whose config_common.sh says tensorwise;
# 8-bit weights (FP8_PARAMS, FP8_PARAM_GATHER). gpt3, llama31_405b: TP_COMM_OVERLAP. Losses of v5.1 are MCore's own
# fusion (cross_entropy_fusion_impl) but HPE's (CE_FUSION_IMPL te); pretrain.py of Cisco and Nebius looks at gradients
# (check_for_nan_in_grad). Their `bucket_size` of 64 and 200 are parameters. Nebius' and HPE's communication callback
# replaces it by 128 Mi (NeMo, megatron_comm_overlap.py); Cisco's is commented out, and with it overlap of tensor
# parallelism. HPE's steps are CUDA graphs (config_common_cg.sh), its attention of 8 bits is not modelled. Cisco's nodes
# have 400 Gb Ethernet (systems/hpf_n8.json)
_CISCO: dict[str, Any] = {
    "fp8_recipe": "delayed",
    "parameter_dtype": "fp8",
    "tp_comm_overlap": False,
    "cross_entropy": "compiled",
    "bucket_parameters": 64,
    "gradient_checks": True,
}
_MLPERF_SOFTWARE: dict[tuple[str, str], dict[str, Any]] = {
    ("gpt3", ""): {"fp8_recipe": "delayed", "tp_comm_overlap": True},
    ("llama31_405b", "Nebius"): {
        "fp8_recipe": "delayed",
        "parameter_dtype": "fp8",
        "tp_comm_overlap": True,
        "cross_entropy": "compiled",
        "bucket_parameters": 2**27,
        "gradient_checks": True,
    },
    ("llama31_8b", "Cisco"): _CISCO,
    ("llama31_8b", "HPE"): {"parameter_dtype": "fp8", "cuda_graphs": True, "bucket_parameters": 2**27},
}
_MLPERF_NETWORKS = {"Cisco": "ethernet-400g"}


def mlperf(folder: Path) -> list[PublicRun]:
    """Of each system the median step; plans by the configurations beside the results (`studies.runs`)."""
    table = pd.read_csv(folder / MLPERF)
    timed = table[table["stat_key"].map(lambda key: TIMED.fullmatch(str(key)) is not None)]
    sets = timed.groupby(["benchmark", "submitter", "system"], sort=False)
    return [_mlperf_run(str(b), str(by), str(system), results) for (b, by, system), results in sets]


def _mlperf_run(benchmark: str, submitter: str, system: str, results: pd.DataFrame) -> PublicRun:
    first, time_s = results.iloc[0], (float(results["median"].median()),)
    gpus = int(first["nodes"]) * int(first["acc_per_node"])
    label = f"{benchmark} {submitter} {system} x{gpus}"
    degrees = MLPERF_PLANS.get((benchmark, ""), MLPERF_PLANS.get((benchmark, system)))
    if benchmark not in _MLPERF or degrees is None:
        why = "no model or no plan of it is known here"
        return PublicRun(label=label, plans=(why,), time_s=time_s, is_read=False)
    tp, pp, cp, vp = degrees
    name, stage_layers = _MLPERF[benchmark]
    cluster = {"gpu": "h200-sxm-141gb" if "H200" in str(first["accelerator"]) else "h100-sxm-80gb", "gpus": gpus}
    if submitter in _MLPERF_NETWORKS:
        cluster["internode"] = _MLPERF_NETWORKS[submitter]
    document = {
        "architecture": model(name),
        "sequence_length": int(first["seq"]),
        "global_batch": int(first["gbs"]),
        "precision": "fp8",
        "backend": "megatron-core",
        "stage_layers": stage_layers,
        "cluster": cluster,
        **_MLPERF_SOFTWARE.get((benchmark, ""), _MLPERF_SOFTWARE.get((benchmark, submitter), {})),
        "parallel": {
            "dp": gpus // (tp * pp * cp),
            "tp": tp,
            "pp": pp,
            "cp": cp,
            "virtual_stages": vp,
            "zero_stage": 1,
            "sequence_parallel": tp > 1,
        },
    }
    return PublicRun(label=label, plans=(plan_or_refusal(document),), time_s=time_s)


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
