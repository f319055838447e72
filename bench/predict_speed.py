"""Predictions a second on one core, all outputs included.

    python bench/predict_speed.py [--json] [--calibration NAME|FILE] [--plans N]

Two batches of OLMoE-1B-7B. `plans_per_s`: what a search prices, all legal plans over dp x tp x pp x ep x micro batch x
recompute x ZeRO x sequence parallel x clock on 8 to 512 GPUs (a fixed random sample of them), in which many plans share
a micro-batch's shape. `plans_per_s_distinct_shapes`: every plan with a sequence length of its own, so that nothing is
shared. Each is the median of several runs after a warm-up; energy, emissions and cost of the run are part of it, plan
files and printing are not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from itertools import product

import numpy as np

from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.results.carbon import footprint
from moemodel.model.step.system import System, system_of

_GPU = "h100-sxm-80gb"
_GPUS = (8, 16, 32, 64, 128, 256, 512)
_SEQ = 4096
_GLOBAL_BATCH = 2048
_TOKENS = 5.1e12
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_CLOCKS_MHz = (float("inf"), 1080.0, 1200.0, 1320.0, 1440.0, 1560.0, 1680.0, 1800.0)


def legal_plans() -> dict[str, list[float]]:
    """Every legal plan of the search, one list for each choice."""
    columns: dict[str, list[float]] = {}
    powers = [2**n for n in range(10)]
    for gpus, tp, pp in product(_GPUS, powers[:4], powers[:5]):
        dp, rest = divmod(gpus, tp * pp)
        if rest or dp == 0:
            continue
        experts = [ep for ep in powers[:7] if dp % ep == 0]
        zeros = range(4) if pp == 1 else range(2)
        for ep, zero, micro, recompute in product(experts, zeros, (1, 2, 4, 8), range(3)):
            if _GLOBAL_BATCH % (micro * dp):
                continue
            for parallel, clock in product((0, 1) if tp > 1 else (0,), _CLOCKS_MHz):
                choice = (dp, tp, pp, ep, zero, micro, recompute, parallel, clock * 1e6)
                for name, value in zip(_CHOICES, choice, strict=True):
                    columns.setdefault(name, []).append(value)
    return columns


_CHOICES = ("dp", "tp", "pp", "ep", "zero_stage", "micro_batch", "recompute", "sequence_parallel", "clock_Hz")


def search_batch(size: int) -> PlanBatch:
    """A fixed random sample of the legal plans."""
    columns = {name: np.asarray(values) for name, values in legal_plans().items()}
    count = len(columns["dp"])
    rows = np.random.default_rng(0).permutation(count)[:size]
    return PlanBatch.of(
        **{name: values[rows] for name, values in columns.items()},
        cp=1,
        virtual_stages=1,
        global_batch=_GLOBAL_BATCH,
        seq=_SEQ,
        schedule=0,
        skew=1.0,
        power_cap_W=np.inf,
    )


def distinct_batch(size: int) -> PlanBatch:
    """The same plans, each with a sequence length of its own."""
    batch = search_batch(size)
    columns = {name: getattr(batch, name) for name in vars(batch)}
    return PlanBatch.of(**columns | {"seq": 1024 + 8 * np.arange(len(batch))})


def price(architecture: Architecture, plans: PlanBatch, machine: System) -> None:
    """All outputs of a batch of plans."""
    prediction = predict(architecture, plans, machine)
    steps = _TOKENS / prediction.tokens
    footprint(prediction.energy_J * steps, pue=1.2, intensity_kg_per_kWh=0.4, price_per_kWh=0.1)


def plans_per_s(architecture: Architecture, plans: PlanBatch, machine: System, repeats: int) -> float:
    """Median rate over repeats, after one run that isn't counted."""
    price(architecture, plans, machine)
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        price(architecture, plans, machine)
        rates.append(len(plans) / (time.perf_counter() - start))
    return statistics.median(rates)


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
    parser.add_argument("--plans", type=int, default=40_000, help="plans in a batch")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    _stay_on_one_core()
    gpu = {"gpu": _GPU, "gpus": 8}
    plan = Plan.model_validate(
        {
            "architecture": "olmoe-1b-7b",
            "sequence_length": _SEQ,
            "global_batch": 8,
            "cluster": gpu,
            "parallel": {"dp": 8},
        }
    )
    architecture = read_architecture(plan.architecture)
    machine = system_of(plan, load_calibration(options.calibration, _GPU))
    search, distinct = search_batch(options.plans), distinct_batch(options.plans)
    result = {
        "plans_per_s": round(plans_per_s(architecture, search, machine, options.repeats)),
        "plans_per_s_distinct_shapes": round(plans_per_s(architecture, distinct, machine, options.repeats)),
        "plans": len(search),
        "legal_plans": len(legal_plans()["dp"]),
        "calibration": machine.calibration.name,
    }
    if options.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name}: {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
