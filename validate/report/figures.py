"""Figures of a report as SVG, to stand in a page: no script, nothing loaded, colours from the page's style sheet.

Classes: `measured`, `predicted`, `interval`, `link`, `grid`, `axis`, `zero`. Every mark has a title that a pointer
shows; the page has a table with the same numbers beside every figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from moemodel.model.results.validation import PlanReport, QuantityReport, Report
from moemodel.validation.report.units import UNITS, Unit, number

# Lengths are in pixels of a page at its usual width.
_WIDTH = 760.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 210.0, 24.0, 14.0, 46.0  # of a figure, around its marks
_ROW = 26.0  # a line of text and its air
_PLANE_HEIGHT, _PLANE_TOP, _PLANE_LEFT = 400.0, 26.0, 70.0
_RADIUS = {"measured": 4.0, "predicted": 6.5}  # the inner dot stays visible in the outer ring
_MOST_NAMED = 14  # plans whose names stand beside their dots
_LOG_FROM = 6.0  # largest over smallest value, from which an axis is logarithmic
_LABEL, _SHORT_LABEL = 30, 18  # characters of a plan's name that fit beside a figure, and in one


@dataclass(frozen=True, kw_only=True)
class Axis:
    """From values to places along an axis, and where its ticks stand."""

    place: Callable[[float], float]
    ticks: tuple[float, ...]


def axis(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis that holds all values, from `start` to `end`, logarithmic where they span much; all of them positive."""
    low, high = min(values), max(values)
    if low > 0 and high / low > _LOG_FROM:
        first, last = math.log10(low) - 0.05, math.log10(high) + 0.05
        return Axis(
            place=lambda value: start + (math.log10(value) - first) / (last - first) * (end - start),
            ticks=tuple(t for t in _log_ticks(low, high) if first <= math.log10(t) <= last),
        )
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    first, last = low - pad, high + pad
    return Axis(place=lambda value: start + (value - first) / (last - first) * (end - start), ticks=ticks(first, last))


def ticks(low: float, high: float, about: int = 6) -> tuple[float, ...]:
    """Round numbers from low to high: steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(n * step for n in range(first, last + 1))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    return tuple(float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5))


# ---- figures --------------------------------------------------------------------------------------------------------


def spans(plans: Sequence[PlanReport], name: str) -> str:
    """Predicted and measured, a row for each plan, with the predicted interval and the deviation over repeats."""
    unit = UNITS[name]
    found = [(plan, quantity) for plan in plans if (quantity := plan.quantities.get(name)) and _any(quantity)]
    if not found:
        return ""
    values = [value * unit.scale for _, quantity in found for value in _extent(quantity)]
    x = axis(values, _LEFT, _WIDTH - _RIGHT)
    height = _TOP + _ROW * len(found) + _BOTTOM
    parts = [_grid(x, height, f"{unit.label}, {unit.symbol}")]
    for index, (plan, quantity) in enumerate(found):
        parts.append(_span(plan, quantity, unit, x, _TOP + _ROW * (index + 0.5)))
    return _svg(height, f"{unit.label} of every plan, predicted and measured", parts)


def _span(plan: PlanReport, quantity: QuantityReport, unit: Unit, x: Axis, y: float) -> str:
    parts = [_label(plan.name, y)]
    shown = quantity.predicted or quantity.forecast
    if shown is not None and shown.interval is not None:
        low, high = (x.place(edge * unit.scale) for edge in shown.interval)
        title = f"{plan.name}: 90 % interval {_of(shown.interval[0], unit)} to {_of(shown.interval[1], unit)}"
        parts.append(_line(low, y, high, y, "interval", title))
    measured = quantity.measured
    if measured is not None:
        spread = measured.std or 0.0
        title = f"{plan.name}: measured {_of(measured.mean, unit)}, standard deviation {_of(spread, unit)}"
        low, high = (x.place((measured.mean + sign * spread) * unit.scale) for sign in (-1, 1))
        parts += [_line(low, y, high, y, "deviation", title)]
        parts.append(_dot(x.place(measured.mean * unit.scale), y, "measured", title))
    if shown is not None:
        title = f"{plan.name}: predicted {_of(shown.value, unit)}"
        parts.append(_dot(x.place(shown.value * unit.scale), y, "predicted", title))
    return "".join(parts)


def errors(report: Report) -> str:
    """Errors of all plans, a row for each quantity; the band is the mean absolute error either way."""
    names = [name for name in UNITS if name in report.errors]
    found = {name: [plan for plan in report.plans if _error(plan, name) is not None] for name in names}
    values = [100 * (_error(plan, name) or 0.0) for name in names for plan in found[name]]
    if not values:
        return ""
    farthest = max(max(map(abs, values)), 1.0)
    x = axis([-farthest, farthest], _LEFT, _WIDTH - _RIGHT)
    height = _TOP + 1.4 * _ROW * len(names) + _BOTTOM
    parts = [_grid(x, height, "predicted over measured, less 1, %")]
    parts.append(_line(x.place(0), _TOP, x.place(0), height - _BOTTOM, "zero"))
    for index, name in enumerate(names):
        y = _TOP + 1.4 * _ROW * (index + 0.5)
        mape = 100 * report.errors[name].mape
        parts.append(_label(UNITS[name].label, y))
        title = f"{UNITS[name].label}: mean absolute error {mape:.1f} %"
        parts.append(_line(x.place(-mape), y, x.place(mape), y, "band", title))
        for plan in found[name]:
            error = 100 * (_error(plan, name) or 0.0)
            parts.append(_dot(x.place(error), y, "predicted", f"{plan.name}: {error:+.1f} %"))
    return _svg(height, "Errors of all plans by quantity", parts)


def plane(plans: Sequence[PlanReport]) -> str:
    """Energy against time of every plan, predicted and measured; a line joins the two."""
    found = [plan for plan in plans if all(_both(plan.quantities.get(name)) for name in ("step_time", "energy"))]
    if len(found) < 2:
        return ""
    time, energy = UNITS["step_time"], UNITS["energy"]
    points = {plan.name: [_point(plan, which) for which in (0, 1)] for plan in found}
    x = axis([p[0] * time.scale for both in points.values() for p in both], _PLANE_LEFT, _WIDTH - _RIGHT)
    y = axis([p[1] * energy.scale for both in points.values() for p in both], _PLANE_HEIGHT - _BOTTOM, _PLANE_TOP)
    parts = [
        _grid(x, _PLANE_HEIGHT, f"{time.label}, {time.symbol}", _PLANE_TOP),
        _across(y, f"{energy.label}, {energy.symbol}"),
    ]
    for plan in found:
        (px, py), (mx, my) = ((x.place(t * time.scale), y.place(e * energy.scale)) for t, e in points[plan.name])
        parts.append(_line(px, py, mx, my, "link"))
        for which, (cx, cy) in (("measured", (mx, my)), ("predicted", (px, py))):
            t, e = points[plan.name][which == "measured"]
            parts.append(_dot(cx, cy, which, f"{plan.name}: {which} {_of(t, time)}, {_of(e, energy)}"))
        if len(found) <= _MOST_NAMED:
            right = mx > _WIDTH / 2
            name = _short(plan.name, _SHORT_LABEL)
            parts.append(_text(mx - 9 if right else mx + 9, my + 4, name, "end" if right else "start"))
    return _svg(_PLANE_HEIGHT, "Energy against time of every plan, predicted and measured", parts)


def _point(plan: PlanReport, which: int) -> tuple[float, float]:
    """Time and energy, predicted (0) or measured (1)."""
    pairs = []
    for name in ("step_time", "energy"):
        quantity = plan.quantities[name]
        predicted, measured = quantity.predicted, quantity.measured
        pairs.append((predicted.value if predicted else math.nan, measured.mean if measured else math.nan)[which])
    return pairs[0], pairs[1]


def _both(quantity: QuantityReport | None) -> bool:
    return quantity is not None and quantity.predicted is not None and quantity.measured is not None


def _any(quantity: QuantityReport) -> bool:
    return any(part is not None for part in (quantity.predicted, quantity.forecast, quantity.measured))


def _error(plan: PlanReport, name: str) -> float | None:
    quantity = plan.quantities.get(name)
    return None if quantity is None else quantity.error


def _extent(quantity: QuantityReport) -> list[float]:
    shown, measured = quantity.predicted or quantity.forecast, quantity.measured
    found = [] if shown is None else [shown.value, *(shown.interval or ())]
    if measured is not None:
        found += [measured.mean - (measured.std or 0.0), measured.mean + (measured.std or 0.0)]
    return found


# ---- marks ----------------------------------------------------------------------------------------------------------


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH:g} {height:g}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _grid(x: Axis, height: float, label: str, top: float = _TOP) -> str:
    bottom = height - _BOTTOM
    lines = [
        _line(x.place(tick), top, x.place(tick), bottom, "grid") + _text(x.place(tick), bottom + 16, number(tick))
        for tick in x.ticks
    ]
    return "".join(lines) + _text(_WIDTH - _RIGHT, height - 8, label, "end")


def _across(y: Axis, label: str) -> str:
    lines = [
        _line(_PLANE_LEFT, y.place(tick), _WIDTH - _RIGHT, y.place(tick), "grid")
        + _text(_PLANE_LEFT - 6, y.place(tick) + 4, number(tick), "end")
        for tick in y.ticks
    ]
    return "".join(lines) + _text(0, 10, label, "start")


def _label(text: str, y: float) -> str:
    inside = f"{escape(_short(text, _LABEL))}<title>{escape(text)}</title>"
    return f'<text x="{_LEFT - 12:g}" y="{y + 4:.1f}" text-anchor="end">{inside}</text>'


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text class="axis" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str, title: str = "") -> str:
    shown = f"<title>{escape(title)}</title>" if title else ""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}">{shown}</line>'


def _dot(x: float, y: float, kind: str, title: str) -> str:
    radius = _RADIUS[kind]  # a ring around the dot stays visible where the two agree
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"><title>{escape(title)}</title></circle>'


def _of(value: float, unit: Unit) -> str:
    return f"{number(value * unit.scale)} {unit.symbol}"
