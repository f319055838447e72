"""Names that a user may get wrong: the error that lists the known ones and guesses which was meant.

A guess is a name that is written almost so, not one that looks alike: another number is another GPU or model (A10 and
A100, DeepSeek-V2 and V3), and so is another letter before it (GB200 and GH200).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from moemodel.model.core.errors import InputError
from moemodel.model.core.shown import shown

_MOST_GUESSED = 3  # as many as difflib.get_close_matches gives by default
_LONGEST = 200  # characters of a name that is guessed at
_LEAST_BEGUN = 3  # characters that a longer name is recognised by
_ALIKE = 0.8  # of difflib's measure: "Grmany" and "Germany" have 0.92
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
    near = list(dict.fromkeys(by_folded[name] for name in _near(found[:_LONGEST].casefold(), by_folded)))
    guess = f"; did you mean {' or '.join(map(repr, near[:_MOST_GUESSED]))}?" if near else ""
    listed = ", ".join(names) if len(names) <= _MOST_LISTED else f"one of {len(names)} names"
    alternative = f", or {or_else}" if or_else else ""
    return InputError(f"{kind}: found {shown(found)}; allowed: {listed}{alternative}{guess}")


def _near(found: str, names: Iterable[str]) -> list[str]:
    """Names that may have been meant, the nearest first."""
    alike = {name: difflib.SequenceMatcher(a=found, b=name).ratio() for name in names if _is_near(found, name)}
    return sorted(alike, key=lambda name: (-alike[name], name))


def _is_near(found: str, name: str) -> bool:
    """Whether a name is the one found but for punctuation, its end, or a letter in a word without a number."""
    parts, whole = _parts(found), _parts(name)
    if "".join(parts) == "".join(whole) or (parts and len(found) >= _LEAST_BEGUN and whole[: len(parts)] == parts):
        return True
    if not _numbered(found) <= _numbered(name):
        return False
    return difflib.SequenceMatcher(a=found, b=name).ratio() >= _ALIKE


def _parts(name: str) -> list[str]:
    """Its numbers and what is between them, without punctuation."""
    return re.findall(r"\d+|[^\W\d_]+", name)


def _numbered(name: str) -> set[str]:
    """Its words that have a digit."""
    return {word for word in re.split(r"[\W_]+", name) if any(character.isdigit() for character in word)}
