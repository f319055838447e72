"""MLPerf Training submissions whose nodes' power was measured, as plans that a user would write.

Sustainable Metal Cloud's of round 4.0 (nodes immersed) and Dell's of 4.1 (nodes in air): what their configurations set
and their logs print (mlcommons/training_results_v4.0, smc-ac-power/benchmarks; _v4.1, Dell/benchmarks). Attention of 8
bits (SMC's FP8_DPA) is not modelled, as of other submissions (`studies.public.mlperf`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moemodel.model.plan.spec import Plan
from studies.public.mlperf import LORA, document

# What plans said of their hosts when they were predicted for the first time: that of this project's examples
FIRST_HOST_POWER_W = 250.0
_KINDS = {"smc": "h100-node-immersion", "dell": "h100-node-air"}

# fp8_params; disable_parameter_transpose_cache; fp8_amax_history_len
_ADAPTERS: dict[str, Any] = {"fp8_recipe": "delayed", "parameter_dtype": "fp8", "transpose_cache": False}
# SMC's LoRA: TP_COMM_OVERLAP, no CUDA graphs; optim: fused_adam, of which every replica keeps all states. Dell's:
# LAYER_CUDA_GRAPH; mcore_distributed_optim
_SMC: dict[str, Any] = {**_ADAPTERS, "tp_comm_overlap": True, "zero_stage": 0}
_DELL: dict[str, Any] = {**_ADAPTERS, "tp_comm_overlap": True, "cuda_graphs": True}
# MICRO_BATCH_SIZE, FP8_PARAMS, TP_COMM_OVERLAP; fp8_amax_history_len 1024; conf/optim/distributed_fused_adam.yaml:
# gradients are summed in grad_sync_dtype, and exchanged by bucket_cap_mb (BUCKET_CAP_MB 200, of 2**20 bytes)
_GPT3: dict[str, Any] = {
    "micro_batch": 2,
    "fp8_recipe": "delayed",
    "parameter_dtype": "fp8",
    "gradient_dtype": "bf16",
    "bucket_parameters": 100 * 2**20,
    "tp_comm_overlap": True,
}

# name of a system and what it trained -> benchmark; tp, pp, cp and virtual stages; nodes of eight GPUs; global batch;
# what else its configuration says
_SUBMITTED: dict[str, tuple[str, tuple[int, int, int, int], int, int, dict[str, Any]]] = {
    "smc-1-lora": (LORA, (4, 1, 1, 1), 1, 8, _SMC),
    "smc-8-lora": (LORA, (4, 1, 2, 1), 8, 8, _SMC),
    "smc-64-lora": (LORA, (4, 1, 2, 1), 64, 64, _SMC),
    "smc-64-gpt3": ("gpt3", (4, 8, 1, 12), 64, 2048, _GPT3),
    "dell-8-lora": (LORA, (4, 1, 2, 1), 8, 8, _DELL),
}
GPUS_OF_NODE = 8
_GPT3_TOKENS = 2048  # of a sequence
# where its logs are in a checkout of the results, by where nodes were measured
_SMC_LOGS = {side: f"smc-{side}-power/results/{{nodes}}xSMC-H100-SXM-80GB/{{benchmark}}" for side in ("ac", "dc")}
_DELL_LOGS = {"ac": "Dell/results/{nodes}xXE9680x8H100-SXM-80GB-POWER/{benchmark}"}


def plans(host_power_W: float | None = None) -> dict[str, Plan]:
    """Of every system, by its name.

    Args:
        host_power_W: of a GPU's share of its node; None: that of the kind of node.
    """
    return {
        name: _plan(*submitted, _KINDS[name.partition("-")[0]] if host_power_W is None else host_power_W)
        for name, submitted in _SUBMITTED.items()
    }


def logs(name: str, checkouts: Path) -> dict[str, Path]:
    """Folders of a system's logs, by where its nodes were measured.

    Args:
        name: of the system.
        checkouts: holds those of training_results_v4.0 and _v4.1.
    """
    benchmark, _, nodes, _, _ = _SUBMITTED[name]
    results, sides = ("v4.0", _SMC_LOGS) if share_a_clock(name) else ("v4.1", _DELL_LOGS)
    top = checkouts / f"training_results_{results}"
    return {side: top / path.format(nodes=nodes, benchmark=benchmark) for side, path in sides.items()}


def share_a_clock(name: str) -> bool:
    """Whether all meters of a system, and whoever wrote its log, went by one clock: SMC's did, Dell's did not."""
    return name.startswith("smc")


def _plan(
    benchmark: str,
    degrees: tuple[int, int, int, int],
    nodes: int,
    global_batch: int,
    said: dict[str, Any],
    host_power_W: float | str,
) -> Plan:
    tp, pp, cp, vp = degrees
    settings = {"tp": tp, "pp": pp, "cp": cp, "virtual_stages": vp, "zero_stage": 1, "sequence_parallel": tp > 1} | said
    plan = document(
        benchmark,
        settings | {"internode": "infiniband-ndr"},
        gpu="h100-sxm-80gb",
        gpus=nodes * GPUS_OF_NODE,
        global_batch=global_batch,
        sequence_length=_GPT3_TOKENS,
    )
    return Plan.model_validate(plan | {"site": {"host_power_W": host_power_W}})
