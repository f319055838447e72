"""Published models that no preset has, as the `config.json` that a user would name in a plan.

Each is written to a folder that lasts as long as the process.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

_Config = Mapping[str, Any]

# meta-llama/Llama-3.1-405B, config.json (Grattafiori et al. 2024, table 3)
_LLAMA_405B: _Config = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 16384,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "intermediate_size": 53248,
    "max_position_embeddings": 131072,
}
# meta-llama/Llama-2-70b, config.json (Touvron et al. 2023, table 1)
_LLAMA_2_70B: _Config = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "max_position_embeddings": 8192,
}
# Qwen/Qwen3-235B-A22B, config.json
_QWEN_235B: _Config = {
    "model_type": "qwen3_moe",
    "vocab_size": 151936,
    "hidden_size": 4096,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1536,
    "intermediate_size": 12288,
    "tie_word_embeddings": False,
}
# openai/gpt-oss-120b, config.json
_GPT_OSS: _Config = {
    "model_type": "gpt_oss",
    "vocab_size": 201088,
    "hidden_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "attention_bias": True,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "intermediate_size": 2880,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "tie_word_embeddings": False,
}
# GPT-3 of MLPerf Training: 50,257 words padded to 51,200 (training_policies; config_common.sh of the submissions)
_GPT3_MLPERF: _Config = {
    "model_type": "gpt2",
    "vocab_size": 51200,
    "n_embd": 12288,
    "n_layer": 96,
    "n_head": 96,
    "n_positions": 2048,
}
# d_model, n_heads, n_layers of llm-foundry's scripts/train/yamls/pretrain
_MPT = {"125m": (768, 12, 12), "350m": (1024, 16, 24), "760m": (1536, 12, 24), "1b": (2048, 16, 24)}
_MPT |= {
    "3b": (2560, 20, 32),
    "7b": (4096, 32, 32),
    "13b": (5120, 40, 40),
    "30b": (7168, 56, 48),
    "70b": (8192, 64, 80),
}

# moonshotai/Kimi-K2-Base, config.json
_KIMI_K2: _Config = {
    "model_type": "kimi_k2",
    "vocab_size": 163840,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 384,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 1,
    "tie_word_embeddings": False,
}
# nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16, config.json, as Megatron-Bridge states it too
# (recipes/nemotronh/h100/nemotron_3_nano.py)
_NEMOTRON_NANO: _Config = {
    "model_type": "nemotron_h",
    "vocab_size": 131072,
    "hidden_size": 2688,
    "num_hidden_layers": 52,
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "intermediate_size": 1856,
    "mamba_num_heads": 64,
    "mamba_head_dim": 64,
    "ssm_state_size": 128,
    "n_groups": 8,
    "n_routed_experts": 128,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712,
    "tie_word_embeddings": False,
}
# Nemotron 3 Super, as Megatron-LM's test of a release states it (nemotron3_super_release_gb200)
_NEMOTRON_SUPER: _Config = {
    **_NEMOTRON_NANO,
    "hidden_size": 4096,
    "num_hidden_layers": 88,
    "hybrid_override_pattern": (
        "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME"
    ),
    "intermediate_size": 2688,
    "mamba_num_heads": 128,
    "n_routed_experts": 512,
    "num_experts_per_tok": 22,
    "moe_intermediate_size": 2688,
    "moe_shared_expert_intermediate_size": 5376,
    "moe_latent_size": 1024,
    "num_nextn_predict_layers": 2,
}


def _gpt2(hidden: int, layers: int, heads: int) -> _Config:
    """As Sailor's Megatron-DeepSpeed builds them: a head of its own, GPT-2's vocabulary padded for tp 4."""
    shape = {"n_embd": hidden, "n_layer": layers, "n_head": heads, "n_positions": 2048, "tie_word_embeddings": False}
    return {"model_type": "gpt2", "vocab_size": 50688} | shape


_CONFIGS: dict[str, _Config] = {
    "llama-3.1-405b": _LLAMA_405B,
    "llama-2-70b": _LLAMA_2_70B,
    "qwen3-235b-a22b": _QWEN_235B,
    "gpt-oss-120b": _GPT_OSS,
    "gpt3-mlperf": _GPT3_MLPERF,
    "kimi-k2": _KIMI_K2,
    "nemotron-3-nano": _NEMOTRON_NANO,
    "nemotron-3-super": _NEMOTRON_SUPER,
    "gpt_neo_2.7b": _gpt2(2560, 32, 20),  # EleutherAI/gpt-neo-2.7B, config.json
}


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="public-runs-")


def config_file(name: str, config: _Config) -> str:
    """Path of a model's file, written once."""
    path = Path(_folder().name) / f"{name}.json"
    if not path.exists():
        path.write_text(json.dumps(config), encoding="utf-8")
    return str(path)


def model(name: str) -> str:
    """What a plan calls a model: a preset's name, or the path of its file."""
    return config_file(name, _CONFIGS[name]) if name in _CONFIGS else name


def mpt(size: str, positions: int) -> str | None:
    """A model of llm-foundry: GPT-2's shape, of its vocabulary padded to 50,368; None: of no size that is known."""
    if size not in _MPT:
        return None
    hidden, heads, layers = _MPT[size]
    config = {"model_type": "gpt2", "vocab_size": 50368, "n_embd": hidden, "n_layer": layers, "n_head": heads}
    return config_file(f"mpt-{size}-{positions}", config | {"n_positions": positions})


def llama(*, hidden: int, layers: int, heads: int, kv_heads: int, width: int, vocab: int, tied: bool) -> str:
    """A model of Llama's shape."""
    config = {
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": width,
        "tie_word_embeddings": tied,
    }
    return config_file(f"llama-{hidden}-{layers}-{heads}-{kv_heads}-{width}-{vocab}-{tied}", config)
