"""Reading architectures: what each family becomes, and what a mistake in the file is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moemodel.model.architecture.hf_config import list_architectures, read_architecture
from moemodel.model.architecture.spec import Architecture, Mlp, Moe
from moemodel.model.core.errors import InputError
from moemodel.model.layers.parameters import parameters

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 96,
    "intermediate_size": 200,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2}
QWEN3_MOE = {**LLAMA, **EXPERTS, "model_type": "qwen3_moe", "moe_intermediate_size": 48, "head_dim": 16}
QWEN2_MOE = {
    **LLAMA,
    **EXPERTS,
    "model_type": "qwen2_moe",
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 72,
}
DEEPSEEK = {
    **LLAMA,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 48,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 2,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "n_shared_experts": 2,
}
OPT = {
    "model_type": "opt",
    "vocab_size": 500,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "ffn_dim": 100,
    "max_position_embeddings": 128,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 500, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 77}
T5 = {"model_type": "t5", "vocab_size": 500, "d_model": 64, "d_kv": 8, "d_ff": 100, "num_layers": 3, "num_heads": 5}
SWITCH = {
    **T5,
    "model_type": "switch_transformers",
    "num_layers": 7,
    "num_decoder_layers": 4,
    "num_experts": 6,
    "num_sparse_encoder_layers": 3,
    "num_sparse_decoder_layers": 4,
}
MLP = {"model_type": "moemodel_mlp", "hidden_size": 784, "intermediate_size": 256}

# Totals of the models that `transformers` 5.23 builds from these files; more families are in `test_families`.
TRANSFORMERS_TOTAL: list[tuple[dict[str, Any], int]] = [
    (LLAMA | {"model_type": "mistral"}, 619_296),
    (LLAMA | {"model_type": "mistral", "head_dim": 32, "tie_word_embeddings": True}, 753_696),
    (LLAMA | {"attention_bias": True, "mlp_bias": True}, 623_216),
    ({key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}, 665_376),
    (LLAMA | {"model_type": "qwen2"}, 620_256),
    (LLAMA | {"model_type": "qwen3"}, 1_956_896),
    (LLAMA | {"model_type": "qwen3", "attention_bias": True, "head_dim": 16}, 667_296),
    (LLAMA | {"model_type": "olmo2"}, 620_016),
    (LLAMA | EXPERTS | {"model_type": "olmoe"}, 2_062_896),
    (QWEN2_MOE | {"decoder_sparse_step": 2, "mlp_only_layers": [1]}, 667_008),
    (
        {key: value for key, value in QWEN3_MOE.items() if key != "head_dim"}
        | {"decoder_sparse_step": 2, "mlp_only_layers": [3]},
        645_336,
    ),
    (DEEPSEEK | {"attention_bias": True}, 894_040),
    (DEEPSEEK | {"attention_bias": True, "q_lora_rank": None}, 939_880),
    (OPT | {"enable_bias": False}, 128_768),
    (GPT2, 187_008),
    (T5 | {"num_decoder_layers": 4}, 235_840),
    (T5 | {"feed_forward_proj": "gated-gelu"}, 240_768),
    (SWITCH | {"router_bias": True}, 779_242),
    (
        SWITCH
        | {"num_layers": 12, "num_decoder_layers": 12, "num_sparse_encoder_layers": 5, "num_sparse_decoder_layers": 2},
        1_227_200,
    ),
]


def _write(folder: Path, config: object) -> Path:
    path = folder / "config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    return path


def _read(folder: Path, config: object) -> Architecture:
    return read_architecture(_write(folder, config))


def _refusal(folder: Path, config: object) -> str:
    path = _write(folder, config)
    with pytest.raises(InputError) as caught:
        read_architecture(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    return message.removeprefix(str(path)).lstrip(":0123456789 ")


@pytest.mark.parametrize(("config", "total"), TRANSFORMERS_TOTAL)
def test_parameters_are_those_of_transformers(tmp_path: Path, config: dict[str, Any], total: int) -> None:
    assert parameters(_read(tmp_path, config)).total == total


@pytest.mark.parametrize("name", list_architectures())
def test_presets_say_where_they_come_from(name: str) -> None:
    architecture = read_architecture(name)
    assert architecture.name == name
    assert len(architecture.source) > 20


def test_a_folder_and_its_file_are_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    path = _write(folder, LLAMA)
    assert read_architecture(folder) == read_architecture(path) == read_architecture(str(folder))
    assert read_architecture(folder).name == "my-model"
    assert read_architecture(folder).source == str(path)


def test_a_file_is_named_by_its_stem(tmp_path: Path) -> None:
    path = _write(tmp_path, LLAMA).rename(tmp_path / "mine.json")
    assert read_architecture(path).name == "mine"


def test_a_preset_wins_over_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "opt-350m").mkdir()
    _write(tmp_path / "opt-350m", LLAMA)
    monkeypatch.chdir(tmp_path)
    assert read_architecture("opt-350m").vocab == 50272
    assert read_architecture("./opt-350m").vocab == 1000


def test_both_names_of_the_number_of_experts_are_read(tmp_path: Path) -> None:
    renamed = {key: value for key, value in QWEN3_MOE.items() if key != "num_experts"} | {"num_local_experts": 6}
    assert _read(tmp_path, renamed) == _read(tmp_path, QWEN3_MOE)


def test_opt_350m_is_the_odd_one() -> None:
    opt = read_architecture("opt-350m")
    assert (opt.hidden, opt.embedding_width, opt.final_norm, opt.learned_positions) == (1024, 512, False, 2050)
    assert opt.tied
    attention = opt.decoder[0].attentions[0]
    assert (attention.bias_qkv, attention.bias_out, attention.rotary) == (True, True, False)


def test_qwen_chooses_its_sparse_layers(tmp_path: Path) -> None:
    stack = _read(tmp_path, QWEN3_MOE | {"decoder_sparse_step": 2, "mlp_only_layers": [3]}).decoder
    assert [isinstance(layer.feed_forward, Moe) for layer in stack] == [False, True, False, False, False]


def test_deepseek_begins_dense_and_shares_experts(tmp_path: Path) -> None:
    stack = _read(tmp_path, DEEPSEEK).decoder
    assert [isinstance(layer.feed_forward, Moe) for layer in stack] == [False, False, True, True, True]
    sparse = stack[-1].feed_forward
    assert isinstance(sparse, Moe)
    assert (sparse.shared_width, sparse.router, sparse.capacity_factor) == (96, "sigmoid_topk", None)


def test_switch_routes_every_other_layer_to_one_expert() -> None:
    switch = read_architecture("switch-base-128")
    for stack in (switch.encoder, switch.decoder):
        assert [isinstance(layer.feed_forward, Moe) for layer in stack] == [False, True] * 6
        assert [layer.attentions[0].relative_buckets for layer in stack] == [32] + [0] * 11
    sparse = switch.encoder[1].feed_forward
    assert isinstance(sparse, Moe)
    assert (sparse.top_k, sparse.router, sparse.capacity_factor) == (1, "switch_top1", 1.25)
    own, cross = switch.decoder[0].attentions
    assert (own.causal, own.cross, cross.causal, cross.cross) == (True, False, False, True)
    assert not switch.encoder[0].attentions[0].causal


def test_switch_without_sparse_layers_is_dense(tmp_path: Path) -> None:
    dense = _read(tmp_path, SWITCH | {"num_sparse_encoder_layers": 0, "num_sparse_decoder_layers": 0})
    assert all(isinstance(layer.feed_forward, Mlp) for layer in dense.layers)


def test_plain_mlp_is_a_stack_of_blocks(tmp_path: Path) -> None:
    stack = _read(tmp_path, MLP | {"num_hidden_layers": 3, "output_size": 10, "hidden_layers_per_block": 2})
    assert (stack.vocab, stack.has_head, stack.final_norm) == (0, False, False)
    blocks = [layer.feed_forward for layer in stack.decoder]
    assert [block.out_width for block in blocks] == [None, None, 10]
    assert all(block.depth == 2 for block in blocks)
    assert all(layer.norm is None and not layer.attentions for layer in stack.decoder)


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "intermediate_size", "num_hidden_layers"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    config = {name: value for name, value in LLAMA.items() if name != key}
    assert _refusal(tmp_path, config) == f"the key '{key}' is missing"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "96"}, "hidden_size: found '96'; input should be a valid integer"),
        ({"hidden_size": 96.5}, "hidden_size: found 96.5; input should be a valid integer"),
        ({"hidden_size": None}, "hidden_size: found None; input should be a valid integer"),
        ({"num_hidden_layers": True}, "num_hidden_layers: found True; input should be a valid integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: found 0; input should be greater than 0"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers: found 1000000; input should be less than or equal to 10000"),
        ({"vocab_size": -1}, "vocab_size: found -1; input should be greater than 0"),
        ({"vocab_size": 2**31}, "vocab_size: found 2147483648; input should be less than or equal to 2147483647"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings: found 'no'; input should be a valid boolean"),
        ({"hidden_act": "snake"}, "hidden_act: found 'snake'; input should be 'gelu', 'relu', 'relu2' or 'silu'"),
        ({"hidden_act": 3}, "hidden_act: found 3; input should be 'gelu', 'relu', 'relu2' or 'silu'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: found 3; allowed: a divisor of num_attention_heads (8)"),
        (
            {"num_attention_heads": 7, "num_key_value_heads": 7},
            "num_attention_heads: found 7; allowed: a divisor of hidden_size (96)",
        ),
    ],
)
def test_a_wrong_value_is_told_what_is_allowed(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert _refusal(tmp_path, LLAMA | changes) == message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (QWEN3_MOE | {"num_experts_per_tok": 7}, "num_experts_per_tok: found 7; allowed: at most num_experts (6)"),
        (QWEN3_MOE | {"mlp_only_layers": ["a"]}, "mlp_only_layers.0: found 'a'; input should be a valid integer"),
        (DEEPSEEK | {"num_experts_per_tok": 9}, "num_experts_per_tok: found 9; allowed: at most n_routed_experts (8)"),
        (DEEPSEEK | {"moe_layer_freq": 2}, "moe_layer_freq: found 2; input should be 1"),
        (
            DEEPSEEK | {"first_k_dense_replace": 6},
            "first_k_dense_replace: found 6; allowed: at most num_hidden_layers (5)",
        ),
        (OPT | {"num_attention_heads": 5}, "num_attention_heads: found 5; allowed: a divisor of hidden_size (64)"),
        (GPT2 | {"n_head": 5}, "n_head: found 5; allowed: a divisor of n_embd (64)"),
        (
            SWITCH | {"num_sparse_encoder_layers": 8},
            "num_sparse_encoder_layers: found 8; allowed: at most num_layers (7)",
        ),
        (
            SWITCH | {"num_sparse_decoder_layers": 5},
            "num_sparse_decoder_layers: found 5; allowed: at most num_decoder_layers (4)",
        ),
        (
            T5 | {"feed_forward_proj": "gated-tanh"},
            "feed_forward_proj: found 'gated-tanh'; input should be 'relu', 'gated-gelu' or 'gated-silu'",
        ),
        (MLP | {"num_experts": 4}, "num_experts_per_tok: found 0; allowed: 1 to num_experts (4)"),
        (MLP | {"num_experts_per_tok": 2}, "num_experts_per_tok: found 2; allowed: at most num_experts (0)"),
        (
            MLP | {"gated": True, "hidden_layers_per_block": 2},
            "hidden_layers_per_block: found 2; allowed: 1 where gated is true",
        ),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    assert _refusal(tmp_path, config) == message


def test_an_unknown_key_of_our_own_type_is_refused(tmp_path: Path) -> None:
    message = _refusal(tmp_path, MLP | {"experts": 4})
    assert message.startswith("unknown key 'experts'; allowed here: bias, gated, hidden_act,")


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    message = _refusal(tmp_path, LLAMA | {"hidden_size": 0, "vocab_size": "x"})
    assert len(message.splitlines()) == 2


def test_a_missing_model_type_is_named(tmp_path: Path) -> None:
    message = _refusal(tmp_path, {"hidden_size": 96})
    assert message.startswith("the key 'model_type' is missing; allowed: arcee, ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "found a JSON list; allowed: an object"),
        ("[" * 200_000, "not JSON"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "not JSON"),
    ],
)
def test_what_is_not_a_json_object_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert _refusal(tmp_path, text).startswith(message)


def test_what_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_architecture(path)


def test_an_unknown_preset_is_told_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        read_architecture("olmoe-1b")
    message = str(caught.value)
    assert message.startswith("architecture: found 'olmoe-1b'; allowed: deepseek-v3, ")
    assert "or the path of a config.json; did you mean 'olmoe-1b-7b'" in message


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found .*; allowed: .* or the path of a config\.json"):
        read_architecture(tmp_path)
