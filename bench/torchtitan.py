"""Training under torchtitan 0.2.2 on one GPU or two, predicted before any of it ran, against what was measured.

    python bench/torchtitan.py [--json] [--plans]
    python bench/torchtitan.py --predict        write the predicted.json of each set that has none

`bench/studies/torchtitan_job.py` runs a plan of bench/plans/torchtitan, or of torchtitan-unseen, and writes its
readings, which bench/measured keeps. Means over plans of |predicted / measured - 1| (`_mape`) and of the ratio less 1
(`_signed`), nothing of them fitted:

    step_time_mape, energy_mape      of a step
    reserved_mape                    of the peak that torch's allocator reserved
    inside                           share of measured times in the 90 % interval
    plans                            that ran
    before_...                       the same of what was predicted before the runs
    unseen_...                       the same of other models and shapes, chosen when the predictions had been mended by
                                     the first set
    two_gpus_...                     the same of seven plans for two GPUs, chosen then

Of the first set constants were traced in four runs, of that for two GPUs in two (`studies.public.torchtitan`); two of
the first are sharded over a mesh of one GPU.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from moemodel.api import predict
from moemodel.model.core.files import write_atomic

_BENCH = Path(__file__).parent
_PREDICTED = "predicted.json"
# prefix of its figures -> folder of plans, and of readings
_SETS = {"": "torchtitan", "unseen_": "torchtitan-unseen", "two_gpus_": "torchtitan-two-gpus"}

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


def compared(name: str) -> dict[str, dict[str, Any]]:
    """Of each plan of a set that ran what was measured, was predicted before, and is now."""
    plans, measured = _BENCH / "plans" / name, _BENCH / "measured" / name
    if not measured.exists():
        return {}
    before = json.loads((plans / _PREDICTED).read_text())
    return {
        file.stem: {
            "measured": json.loads(file.read_text()),
            "before": before[file.stem],
            "now": forecast(plans / f"{file.stem}.yaml"),
        }
        for file in sorted(measured.glob("*.json"))
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
    parser.add_argument("--predict", action="store_true", help="write predictions, before any run of a set")
    options = parser.parse_args()
    if options.predict:
        for folder in (_BENCH / "plans" / name for name in _SETS.values()):
            if not (folder / _PREDICTED).exists():
                told = {plan.stem: forecast(plan) for plan in sorted(folder.glob("*.yaml"))}
                write_atomic(folder / _PREDICTED, json.dumps(told, indent=1) + "\n")
        return
    sets = {prefix: rows for prefix, name in _SETS.items() if (rows := compared(name))}
    found = {prefix + key: value for prefix, rows in sets.items() for key, value in figures(rows).items()}
    if options.json:
        print(json.dumps(found))
        return
    if options.plans:
        for name, row in (named for rows in sets.values() for named in rows.items()):
            errors = [f"{row['now'][key] / row['measured'][key] - 1:+7.1%}" for key in _FIGURES.values()]
            print(f"{name:40s} {row['measured']['step_time_s'] * 1e3:7.1f} ms", *errors)
    for name, value in found.items():
        print(f"{name:34s} {value:8.3f}")


if __name__ == "__main__":
    main()
