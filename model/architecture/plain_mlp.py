"""Stacks of MLPs without attention: this project's own configurations."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import ConfigDict, model_validator

from moemodel.model.architecture.family import Family
from moemodel.model.architecture.fields import (
    ActivationName,
    Count,
    CountOrZero,
    Flag,
    Layers,
    reject,
    require_at_most,
)
from moemodel.model.architecture.spec import Architecture, Layer, Mlp, Moe


class MoemodelMlp(Family):
    """Our own: a stack of dense or Mixture-of-Experts MLPs on feature vectors, without attention, norms or residuals.

    Of the crossover study: when does an MoE beat a dense model of the same size in inferences per joule? Unknown keys
    are errors here, unlike in another program's file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    ends_in_vocabulary: ClassVar[bool] = True

    model_type: Literal["moemodel_mlp"]
    hidden_size: Count  # features in, and out of every block but the last
    intermediate_size: Count  # width of a block's hidden layers, or of an expert's
    output_size: Count | None = None  # features out of the last block; null: hidden_size
    num_hidden_layers: Layers = 1  # blocks
    hidden_layers_per_block: Layers = 1
    hidden_act: ActivationName = "relu"
    gated: Flag = False
    bias: Flag = True
    num_experts: CountOrZero = 0  # 0: dense
    num_experts_per_tok: CountOrZero = 0
    router_bias: Flag = True

    @model_validator(mode="after")
    def _shape_fits(self) -> MoemodelMlp:
        require_at_most("num_experts_per_tok", self.num_experts_per_tok, "num_experts", self.num_experts)
        if self.num_experts and not self.num_experts_per_tok:
            reject("num_experts_per_tok", 0, f"1 to num_experts ({self.num_experts})")
        if self.gated and self.hidden_layers_per_block > 1:
            reject("hidden_layers_per_block", self.hidden_layers_per_block, "1 where gated is true")
        return self

    def architecture(self, name: str, source: str) -> Architecture:
        """A stack without embedding and head: its input is a feature vector for each sample."""
        last = self.num_hidden_layers - 1
        decoder = tuple(
            Layer(attentions=(), feed_forward=self._block(self.output_size if index == last else None), norm=None)
            for index in range(self.num_hidden_layers)
        )
        return Architecture(
            name=name,
            hidden=self.hidden_size,
            vocab=0,
            embedding_width=self.hidden_size,
            tied=False,
            decoder=decoder,
            has_head=False,
            final_norm=False,
            source=source,
        )

    def _block(self, out_width: int | None) -> Mlp | Moe:
        if self.num_experts == 0:
            return Mlp(
                width=self.intermediate_size,
                activation=self.hidden_act,
                gated=self.gated,
                bias=self.bias,
                depth=self.hidden_layers_per_block,
                out_width=out_width,
            )
        return Moe(
            experts=self.num_experts,
            top_k=self.num_experts_per_tok,
            width=self.intermediate_size,
            activation=self.hidden_act,
            gated=self.gated,
            bias=self.bias,
            router_bias=self.router_bias,
            depth=self.hidden_layers_per_block,
            out_width=out_width,
        )
