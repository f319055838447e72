"""What figures are drawn of: a frame, axes, lines, dots and texts that do not overprint, as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from moemodel.validation.report.units import number

# Lengths are in pixels of a page at its usual width.
# The inner dot stays visible in the outer ring; single runs are smaller than their mean.
_RADIUS = {"measured": 4.0, "predicted": 6.5, "single": 2.2}
_CHARACTER = 6.6  # of a text of 12 px: wider than the mean of any common typeface, so that guesses err to the safe side
_LINE = 13.0  # height of such a text
_STEP = 8.0  # between the places of a line that texts keep off: less than their height
_LOG_FROM = 6.0  # largest over smallest value, from which an axis is logarithmic
TOP, BOTTOM = 14.0, 46.0  # of a figure, around its marks


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The place of a figure: its width, and what stands left and right of its marks.

    Attributes:
        above: labels of rows stand above their marks, not beside them.
    """

    width: float
    left: float
    right: float
    row: float
    above: bool

    @property
    def start(self) -> float:
        """Where axes begin."""
        return self.left

    @property
    def end(self) -> float:
        """Where axes end."""
        return self.width - self.right

    def y(self, index: int) -> float:
        """Of the marks of a row."""
        return TOP + self.row * (index + (0.72 if self.above else 0.5))

    def height(self, rows: int) -> float:
        """Of a figure of so many rows."""
        return TOP + self.row * rows + BOTTOM

    @property
    def room(self) -> int:
        """Characters of a row's label."""
        return int((self.end - self.left if self.above else self.left - 14) / _CHARACTER)

    def label(self, text: str, whole: str, index: int) -> str:
        """The label of a row; a pointer shows the whole of it."""
        x, y = (self.left, TOP + self.row * index + 12) if self.above else (self.left - 12, self.y(index) + 4)
        inside = f"{escape(text)}<title>{escape(whole)}</title>"
        return f'<text x="{x:g}" y="{y:.1f}" text-anchor="{"start" if self.above else "end"}">{inside}</text>'


WIDE = Frame(width=760.0, left=240.0, right=24.0, row=26.0, above=False)
NARROW = Frame(width=360.0, left=14.0, right=18.0, row=42.0, above=True)  # a telephone's


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
    return _linear(low - pad, high + pad, start, end)


def even_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis that holds all values, and as much room to either side, however much they span."""
    low, high = min(values), max(values)
    pad = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    return _linear(low - pad, high + pad, start, end)


def errors_axis(errors: Sequence[float], start: float, end: float) -> Axis:
    """An axis of relative errors: even about 0 where all are small; else by their ratio, since none is below -1."""
    farthest = max(max(map(abs, errors)), 0.01)
    if farthest < 1:
        return _linear(-1.06 * farthest, 1.06 * farthest, start, end)
    low, high = max(min(errors), -0.99), max(max(errors), 0.5)
    first, last = math.log(1 + min(low, -0.5)) - 0.1, math.log(1 + high) + 0.1
    known = (-0.95, -0.9, -0.8, -0.5, 0.0, 1.0, 3.0, 9.0, 29.0, 99.0, 999.0)
    return Axis(
        place=lambda error: start + (math.log(1 + max(error, -0.9999)) - first) / (last - first) * (end - start),
        ticks=tuple(tick for tick in known if first <= math.log(1 + tick) <= last),
    )


def _linear(first: float, last: float, start: float, end: float) -> Axis:
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


# ---- texts that do not overprint ------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Places:
    """Boxes of a figure that are taken: left, top, right, bottom."""

    width: float
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def take(self, x: float, y: float, radius: float) -> None:
        """Keep texts off a dot."""
        self.taken.append((x - radius, y - radius, x + radius, y + radius))

    def take_line(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """Keep texts off a line."""
        steps = max(1, int(math.hypot(x2 - x1, y2 - y1) / _STEP))
        for step in range(steps + 1):
            self.take(x1 + (x2 - x1) * step / steps, y1 + (y2 - y1) * step / steps, 1.0)

    def beside(self, x: float, y: float, text: str) -> str:
        """A text beside a dot, on the first of four sides where it fits; nothing where it fits on none."""
        wide = _CHARACTER * len(text)
        for anchor, at, base in (
            ("start", x + 9, y + 4),
            ("end", x - 9, y + 4),
            ("middle", x, y - 10),
            ("middle", x, y + 18),
        ):
            left = at - {"start": 0.0, "end": wide, "middle": wide / 2}[anchor]
            box = (left, base - _LINE + 3, left + wide, base + 3)
            if left >= 0 and left + wide <= self.width and not any(_overlap(box, other) for other in self.taken):
                self.taken.append(box)
                return words(at, base, text, anchor)
        return ""


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


# ---- marks ----------------------------------------------------------------------------------------------------------


def svg(frame: Frame, height: float, label: str, parts: Sequence[str]) -> str:
    """A figure of its parts; `label` is what is read to those who do not see it."""
    size = f'viewBox="0 0 {frame.width:g} {height:g}"'
    return f'<svg {size} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def grid(
    frame: Frame, x: Axis, height: float, label: str, top: float = TOP, named: Callable[[float], str] = number
) -> str:
    """Lines at the ticks of a horizontal axis, with as many figures as there is room for, and what the axis is of."""
    bottom, free = height - BOTTOM, -math.inf
    parts = []
    for tick in x.ticks:
        at, text = x.place(tick), named(tick)
        half = _CHARACTER * len(text) / 2
        parts.append(line(at, top, at, bottom, "grid"))
        if at - half > free and at + half <= frame.width:
            parts.append(words(at, bottom + 16, text))
            free = at + half + _CHARACTER
    return "".join(parts) + words(frame.end, height - 8, label, "end")


def across(frame: Frame, y: Axis, label: str, left: float) -> str:
    """Lines at the ticks of a vertical axis, its figures, and what it is of."""
    lines = []
    free = math.inf
    for tick in y.ticks:
        at = y.place(tick)
        lines.append(line(left, at, frame.end, at, "grid"))
        if at <= free:
            lines.append(words(left - 6, at + 4, number(tick), "end"))
            free = at - _LINE
    return "".join(lines) + words(0, 10, label, "start")


def words(x: float, y: float, text: str, anchor: str = "middle") -> str:
    """A text."""
    return f'<text class="axis" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str, title: str = "") -> str:
    """A line of a class of the style sheet; a pointer shows its title."""
    shown = f"<title>{escape(title)}</title>" if title else ""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}">{shown}</line>'


def dot(x: float, y: float, kind: str, title: str, colour: str = "") -> str:
    """A dot; a ring around it stays visible where the two agree. `colour` is another class of the style sheet."""
    at = f'cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS[kind]:g}"'
    return f'<circle class="{f"{kind} {colour}".strip()}" {at}><title>{escape(title)}</title></circle>'


def curve(points: Sequence[tuple[float, float]], kind: str, title: str) -> str:
    """A line through points."""
    at = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{kind}" points="{at}"><title>{escape(title)}</title></polyline>'


def bar(x1: float, x2: float, y: float, height: float, kind: str, title: str) -> str:
    """A bar from left to right about a height."""
    size = f'x="{x1:.1f}" y="{y - height / 2:.1f}" width="{max(x2 - x1, 0):.1f}" height="{height:g}"'
    return f'<rect class="{kind}" {size}><title>{escape(title)}</title></rect>'
