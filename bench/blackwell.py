"""Published runs on Blackwell, zero-shot: which system and which precision is faster for one model?

    python bench/blackwell.py [--json] [--rows] [--data FOLDER]

    pairs, order            pairs of runs of one model and release on other systems or in other precisions, and the
                            share whose order (tokens/s of a GPU) is predicted
    precision_pairs, precision_order    of those, on one system
    system_pairs, system_order          of those, in one precision
    time_mape, time_bias, rows          of the runs themselves: mean |predicted/measured - 1|, mean log
    b200_time_mape, b200_time_bias, b200_rows    the same of Megatron-LM's runs on eight B200 (SimuMax's measurements)
    b200_derived_time_mape, ...         of these by a calibration derived from the H200

Predicted by whatever calibration the GPU has: as Megatron Core as Megatron-Bridge runs it; those on eight B200 as
Megatron-LM, whose command (SimuMax's run_pretrain_llama3.sh and run_pretrain_deepseekv2.sh) overlaps nothing and sums
gradients in float32, and whose time is that of the faster of two steps. Nodes are what the vendor sells: 72 GPUs of a
rack. The runs are read from `../shared/data`; where they are missing there is nothing to do, and the exit code is 0.
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path

import numpy as np

from moemodel.calibration.derive.transfer import derive_calibration
from moemodel.calibration.store.catalogue import load_calibration, shipped
from moemodel.model.hardware.gpu import read_gpu
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration
from moemodel.model.step.system import System, system_of
from studies.memory_runs import B200, b200
from studies.runs import BLACKWELL, SystemRow, bridge_blackwell

_B200, _H200 = "b200-sxm-180gb", "h200-sxm-141gb"
_DATA = Path(__file__).parents[2] / "shared" / "data"
_REST: dict[str, float] = {"schedule": 0, "skew": 1.0, "clock_Hz": np.inf, "power_cap_W": np.inf}


def _system(row: SystemRow) -> System:
    plan = {
        "architecture": "llama-3-8b",
        "sequence_length": 8,
        "global_batch": 1,
        "backend": "megatron-core",
        "precision": row.precision,
        "cluster": {"gpu": row.gpu, "gpus": 1},
    }
    return system_of(Plan.model_validate(plan), load_calibration(None, row.gpu))


def predicted_s(row: SystemRow) -> float:
    """Time of a step of a published run."""
    plans = PlanBatch.of(**_REST | dict(row.row.plan))
    return float(predict(row.row.architecture, plans, _system(row)).step_time_s[0])


def figures(rows: list[SystemRow], times_s: list[float]) -> dict[str, float]:
    """What `--json` prints."""
    rates = [
        tuple(
            float(row.row.plan["global_batch"]) * float(row.row.plan["seq"]) / gpus / s
            for s in (row.row.time_s, time_s)
        )
        for row, time_s in zip(rows, times_s, strict=True)
        for gpus in (np.prod([float(row.row.plan[degree]) for degree in ("dp", "tp", "pp", "cp")]),)
    ]
    agree: dict[str, list[bool]] = {"": [], "precision_": [], "system_": []}
    for (a, rate_a), (b, rate_b) in combinations(zip(rows, rates, strict=True), 2):
        if (a.row.group, a.release) != (b.row.group, b.release) or (a.gpu, a.precision) == (b.gpu, b.precision):
            continue
        right = (rate_a[0] > rate_b[0]) == (rate_a[1] > rate_b[1])
        agree[""].append(right)
        if a.gpu == b.gpu:
            agree["precision_"].append(right)
        if a.precision == b.precision:
            agree["system_"].append(right)
    off = [float(np.log(time_s / row.row.time_s)) for row, time_s in zip(rows, times_s, strict=True)]
    found: dict[str, float] = {}
    for kind, each in agree.items():
        found |= {f"{kind}pairs": float(len(each)), f"{kind}order": float(np.mean(each)) if each else float("nan")}
    return found | _errors("", off)


def b200_runs(folder: Path, calibration: Calibration) -> list[float]:
    """log(predicted / measured) of the steps on eight B200."""
    cases = {case["case"]: case for case in json.loads((folder / B200).read_text(encoding="utf-8"))}
    plan = {
        "architecture": "llama-3-8b",
        "sequence_length": 8,
        "global_batch": 1,
        "backend": "megatron",
        "precision": "bf16-mixed",
    }
    system = system_of(Plan.model_validate(plan | {"cluster": {"gpu": _B200}}), calibration)
    first = {row.label.rsplit(" stage ", 1)[0]: row for row in reversed(list(b200(folder)))}  # a row a stage
    return [
        float(np.log(predict(row.architecture, plans, system).step_time_s[0] / (cases[case]["real_ms"] * 1e-3)))
        for case, row in first.items()
        for plans in (PlanBatch.of(**_REST | {"virtual_stages": 1, "micro_batch": 1, "recompute": 0} | dict(row.plan)),)
    ]


def _errors(prefix: str, off: list[float]) -> dict[str, float]:
    return {
        f"{prefix}time_mape": float(np.mean(np.abs(np.expm1(off)))),
        f"{prefix}time_bias": float(np.mean(off)),
        f"{prefix}rows": float(len(off)),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Published runs on Blackwell.")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--rows", action="store_true", help="print every run")
    parser.add_argument("--data", type=Path, default=_DATA, help="folder of published data")
    options = parser.parse_args()
    if not (options.data / BLACKWELL).is_file():
        skipped = f"{options.data / BLACKWELL} is not there"
        print(json.dumps({"skipped": skipped}) if options.json else f"skipped: {skipped}")
        return
    rows = bridge_blackwell(options.data)
    times_s = [predicted_s(row) for row in rows]
    if options.rows:
        for row, time_s in zip(rows, times_s, strict=True):
            error = time_s / row.row.time_s - 1
            print(
                f"{row.gpu:16}{row.precision:7}{row.row.label:44}{row.row.time_s:8.2f} s {time_s:8.2f} s {error:+7.1%}"
            )
    found = figures(rows, times_s) | _errors("b200_", b200_runs(options.data, load_calibration(None, _B200)))
    derived = derive_calibration(shipped(_H200), read_gpu(_H200), read_gpu(_B200))
    found |= _errors("b200_derived_", b200_runs(options.data, derived))
    print(json.dumps(found) if options.json else "\n".join(f"{name} {value:.3g}" for name, value in found.items()))


if __name__ == "__main__":
    main()
