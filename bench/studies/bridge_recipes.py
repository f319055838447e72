"""What Megatron-Bridge's benchmarks switch on beside what its tables say, by model, GPU and release.

From the configurations of its releases: v0.1.0rc4 (25.09; scripts/performance/run_script.py and configs), v0.2.0
(25.11), v0.3.0 (26.02), v0.3.1 (26.02.01), v0.4.0 (26.04), v0.4.2 (26.04.01) and v0.5.0 (26.06),
scripts/performance/configs, *_workload_base_configs.py; v0.5.1 (26.06.01), the same; v0.6.0 (26.08),
src/megatron/bridge/perf_recipes. What a release does not change holds on.

    dispatch        rows once a node or rank: moe_flex_dispatcher_backend deepep or hybridep
    overlap         behind another micro-batch's computation: moe_a2a_overlap (overlap_moe_expert_parallel_comm)
    cuda_graphs     true: full_iteration; attention: transformer_engine with attn, moe_router, moe_preprocess; router:
                    the last two
    recompute       recompute_modules
    tp_overlap      tp_comm_overlap, where it is left off (recipes/nemotronh/nemotron_3_super.py, recipes/deepseek,
                    recipes/kimi, and of Qwen3 235B on H100)
    drops           apply_moe_token_drop: a capacity of 1, padded
    micro_batch, pp, ep, virtual_stages    where the table has others, copied from the release before: 25.11 of Qwen3
                    30B and of GPT-OSS, 26.02.01 of Qwen3 30B

In 26.02 the dispatcher of the H100 was not switched on (pull request 2393: "Set flex and alltoall for perf jobs").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

H100, B200, B300, GB200, GB300 = "h100-sxm-80gb", "b200-sxm-180gb", "b300-sxm-288gb", "gb200-186gb", "gb300-288gb"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a configuration switches on."""

    dispatch: Literal["alltoall", "deepep"] = "alltoall"
    overlap: bool = False
    cuda_graphs: Literal["attention", "router"] | bool | None = None
    recompute: str = "none"
    drops: bool = False
    tp_overlap: bool | None = None
    micro_batch: int | None = None
    pp: int | None = None
    ep: int | None = None
    virtual_stages: int | None = None

    @property
    def routing(self) -> dict[str, Any]:
        """Of a plan, how rows get to experts, which tables of forced balance load alike."""
        capacity = {"capacity_factor": 1.0} if self.drops else {}
        overlapped = {"dispatch_overlap": True} if self.overlap else {}
        return {"skew": "balanced", "dispatch": self.dispatch, **overlapped, **capacity}


_PLAIN = Recipe()
_ONCE = Recipe(dispatch="deepep")
_BEHIND = Recipe(overlap=True)
_ROUTER = replace(_ONCE, cuda_graphs="router")
_ATTENTION = replace(_ONCE, cuda_graphs="attention")
_WHOLE = Recipe(dispatch="deepep", overlap=True, cuda_graphs=True)
_UP = "mla_up_proj"
_UP_AND_DENSE = "mla_up_proj+mlp"
_NORMS_AND_ACTIVATIONS = Recipe(recompute="layernorm+moe_act")
_SUPER = replace(_ATTENTION, tp_overlap=False)

_RECIPES: dict[tuple[str, str], Sequence[tuple[str, Recipe]]] = {
    ("qwen3-30b-a3b", H100): (
        ("25.09", Recipe(drops=True)),
        ("25.11", Recipe(overlap=True, micro_batch=1, virtual_stages=12)),
        ("26.02", _BEHIND),
        ("26.02.01", replace(_ONCE, pp=1, ep=16, virtual_stages=1)),
        ("26.04", _ONCE),
    ),
    ("qwen3-30b-a3b", GB200): (("25.11", _ROUTER), ("26.06", _WHOLE)),
    ("qwen3-30b-a3b", GB300): (("25.11", _ROUTER), ("26.06", _WHOLE)),
    ("qwen3-30b-a3b", B300): (("26.02", _ROUTER), ("26.06", _WHOLE)),
    ("qwen3-30b-a3b", B200): (
        ("25.11", replace(_PLAIN, cuda_graphs="router")),
        ("26.02.01", _ATTENTION),
        ("26.06.01", _WHOLE),
    ),
    ("qwen3-235b-a22b", H100): (
        ("25.09", Recipe(drops=True)),
        ("25.11", replace(_BEHIND, tp_overlap=False)),
    ),
    ("qwen3-235b-a22b", GB200): (("25.11", _ATTENTION), ("26.06", _WHOLE)),
    ("qwen3-235b-a22b", GB300): (("25.11", _ROUTER), ("26.02", _ATTENTION), ("26.06", _WHOLE)),
    ("qwen3-235b-a22b", B300): (("26.02", _BEHIND), ("26.04", _PLAIN), ("26.04.01", _ONCE), ("26.06.01", _WHOLE)),
    ("qwen3-235b-a22b", B200): (("25.11", _BEHIND), ("26.02", _PLAIN), ("26.06.01", _WHOLE)),
    ("gpt-oss-120b", H100): (
        ("25.11", replace(_NORMS_AND_ACTIVATIONS, micro_batch=1)),
        ("26.02", _NORMS_AND_ACTIVATIONS),
    ),
    ("gpt-oss-120b", GB200): (
        ("25.11", _NORMS_AND_ACTIVATIONS),
        ("26.04", replace(_NORMS_AND_ACTIVATIONS, dispatch="deepep", overlap=True)),
        ("26.04.01", replace(_NORMS_AND_ACTIVATIONS, overlap=True)),
        ("26.06", _WHOLE),
    ),
    ("gpt-oss-120b", GB300): (("25.11", replace(_PLAIN, cuda_graphs="attention")), ("26.06", _WHOLE)),
    ("gpt-oss-120b", B300): (("26.02", replace(_PLAIN, cuda_graphs="attention")), ("26.04", _ATTENTION)),
    ("gpt-oss-120b", B200): (
        ("25.11", _NORMS_AND_ACTIVATIONS),
        ("26.04", replace(_NORMS_AND_ACTIVATIONS, dispatch="deepep")),
        ("26.04.01", _NORMS_AND_ACTIVATIONS),
    ),
    ("deepseek-v3", H100): (
        ("25.09", Recipe(dispatch="deepep", overlap=True, recompute=_UP_AND_DENSE, tp_overlap=False)),
        ("26.02", replace(_ONCE, recompute=_UP_AND_DENSE, tp_overlap=False)),
    ),
    ("deepseek-v3", GB200): (
        ("25.11", replace(_ROUTER, recompute=_UP)),
        ("26.02", replace(_ATTENTION, recompute=_UP)),
        ("26.04", replace(_ATTENTION, recompute="mlp")),
        ("26.06", replace(_WHOLE, recompute=_UP)),
    ),
    ("deepseek-v3", GB300): (
        ("25.11", replace(_ATTENTION, recompute="moe_act")),
        ("26.02", replace(_ONCE, recompute=_UP)),
        ("26.06", _WHOLE),
    ),
    ("deepseek-v3", B300): (
        ("26.02", replace(_ONCE, recompute=_UP)),
        ("26.04.01", replace(_ATTENTION, recompute=_UP)),
        ("26.06.01", replace(_WHOLE, recompute=_UP)),
    ),
    ("deepseek-v3", B200): (
        ("25.11", Recipe(recompute=_UP)),
        ("26.02", replace(_ONCE, recompute=_UP)),
        ("26.04.01", replace(_ATTENTION, overlap=True, recompute=_UP_AND_DENSE)),
    ),
    ("kimi-k2", H100): (("26.02", Recipe(recompute=_UP_AND_DENSE, tp_overlap=False)),),
    ("kimi-k2", GB200): (("26.02", replace(_ROUTER, recompute=_UP)),),
    ("kimi-k2", GB300): (("26.02", replace(_ONCE, recompute=_UP)),),
    ("kimi-k2", B200): (("26.02", Recipe(recompute=_UP)),),
    ("kimi-k2", B300): (("26.02", Recipe(recompute=_UP)),),
    ("nemotron-3-nano", H100): (("26.02", replace(_ONCE, recompute="moe+layernorm+core_attn")),),
    ("nemotron-3-nano", GB200): (("26.02", _ATTENTION),),
    ("nemotron-3-nano", GB300): (("26.02", _ATTENTION),),
    ("nemotron-3-nano", B200): (("26.02", _ATTENTION),),
    ("nemotron-3-nano", B300): (("26.02", _ATTENTION),),
    ("nemotron-3-super", GB200): (("26.02", _SUPER),),
    ("nemotron-3-super", GB300): (("26.02", _SUPER),),
    ("nemotron-3-super", B300): (("26.02", _SUPER),),
    ("nemotron-3-super", B200): (("26.02", replace(_NORMS_AND_ACTIVATIONS, dispatch="deepep", tp_overlap=False)),),
    ("llama-3-8b", H100): (("25.11", Recipe(recompute="first-5")), ("26.02", _PLAIN)),
}


def recipe(name: str, gpu: str, release: str) -> Recipe:
    """Of a model by its name in a plan, on a GPU, in a release such as 26.02.01; that of the latest before it."""
    found = _PLAIN
    for since, one in _RECIPES.get((name, gpu), ()):
        if since <= release:
            found = one
    return found
