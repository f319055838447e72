"""JSON text to plain data, within bounds: no key twice, no number that Python would take seconds or an error for."""

from __future__ import annotations

import json
from typing import Any

from moemodel.model.core.errors import InputError
from moemodel.model.core.shown import shown

_MOST_DIGITS = 40  # of an integer, assumed: twice as many as any that is read


def json_data(text: str, source: str) -> Any:
    """What JSON text holds.

    Args:
        text: one document.
        source: what errors call it.

    Raises:
        InputError: not JSON (the line is named), a key that stands twice, an endless number, or too many brackets.
    """
    try:
        data = json.loads(text, object_pairs_hook=_object, parse_int=_int)
        if "\\ud" in text.casefold():
            json.dumps(data, ensure_ascii=False).encode()
        return data
    except json.JSONDecodeError as error:
        raise InputError(f"{source}:{error.lineno}: not JSON: {error.msg}") from None
    except _RefusedError as error:
        raise InputError(f"{source}: {error}") from None
    except UnicodeEncodeError:
        raise InputError(f"{source}: not JSON: half of a character (a lone surrogate)") from None
    except RecursionError:
        raise InputError(f"{source}: not JSON: nested too deeply") from None


class _RefusedError(Exception):
    """What a document may not hold."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _RefusedError(f"the key {shown(twice)} stands twice in one object; keep one of them")
    return read


def _int(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise _RefusedError(f"not JSON: found a number of {len(text):,} digits; allowed: {_MOST_DIGITS}")
    return int(text)
