"""The ends of a model: token (and position) embedding; final norm, projection to the vocabulary and loss.

Tensor-parallel ranks share the vocabulary (Shoeybi et al. 2019, section 3): the embedding's output is reduced forward
(under sequence parallelism scattered, and its gradient gathered); the head's input gradient is reduced backward (its
input gathered, the gradient scattered), and of each token a float32 maximum, then the target's logit and the sum of
exponentials, forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.arrays import FloatArray
from moemodel.model.frameworks.moe_form import WIDEN_B
from moemodel.model.layers.base import (
    LayerComm,
    LayerOp,
    MicroBatch,
    elementwise,
    gathered_again,
    linear,
    tensor_parallel,
)
from moemodel.model.layers.norms import norm, norm_parameters
from moemodel.model.operators.work import Kind, Shape

# What tensor parallelism puts in place of one kernel, in `profiler/backends/torch_native`; a float32 element is two of
# bf16. Cross-entropy: to float32, maximum, shift, exponential, sum, division; and backward scale, to 16 bits. Those
# forward, half of them along rows, reach 1 / 1.4 of a copy's bandwidth (two models on two H100, measured for this
# project, 2026). Megatron's are the same without tensor parallelism too (tensor_parallel/cross_entropy.py): traced on
# an H200, 8,192 tokens of 151,936 take about 16 ms forward, 3 TB/s
_CUT_LOSS, _CUT_LOSS_BACKWARD = 1.4 * (3.0 + 2.0 + 4.0 + 4.0 + 2.0 + 4.0), 4.0 + 3.0
_WIDENED = WIDEN_B / 2.0  # 16-bit logits to float32
_LOGIT_B = 4.0  # of a token: a float32 maximum, logit or sum
_F = 4.0  # bytes of a float32 element


@dataclass(frozen=True, kw_only=True)
class EmbeddingBlock:
    """The first end; a model without a vocabulary has none."""

    architecture: Architecture

    def parameters(self) -> int:
        """Of the token embedding."""
        return self.architecture.vocab * self.architecture.embedding_width

    def positions(self) -> int:
        """Of the learned position embedding."""
        return self.architecture.learned_positions * self.architecture.hidden

    def projections(self) -> int:
        """Between the embedding's width and the model's, where they differ (OPT-350M): in and out."""
        a = self.architecture
        return 2 * a.embedding_width * a.hidden if a.vocab and a.embedding_width != a.hidden else 0

    def norms(self) -> int:
        """Of the norm behind it."""
        a = self.architecture
        return norm_parameters(a.layers[0], a.hidden) if a.embedding_norm else 0

    def on_one_gpu(self, tp: FloatArray) -> FloatArray:
        """Parameters of one tensor-parallel rank, [P]."""
        return np.asarray(self.parameters() / tp + self.positions() + self.projections() / 2 + self.norms())

    def _tokens(self, batch: MicroBatch) -> FloatArray:
        """That are looked up: an encoder's, and a decoder's. [P]"""
        return np.asarray(batch.tokens + batch.of_decoder().tokens) if self.architecture.encoder else batch.tokens

    def operators(self, batch: MicroBatch) -> Iterator[LayerOp]:
        a, tokens = self.architecture, self._tokens(batch)
        if not a.vocab:
            return
        yield LayerOp(kind=Kind.EMBEDDING, shape=Shape(m=tokens, n=a.embedding_width, k=a.vocab / batch.tp))
        if batch.adds_kernels("tp"):  # tokens whose rows lie elsewhere, filled with zeros
            yield elementwise(tokens * a.embedding_width, 2.0, (2.0,), mask=batch.is_sharded("tp"))
        if a.learned_positions:
            yield LayerOp(kind=Kind.EMBEDDING, shape=Shape(m=tokens, n=a.hidden, k=a.learned_positions))
            yield LayerOp(kind=Kind.RESIDUAL_ADD, shape=Shape(m=tokens, n=a.hidden))
        if a.embedding_width != a.hidden:
            yield linear(tokens, a.hidden, a.embedding_width)
        if a.embedding_norm:
            yield norm(a.layers[0], tokens, a.hidden)

    def collectives(self, batch: MicroBatch) -> Iterator[LayerComm]:
        """Partial embeddings of the vocabulary's shards, summed."""
        if not self.architecture.vocab:
            return
        size_B = batch.element_size_B * self._tokens(batch) * self.architecture.hidden
        whole, shares = 1 - batch.sequence_parallel, batch.sequence_parallel
        yield tensor_parallel(batch, "all_reduce", size_B, forward=whole, backward=0.0)
        yield tensor_parallel(batch, "reduce_scatter", size_B, forward=shares, backward=0.0)
        yield tensor_parallel(batch, "all_gather", size_B, forward=0.0, backward=shares)


@dataclass(frozen=True, kw_only=True)
class HeadBlock:
    """The last end; a model without a vocabulary has a final norm alone."""

    architecture: Architecture

    def parameters(self) -> int:
        """Of the output head; 0 where it shares the embedding."""
        a = self.architecture
        biases = a.head_outputs if a.head_bias else 0
        return biases + (0 if a.tied else a.head_outputs * a.embedding_width)

    def _shards(self, tp: FloatArray) -> FloatArray:
        """Over how many tensor-parallel ranks it is cut: those that share a vocabulary, or none. [P]"""
        return np.ones_like(tp) if self.architecture.classes else tp

    def final_norms(self) -> int:
        """Of the norm after each stack."""
        a = self.architecture
        stacks = [stack for stack in (a.encoder, a.decoder) if stack]
        return sum(norm_parameters(stack[-1], a.hidden) for stack in stacks) if a.final_norm else 0

    def on_one_gpu(self, tp: FloatArray, *, beside_embedding: bool) -> FloatArray:
        """Parameters of one tensor-parallel rank, [P]; a tied head on another stage is a copy of the embedding, which
        modules of multi-token prediction need too."""
        a, embedding = self.architecture, EmbeddingBlock(architecture=self.architecture)
        copied = 0 if beside_embedding or not (a.tied or a.modules) else embedding.parameters() * a.has_head
        last_norm = norm_parameters(a.layers[-1], a.hidden) if a.final_norm else 0
        return np.asarray((copied + self.parameters()) / self._shards(tp) + embedding.projections() / 2 + last_norm)

    def operators(self, batch: MicroBatch) -> Iterator[LayerOp]:
        batch = batch.of_decoder()
        a, tokens = self.architecture, batch.tokens
        if a.final_norm and a.layers[-1].norm is not None:
            yield norm(a.layers[-1], batch.sequence_parallel_tokens, a.hidden)
        if a.vocab and a.embedding_width != a.hidden:
            yield linear(tokens, a.embedding_width, a.hidden)
        if not a.has_head:
            return
        chunks = batch.framework.loss_chunks
        part = batch if chunks == 1 else replace(batch, tokens=tokens / chunks)
        head = linear(part.tokens, a.head_outputs / self._shards(batch.tp), a.embedding_width, bias=a.head_bias)
        for op in (head, *self._loss(part), *self._logged(part)):
            times = op.mask if chunks == 1 else chunks * (np.ones_like(tokens) if op.mask is None else op.mask)
            yield replace(op, mask=times)

    def _loss(self, batch: MicroBatch) -> Iterator[LayerOp]:
        """Over the whole vocabulary one operator; over a rank's part of it, kernels one after another."""
        width = self.architecture.head_outputs / self._shards(batch.tp)
        if batch.framework.returns_logits:
            yield elementwise(batch.tokens * width, _WIDENED, ())
        whole = LayerOp(kind=Kind.CROSS_ENTROPY, shape=Shape(m=batch.tokens, n=width))
        if batch.framework.eager_loss and not self.architecture.classes:
            moved = batch.framework.eager_loss_B
            forward, backward = (_CUT_LOSS, _CUT_LOSS_BACKWARD) if moved is None else (moved[0] / 2, moved[1] / 2)
            yield elementwise(batch.tokens * width, forward, (backward,))
            return
        if self.architecture.classes or not batch.adds_kernels("tp"):
            yield whole
            return
        cut = batch.is_sharded("tp")
        yield replace(whole, mask=1 - cut)
        yield elementwise(batch.tokens * width, _CUT_LOSS, (_CUT_LOSS_BACKWARD,), mask=cut)

    def _logged(self, batch: MicroBatch) -> Iterator[LayerOp]:
        """Cross-entropies for the log, of the logits that the loss had; left out: that they run behind the backward
        pass, where nothing is gathered meanwhile."""
        times = batch.framework.logged_losses
        if times:
            shape = Shape(m=batch.tokens, n=self.architecture.head_outputs / self._shards(batch.tp))
            mask = np.full(batch.plans, float(times))
            yield LayerOp(kind=Kind.CROSS_ENTROPY, shape=shape, mask=mask, backward=(), plain=True)

    def loss_B(self, batch: MicroBatch) -> FloatArray:
        """Tensors of the loss when its backward pass begins, of one part of the tokens where they pass in parts. [P]

        Torch's: log-probabilities and two gradients in float32; of a rank's part of a vocabulary 16-bit logits, and one
        float32 tensor that becomes the gradient in place.
        """
        a = self.architecture
        if not a.has_head:
            return np.zeros(batch.plans)
        whole, parts = 3 * _F, batch.framework.part_logit_B or batch.element_size_B + _F
        if batch.framework.logit_B is not None:
            whole = parts = batch.framework.logit_B
        shards = self._shards(batch.tp)
        tokens = batch.of_decoder().tokens / batch.framework.loss_chunks
        return np.asarray(np.where(shards > 1, parts, whole) * tokens * a.head_outputs / shards)

    def logits_B(self, batch: MicroBatch) -> FloatArray:
        """Logits of one micro-batch in the precision of activations. [P]"""
        outputs = self.architecture.head_outputs / self._shards(batch.tp)
        return np.asarray(batch.element_size_B * batch.of_decoder().tokens / batch.framework.loss_chunks * outputs)

    def outgrown_B(self, batch: MicroBatch) -> FloatArray:
        """16-bit logits that are free when the loss's backward pass begins, and too small a block for any of its
        float32 tensors (torch's allocator, which takes these from blocks that are as large, or new ones). [P]"""
        plain = self.architecture.has_head and batch.framework.logit_B is None
        return self.logits_B(batch) if plain and not self.architecture.classes else np.zeros(batch.plans)

    def log_probabilities_B(self, batch: MicroBatch) -> FloatArray:
        """Of one micro-batch, which a last stage that runs several forward passes first keeps. [P]"""
        a = self.architecture
        return np.asarray(_F * batch.of_decoder().tokens * a.head_outputs / self._shards(batch.tp))

    def collectives(self, batch: MicroBatch) -> Iterator[LayerComm]:
        """The input and its gradient, and what the loss needs of all shards of the vocabulary."""
        if not self.architecture.has_head:
            return
        batch = batch.of_decoder()
        size_B = batch.element_size_B * batch.tokens * self.architecture.hidden
        whole, shares = 1 - batch.sequence_parallel, batch.sequence_parallel
        yield tensor_parallel(batch, "all_gather", size_B, forward=shares, backward=0.0)
        yield from gathered_again(batch, size_B)
        if self.architecture.classes:  # whole on every rank
            return
        # a maximum; and two sums, which all but torch's own trainer here send one by one (Megatron-LM and nanotron,
        # tensor_parallel: vocab_parallel_cross_entropy, sharded_cross_entropy)
        for numbers, sums in ((1, 0), (2, 1 if batch.framework.torch_launch else 2)):
            loss = tensor_parallel(batch, "all_reduce", numbers * _LOGIT_B * batch.tokens, forward=1.0, backward=0.0)
            yield replace(loss, overlap="never", small_sums=sums)
        yield tensor_parallel(batch, "reduce_scatter", size_B, forward=0.0, backward=shares)
        yield tensor_parallel(batch, "all_reduce", size_B, forward=0.0, backward=whole)
