"""How far a search is, on standard error: what is ahead in a line, on a terminal a bar; of a short one, nothing."""

from __future__ import annotations

import sys
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self

from moemodel.cli.output import console, echo

if TYPE_CHECKING:
    from rich.progress import Progress as RichBar
    from rich.progress import TaskID

_SHORT_S = 1.0  # nothing is said of what takes less
_LONG_S = 10.0  # what takes longer is told where there is no terminal, too
_PARTS = {
    "memory": "memory",
    "bounds": "bounds",
    "prediction": "time and energy",
    "clocks": "clocks by stage",
    "front": "intervals of the front",
    "limits": "what to relax",
    "survey": "plans of the page",
    "timelines": "steps in time",
}
_AHEAD = {
    "memory": "{:,} legal plans; which of them fit in memory takes about {}",
    "bounds": "{:,} plans fit in memory; what they take at least, at any clock, takes about {}",
    "prediction": "up to {:,} predictions, of every plan that fits at every clock, in at most about {}",
    "clocks": "clocks by stage of plans on the front: up to {:,} predictions, in at most about {}",
    "front": "{:,} plans of the front; their intervals take about {}",
    "survey": "{:,} predictions for the page take about {}",
    "timelines": "{:,} plans are laid out in time, in about {}",
    "limits": "nothing is feasible; which limit to relax, {:,} predictions tell, in about {}",
}


class SearchProgress:
    """Told by a search how far it is."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._started_s = monotonic()
        self._part, self._part_started_s, self._told = "", self._started_s, ""
        self._bar: RichBar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with suppress(KeyboardInterrupt):  # a second one, while the first ends the bar
                self._bar.stop()

    def __call__(self, part: str, done: int, total: int) -> None:
        """So many of `total` plans are done of a part of the search."""
        now_s = monotonic()
        if part != self._part:
            self._part, self._part_started_s = part, now_s
            if self._bar is not None and self._task is not None:
                self._bar.remove_task(self._task)
                self._task = None
        left_s = (now_s - self._part_started_s) / done * (total - done) if done else 0.0
        if self._told != part and left_s > (_SHORT_S if self._terminal else _LONG_S):
            self._told = part
            echo(_AHEAD[part].format(total, _duration(left_s)), err=True)
        if self._terminal and (self._bar is not None or left_s > _SHORT_S or now_s - self._started_s > _SHORT_S):
            self._show(part, done, total)

    def _show(self, part: str, done: int, total: int) -> None:
        if self._bar is None:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=console(stderr=True),
                refresh_per_second=4,
                transient=True,
            )
            self._bar.start()
        if self._task is None:
            self._task = self._bar.add_task(_PARTS[part], total=total)
        self._bar.update(self._task, completed=done)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
