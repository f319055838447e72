"""Figures of a search for papers, PNG and SVG, by matplotlib: the front, energy against clock, a step in time.

Nothing of matplotlib's state is touched: figures are made by themselves, without pyplot. The same search gives the same
bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from moemodel.cli.search_report import unit_of, words_of
from moemodel.model.core.extras import needs_extra

if TYPE_CHECKING:
    from moemodel.model.results.iteration import Iteration
    from moemodel.model.search.quantities import ObjectiveName
    from moemodel.model.search.result import SearchResult
    from moemodel.model.search.survey import Survey

_WIDTH, _HEIGHT = 6.4, 4.0  # inches
_DPI = 200
_FRONT, _OTHERS = "#1668b8", "#8fa3b8"
_COLOURS = {
    "forward": "#1668b8",
    "backward": "#7a4fb5",
    "communication": "#c05a00",
    "optimizer": "#2f8f83",
    "waiting": "#c9d0d8",
}


def search_figures(result: SearchResult, found: Survey, step: Iteration) -> Iterator[tuple[str, bytes]]:
    """Name and content of each figure, PNG and SVG.

    Args:
        result: of a search.
        found: plans beside its front.
        step: of the plan to draw in time.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with needs_extra("drawing figures of a search", "plots"):
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    drawings: list[tuple[str, Callable[[Any], bool]]] = [
        ("front", lambda axes: _front(axes, result, found)),
        ("energy-against-clock", lambda axes: _clock(axes, result, found)),
        ("step", lambda axes: _step(axes, step)),
    ]
    for name, draw in drawings:
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        if not draw(figure.add_subplot()):
            continue
        with rc_context({"svg.hashsalt": "moemodel", "svg.fonttype": "none"}):
            for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                out = io.BytesIO()
                figure.savefig(out, format=kind, dpi=_DPI, metadata=metadata)
                yield f"{name}.{kind}", out.getvalue()


def _front(axes: Any, result: SearchResult, found: Survey) -> bool:
    """The two objectives; of one, step time beside it, or memory beside that."""
    from moemodel.model.search.result import figure_of

    first = result.objectives[0]
    other: ObjectiveName = "memory_B" if first == "step_time_s" else "step_time_s"
    second = result.objectives[1] if len(result.objectives) > 1 else other
    axes.scatter(found.values[first], found.values[second], s=3, color=_OTHERS, linewidths=0, rasterized=True)
    points = [(figure_of(entry, first), figure_of(entry, second)) for entry in result.front]
    known = [(x.value, y.value) for x, y in points if x is not None and y is not None]
    axes.plot(*zip(*known, strict=True), "o-", color=_FRONT, markersize=4)
    for name, number in result.picks.items():
        axes.annotate(name.replace("_", " "), known[number - 1], textcoords="offset points", xytext=(5, 5), fontsize=7)
    axes.set_xlabel(_label(result, first))
    axes.set_ylabel(_label(result, second))
    return True


def _clock(axes: Any, result: SearchResult, found: Survey) -> bool:
    """IT energy of all plans against the clock that they keep, and the front's."""
    energies = [(e.clock_MHz, e.it_energy_J) for e in result.front]
    known = [(clock.value, energy.value) for clock, energy in energies if clock is not None and energy is not None]
    if "it_energy_J" not in found.values or not known:
        return False
    axes.scatter(
        found.values["clock_Hz"] * 1e-6, found.values["it_energy_J"], s=3, color=_OTHERS, linewidths=0, rasterized=True
    )
    axes.plot(*zip(*known, strict=True), "o", color=_FRONT, markersize=4)
    axes.set_xlabel("SM clock, MHz")
    axes.set_ylabel(_label(result, "it_energy_J"))
    return True


def _step(axes: Any, step: Iteration) -> bool:
    """What each stage does when."""
    for line in step.stages:
        for kind, colour in _COLOURS.items():
            bars = [(one.start_s, one.end_s - one.start_s) for one in line.slices if one.kind == kind]
            if bars:
                axes.broken_barh(bars, (line.stage - 0.45, 0.9), facecolors=colour, linewidth=0)
    axes.set_xlim(0, step.step_s)
    axes.invert_yaxis()
    axes.set_yticks(np.arange(len(step.stages)))
    axes.set_xlabel("s")
    axes.set_ylabel("stage")
    for kind, colour in _COLOURS.items():
        axes.plot([], [], "s", color=colour, label=kind)
    axes.figure.legend(loc="outside lower center", ncols=len(_COLOURS), frameon=False, fontsize=8)
    return True


def _label(result: SearchResult, name: ObjectiveName) -> str:
    return f"{words_of(name)}, {unit_of(result, name)}".removesuffix(", ")
