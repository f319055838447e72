"""What a long measurement tells of itself while it runs."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBar


class Progress(Protocol):
    """Told of sections and their steps."""

    def begin(self, section: str, steps: int) -> None:
        """A section of so many steps begins."""
        ...

    def step(self, what: str) -> None:
        """Another of them; `what` names it."""
        ...

    def end(self) -> None:
        """The section has ended."""
        ...


class Silent:
    """Tells nobody."""

    def begin(self, section: str, steps: int) -> None: ...
    def step(self, what: str) -> None: ...
    def end(self) -> None: ...


class Bars:
    """A bar a section, with the time that is left of it."""

    def __init__(self, console: Console) -> None:
        self._bar = RichBar(
            TextColumn("{task.description:<16}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[what]}"),
            console=console,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("starting", total=None, what="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, section: str, steps: int) -> None:
        self._bar.update(self._task, visible=False)
        self._task = self._bar.add_task(section, total=steps or None, what="")

    def step(self, what: str) -> None:
        self._bar.update(self._task, advance=1, what=what[:60])

    def end(self) -> None:
        self._bar.update(self._task, what="done")
