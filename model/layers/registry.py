"""Which block a part of an architecture is."""

from __future__ import annotations

from moemodel.model.architecture.spec import Attention, Mlp, Moe, MultiToken, StateSpace
from moemodel.model.layers.attention import AttentionBlock
from moemodel.model.layers.base import Block
from moemodel.model.layers.latent_attention import LatentAttentionBlock
from moemodel.model.layers.mlp import MlpBlock
from moemodel.model.layers.module_ends import ModuleEndsBlock
from moemodel.model.layers.moe import MoeBlock
from moemodel.model.layers.state_space import StateSpaceBlock


def block_of(spec: Attention | StateSpace | Mlp | Moe | MultiToken, hidden: int) -> Block:
    """The block that a part of a layer is, in a model of width `hidden`."""
    match spec:
        case Attention(latent=None):
            return AttentionBlock(spec=spec, hidden=hidden)
        case Attention(latent=latent) if latent is not None:
            return LatentAttentionBlock(spec=spec, hidden=hidden, latent=latent)
        case StateSpace():
            return StateSpaceBlock(spec=spec, hidden=hidden)
        case MultiToken():
            return ModuleEndsBlock(spec=spec, hidden=hidden)
        case Mlp():
            return MlpBlock(spec=spec, hidden=hidden)
        case Moe():
            return MoeBlock(spec=spec, hidden=hidden)
    raise TypeError(f"no block for {type(spec).__name__}; add it to model/layers/registry.py")
