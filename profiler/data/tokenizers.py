"""Texts to numbers. Texts are joined, each behind a number that stands for its end.

- `words`: pieces of letters and digits, of other signs, of white space; a space goes with what follows it. Numbered by
  how often they occur, as far as the vocabulary goes; the rest share one number. Made of the text itself, no network.
- `bytes`: of UTF-8.
- any other name: of the library `tokenizers`.

A model's vocabulary is mostly larger than what occurs: rows of the embedding beyond it are never looked up.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from moemodel.model.core.errors import InputError
from moemodel.profiler.data.huggingface import load_tokenizer

Tokens = NDArray[np.int32]

_PIECE = re.compile(r" ?\w+| ?[^\w\s]+|\s+")
_END, _OTHER, _FIRST = 0, 1, 2  # of words: the end of a text, all that has no number, the most frequent piece
_BYTES = 256


@dataclass(frozen=True, kw_only=True)
class Numbered:
    """A text in numbers.

    Attributes:
        tokens: all of it [N].
        unknown: of these, pieces without a number of their own.
    """

    tokens: Tokens
    unknown: int = 0


def number(texts: Iterable[str], tokenizer: str, vocabulary: int, limit: int) -> Numbered:
    """The beginning of some texts in numbers.

    Args:
        texts: read as far as needed.
        tokenizer: its name; see the module.
        vocabulary: numbers that there are.
        limit: of tokens.

    Raises:
        InputError: the vocabulary is too small, or the tokenizer unknown.
    """
    if tokenizer == "words":
        return _words(texts, vocabulary, limit)
    if tokenizer == "bytes":
        _require("bytes", _BYTES + 1, vocabulary)
        coded = (chain(text.encode(), (_BYTES,)) for text in texts)
        return Numbered(tokens=_first(coded, limit))
    return _other(texts, tokenizer, vocabulary, limit)


def _words(texts: Iterable[str], vocabulary: int, limit: int) -> Numbered:
    _require("words", _FIRST + 1, vocabulary)
    pieces: list[str | None] = []  # None: the end of a text
    for text in texts:
        pieces += _PIECE.findall(text)
        pieces.append(None)
        if len(pieces) >= limit:
            break
    del pieces[limit:]
    counts = Counter(piece for piece in pieces if piece is not None)
    ranked = sorted(counts, key=lambda piece: (-counts[piece], piece))[: vocabulary - _FIRST]
    numbers: dict[str | None, int] = {piece: _FIRST + rank for rank, piece in enumerate(ranked)} | {None: _END}
    tokens = np.fromiter((numbers.get(piece, _OTHER) for piece in pieces), np.int32, len(pieces))
    return Numbered(tokens=tokens, unknown=int((tokens == _OTHER).sum()))


def _other(texts: Iterable[str], name: str, vocabulary: int, limit: int) -> Numbered:
    tokenizer = load_tokenizer(name)
    size = tokenizer.get_vocab_size() + 1  # the end of a text is behind all others
    _require(name, size, vocabulary)
    coded = (chain(tokenizer.encode(text, add_special_tokens=False).ids, (size - 1,)) for text in texts)
    return Numbered(tokens=_first(coded, limit))


def _first(coded: Iterator[Iterable[int]], limit: int) -> Tokens:
    tokens: list[int] = []
    for text in coded:
        tokens += text
        if len(tokens) >= limit:
            break
    return np.array(tokens[:limit], np.int32)


def _require(tokenizer: str, needed: int, vocabulary: int) -> None:
    if vocabulary < needed:
        raise InputError(
            f"data.tokenizer: found {tokenizer}, which takes {needed} numbers, and a model with {vocabulary} for text; "
            "allowed: a tokenizer with at most as many as the model's vocabulary"
        )
