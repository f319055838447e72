"""rich's console, for text of others: see `output`. A file of its own, since rich is imported when it prints."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from moemodel.cli.output import visible


class SafeConsole(Console):
    """A console that sends what it makes itself to the terminal, and of what it is given only what can be seen."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See rich; text is escaped, rich's own control codes stay."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
