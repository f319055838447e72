"""Names that a user may get wrong: the error that lists the known ones and guesses which was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from moemodel.model.core.errors import InputError
from moemodel.model.core.shown import shown

_MOST_GUESSED = 3  # as many as difflib.get_close_matches gives by default
_LONGEST = 200  # characters of a name that is guessed at
_MOST_LISTED = 40  # names; an error that allows more says how many and guesses


def unknown(
    kind: str, found: str, known: Iterable[str], *, aliases: Iterable[str] = (), or_else: str = ""
) -> InputError:
    """The error for a name that is not among the known ones.

    Args:
        kind: what it should name, and where it stands, such as "gpu" or "config.json: model_type".
        found: the name found.
        known: all names allowed.
        aliases: other names allowed, guessed from but not listed.
        or_else: what else is allowed, such as "the path of a file".
    """
    names = sorted(known)
    by_folded = {name.casefold(): name for name in (*names, *aliases)}
    near = [
        by_folded[name] for name in difflib.get_close_matches(found[:_LONGEST].casefold(), by_folded, n=_MOST_GUESSED)
    ]
    guess = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    listed = ", ".join(names) if len(names) <= _MOST_LISTED else f"one of {len(names)} names"
    alternative = f", or {or_else}" if or_else else ""
    return InputError(f"{kind}: found {shown(found)}; allowed: {listed}{alternative}{guess}")
