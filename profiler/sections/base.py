"""The loop that all sections share: item after item until the time is up, leaving out what the profile has.

A section is interrupted between any two items, or within one: what was measured before is in the profile.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from moemodel.model.records.profile import TableRow
from moemodel.profiler.microbench.harness import Harness
from moemodel.profiler.microbench.skips import Skip, not_reached, skippable
from moemodel.profiler.sections.progress import Progress
from moemodel.profiler.store.profile_writer import ProfileWriter


class SkippedError(Exception):
    """An item can't be measured; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing that a section measures.

    Attributes:
        title: what it is called where it is skipped.
        measure: makes its rows; may raise `SkippedError`, or what torch raises for what does not fit or run here.
        told: said when it begins; None: it speaks for itself while it is measured.
        done: the profile has it.
        steps: of a progress bar.
        needed: by the items after it, which are left out where it can't be measured.
    """

    title: str
    measure: Callable[[], Sequence[TableRow]]
    told: str | None = None
    done: bool = False
    steps: int = 1
    needed: bool = False


class Section(Protocol):
    """One section of a profile."""

    @property
    def steps(self) -> int:
        """What a progress bar counts."""
        ...

    def run(self, bench: Harness, writer: ProfileWriter, deadline_s: float, progress: Progress) -> list[Skip]:
        """Measure into the profile until `deadline_s` (of the harness's timer); what could not be measured."""
        ...


class ItemSection(ABC):
    """A section that is a list of items. Subclasses say which.

    Attributes:
        name: of the section.
        flush_rows: rows that are kept in memory until they are written.
    """

    name: str
    flush_rows = 1

    @property
    @abstractmethod
    def steps(self) -> int:
        """See `Section`."""

    @abstractmethod
    def items(self, bench: Harness, writer: ProfileWriter, progress: Progress) -> Sequence[Item]:
        """What is measured, in order; what the profile has is marked as done, or left out."""

    def run(self, bench: Harness, writer: ProfileWriter, deadline_s: float, progress: Progress) -> list[Skip]:
        """See `Section`.

        Raises:
            DeviceError: an error left the device unusable.
        """
        skips: list[Skip] = []
        items = self.items(bench, writer, progress)
        for index, item in enumerate(items):
            if bench.timer.now_s() > deadline_s:
                left = sum(other.steps for other in items[index:])
                return [*skips, not_reached(self.name, left, self.steps)]
            if item.told is not None:
                progress.step(item.told)
            if item.done:
                continue
            skip = self._measure(item, bench, writer)
            if skip is not None:
                skips.append(skip)
                if item.needed:
                    break
        return skips

    def _measure(self, item: Item, bench: Harness, writer: ProfileWriter) -> Skip | None:
        """Measure an item into the profile; what to say where that is not possible."""
        try:
            rows = item.measure()
        except SkippedError as skipped:
            return Skip(what=item.title, reason=str(skipped))
        except skippable() as error:
            return bench.skip(item.title, error)
        writer.append(rows)
        if writer.pending_rows() >= self.flush_rows:
            writer.flush()
        return None
