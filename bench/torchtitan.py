"""Training under torchtitan 0.2.2 on one GPU, predicted before any of it ran, against what was measured.

    python bench/torchtitan.py [--json] [--plans]
    python bench/torchtitan.py --predict        write bench/plans/torchtitan/predicted.json

`bench/studies/torchtitan_job.py` runs a plan of bench/plans/torchtitan and writes its readings, which
bench/measured/torchtitan keeps. Means over plans of |predicted / measured - 1| (`_mape`) and of the ratio less 1
(`_signed`), nothing of them fitted:

    step_time_mape, energy_mape      of a step
    reserved_mape                    of the peak that torch's allocator reserved; what it gave out was not kept
    before_...                       the same of what was predicted before the runs
    inside                           share of measured times in the 90 % interval
    plans                            that ran
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from moemodel.api import predict
from moemodel.model.core.files import write_atomic

_PLANS = Path(__file__).parent / "plans" / "torchtitan"
_PREDICTED = _PLANS / "predicted.json"
_MEASURED = Path(__file__).parent / "measured" / "torchtitan"

# figure of a prediction -> of a reading
_FIGURES = {
    "step_time": "step_time_s",
    "energy": "energy_J",
    "reserved": "reserved_B",
}


def forecast(plan: Path) -> dict[str, Any]:
    """What is predicted of a plan, SI units but for the clock in MHz."""
    told = predict(plan)
    terms_B = told.memory_terms_B
    reserved_B = told.memory_B.value - terms_B["context"]
    return {
        "step_time_s": told.step_time_s.value,
        "interval_s": [told.step_time_s.low, told.step_time_s.high],
        "energy_J": told.energy.gpu_J.value,
        "clock_MHz": told.clock_Hz.value / 1e6,
        "allocated_B": reserved_B - terms_B["fragmentation"],
        "reserved_B": reserved_B,
    }


def compared(names: list[str]) -> dict[str, dict[str, Any]]:
    """Of each plan what was measured, was predicted before, and is now."""
    before = json.loads(_PREDICTED.read_text())
    return {
        name: {
            "measured": json.loads((_MEASURED / f"{name}.json").read_text()),
            "before": before[name],
            "now": forecast(_PLANS / f"{name}.yaml"),
        }
        for name in names
    }


def figures(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Means over the plans."""
    found: dict[str, float] = {"plans": len(rows)}
    for when, prefix in (("now", ""), ("before", "before_")):
        for name, key in _FIGURES.items():
            errors = [row[when][key] / row["measured"][key] - 1 for row in rows.values()]
            found[f"{prefix}{name}_mape"] = fmean(map(abs, errors))
            found[f"{prefix}{name}_signed"] = fmean(errors)
        inside = [row[when]["interval_s"][0] <= row["measured"]["step_time_s"] for row in rows.values()]
        below = [row["measured"]["step_time_s"] <= row[when]["interval_s"][1] for row in rows.values()]
        found[f"{prefix}inside"] = fmean(a and b for a, b in zip(inside, below, strict=True))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plans", action="store_true", help="print each plan's errors, too")
    parser.add_argument("--predict", action="store_true", help="write predictions, before any run")
    options = parser.parse_args()
    if options.predict:
        told = {plan.stem: forecast(plan) for plan in sorted(_PLANS.glob("*.yaml"))}
        write_atomic(_PREDICTED, json.dumps(told, indent=1) + "\n")
        return
    rows = compared(sorted(file.stem for file in _MEASURED.glob("*.json")))
    found = figures(rows)
    if options.json:
        print(json.dumps(found))
        return
    if options.plans:
        for name, row in rows.items():
            errors = [f"{row['now'][key] / row['measured'][key] - 1:+7.1%}" for key in _FIGURES.values()]
            print(f"{name:40s} {row['measured']['step_time_s'] * 1e3:7.1f} ms", *errors)
    for name, value in found.items():
        print(f"{name:26s} {value:8.3f}")


if __name__ == "__main__":
    main()
