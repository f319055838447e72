"""What frameworks' hosts need for a kernel, over what the torch backend's needs: from committed runs of tiny models.

    python bench/host_factors.py [--json] [--folder FOLDER]
    python bench/host_factors.py --golden [--json] [--data FOLDER]

The models (`bench/plans/frameworks-host`) are so small that the device waits for the host all the time. Of each run and
phase: the measured time over the host's predicted time with all factors 1, and that over the same of torch's run of
the same model on the same machine; the geometric mean over models is the factor in `model/frameworks` (`HostFactors`):

    BACKEND      object of `forward`, `backward`, `step`; `shipped`: the same as they are in the framework's record
    spread       largest standard deviation of the logarithms over models
    runs         that were read

The first half of each run's steps is left out: torch's allocator still grows.

With --golden, what Megatron's hosts take with Transformer Engine, by step times of its functional tests on H100 that
the host alone bounds: its GPT of 12 layers, without recomputation, context parallelism, virtual stages and 8 bits.

    median      measured over predicted step time, with the factors that ship
    quartiles   of the same
    rows        that were read
    hosts       of machines with other GPUs: how much longer the same tests took, the median, and of how many; what
                ships beside it (`model.device.host_overhead`)
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, median, pstdev, quantiles
from typing import Any

import numpy as np
from frameworks import RunOnce, read_runs

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.core.arrays import FloatArray
from moemodel.model.device.host_overhead import HOSTS
from moemodel.model.frameworks.base import HostFactors
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import PricedPlans
from moemodel.model.records.run import StepRecord, steps_file
from moemodel.model.results.outcome import outcome
from moemodel.model.step.system import system_of
from studies.public.golden import GOLDEN, imported
from studies.public.models import config_file

_HERE = Path(__file__).parent
_FOLDER, _PLANS = _HERE / "measured" / "frameworks-host", _HERE / "plans" / "frameworks-host"
_TORCH = "torch"

Times = Mapping[str, float]


def predicted_s(plan: Plan) -> Times:
    """The host's time in each phase of a step, with all factors 1."""
    machine = system_of(plan, shipped(plan.cluster.gpu))
    machine = replace(machine, framework=replace(machine.framework, host_factors=HostFactors()))
    priced = PricedPlans(architecture_of(plan), batch_of(plan), machine)
    (cost,) = priced._pipelines[0].pipe.costs
    passes = plan.micro_batches
    return {
        "forward": passes * (_first(cost.host.forward_s) + _first(cost.host_sync_s)),
        "backward": passes * _first(cost.host.backward_s),
        "step": _first(cost.host_step_s),
    }


def _first(value: FloatArray | float) -> float:
    return float(np.ravel(value)[0])


def measured_s(run: RunOnce) -> Times:
    """Mean time of each phase in the second half of a run's steps."""
    lines = (run.place / steps_file(0)).read_text().splitlines()
    steps = [StepRecord.model_validate_json(line) for line in lines[len(lines) // 2 :]]
    columns = {"forward": "forward_s", "backward": "backward_s", "step": "optimizer_s"}
    return {name: fmean(getattr(step, column) for step in steps) for name, column in columns.items()}


def factors(runs: Sequence[RunOnce]) -> tuple[dict[str, dict[str, float]], float]:
    """By backend and phase, and the largest deviation over models."""
    ratios: dict[str, dict[tuple[object, ...], dict[str, float]]] = {}
    for run in runs:
        architecture = _PLANS / Path(run.plan.architecture).name
        plan = run.plan.model_copy(update={"architecture": str(architecture)})
        found, expected = measured_s(run), predicted_s(plan)
        ratios.setdefault(run.plan.backend, {})[(plan.architecture, plan.layers)] = {
            phase: found[phase] / expected[phase] for phase in found
        }
    logs = {
        backend: {
            phase: [math.log(of_phase[phase] / ratios[_TORCH][job][phase]) for job, of_phase in models.items()]
            for phase in ("forward", "backward", "step")
        }
        for backend, models in ratios.items()
        if backend != _TORCH
    }
    spread = max(pstdev(values) for phases in logs.values() for values in phases.values())
    means = {b: {phase: math.exp(fmean(values)) for phase, values in phases.items()} for b, phases in logs.items()}
    return means, spread


_OTHER: tuple[str, ...] = (
    *("--context-parallel-size", "--recompute-granularity", "--num-layers-per-virtual-pipeline-stage"),
    *("--fp8-format", "--multi-latent-attention"),
)
_LONGEST_S = 1.0  # of those tests; what took longer waited for something else


def golden(folder: Path) -> dict[str, Any]:
    """Measured over predicted step times of Megatron-LM's functional tests that the host bounds."""
    ratios: list[float] = []
    for line in (folder / GOLDEN).read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        arguments, time_s = case["args"], case["iteration_time_s"]
        named = case["gpu"] == "h100" and case["case"].startswith("gpt/gpt3_mcore_te") and "frozen" not in case["case"]
        if not named or any(key in arguments for key in _OTHER) or arguments.get("--num-layers") != _LAYERS:
            continue
        if time_s is None or not 0 < time_s < _LONGEST_S:
            continue
        run = imported(case)
        plan = Plan.model_validate(run.plan | {"architecture": config_file(f"golden-{len(ratios)}", run.config)})
        answer = outcome(plan, shipped(plan.cluster.gpu), even_if_it_does_not_fit=True)
        ratios.append(time_s / answer.step_time_s.value)
    low, _, high = quantiles(ratios, n=4)
    hosts = {gpu: _over_h100(folder, gpu) | {"shipped": HOSTS[name]} for gpu, name in _HOSTS.items()}
    return {"median": median(ratios), "quartiles": [low, high], "rows": len(ratios), "hosts": hosts}


_HOSTS = {"a100": "a100-sxm-80gb", "gb200": "gb200-186gb"}
_HOST_BOUND_S = 1.2  # of an iteration on H100; models of longer ones are large


def _over_h100(folder: Path, gpu: str) -> dict[str, float]:
    """Time of tests on a kind of GPU over that of the same on H100, the fastest run of each."""
    fastest: dict[tuple[str, str], float] = {}
    for line in (folder / GOLDEN).read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        if case["iteration_time_s"] and "release" not in case["case"] and "dev" in case["file"]:
            key = (case["case"], case["gpu"])
            fastest[key] = min(case["iteration_time_s"], fastest.get(key, math.inf))
    shared = [name for name, of in fastest if of == gpu and fastest.get((name, "h100"), math.inf) < _HOST_BOUND_S]
    return {"median": median(fastest[name, gpu] / fastest[name, "h100"] for name in shared), "tests": len(shared)}


_LAYERS = 12
_DATA = _HERE.parents[1] / "shared" / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="folder of runs")
    parser.add_argument("--golden", action="store_true", help="of Megatron-LM's functional tests")
    parser.add_argument("--data", type=Path, default=_DATA, help="folder of published data")
    arguments = parser.parse_args()
    if arguments.golden:
        there = (arguments.data / GOLDEN).is_file()
        of_tests = golden(arguments.data) if there else {"skipped": f"skipped: {arguments.data / GOLDEN} is not there"}
        print(json.dumps(of_tests) if arguments.json else "\n".join(f"{k:12s} {v}" for k, v in of_tests.items()))
        return
    runs, _ = read_runs(arguments.folder)
    if not runs:
        skipped = f"skipped: there is no run that was done below {arguments.folder}"
        print(json.dumps({"skipped": skipped}) if arguments.json else skipped)
        return
    found, spread = factors(runs)
    result: dict[str, Any] = {
        backend: of_backend | {"shipped": asdict(framework_of(backend).host_factors)}
        for backend, of_backend in found.items()
    }
    result |= {"spread": spread, "runs": len(runs)}
    if arguments.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:24s} {value}")


if __name__ == "__main__":
    main()
