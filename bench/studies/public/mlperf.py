"""MLPerf Training's language models on NVIDIA's GPUs, as plans that a user would write.

Two tables of results: rounds 3.1 and 5.1 on H100 and H200 (published data), and 4.0, 4.1 and 5.0, which this repository
keeps (`bench/mlperf_results.py`). Of each system the median step; where its logs tell none, as most of LoRA, the batch
over the median throughput, or blocks of training over their steps, which count whatever lies between steps, too. Plans
are what configurations and programs beside the results set (mlcommons/training_results_v3.1 and so on), a row each of
`bench/measured/mlperf-settings.csv`; `bench/measured/README.md` says how they were read. A row of which none is known
there is named, and not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from studies.mlperf_settings import RUN, settings_of
from studies.public.models import model
from studies.public.run import PublicRun, plan_or_refusal
from studies.runs import MLPERF, TIMED

_MEASURED = Path(__file__).parents[2] / "measured"
_RESULTS = "mlperf-v4-v5.csv"

LORA = "llama2_70b_lora"
# what a benchmark trains, and what of it no configuration may choose: account_for_embedding_in_pipeline_split, and of
# the loss; adapters of rank 16 on attention's products (conf/megatron_gpt_peft_tuning_config.yaml: adapter_dim,
# target_modules; adapter_dropout 0.1; LORA_A2A in all submissions, which counts where tensor-parallel ranks share a
# sequence), packed sequences without bounds (packed_sequence_return_cu_seqlen)
_BENCHMARKS: dict[str, dict[str, Any]] = {
    "gpt3": {"architecture": "gpt3-mlperf"},
    "llama31_405b": {"architecture": "llama-3.1-405b", "stage_layers": {"embedding": 1, "head": 1}},
    "llama31_8b": {"architecture": "llama-3-8b"},
    LORA: {
        "architecture": "llama-2-70b",
        "lora": {"rank": 16, "targets": ["qkv", "proj"], "dropout": 0.1},
        "sequence_length": 8192,
    },
}
# in the names of accelerators; the first that is found
_GPUS: dict[str, str] = {
    "GB200": "gb200-186gb",
    "B200": "b200-sxm-180gb",
    "H200": "h200-sxm-141gb",
    "L40S": "l40s-48gb",
    "H100": "h100-sxm-80gb",
}
# Columns of the settings, by where a plan has them. `attention_fp8` is not modelled, nor is VBOOST of NVIDIA
_OF_PARALLEL = ("tp", "pp", "cp", "virtual_stages", "zero_stage", "sequence_parallel")
_OF_CLUSTER = ("internode", "gpus_per_node")
_OF_PLAN: tuple[str, ...] = (
    *("micro_batch", "tp_comm_overlap", "fp8_recipe", "parameter_dtype", "transpose_cache", "activation_input_dtype"),
    *("cuda_graphs", "cp_comm", "cross_entropy", "gradient_checks", "bucket_parameters", "gradient_dtype"),
)


def mlperf(folder: Path) -> list[PublicRun]:
    """Rounds 3.1 and 5.1: of each system the median step."""
    return _runs(pd.read_csv(folder / MLPERF))


def mlperf_v4_v5() -> list[PublicRun]:
    """Rounds 4.0, 4.1 and 5.0."""
    return _runs(pd.read_csv(_MEASURED / _RESULTS))


def _runs(table: pd.DataFrame) -> list[PublicRun]:
    known = table[table["stat_key"].map(lambda key: _is_time(str(key)) or key == "throughput")]
    return [_run(results) for _, results in known.groupby(list(RUN), sort=False)]


def _is_time(key: str) -> bool:
    return TIMED.fullmatch(key) is not None or key == "block_step_time"


def _run(results: pd.DataFrame) -> PublicRun:
    first, time_s = results.iloc[0], (_step_s(results),)
    benchmark = str(first["benchmark"])
    gpus = int(first["nodes"]) * int(first["acc_per_node"])
    label = f"{first['round']} {benchmark} {first['submitter']} {first['system']} x{gpus}"
    settings = settings_of(first)
    if settings is None or benchmark not in _BENCHMARKS:
        why = "no model or no plan of it is known here"
        return PublicRun(label=label, plans=(why,), time_s=time_s, is_read=False)
    gpu = next((gpu for name, gpu in _GPUS.items() if name in str(first["accelerator"])), None)
    if gpu is None:
        why = f"accelerator {first['accelerator']}: none that is known here ({', '.join(_GPUS)})"
        return PublicRun(label=label, plans=(why,), time_s=time_s, is_read=False)
    plan = document(
        benchmark, settings, gpu=gpu, gpus=gpus, global_batch=int(first["gbs"]), sequence_length=first["seq"]
    )
    return PublicRun(label=label, plans=(plan_or_refusal(plan),), time_s=time_s)


def _step_s(results: pd.DataFrame) -> float:
    """The median of the medians of all runs."""
    steps = results[results["stat_key"].map(lambda key: _is_time(str(key)))]
    if len(steps):
        return float(steps["median"].median())
    return float(results["gbs"].iloc[0] / results["median"].median())


def document(
    benchmark: str, settings: Mapping[str, Any], *, gpu: str, gpus: int, global_batch: int, sequence_length: float
) -> dict[str, Any]:
    """A plan of a submission, as a user would write it.

    Args:
        benchmark: its name in MLPerf.
        settings: what its configuration says, by column of `mlperf-settings.csv`.
        gpu: its kind.
        gpus, global_batch: of the run.
        sequence_length: tokens, where the benchmark leaves it open.
    """
    ranks = int(settings["tp"]) * int(settings["pp"]) * int(settings["cp"])
    plan = {"sequence_length": sequence_length} | _BENCHMARKS[benchmark] | _said(settings, _OF_PLAN)
    if "lora" in plan:
        shares = int(settings["tp"]) > 1 and bool(settings["sequence_parallel"])
        plan |= {"lora": plan["lora"] | {"all_to_all": shares}}
    return plan | {
        "architecture": model(str(plan["architecture"])),
        "sequence_length": int(plan["sequence_length"]),
        "global_batch": global_batch,
        "precision": "fp8",
        "backend": "megatron-core",
        "cluster": {"gpu": gpu, "gpus": gpus} | _said(settings, _OF_CLUSTER),
        "parallel": {"dp": gpus // ranks} | _said(settings, _OF_PARALLEL),
    }


def _said(settings: Mapping[str, Any], columns: tuple[str, ...]) -> dict[str, Any]:
    return {key: settings[key] for key in columns if settings.get(key) is not None}
