"""Predicted against measured training steps, none of which was used to fit.

Reads the training runs in `bench/measured/GPU` and `bench/measured/GPU-unseen`, the shipped calibration of that GPU and
the profile that it was fitted to, predicts every run, and writes `docs/accuracy.md`. The figures are of the former; the
latter are plans chosen when the model was finished, measured on another card, and print as `unseen_...`.

    python bench/accuracy.py [--json] [--gpu NAME] [--calibration FILE] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moemodel.calibrate.catalogue import shipped
from moemodel.calibrate.fit import calibrate_profile
from moemodel.calibrate.operators import HeldOut
from moemodel.calibrate.read import Profile, read_profile
from moemodel.model.calibration import Calibration, read_calibration
from moemodel.validate.compare import Comparison, Quantity, compare, coverage, mape

_ROOT = Path(__file__).resolve().parent.parent
_AIM = 0.07  # median error of an operator on held-out shapes

_UNITS: dict[str, tuple[str, float]] = {
    "step_time": ("ms", 1e3),
    "energy": ("J", 1.0),
    "power": ("W", 1.0),
    "clock": ("MHz", 1e-6),
    "memory": ("GB", 1e-9),
    "forward": ("ms", 1e3),
    "backward": ("ms", 1e3),
    "optimizer": ("ms", 1e3),
}


_MAIN = ("step_time", "energy", "clock", "memory", "power")


def figures(found: Sequence[Comparison], unseen: Sequence[Comparison], errors: Sequence[HeldOut]) -> dict[str, float]:
    """What `--json` prints; errors as fractions."""
    return {
        **{f"{name}_mape": mape(found, name) for name in _MAIN},
        "step_time_worst": max(abs(run.quantities["step_time"].error) for run in found),
        "step_time_coverage_90": coverage(found, "step_time"),
        "energy_coverage_90": coverage(found, "energy"),
        "operator_median_of_medians": float(np.median([e.median for e in errors])),
        "operator_medians_above_aim": float(sum(e.median > _AIM for e in errors)),
        "operator_passes": float(len(errors)),
        "points": float(len(found)),
        **{f"unseen_{name}_mape": mape(unseen, name) for name in _MAIN if unseen},
        "unseen_points": float(len(unseen)),
    }


def _cells(name: str, quantity: Quantity | None) -> str:
    if quantity is None:
        return "| | | "
    scale = _UNITS[name][1]
    digits = 0 if max(quantity.predicted, quantity.measured) * scale >= 100 else 1
    return (
        f"| {quantity.predicted * scale:.{digits}f} | {quantity.measured * scale:.{digits}f} | {quantity.error:+.1%} "
    )


def _table(found: Sequence[Comparison], names: Sequence[str]) -> list[str]:
    heads = "".join(f"| {name.replace('_', ' ')}, {_UNITS[name][0]} | measured | error " for name in names)
    rows = [f"| {run.name} " + "".join(_cells(n, run.quantities.get(n)) for n in names) + "|" for run in found]
    means = "".join(f"| | | {mape(found, name):.1%} " for name in names)
    return [f"| run {heads}|", "| --- " + "| --: " * 3 * len(names) + "|", *rows, f"| mean absolute error {means}|"]


def _unseen(unseen: Sequence[Comparison]) -> list[str]:
    if not unseen:
        return []
    return [
        "## Plans chosen when the model was finished",
        "",
        "Architectures, widths, lengths and batches that no development saw, measured once, on another card, which",
        "was 15 degrees hotter (74 to 80 C) and sustained lower clocks than the one that was profiled. GPT-3 with its",
        "published vocabulary of 50257 has products whose rows don't begin at 16 bytes. The profile has none of them;",
        "the first prediction was 49 % short, and what is assumed for them since then was chosen knowing this run.",
        "",
        *_table(unseen, ("step_time", "energy", "clock")),
        "",
        *_table(unseen, ("memory", "power")),
        "",
        f"The 90 % interval held the measured step time in {coverage(unseen, 'step_time'):.0%} of these runs.",
        "",
    ]


def report(
    found: Sequence[Comparison],
    unseen: Sequence[Comparison],
    errors: Sequence[HeldOut],
    calibration: Calibration,
    measured: Profile,
) -> str:
    """The text of `docs/accuracy.md`."""
    manifest = measured.manifest
    device = f"{manifest.device.name}, {manifest.device.power_limit_W:.0f} W, torch {manifest.libraries['torch']}"
    f = figures(found, unseen, errors)
    held_out = [
        f"| {e.kind} | {e.direction} | {e.shapes} | {e.median:.1%} | {e.p90:.1%} | {e.worst:.0%} |" for e in errors
    ]
    lines = [
        "# Accuracy",
        "",
        "Written by `python bench/accuracy.py`; do not edit.",
        "",
        f"Calibration `{calibration.name}`. {calibration.provenance}",
        "",
        f"Training runs: {device}, {manifest.created[:10]}. None of them was used to fit. What the router did",
        "(busiest expert over the mean, counted in the run) and the temperature of the die are inputs of a prediction.",
        "",
        "## Training steps",
        "",
        *_table(found, ("step_time", "energy", "clock")),
        "",
        *_table(found, ("memory", "power")),
        "",
        "Memory is the peak that the framework's allocator handed out; clock is the true SM clock.",
        f"The 90 % interval held the measured step time in {f['step_time_coverage_90']:.0%} of the runs, the measured",
        f"energy in {f['energy_coverage_90']:.0%}.",
        "",
        "## Phases",
        "",
        "Predicted is device time; measured phases also contain waiting for the host, so that runs bound by the host",
        "stand out.",
        "",
        *_table(found, ("forward", "backward", "optimizer")),
        "",
        *_unseen(unseen),
        "## Operators on held-out shapes",
        "",
        "Five folds by shape: every shape is predicted by a fit that did not see it. The error is",
        "|predicted/measured - 1| over shapes and clocks.",
        f"The median of the medians is {f['operator_median_of_medians']:.1%}.",
        "",
        "| operator | pass | shapes | median | 90th percentile | worst |",
        "| --- | --- | --: | --: | --: | --: |",
        *held_out,
        "",
    ]
    return "\n".join(lines)


def _rows(profile: Profile) -> list[dict[str, object]]:
    records = profile.tables["iterations"].to_dict("records")
    return [{str(name): value for name, value in record.items()} for record in records]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--gpu", default="h100-sxm-80gb")
    parser.add_argument("--calibration", type=Path, help="instead of the shipped one")
    parser.add_argument("--output", type=Path, default=_ROOT / "docs" / "accuracy.md")
    arguments = parser.parse_args()
    calibration = read_calibration(arguments.calibration) if arguments.calibration else shipped(arguments.gpu)
    measured = read_profile(_ROOT / "bench" / "measured" / arguments.gpu)
    found = compare(_rows(measured), calibration)
    again = _ROOT / "bench" / "measured" / f"{arguments.gpu}-unseen"
    unseen = compare(_rows(read_profile(again)), calibration) if again.is_dir() else []
    _, errors = calibrate_profile(_ROOT / "calibrate" / "profiles" / arguments.gpu)
    arguments.output.write_text(report(found, unseen, errors, calibration, measured), encoding="utf-8")
    result = figures(found, unseen, errors)
    if arguments.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:34s} {value:.4g}")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
