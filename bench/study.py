"""The parallelism study: what it found, held against its prediction (`model.results.parallelism_insights`).

    python bench/study.py [--json]

Nothing is measured here and nothing is fitted to the study: the figures say whether the model shows what was found.

    insights                    three objects: `name`, `holds`, `margin` (a fraction of energy)
    margin_at_equal_time        of the third, where the data-parallel plan is slowed to the same time too; null: the
                                curves have no time in common
    fastest_at_full_clock_right the plan that was measured as the fastest of four is predicted so, as the software is
                                taken to have run; `ahead` of the next, a fraction of time
    fastest_at_full_clock       by assumption
    seconds                     for all
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.results.parallelism import GPUS, MEASURED_FASTEST
from moemodel.model.results.parallelism_insights import fastest_text, predicted_study


def figures() -> tuple[dict[str, Any], list[str]]:
    """All figures of the module's docstring, and the texts behind them."""
    began_s = time.perf_counter()
    found = predicted_study({gpu: load_calibration(None, gpu, key="gpu") for gpu in GPUS})
    first, second = found.variants[0].points[:2]
    texts = [*fastest_text(found.variants), *(text for insight in found.insights for text in insight.text)]
    return {
        "insights": [{"name": i.name, "holds": i.holds, "margin": i.margin} for i in found.insights],
        "margin_at_equal_time": found.insights[2].figures["margin_at_equal_time"],
        "fastest_at_full_clock_right": first.name == MEASURED_FASTEST,
        "ahead": second.step_s / first.step_s - 1,
        "fastest_at_full_clock": {variant.name: variant.points[0].name for variant in found.variants},
        "seconds": time.perf_counter() - began_s,
    }, texts


def main(arguments: Sequence[str] | None = None) -> None:
    """The command of the module's docstring."""
    parser = argparse.ArgumentParser(description="The parallelism study: found, against predicted.")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    asked = parser.parse_args(arguments)
    found, texts = figures()
    if asked.json:
        print(json.dumps(found, indent=1))
        return
    for insight in found["insights"]:
        print(f"{insight['name']}: {'holds' if insight['holds'] else 'does not hold'}, margin {insight['margin']:.1%}")
    print("\n".join(texts))


if __name__ == "__main__":
    main()
