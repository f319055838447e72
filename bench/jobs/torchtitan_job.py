"""One plan trained by torchtitan 0.2.2 on the GPUs at hand: time, energy, clock and memory of a step, as a JSON object.

    torchrun --nproc-per-node GPUS bench/jobs/torchtitan_job.py PLAN.yaml RESULT.json

Needs torchtitan and what it needs, pynvml, and nothing of this project's rooms. Run where `tests/assets` of its
repository lie; text is its own `c4_test`, or where that is missing the sources of Python's library. One GPU trains
under autocast, as it does there; a plan of ZeRO 3 is sharded over a mesh of one (`fully_shard`), where gathers and
scatters are copies. Of several GPUs energy is the sum, memory the largest, all else the first's.
"""

from __future__ import annotations

import json
import math
import os
import sys
import sysconfig
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import yaml
from torchtitan.config import JobConfig
from torchtitan.distributed.parallel_dims import ParallelDims
from torchtitan.protocols import train_spec
from torchtitan.train import Trainer

from gpu_meter import MEASURED_S, WARM_UP_S, GpuMeter

_LEAST_STEPS = 12

# A plan's architecture: torchtitan's model, its flavour, and what of it a plan here does not take
_FLAVOURS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama-3-8b": ("llama3", "8B", {}),
    "llama-3-70b": ("llama3", "70B", {}),
    "qwen3-4b.json": ("qwen3", "4B", {}),
    "qwen3-30b-a3b": ("qwen3", "30B-A3B", {}),
    "qwen3-1.7b.json": ("qwen3", "1.7B", {}),
    "qwen3-14b.json": ("qwen3", "14B", {}),
    "qwen3-235b-a22b.json": ("qwen3", "235B-A22B", {}),
    "deepseek-236b.json": ("deepseek_v3", "236B", {"attn_type": "sdpa", "attn_mask_type": "causal"}),
    "deepseek-16b.json": ("deepseek_v3", "16B", {"attn_type": "sdpa", "attn_mask_type": "causal"}),
}


def job_of(plan: dict[str, Any]) -> JobConfig:
    """torchtitan's configuration of a plan; what is not said here stays as its defaults have it."""
    model, flavour, other = _FLAVOURS[Path(plan["architecture"]).name]
    flavours = train_spec.get_train_spec(model).model_args
    layers = plan.get("layers", flavours[flavour].n_layers)
    flavours["plan"] = replace(flavours[flavour], n_layers=layers, **other)
    job = JobConfig()
    job.model.name, job.model.flavor, job.model.hf_assets_path = model, "plan", "tests/assets/tokenizer"
    job.training.dataset = "c4_test"
    job.training.seq_len = plan["sequence_length"]
    job.training.local_batch_size = plan.get("micro_batch", 1)
    job.training.global_batch_size = plan["global_batch"]
    parallel = plan.get("parallel", {})
    sharded = parallel.get("zero_stage") == 3
    job.parallelism.data_parallel_shard_degree = parallel.get("dp", 1) if sharded else 1
    job.parallelism.data_parallel_replicate_degree = 1 if sharded else parallel.get("dp", 1)
    job.parallelism.context_parallel_degree = parallel.get("cp", 1)
    job.parallelism.expert_parallel_degree = parallel.get("ep", 1)
    job.metrics.log_freq = 10
    job.compile.enable = plan.get("compile", False)
    recompute = plan.get("recompute", "none")
    job.activation_checkpoint.mode = "selective" if recompute.startswith("every-") else recompute
    job.activation_checkpoint.selective_ac_option = recompute.partition("every-")[2] or "op"
    job.debug.moe_force_load_balance = plan.get("routing", {}).get("skew") == "balanced"
    if plan.get("precision") == "fp8":
        job.model.converters = ["quantize.linear.float8"]
        job.quantize.linear.float8.filter_fqns = ["output"]
    return job


def shard_one_rank() -> None:
    """Have a mesh of one count as sharded."""
    exists = ParallelDims._mesh_exist
    ParallelDims._mesh_exist = lambda self, name, degree: name == "fsdp" or exists(self, name, degree)
    ParallelDims.dp_shard_enabled = property(lambda _: True)


def write_text() -> None:
    """Text to train on, where torchtitan's own is missing."""
    folder = Path("tests/assets/c4_test")
    if folder.exists():
        return
    own = folder.with_name(f"{folder.name}.{os.getpid()}")
    own.mkdir(parents=True)
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    lines = [json.dumps({"text": file.read_text(errors="ignore")}) for file in sources]
    (own / "data.json").write_text("\n".join(lines))
    with suppress(OSError):  # another rank was faster
        own.rename(folder)


def of_all(value: float, operation: Any) -> float:
    """A number of all ranks."""
    held = torch.tensor(value, dtype=torch.float64, device="cuda")
    torch.distributed.all_reduce(held, op=operation)
    return float(held)


def measured(job: JobConfig) -> dict[str, float]:
    """Steps of a job, after warm-up, queued one behind another as torchtitan does."""
    trainer = Trainer(job)
    trainer.metrics_processor.device_memory_monitor.reset_peak_stats = lambda: None  # its log forgets peaks
    batches = trainer.batch_generator(trainer.dataloader)

    def steps(count: int) -> float:
        """Seconds that they take."""
        begin = time.perf_counter()
        for index in range(count):
            trainer.step += 1
            trainer.gc_handler.run(trainer.step)
            trainer.train_step(batches)
            if index % 10 == 9:
                torch.cuda.synchronize()  # as its log does; a host far ahead would count what is only queued
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    steps(_LEAST_STEPS)  # compiles
    step_s = of_all(steps(_LEAST_STEPS), torch.distributed.ReduceOp.MAX) / _LEAST_STEPS
    steps(math.ceil(WARM_UP_S / step_s))
    count = max(_LEAST_STEPS, math.ceil(MEASURED_S / step_s))
    with GpuMeter(int(os.environ["LOCAL_RANK"])) as meter:
        elapsed_s = steps(count)
    return meter.found | {
        "steps": count,
        "step_time_s": elapsed_s / count,
        "energy_J": of_all(meter.found["energy_J"], torch.distributed.ReduceOp.SUM) / count,
        "allocated_B": int(of_all(torch.cuda.max_memory_allocated(), torch.distributed.ReduceOp.MAX)),
        "reserved_B": int(of_all(torch.cuda.max_memory_reserved(), torch.distributed.ReduceOp.MAX)),
        "parameters": sum(part.numel() for model in trainer.model_parts for part in model.parameters()),
    }


if __name__ == "__main__":
    plan_file, result_file = sys.argv[1:]
    os.environ.setdefault("LOCAL_RANK", "0")
    write_text()
    plan = yaml.safe_load(Path(plan_file).read_text())
    if plan.get("parallel", {}).get("zero_stage") == 3 and os.environ["WORLD_SIZE"] == "1":
        shard_one_rank()
    found = measured(job_of(plan))
    if os.environ["RANK"] == "0":
        Path(result_file).write_text(json.dumps(found, indent=1) + "\n")
    torch.distributed.destroy_process_group()
