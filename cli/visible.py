"""Text of others as a terminal may have it."""

from __future__ import annotations

import json
import unicodedata

_OBEYED = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # categories of Unicode; of these only the end of a line is left


def visible(text: str) -> str:
    """Text in which nothing is obeyed by a terminal; its lines stay lines."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(escaped(c) if c != "\n" and unicodedata.category(c) in _OBEYED else c for c in text)


def escaped(character: str) -> str:
    """A character as JSON writes it in ASCII."""
    return json.dumps(character)[1:-1] if character != "\x7f" else "\\u007f"
