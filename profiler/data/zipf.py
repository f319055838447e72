"""Made-up tokens as frequent as words are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EXPONENT = 1.0  # word frequency against rank (Zipf 1949)


def zipf(vocab: int, shape: tuple[int, ...], seed: int, exponent: float = EXPONENT) -> NDArray[np.int64]:
    """Token ids whose frequency falls with their rank, p(r) ~ r^-exponent; 0: all alike.

    Uniform tokens would spread an embedding's gradient as no text does.
    """
    share = np.arange(1, vocab + 1, dtype=np.float64) ** -exponent
    cumulative = np.cumsum(share / share.sum())
    draws = np.random.default_rng(seed).random(shape)
    return np.searchsorted(cumulative, draws).clip(max=vocab - 1)
