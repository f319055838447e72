"""Run by test_training: runs under Megatron Core on the CPU, each in so many processes; their losses as JSON.

`python run_ranks.py FOLDER`: reads FOLDER/runs.json, a list of {"architecture", "parallel", "routing", ...}; writes
FOLDER/losses.json, a list of {"task": [...], "router": [...], "rows": [...]} of rank 0.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from moemodel.model.plan.routing import RoutingSpec, routed_architecture
from moemodel.model.plan.spec import ParallelSpec
from moemodel.profiler.backends.base import TrainingRun
from tests.profiler.backends.megatron_core.here import ARCHITECTURES
from tests.profiler.backends.megatron_core.on_cpu import megatron_on_cpu

_STEPS = 3
_GLOBAL_BATCH = 4


def training_run(case: dict[str, Any]) -> TrainingRun:
    """Four sequences of sixteen tokens a step."""
    parallel, routing = ParallelSpec(**case.get("parallel", {})), RoutingSpec(**case.get("routing", {}))
    return TrainingRun(
        name="tiny",
        architecture=routed_architecture(ARCHITECTURES[case["architecture"]], routing),
        seq=16,
        micro_batch=1,
        micro_batches=_GLOBAL_BATCH // parallel.dp,
        recompute=case.get("recompute", "none"),
        parallel=parallel,
        routing=routing,
        dtype=case.get("dtype", "float32"),
        lr=1e-2,
    )


def train(case: dict[str, Any]) -> dict[str, Any]:
    """A few steps; what came of them, and whether phases were told as often as promised."""
    from moemodel.profiler.backends.megatron_core.parallel_trainer import build

    run, marks = build(training_run(case), torch.device("cpu")), list[str]()
    task, router, rows = [], [], []
    for _ in range(_STEPS):
        run.step(marks.append)
        task.append(run.loss())
        found = run.statistics()
        router.append(None if found.router_loss is None else float(found.router_loss))
        rows.append([[int(n) for n in layer.rows_E] for layer in found.routing])
    told, promised, parameters = marks[: run.marks], run.marks * _STEPS == len(marks), run.parameters
    dropped = [int(layer.dropped) for layer in found.routing]
    run.close()
    return {"task": task, "router": router, "rows": rows, "marks": told, "promised": promised, "dropped": dropped} | {
        "parameters": parameters
    }


def _rank(rank: int, ranks: int, folder: str, cases: list[dict[str, Any]]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store-{ranks}", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    with megatron_on_cpu():
        found = [train(case) for case in cases]
        if rank == 0:
            Path(folder, f"found-{ranks}.json").write_text(json.dumps(found))
        dist.barrier()
    os._exit(0)  # gloo's threads are slow to end


def main(folder: Path) -> None:
    """Runs of one number of ranks one after another in the same processes."""
    cases = json.loads((folder / "runs.json").read_text())
    found: dict[int, list[Any]] = {}
    for ranks in sorted({case["ranks"] for case in cases}):
        own = [case for case in cases if case["ranks"] == ranks]
        context = torch.multiprocessing.get_context("spawn")
        processes = [context.Process(target=_rank, args=(r, ranks, str(folder), own)) for r in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert all(process.exitcode == 0 for process in processes)
        found[ranks] = json.loads((folder / f"found-{ranks}.json").read_text())
    (folder / "losses.json").write_text(json.dumps([found[case["ranks"]].pop(0) for case in cases]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
