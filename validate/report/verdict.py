"""Whether predictions are as good as they say: by the intervals, which say how far off they may be.

Of measurements, nine in ten should lie inside the 90 % interval. More lie outside than chance explains where

    P(X >= misses) < 5 %,    X ~ Binomial(n, 10 %)

so one plan outside says nothing, two of two do. Left out: that plans of one model err together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from moemodel.model.results.validation import PlanReport, QuantityReport, Report
from moemodel.validation.report.units import UNITS, Unit, percent

Level = Literal["good", "poor", "open"]

_OUTSIDE = 0.1  # share of measurements that a 90 % interval leaves out
_CHANCE = 0.05  # by convention
_USELESS = 2.0  # factor either way: an interval from half to twice the value tells no two plans apart
_FEWEST = 3  # measurements to judge by, by choice: of two, intervals half as wide pass with 83 %
CHOSEN_BY = ("step_time", "energy")  # what a choice of plans rests on


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """On one quantity, or on all: a level, and a sentence."""

    level: Level
    text: str


def verdict(report: Report) -> Verdict:
    """On the whole validation: what its user may rely on."""
    judged = {name: found for name in CHOSEN_BY if (found := judge(report.plans, name)) is not None}
    if not judged:
        failed = len(report.failed)
        why = f"{failed} of {len(report.plans)} plans failed" if failed else "no plan ran"
        return Verdict(level="open", text=f"Nothing to judge: {why}.")
    poor = [name for name, found in judged.items() if found.level == "poor"]
    if poor:
        named = " and ".join(UNITS[name].label for name in poor)
        return Verdict(
            level="poor",
            text=f"Not good enough: {named} {'is' if len(poor) == 1 else 'are'} not what the intervals say. Do not "
            "choose between plans by these predictions.",
        )
    if any(found.level == "open" for found in judged.values()):
        return Verdict(level="open", text="Not enough to tell: validate more plans.")
    named = " and ".join(UNITS[name].label for name in judged)
    return Verdict(
        level="good", text=f"Good enough: {named} {'are' if len(judged) > 1 else 'is'} as close as the intervals say."
    )


def judge(plans: Sequence[PlanReport], name: str) -> Verdict | None:
    """On one quantity; None where no plan measured it."""
    unit = UNITS[name]
    measured = [plan.quantities[name] for plan in plans if name in plan.quantities]
    errors = [abs(quantity.error) for quantity in measured if quantity.error is not None]
    if not errors:
        return None
    off = f"off by {percent(fmean(errors))} in the mean"
    held = [inside for quantity in measured if (inside := _inside(quantity)) is not None]
    widths = [width for quantity in measured if (width := _factor(quantity)) is not None]
    if not held:
        return _said("open", unit, f"no interval to judge by; {off}")
    where = f"{sum(held)} of {len(held)} measurements inside the 90 % interval; {off}"
    if median(widths) >= _USELESS:
        wide = f"the interval reaches from 1/{median(widths):.1f} to {median(widths):.1f} times the value"
        return _said("poor", unit, f"for trying the commands only: {wide}; {where}")
    if _tail(len(held) - sum(held), len(held)) < _CHANCE:
        return _said("poor", unit, f"worse than it says: {where}")
    if len(held) < _FEWEST:
        return _said("open", unit, f"too few to tell: {where}")
    return _said("good", unit, f"as good as it says: {where}")


def _said(level: Level, unit: Unit, text: str) -> Verdict:
    return Verdict(level=level, text=f"{unit.label[0].upper()}{unit.label[1:]}: {text}.")


def _inside(quantity: QuantityReport) -> bool | None:
    predicted, measured = quantity.predicted, quantity.measured
    if predicted is None or measured is None or predicted.interval is None:
        return None
    return predicted.interval[0] <= measured.mean <= predicted.interval[1]


def _factor(quantity: QuantityReport) -> float | None:
    """How far the interval reaches either way, as a factor."""
    if _inside(quantity) is None or quantity.predicted is None or quantity.predicted.interval is None:
        return None
    low, high = quantity.predicted.interval
    return math.sqrt(high / low) if low > 0 else math.inf


def _tail(misses: int, count: int) -> float:
    """Probability of so many misses or more."""
    return sum(math.comb(count, k) * _OUTSIDE**k * (1 - _OUTSIDE) ** (count - k) for k in range(misses, count + 1))
