"""MLPerf Training submissions on H100 and H200, as plans that a user would write.

Of each system the median step; where its logs tell none, as those of LoRA, the batch over the median throughput, which
counts whatever lies between steps, too. Plans are what configurations and programs beside the results set
(mlcommons/training_results_v3.1 and _v5.1). A row of a model, or of a plan, that is not known here is named, and not
read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from studies.public.models import model
from studies.public.run import PublicRun, plan_or_refusal
from studies.runs import MLPERF, MLPERF_PLANS, TIMED

LORA = "llama2_70b_lora"
# model, and how its pipeline is cut: account_for_embedding_in_pipeline_split, and of the loss
_MODELS: dict[str, tuple[str, dict[str, int] | None]] = {
    "gpt3": ("gpt3-mlperf", None),
    "llama31_405b": ("llama-3.1-405b", {"embedding": 1, "head": 1}),
    "llama31_8b": ("llama-3-8b", None),
    LORA: ("llama-2-70b", None),
}

# By conf/custom.yaml operands are scaled by what was largest in steps before (fp8_recipe delayed; in v3.1 nothing else
# was there), but for HPE, whose config_common.sh says tensorwise; weights of v5.1 are in 8 bits (FP8_PARAMS,
# FP8_PARAM_GATHER). gpt3, llama31_405b: TP_COMM_OVERLAP. Losses of v5.1 are MCore's own fusion
# (cross_entropy_fusion_impl) but HPE's (CE_FUSION_IMPL te). pretrain.py of Cisco and Nebius looks at gradients
# (check_for_nan_in_grad); their `bucket_size`, 64 and 200, is in parameters. Nebius' and HPE's callback for
# communication puts 128 Mi in its place (NeMo, megatron_comm_overlap.py); Cisco's is commented out, and with it
# overlap of tensor parallelism. HPE's steps are CUDA graphs (config_common_cg.sh); its attention of 8 bits is not
# modelled.
_DELAYED: dict[str, Any] = {"fp8_recipe": "delayed", "parameter_dtype": "fp8"}
_CHECKED: dict[str, Any] = {**_DELAYED, "cross_entropy": "compiled", "gradient_checks": True}
_SOFTWARE: dict[tuple[str, str], dict[str, Any]] = {
    ("gpt3", ""): {"fp8_recipe": "delayed", "tp_comm_overlap": True},
    ("llama31_405b", "Nebius"): {**_CHECKED, "tp_comm_overlap": True, "bucket_parameters": 2**27},
    ("llama31_8b", "Cisco"): {**_CHECKED, "tp_comm_overlap": False, "bucket_parameters": 64},
    ("llama31_8b", "HPE"): {"parameter_dtype": "fp8", "cuda_graphs": True, "bucket_parameters": 2**27},
}
_NETWORKS = {"Cisco": "ethernet-400g"}  # systems/hpf_n8.json, hpf_n16.json

# LoRA of rank 16 on attention's products (conf/megatron_gpt_peft_tuning_config.yaml: adapter_dim, target_modules),
# weights in 8 bits (fp8_params) whose other order is made in every pass (disable_parameter_transpose_cache), packed
# sequences without bounds (packed_sequence_return_cu_seqlen). Attention of 8 bits (FP8_DPA of Krai's and of Dell's
# XE9680L), dropout of adapters and NVIDIA's VBOOST are not modelled
ADAPTERS: dict[str, Any] = {
    **_DELAYED,
    "transpose_cache": False,
    "lora": {"rank": 16, "targets": ["qkv", "proj"]},
    "sequence_length": 8192,
}
# tp, cp, and what else configurations say: FP8_ACTIVATION, FP8_ACT; LAYER_CUDA_GRAPH; TP_COMM_OVERLAP; SP. Weights of
# the XE9680L are in 16 bits (FP8_PARAM_GATHER 0), and not kept in 8 (CG_WEIGHT_CACHING 0)
_ONE_NODE: tuple[int, int, dict[str, Any]] = (1, 2, {"activation_input_dtype": "fp8"})
_GRAPHS: tuple[int, int, dict[str, Any]] = (4, 2, {"cuda_graphs": True, "tp_comm_overlap": True})
_TP4: tuple[int, int, dict[str, Any]] = (4, 1, {"tp_comm_overlap": True})
_OF_ADAPTERS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "1xC885A_M8-8xH200-SXM-141GB": _ONE_NODE,
    "2xC885A_M8-8xH200-SXM-141GB": (2, 1, {"tp_comm_overlap": False}),
    "hpf_n8": _GRAPHS,
    "hpf_n16": _GRAPHS,
    "1xXE9680x8H200-SXM-141GB": _ONE_NODE,
    "1xXE9680Lx8H200-SXM-141GB": (
        2,
        1,
        {"activation_input_dtype": "fp8", "parameter_dtype": "bf16", "sequence_parallel": False},
    ),
    "Cray-XD670-H200-SXM5-141GB_n2_v5.0": (2, 1, {"tp_comm_overlap": True}),
    "Cray-XD670-H200-SXM5-141GB_n4_v5.0": _TP4,
    "Cray-XD670-H200-SXM5-141GB_n8_v5.0": _TP4,
    "D74H-7U": _ONE_NODE,
}


def mlperf(folder: Path) -> list[PublicRun]:
    """Of each system the median step."""
    table = pd.read_csv(folder / MLPERF)
    known = table[table["stat_key"].map(lambda key: _is_timed(str(key)) or key == "throughput")]
    sets = known.groupby(["benchmark", "submitter", "system"], sort=False)
    return [_run(str(b), str(by), str(system), results) for (b, by, system), results in sets]


def _is_timed(key: str) -> bool:
    return TIMED.fullmatch(key) is not None


def _run(benchmark: str, submitter: str, system: str, results: pd.DataFrame) -> PublicRun:
    first, time_s = results.iloc[0], (_step_s(results),)
    gpus = int(first["nodes"]) * int(first["acc_per_node"])
    label = f"{benchmark} {submitter} {system} x{gpus}"
    said = _said(benchmark, submitter, system, first)
    if said is None:
        why = "no model or no plan of it is known here"
        return PublicRun(label=label, plans=(why,), time_s=time_s, is_read=False)
    return PublicRun(label=label, plans=(plan_or_refusal(said | _cluster(submitter, first, gpus)),), time_s=time_s)


def _step_s(results: pd.DataFrame) -> float:
    """The median of the medians of all runs."""
    steps = results[results["stat_key"].map(lambda key: _is_timed(str(key)))]
    if len(steps):
        return float(steps["median"].median())
    return float(results["gbs"].iloc[0] / results["median"].median())


def _said(benchmark: str, submitter: str, system: str, first: pd.Series[Any]) -> dict[str, Any] | None:
    """A plan without its cluster; None: none is known."""
    degrees = MLPERF_PLANS.get((benchmark, ""), MLPERF_PLANS.get((benchmark, system)))
    software = _SOFTWARE.get((benchmark, ""), _SOFTWARE.get((benchmark, submitter), {}))
    if benchmark == LORA and system in _OF_ADAPTERS:
        tp, cp, more = _OF_ADAPTERS[system]
        degrees, software = (tp, 1, cp, 1), ADAPTERS | more
    if benchmark not in _MODELS or degrees is None:
        return None
    return document(
        benchmark,
        degrees=degrees,
        gpus=int(first["nodes"]) * int(first["acc_per_node"]),
        global_batch=int(first["gbs"]),
        said={"sequence_length": first["seq"]} | software,
    )


def document(
    benchmark: str, *, degrees: tuple[int, int, int, int], gpus: int, global_batch: int, said: Mapping[str, Any]
) -> dict[str, Any]:
    """A plan of a submission, without its cluster.

    Args:
        benchmark: its name in MLPerf.
        degrees: of tensor, pipeline and context parallelism, and virtual stages.
        gpus, global_batch: of the run.
        said: what else its configuration says, by key of a plan; of `parallel` too.
    """
    tp, pp, cp, vp = degrees
    name, stage_layers = _MODELS[benchmark]
    parallel = {"dp": gpus // (tp * pp * cp), "tp": tp, "pp": pp, "cp": cp, "virtual_stages": vp}
    default = {"zero_stage": 1, "sequence_parallel": tp > 1}
    return {
        **{key: value for key, value in said.items() if key not in default},
        "architecture": model(name),
        "sequence_length": int(said["sequence_length"]),
        "global_batch": global_batch,
        "precision": "fp8",
        "backend": "megatron-core",
        "stage_layers": stage_layers,
        "parallel": parallel | {key: said.get(key, value) for key, value in default.items()},
    }


def _cluster(submitter: str, first: pd.Series[Any], gpus: int) -> dict[str, Any]:
    gpu = "h200-sxm-141gb" if "H200" in str(first["accelerator"]) else "h100-sxm-80gb"
    network = {"internode": _NETWORKS[submitter]} if submitter in _NETWORKS else {}
    return {"cluster": {"gpu": gpu, "gpus": gpus, **network}}
