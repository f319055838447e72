"""Speed of a whole search on one core, from the document to the result, and its memory.

    python bench/search_speed.py [--json] [--calibration NAME|FILE] [--gpus N]

OLMoE-1B-7B on 64 H100 with every choice left open, as `moemodel optimize` searches it. `combinations` are all that the
choices make; `plans` those that are legal and fit in memory, at every clock, of which `predicted` were not beaten by
their bounds; `seconds` the median of several searches after a warm-up, refusals, front and intervals included, reading
and writing files not. `plans_per_s` is `plans` over that. `peak_memory_B` is the process's.
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
    """A search in which nothing but the batch is fixed."""
    return Search.model_validate(
        {
            "architecture": "olmoe-1b-7b",
            "sequence_length": 4096,
            "global_batch": 1024,
            "cluster": {"gpu": _GPU, "gpus": gpus},
            "tokens": 5.1e12,
            "site": {"host_power_W": 250.0},
        }
    )


def _stay_on_one_core() -> None:
    """Start again bound to one core and with one thread, which numpy reads when it is imported."""
    if _ONE_THREAD.items() <= os.environ.items():
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | _ONE_THREAD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--calibration", help="a shipped calibration or a file; default: the H100's")
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    _stay_on_one_core()
    calibration = load_calibration(options.calibration, _GPU)
    asked = document(options.gpus)
    found, seconds = search(asked, calibration), []
    for _ in range(options.repeats):
        start = time.perf_counter()
        found = search(asked, calibration)
        seconds.append(time.perf_counter() - start)
    median_s = statistics.median(seconds)
    result = {
        "combinations": found.counts.combinations,
        "plans": found.counts.predicted + found.counts.outdone,
        "predicted": found.counts.predicted,
        "feasible": found.counts.feasible,
        "front": found.counts.front,
        "seconds": round(median_s, 3),
        "plans_per_s": round((found.counts.predicted + found.counts.outdone) / median_s),
        "combinations_per_s": round(found.counts.combinations / median_s),
        "peak_memory_B": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "calibration": calibration.name,
    }
    if options.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name}: {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
