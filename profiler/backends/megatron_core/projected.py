"""A token embedding narrower than the model, as OPT-350M has it: a product behind the table, and one before the head.

A GPTModel has none of these; both ends of it are replaced, on one rank that holds both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moemodel.model.architecture.spec import Architecture


class ProjectedEmbedding(nn.Module):
    """Token ids [B, S] to rows of the model's width; in place of Megatron Core's `VocabParallelEmbedding`."""

    def __init__(self, vocab: int, width: int, hidden: int, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab, width, **factory))
        self.project = nn.Linear(width, hidden, bias=False, **factory)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """Rows [B, S, D]."""
        out: Tensor = self.project(functional.embedding(tokens_BS, self.weight))
        return out


class ProjectedHead(nn.Module):
    """Rows [S, B, D] to logits; in place of the `ColumnParallelLinear` that is a GPTModel's head.

    Args:
        vocab: rows of its own table; None: that of the embedding.
        width: of the table.
        hidden: of the model.
        factory: type and device of the weights.
    """

    def __init__(self, vocab: int | None, width: int, hidden: int, **factory: Any) -> None:
        super().__init__()
        self.weight = None if vocab is None else nn.Parameter(torch.empty(vocab, width, **factory))
        self.project = nn.Linear(hidden, width, bias=False, **factory)

    def forward(
        self, x_SBD: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[Tensor, None]:
        """Logits [S, B, V], and no bias, as Megatron Core's products give one beside the output."""
        del runtime_gather_output
        table = self.weight if weight is None else weight
        assert table is not None
        return functional.linear(self.project(x_SBD), table), None


def replace_ends(model: Any, architecture: Architecture, config: Any) -> None:
    """Replace both ends of a GPTModel where the embedding is of another width than the model."""
    width, hidden, vocab = architecture.embedding_width, architecture.hidden, architecture.vocab
    if width == hidden:
        return
    factory = {"dtype": config.params_dtype, "device": torch.cuda.current_device()}
    model.embedding.word_embeddings = ProjectedEmbedding(vocab, width, hidden, **factory)
    model.output_layer = ProjectedHead(None if architecture.tied else vocab, width, hidden, **factory)
