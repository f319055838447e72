"""Training data on the device, step after step, the same for every plan: made-up tokens or real text.

Which sequences a step has depends on the seed, the sequence length and the global batch alone; a replica takes its
share of each step in order. A decoder is asked for the token behind each of its input; an encoder-decoder for what is
hidden of its input (`profiler.data.spans`).

Shapes: P steps in turn, N sequences of text, G of a step, L tokens read of each, S and M tokens of input and target.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from moemodel.model.architecture.denoising import denoising_of
from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.errors import InputError
from moemodel.profiler.backends.base import TrainingRun
from moemodel.profiler.data.spans import corrupted
from moemodel.profiler.data.text import load, text_vocabulary
from moemodel.profiler.data.zipf import EXPONENT, zipf

_POOL_TOKENS = 1 << 20  # distinct training data: 16 MB
_POOL_STEPS = 16  # of it, at most


def zipf_tokens(vocab: int, shape: tuple[int, ...], seed: int, exponent: float = EXPONENT) -> Tensor:
    """See `profiler.data.zipf`; int64, on the host."""
    return torch.from_numpy(zipf(vocab, shape, seed, exponent))


class Batches:
    """Tokens and targets, step after step, from a pool on the device.

    Args:
        run: what is trained.
        device: where the tokens go.
        replica: number of this one, of `run.parallel.dp`.

    Raises:
        InputError: the run's text cannot be read, or is too short for one sequence.
        MissingExtraError: a library that reads it is missing.
    """

    def __init__(self, run: TrainingRun, device: torch.device, replica: int = 0) -> None:
        made_up = run.data is None or run.data.source == "synthetic"
        self._pool: _Drawn | _Read = _Drawn(run, device, replica) if made_up else _Read(run, device, replica)
        self._next = 0

    def step(self) -> tuple[Tensor, Tensor]:
        """Tokens [micro-batches, micro-batch, S] and targets [micro-batches, micro-batch, M] of one step."""
        self._next += 1
        return self._pool.step(self._next - 1)


class _Drawn:
    """Made-up tokens of a few steps, in turn."""

    def __init__(self, run: TrainingRun, device: torch.device, replica: int) -> None:
        own = run.micro_batch * run.micro_batches
        total = own * run.parallel.dp
        steps = max(1, min(_POOL_STEPS, _POOL_TOKENS // (total * run.seq)))
        exponent = EXPONENT if run.data is None else run.data.zipf_exponent
        length = _read_length(run.architecture, run.seq)
        ids_PGL = zipf(text_vocabulary(run.architecture), (steps, total, length), run.seed, exponent)
        inputs_NS, targets_NM = _sequences(ids_PGL.reshape(-1, length), run)
        self._tokens = self._share(inputs_NS, run, total, replica).to(device)
        self._targets = self._share(targets_NM, run, total, replica).to(device)

    @staticmethod
    def _share(ids: np.ndarray, run: TrainingRun, total: int, replica: int) -> Tensor:
        """Of each step, the sequences of one replica, as micro-batches."""
        own = run.micro_batch * run.micro_batches
        steps = torch.from_numpy(ids).long().view(-1, total, ids.shape[-1])[:, replica * own : (replica + 1) * own]
        return steps.reshape(len(steps), run.micro_batches, run.micro_batch, -1)

    def step(self, number: int) -> tuple[Tensor, Tensor]:
        """Of one step."""
        i = number % len(self._tokens)
        return self._tokens[i], self._targets[i]


class _Read:
    """Sequences of a text in an order by chance, over and over."""

    def __init__(self, run: TrainingRun, device: torch.device, replica: int) -> None:
        assert run.data is not None
        stream = load(run.data, run.architecture)
        length = _read_length(run.architecture, run.seq)
        self._shape = (run.micro_batches, run.micro_batch, -1)
        own = run.micro_batches * run.micro_batch
        self._total = own * run.parallel.dp
        text_NL = _cut(stream.tokens, length, overlap=0 if run.architecture.encoder else 1)
        inputs_NS, targets_NM = _sequences(text_NL, run)
        self._inputs_NS, self._targets_NM = _moved(inputs_NS, device), _moved(targets_NM, device)
        order_N = np.random.default_rng(run.seed).permutation(len(text_NL))
        self._order_N = torch.from_numpy(order_N).to(device)
        self._own = torch.arange(replica * own, (replica + 1) * own, device=device)

    def step(self, number: int) -> tuple[Tensor, Tensor]:
        """Of one step; nothing waits for the device."""
        row_B = self._order_N[(self._own + number * self._total) % len(self._order_N)]
        inputs, targets = self._inputs_NS[row_B].long(), self._targets_NM[row_B].long()
        return inputs.view(self._shape), targets.view(self._shape)


def _read_length(architecture: Architecture, seq: int) -> int:
    """Tokens that are read for one sequence."""
    return denoising_of(seq).text if architecture.encoder else seq + 1


def _sequences(text_NL: np.ndarray, run: TrainingRun) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets."""
    if run.architecture.encoder:
        return corrupted(text_NL, run.seq, run.architecture.vocab, np.random.default_rng(run.seed))
    return text_NL[:, :-1], text_NL[:, 1:]


def _cut(tokens: np.ndarray, length: int, *, overlap: int) -> np.ndarray:
    """A stream cut into sequences, the last token of one being the first of the next where they overlap; a view.

    Raises:
        InputError: it is shorter than one.
    """
    if len(tokens) < length:
        raise InputError(
            f"data: found a text of {len(tokens)} tokens; allowed: at least {length}, one sequence of the plan"
        )
    windows = np.lib.stride_tricks.sliding_window_view(tokens, length)
    return windows[:: length - overlap]


def _moved(ids: np.ndarray, device: torch.device) -> Tensor:
    """As 4-byte numbers on the device."""
    return torch.from_numpy(np.array(ids, np.int32)).to(device)
