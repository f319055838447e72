"""Real text as one stream of token numbers, and what a manifest says of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.errors import InputError
from moemodel.profiler.data.c4 import c4_texts
from moemodel.profiler.data.corpus import corpus_texts
from moemodel.profiler.data.huggingface import dataset_texts
from moemodel.profiler.data.spans import sentinels
from moemodel.profiler.data.spec import DataSpec
from moemodel.profiler.data.tokenizers import Tokens, number


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A text in numbers.

    Attributes:
        tokens: [N].
        tokenizer: that numbered it.
        unknown: tokens without a number of their own.
    """

    tokens: Tokens
    tokenizer: str
    unknown: int


def load(spec: DataSpec, architecture: Architecture) -> Stream:
    """The text of a run, in numbers that its model has. The last one stays in memory.

    Args:
        spec: of text, not of made-up tokens.
        architecture: of the model; an encoder-decoder keeps the last of its numbers for `spans`.

    Raises:
        InputError: the text cannot be read, or not be numbered so: place, found, allowed.
        MissingExtraError: a library that reads it is missing.
    """
    return _load(spec.model_dump_json(), text_vocabulary(architecture))


def text_vocabulary(architecture: Architecture) -> int:
    """Numbers that a model has for text."""
    return architecture.vocab - (sentinels(architecture.vocab) if architecture.encoder else 0)


@lru_cache(maxsize=1)
def _load(document: str, vocabulary: int) -> Stream:
    spec = DataSpec.model_validate_json(document)
    tokenizer = spec.tokenizer or "words"
    found = number(_texts(spec), tokenizer, vocabulary, spec.tokens)
    if not len(found.tokens):
        raise InputError("data: found no text; allowed: at least one sequence of it")
    return Stream(tokens=found.tokens, tokenizer=tokenizer, unknown=found.unknown)


def _texts(spec: DataSpec) -> Iterator[str]:
    if spec.source == "corpus":
        return corpus_texts()
    if spec.source == "c4":
        if spec.path is None:
            raise InputError("data.path: found null with source c4; allowed: a shard of C4, or a folder of shards")
        return c4_texts(spec.path)
    if spec.name is None:
        raise InputError("data.name: found null with source dataset; allowed: what datasets.load_dataset takes")
    return dataset_texts(spec.name, spec.split, spec.column)


def describe(spec: DataSpec | None, architecture: Architecture) -> dict[str, Any]:
    """What a manifest says of a run's data: the document, and of text its size, tokenizer and hash.

    Args:
        spec: of the run; None: made-up tokens as frequent as words.
        architecture: of its model.

    Raises:
        InputError, MissingExtraError: see `load`.
    """
    spec = DataSpec(source="synthetic") if spec is None else spec
    document = spec.model_dump(mode="json", exclude_none=True)
    if spec.source == "synthetic":
        return {"source": spec.source, "zipf_exponent": spec.zipf_exponent, "vocabulary": architecture.vocab}
    stream = load(spec, architecture)
    return document | {
        "tokenizer": stream.tokenizer,
        "tokens": len(stream.tokens),
        "distinct_tokens": len(np.unique(stream.tokens)),
        "unknown_tokens": stream.unknown,
        "vocabulary": architecture.vocab,
        "sha256": hashlib.sha256(stream.tokens.astype("<i4").tobytes()).hexdigest(),
    }
