"""What a comparison finds, in sentences: who takes the least, by how much, and whether that is more than the spread."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from moemodel.validation.compare.cells import FACTORS, SETTINGS, Cell, factor_of, key_of, label_of, telling
from moemodel.validation.compare.comparison import Comparison
from moemodel.validation.compare.differences import Difference, Verdict
from moemodel.validation.compare.quantities import COMPARED
from moemodel.validation.report.units import number, percent

Level = Literal["good", "open"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A sentence, and whether it tells things apart."""

    level: Level
    text: str


def findings(comparison: Comparison, quantities: Sequence[str] = ("energy", "loss")) -> Iterator[Finding]:
    """Of the first factor in which cells can be compared: frameworks, batches, models, then other settings."""
    for factor in (*FACTORS.values(), SETTINGS):
        pairs = [one for one in comparison.differences if one.factor == factor]
        if pairs:
            for quantity in quantities:
                own = [one for one in pairs if one.quantity == quantity]
                for group in _groups(comparison.cells, factor):
                    yield from _of_group(group, own, quantity, factor, comparison.cells)
            return


def _groups(cells: Sequence[Cell], factor: str) -> list[list[Cell]]:
    """Cells that differ in nothing but a factor."""
    names, _ = telling([cell.settings for cell in cells])
    groups: dict[Hashable, list[Cell]] = {}
    for cell in cells:
        rest = {name: cell.settings.get(name) for name in names if factor_of(name) != factor}
        groups.setdefault(key_of(rest), []).append(cell)
    return [group for group in groups.values() if len(group) > 1]


def _of_group(
    group: Sequence[Cell], pairs: Sequence[Difference], quantity: str, factor: str, cells: Sequence[Cell]
) -> Iterator[Finding]:
    means = {cell.label: spread.mean for cell in group if (spread := cell.spread(quantity)) is not None}
    if len(means) < 2:
        return
    best, second = sorted(means, key=lambda label: means[label])[:2]
    found = next((one for one in pairs if {one.a, one.b} == {best, second}), None)
    if found is not None:
        names, _ = telling([cell.settings for cell in cells])
        of_factor = [name for name in names if factor_of(name) == factor]
        short = {cell.label: _said(cell, of_factor) for cell in group}
        turned = found if found.a == second else _turned(found)
        where = _said(group[0], [name for name in names if name not in of_factor])
        yield _finding(replace(turned, a=short[second], b=short[best]), quantity, where)


def _said(cell: Cell, names: Sequence[str]) -> str:
    """What a cell is called by some of its settings."""
    said = label_of(cell.settings, names)
    return said if "backend" in names else said.partition(", ")[2]


def _turned(one: Difference) -> Difference:
    """The same pair the other way round, so that shares are of what takes more."""
    times = abs(one.of_a.mean) / abs(one.of_b.mean)
    interval = None if one.interval is None else (-one.interval[1] * times, -one.interval[0] * times)
    opposite: dict[Verdict, Verdict] = {"less": "more", "more": "less"}
    verdict = opposite.get(one.verdict, one.verdict)
    return replace(
        one,
        a=one.b, b=one.a, of_a=one.of_b, of_b=one.of_a, share=-one.share * times, interval=interval, verdict=verdict,
    )  # fmt: skip


def _finding(one: Difference, quantity: str, where: str) -> Finding:
    """Of the pair of the two smallest: `b` is the smaller."""
    unit = COMPARED[quantity]
    place = f" ({where})" if where else ""
    begin = f"{_capital(unit.label)}{place}: the least is {number(one.of_b.mean * unit.scale)} {unit.symbol}, {one.b};"
    against = f"{one.a}, {number(one.of_a.mean * unit.scale)} {unit.symbol}"
    if one.verdict == "not told":
        text = f"{begin} whether that differs from {against}, is not told: run once, there is no spread."
        return Finding(level="open", text=text)
    assert one.interval is not None
    few = " Few repeats: this rests on next to nothing." if one.few else ""
    low, high = (percent(-edge) for edge in reversed(one.interval))
    around = " to ".join(percent(edge, signed=True) for edge in one.interval)
    if one.verdict == "none":
        text = f"{begin} difference from {against}: none, it is inside the spread ({around}).{few}"
        return Finding(level="open", text=text)
    text = f"{begin} {percent(-one.share)} ({low} to {high}) less than {against}.{few}"
    return Finding(level="open" if one.few else "good", text=text)


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"
