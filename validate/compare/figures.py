"""Figures of a comparison as SVG, to stand in its page, in the manner of `report.figures`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moemodel.validation.compare.cells import Cell
from moemodel.validation.compare.comparison import forecast_of
from moemodel.validation.compare.css import SERIES
from moemodel.validation.compare.equal import Measured, task_losses
from moemodel.validation.compare.forecast import Expected
from moemodel.validation.compare.quantities import ALL, PHASES
from moemodel.validation.report.marks import (
    BOTTOM,
    Axis,
    Frame,
    Places,
    across,
    axis,
    bar,
    curve,
    dot,
    even_axis,
    grid,
    line,
    svg,
)
from moemodel.validation.report.names import shortened
from moemodel.validation.report.units import Unit, number

_HEIGHT, _TOP, _LEFT = 340.0, 26.0, 70.0  # of figures with two axes, in pixels
_SHORT = 26  # characters of a cell's label in a plane
_BAR, _THIN = 9.0, 5.0  # heights of bars: measured, predicted
_POINTS = 120  # of a curve, at most: each the mean of the steps that it stands for
MOST_CURVES = 16  # in a figure: the colours twice, whole and dashed
_LEAST_SHARE = 0.1  # of its mean, that a deviation as large as the mean leaves of it on a logarithmic axis


# ---- a row a cell ---------------------------------------------------------------------------------------------------


def spans(cells: Sequence[Cell], quantity: str, frame: Frame) -> str:
    """A quantity of every cell: mean, standard deviation and single runs, and what was predicted where it was."""
    unit = ALL[quantity]
    found = [cell for cell in cells if cell.spread(quantity) is not None]
    if not found:
        return ""
    expected = {cell.label: expectation(cell, quantity) for cell in found}
    values = [value * unit.scale for cell in found for value in _extent(cell, quantity, expected[cell.label])]
    x, height = axis(values, frame.start, frame.end), frame.height(len(found))
    parts = [grid(frame, x, height, _axis_label(unit))]
    for index, cell in enumerate(found):
        parts.append(frame.label(shortened(cell.label, frame.room), cell.label, index))
        parts.append(_span(cell, quantity, expected[cell.label], x, frame.y(index)))
    return svg(frame, height, f"{unit.label} of every cell", parts)


def expectation(cell: Cell, quantity: str) -> Expected | None:
    """What was predicted of a cell's compared steps together."""
    forecast, steps = forecast_of(cell), cell.runs[0].steps
    if forecast is None:
        return None
    name = {"energy": "energy", "duration": "step_time", "memory": "memory"}.get(quantity)
    one = None if name is None else forecast.values.get(name)
    if one is None:
        return None
    times = 1.0 if quantity == "memory" else steps
    edges = one.interval
    return Expected(value=one.value * times, interval=None if edges is None else (edges[0] * times, edges[1] * times))


def _extent(cell: Cell, quantity: str, expected: Expected | None) -> list[float]:
    single = [run.values[quantity] for run in cell.runs if quantity in run.values]
    said = [] if expected is None else [expected.value, *(expected.interval or ())]
    return [*single, *_deviation(cell, quantity), *said]


def _deviation(cell: Cell, quantity: str) -> tuple[float, float]:
    spread = cell.spread(quantity)
    assert spread is not None
    return max(spread.mean - (spread.std or 0.0), _LEAST_SHARE * spread.mean), spread.mean + (spread.std or 0.0)


def _span(cell: Cell, quantity: str, expected: Expected | None, x: Axis, y: float) -> str:
    unit, spread = ALL[quantity], cell.spread(quantity)
    assert spread is not None
    parts = []
    if expected is not None and expected.interval is not None:
        low, high = expected.interval
        title = f"{cell.label}: 90 % interval {_of(low, unit)} to {_of(high, unit)}"
        parts.append(line(x.place(low * unit.scale), y, x.place(high * unit.scale), y, "interval", title))
    for run in cell.runs if len(cell.runs) > 1 else ():
        if quantity in run.values:
            title = f"{run.run.manifest.name}: {_of(run.values[quantity], unit)}"
            parts.append(dot(x.place(run.values[quantity] * unit.scale), y, "single", title))
    over = "one run" if spread.std is None else f"standard deviation {_of(spread.std, unit)} over {spread.runs} runs"
    title = f"{cell.label}: {_of(spread.mean, unit)}, {over}"
    low, high = (x.place(edge * unit.scale) for edge in _deviation(cell, quantity))
    parts += [line(low, y, high, y, "deviation", title), dot(x.place(spread.mean * unit.scale), y, "measured", title)]
    if expected is not None:
        title = f"{cell.label}: predicted {_of(expected.value, unit)}"
        parts.append(dot(x.place(expected.value * unit.scale), y, "predicted", title))
    return "".join(parts)


def phases(cells: Sequence[Cell], frame: Frame) -> str:
    """Energy by phase, a row for each cell: what was measured, above it what was predicted."""
    found = [cell for cell in cells if measured_phases(cell)]
    if not found:
        return ""
    rows = {cell.label: (measured_phases(cell), predicted_phases(cell)) for cell in found}
    longest = max(sum(part.values()) for pair in rows.values() for part in pair)
    x, height = axis([0.0, longest], frame.start, frame.end), frame.height(len(found))
    parts = [grid(frame, x, height, "energy by phase, J")]
    for index, cell in enumerate(found):
        measured, predicted = rows[cell.label]
        y = frame.y(index)
        parts.append(frame.label(shortened(cell.label, frame.room), cell.label, index))
        parts.append(_stack(cell, predicted, "predicted", x, y - _BAR / 2 - 0.5, _THIN))
        parts.append(_stack(cell, measured, "measured", x, y + (_THIN / 2 if predicted else 0.0), _BAR))
    return svg(frame, height, "Energy by phase of every cell, predicted and measured", parts)


def _stack(cell: Cell, energies_J: dict[str, float], said: str, x: Axis, y: float, height: float) -> str:
    parts, begin = [], 0.0
    for name, energy_J in energies_J.items():
        title = f"{cell.label}: {PHASES.get(name, name)} {said} {number(energy_J)} J"
        parts.append(bar(x.place(begin), x.place(begin + energy_J), y, height, f"{name} {said}", title))
        begin += energy_J
    return "".join(parts)


def measured_phases(cell: Cell) -> dict[str, float]:
    """Mean energy of each phase over the repeats, J; nothing where one is not known."""
    found = {name: cell.phase(name) for name in cell.runs[0].phases}
    known = {name: spread.mean for name, spread in found.items() if spread is not None}
    return known if len(known) == len(found) else {}


def predicted_phases(cell: Cell) -> dict[str, float]:
    """What was predicted of the compared steps, J."""
    forecast, steps = forecast_of(cell), cell.runs[0].steps
    if forecast is None or not forecast.phases:
        return {}
    return {**{name: energy_J * steps for name, energy_J in forecast.phases.items()}, "rest": forecast.apart_J * steps}


# ---- two axes -------------------------------------------------------------------------------------------------------


def in_plane(cells: Sequence[Cell]) -> list[Cell]:
    """Cells that have both energy and loss."""
    return [cell for cell in cells if cell.spread("energy") is not None and cell.spread("loss") is not None]


def plane(cells: Sequence[Cell], frame: Frame) -> str:
    """Energy against loss of every cell, with both deviations; names where there is room."""
    found = in_plane(cells)
    if len(found) < 2:
        return ""
    energy, loss = ALL["energy"], ALL["loss"]
    x = axis([value for cell in found for value in _deviation(cell, "energy")], _LEFT, frame.end)
    y = axis([value for cell in found for value in _deviation(cell, "loss")], _HEIGHT - BOTTOM, _TOP)
    parts = [grid(frame, x, _HEIGHT, _axis_label(energy), _TOP), across(frame, y, _axis_label(loss), _LEFT)]
    places = Places(width=frame.width)
    at: dict[str, tuple[float, float]] = {}
    for index, cell in enumerate(found):
        of_energy, of_loss = cell.spread("energy"), cell.spread("loss")
        assert of_energy is not None
        assert of_loss is not None
        cx, cy = x.place(of_energy.mean), y.place(of_loss.mean)
        (left, right), (low, high) = _deviation(cell, "energy"), _deviation(cell, "loss")
        title = f"{cell.label}: {_of(of_energy.mean, energy)}, {_of(of_loss.mean, loss)}"
        colour = series_class(index)
        parts.append(line(x.place(left), cy, x.place(right), cy, f"whisker {colour}", title))
        parts.append(line(cx, y.place(low), cx, y.place(high), f"whisker {colour}", title))
        parts.append(dot(cx, cy, "measured", title, colour))
        places.take(cx, cy, 7)
        places.take_line(cx, y.place(low), cx, y.place(high))
        at[cell.label] = (cx, cy)
    parts += [places.beside(*at[cell.label], shortened(cell.label, _SHORT)) for cell in found]
    return svg(frame, _HEIGHT, "Energy against loss of every cell", parts)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line of a figure: its cell, and points."""

    label: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]


def curves_of(cells: Sequence[Cell], name: str) -> list[Curve]:
    """What a cell did over its samples, the mean over its repeats; of cells that recorded it.

    Args:
        cells: to draw, of which the first few are.
        name: loss, skew, dropped or entropy.
    """
    found = []
    for cell in cells:
        series = [one for run in cell.runs if (one := _series(run, name)) is not None]
        if series:
            mean_S = np.mean(series, axis=0)
            samples_S = cell.runs[0].run.plan.global_batch * np.arange(1, len(mean_S) + 1, dtype=float)
            known = np.isfinite(mean_S)
            if known.any():
                found.append(Curve(label=cell.label, x=_coarse(samples_S[known]), y=_coarse(mean_S[known])))
    return found[:MOST_CURVES]


def _series(run: Measured, name: str) -> NDArray[np.float64] | None:
    """Of the whole steps of a run that are compared."""
    whole = max(1, math.floor(run.steps + 1e-9))
    if name == "loss":
        return np.array([np.nan if loss is None else loss for loss in task_losses(run.run)[:whole]])
    routing = run.run.routing
    if routing is None:
        return None
    return {"skew": routing.skew_S, "dropped": routing.dropped_S, "entropy": routing.entropy_S}[name][:whole]


def _coarse(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of neighbours, so many that few are left."""
    return np.array([part.mean() for part in np.array_split(values, min(_POINTS, len(values)))])


def experts_of(cells: Sequence[Cell]) -> list[Curve]:
    """Load of experts, the busiest first, over the mean; sorted in each layer, then the mean over layers and runs."""
    found = []
    for cell in cells:
        loads = [one for run in cell.runs if (one := _sorted_load(run)) is not None]
        if loads and len({len(one) for one in loads}) == 1:
            mean_E = np.mean(loads, axis=0)
            found.append(Curve(label=cell.label, x=np.arange(1, len(mean_E) + 1, dtype=float), y=mean_E))
    return found[:MOST_CURVES]


def _sorted_load(run: Measured) -> NDArray[np.float64] | None:
    routing = run.run.routing
    if routing is None:
        return None
    rows = [routing.rows_E(layer, max(1, math.floor(run.steps + 1e-9))) for layer in routing.layers]
    if len({len(rows_E) for rows_E in rows}) != 1 or not all(rows_E.sum() for rows_E in rows):
        return None
    return np.asarray(np.mean([np.sort(rows_E)[::-1] / rows_E.mean() for rows_E in rows], axis=0))


def curves(found: Sequence[Curve], unit: Unit, along: str, frame: Frame) -> str:
    """Curves of cells; the caption has their colours."""
    if not found:
        return ""
    x = even_axis([float(edge) for one in found for edge in (one.x.min(), one.x.max())], _LEFT, frame.end)
    values = [float(value) * unit.scale for one in found for value in (one.y.min(), one.y.max())]
    y = even_axis(values, _HEIGHT - BOTTOM, _TOP)
    parts = [grid(frame, x, _HEIGHT, along, _TOP), across(frame, y, _axis_label(unit), _LEFT)]
    for index, one in enumerate(found):
        points = [(x.place(a), y.place(b * unit.scale)) for a, b in zip(one.x.tolist(), one.y.tolist(), strict=True)]
        title = f"{one.label}: {_of(float(one.y[0]), unit)} to {_of(float(one.y[-1]), unit)}"
        if len(points) == 1:
            parts.append(dot(*points[0], "single", title, series_class(index)))
        parts.append(curve(points, series_class(index), title))
    return svg(frame, _HEIGHT, f"{unit.label} of every cell, along {along}", parts)


def series_class(index: int) -> str:
    """Classes of the style sheet that the so many-th curve has."""
    return f"s{index % SERIES}{' dashed' if index >= SERIES else ''}"


def _axis_label(unit: Unit) -> str:
    return f"{unit.label}, {unit.symbol}" if unit.symbol else unit.label


def _of(value: float, unit: Unit) -> str:
    return f"{number(value * unit.scale)} {unit.symbol}".strip()
