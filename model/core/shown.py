"""What a user gave, as an error shows it: in one line, and short however long it is."""

from __future__ import annotations

_MOST = 80  # characters


def shown(value: object) -> str:
    """A value in an error: quoted as Python does, so that a terminal obeys nothing in it; cut where it is long."""
    try:
        text = repr(value[: _MOST + 1]) if isinstance(value, str | bytes) else repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python converts; too many brackets
        return f"a {type(value).__name__} too large to show"
    text = text if text.isprintable() else ascii(value)
    return text if len(text) <= _MOST + 2 else f"{text[:_MOST]}..."


def shortened(text: str) -> str:
    """A name of a user's in an error where it isn't quoted, such as a key."""
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."
