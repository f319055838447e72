"""What pages are made of: the document around it, figures, tables and tiles, all text in them escaped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape

from moemodel.validation.report.css import STYLE
from moemodel.validation.report.marks import NARROW, WIDE, Frame

_TEXT = ' class="text"'


def document(title: str, body: Iterable[str], style: str = "") -> str:
    """A whole page of its parts; `style` is added to the style sheet of all pages."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}{style}</style>\n</head>\n"
        f"<body>\n{''.join(body)}</body>\n</html>\n"
    )


def figure(title: str, draw: Callable[[Frame], str], caption: str, frame: Frame = WIDE) -> str:
    """A figure under a heading, drawn twice: the style sheet shows the one that the window has room for.

    Args:
        title: of the heading.
        draw: gives SVG for a frame; nothing: there is no figure.
        caption: HTML.
        frame: of the wide one.
    """
    wide = draw(frame)
    if not wide:
        return ""
    both = f'<div class="wide">{wide}</div><div class="narrow">{draw(NARROW)}</div>'
    return f"<h2>{escape(title)}</h2>\n<figure>{both}<figcaption>{caption}</figcaption></figure>\n"


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[int] = ()) -> str:
    """A table; columns in `text` hold sentences. One that is wider than the window is scrolled by the keyboard too."""
    head = "".join(f'<th scope="col"{_TEXT if i in text else ""}>{escape(name)}</th>' for i, name in enumerate(heads))
    body = "".join(
        "<tr>"
        + "".join(f"<td{_TEXT if i in text else ''}>{escape(cell)}</td>" for i, cell in enumerate(row))
        + "</tr>\n"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"
    )


def tiles_of(tiles: Iterable[tuple[str, str]]) -> str:
    """A large figure in each tile, and below it what it is."""
    shown = "".join(f'<div class="tile"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in tiles)
    return f'<div class="tiles">{shown}</div>\n'
