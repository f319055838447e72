"""Predicted against measured training steps, none of which was used to fit.

Reads the training runs in `bench/measured/GPU*`, the shipped calibration of that GPU and the profiles that it was
fitted to, predicts every run, and writes `docs/accuracy.md`. The figures without a prefix are of sixteen plans on the
card of one of the profiles, `other_plans_` of nine plans on the same card, `other_cards_` of all 25 plans on the cards
of another day.

    python bench/accuracy.py [--json] [--gpu NAME] [--calibration FILE] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moemodel.calibration.fit.calibration import held_out_errors
from moemodel.calibration.fit.operators import HeldOut
from moemodel.calibration.store.catalogue import shipped
from moemodel.calibration.store.profile_reader import Profile, read_profile, read_table
from moemodel.model.records.calibration import Calibration, read_calibration
from studies.comparison import Comparison, Quantity, compare, coverage, mape

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


# Two of the four that the shipped calibration pools, whose shapes are held out here; of the first temperature is taken.
PROFILES = ("second", "first")
_MAIN = ("step_time", "energy", "clock", "memory", "power")


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Training runs that belong together.

    Attributes:
        folder: beside that of the main runs: what its name has more.
        title, text: in the report.
        prefix: of its figures.
    """

    folder: str
    title: str
    text: str
    prefix: str


OTHERS = (
    Runs(
        folder="-other-plans",
        title="Other plans",
        text="Other architectures, widths, lengths and batches, measured in the same hour on the same card.\n"
        "They were chosen when an earlier version of the model was finished, which had never seen them; this version\n"
        "was improved with their first readings known, though nothing was fitted to them. GPT-3 has its published\n"
        "vocabulary of 50257 here, whose products' rows do not begin at 16 bytes.",
        prefix="other_plans",
    ),
    Runs(
        folder="-first",
        title="The first sixteen plans on another card",
        text="A day earlier, on the card of the profile named first.",
        prefix="other_cards",
    ),
    Runs(
        folder="-hot",
        title="The other plans on a third card",
        text="A day earlier, on a card of which there is no profile, 15 degrees hotter (74 to 80 C).",
        prefix="other_cards",
    ),
)


def figures(
    found: Sequence[Comparison], others: Sequence[tuple[Runs, Sequence[Comparison]]], errors: Sequence[HeldOut]
) -> dict[str, float]:
    """What `--json` prints; errors as fractions."""
    grouped: dict[str, list[Comparison]] = {}
    for runs, comparisons in others:
        grouped.setdefault(runs.prefix, []).extend(comparisons)
    return {
        **{f"{name}_mape": mape(found, name) for name in _MAIN},
        "step_time_worst": max(abs(run.quantities["step_time"].error) for run in found),
        "step_time_coverage_90": coverage(found, "step_time"),
        "energy_coverage_90": coverage(found, "energy"),
        "operator_median_of_medians": float(np.median([e.median for e in errors])),
        "operator_medians_above_aim": float(sum(e.median > _AIM for e in errors)),
        "operator_passes": float(len(errors)),
        "points": float(len(found)),
        **{f"{prefix}_{name}_mape": mape(runs, name) for prefix, runs in grouped.items() for name in _MAIN},
        **{f"{prefix}_step_time_coverage_90": coverage(runs, "step_time") for prefix, runs in grouped.items()},
        **{f"{prefix}_points": float(len(runs)) for prefix, runs in grouped.items()},
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


def _others(runs: Runs, found: Sequence[Comparison]) -> list[str]:
    return [
        f"## {runs.title}",
        "",
        *runs.text.splitlines(),
        "",
        *_table(found, ("step_time", "energy", "clock")),
        "",
        *_table(found, ("memory", "power")),
        "",
        f"The 90 % interval held the measured step time in {coverage(found, 'step_time'):.0%} of these runs.",
        "",
    ]


def report(
    found: Sequence[Comparison],
    others: Sequence[tuple[Runs, Sequence[Comparison]]],
    errors: Sequence[HeldOut],
    calibration: Calibration,
    measured: Profile,
) -> str:
    """The text of `docs/accuracy.md`."""
    manifest = measured.manifest
    device = f"{manifest.device.name}, {manifest.device.power_limit_W:.0f} W, torch {manifest.libraries['torch']}"
    f = figures(found, others, errors)
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
        *(line for runs, comparisons in others for line in _others(runs, comparisons)),
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
    records = read_table(profile.folder, "iterations").to_dict("records")
    return [{str(name): value for name, value in record.items()} for record in records]


def _compared(folder: str, calibration: Calibration) -> list[Comparison]:
    return compare(_rows(read_profile(_ROOT / "bench" / "measured" / folder)), calibration)


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
    others = [(runs, _compared(arguments.gpu + runs.folder, calibration)) for runs in OTHERS]
    profiles = _ROOT / "calibrate" / "profiles"
    errors = held_out_errors(*(profiles / f"{arguments.gpu}-{which}" for which in PROFILES))
    arguments.output.write_text(report(found, others, errors, calibration, measured), encoding="utf-8")
    result = figures(found, others, errors)
    if arguments.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:34s} {value:.4g}")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
