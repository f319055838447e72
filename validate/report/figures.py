"""Figures of a report as SVG, to stand in a page: no script, nothing loaded, colours from the page's style sheet.

Classes: `measured`, `predicted`, `interval`, `link`, `grid`, `axis`, `zero`. Every mark has a title that a pointer
shows; the page has a table with the same numbers beside every figure. Each figure is drawn for a frame, of which there
is a wide and a narrow one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from moemodel.model.results.validation import PlanReport, QuantityReport, Report
from moemodel.validation.report.marks import (
    BOTTOM,
    TOP,
    WIDE,
    Axis,
    Frame,
    Places,
    across,
    axis,
    bar,
    dot,
    errors_axis,
    grid,
    line,
    svg,
)
from moemodel.validation.report.names import labels
from moemodel.validation.report.units import PHASES, UNITS, Unit, number, percent

_PLANE_HEIGHT, _PLANE_TOP, _PLANE_LEFT = 400.0, 26.0, 70.0
_SHORT_LABEL = 20  # characters of a plan's name that fit in a figure
_BAR = 8.0  # height of a bar of phases
_LEAST_SHARE = 0.1  # of its mean, that a deviation as large as the mean leaves of it on a logarithmic axis


def spans(plans: Sequence[PlanReport], name: str, frame: Frame = WIDE) -> str:
    """Predicted and measured, a row for each plan, with the predicted interval and the deviation over repeats."""
    unit = UNITS[name]
    found = [(plan, quantity) for plan in plans if (quantity := plan.quantities.get(name)) and _any(quantity)]
    if not found:
        return ""
    values = [value * unit.scale for _, quantity in found for value in _extent(quantity)]
    x, named = axis(values, frame.start, frame.end), labels(plans, frame.room)
    height = frame.height(len(found))
    parts = [grid(frame, x, height, f"{unit.label}, {unit.symbol}")]
    for index, (plan, quantity) in enumerate(found):
        parts.append(frame.label(named[plan.name], plan.name, index) + _span(plan, quantity, unit, x, frame.y(index)))
    return svg(frame, height, f"{unit.label} of every plan, predicted and measured", parts)


def _span(plan: PlanReport, quantity: QuantityReport, unit: Unit, x: Axis, y: float) -> str:
    parts = []
    shown = quantity.predicted or quantity.forecast
    if shown is not None and shown.interval is not None:
        low, high = (x.place(edge * unit.scale) for edge in shown.interval)
        title = f"{plan.name}: 90 % interval {_of(shown.interval[0], unit)} to {_of(shown.interval[1], unit)}"
        parts.append(line(low, y, high, y, "interval", title))
    measured = quantity.measured
    if measured is not None:
        spread = measured.std or 0.0
        title = f"{plan.name}: measured {_of(measured.mean, unit)}, standard deviation {_of(spread, unit)}"
        low, high = (x.place(edge * unit.scale) for edge in _deviation(quantity))
        parts += [line(low, y, high, y, "deviation", title)]
        parts.append(dot(x.place(measured.mean * unit.scale), y, "measured", title))
    if shown is not None:
        title = f"{plan.name}: predicted {_of(shown.value, unit)}"
        parts.append(dot(x.place(shown.value * unit.scale), y, "predicted", title))
    return "".join(parts)


def phases(plans: Sequence[PlanReport], frame: Frame = WIDE) -> str:
    """The parts of a step, a row for each plan: those predicted above those measured."""
    found = [plan for plan in plans if all(_both(plan.quantities.get(name)) for name in PHASES)]
    if not found:
        return ""
    both = {plan.name: (_phases(plan, predicted=True), _phases(plan, predicted=False)) for plan in found}
    scale = PHASES["forward"].scale
    longest = max(sum(times) for pair in both.values() for times in pair) * scale
    x, named = axis([0.0, longest], frame.start, frame.end), labels(plans, frame.room)
    height = frame.height(len(found))
    parts = [grid(frame, x, height, "time of a step's parts, ms")]
    for index, plan in enumerate(found):
        parts.append(frame.label(named[plan.name], plan.name, index))
        for times, said, y in zip(both[plan.name], ("predicted", "measured"), (-1, 1), strict=True):
            begin = 0.0
            for (phase, unit), time_s in zip(PHASES.items(), times, strict=True):
                title = f"{plan.name}: {unit.label} {said} {_of(time_s, unit)}"
                left, right = x.place(begin * scale), x.place((begin + time_s) * scale)
                parts.append(bar(left, right, frame.y(index) + y * (_BAR / 2 + 0.5), _BAR, f"{phase} {said}", title))
                begin += time_s
    return svg(frame, height, "Phases of a step of every plan, predicted and measured", parts)


def _phases(plan: PlanReport, *, predicted: bool) -> list[float]:
    quantities = [plan.quantities[name] for name in PHASES]
    return [_value(quantity, predicted=predicted) for quantity in quantities]


def errors(report: Report, frame: Frame = WIDE, units: Mapping[str, Unit] = UNITS) -> str:
    """Errors of all plans, a row for each quantity; the band is the mean absolute error either way."""
    names = [name for name in units if name in report.errors]
    found = {name: [plan for plan in report.plans if _error(plan, name) is not None] for name in names}
    values = [_error(plan, name) or 0.0 for name in names for plan in found[name]]
    if not values:
        return ""
    x = errors_axis([*values, *(report.errors[name].mape for name in names)], frame.start, frame.end)
    height = frame.height(len(names))
    parts = [grid(frame, x, height, "predicted over measured, less 1, %", named=_signed)]
    parts.append(line(x.place(0), TOP, x.place(0), height - BOTTOM, "zero"))
    for index, name in enumerate(names):
        y, mape = frame.y(index), report.errors[name].mape
        parts.append(frame.label(units[name].label, units[name].label, index))
        title = f"{units[name].label}: mean absolute error {percent(mape)}"
        parts.append(line(_inside(x.place(max(-mape, -1.0)), frame), y, x.place(mape), y, "band", title))
        for plan in found[name]:
            error = _error(plan, name) or 0.0
            parts.append(
                dot(_inside(x.place(error), frame), y, "predicted", f"{plan.name}: {percent(error, signed=True)}")
            )
    return svg(frame, height, "Errors of all plans by quantity", parts)


def _signed(error: float) -> str:
    return f"{100 * error:+.4g}" if error else "0"


def _inside(x: float, frame: Frame) -> float:
    """Nothing is 100 % too small or more, so a band ends there: at the axis' beginning where that is nearer."""
    return max(x, frame.start)


def plane(plans: Sequence[PlanReport], frame: Frame = WIDE) -> str:
    """Energy against time of every plan, predicted and measured; a line joins the two."""
    found = [plan for plan in plans if all(_both(plan.quantities.get(name)) for name in ("step_time", "energy"))]
    if len(found) < 2:
        return ""
    time, energy = UNITS["step_time"], UNITS["energy"]
    points = {plan.name: [_point(plan, predicted=which) for which in (True, False)] for plan in found}
    x = axis([p[0] * time.scale for both in points.values() for p in both], _PLANE_LEFT, frame.end)
    y = axis([p[1] * energy.scale for both in points.values() for p in both], _PLANE_HEIGHT - BOTTOM, _PLANE_TOP)
    parts = [
        grid(frame, x, _PLANE_HEIGHT, f"{time.label}, {time.symbol}", _PLANE_TOP),
        across(frame, y, f"{energy.label}, {energy.symbol}", _PLANE_LEFT),
    ]
    places, named = Places(width=frame.width), labels(plans, _SHORT_LABEL)
    dots: dict[str, tuple[float, float]] = {}
    for plan in found:
        (px, py), (mx, my) = ((x.place(t * time.scale), y.place(e * energy.scale)) for t, e in points[plan.name])
        parts.append(line(px, py, mx, my, "link"))
        for which, (cx, cy) in (("measured", (mx, my)), ("predicted", (px, py))):
            t, e = points[plan.name][which == "measured"]
            parts.append(dot(cx, cy, which, f"{plan.name}: {which} {_of(t, time)}, {_of(e, energy)}"))
            places.take(cx, cy, 7)
        places.take_line(px, py, mx, my)
        dots[plan.name] = (mx, my)
    parts += [places.beside(*dots[plan.name], named[plan.name]) for plan in found]
    return svg(frame, _PLANE_HEIGHT, "Energy against time of every plan, predicted and measured", parts)


def _point(plan: PlanReport, *, predicted: bool) -> tuple[float, float]:
    """Time and energy."""
    time, energy = (_value(plan.quantities[name], predicted=predicted) for name in ("step_time", "energy"))
    return time, energy


def _value(quantity: QuantityReport, *, predicted: bool) -> float:
    if predicted:
        return quantity.predicted.value if quantity.predicted else math.nan
    return quantity.measured.mean if quantity.measured else math.nan


def _both(quantity: QuantityReport | None) -> bool:
    return quantity is not None and quantity.predicted is not None and quantity.measured is not None


def _any(quantity: QuantityReport) -> bool:
    return any(part is not None for part in (quantity.predicted, quantity.forecast, quantity.measured))


def _error(plan: PlanReport, name: str) -> float | None:
    quantity = plan.quantities.get(name)
    return None if quantity is None else quantity.error


def _extent(quantity: QuantityReport) -> list[float]:
    shown = quantity.predicted or quantity.forecast
    return [*([] if shown is None else [shown.value, *(shown.interval or ())]), *_deviation(quantity)]


def _deviation(quantity: QuantityReport) -> tuple[float, ...]:
    """A standard deviation below what was measured, and one above; never down to nothing."""
    measured = quantity.measured
    if measured is None:
        return ()
    spread = measured.std or 0.0
    return max(measured.mean - spread, _LEAST_SHARE * measured.mean), measured.mean + spread


def _of(value: float, unit: Unit) -> str:
    return f"{number(value * unit.scale)} {unit.symbol}"
