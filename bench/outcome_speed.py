"""How long one answer takes: of an example once loaded, of `moemodel predict` as a process, and plans a second.

    python bench/outcome_speed.py [--json] [--rounds N] [--plans N] [--against CHECKOUT]

`outcome_s`: processor time of one `outcome` of each example when its plan and calibration are read, the median of
several after one that isn't counted. `cold_predict_s`: processor time of `moemodel predict` of the smallest example,
interpreter and imports included; `cold_predict_elapsed_s` what passes meanwhile. `plans_per_s`: of `predict_speed.py`.
With `--against`, the same of another checkout, in turns with this one, so that both see the same machine. Every figure
is the best of the rounds: what else the machine does can only add time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_ROOT = Path(__file__).parents[1]
_EXAMPLES = ("opt-350m", "olmoe-1b-7b", "olmoe-1b-7b-a100", "switch-base-128")
_REPEATS = 15
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_FASTER_IS_MORE = frozenset({"plans_per_s", "plans_per_s_distinct_shapes"})

Figures = dict[str, float]


def _home(name: str, module: str) -> Callable[..., Any]:
    """A function by its module, or, in checkouts from before the modules had folders, from the package's face."""
    try:
        found: Callable[..., Any] = getattr(import_module(f"moemodel.{module}"), name)
    except ModuleNotFoundError:
        found = getattr(import_module("moemodel"), name)
    return found


def measure_outcomes() -> Figures:
    """Processor time of one `outcome` of each example, in whichever checkout is imported."""
    read_plan = _home("read_plan", "model.plan.spec")
    shipped = _home("shipped", "calibration.store.catalogue")
    outcome = _home("outcome", "model.results.outcome")
    figures = {}
    for name in _EXAMPLES:
        plan = read_plan(_ROOT / "examples" / f"{name}.yaml")
        calibration = shipped(plan.cluster.gpu)
        outcome(plan, calibration)
        times_s = []
        for _ in range(_REPEATS):
            start = time.process_time()
            outcome(plan, calibration)
            times_s.append(time.process_time() - start)
        figures[f"outcome_s {name}"] = statistics.median(times_s)
    return figures


def measure(checkout: Path, plans: int, bytecode: Path) -> Figures:
    """All figures of a checkout, once; `bytecode` is where Python keeps what it compiled."""
    script = str(Path(__file__).resolve())
    figures: Figures = json.loads(_run(checkout, bytecode, script, "--outcomes"))
    command = ("-m", "moemodel", "predict", str(_ROOT / "examples" / f"{_EXAMPLES[0]}.yaml"))
    _run(checkout, bytecode, *command)  # which compiles
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    _run(checkout, bytecode, *command)
    figures["cold_predict_elapsed_s"] = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures["cold_predict_s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    speed_script = str(checkout / "bench" / "predict_speed.py")
    speed = json.loads(_run(checkout, bytecode, speed_script, "--json", "--plans", str(plans)))
    return figures | {name: float(speed[name]) for name in _FASTER_IS_MORE}


def _run(checkout: Path, bytecode: Path, *arguments: str) -> str:
    """What Python prints when it runs with the code of a checkout, compiled as an installed package is."""
    environment = os.environ | _ONE_THREAD | {"PYTHONPATH": str(checkout), "PYTHONPYCACHEPREFIX": str(bytecode)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=checkout, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{checkout}: {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def best(rounds: list[Figures]) -> Figures:
    """The best of each figure over some rounds."""
    return {
        name: (max if name in _FASTER_IS_MORE else min)(figures[name] for figures in rounds)
        for name in sorted(rounds[0])
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plans", type=int, default=40_000, help="plans in a batch of predict_speed.py")
    parser.add_argument("--against", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument("--outcomes", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.outcomes:
        print(json.dumps(measure_outcomes()))
        return
    checkouts = {"here": _ROOT} | ({"against": options.against.resolve()} if options.against else {})
    rounds: dict[str, list[Figures]] = {name: [] for name in checkouts}
    with TemporaryDirectory() as bytecode:
        for _ in range(options.rounds):
            for name, checkout in checkouts.items():
                rounds[name].append(measure(checkout, options.plans, Path(bytecode)))
    found = {name: best(figures) for name, figures in rounds.items()}
    if options.json:
        print(json.dumps(found if options.against else found["here"]))
        return
    for figure in found["here"]:
        print(f"{figure}: " + ", ".join(f"{figures[figure]:.4g} {name}" for name, figures in found.items()))


if __name__ == "__main__":
    main()
