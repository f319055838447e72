"""rich's console and table, for text of others: see `output`. A file of its own, since rich is imported when it prints.

Text is escaped as it comes in, so that columns are as wide as what is shown, and once more as it goes out, whatever way
it came.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from moemodel.cli.visible import visible


class SafeConsole(Console):
    """A console that sends what it makes itself to the terminal, and of what it is given only what can be seen."""

    def print(self, *objects: Any, **options: Any) -> None:
        """See rich."""
        super().print(*(visible(one) if isinstance(one, str) else one for one in objects), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See rich; text is escaped, rich's own control codes stay."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


class SafeTable(Table):
    """A table whose cells are escaped."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """See rich."""
        super().add_row(*(visible(cell) if isinstance(cell, str) else cell for cell in cells), **options)
