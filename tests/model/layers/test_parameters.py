"""Parameter counts: closed forms, published totals, and what a plan may rely on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moemodel.model.architecture.hf_config import list_architectures, read_architecture
from moemodel.model.architecture.spec import Architecture, Attention, Latent, Layer, Mlp, Moe
from moemodel.model.layers.mlp import mlp_parameters, mlp_products
from moemodel.model.layers.parameters import layer_parameters, parameters
from moemodel.model.layers.registry import block_of

# Published totals: see `_source` of each preset. Llama-3, OPT-350M, Mixtral and DeepSeek-V3 are exact counts of their
# safetensors files; DeepSeek-V3's is without its multi-token-prediction module.
PUBLISHED_TOTAL = {
    "deepseek-v3": 671.03e9,
    "gpt3-175b": 175e9,
    "llama-3-70b": 70.55e9,
    "llama-3-8b": 8.03e9,
    "mixtral-8x7b": 46.70e9,
    "olmoe-1b-7b": 6.92e9,
    "opt-350m": 331.2e6,
    "qwen3-30b-a3b": 30.5e9,
    "switch-base-128": 7.4e9,
}
PUBLISHED_ACTIVE = {"mixtral-8x7b": 12.9e9, "olmoe-1b-7b": 1.28e9}

# What the crossover study printed for its models.
STUDY_TOTAL = {
    "mlp-dense-small": 2_687_737,
    "mlp-dense-medium": 63_426_943,
    "mlp-dense-large": 368_360_149,
    "mlp-dense-xlarge": 2_789_253_815,
    "mlp-moe-small": 2_687_192,
    "mlp-moe-medium": 63_418_800,
    "mlp-moe-large": 368_287_260,
    "mlp-moe-xlarge": 2_789_237_600,
}

# What `transformers` builds from the same file, 5.23 or, of the twins and of qwen3-moe-24x128, 5.24.
TRANSFORMERS_TOTAL = {
    "deepseek-v3": 671_026_404_352,
    "gpt3-175b": 174_604_259_328,
    "llama-3-70b": 70_553_706_496,
    "llama-3-8b": 8_030_261_248,
    "mixtral-8x7b": 46_702_792_704,
    "olmo-1b-dense-twin": 1_279_920_128,
    "olmoe-1b-7b": 6_919_161_856,
    "olmoe-1b-7b-dense-total": 6_917_064_704,
    "opt-350m": 331_196_416,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-moe-24x128": 15_577_227_264,
    "qwen3-moe-24x128-dense-active": 1_981_390_848,
    "qwen3-moe-24x128-dense-total": 15_570_935_808,
    "qwen3-moe-8x64": 3_190_329_344,
    "qwen3-moe-8x64-dense-active": 1_075_351_552,
    "qwen3-moe-8x64-dense-total": 3_189_280_768,
    "switch-base-128": 7_415_217_408,
    "switch-base-128-dense-active": 222_903_552,
    "switch-base-128-dense-total": 7_414_037_760,
}

ATTENTION = Attention(heads=8, kv_heads=2, head_dim=16)
MOE = Moe(experts=6, top_k=2, width=40, activation="silu", gated=True)
MLP = Mlp(width=40, activation="silu", gated=True)


@pytest.mark.parametrize(("name", "published"), PUBLISHED_TOTAL.items())
def test_total_is_the_published_one(name: str, published: float) -> None:
    assert parameters(read_architecture(name)).total == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(("name", "total"), [*TRANSFORMERS_TOTAL.items(), *STUDY_TOTAL.items()])
def test_total_is_exact(name: str, total: int) -> None:
    assert parameters(read_architecture(name)).total == total


def test_every_preset_has_an_exact_total() -> None:
    assert set(list_architectures()) == {*TRANSFORMERS_TOTAL, *STUDY_TOTAL}


@pytest.mark.parametrize(("name", "published"), PUBLISHED_ACTIVE.items())
def test_active_is_the_published_one(name: str, published: float) -> None:
    assert parameters(read_architecture(name)).active == pytest.approx(published, rel=0.01)


def test_active_of_qwen3_is_the_published_one_cut_to_two_digits() -> None:
    active = parameters(read_architecture("qwen3-30b-a3b")).active
    assert active // 10**8 == 33


def test_active_of_deepseek_without_its_embedding_is_the_published_one() -> None:
    counts = parameters(read_architecture("deepseek-v3"))
    assert counts.active - counts.embedding == pytest.approx(36.7e9, rel=0.01)
    assert counts.active == pytest.approx(37e9, rel=0.02)


_TWINS = {"olmo-1b-dense-twin": "olmoe-1b-7b", "olmoe-1b-7b-dense-total": "olmoe-1b-7b"} | {
    f"{name}-dense-{kind}": name
    for name in ("qwen3-moe-8x64", "qwen3-moe-24x128", "switch-base-128")
    for kind in ("active", "total")
}


@pytest.mark.parametrize(("twin", "sparse"), _TWINS.items())
def test_dense_twins_have_what_they_are_equal_in_but_for_routers(twin: str, sparse: str) -> None:
    dense, whole = parameters(read_architecture(twin)), parameters(read_architecture(sparse))
    routers = sum(layer["router"] for layer in whole.layers)
    assert dense.total == dense.active == (whole.total if twin.endswith("total") else whole.active) - routers


@pytest.mark.parametrize(("twin", "sparse"), _TWINS.items())
def test_dense_twins_differ_in_feed_forward_blocks_alone(twin: str, sparse: str) -> None:
    dense, whole = read_architecture(twin), read_architecture(sparse)
    assert [layer.attentions for layer in dense.layers] == [layer.attentions for layer in whole.layers]
    assert all(isinstance(layer.feed_forward, Mlp) for layer in dense.layers)
    for key in ("hidden", "vocab", "embedding_width", "tied", "final_norm"):
        assert getattr(dense, key) == getattr(whole, key)


@pytest.mark.parametrize("name", list_architectures())
def test_counts_add_up(name: str) -> None:
    counts = parameters(read_architecture(name))
    assert sum(counts.by_component().values()) == counts.total
    assert counts.expert + counts.non_expert == counts.total
    assert counts.active <= counts.total
    assert (counts.active == counts.total) == (counts.expert == 0)
    assert all(layer.routed + layer.non_expert == layer.total for layer in counts.layers)


def of_block(spec: Attention | Mlp | Moe) -> dict[str, int]:
    """Parameters of a block in a model of width 32, by component."""
    return {component.name: component.count for component in block_of(spec, 32).parameters()}


def test_attention_closed_form() -> None:
    # 32 x 128 queries, 2 x 32 x 32 keys and values, 128 x 32 output
    plain = of_block(ATTENTION)["attention"]
    assert plain == 32 * 128 + 2 * 32 * 32 + 128 * 32
    assert of_block(replace(ATTENTION, bias_qkv=True, bias_out=True))["attention"] - plain == 128 + 32 + 32 + 32
    assert of_block(replace(ATTENTION, relative_buckets=5))["attention"] - plain == 40


@pytest.mark.parametrize(("kind", "count"), [("none", 0), ("per_head", 2 * 16), ("full", (8 + 2) * 16)])
def test_norms_of_queries_and_keys(kind: str, count: int) -> None:
    assert of_block(replace(ATTENTION, qk_norm=kind))["norms"] == count  # type: ignore[arg-type]


def test_latent_attention_closed_form() -> None:
    latent = Latent(q_rank=24, kv_rank=12, rope_head_dim=4, value_head_dim=6)
    attention = Attention(heads=8, kv_heads=8, head_dim=16, latent=latent)
    assert of_block(attention) == {
        "attention": 24 * 8 * (16 + 4) + 12 * 8 * (16 + 6) + 8 * 6 * 32,
        "latent": 32 * (24 + 12 + 4),
        "norms": 24 + 12,
    }
    without = of_block(replace(attention, latent=replace(latent, q_rank=None)))
    assert without["latent"] == 32 * (12 + 4)
    assert without["attention"] == 32 * 8 * (16 + 4) + 12 * 8 * (16 + 6) + 8 * 6 * 32


def test_mlp_closed_form() -> None:
    assert mlp_products(MLP, 32) == ((32, 80), (40, 32))
    assert mlp_parameters(MLP, 32) == 3 * 32 * 40
    assert mlp_parameters(replace(MLP, gated=False, bias=True), 32) == 2 * 32 * 40 + 40 + 32


def test_deep_mlp_closed_form() -> None:
    deep = Mlp(width=40, activation="relu", gated=False, bias=True, depth=3, out_width=10)
    assert mlp_products(deep, 32) == ((32, 40), (40, 40), (40, 40), (40, 10))
    assert mlp_parameters(deep, 32) == 32 * 40 + 40 + 2 * (40 * 40 + 40) + 40 * 10 + 10


def test_router_closed_form() -> None:
    assert of_block(MOE)["router"] == 6 * 32
    assert of_block(replace(MOE, router_bias=True, shared_gate=True))["router"] == 6 * 32 + 6 + 32


def test_layer_of_experts() -> None:
    counts = layer_parameters(Layer(attentions=(ATTENTION,), feed_forward=MOE, norm="rms"), 32)
    expert = 3 * 32 * 40
    assert counts.routed == counts["experts"] == 6 * expert
    assert counts.total - counts.active == 4 * expert
    assert counts["feed_forward"] == counts["shared_experts"] == 0
    assert counts["norms"] == 2 * 32


def test_one_expert_that_every_token_takes_is_a_dense_block_with_a_router() -> None:
    dense = layer_parameters(Layer(attentions=(ATTENTION,), feed_forward=MLP, norm="rms"), 32)
    single = replace(MOE, experts=1, top_k=1)
    sparse = layer_parameters(Layer(attentions=(ATTENTION,), feed_forward=single, norm="rms"), 32)
    assert sparse.total == sparse.active == dense.total + sparse["router"]


def test_shared_experts_are_not_routed() -> None:
    shared = layer_parameters(
        Layer(attentions=(ATTENTION,), feed_forward=replace(MOE, shared_width=20), norm="rms"), 32
    )
    assert shared["shared_experts"] == 3 * 32 * 20
    assert shared.routed == 6 * 3 * 32 * 40


def test_norms_count_one_for_each_block() -> None:
    cross = replace(ATTENTION, cross=True)
    layer = Layer(attentions=(ATTENTION, cross), feed_forward=MLP, norm="layer", norm_bias=True)
    assert layer_parameters(layer, 32)["norms"] == 3 * 2 * 32
    assert layer_parameters(Layer(attentions=(), feed_forward=MLP, norm=None), 32)["norms"] == 0


def _tiny(**changes: object) -> Architecture:
    layer = Layer(attentions=(ATTENTION,), feed_forward=MLP, norm="rms")
    tiny = Architecture(name="tiny", hidden=32, vocab=100, embedding_width=32, tied=False, decoder=(layer, layer))
    return replace(tiny, **changes)  # type: ignore[arg-type]


def test_tying_saves_the_head() -> None:
    untied, tied = parameters(_tiny()), parameters(_tiny(tied=True))
    assert untied.head == 100 * 32
    assert untied.total - tied.total == 100 * 32


def test_a_narrow_embedding_needs_projections_in_and_out() -> None:
    narrow = parameters(_tiny(embedding_width=8))
    assert (narrow.embedding, narrow.head, narrow.projections) == (100 * 8, 100 * 8, 2 * 8 * 32)
    assert parameters(_tiny(embedding_width=8, has_head=False)).projections == 2 * 8 * 32  # as OPTModel has


def test_each_stack_ends_in_a_norm() -> None:
    layer = Layer(attentions=(ATTENTION,), feed_forward=MLP, norm="rms")
    assert parameters(_tiny()).final_norms == 32
    assert parameters(_tiny(encoder=(layer,))).final_norms == 2 * 32
    assert parameters(_tiny(final_norm=False)).final_norms == 0


def test_layers_stand_in_order_of_the_architecture() -> None:
    architecture = read_architecture("switch-base-128")
    counts = parameters(architecture)
    assert len(counts.layers) == len(architecture.layers) == 24
    sparse = [isinstance(layer.feed_forward, Moe) for layer in architecture.layers]
    assert [layer.routed > 0 for layer in counts.layers] == sparse
