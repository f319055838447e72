"""The training model against plain references: experts one by one, repeated keys and values, no recompute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from moemodel.model.architecture.hf_config import list_architectures, read_architecture
from moemodel.model.architecture.spec import Architecture, Attention, Latent, Layer, Mlp, Moe
from moemodel.model.core.errors import InputError
from moemodel.model.frameworks.torch_native import TORCH
from moemodel.model.layers.parameters import parameters
from moemodel.model.operators.work import Kind
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.spec import Plan
from moemodel.model.step.layer_operators import Workload
from moemodel.profiler.backends.torch_native import operators as torch_ops
from moemodel.profiler.backends.torch_native.layer import Making
from moemodel.profiler.backends.torch_native.model import DecoderModel, build_model, model_of
from moemodel.profiler.backends.torch_native.optimizer import MixedAdamW, build_optimizer, clip_gradients
from moemodel.profiler.backends.torch_native.supported_models import check_supported

_HIDDEN, _VOCAB, _BATCH, _SEQ = 32, 64, 2, 16

_LLAMA = Layer(
    attentions=(Attention(heads=4, kv_heads=2, head_dim=8, qk_norm="per_head"),),
    feed_forward=Mlp(width=48, activation="silu", gated=True),
    norm="rms",
)
_OPT = Layer(
    attentions=(Attention(heads=4, kv_heads=4, head_dim=8, bias_qkv=True, bias_out=True, rotary=False),),
    feed_forward=Mlp(width=48, activation="relu", gated=False, bias=True),
    norm="layer",
    norm_bias=True,
)
_EXPERTS = Moe(experts=8, top_k=2, width=16, activation="silu", gated=True)
_OLMOE = Layer(
    attentions=(Attention(heads=4, kv_heads=4, head_dim=8, qk_norm="full"),), feed_forward=_EXPERTS, norm="rms"
)
_SHARED = replace(_OLMOE, feed_forward=replace(_EXPERTS, shared_width=24, shared_gate=True))
_GELU_EXPERTS = replace(_OLMOE, feed_forward=replace(_EXPERTS, activation="gelu", gated=False))
_LAYERS = {"llama": _LLAMA, "opt": _OPT, "olmoe": _OLMOE, "shared": _SHARED, "gelu_experts": _GELU_EXPERTS}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def _architecture(layer: Layer, layers: int = 2, **options: Any) -> Architecture:
    settings: dict[str, Any] = {"hidden": _HIDDEN, "vocab": _VOCAB, "embedding_width": _HIDDEN, "tied": False}
    return Architecture(name="tiny", decoder=(layer,) * layers, **{**settings, **options})


def _model(
    architecture: Architecture,
    recompute: Literal["none", "selective", "full"] = "none",
    dtype: torch.dtype = torch.float32,
) -> DecoderModel:
    return build_model(architecture, device="cpu", dtype=dtype, making=Making(recompute=recompute), seed=1)


def _batch() -> tuple[Tensor, Tensor]:
    ids = torch.randint(_VOCAB, (_BATCH, _SEQ + 1), generator=torch.Generator().manual_seed(2))
    return ids[:, :-1], ids[:, 1:]


def _loss_and_gradients(model: DecoderModel) -> tuple[Tensor, dict[str, Tensor]]:
    loss = model(*_batch())
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", _LAYERS.values(), ids=_LAYERS)
@pytest.mark.parametrize(
    "options", [{}, {"tied": True, "embedding_width": 16, "learned_positions": _SEQ, "final_norm": False}]
)
def test_parameters_are_as_many_as_counted(layer: Layer, options: dict[str, Any]) -> None:
    architecture = _architecture(layer, **options)
    assert sum(p.numel() for p in _model(architecture).parameters()) == parameters(architecture).total


def test_every_preset_is_built_with_its_count_or_refused() -> None:
    built = 0
    for name in list_architectures():
        architecture = read_architecture(name)
        try:
            check_supported(architecture)
        except InputError:
            continue
        with torch.device("meta"):
            model = model_of(architecture, Making())
        assert sum(p.numel() for p in model.parameters()) == parameters(architecture).total, name
        built += 1
    assert built >= 9


def test_a_fresh_model_predicts_nothing_yet() -> None:
    loss, gradients = _loss_and_gradients(_model(_architecture(_OLMOE)))
    assert float(loss) == pytest.approx(torch.tensor(_VOCAB).log().item(), rel=0.02)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("layer", _LAYERS.values(), ids=_LAYERS)
def test_every_parameter_gets_a_gradient(layer: Layer) -> None:
    model = _model(_architecture(layer))
    _, gradients = _loss_and_gradients(model)
    assert set(gradients) == {name for name, _ in model.named_parameters()}


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "part"),
    [
        (_architecture(_LLAMA, encoder=(_LLAMA,)), "encoders with rotary positions"),
        (
            _architecture(replace(_LLAMA, attentions=(*_LLAMA.attentions, replace(_LLAMA.attentions[0], cross=True)))),
            "cross attention without an encoder",
        ),
        (
            _architecture(replace(_LLAMA, attentions=(replace(_LLAMA.attentions[0], relative_buckets=8),))),
            "relative position biases without an encoder",
        ),
        (_architecture(replace(_LLAMA, norm=None)), "layers without norms"),
        (
            _architecture(
                replace(
                    _LLAMA,
                    attentions=(
                        replace(
                            _LLAMA.attentions[0],
                            latent=Latent(q_rank=8, kv_rank=8, rope_head_dim=4, value_head_dim=8),
                        ),
                    ),
                )
            ),
            "latent attention",
        ),
        *(
            (_architecture(replace(_LLAMA, attentions=(replace(_LLAMA.attentions[0], **changes),))), part)
            for changes, part in (
                ({"window": 4}, "windows and chunks of attention"),
                ({"chunk": 4}, "windows and chunks of attention"),
                ({"value_head_dim": 4}, "values of another width"),
                ({"sinks": True}, "attention sinks"),
            )
        ),
        (_architecture(replace(_LLAMA, second_norm=True)), "norms behind blocks"),
        (_architecture(replace(_LLAMA, parallel=True)), "blocks side by side"),
        (_architecture(replace(_LLAMA, norm_scale=False)), "norms without a scale"),
        (_architecture(replace(_LLAMA, norm="layer")), "norms without a scale, or without a shift"),
        (_architecture(_LLAMA, classes=3), "models without a vocabulary head"),
        (_architecture(_LLAMA, head_bias=True), "biases of the head"),
        (_architecture(_LLAMA, embedding_norm=True), "norms behind the embedding"),
        (_architecture(replace(_OLMOE, feed_forward=replace(_EXPERTS, router_bias=True))), "router biases"),
    ],
)
def test_refuses_what_it_does_not_run(architecture: Architecture, part: str) -> None:
    with pytest.raises(InputError, match=f"tiny: the torch backend does not run .*{part}"):
        build_model(architecture, device="cpu", dtype=torch.float32)


def test_refuses_a_sequence_longer_than_its_positions() -> None:
    model = _model(_architecture(_OPT, learned_positions=_SEQ - 1))
    with pytest.raises(InputError, match="sequence_length 16: tiny has 15 learned positions"):
        model(*_batch())


# --- recompute -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("layer", [_LLAMA, _OPT, _OLMOE], ids=["llama", "opt", "olmoe"])
def test_recompute_changes_nothing(layer: Layer, recompute: Literal["selective", "full"]) -> None:
    loss, gradients = _loss_and_gradients(_model(_architecture(layer)))
    loss_again, gradients_again = _loss_and_gradients(_model(_architecture(layer), recompute))
    torch.testing.assert_close(loss_again, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_again[name], gradient, msg=name)


def _saved_B(model: DecoderModel) -> int:
    """Bytes that autograd keeps for the backward pass, parameters left out."""
    owned = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(*_batch())
    loss.backward()
    return sum(kept.values())


class _Products(TorchDispatchMode):
    """Counts products of two matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layer", [_LLAMA, _OPT], ids=["llama", "opt"])
def test_a_layers_last_product_does_not_run_again(layer: Layer) -> None:
    """Nothing backward reads its output, and torch stops before it: as many products as predictions count."""
    made = {}
    for recompute in ("none", "full"):
        model = _model(_architecture(layer), recompute)
        with _Products() as products:
            _loss_and_gradients(model)
        made[recompute] = products.count
    cluster = {"gpu": "h100-sxm-80gb"}
    document = {"architecture": "opt-350m", "sequence_length": _SEQ, "global_batch": _BATCH, "cluster": cluster}
    plans = batch_of(Plan.model_validate(document | {"recompute": "full"}))
    work = Workload(_architecture(layer), plans, framework=TORCH, precision="bf16")
    again = [call for calls in work.repeatable(layer).values() for call in calls if call.kind is Kind.GEMM]
    assert made["full"] - made["none"] == 2 * len(again)


def test_full_recompute_keeps_less() -> None:
    assert _saved_B(_model(_architecture(_LLAMA, 4), "full")) < 0.5 * _saved_B(_model(_architecture(_LLAMA, 4)))


def test_attention_output_is_not_kept_twice() -> None:
    """The flash kernel's output and the next product's input are one tensor: no copy between them."""
    model = _model(_architecture(_LLAMA, 1))
    heads: list[Tensor] = []
    layer: Any = model.layers[0]
    layer.attentions[0].o.register_forward_pre_hook(lambda _, inputs: heads.append(inputs[0]))
    model(*_batch())
    assert heads[0]._base is not None  # a view of it, not a copy


# --- blocks against references ---------------------------------------------------------------------------------------


def _experts_one_by_one(block: Any, x_TD: Tensor, moe: Moe) -> Tensor:
    """The definition: each token's chosen experts, weighted by the renormalised router."""
    share_TE = (x_TD @ block.router.weight.T).softmax(-1)
    weight_Tk, expert_Tk = share_TE.topk(moe.top_k)
    weight_Tk = weight_Tk / weight_Tk.sum(-1, keepdim=True)
    rows = []
    for x_D, weights, experts in zip(x_TD, weight_Tk, expert_Tk, strict=True):
        row = torch.zeros_like(x_D)
        for weight, e in zip(weights, experts, strict=True):
            hidden = x_D @ block.experts.up_EDF[e]
            if moe.gated:
                gate, up = hidden.chunk(2)
                hidden = functional.silu(gate) * up
            else:
                hidden = functional.gelu(hidden)
            row = row + weight * (hidden @ block.experts.down_EFD[e])
        rows.append(row)
    y_TD: Tensor = torch.stack(rows)
    if block.shared is None:
        return y_TD
    shared = functional.silu(x_TD @ block.shared.gate.weight.T) * (x_TD @ block.shared.up.weight.T)
    gated_TD: Tensor = torch.sigmoid(x_TD @ block.shared_gate.weight.T) * (shared @ block.shared.down.weight.T)
    return y_TD + gated_TD


@pytest.mark.parametrize("layer", [_OLMOE, _SHARED, _GELU_EXPERTS], ids=["gated", "shared", "gelu"])
def test_experts_equal_a_loop_over_them(layer: Layer) -> None:
    moe = layer.feed_forward
    assert isinstance(moe, Moe)
    block: Any = _model(_architecture(layer, 1)).layers[0].feed_forward
    x_TD = torch.randn(12, _HIDDEN, requires_grad=True)
    out_TD = torch.randn(12, _HIDDEN)
    wanted = [x_TD, *block.parameters()]
    expected = _experts_one_by_one(block, x_TD, moe)
    expected_gradients = torch.autograd.grad(expected, wanted, out_TD)
    found = block(x_TD)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    for gradient, reference in zip(torch.autograd.grad(found, wanted, out_TD), expected_gradients, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-6)


def test_loads_count_every_row() -> None:
    model = _model(_architecture(_OLMOE, 3))
    model(*_batch())
    loads = model.expert_loads()
    assert len(loads) == 3
    assert all(int(load.sum()) == _BATCH * _SEQ * _EXPERTS.top_k for load in loads)
    model.clear_expert_loads()
    assert model.expert_loads() == []


def test_permute_and_unpermute_have_the_gradients_of_their_definition() -> None:
    weight_Tk = torch.rand(6, 2, dtype=torch.float64, requires_grad=True)
    x_TD = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    expert_Tk = torch.tensor([[0, 2], [2, 1], [2, 0], [1, 2], [0, 1], [2, 0]])
    d = torch_ops.dispatch(expert_Tk, 4)  # the last expert gets none
    assert d.counts_E.tolist() == [4, 3, 5, 0]

    def round_trip(x_TD: Tensor, weight_Tk: Tensor) -> Tensor:
        rows_RD = torch_ops.permute(x_TD, d, 2)
        return torch_ops.unpermute(rows_RD * torch.arange(1, 13).unsqueeze(1), weight_Tk, d)

    assert torch.autograd.gradcheck(round_trip, (x_TD, weight_Tk))


def test_permuted_rows_are_sorted_by_expert() -> None:
    expert_Tk = torch.tensor([[3, 1], [0, 3], [1, 0]])
    d = torch_ops.dispatch(expert_Tk, 4)
    x_TD = torch.arange(3.0).unsqueeze(1)
    assert torch_ops.permute(x_TD, d, 2).flatten().tolist() == [1, 2, 0, 2, 0, 1]
    assert d.offsets_E.tolist() == [2, 4, 4, 6]


def test_grouped_queries_equal_repeated_keys_and_values() -> None:
    grouped = _model(_architecture(replace(_LLAMA, attentions=(replace(_LLAMA.attentions[0], qk_norm="none"),)), 1))
    full = _model(
        _architecture(replace(_LLAMA, attentions=(replace(_LLAMA.attentions[0], qk_norm="none", kv_heads=4),)), 1)
    )
    state = grouped.state_dict()
    for name in ("layers.0.attentions.0.k.weight", "layers.0.attentions.0.v.weight"):
        state[name] = state[name].view(2, 8, _HIDDEN).repeat_interleave(2, dim=0).reshape(32, _HIDDEN)
    full.load_state_dict(state)
    torch.testing.assert_close(full(*_batch()), grouped(*_batch()))


def test_attention_is_causal() -> None:
    model = _model(_architecture(_LLAMA))
    rows: list[Tensor] = []
    model.layers[-1].register_forward_hook(lambda _, __, out: rows.append(out))
    tokens, targets = _batch()
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % _VOCAB
    for ids in (tokens, changed):
        model(ids, targets)
    before, after = (row.view(_BATCH, _SEQ, -1) for row in rows)
    torch.testing.assert_close(before[:, :-1], after[:, :-1])
    assert not torch.equal(before[:, -1], after[:, -1])


def test_rotary_depends_on_distance_only() -> None:
    """Inner products of rotated queries and keys depend on the difference of positions (Su et al. 2021, eq. 16)."""
    cos_Sh, sin_Sh = torch_ops.rotary_tables(8, 4, 10_000.0, torch.device("cpu"), torch.float32)
    q_K, k_K = torch.randn(4), torch.randn(4)
    q_SK = torch_ops.rotary(q_K.expand(8, 4), cos_Sh, sin_Sh)
    k_SK = torch_ops.rotary(k_K.expand(8, 4), cos_Sh, sin_Sh)
    score = q_SK @ k_SK.T
    torch.testing.assert_close(score[2:, :-2].diagonal(), score[2, 0].expand(6), rtol=1e-4, atol=1e-5)


# --- optimizer -------------------------------------------------------------------------------------------------------


def test_mixed_adamw_equals_adamw_on_float32_parameters() -> None:
    start = [torch.randn(4, 8), torch.randn(8)]
    ours = [p.clone().requires_grad_() for p in start]
    reference = [p.clone().requires_grad_() for p in start]
    mixed = MixedAdamW(ours, lr=1e-2)
    adamw = torch.optim.AdamW(reference, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for _ in range(5):
        for a, b in zip(ours, reference, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        mixed.step()
        adamw.step()
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b)


def test_masters_keep_what_bf16_would_round_away() -> None:
    parameter = torch.ones(8, dtype=torch.bfloat16, requires_grad=True)
    mixed = MixedAdamW([parameter], lr=1e-4)
    for _ in range(3):
        parameter.grad = torch.ones_like(parameter)
        mixed.step()
    assert torch.equal(parameter, torch.ones_like(parameter))  # bf16 steps near 1 are 0.004 and more
    assert (mixed.masters[0] < 0.9999).all()
    assert parameter.dtype == torch.bfloat16


def test_parameters_without_gradient_stay() -> None:
    used, unused = (torch.ones(2, requires_grad=True) for _ in range(2))
    mixed = MixedAdamW([used, unused])
    used.grad = torch.ones(2)
    mixed.step()
    mixed.zero_grad()
    assert used.grad is None
    assert torch.equal(unused, torch.ones(2))
    assert not torch.equal(used, torch.ones(2))


def test_gradients_are_clipped_to_a_norm_of_one() -> None:
    layer = torch.nn.Linear(4, 4)
    for p in layer.parameters():
        p.grad = torch.full_like(p, 3.0)
    assert float(clip_gradients(layer)) == pytest.approx(3 * 20**0.5)
    total = sum(float(p.grad.square().sum()) for p in layer.parameters() if p.grad is not None)
    assert total == pytest.approx(1.0, rel=1e-4)


def test_refuses_another_precision() -> None:
    with pytest.raises(InputError, match="precision: found 'fp8'; allowed: bf16, bf16-mixed"):
        build_optimizer(torch.nn.Linear(2, 2), "fp8")  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["bf16", "bf16-mixed"])
@pytest.mark.parametrize("layer", [_OPT, _OLMOE], ids=["opt", "olmoe"])
def test_loss_falls_on_a_repeated_batch(layer: Layer, precision: Literal["bf16", "bf16-mixed"]) -> None:
    options = {} if layer is _OLMOE else {"learned_positions": _SEQ, "tied": True}
    model = _model(_architecture(layer, **options), dtype=torch.bfloat16)
    optimizer = build_optimizer(model, precision, lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model(*_batch())
        loss.backward()
        clip_gradients(model)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
