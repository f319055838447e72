"""Whether a page is whole: its tags, in order."""

from __future__ import annotations

from html.parser import HTMLParser

_VOID = {"meta", "br", "input"}


class Tags(HTMLParser):
    """Checks that tags are closed in order, and collects them.

    Attributes:
        open: tags that are not closed yet.
        seen: all, with their attributes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
