"""A model and plans so small that a processor trains them in a blink."""

from __future__ import annotations

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def small_plan(name: str, ranks: int) -> str:
    """A plan's text, on so many processors; the model is in `config.json` beside it."""
    return f"""\
name: {name}
architecture: config.json
sequence_length: 16
global_batch: 2
cluster: {{gpu: cpu, gpus: {ranks}}}
parallel: {{dp: {ranks}}}
"""
