"""Lengths under span corruption, which encoder-decoders are trained with (Raffel et al. 2020, section 3.1.4 and 3.3.4).

Of L tokens n = round(0.15 L) are hidden in round(n / 3) spans, each of which leaves one sentinel in the input; the
target is each span behind its sentinel. Both end with one token more. As t5's `random_spans_helper` counts: 512 tokens
of input are of 568 of text, and have 114 of target.
"""

from __future__ import annotations

from dataclasses import dataclass

NOISE_DENSITY, MEAN_SPAN = 0.15, 3.0  # Raffel et al. 2020, section 3.3.4


@dataclass(frozen=True, kw_only=True)
class Denoising:
    """Tokens of one sequence.

    Attributes:
        text: that are read.
        hidden: of these.
        spans: that the hidden ones are in.
    """

    text: int
    hidden: int
    spans: int

    @property
    def input(self) -> int:
        """That the encoder sees."""
        return self.text - self.hidden + self.spans + 1

    @property
    def target(self) -> int:
        """That the decoder is asked for."""
        return self.hidden + self.spans + 1


def denoising(text: int) -> Denoising:
    """Lengths for so many tokens of text, at least two."""
    hidden = min(max(round(text * NOISE_DENSITY), 1), text - 1)
    spans = max(round(hidden / MEAN_SPAN), 1)
    return Denoising(text=text, hidden=hidden, spans=min(spans, text - hidden))


def denoising_of(sequence_length: int) -> Denoising:
    """The longest text whose input, with its end, has at most so many tokens.

    Where none has exactly as many, the input is padded; t5 shortens it.

    Args:
        sequence_length: of the encoder, at least three.
    """
    text = max(2, sequence_length - 1)
    while denoising(text + 1).input <= sequence_length:
        text += 1
    return denoising(text)
