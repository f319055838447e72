"""How many parameters an architecture holds, per component and layer, and which of them a token meets.

Counted as the published checkpoints are: every weight and bias, the token embedding once where the head shares it.
Sums were checked against the models that `transformers` 5.23 builds from the same configurations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

from moemodel.model.architecture.spec import Architecture, Layer
from moemodel.model.layers.base import Component
from moemodel.model.layers.embedding_head import EmbeddingBlock, HeadBlock
from moemodel.model.layers.layer import layer_blocks

_READING_ORDER = ("attention", "state_space", "latent", "norms", "feed_forward", "router", "shared_experts", "experts")


@dataclass(frozen=True, kw_only=True)
class LayerParameters:
    """Parameters of one layer, by component."""

    components: tuple[Component, ...]

    def __getitem__(self, name: str) -> int:
        """Of one component; 0 where the layer has none of that name."""
        return sum(component.count for component in self.components if component.name == name)

    def _over(self, axis: str) -> int:
        return sum(component.count for component in self.components if component.axis == axis)

    @cached_property
    def tensor_parallel(self) -> int:
        """Those that tensor-parallel ranks share out."""
        return self._over("tp")

    @cached_property
    def replicated(self) -> int:
        """Those that every rank of a stage holds."""
        return self._over("none")

    @cached_property
    def routed(self) -> int:
        """All routed experts, which expert-parallel ranks share out."""
        return self._over("experts")

    @property
    def non_expert(self) -> int:
        """All but the routed experts."""
        return self.tensor_parallel + self.replicated

    @property
    def total(self) -> int:
        """All parameters of the layer."""
        return self.non_expert + self.routed

    @property
    def active(self) -> int:
        """Those that one token passes: its chosen experts and everything else."""
        return sum(component.active for component in self.components)


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameters of an architecture.

    Attributes:
        embedding: the token embedding.
        positions: learned position embedding.
        projections: between the embedding's width and the model's, where they differ (OPT-350M): in and out.
        layers: one entry a layer, the encoder's first, as `Architecture.layers`.
        final_norms: the norm after each stack, and one after the embedding where there is one (BLOOM).
        head: the output head; 0 where it shares the embedding.
    """

    embedding: int
    positions: int
    projections: int
    layers: tuple[LayerParameters, ...]
    final_norms: int
    head: int

    @property
    def outside_layers(self) -> int:
        """All that belongs to no layer."""
        return self.embedding + self.positions + self.projections + self.final_norms + self.head

    @property
    def expert(self) -> int:
        """All routed experts of all layers."""
        return sum(layer.routed for layer in self.layers)

    @property
    def non_expert(self) -> int:
        """All but the routed experts."""
        return self.total - self.expert

    @property
    def total(self) -> int:
        """All parameters."""
        return self.outside_layers + sum(layer.total for layer in self.layers)

    @property
    def active(self) -> int:
        """Parameters active for one token: the total less the routed experts that it does not pass.

        Embedding and head count in full, as OLMoE (arXiv:2409.02060, 1.28 B) and Mixtral (arXiv:2401.04088, 12.9 B)
        count. DeepSeek-V3's 36.7 B leaves one of the two out, and published figures are often cut, not rounded, to two
        digits (Qwen3-30B-A3B says 3.3 B for 3.35 B).
        """
        return self.outside_layers + sum(layer.active for layer in self.layers)

    def by_component(self) -> dict[str, int]:
        """Parameters of each component over the whole model, in reading order; they add up to `total`."""
        found = (component.name for layer in self.layers for component in layer.components)
        names = dict.fromkeys((*_READING_ORDER, *found))
        return {
            "embedding": self.embedding,
            "positions": self.positions,
            "projections": self.projections,
            **{name: sum(layer[name] for layer in self.layers) for name in names},
            "final_norms": self.final_norms,
            "head": self.head,
        }


def parameters(architecture: Architecture) -> Parameters:
    """Count the parameters of an architecture."""
    embedding, head = EmbeddingBlock(architecture=architecture), HeadBlock(architecture=architecture)
    return Parameters(
        embedding=embedding.parameters(),
        positions=embedding.positions(),
        projections=embedding.projections(),
        layers=tuple(layer_parameters(layer, architecture.hidden) for layer in architecture.layers),
        final_norms=head.final_norms() + embedding.norms(),
        head=head.parameters(),
    )


@cache
def layer_parameters(layer: Layer, hidden: int) -> LayerParameters:
    """Count the parameters of a layer in a model of width `hidden`."""
    return LayerParameters(components=tuple(layer_blocks(layer, hidden).parameters()))
