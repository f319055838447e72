"""Span corruption: lengths as t5 counts them, and sequences that can be put together again."""

from __future__ import annotations

import numpy as np
import pytest

from moemodel.model.architecture.denoising import denoising, denoising_of
from moemodel.model.core.errors import InputError
from moemodel.profiler.data.spans import END, corrupted, noise_mask, sentinels


def test_lengths_are_t5_s() -> None:
    """`random_spans_helper(512, 0.15, 3, 1, 1)` of t5 gives 568 and 114."""
    found = denoising_of(512)
    assert (found.text, found.input, found.target) == (568, 512, 114)


@pytest.mark.parametrize("length", [3, 4, 7, 8, 16, 64, 100, 513, 2048])
def test_the_text_is_the_longest_that_fits(length: int) -> None:
    found = denoising_of(length)
    assert found.input <= length
    assert denoising(found.text + 1).input > length


def test_hidden_tokens_lie_in_spans_of_three_at_the_mean() -> None:
    lengths, rng = denoising_of(512), np.random.default_rng(0)
    for _ in range(20):
        mask = noise_mask(lengths, rng)
        assert len(mask) == 568
        assert mask.sum() == round(0.15 * 568)
        starts = mask & ~np.concatenate(([False], mask[:-1]))
        assert starts.sum() == round(mask.sum() / 3)
        assert not mask[0]


def test_every_cut_is_as_likely() -> None:
    """Four tokens seen and two hidden in two spans: three ways to cut the seen ones."""
    lengths = denoising(13)
    assert (lengths.hidden, lengths.spans) == (2, 1)
    rng, firsts = np.random.default_rng(0), []
    two = type(lengths)(text=6, hidden=2, spans=2)
    for _ in range(3000):
        firsts.append(int(np.argmax(noise_mask(two, rng))))
    assert {first: round(firsts.count(first) / 3000, 1) for first in set(firsts)} == {1: 0.3, 2: 0.3, 3: 0.3}


def test_input_and_target_make_up_the_text() -> None:
    vocabulary, lengths = 1000, denoising_of(64)
    text_NL = np.random.default_rng(1).integers(2, 700, (5, lengths.text)).astype(np.int32)
    inputs_NS, targets_NM = corrupted(text_NL, 64, vocabulary, np.random.default_rng(2))
    for text, seen, wanted in zip(text_NL, inputs_NS, targets_NM, strict=True):
        assert seen[-1] == wanted[-1] == END
        spans: dict[int, list[int]] = {}
        for token in wanted[:-1].tolist():
            if token > vocabulary - sentinels(vocabulary) - 1:
                spans[token] = []
            else:
                spans[max(spans, key=lambda s: -s)].append(token)
        assert list(spans) == [vocabulary - 1 - i for i in range(lengths.spans)]
        again = [t for token in seen[:-1].tolist() for t in spans.get(token, [token])]
        assert again == text.tolist()


def test_a_sequence_with_more_spans_than_sentinels_is_refused() -> None:
    lengths = denoising_of(64)
    with pytest.raises(InputError, match=r"sequence_length: found 64, which hides 3 spans; allowed .* at most 2"):
        corrupted(np.zeros((1, lengths.text), np.int32), 64, 8, np.random.default_rng(0))
