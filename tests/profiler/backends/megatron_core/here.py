"""Whether Megatron Core is here, and models small enough for a CPU."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest

from moemodel.model.architecture.spec import Architecture, Attention, Layer, Mlp, Moe


def _missing() -> str | None:
    try:
        found = version("megatron-core")
    except PackageNotFoundError:
        return "MEGATRON CORE IS NOT INSTALLED: nothing is run under it"
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < (0, 19):
        return f"MEGATRON CORE {found} IS TOO OLD: nothing is run under it"
    if importlib.util.find_spec("triton") is None:  # megatron/core/transformer/moe/ops imports it
        return "TRITON IS NOT INSTALLED, WHICH MEGATRON CORE WANTS: nothing is run under it"
    return None


needs_megatron = pytest.mark.skipif((reason := _missing()) is not None, reason=reason or "")

_HEADS = Attention(heads=4, kv_heads=4, head_dim=8)
EXPERTS = Moe(experts=8, top_k=2, width=16, activation="silu", gated=True)


def tiny(block: Mlp | Moe, attention: Attention = _HEADS, *, layers: int = 2, **options: Any) -> Architecture:
    """A model of a few thousand parameters."""
    norm = options.pop("norm", "rms")
    layer = Layer(attentions=(attention,), feed_forward=block, norm=norm, norm_bias=norm == "layer")
    settings: dict[str, Any] = {"hidden": 32, "vocab": 96, "embedding_width": 32, "tied": False}
    return Architecture(name="tiny", decoder=(layer,) * layers, **settings | options)


ARCHITECTURES = {
    "olmoe": tiny(EXPERTS, replace(_HEADS, qk_norm="full")),
    "qwen3": tiny(EXPERTS, replace(_HEADS, kv_heads=2, qk_norm="per_head"), layers=4),
    "mixtral": tiny(replace(EXPERTS, experts=4), replace(_HEADS, kv_heads=2)),
    "shared": tiny(replace(EXPERTS, shared_width=16, shared_gate=True)),
    "llama": tiny(Mlp(width=64, activation="silu", gated=True), replace(_HEADS, kv_heads=2)),
    "opt": tiny(
        Mlp(width=64, activation="relu", gated=False, bias=True),
        replace(_HEADS, rotary=False, bias_qkv=True, bias_out=True),
        norm="layer",
        tied=True,
        learned_positions=16,
    ),
}
ARCHITECTURES["opt-350m"] = replace(ARCHITECTURES["opt"], embedding_width=16, final_norm=False)
ARCHITECTURES["projected"] = replace(ARCHITECTURES["llama"], embedding_width=16)
ARCHITECTURES["sparse"] = replace(
    ARCHITECTURES["qwen3"],
    decoder=tuple(
        replace(layer, feed_forward=Mlp(width=64, activation="silu", gated=True)) if i % 2 == 0 else layer
        for i, layer in enumerate(ARCHITECTURES["qwen3"].decoder)
    ),
)
