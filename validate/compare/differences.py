"""Pairs of cells that differ in one thing: in what they differ by more than their repeats do."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from moemodel.validation.compare.cells import Cell, factor_of, telling
from moemodel.validation.compare.quantities import COMPARED
from moemodel.validation.compare.welch import FEW, Spread, difference

Verdict = Literal["less", "more", "none", "not told"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One quantity of two cells.

    Attributes:
        factor: in what they differ: framework, model, batch, or settings.
        quantity: `quantities.COMPARED`.
        a, b: what they are called.
        of_a, of_b: their repeats, in SI units.
        share: mean of b over that of a, less 1.
        interval: of `share`, the central 90 % one; None where one of them was run once.
        verdict: of b against a: less or more; none, where the interval holds 0; not told, where there is none.
    """

    factor: str
    quantity: str
    a: str
    b: str
    of_a: Spread
    of_b: Spread
    share: float
    interval: tuple[float, float] | None
    verdict: Verdict

    @property
    def few(self) -> bool:
        """Whether the interval rests on next to no repeats."""
        return min(self.of_a.runs, self.of_b.runs) < FEW


def differences(cells: Sequence[Cell]) -> Iterator[Difference]:
    """All pairs that differ in one thing, in every quantity that both have."""
    keys, _ = telling([cell.settings for cell in cells])
    for a, b in itertools.combinations(cells, 2):
        factor = only_factor(a, b, keys)
        for quantity in COMPARED if factor is not None else ():
            of_a, of_b = a.spread(quantity), b.spread(quantity)
            if of_a is None or of_b is None or not of_a.mean or (quantity == "loss" and not _same_data(a, b)):
                continue
            assert factor is not None
            yield _difference(factor, quantity, (a.label, of_a), (b.label, of_b))


def only_factor(a: Cell, b: Cell, keys: Sequence[str]) -> str | None:
    """The one thing in which two cells differ; None where it is more than one."""
    names = {factor_of(key) for key in keys if repr(a.settings.get(key)) != repr(b.settings.get(key))}
    return names.pop() if len(names) == 1 else None


def _same_data(a: Cell, b: Cell) -> bool:
    """Losses on other sequences, or on longer ones, are no losses of the same task."""

    def task(cell: Cell) -> list[tuple[str, Hashable]]:
        return [(k, v) for k, v in cell.settings.items() if k.startswith("data.") or k == "sequence_length"]

    return task(a) == task(b)


def _difference(factor: str, quantity: str, a: tuple[str, Spread], b: tuple[str, Spread]) -> Difference:
    mean = abs(a[1].mean)
    found = difference(a[1], b[1])
    interval = None if found is None else (found[0] / mean, found[1] / mean)
    return Difference(
        factor=factor,
        quantity=quantity,
        a=a[0],
        b=b[0],
        of_a=a[1],
        of_b=b[1],
        share=(b[1].mean - a[1].mean) / mean,
        interval=interval,
        verdict=_verdict(interval),
    )


def _verdict(interval: tuple[float, float] | None) -> Verdict:
    if interval is None:
        return "not told"
    if interval[0] <= 0 <= interval[1]:
        return "none"
    return "less" if interval[1] < 0 else "more"
