"""Plans that other people's programs trained: predicted before any of it ran, against what was measured.

A set is a folder of `bench/plans`, with `predicted.json` of before its runs, and the folder of the same name in
`bench/measured`, a file of readings for each plan that ran.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from moemodel.api import predict
from moemodel.model.core.files import write_atomic
from studies.intervals import holds, interval

_BENCH = Path(__file__).parents[1]
_PREDICTED = "predicted.json"

_LEGEND = """
Means over plans of |predicted / measured - 1| (`_mape`) and of the ratio less 1 (`_signed`), nothing of them fitted:

    step_time_mape, energy_mape      of a step
    reserved_mape                    of the peak that torch's allocator reserved
    inside                           share of measured times in the 90 % interval
    plans                            that ran
    before_...                       the same of what was predicted before the runs
"""

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
        "interval_s": interval(told.step_time_s),
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
        found[f"{prefix}inside"] = fmean(
            holds(row[when]["interval_s"], row["measured"]["step_time_s"]) for row in rows.values()
        )
    return found


def main(described: str, sets: Mapping[str, str]) -> None:
    """Command line of a script.

    Args:
        described: what it says of itself, to which it adds what the figures are.
        sets: prefix of the figures of a set -> its name.
    """
    parser = argparse.ArgumentParser(
        description=described + _LEGEND, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plans", action="store_true", help="print each plan's errors, too")
    parser.add_argument("--predict", action="store_true", help="write predictions, before any run of a set")
    options = parser.parse_args()
    if options.predict:
        for folder in (_BENCH / "plans" / name for name in sets.values()):
            if not (folder / _PREDICTED).exists():
                told = {plan.stem: forecast(plan) for plan in sorted(folder.glob("*.yaml"))}
                write_atomic(folder / _PREDICTED, json.dumps(told, indent=1) + "\n")
        return
    ran = {prefix: rows for prefix, name in sets.items() if (rows := compared(name))}
    found = {prefix + key: value for prefix, rows in ran.items() for key, value in figures(rows).items()}
    if options.json:
        print(json.dumps(found))
        return
    if options.plans:
        for name, row in (named for rows in ran.values() for named in rows.items()):
            errors = [f"{row['now'][key] / row['measured'][key] - 1:+7.1%}" for key in _FIGURES.values()]
            print(f"{name:40s} {row['measured']['step_time_s'] * 1e3:7.1f} ms", *errors)
    for name, value in found.items():
        print(f"{name:34s} {value:8.3f}")
