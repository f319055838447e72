"""How far the calibration of an H200 is off on a card that it was not fitted to.

    python bench/another_card.py [--json] [--operators]

Of the profile bench/measured/h200-sxm-141gb-profile, by operator, pass and shape, the median of its readings against
the shipped calibration at the clock that was read; shapes are those of the profiles that it was fitted to, which the
same seed chose.

    median_error    median of |predicted / measured - 1| over an operator's shapes and clocks, mean over operators
    mean_error      the mean in place of that median
    signed          mean of predicted / measured - 1, mean over operators
    worst           largest median error of an operator
    operators       in either pass
    leak_W_per_C, rise_per_C    what the card's leakage is fitted to be, and of the calibration (`shipped_...`)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from moemodel.calibration.fit.operators import Observations, observations
from moemodel.calibration.fit.thermal import fit_leakage, fit_thermal
from moemodel.calibration.store.catalogue import shipped
from moemodel.calibration.store.profile_reader import read_profile
from moemodel.model.core.arrays import FloatArray, take_rows
from moemodel.model.device.roofline import RooflineChip, chip_of_calibration, operator_time
from moemodel.model.records.calibration import OperatorFit

_PROFILE = Path(__file__).parent / "measured" / "h200-sxm-141gb-profile"
_LEAKAGE = ("leak_W_per_C", "rise_per_C")


def errors(data: Observations, fit: OperatorFit, chip: RooflineChip) -> FloatArray:
    """Predicted over measured less 1, of each shape and clock."""
    rows = (np.array([index]) for index in range(len(data.time_s)))
    told_s = [operator_time(fit, chip, take_rows(data.shape, row), data.clock_Hz[row]).time_s_UK.item() for row in rows]
    return np.asarray(told_s) / data.time_s - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--operators", action="store_true", help="print each operator's errors, too")
    options = parser.parse_args()
    profile = read_profile(_PROFILE)
    calibration = shipped(profile.manifest.gpu)
    chip, fits = chip_of_calibration(calibration), {(fit.kind, fit.direction): fit for fit in calibration.operators}
    found = {
        f"{data.kind} {data.direction}": errors(data, fits[data.kind, data.direction], chip)
        for data in observations(profile.operators)
    }
    medians = [float(np.median(np.abs(each))) for each in found.values()]
    figures = {
        "median_error": float(np.mean(medians)),
        "mean_error": float(np.mean([np.abs(each).mean() for each in found.values()])),
        "signed": float(np.mean([each.mean() for each in found.values()])),
        "worst": max(medians),
        "operators": len(found),
    }
    leakage = fit_leakage(profile.thermal, fit_thermal(profile.thermal, "this profile"), "this profile")
    figures |= {name: leakage[name].value for name in _LEAKAGE}
    figures |= {f"shipped_{name}": calibration.power.parameters[name].value for name in _LEAKAGE}
    if options.json:
        print(json.dumps(figures))
        return
    if options.operators:
        for name, each in found.items():
            print(f"{name:32s} {len(each):4d} {np.median(np.abs(each)):7.1%} {each.mean():+7.1%}")
    for key, value in figures.items():
        print(f"{key:24s} {value:10.5g}")


if __name__ == "__main__":
    main()
