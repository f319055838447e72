"""Seconds and memory of a search over a space that is large: DeepSeek-V3 on 2,048 H100, every legal plan at all clocks.

    python bench/search.py [--json] [--cores N] [--calibration NAME|FILE] [--gpus N] [--repeats N]

Every choice is left open, and every plan is asked for at the clock that the power limit allows and at ten clocks over
the range that the calibration was measured at (`clocks_MHz: measured`). `plans` are the legal plans, each at one clock;
`predicted` those that were predicted, the others having no room in memory or being beaten by their bounds; `seconds`
the median of several whole searches, from the document to the result, reading and writing files not; `cpu_seconds` of
all threads. `peak_B` is the process's. Nothing is warmed up but the imports: `seconds_first` is the first search's.
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


def document(gpus: int) -> Search:
    """The published model, batch and tokens (DeepSeek-AI 2024, sections 4.1 and 4.2); its framework isn't public."""
    return Search.model_validate(
        {
            "name": "deepseek-v3",
            "architecture": "deepseek-v3",
            "sequence_length": 4096,
            "global_batch": 15360,
            "backend": "megatron-core",
            "cluster": {"gpu": _GPU, "gpus": gpus},
            "clocks_MHz": "measured",
            "tokens": 14.8e12,
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
    parser.add_argument("--gpus", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    _stay_on(options.cores)
    calibration = load_calibration(options.calibration, _GPU)
    asked, seconds, cpu_seconds = document(options.gpus), [], []
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
        "front": found.counts.front,
        "calibration": calibration.name,
    }
    if options.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name}: {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
