"""Figures of `moemodel study parallelism` as files, PNG and SVG, by matplotlib.

Nothing of matplotlib's state is touched: figures are made by themselves, without pyplot.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from moemodel.model.core.extras import needs_extra

if TYPE_CHECKING:
    from moemodel.model.results.parallelism import Point
    from moemodel.model.results.parallelism_insights import Study

_SIZE = (8.0, 5.0)  # inches
_DPI = 150
_MARKERS = "osD^v<>P"


def study_figures(study: Study) -> Iterator[tuple[str, bytes]]:
    """Name and content of each figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with needs_extra("drawing figures of a study", "plots"):
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    for name, draw in _drawings(study):
        figure = Figure(figsize=_SIZE, layout="constrained")
        draw(figure)
        with rc_context({"svg.hashsalt": "moemodel", "svg.fonttype": "none"}):
            for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                out = io.BytesIO()
                figure.savefig(out, format=kind, dpi=_DPI, metadata=metadata)
                yield f"{name}.{kind}", out.getvalue()


def _drawings(study: Study) -> list[tuple[str, Callable[[Any], None]]]:
    return [
        ("degrees", lambda figure: _degrees(figure, study.degrees)),
        ("experts", lambda figure: _experts(figure, study)),
        ("clocks", lambda figure: _clocks(figure, study.clocks)),
        ("joint", lambda figure: _joint(figure, study)),
    ]


def _degrees(figure: Any, points: Sequence[Point]) -> None:
    """Energy against time, by stages and tensor parallelism."""
    axes = figure.add_subplot()
    kinds = sorted({point.name.rpartition("-")[0].partition("-")[2] for point in points})
    for index, kind in enumerate(kinds):
        found = [point for point in points if f"-{kind}-" in point.name]
        times_s, energies_kJ = [p.step_s for p in found], [p.energy_J / 1e3 for p in found]
        axes.plot(times_s, energies_kJ, _MARKERS[index % len(_MARKERS)], color=f"C{index % 10}", label=kind)
    _finish(axes, "step, s", "energy of a step, kJ", "OPT-350M on 32 GH200, predicted; dp and micro-batch are the rest")


def _experts(figure: Any, study: Study) -> None:
    left, right = figure.subplots(1, 2)
    for index, (length, points) in enumerate(study.experts.items()):
        names = [point.name for point in points]
        left.plot(names, [point.step_s for point in points], "o-", color=f"C{index}", label=f"{length} tokens")
        right.plot(names, [p.energy_J / 1e3 for p in points], "o-", color=f"C{index}", label=f"{length} tokens")
    _finish(left, "expert parallelism", "step, s", "OLMoE on 32 GH200, predicted")
    _finish(right, "expert parallelism", "energy of a step, kJ", "")


def _clocks(figure: Any, points: Sequence[Point]) -> None:
    clocks = [point.clocks_MHz[0] for point in points if point.clocks_MHz is not None]
    series = {
        "energy of a step, kJ": [point.energy_J / 1e3 for point in points],
        "mean power, W": [point.power_W for point in points],
        "step, s": [point.step_s for point in points],
    }
    for axes, (name, values) in zip(figure.subplots(3, 1, sharex=True), series.items(), strict=True):
        axes.plot(clocks, values, ".-")
        axes.set_ylabel(name, fontsize=8)
        axes.grid(alpha=0.3)
    axes.set_xlabel("SM clock, MHz")
    figure.suptitle("OPT-350M on one A100, batch 256, predicted", fontsize=9)


def _joint(figure: Any, study: Study) -> None:
    axes = figure.add_subplot()
    for index, (name, points) in enumerate(study.joint.items()):
        axes.plot([p.step_s for p in points], [p.energy_J / 1e3 for p in points], ".-", color=f"C{index}", label=name)
        axes.plot([points[0].step_s], [points[0].energy_J / 1e3], "o", color=f"C{index}")  # full clock
    _finish(axes, "step, s", "energy of a step, kJ", "OPT-350M on 2 x 4 A100, stages slowed; circles: full clock")


def _finish(axes: Any, along: str, up: str, title: str) -> None:
    axes.set_xlabel(along)
    axes.set_ylabel(up)
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
