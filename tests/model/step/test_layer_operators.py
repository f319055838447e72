"""Operator calls against closed-form counts of the work of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from moemodel.model.architecture.hf_config import list_architectures, read_architecture
from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.frameworks.registry import FRAMEWORKS, framework_of
from moemodel.model.layers.flops import model_flops
from moemodel.model.operators.calls import Call, Phase
from moemodel.model.operators.work import Kind, Pass, work
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.recompute import Recompute
from moemodel.model.step.layer_operators import Workload

Batch = Callable[..., PlanBatch]

_CORES = (Kind.ATTENTION, Kind.ATTENTION_FULL)
_SEQ = 2048


def flops(calls: Iterable[Call], phase: Phase, *, core: bool | None = None) -> np.ndarray:
    """Matrix FLOPs of a phase; of the attention cores alone, or of all else, if asked."""
    total = np.zeros(1)
    for call in calls:
        is_core = call.kind in _CORES or bool((np.asarray(call.shape.batch) > 1).any())
        if call.phase is phase and core in (None, is_core):
            total = total + call.count * work(call.kind, call.direction, call.shape).flops
    return total


def layer_calls(architecture: Architecture, plans: PlanBatch, backend: str = "torch") -> list[Call]:
    framework = framework_of(backend)
    first = next(iter(framework.precisions))
    return Workload(architecture, plans, framework=framework, precision=first).layer(architecture.layers[-1])


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_dense_layer_does_the_textbook_work(batch: Batch, tp: int) -> None:
    """24 T H^2 in products (Narayanan et al. 2021, appendix) and 2 T s H in causal flash attention, over tp."""
    opt = read_architecture("opt-350m")
    tokens, hidden = 2 * _SEQ, opt.hidden
    calls = layer_calls(opt, batch(tp=tp, micro_batch=2))
    assert flops(calls, Phase.FORWARD, core=False) == pytest.approx(24 * tokens * hidden**2 / tp)
    assert flops(calls, Phase.FORWARD, core=True) == pytest.approx(2 * tokens * _SEQ * hidden / tp)


@pytest.mark.parametrize("tp", [1, 2, 8])
def test_grouped_heads_and_gates_shrink_and_grow_the_products(batch: Batch, tp: int) -> None:
    llama = read_architecture("llama-3-8b")  # 32 heads of 128 over 8 of keys and values, gated width 14336
    per_token = 2 * (4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336)
    assert flops(layer_calls(llama, batch(tp=tp)), Phase.FORWARD, core=False) == pytest.approx(_SEQ * per_token / tp)


@pytest.mark.parametrize("name", ["olmoe-1b-7b", "qwen3-30b-a3b", "mixtral-8x7b"])
def test_a_mixture_does_the_work_of_the_chosen_experts(batch: Batch, name: str) -> None:
    architecture = read_architecture(name)
    layer = architecture.layers[-1]
    attention, moe, hidden = layer.attentions[0], layer.feed_forward, architecture.hidden
    assert isinstance(moe, Moe)
    heads = hidden * attention.head_dim * (2 * attention.heads + 2 * attention.kv_heads)
    per_token = 2 * (heads + hidden * moe.experts + moe.top_k * 3 * hidden * moe.width)
    assert flops(layer_calls(architecture, batch()), Phase.FORWARD, core=False) == pytest.approx(_SEQ * per_token)


@pytest.mark.parametrize("backend", FRAMEWORKS)
@pytest.mark.parametrize("name", list_architectures())
def test_backward_is_twice_forward(batch: Batch, name: str, backend: str) -> None:
    """Two products for each of the forward pass; a flash kernel's backward computes the scores once more: 5 for 2."""
    calls = layer_calls(read_architecture(name), batch(), backend)
    forward, backward = (
        [flops(calls, phase, core=core) for core in (False, True)] for phase in (Phase.FORWARD, Phase.BACKWARD)
    )
    assert backward[0] == pytest.approx(2 * forward[0])
    assert backward[1] == pytest.approx((2.5 if FRAMEWORKS[backend].flash_attention else 2.0) * forward[1])


@pytest.mark.parametrize("backend", FRAMEWORKS)
@pytest.mark.parametrize("name", ["opt-350m", "olmoe-1b-7b"])
def test_recomputing_adds_a_forward_pass_or_its_attention(batch: Batch, name: str, backend: str) -> None:
    plans = batch(recompute=list(Recompute))
    calls = layer_calls(read_architecture(name), plans, backend)
    none, selective, full = flops(calls, Phase.BACKWARD)
    forward = flops(calls, Phase.FORWARD) * np.ones(3)
    core = flops(calls, Phase.FORWARD, core=True) * np.ones(3)
    assert selective - none == pytest.approx(core[0])
    assert full - none == pytest.approx(forward[0])


@pytest.mark.parametrize("name", list_architectures())
def test_backends_share_their_products(batch: Batch, name: str) -> None:
    """How products are grouped, and what runs between them, changes no FLOP outside the attention core."""
    architecture = read_architecture(name)
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        counts = [flops(layer_calls(architecture, batch(), backend), phase, core=False)[0] for backend in FRAMEWORKS]
        assert counts == pytest.approx([counts[0]] * len(FRAMEWORKS))


def test_without_flash_attention_the_masked_half_is_computed_too(batch: Batch) -> None:
    opt = read_architecture("opt-350m")
    flash, whole = (flops(layer_calls(opt, batch(), b), Phase.FORWARD, core=True) for b in ("megatron", "megatron-v2"))
    assert whole == pytest.approx(2 * flash)


@pytest.mark.parametrize("name", ["opt-350m", "llama-3-8b", "olmoe-1b-7b", "gpt3-175b"])
def test_all_blocks_together_are_the_model(batch: Batch, name: str) -> None:
    """Layers and ends forward are a third of the model's FLOPs (which leave out OPT-350M's narrow projections)."""
    architecture = read_architecture(name)
    workload = Workload(architecture, batch(), framework=framework_of("torch"), precision="bf16")
    blocks = [workload.layer(layer) for layer in architecture.layers] + [workload.embedding(), workload.head()]
    total = sum(flops(calls, Phase.FORWARD) for calls in blocks)
    assert total == pytest.approx(model_flops(architecture, np.array([_SEQ])) / 3, rel=3e-3)


def test_the_fused_softmax_needs_batches_in_fours(batch: Batch) -> None:
    """Megatron-LM 2.x falls back to a kernel for each step where micro_batch x heads / tp is no multiple of four."""
    opt = read_architecture("opt-350m")  # 16 heads
    calls = layer_calls(opt, batch(tp=8, micro_batch=[1, 2]), "megatron-v2")
    kernels = sum(call.count * np.ones(2) for call in calls if call.phase is Phase.FORWARD)
    assert kernels[0] == kernels[1] + 4


def test_elementwise_kernels_are_copies_of_as_many_bytes(batch: Batch) -> None:
    opt = read_architecture("opt-350m")
    calls = layer_calls(opt, batch(), "megatron-v2")
    scores = 16 * _SEQ**2
    moved = [
        float(work(c.kind, c.direction, c.shape).bytes_B[0]) for c in calls if c.kind is Kind.COPY and c.count.any()
    ]
    assert 2 * 2.0 * scores in moved  # the softmax reads and writes all scores in 16 bits
    assert all(call.direction is Pass.FORWARD for call in calls if call.kind is Kind.COPY)
