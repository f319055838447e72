"""Counts of families against two oracles: models that `transformers` builds, and models as they were published.

`transformers_totals.json`: small configurations, and the parameters of the models that transformers 5.24.0 makes of
them on the meta device (`source` of the rest of them: `published_models.json`, full sizes, with active parameters).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moemodel.model.architecture.families import FAMILIES, TEXT_PARTS, UNSUPPORTED, family_of
from moemodel.model.architecture.family import Family
from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture, Attention
from moemodel.model.core.errors import InputError
from moemodel.model.layers.flops import model_flops
from moemodel.model.layers.multi_token import multi_token_flops, multi_token_parameters
from moemodel.model.layers.parameters import parameters

HERE = Path(__file__).parent
BUILT: dict[str, dict[str, Any]] = json.loads((HERE / "transformers_totals.json").read_text(encoding="utf-8"))
PUBLISHED: dict[str, dict[str, Any]] = json.loads((HERE / "published_models.json").read_text(encoding="utf-8"))
# Families whose models transformers has no class for, or builds otherwise; their shapes are tested in other ways.
_ELSEWHERE = {"baichuan", "bailing_moe_v2", "internlm", "internlm2", "megatron", "minicpm", "moemodel_mlp", "mt5"}


def _read(folder: Path, config: dict[str, Any]) -> Architecture:
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return read_architecture(path)


def _refusal(folder: Path, config: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        _read(folder, config)
    return str(caught.value).split("config.json: ", 1)[1]


def _attentions(architecture: Architecture) -> list[Attention]:
    return [layer.attentions[0] for layer in architecture.decoder]


def _windows(architecture: Architecture) -> list[int | None]:
    return [attention.window for attention in _attentions(architecture)]


@pytest.mark.parametrize("name", BUILT)
def test_parameters_are_those_that_transformers_builds(tmp_path: Path, name: str) -> None:
    assert parameters(_read(tmp_path, BUILT[name]["config"])).total == BUILT[name]["total"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_read_exactly(tmp_path: Path, name: str) -> None:
    counted = parameters(_read(tmp_path, PUBLISHED[name]["config"]))
    assert (counted.total, counted.active) == (PUBLISHED[name]["total"], PUBLISHED[name]["active"])


def test_every_family_is_counted_by_an_oracle() -> None:
    configs = [entry["config"] for entry in (*BUILT.values(), *PUBLISHED.values())]
    types = {c["model_type"] for c in configs} | {c["text_config"]["model_type"] for c in configs if "text_config" in c}
    types |= {TEXT_PARTS[name] for name in types if name in TEXT_PARTS}
    assert set(FAMILIES) - types - {"grok-2"} == _ELSEWHERE  # Grok-2's file says git


@pytest.mark.parametrize("name", ["internlm", "internlm2", "baichuan", "minicpm"])
def test_what_has_a_llamas_shape_is_counted_as_one(tmp_path: Path, name: str) -> None:
    """Files of their makers' own code, which transformers has no class for."""
    llama = {key: value for key, value in BUILT["llama"]["config"].items() if key != "architectures"}
    assert parameters(_read(tmp_path, llama | {"model_type": name})).total == BUILT["llama"]["total"]
    if name.startswith("internlm"):  # 6 layers: queries, keys and values, output
        biased = parameters(_read(tmp_path, llama | {"model_type": name, "bias": True})).total
        assert biased == BUILT["llama"]["total"] + 6 * (96 + 48 + 48 + 96)


def test_ling_2_is_ling_1_with_norms_and_corrections(tmp_path: Path) -> None:
    """By hand: norms of 16 for queries and keys in each layer; corrections are no parameters."""
    ling = {
        key: BUILT["glm4_moe"]["config"][key]
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    }
    ling |= {"num_key_value_heads": 4, "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2}
    ling |= {"moe_intermediate_size": 48, "num_shared_experts": 1, "first_k_dense_replace": 1}
    first = parameters(_read(tmp_path, ling | {"model_type": "bailing_moe"}))
    second = parameters(_read(tmp_path, ling | {"model_type": "bailing_moe_v2"}))
    assert second.total == first.total + 6 * 2 * 16
    wider = ling | {"model_type": "bailing_moe_v2", "moe_shared_expert_intermediate_size": 60}
    assert parameters(_read(tmp_path, wider)).total == second.total + 5 * 3 * 96 * 12


def test_granite_4_is_read_where_all_layers_are_attention(tmp_path: Path) -> None:
    granite = BUILT["granite4"]["config"]
    assert parameters(_read(tmp_path, granite | {"layer_types": ["attention"] * 6})).total == BUILT["granite4"]["total"]
    assert "'mamba': Mamba" in _refusal(tmp_path, granite | {"layer_types": ["mamba"] * 6})


@pytest.mark.parametrize("name", [*FAMILIES, *TEXT_PARTS])
def test_every_type_has_its_family(name: str) -> None:
    family = family_of(name)
    assert family is not None
    assert issubclass(family, Family)


def test_no_type_is_both_read_and_refused() -> None:
    assert not {*FAMILIES, *TEXT_PARTS} & set(UNSUPPORTED)
    assert set(TEXT_PARTS.values()) <= set(FAMILIES)


# ---- windows, chunks, masks -----------------------------------------------------------------------------------------

MISTRAL = PUBLISHED["mistral-7b-v0.1"]["config"]


@pytest.mark.parametrize(("seq", "flops_per_token"), [(8192, 47.49e9), (32768, 48.70e9)])
def test_a_window_is_in_the_flops(tmp_path: Path, seq: int, flops_per_token: float) -> None:
    """Mistral 7B v0.1, by hand: 6 x 7.11 B products and 12 x 32 layers x 4096 for each of w - w^2 / 2 S keys."""
    flops = model_flops(_read(tmp_path, MISTRAL), np.array([seq]))[0] / seq
    assert flops == pytest.approx(flops_per_token, rel=2e-4)
    full = model_flops(_read(tmp_path, MISTRAL | {"sliding_window": None}), np.array([seq]))[0] / seq
    assert full > flops


@pytest.mark.parametrize(
    ("name", "changes", "windowed"),
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 4}, [4, 5]),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 64, "max_window_layers": 0}, []),
        ("qwen2", {"sliding_window": 64, "max_window_layers": 0}, []),
        ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3}, [0, 2]),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 64}, [0, 1, 2, 3, 4, 5]),
        ("mixtral", {"sliding_window": 64}, [0, 1, 2, 3, 4, 5]),
        ("phi3", {"sliding_window": 64}, [0, 1, 2, 3, 4, 5]),
        ("starcoder2", {"sliding_window": 64}, [0, 1, 2, 3, 4, 5]),
        ("gemma2", {"sliding_window": 64}, [0, 2, 4]),
        ("gemma3_text", {"sliding_window": 64}, [0, 1, 2, 3, 4]),
        ("gemma3_text", {"sliding_window": 64, "sliding_window_pattern": 2}, [0, 2, 4]),
        ("cohere2", {"sliding_window": 64}, [0, 1, 2, 4, 5]),
        ("olmo3", {"sliding_window": 64}, [0, 1, 2, 4, 5]),
        ("exaone4", {"sliding_window": 64, "sliding_window_pattern": "LLLG"}, [0, 1, 2, 4, 5]),
        ("exaone4", {"sliding_window": 64, "sliding_window_pattern": 3}, [0, 1, 3, 4]),
        ("exaone4", {"sliding_window": None}, []),
        ("gpt_oss", {"sliding_window": 64}, [0, 2, 4]),
        ("dots1", {"sliding_window": 64, "max_window_layers": 5}, [5]),
        ("smollm3", {"sliding_window": 64, "use_sliding_window": True}, [3]),
        ("llama", {"sliding_window": 64}, []),
        ("llama", {"sliding_window": 64, "layer_types": ["sliding_attention"] * 2 + ["full_attention"] * 4}, [0, 1]),
        ("gemma2", {"sliding_window": 64, "layer_types": ["full_attention"] * 5 + ["sliding_attention"]}, [5]),
    ],
)
def test_windows_are_in_the_layers_that_transformers_gives_them(
    tmp_path: Path, name: str, changes: dict[str, Any], windowed: list[int]
) -> None:
    """As the configuration classes and attention modules of transformers 5.24 have them."""
    windows = _windows(_read(tmp_path, BUILT[name]["config"] | changes))
    assert [index for index, window in enumerate(windows) if window == 64] == windowed
    assert set(windows) <= {64, None}


def test_an_ignored_window_is_named(tmp_path: Path) -> None:
    notes = _read(tmp_path, BUILT["llama"]["config"] | {"sliding_window": 64}).notes
    assert any(note.startswith("sliding_window 64: no layer of this model_type") for note in notes)
    assert not _read(tmp_path, BUILT["llama"]["config"] | {"sliding_window": 64, "use_sliding_window": False}).notes


def test_a_window_is_named_unless_no_sequence_reaches_it(tmp_path: Path) -> None:
    (note,) = _read(tmp_path, MISTRAL).notes
    assert note.startswith("32 of 32 layers have a sliding window of 4096 tokens")
    assert not _read(tmp_path, MISTRAL | {"sliding_window": 32768}).notes


def test_llama_4_stays_in_chunks_where_it_has_positions(tmp_path: Path) -> None:
    chunks = [a.chunk for a in _attentions(_read(tmp_path, BUILT["llama4_text"]["config"]))]
    assert chunks == [8192, 8192, 8192, None, 8192, 8192]


@pytest.mark.parametrize("key", [{"is_causal": False}, {"use_bidirectional_attention": True}])
def test_attention_without_a_mask_is_twice_the_work(tmp_path: Path, key: dict[str, Any]) -> None:
    config = PUBLISHED["gte-qwen2-7b"]["config"] | {"is_causal": True}
    causal, full = _read(tmp_path, config), _read(tmp_path, config | key)
    seq = np.array([2048])
    # 28 layers x 28 heads x 128 wide, two products, three passes; half of the pairs
    assert (model_flops(full, seq) - model_flops(causal, seq))[0] == pytest.approx(12 * 28 * 3584 * 2048**2 / 2)
    assert any("not causal" in note for note in full.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["linear_attention"] * 6}, "layer_types: found 'linear_attention': linear attention"),
        ({"layer_types": ["mamba"] * 6}, "layer_types: found 'mamba': Mamba"),
        ({"layer_types": ["local"] * 6}, "layer_types: found 'local'; allowed: full_attention, sliding_attention"),
        ({"layer_types": ["full_attention"] * 5}, "layer_types: found 5 of them; allowed: num_hidden_layers (6)"),
        ({"layer_types": ["sliding_attention"] * 6}, "sliding_window: found None; allowed: a number of tokens"),
        ({"layer_types": ["chunked_attention"] * 6}, "layer_types: found 'chunked_attention'; allowed: full_attention"),
    ],
)
def test_layers_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert _refusal(tmp_path, BUILT["llama"]["config"] | changes).startswith(message)


@pytest.mark.parametrize(("seq", "window"), [(512, 64), (512, 512), (100, 64)])
def test_windows_to_both_sides_are_counted_pair_by_pair(tmp_path: Path, seq: int, window: int) -> None:
    """A key is seen at a distance of up to the window (transformers' overlay for attention that isn't causal)."""
    one = MISTRAL | {"num_hidden_layers": 1, "is_causal": False}
    windowed, products = (_read(tmp_path, one | {"sliding_window": size}) for size in (window, 1))
    distance = np.abs(np.subtract.outer(np.arange(seq), np.arange(seq)))
    pairs = [int((distance <= size).sum()) - seq for size in (window, 1)]  # the diagonal left out, as of a triangle
    difference = model_flops(windowed, np.array([seq])) - model_flops(products, np.array([seq]))
    assert difference[0] == pytest.approx(12 * 4096 * (pairs[0] - pairs[1]), rel=2e-2)


def test_embedding_gemma_looks_half_a_window_to_each_side(tmp_path: Path) -> None:
    gemma = BUILT["gemma3_text"]["config"] | {"sliding_window": 64}
    both = gemma | {"use_bidirectional_attention": True, "architectures": ["Gemma3TextModel"]}
    assert _windows(_read(tmp_path, gemma)) == [64, 64, 64, 64, 64, None]
    assert _windows(_read(tmp_path, both)) == [32, 32, 32, 32, 32, None]
    assert not any(attention.causal for attention in _attentions(_read(tmp_path, both)))
    assert parameters(_read(tmp_path, both)).total == BUILT["gemma3_text"]["total"]  # tied, and without a head


# ---- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "keys", "what"),
    [
        ("llama", {"num_local_experts": 8, "num_experts_per_tok": 2}, "routed experts"),
        ("llama", {"n_routed_experts": 8}, "routed experts"),
        ("qwen2", {"moe_num_experts": [8, 8]}, "routed experts"),
        ("opt", {"num_experts": 4}, "routed experts"),
        ("qwen3_moe", {"shared_expert_intermediate_size": 64}, "experts that every token passes"),
        ("mixtral", {"n_shared_experts": 1}, "experts that every token passes"),
        ("qwen3_moe", {"first_k_dense_replace": 1}, "dense layers among sparse ones"),
        ("olmoe", {"interleave_moe_layer_step": 2}, "experts in every so many-th layer"),
        ("llama", {"kv_lora_rank": 64}, "latent attention"),
        ("deepseek_v3", {"index_topk": 2048}, "sparse attention"),
        ("llama", {"linear_num_value_heads": 4}, "gated DeltaNet"),
        ("llama", {"mamba_d_state": 16}, "Mamba"),
        ("mixtral", {"attn_type_list": [0, 1]}, "lightning attention"),
        ("olmoe", {"conv_L_cache": 3}, "short convolutions"),
        ("deepseek_v3", {"hc_mult": 4}, "hyper-connections"),
        ("deepseek_v3", {"layer_types": ["linear_attention", "full_attention"]}, "linear attention"),
        ("llama", {"use_cla": True}, "layers that share keys and values"),
        ("mixtral", {"residual_moe": True}, "a dense block beside the experts"),
        ("gemma2", {"hidden_size_per_layer_input": 256}, "per-layer embeddings"),
        ("gpt2", {"add_cross_attention": True}, "cross attention"),
        ("llama", {"attention_chunk_size": 8192}, "attention in chunks"),
        ("llama", {"pruned_heads": {"0": [1]}}, "pruned heads"),
    ],
)
def test_keys_of_a_structure_that_a_family_lacks_are_refused(
    tmp_path: Path, name: str, keys: dict[str, Any], what: str
) -> None:
    message = _refusal(tmp_path, BUILT[name]["config"] | keys)
    assert "has no such structure: " in message
    assert what in message
    assert next(iter(keys)) in message


@pytest.mark.parametrize(
    "keys",
    [
        {"num_local_experts": 0, "num_experts_per_tok": None},
        {"num_experts": 1},
        {"index_topk": None, "mamba_d_state": 0, "use_cla": False, "pruned_heads": {}, "residual_moe": False},
        {"num_nextn_predict_layers": 0, "quantization_config": None, "sliding_window": None},
        {"torch_dtype": "bfloat16", "rope_theta": 1e6, "rope_scaling": {"type": "yarn"}, "bos_token_id": 1},
        {"attention_dropout": 0.1, "initializer_range": 0.02, "use_cache": True, "pretraining_tp": 2, "top_k": 50},
        {"rms_norm_eps": 1e-5, "auto_map": {"AutoModel": "evil.py"}, "_name_or_path": "x", "id2label": {"0": "a"}},
    ],
)
def test_harmless_and_switched_off_keys_say_nothing(tmp_path: Path, keys: dict[str, Any]) -> None:
    plain = BUILT["llama"]["config"]
    read, without = _read(tmp_path, plain | keys), _read(tmp_path, plain)
    assert read == without
    assert not read.notes


def test_a_gate_where_there_is_none_is_refused(tmp_path: Path) -> None:
    message = _refusal(
        tmp_path, BUILT["llama"]["config"] | {"model_type": "arcee", "hidden_act": "silu", "architectures": None}
    )
    assert message.startswith("hidden_act: found silu; allowed: gelu, relu or relu2, since")


def test_unknown_keys_are_named(tmp_path: Path) -> None:
    (note,) = _read(tmp_path, BUILT["llama"]["config"] | {"flux_width": 12, "num_steps": 4, "kernel_size": 3}).notes
    assert note.startswith("Not read, since llama has no such key: flux_width (12), num_steps (4), kernel_size (3). If")


def test_quantized_weights_are_named(tmp_path: Path) -> None:
    plain = BUILT["llama"]["config"]
    read = _read(tmp_path, plain | {"quantization_config": {"quant_method": "fp8"}})
    assert parameters(read) == parameters(_read(tmp_path, plain))
    assert read.notes[0].startswith("quantization_config: the file's weights are quantized.")


def test_a_value_that_is_stated_twice_is_stated_alike(tmp_path: Path) -> None:
    twice = BUILT["mixtral"]["config"] | {"num_experts": 4}
    assert parameters(_read(tmp_path, twice)).total == BUILT["mixtral"]["total"]
    assert _refusal(tmp_path, twice | {"num_experts": 6}).startswith("num_experts 6 and num_local_experts 4 differ")


def test_multi_token_prediction_is_left_out_and_said(tmp_path: Path) -> None:
    """DeepSeek-V3: a module of 11.61 B parameters of its own, 10.19 GFLOP a token at 4096 (arXiv:2412.19437)."""
    deepseek = _read(tmp_path, PUBLISHED["deepseek-v3"]["config"])
    assert multi_token_parameters(deepseek) == 11_610_067_968
    assert multi_token_parameters(deepseek) + 2 * 129280 * 7168 == pytest.approx(13.46e9, rel=1e-3)
    assert multi_token_flops(deepseek, 4096) / 4096 == pytest.approx(10.19e9, rel=1e-3)
    three = _read(tmp_path, PUBLISHED["minimax-m2.5"]["config"])
    assert len(three.multi_token) == 3
    off = _read(tmp_path, PUBLISHED["minimax-m2.5"]["config"] | {"use_mtp": False})
    assert not off.multi_token


def test_a_pattern_of_windows_needs_their_length(tmp_path: Path) -> None:
    """Layers with a window are not counted as full attention because the file does not say how long it is."""
    config = PUBLISHED["mimo-v2-flash"]["config"]
    unstated = config | {"sliding_window": None, "sliding_window_size": None}
    with pytest.raises(InputError, match="sliding_window: found None; allowed: a number of tokens, since hybrid"):
        _read(tmp_path, unstated)
    none = _read(tmp_path, unstated | {"hybrid_layer_pattern": [0] * config["num_hidden_layers"]})
    assert all(layer.attentions[0].window is None for layer in none.layers)


# ---- heads ----------------------------------------------------------------------------------------------------------


def test_heads_of_classes_take_the_vocabularys_place(tmp_path: Path) -> None:
    llama = BUILT["llama_seq"]["config"]
    for labels in ({"num_labels": 5}, {"num_labels": None, "id2label": dict.fromkeys("abcde", "x")}):
        read = _read(tmp_path, llama | labels)
        assert (read.head_outputs, read.head_bias) == (5, False)
        assert parameters(read).head == 5 * 96
    token = _read(tmp_path, llama | {"architectures": ["LlamaForTokenClassification"], "num_labels": 5})
    assert parameters(token).head == 5 * 96 + 5
    unstated = _read(tmp_path, {key: value for key, value in llama.items() if key != "num_labels"})
    assert parameters(unstated).head == 96
    assert any("states no num_labels or id2label; one output is counted" in note for note in unstated.notes)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["LlamaForRewardModel"], "architectures: found 'LlamaForRewardModel', of an unknown head"),
        (["LlamaForMaskedLM"], "architectures: found 'LlamaForMaskedLM', of an unknown head; allowed: "),
        (["LlamaBiModel"], "architectures: found 'LlamaBiModel', of an unknown head"),
        ("LlamaForCausalLM", "architectures: found 'LlamaForCausalLM'; allowed: a list of names of classes"),
        (
            ["Qwen3NextForCausalLM"],
            "architectures: found 'Qwen3NextForCausalLM', of type qwen3_next, while model_type is",
        ),
        (["JambaForCausalLM"], "architectures: found 'JambaForCausalLM', of type jamba, while model_type is 'llama'"),
        (
            ["Olmo3ForCausalLM"],
            "architectures: found 'Olmo3ForCausalLM', while model_type is 'llama', which has another",
        ),
    ],
)
def test_classes_of_another_head_or_type_are_refused(tmp_path: Path, classes: object, message: str) -> None:
    assert _refusal(tmp_path, BUILT["llama"]["config"] | {"architectures": classes}).startswith(message)


def test_an_unknown_class_is_named(tmp_path: Path) -> None:
    (note,) = _read(tmp_path, BUILT["llama"]["config"] | {"architectures": ["NovelForCausalLM"]}).notes
    assert note.startswith("architectures names 'NovelForCausalLM', a class that is not known")


def test_a_class_of_the_same_shape_is_fine(tmp_path: Path) -> None:
    config = BUILT["deepseek_v3"]["config"] | {"model_type": "kimi_k2"}
    assert not _read(tmp_path, config).notes


# ---- types ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_missing_is_said_without_a_hint(tmp_path: Path, name: str) -> None:
    message = _refusal(tmp_path, {"model_type": name, "hidden_size": 64})
    assert UNSUPPORTED[name] in message
    assert "did you mean" not in message


@pytest.mark.parametrize("name", ["novel", "qwen4", "qwen3_nexts", "llama5", "gemma9"])
def test_an_unknown_type_is_told_the_known_ones_and_no_other(tmp_path: Path, name: str) -> None:
    message = _refusal(tmp_path, {"model_type": name})
    assert message == f"model_type: found {name!r}; allowed: {', '.join(sorted(FAMILIES))}"


@pytest.mark.parametrize(
    ("name", "meant"), [("Qwen3Moe", "qwen3_moe"), ("deepseek-v3", "deepseek_v3"), ("GPT2", "gpt2")]
)
def test_another_spelling_is_told_the_right_one(tmp_path: Path, name: str, meant: str) -> None:
    assert _refusal(tmp_path, {"model_type": name}).endswith(f"did you mean {meant!r}?")


# ---- language models inside others ----------------------------------------------------------------------------------


def test_of_models_with_eyes_the_language_model_is_read(tmp_path: Path) -> None:
    text = BUILT["qwen3_moe"]["config"]
    outer = {
        "model_type": "novel_vl",
        "architectures": ["NovelForConditionalGeneration"],
        "text_config": text,
        "vision_config": {"depth": 24},
        "image_token_id": 7,
        "fusion_depth": 3,
    }
    read = _read(tmp_path, outer)
    assert parameters(read).total == BUILT["qwen3_moe"]["total"]
    assert read.notes[0] == "model_type 'novel_vl': its language model alone is described (text_config, a qwen3_moe)."
    assert any(note.startswith("vision_config: ") for note in read.notes)
    assert "Around the language model, and not read: fusion_depth (3)." in read.notes


def test_speech_models_keep_it_deeper(tmp_path: Path) -> None:
    text = {key: value for key, value in BUILT["qwen3_moe"]["config"].items() if key != "architectures"}
    outer = {
        "model_type": "qwen3_omni_moe",
        "thinker_config": {"text_config": text | {"model_type": "qwen3_omni_moe_text"}},
    }
    assert parameters(_read(tmp_path, outer)).total == BUILT["qwen3_moe"]["total"]


def test_tying_may_be_stated_around(tmp_path: Path) -> None:
    text = BUILT["llama"]["config"]
    outer = {"model_type": "novel_vl", "text_config": text, "tie_word_embeddings": True}
    assert parameters(_read(tmp_path, outer)).head == 0
    assert parameters(_read(tmp_path, outer | {"text_config": text | {"tie_word_embeddings": False}})).head == 96000


def test_what_a_nested_file_leaves_out_is_its_classs_default(tmp_path: Path) -> None:
    """LLaVA 1.5 7B: Vicuna, whose sizes are all those of `LlamaConfig`, with 64 more tokens."""
    text = {"model_type": "llama", "vocab_size": 32064, "architectures": ["LlamaForCausalLM"]}
    read = _read(tmp_path, {"model_type": "llava", "text_config": text, "vision_config": {}})
    assert parameters(read).total == 6_738_415_616 + 2 * 64 * 4096  # Llama 2 7B
    assert any("leaves out what is its class's default" in note for note in read.notes)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "x", "text_config": {}}, "the key 'text_config.model_type' is missing"),
        (
            {"model_type": "x", "text_config": {"model_type": "qwen3_5_text"}},
            "text_config.model_type: found 'qwen3_5_t",
        ),
        ({"model_type": "x", "text_config": {"model_type": 3}}, "text_config.model_type: found 3; allowed: "),
        ({"model_type": "llama", "text_config": {"model_type": "llama"}}, "text_config: found an object of keys in"),
        ({"model_type": 3}, "model_type: found 3; allowed: "),
    ],
)
def test_wrong_nests_are_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    assert _refusal(tmp_path, config).startswith(message)


def test_the_documents_name_all_types() -> None:
    text = (HERE.parents[2] / "docs/models.md").read_text(encoding="utf-8")
    read, refused = text.split("## What is refused by name")
    assert set(re.findall(r"`([^`\s]+)`", read.split("\n\n")[2])) - {"model_type"} == set(FAMILIES)
    assert set(re.findall(r"`([^`\s]+)`", refused)) - {"model_type"} == set(UNSUPPORTED)
    assert f"for {len(BUILT)} small configurations and {len(PUBLISHED)} published ones" in text
