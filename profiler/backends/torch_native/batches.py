"""Training data: made-up tokens as frequent as words are, the same for every plan."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from moemodel.profiler.backends.base import TrainingRun

_POOL_TOKENS = 1 << 20  # distinct training data: 16 MB
_POOL_STEPS = 16  # of it, at most
_ZIPF_EXPONENT = 1.0  # word frequency against rank (Zipf 1949)


def zipf_tokens(vocab: int, shape: tuple[int, ...], seed: int, exponent: float = _ZIPF_EXPONENT) -> Tensor:
    """Token ids whose frequency falls with their rank, p(r) ~ r^-exponent; int64, on the host.

    Uniform tokens would spread an embedding's gradient as no text does.
    """
    share = np.arange(1, vocab + 1, dtype=np.float64) ** -exponent
    cumulative = np.cumsum(share / share.sum())
    draws = np.random.default_rng(seed).random(shape)
    return torch.from_numpy(np.searchsorted(cumulative, draws).clip(max=vocab - 1))


class Batches:
    """Tokens and the tokens that follow them, step after step, in turn from a pool on the device.

    The pool depends on the seed, the sequence length and the global batch alone: every plan of the same three sees the
    same sequences in the same step. A replica takes its share of each step in order.

    Args:
        run: what is trained.
        device: where the tokens go.
        replica: number of this one, of `run.parallel.dp`.
    """

    def __init__(self, run: TrainingRun, device: torch.device, replica: int = 0) -> None:
        own = run.micro_batch * run.micro_batches
        total = own * run.parallel.dp
        steps = max(1, min(_POOL_STEPS, _POOL_TOKENS // (total * run.seq)))
        ids = zipf_tokens(run.architecture.vocab, (steps, total, run.seq + 1), run.seed)
        shape = (steps, run.micro_batches, run.micro_batch, run.seq)
        ids = ids[:, replica * own : (replica + 1) * own]
        self._tokens = ids[..., :-1].reshape(shape).to(device)
        self._targets = ids[..., 1:].reshape(shape).to(device)
        self._next = 0

    def step(self) -> tuple[Tensor, Tensor]:
        """Tokens and targets of one step, each [micro-batches, micro-batch, S]."""
        i = self._next % len(self._tokens)
        self._next += 1
        return self._tokens[i], self._targets[i]
