"""Which `model_type` is read as which family, and which ones are known to have what no family has."""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module

from moemodel.model.architecture.family import Family

# Where each is: a file of this folder, and a class. Loaded when one is asked for, since there are many.
FAMILIES: dict[str, str] = {
    "arcee": "layer_norm_families.Arcee",
    "baichuan": "dense_families.Llama",
    "bailing_moe": "sparse_families.BailingMoe",
    "bailing_moe_v2": "sparse_families.BailingMoeV2",
    "bloom": "layer_norm_families.Bloom",
    "codegen": "layer_norm_families.GptJ",
    "cohere": "layer_norm_families.Cohere",
    "cohere2": "layer_norm_families.Cohere2",
    "cwm": "dense_families.Cwm",
    "dbrx": "sparse_families.Dbrx",
    "deepseek": "sparse_families.Deepseek",
    "deepseek_v2": "latent_families.DeepseekV2",
    "deepseek_v3": "latent_families.DeepseekV3",
    "dots1": "sparse_families.Dots1",
    "ernie4_5": "dense_families.Ernie45",
    "ernie4_5_moe": "sparse_families.Ernie45Moe",
    "exaone": "dense_families.Exaone",
    "exaone4": "dense_families.Exaone4",
    "falcon": "layer_norm_families.Falcon",
    "flex_olmo": "sparse_families.Olmoe",
    "gemma": "dense_families.Gemma",
    "gemma2": "dense_families.Gemma2",
    "gemma3_text": "dense_families.Gemma3",
    "glm": "dense_families.Glm",
    "glm4": "dense_families.Glm4",
    "glm4_moe": "sparse_families.Glm4Moe",
    "glm4_moe_lite": "latent_families.Glm4MoeLite",
    "glm4v_moe_text": "sparse_families.Glm4vMoe",
    "glm4v_text": "dense_families.Glm4v",
    "gpt2": "learned_positions.Gpt2",
    "gpt_bigcode": "learned_positions.GptBigCode",
    "gpt_neox": "layer_norm_families.GptNeoX",
    "gpt_oss": "sparse_families.GptOss",
    "gptj": "layer_norm_families.GptJ",
    "granite": "dense_families.Llama",
    "granitemoe": "sparse_families.GraniteMoe",
    "granitemoehybrid": "sparse_families.GraniteMoeHybrid",
    "granitemoeshared": "sparse_families.GraniteMoe",
    "grok-1": "sparse_families.Grok1",
    "grok-2": "sparse_families.Grok2",
    "helium": "dense_families.Llama",
    "hunyuan_v1_dense": "dense_families.HunyuanDense",
    "hunyuan_v1_moe": "sparse_families.HunyuanMoe",
    "internlm": "dense_families.InternLm2",
    "internlm2": "dense_families.InternLm2",
    "internlm3": "dense_families.InternLm3",
    "jais2": "layer_norm_families.Jais2",
    "kimi_k2": "latent_families.DeepseekV3",
    "llama": "dense_families.Llama",
    "llama4_text": "sparse_families.Llama4",
    "mimo_v2_flash": "sparse_families.MimoV2Flash",
    "megatron": "megatron_model.MegatronModel",
    "minicpm": "dense_families.Llama",
    "minimax_m2": "sparse_families.MiniMaxM2",
    "ministral": "dense_families.Mistral",
    "ministral3": "dense_families.Ministral3",
    "mistral": "dense_families.Mistral",
    "mixtral": "sparse_families.Mixtral",
    "moemodel_mlp": "plain_mlp.MoemodelMlp",
    "mpt": "layer_norm_families.Mpt",
    "mt5": "encoder_decoder.Mt5",
    "nanochat": "layer_norm_families.NanoChat",
    "nemotron": "layer_norm_families.Nemotron",
    "nemotron_h": "hybrid_families.NemotronH",
    "olmo": "layer_norm_families.Olmo",
    "olmo2": "dense_families.Olmo2",
    "olmo3": "dense_families.Olmo3",
    "olmoe": "sparse_families.Olmoe",
    "opt": "learned_positions.Opt",
    "phi": "layer_norm_families.Phi",
    "phi3": "dense_families.Phi3",
    "phimoe": "sparse_families.PhiMoe",
    "qwen2": "dense_families.Qwen2",
    "qwen2_moe": "sparse_families.Qwen2Moe",
    "qwen3": "dense_families.Qwen3",
    "qwen3_moe": "sparse_families.Qwen3Moe",
    "seed_oss": "dense_families.SeedOss",
    "smollm3": "dense_families.SmolLm3",
    "stablelm": "layer_norm_families.StableLm",
    "starcoder2": "layer_norm_families.Starcoder2",
    "vaultgemma": "dense_families.VaultGemma",
    "switch_transformers": "encoder_decoder.SwitchTransformers",
    "t5": "encoder_decoder.T5",
}

# The language models inside models of images, sound or video: the same shapes under other names.
TEXT_PARTS: dict[str, str] = {
    "deepseek_v2_text": "deepseek_v2",
    "gemma3": "gemma3_text",
    "llama4": "llama4_text",
    "qwen2_5_omni_text": "qwen2",
    "qwen2_5_vl": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_vl": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen3_omni_moe_text": "qwen3_moe",
    "qwen3_vl_moe_text": "qwen3_moe",
    "qwen3_vl_text": "qwen3",
}

_DELTA_NET = "gated DeltaNet (linear attention) in three of four layers, and gated attention"
_MAMBA = "Mamba (state-space) layers"
_LIGHTNING = "lightning attention (linear attention)"
_CONVOLUTIONS = "short convolutions in place of attention"
_SPARSE_ATTENTION = "sparse attention, whose indexer chooses the keys of each query"
_ENCODER = "encoders of text with norms behind each block, token types and a masked-token head"
_SEQ2SEQ = "encoder-decoders with absolute positions"

# What models of a type have that no family here has.
UNSUPPORTED: dict[str, str] = {
    "albert": _ENCODER,
    "apertus": "xIELU activations, which have learned parameters",
    "arctic": "a dense residual block with a norm of its own beside the experts",
    "bailing_hybrid": _LIGHTNING,
    "bailing_moe_linear": _LIGHTNING,
    "bamba": _MAMBA,
    "bart": _SEQ2SEQ,
    "bert": _ENCODER,
    "bitnet": "ternary weights and norms inside its blocks",
    "deberta": _ENCODER,
    "deberta-v2": _ENCODER,
    "deepseek_v32": _SPARSE_ATTENTION,
    "deepseek_v4": "compressed sparse attention and hyper-connections",
    "decilm": "heads and widths of its own in every layer",
    "diffllama": "differential attention",
    "distilbert": _ENCODER,
    "electra": _ENCODER,
    "ernie4_5_vl_moe_text": "experts of text beside experts of images",
    "falcon_h1": f"{_MAMBA} beside attention",
    "falcon_mamba": _MAMBA,
    "gemma3n_text": "per-layer embeddings, alternating updates and layers that share keys and values",
    "gemma4_text": "a dense block with norms of its own beside the experts, and layers whose values are their keys",
    "glm_moe_dsa": _SPARSE_ATTENTION,
    "gpt_neo": "local attention in every other layer, by attention_types",
    "hymba": f"{_MAMBA} beside attention",
    "hunyuan": "cross-layer attention (CLA): pairs of layers that share keys and values",
    "jamba": _MAMBA,
    "jetmoe": "experts of attention",
    "kimi_linear": "Kimi Delta Attention (linear attention)",
    "lfm2": _CONVOLUTIONS,
    "lfm2_moe": _CONVOLUTIONS,
    "longcat_flash": "two attentions a layer beside the experts, and experts that compute nothing",
    "longt5": "local and transient-global attention",
    "m2m_100": _SEQ2SEQ,
    "mamba": _MAMBA,
    "mamba2": _MAMBA,
    "marian": _SEQ2SEQ,
    "mbart": _SEQ2SEQ,
    "minicpm3": "latent attention with dense blocks",
    "minimax": _LIGHTNING,
    "minimax_m1": _LIGHTNING,
    "minimax_text_01": _LIGHTNING,
    "mllama_text_model": "cross attention to images in some layers",
    "modernbert": _ENCODER,
    "nemotron-nas": "blocks of their own in every layer, by block_configs",
    "nllb-moe": _SEQ2SEQ,
    "openelm": "heads and widths of its own in every layer",
    "phi3small": "block-sparse attention",
    "plamo2": _MAMBA,
    "olmo_hybrid": _DELTA_NET,
    "pegasus": _SEQ2SEQ,
    "persimmon": "norms with shifts of queries and keys",
    "qwen3_5_moe_text": _DELTA_NET,
    "qwen3_5_text": _DELTA_NET,
    "qwen3_next": _DELTA_NET,
    "recurrent_gemma": "recurrent (RG-LRU) layers",
    "roberta": _ENCODER,
    "rwkv": "recurrent layers in place of attention",
    "umt5": "relative position biases in every layer",
    "whisper": _SEQ2SEQ,
    "xlm-roberta": _ENCODER,
    "xlstm": "recurrent layers in place of attention",
    "zamba": _MAMBA,
    "zamba2": _MAMBA,
}
# Types whose files may have their language model's keys in an object of their own, or not.
UNSUPPORTED |= {
    name: UNSUPPORTED[f"{name}_text"] for name in ("ernie4_5_vl_moe", "gemma3n", "gemma4", "qwen3_5", "qwen3_5_moe")
} | {"mllama": UNSUPPORTED["mllama_text_model"]}


def folded(name: str) -> str:
    """A name without case and punctuation, as classes and types of one model share it."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


_BY_FOLDED = {folded(name): name for name in (*FAMILIES, *TEXT_PARTS, *UNSUPPORTED)}
# Classes that are not called as their type.
_CLASSES = {
    "deepseekmoe": "deepseek",
    "falconh1": "falcon_h1",
    "grok1": "grok-1",
    "hunyuandensev1": "hunyuan_v1_dense",
    "hunyuanmoev1": "hunyuan_v1_moe",
    "hunyuanmoe": "hunyuan_v1_moe",
    "internlm": "internlm",
    "rw": "falcon",
    "gpt2lmhead": "gpt2",
    "yi": "llama",
}


# Types whose files name a class of another.
_BORROWED = {("exaone", "llama"), ("internlm3", "llama")}


def is_class_of(of_class: str, model_type: str) -> bool:
    """Whether files of a type may name a class of another: both are of one shape."""
    return _where(of_class) == _where(model_type) or (model_type, of_class) in _BORROWED


def known_type(name: str) -> str | None:
    """The type that a name, written in whatever way, is: of a family or not. None: unknown."""
    key = folded(name)
    return _BY_FOLDED.get(key) or _CLASSES.get(key) or _BY_FOLDED.get(f"{key}text")


def family_of(model_type: str) -> type[Family] | None:
    """The family of a type; None: none has its shape."""
    where = _where(model_type)
    return None if where is None else _loaded(where)


def _where(model_type: str) -> str | None:
    return FAMILIES.get(TEXT_PARTS.get(model_type, model_type))


@cache
def _loaded(where: str) -> type[Family]:
    file, name = where.split(".")
    family: type[Family] = getattr(import_module(f"{__package__}.{file}"), name)
    return family
