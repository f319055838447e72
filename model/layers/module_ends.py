"""Ends of a module of multi-token prediction, as a block behind those of its layer (DeepSeek-V3, section 2.2).

Each module keeps the probabilities of its own loss until its backward pass: all run forward before any runs back
(Megatron-LM, transformer/multi_token_prediction.py). The layer around counts one of its three norms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moemodel.model.architecture.spec import Architecture, Layer, MultiToken
from moemodel.model.core.arrays import FloatArray
from moemodel.model.layers.base import Block, Component, Kept, LayerComm, LayerOp, MicroBatch, linear
from moemodel.model.layers.embedding_head import EmbeddingBlock, HeadBlock
from moemodel.model.operators.work import Kind, Shape

_INPUTS = 2  # hidden states, and the next token's embedding


@dataclass(frozen=True, kw_only=True)
class ModuleEndsBlock(Block):
    """Embedding, norms and product before a module's layer; norm, head and loss behind it."""

    spec: MultiToken
    hidden: int

    @cached_property
    def _model(self) -> Architecture:
        """The model whose embedding and head it passes; RMS norms, as all models with such modules have."""
        bare = Layer(attentions=(), feed_forward=None, norm="rms")
        return Architecture(
            name="", hidden=self.hidden, vocab=self.spec.vocab, embedding_width=self.hidden, tied=True, decoder=(bare,)
        )

    @cached_property
    def _embedding(self) -> EmbeddingBlock:
        return EmbeddingBlock(architecture=self._model)

    @cached_property
    def _head(self) -> HeadBlock:
        return HeadBlock(architecture=self._model)

    def parameters(self) -> Iterator[Component]:
        """A product of 2 H by H, and two of three norms."""
        yield Component.of("multi_token", self._projection, "tp")
        yield Component.of("norms", 2 * self.hidden, "none")

    @property
    def _projection(self) -> int:
        return _INPUTS * self.hidden**2

    def parameter_tensors(self) -> int:
        return 1 + 2

    def matmul_parameters(self) -> int:
        return self._projection + self.spec.vocab * self.hidden

    def operators(self, batch: MicroBatch) -> Iterator[LayerOp]:
        yield from self._embedding.operators(batch)
        norm_shape = Shape(m=batch.sequence_parallel_tokens, n=self.hidden)
        yield LayerOp(kind=Kind.RMS_NORM, shape=norm_shape, of_stream=True)
        yield linear(batch.tokens, self.hidden / batch.tp, _INPUTS * self.hidden)
        yield from self._head.operators(batch)

    def kept(self, batch: MicroBatch) -> Iterator[Kept]:
        """Embeddings, what the product reads, the head's input and its norm's, the loss's float32 probabilities."""
        inside = batch.sequence_parallel_tokens * self.hidden
        yield Kept(size_B=batch.element_size_B * 3 * inside + batch.recipe.product_input_B * _INPUTS * inside)
        yield Kept(size_B=self._head.log_probabilities_B(batch))

    def passing_B(self, batch: MicroBatch) -> FloatArray:
        return np.zeros(batch.plans)

    def collectives(self, batch: MicroBatch) -> Iterator[LayerComm]:
        """Of the embedding and of the head."""
        yield from self._embedding.collectives(batch)
        yield from self._head.collectives(batch)
