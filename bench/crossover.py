"""The crossover study: predicted against published and measured.

    python bench/crossover.py [--json] [--folder FOLDER]

Published are neuralwatt's figures (`model.results.crossover` says what is known of them; blogpost.md of April 2025 and
output/ at https://github.com/neuralwatt/moe_energy_evaluation), of one A100 80 GB of 300 W, taken for the PCIe card.
Measured are the files of `moemodel.profiler.studies.crossover` in bench/measured/crossover, one a GPU, named after it.
Every model is predicted anew by the shipped calibration of its GPU, or what is derived of it; nothing is fitted to
these figures, but the published ones were known, and how loops load the host was counted anew after a first comparison
(docs/plans.md): of them they are no blind test. What was predicted
before anything was measured is bench/plans/crossover/predicted.json.

    winners_right, of       dense model or Mixture-of-Experts: pairs of either form at each size
    inferences_per_J_mape   mean of |predicted/measured - 1| over all models, published and measured
    turns_right             GPUs and forms whose size at which it turns is right, of `turns`
    GPU or "published"      the same of each, and its errors by size and form
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.results.crossover import (
    MIXTURES,
    SIZES,
    Form,
    Rate,
    Rates,
    predicted_rates,
    rates_of,
    turns_at,
    winner,
)

_MEASURED = Path(__file__).parent / "measured" / "crossover"
_PUBLISHED_GPU = "a100-pcie-80gb"

# inferences/J and, where they are told, inferences/s and W: blogpost.md; those of the largest loop over every expert
# are not published.
_PUBLISHED: dict[tuple[str, Form], tuple[float, float | None, float | None]] = {
    ("small", "dense"): (5746.08, None, None),
    ("small", "every"): (742.50, None, None),
    ("small", "chosen"): (770.18, None, None),
    ("medium", "dense"): (337.49, None, None),
    ("medium", "every"): (257.15, None, None),
    ("medium", "chosen"): (265.32, None, None),
    ("large", "dense"): (57.37, 17151.69, 298.97),
    ("large", "every"): (89.91, None, None),
    ("large", "chosen"): (95.35, 15762.55, 165.31),
    ("xlarge", "dense"): (9.27, 2700.41, 291.33),
    ("xlarge", "chosen"): (16.19, 4081.49, 252.06),
}


def published() -> Rates:
    """Of the study."""
    return {
        model: Rate(inferences_per_J=per_J, inferences_per_s=per_s, power_W=watts)
        for model, (per_J, per_s, watts) in _PUBLISHED.items()
    }


def measured(folder: Path) -> dict[str, Rates]:
    """By GPU, of files that this project measured; those of tiny models are none."""
    found: dict[str, Rates] = {}
    for file in sorted(folder.glob("*.json")):
        document = json.loads(file.read_text())
        if not document["tiny"]:
            found[file.stem] = rates_of(document["cases"])
    return found


def compared(predicted: Rates, known: Rates) -> dict[str, Any]:
    """Winners, where it turns, and errors of one source."""
    pairs = [(size, form) for size in SIZES for form in MIXTURES if {(size, form), (size, "dense")} <= set(known)]
    right = [winner(predicted, *pair) == winner(known, *pair) for pair in pairs]
    whole = [form for form in MIXTURES if all((size, form) in known for size in SIZES)]
    errors = {model: predicted[model].inferences_per_J / rate.inferences_per_J - 1 for model, rate in known.items()}
    return {
        "winners_right": sum(right),
        "of": len(right),
        "turns_right": sum(turns_at(predicted, form) == turns_at(known, form) for form in whole),
        "turns": len(whole),
        "inferences_per_J_mape": fmean(map(abs, errors.values())),
        "inferences_per_s_mape": _mape(predicted, known, "inferences_per_s"),
        "power_mape": _mape(predicted, known, "power_W"),
        "errors": {f"{size} {form}": error for (size, form), error in errors.items()},
    }


def _mape(predicted: Rates, known: Rates, name: str) -> float | None:
    pairs = [(getattr(predicted[model], name), getattr(rate, name)) for model, rate in known.items()]
    errors = [abs(said / found - 1) for said, found in pairs if found is not None]
    return fmean(errors) if errors else None


def figures(folder: Path = _MEASURED) -> dict[str, Any]:
    """All figures of the module's docstring."""
    sources = {"published": (_PUBLISHED_GPU, published())}
    sources |= {gpu: (gpu, rates) for gpu, rates in measured(folder).items()}
    each = {
        name: compared(predicted_rates(load_calibration(None, gpu, key="gpu")), rates)
        for name, (gpu, rates) in sources.items()
    }
    errors = [abs(error) for one in each.values() for error in one["errors"].values()]
    sums = {name: sum(one[name] for one in each.values()) for name in ("winners_right", "of", "turns_right", "turns")}
    return sums | {"inferences_per_J_mape": fmean(errors)} | each


def _told(found: Mapping[str, Any]) -> str:
    lines = [
        f"winners right: {found['winners_right']} of {found['of']}; the size at which it turns: "
        f"{found['turns_right']} of {found['turns']}; inferences/J {found['inferences_per_J_mape']:.1%} off in the mean"
    ]
    for name, one in found.items():
        if isinstance(one, dict):
            lines.append(f"{name}: {one['winners_right']} of {one['of']}, {one['inferences_per_J_mape']:.1%}")
            lines += [f"  {model:<16} {error:+.1%}" for model, error in one["errors"].items()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command of the module's docstring."""
    parser = argparse.ArgumentParser(description="The crossover study, predicted against published and measured.")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--folder", type=Path, default=_MEASURED, help="of measured files")
    asked = parser.parse_args(arguments)
    found = figures(asked.folder)
    print(json.dumps(found, indent=1) if asked.json else _told(found))


if __name__ == "__main__":
    main()
