"""Span corruption for encoder-decoders (Raffel et al. 2020, section 3.1.4), with the lengths of
`model.architecture.denoising`.

Sentinels are the last numbers of the vocabulary, the first span's the last of all; a 0 ends inputs and targets, and
fills up inputs that are shorter than the sequence. Spans lie as t5's `random_spans_noise_mask` lays them: hidden and
seen tokens are each cut into as many parts at random, and alternate.

Shapes: N sequences, L tokens of text, S of input, M of target.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moemodel.model.architecture.denoising import Denoising, denoising_of
from moemodel.model.core.errors import InputError
from moemodel.profiler.data.tokenizers import Tokens

_SENTINELS = 256  # T5 has 100, enough for 512 tokens; these are enough for 4,096
END = 0


def sentinels(vocabulary: int) -> int:
    """How many of a vocabulary's last numbers stand for spans."""
    return min(_SENTINELS, vocabulary // 4)


def corrupted(
    text_NL: Tokens, sequence_length: int, vocabulary: int, rng: np.random.Generator
) -> tuple[Tokens, Tokens]:
    """Inputs [N, S] and targets [N, M].

    Args:
        text_NL: sequences of as many tokens as `denoising_of` says.
        sequence_length: S.
        vocabulary: of the model.
        rng: where spans lie.

    Raises:
        InputError: there are more spans than numbers that stand for them.
    """
    lengths = denoising_of(sequence_length)
    if lengths.spans > sentinels(vocabulary):
        raise InputError(
            f"sequence_length: found {sequence_length}, which hides {lengths.spans} spans; allowed for "
            f"encoder-decoders with {vocabulary} numbers: lengths with at most {sentinels(vocabulary)}"
        )
    inputs_NS = np.full((len(text_NL), sequence_length), END, np.int32)
    targets_NM = np.full((len(text_NL), lengths.target), END, np.int32)
    for row, text_L in enumerate(text_NL):
        hidden_L = noise_mask(lengths, rng)
        seen, wanted = _kept(text_L, ~hidden_L, vocabulary), _kept(text_L, hidden_L, vocabulary)
        inputs_NS[row, : len(seen)], targets_NM[row, : len(wanted)] = seen, wanted
    return inputs_NS, targets_NM


def noise_mask(lengths: Denoising, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which tokens of a text are hidden [L]; the first is not."""
    seen = _parts(lengths.text - lengths.hidden, lengths.spans, rng)
    hidden = _parts(lengths.hidden, lengths.spans, rng)
    runs = np.stack((seen, hidden), 1).ravel()
    return np.repeat(np.arange(2 * lengths.spans) % 2 == 1, runs)


def _parts(total: int, parts: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A number cut into parts of at least one, each way as likely."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate(([0], cuts, [total]))).astype(np.int64)


def _kept(text_L: Tokens, kept_L: NDArray[np.bool_], vocabulary: int) -> Tokens:
    """The kept tokens, with one sentinel for each run of others: span i's is the vocabulary's last but i.

    In an input it stands where a hidden span was. In a target it stands for the seen run before its span; both are
    numbered in their order, so a span has the same sentinel in both.
    """
    first_L = ~kept_L & np.concatenate(([True], kept_L[:-1]))  # of each run that is left out
    sentinel_L = vocabulary - np.cumsum(first_L)
    out = np.where(first_L, sentinel_L, text_L)
    return out[kept_L | first_L].astype(np.int32)
