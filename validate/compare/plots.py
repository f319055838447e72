"""Figures of a comparison as files, PNG and SVG, by matplotlib; the page does without it.

Nothing of matplotlib's state is touched: figures are made by themselves, without pyplot.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from moemodel.model.core.extras import needs_extra
from moemodel.validation.compare.cells import Cell
from moemodel.validation.compare.comparison import Comparison
from moemodel.validation.compare.css import LIGHT_SERIES
from moemodel.validation.compare.figures import (
    Curve,
    curves_of,
    expectation,
    experts_of,
    measured_phases,
    predicted_phases,
)
from moemodel.validation.compare.quantities import ALL, COMPARED, PHASES

_WIDTH, _ROW = 8.0, 0.34  # inches
_DPI = 150
_BELOW = "outside lower center"  # of legends, where they hide nothing
_MEASURED, _PREDICTED = "#1668b8", "#d0640a"  # as the pages have them
_OF_PHASE = {
    "forward": "#1668b8",
    "backward": "#7a4fb5",
    "optimizer": "#2f8f83",
    "pipeline": "#1668b8",
    "rest": "#b3bcc7",
}


def all_figures(comparison: Comparison) -> Iterator[tuple[str, bytes]]:
    """Name and content of each figure, PNG and SVG; none where there is nothing to draw.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with needs_extra("drawing figures of a comparison", "plots"):
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    for name, draw, rows in _drawings(comparison):
        figure = Figure(figsize=(_WIDTH, 1.4 + _ROW * rows), layout="constrained")
        if not draw(figure.add_subplot()):
            continue
        with rc_context({"svg.hashsalt": "moemodel", "svg.fonttype": "none"}):
            for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                out = io.BytesIO()
                figure.savefig(out, format=kind, dpi=_DPI, metadata=metadata)
                yield f"{name}.{kind}", out.getvalue()


def _drawings(comparison: Comparison) -> Iterator[tuple[str, Callable[[Any], bool], float]]:
    """Name, what draws it into axes and says whether there was something, and so many rows high."""
    cells = comparison.cells

    def of_quantity(name: str) -> Callable[[Any], bool]:
        return lambda axes: _spans(axes, cells, name)

    def over_samples(name: str) -> Callable[[Any], bool]:
        return lambda axes: _curves(axes, curves_of(cells, name), name)

    for name in COMPARED:
        yield name, of_quantity(name), len(cells)
    yield "energy-by-phase", lambda axes: _phases(axes, cells), len(cells)
    yield "energy-against-loss", lambda axes: _plane(axes, cells), 10
    for name in ("loss", "skew", "dropped", "entropy"):
        yield f"{name}-over-samples", over_samples(name), 10
    yield "tokens-per-expert", lambda axes: _experts(axes, experts_of(cells)), 10


def _spans(axes: Any, cells: Sequence[Cell], name: str) -> bool:
    found = [(cell, spread) for cell in cells if (spread := cell.spread(name)) is not None]
    unit = ALL[name]
    for row, (cell, spread) in enumerate(found):
        mean, std = spread.mean * unit.scale, (spread.std or 0.0) * unit.scale
        single = [run.values[name] * unit.scale for run in cell.runs if name in run.values]
        expected = expectation(cell, name)
        if expected is not None:
            low, high = expected.interval or (expected.value, expected.value)
            axes.plot([low * unit.scale, high * unit.scale], [row, row], color=_PREDICTED, alpha=0.3, linewidth=7)
            axes.plot([expected.value * unit.scale], [row], "o", mfc="none", color=_PREDICTED, markersize=9)
        axes.plot(single, [row] * len(single), ".", color=_MEASURED, alpha=0.35)
        axes.errorbar([mean], [row], xerr=[std], fmt="o", color=_MEASURED, markersize=5)
    _rows(axes, [cell.label for cell, _ in found], f"{unit.label}, {unit.symbol}")
    axes.set_title("blue: measured, mean and standard deviation over repeats; orange: predicted", fontsize=8)
    return bool(found)


def _rows(axes: Any, labels: Sequence[str], along: str) -> None:
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(along)
    axes.grid(axis="x", alpha=0.3)


def _phases(axes: Any, cells: Sequence[Cell]) -> bool:
    found = [cell for cell in cells if measured_phases(cell)]
    for row, cell in enumerate(found):
        for energies_J, at, height in ((predicted_phases(cell), -0.28, 0.18), (measured_phases(cell), 0.1, 0.5)):
            begin = 0.0
            for name, energy_J in energies_J.items():
                axes.barh(row + at, energy_J, left=begin, height=height, color=_OF_PHASE.get(name, "#b3bcc7"))
                begin += energy_J
    _rows(axes, [cell.label for cell in found], "energy by phase, J")
    names = [name for name in PHASES if any(name in measured_phases(cell) for cell in found)]
    bars = [axes.barh(0, 0, color=_OF_PHASE[name]) for name in names]
    axes.figure.legend(bars, [PHASES[name] for name in names], fontsize=8, loc=_BELOW, ncols=len(names) or 1)
    axes.set_title("thick: measured; thin: predicted", fontsize=8)
    return bool(found)


def _plane(axes: Any, cells: Sequence[Cell]) -> bool:
    drawn = 0
    for index, cell in enumerate(cells):
        energy, loss = cell.spread("energy"), cell.spread("loss")
        if energy is not None and loss is not None:
            errors = {"xerr": [energy.std or 0.0], "yerr": [loss.std or 0.0]}
            hollow = {} if index < len(LIGHT_SERIES) else {"markerfacecolor": "white"}
            colour = _colour(index)
            axes.errorbar([energy.mean], [loss.mean], fmt="o", color=colour, label=cell.label, **errors, **hollow)
            drawn += 1
    axes.set_xlabel(f"{ALL['energy'].label}, J")
    axes.set_ylabel(f"{ALL['loss'].label}, nats")
    _legend(axes)
    return drawn > 1


def _curves(axes: Any, found: Sequence[Curve], name: str) -> bool:
    unit = ALL[name]
    _lines(axes, found, unit.scale)
    axes.set_xlabel("samples")
    axes.set_ylabel(f"{unit.label}, {unit.symbol}".removesuffix(", "))
    _legend(axes)
    return bool(found) and (name != "dropped" or any(np.any(one.y > 0) for one in found))


def _experts(axes: Any, found: Sequence[Curve]) -> bool:
    _lines(axes, found, 1.0)
    axes.set_xlabel("experts, the busiest first")
    axes.set_ylabel("rows over the mean")
    _legend(axes)
    return bool(found)


def _lines(axes: Any, found: Sequence[Curve], scale: float) -> None:
    for index, one in enumerate(found):
        style = "-" if index < len(LIGHT_SERIES) else "--"
        marker = "." if len(one.x) == 1 else ""
        axes.plot(one.x, one.y * scale, style, marker=marker, color=_colour(index), label=one.label, linewidth=1.2)


def _colour(index: int) -> str:
    return LIGHT_SERIES[index % len(LIGHT_SERIES)]


def _legend(axes: Any) -> None:
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.figure.legend(handles, labels, fontsize=7, loc=_BELOW, ncols=3)
