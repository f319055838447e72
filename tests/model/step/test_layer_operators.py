"""Operator calls against closed-form counts of the work of a layer."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moemodel.model.architecture.hf_config import list_architectures, read_architecture
from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.frameworks.registry import FRAMEWORKS, framework_of
from moemodel.model.layers.flops import model_flops
from moemodel.model.layers.parameters import parameters
from moemodel.model.operators.calls import Call, Phase
from moemodel.model.operators.work import Kind, Pass, work
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.recompute import Recompute
from moemodel.model.records.calibration import Calibration
from moemodel.model.schedule.pipeline_layout import Stage
from moemodel.model.step.layer_operators import Workload
from moemodel.model.step.memory import MemoryModel

Batch = Callable[..., PlanBatch]

PUBLISHED = json.loads((Path(__file__).parents[1] / "architecture/published_models.json").read_text(encoding="utf-8"))
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


def dispatched_by_masks(name: str, backend: str) -> float:
    """FLOPs of a product of E C rows, D wide and as deep as there are tokens (GShard, `sec,sm->ecm`)."""
    architecture = read_architecture(name)
    moe = architecture.layers[-1].feed_forward
    if not isinstance(moe, Moe) or backend != "deepspeed-einsum":
        return 0.0
    rows = moe.experts * max(math.ceil(_SEQ * moe.top_k * (moe.capacity_factor or 1) / moe.experts), 4)
    if moe.capacity_factor is None:  # as many as the busiest expert has, here the mean
        rows = _SEQ * moe.top_k
    return 2.0 * rows * architecture.hidden * _SEQ


@pytest.mark.parametrize("backend", FRAMEWORKS)
@pytest.mark.parametrize("name", list_architectures())
def test_backward_is_twice_forward(batch: Batch, name: str, backend: str) -> None:
    """Two products for each of the forward pass; a flash kernel's backward computes the scores once more: 5 for 2.

    DeepSeek-V3's queries and keys are 192 wide, its values 128: scores are 0.6 of the forward pass. Masks that dispatch
    rows get no gradient.
    """
    calls = layer_calls(read_architecture(name), batch(), backend)
    scores = 192 / (192 + 128) if name == "deepseek-v3" else 0.5
    forward, backward = (
        [flops(calls, phase, core=core) for core in (False, True)] for phase in (Phase.FORWARD, Phase.BACKWARD)
    )
    assert backward[0] == pytest.approx(2 * forward[0] - dispatched_by_masks(name, backend))
    assert backward[1] == pytest.approx((2 + scores if FRAMEWORKS[backend].flash_attention else 2.0) * forward[1])


@pytest.mark.parametrize("backend", FRAMEWORKS)
@pytest.mark.parametrize("name", ["opt-350m", "olmoe-1b-7b"])
def test_recomputing_adds_a_forward_pass_or_its_attention(batch: Batch, name: str, backend: str) -> None:
    plans = batch(recompute=list(Recompute))
    calls = layer_calls(read_architecture(name), plans, backend)
    none, selective, full = flops(calls, Phase.BACKWARD)
    forward = flops(calls, Phase.FORWARD) * np.ones(3)
    core = flops(calls, Phase.FORWARD, core=True) * np.ones(3)
    products = [call for call in calls if call.phase is Phase.FORWARD and call.kind is Kind.GEMM]
    # whose output nothing reads backward; what weights rows of experts reads theirs
    stops = FRAMEWORKS[backend].recompute_stops_early and name == "opt-350m"
    last = flops(products[-1:], Phase.FORWARD)[0] * stops
    if FRAMEWORKS[backend].selective == "core":
        assert selective - none == pytest.approx(core[0])
    else:  # all but attention and the first product, the third, ...
        kept = flops(products[::2], Phase.FORWARD)[0]  # of an even number, so that the last is not among them
        assert selective - none == pytest.approx(forward[0] - core[0] - kept - last)
    assert full - none == pytest.approx(forward[0] - last)


@pytest.mark.parametrize("name", list_architectures())
def test_backends_share_their_products(batch: Batch, name: str) -> None:
    """How products are grouped, and what runs between them, changes no FLOP outside the attention core."""
    architecture = read_architecture(name)
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        masks = {Phase.FORWARD: 2, Phase.BACKWARD: 3}[phase]  # there and back; backward the first has no gradient
        counts = [
            flops(layer_calls(architecture, batch(), backend), phase, core=False)[0]
            - masks * dispatched_by_masks(name, backend)
            for backend, framework in FRAMEWORKS.items()
            if framework.moe.padding != "never"  # which computes no rows beyond a capacity, nor beside them
        ]
        assert counts == pytest.approx([counts[0]] * len(counts))


@pytest.mark.parametrize("name", PUBLISHED)
def test_blocks_of_published_models_add_up_to_their_flops(tmp_path: Path, batch: Batch, name: str) -> None:
    """Layers, each as often as it is there, and ends: a third of the model's FLOPs, biases and sinks aside, and the
    scan of state spaces, 7 FLOPs an element of a state, which runs behind what it moves."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(PUBLISHED[name]["config"]), encoding="utf-8")
    architecture = read_architecture(path)
    workload = Workload(architecture, batch(), framework=framework_of("torch"), precision="bf16")
    ends = flops(workload.embedding(), Phase.FORWARD) + flops(workload.head(), Phase.FORWARD)
    layers = sum(n * flops(workload.layer(each), Phase.FORWARD) for each, n in Counter(architecture.layers).items())
    spaces = [each.state_space for each in architecture.layers if each.state_space is not None]
    scans = sum(7 * _SEQ * one.heads * one.head_dim * one.state_dim for one in spaces)
    assert layers + ends + scans == pytest.approx(model_flops(architecture, np.array([_SEQ])) / 3, rel=2e-3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_ranks_hold_all_parameters_of_published_models(
    tmp_path: Path, batch: Batch, name: str, calibration: Calibration
) -> None:
    """What one of tp ranks and one of pp stages holds adds up to the model, but for what every rank has."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(PUBLISHED[name]["config"]), encoding="utf-8")
    architecture = read_architecture(path)
    memory = MemoryModel(
        architecture, batch(), framework=framework_of("torch"), precision="bf16", calibration=calibration
    )
    counts = Counter(architecture.layers)
    stage = Stage(layers=tuple(counts[kind] for kind in memory.kinds), embedding=True, head=True, first=0, count=1)
    assert float(memory.shard(stage).total[0]) == parameters(architecture).total


def _core(architecture: Architecture, batch: Batch, seq: int, backend: str = "torch") -> float:
    return float(flops(layer_calls(architecture, batch(seq=seq), backend), Phase.FORWARD, core=True)[0])


def _pairs(seq: int, window: int) -> float:
    """Of a query and a key, counted one by one; the query's own key counts half, as everywhere."""
    return sum(min(row, window) for row in range(1, seq + 1)) - min(seq, window) / 2


@pytest.mark.parametrize(("seq", "window"), [(512, 128), (512, 512), (512, 4096), (4096, 100)])
def test_a_window_is_counted_pair_by_pair(batch: Batch, seq: int, window: int) -> None:
    llama = read_architecture("llama-3-8b")  # 32 heads of 128
    attention = replace(llama.decoder[0].attentions[0], window=window)
    windowed = replace(llama, decoder=(replace(llama.decoder[0], attentions=(attention,)),))
    expected = 2 * 2 * 32 * 128 * _pairs(seq, window)
    assert _core(windowed, batch, seq) == pytest.approx(expected, rel=1e-9)
    whole = replace(windowed, vocab=1, embedding_width=1)
    full = replace(whole, decoder=(llama.decoder[0],))
    difference = float((model_flops(full, np.array([seq])) - model_flops(whole, np.array([seq])))[0])
    assert difference == pytest.approx(3 * (_core(llama, batch, seq) - expected), rel=1e-9)


@pytest.mark.parametrize(
    ("seq", "chunks"), [(512, [512]), (1024, [1024]), (2048, [1024, 1024]), (2560, [1024, 1024, 512])]
)
def test_chunks_are_sequences_of_their_own(batch: Batch, seq: int, chunks: list[int]) -> None:
    llama = read_architecture("llama-3-8b")
    attention = replace(llama.decoder[0].attentions[0], chunk=1024)
    chunked = replace(llama, decoder=(replace(llama.decoder[0], attentions=(attention,)),))
    assert _core(chunked, batch, seq) == pytest.approx(sum(_core(llama, batch, chunk) for chunk in chunks))


def test_a_window_changes_no_bytes_and_no_rows(batch: Batch) -> None:
    """Queries, keys and values are read once, however few keys a query looks at."""
    llama = read_architecture("llama-3-8b")
    attention = replace(llama.decoder[0].attentions[0], window=256)
    windowed = replace(llama, decoder=(replace(llama.decoder[0], attentions=(attention,)),))
    full, some = (
        [work(call.kind, call.direction, call.shape).bytes_B for call in layer_calls(each, batch(seq=8192))]
        for each in (llama, windowed)
    )
    assert np.concatenate(full) == pytest.approx(np.concatenate(some))


def test_values_are_priced_at_their_own_width(batch: Batch) -> None:
    """DeepSeek-V3: 128 heads, queries and keys of 192, values of 128 (arXiv:2412.19437, section 4.2)."""
    calls = [call for call in layer_calls(read_architecture("deepseek-v3"), batch()) if call.kind is Kind.ATTENTION]
    pairs = 128 * _SEQ**2 / 2
    forward, backward = (work(call.kind, call.direction, call.shape) for call in calls)
    assert forward.flops == pytest.approx(2 * pairs * (192 + 128))
    assert backward.flops == pytest.approx(2 * pairs * (3 * 192 + 2 * 128))
    assert forward.bytes_B == pytest.approx(2 * _SEQ * 128 * (192 + 192 + 128 + 128))
    assert backward.bytes_B == pytest.approx(2 * forward.bytes_B)


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


@pytest.mark.parametrize(("backend", "longest"), [("megatron-v2", 2048), ("megatron-local", 4096), ("megatron", 8192)])
def test_the_fused_softmax_takes_sequences_up_to_its_own_longest(batch: Batch, backend: str, longest: int) -> None:
    """In Megatron-LM of 2021, Megatron Core and Transformer Engine (16,383); beyond it all five kernels run."""
    framework = replace(framework_of(backend), flash_attention=False)
    opt = read_architecture("opt-350m")

    def kernels(seq: int) -> float:
        work = Workload(opt, batch(seq=seq), framework=framework, precision="bf16-mixed")
        return float(sum(np.sum(call.count) for call in work.layer(opt.layers[-1]) if call.phase is Phase.FORWARD))

    beyond = max(2 * longest, 16384)
    assert kernels(beyond) == kernels(longest) + 4


def test_elementwise_kernels_are_copies_of_as_many_bytes(batch: Batch) -> None:
    opt = read_architecture("opt-350m")
    calls = layer_calls(opt, batch(), "megatron-v2")
    scores = 16 * _SEQ**2
    moved = [
        float(work(c.kind, c.direction, c.shape).bytes_B[0]) for c in calls if c.kind is Kind.COPY and c.count.any()
    ]
    assert 2 * 2.0 * scores in moved  # the softmax reads and writes all scores in 16 bits
    assert all(call.direction is Pass.FORWARD for call in calls if call.kind is Kind.COPY)
