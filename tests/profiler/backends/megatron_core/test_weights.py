"""Megatron Core's layouts of the torch backend's parameters; without Megatron Core."""

from __future__ import annotations

import torch
from torch import Tensor

from moemodel.profiler.backends.megatron_core.weights import RankPart, drawn, of_model
from moemodel.profiler.backends.torch_native.model import build_model
from tests.profiler.backends.megatron_core.here import ARCHITECTURES

_QWEN = ARCHITECTURES["qwen3"]  # 4 heads of 8 in 2 groups, hidden 32


def _numbered(name: str, shape: tuple[int, ...]) -> Tensor:
    """Each row of a parameter is its number, from a base that tells the parameter."""
    base = {"q": 0, "k": 1000, "v": 2000, "gate": 0, "up": 1000}[name.split(".")[-2]]
    return (base + torch.arange(shape[0], dtype=torch.float32)).unsqueeze(1).expand(shape)


def test_queries_keys_and_values_are_interleaved_by_group() -> None:
    name = "decoder.layers.0.self_attention.linear_qkv.weight"
    rows = of_model(name, _QWEN, RankPart(), _numbered)[:, 0].tolist()
    first = [*range(16), *range(1000, 1008), *range(2000, 2008)]  # two heads of queries, a key, a value
    assert rows == [*first, *range(16, 32), *range(1008, 1016), *range(2008, 2016)]


def test_tensor_parallelism_shards_whole_groups() -> None:
    name = "decoder.layers.0.self_attention.linear_qkv.weight"
    parts = [of_model(name, _QWEN, RankPart(tp=2, tp_rank=rank), _numbered) for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), of_model(name, _QWEN, RankPart(), _numbered))


def test_tensor_parallelism_shards_gate_and_up_each() -> None:
    name, llama = "decoder.layers.0.mlp.linear_fc1.weight", ARCHITECTURES["llama"]
    rows = of_model(name, llama, RankPart(tp=2, tp_rank=1), _numbered)[:, 0].tolist()
    assert rows == [*range(32, 64), *range(1032, 1064)]


def test_a_rank_holds_the_experts_of_its_number() -> None:
    up = torch.arange(8.0).view(8, 1, 1).expand(8, 32, 32)
    for rank in (0, 1):
        name = "decoder.layers.0.mlp.experts.local_experts.3.linear_fc1.weight"
        found = of_model(name, _QWEN, RankPart(ep=2, ep_rank=rank), lambda *_: up)
        assert found.unique().tolist() == [3 + 4 * rank]
        engine = name.replace("local_experts.3.linear_fc1.weight", "linear_fc1.weight3")
        assert torch.equal(of_model(engine, _QWEN, RankPart(ep=2, ep_rank=rank), lambda *_: up), found)


def test_layers_of_a_later_stage_are_theirs() -> None:
    asked: list[str] = []

    def whole(name: str, shape: tuple[int, ...]) -> Tensor:
        asked.append(name)
        return torch.zeros(shape)

    of_model("decoder.layers.1.mlp.router.weight", _QWEN, RankPart(), whole, first_layer=2)
    assert asked == ["layers.3.feed_forward.router.weight"]


def test_weights_are_those_of_the_torch_backend() -> None:
    model = build_model(_QWEN, device="cpu", dtype=torch.float32, seed=3)
    own = dict(model.named_parameters())
    whole = drawn(3, tied=False, device=torch.device("cpu"), dtype=torch.float32)
    for layer in (0, 1):  # experts are kept for one layer, and asked for one by one
        for name in ("experts.up_EDF", "experts.down_EFD", "router.weight"):
            path = f"layers.{layer}.feed_forward.{name}"
            shape = tuple(own[path].shape)
            assert torch.equal(whole(path, shape), own[path])
            assert torch.equal(whole(path, shape), own[path])


def test_drawn_experts_of_one_layer_are_kept_and_no_more() -> None:
    whole = drawn(0, tied=False, device=torch.device("cpu"), dtype=torch.float32)
    up = whole("layers.0.feed_forward.experts.up_EDF", (2, 3, 4))
    assert whole("layers.0.feed_forward.experts.up_EDF", (2, 3, 4)) is up
    whole("layers.0.feed_forward.experts.down_EFD", (2, 4, 3))
    whole("layers.1.feed_forward.experts.up_EDF", (2, 3, 4))
    assert whole("layers.0.feed_forward.experts.up_EDF", (2, 3, 4)) is not up
