"""Seconds and memory of a search over a space that is large: DeepSeek-V3 on 2,048 H100, every legal plan at all clocks.

    python bench/search.py [--of deepseek-v3|olmoe] [--json] [--cores N] [--calibration NAME|FILE] [--gpus N]

`--of olmoe` is a smaller one: OLMoE-1B-7B on 64 H100. Every choice is left open, and every plan is asked for at the
clock that the power limit allows and at ten clocks over the range that the calibration was measured at (`clocks_MHz:
measured`). `plans` are the legal plans, each at one clock; `predicted` those that were predicted, the others having no
room in memory or being beaten by their bounds; `seconds` the median of several whole searches (`--repeats`), from the
document to the result, reading and writing files not; `cpu_seconds` of all threads. `peak_B` is the process's. Nothing
is warmed up but the imports: `seconds_first` is the first search's.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time

from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.search.document import Search
from moemodel.model.search.search import search

_GPU = "h100-sxm-80gb"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


# The published models, batches and tokens (DeepSeek-AI 2024, sections 4.1 and 4.2, whose framework isn't public;
# Muennighoff et al. 2024), and the GPUs that are searched for
_JOBS = {
    "deepseek-v3": ("deepseek-v3", 15360, 14.8e12, "megatron-core", 2048),
    "olmoe": ("olmoe-1b-7b", 1024, 5.1e12, "torch", 64),
}


def document(job: str, gpus: int | None = None) -> Search:
    """A search of a job in which nothing but batch and framework is fixed; on so many GPUs, or as many as it has."""
    architecture, batch, tokens, backend, own_gpus = _JOBS[job]
    return Search.model_validate(
        {
            "name": job,
            "architecture": architecture,
            "sequence_length": 4096,
            "global_batch": batch,
            "backend": backend,
            "cluster": {"gpu": _GPU, "gpus": gpus or own_gpus},
            "clocks_MHz": "measured",
            "tokens": tokens,
            "site": {"host_power_W": 250.0},
        }
    )


def _stay_on(cores: int) -> None:
    """Start again bound to some cores and with one thread each, which numpy reads when it is imported."""
    if _ONE_THREAD.items() <= os.environ.items():
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[-cores:]))
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | _ONE_THREAD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--calibration", help="a shipped calibration or a file; default: the H100's")
    parser.add_argument("--of", choices=_JOBS, default="deepseek-v3", help="what is searched for")
    parser.add_argument("--gpus", type=int, help="default: 2,048, or 64")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    _stay_on(options.cores)
    calibration = load_calibration(options.calibration, _GPU)
    asked, seconds, cpu_seconds = document(options.of, options.gpus), [], []
    for _ in range(options.repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        found = search(asked, calibration)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    refused = sum(refusal.plans for refusal in found.counts.refused if not refusal.reason.startswith("memory"))
    result = {
        "seconds": round(statistics.median(seconds), 3),
        "seconds_first": round(seconds[0], 3),
        "cpu_seconds": round(statistics.median(cpu_seconds), 3),
        "peak_B": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "plans": found.counts.combinations - refused,
        "combinations": found.counts.combinations,
        "predicted": found.counts.predicted,
        "outdone": found.counts.outdone,
        "feasible": found.counts.feasible,
        "front": found.counts.front,
        "calibration": calibration.name,
    }
    if options.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name}: {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
