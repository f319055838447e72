"""The torch backend's models against Hugging Face's own: same weights, same tokens, same loss and gradients.

What no time depends on is set alike: this project's norms have an epsilon of 1e-5 and its rotary base is 10,000.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers", minversion="5.0", exc_type=ImportError)

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.plan.routing import RoutingSpec
from moemodel.profiler.backends.torch_native.layer import Making
from moemodel.profiler.backends.torch_native.model import build_model

pytestmark = pytest.mark.filterwarnings("ignore")
_B, _S, _M, _V = 2, 12, 6, 96
_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_EXPERTS = {
    "vocab_size": _V,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "olmoe": _EXPERTS | {"norm_topk_prob": False, "rope_parameters": _ROPE},
    "qwen3_moe": _EXPERTS
    | {
        "norm_topk_prob": True,
        "head_dim": 8,
        "moe_intermediate_size": 24,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "rope_parameters": _ROPE,
    },
    "opt": {
        "vocab_size": _V,
        "hidden_size": 32,
        "word_embed_proj_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "max_position_embeddings": 64,
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": True,
        "dropout": 0.0,
    },
    "opt behind": {  # as OPT-350M has its norms
        "vocab_size": _V,
        "hidden_size": 32,
        "word_embed_proj_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "max_position_embeddings": 64,
        "activation_function": "relu",
        "do_layer_norm_before": False,
        "dropout": 0.0,
    },
    "switch_transformers": {
        "vocab_size": _V,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "num_experts": 4,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
        "expert_capacity": 64,
        "relative_attention_num_buckets": 8,
        "dropout_rate": 0.0,
        "router_jitter_noise": 0.0,
        "layer_norm_epsilon": 1e-5,
        "dense_act_fn": "relu",
        "tie_word_embeddings": True,
        "decoder_start_token_id": 0,
    },
}

_Rule = tuple[str, str]
_DECODER: tuple[_Rule, ...] = (
    (r"embedding_VW", "model.embed_tokens.weight"),
    (r"head_VW", "lm_head.weight"),
    (r"norm\.weight", "model.norm.weight"),
    (r"layers\.(\d+)\.norms\.0\.weight", r"model.layers.\1.input_layernorm.weight"),
    (r"layers\.(\d+)\.norms\.1\.weight", r"model.layers.\1.post_attention_layernorm.weight"),
    (r"layers\.(\d+)\.attentions\.0\.([qkvo])\.weight", r"model.layers.\1.self_attn.\2_proj.weight"),
    (r"layers\.(\d+)\.attentions\.0\.([qk])_norm\.weight", r"model.layers.\1.self_attn.\2_norm.weight"),
    (r"layers\.(\d+)\.feed_forward\.router\.weight", r"model.layers.\1.mlp.gate.weight"),
    (r"layers\.(\d+)\.feed_forward\.experts\.up_EDF", r"model.layers.\1.mlp.experts.gate_up_proj^T"),
    (r"layers\.(\d+)\.feed_forward\.experts\.down_EFD", r"model.layers.\1.mlp.experts.down_proj^T"),
)
_OPT: tuple[_Rule, ...] = (
    (r"embedding_VW", "model.decoder.embed_tokens.weight"),
    (r"position_PD", "model.decoder.embed_positions.weight"),
    (r"project_(in|out)\.weight", r"model.decoder.project_\1.weight"),
    (r"layers\.(\d+)\.norms\.0\.(\w+)", r"model.decoder.layers.\1.self_attn_layer_norm.\2"),
    (r"layers\.(\d+)\.norms\.1\.(\w+)", r"model.decoder.layers.\1.final_layer_norm.\2"),
    (r"layers\.(\d+)\.attentions\.0\.([qkv])\.(\w+)", r"model.decoder.layers.\1.self_attn.\2_proj.\3"),
    (r"layers\.(\d+)\.attentions\.0\.o\.(\w+)", r"model.decoder.layers.\1.self_attn.out_proj.\2"),
    (r"layers\.(\d+)\.feed_forward\.up\.(\w+)", r"model.decoder.layers.\1.fc1.\2"),
    (r"layers\.(\d+)\.feed_forward\.down\.(\w+)", r"model.decoder.layers.\1.fc2.\2"),
)


def _t5(ours: str, theirs: str, last: int) -> tuple[_Rule, ...]:
    """Of one stack, whose feed-forward block is a layer's sub-layer `last`."""
    at = rf"{theirs}.block.\1.layer"
    return (
        (rf"{ours}\.(\d+)\.norms\.(\d)\.weight", rf"{at}.\2.layer_norm.weight"),
        (rf"{ours}\.(\d+)\.attentions\.0\.([qkvo])\.weight", rf"{at}.0.SelfAttention.\2.weight"),
        (rf"{ours}\.(\d+)\.attentions\.1\.([qkvo])\.weight", rf"{at}.1.EncDecAttention.\2.weight"),
        (rf"{ours}\.(\d+)\.feed_forward\.up\.weight", rf"{at}.{last}.mlp.wi.weight"),
        (rf"{ours}\.(\d+)\.feed_forward\.down\.weight", rf"{at}.{last}.mlp.wo.weight"),
        (rf"{ours}\.(\d+)\.feed_forward\.router\.weight", rf"{at}.{last}.mlp.router.classifier.weight"),
        (rf"{ours}\.(\d+)\.feed_forward\.experts\.up_EDF", rf"{at}.{last}.mlp.experts.expert_*.wi.weight^T"),
        (rf"{ours}\.(\d+)\.feed_forward\.experts\.down_EFD", rf"{at}.{last}.mlp.experts.expert_*.wo.weight^T"),
    )


_SWITCH: tuple[_Rule, ...] = (
    (r"embedding_VW", "shared.weight"),
    (r"norm\.weight", "decoder.final_layer_norm.weight"),
    (r"encoder_norm\.weight", "encoder.final_layer_norm.weight"),
    (r"(en|de)coder_bias_UH", r"\1coder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
    *_t5("encoder_layers", "encoder", 1),
    *_t5("layers", "decoder", 2),
)
_RULES = {
    "olmoe": _DECODER,
    "qwen3_moe": _DECODER,
    "opt": _OPT,
    "opt behind": _OPT,
    "switch_transformers": _SWITCH,
}


def _theirs(name: str, rules: tuple[_Rule, ...], named: Callable[[str], Tensor]) -> Tensor:
    """What is called so here: `*` are the experts, one after another, `^T` is turned."""
    for ours, other in rules:
        if match := re.fullmatch(ours, name):
            source, turned, _ = match.expand(other).partition("^T")
            found = (
                torch.stack([named(source.replace("*", str(e))) for e in range(4)]) if "*" in source else named(source)
            )
            if name == "position_PD":  # `OPTLearnedPositionalEmbedding.offset`: the first position is its third row
                return found.roll(-2, 0)
            return found.transpose(-1, -2) if turned else found
    raise AssertionError(name)


def _config(kind: str) -> Any:
    return transformers.AutoConfig.for_model(kind.partition(" ")[0], **_CONFIGS[kind])


def _read(kind: str, tmp_path: Any) -> Any:
    """The configuration as this project reads it, from the file that Hugging Face writes."""
    config = _config(kind)
    config.save_pretrained(tmp_path)
    return read_architecture(tmp_path)


@pytest.mark.parametrize("kind", _CONFIGS)
def test_a_model_is_hugging_face_s(kind: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    architecture = _read(kind, tmp_path)
    # a configuration of its own: building a model changes the one that it is given
    config = _config(kind)
    auto = transformers.AutoModelForSeq2SeqLM if architecture.encoder else transformers.AutoModelForCausalLM
    theirs = auto.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.2)
    routing = RoutingSpec(normalize=_CONFIGS[kind].get("norm_topk_prob"), capacity_factor=None)
    making = Making(routing=routing)
    ours = build_model(_roomy(architecture), device="cpu", dtype=torch.float32, making=making)
    weights = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(_theirs(name, _RULES[kind], weights.__getitem__))
    ids = torch.randint(2, _V, (_B, _S + 1))  # 0 and 1 are padding in some of these
    if architecture.encoder:
        tokens, targets = ids[:, :_S], torch.randint(2, _V, (_B, _M))
        loss = theirs(input_ids=tokens, labels=targets).loss
    else:
        tokens, targets = ids[:, :-1], ids[:, 1:]
        logits = theirs(input_ids=tokens).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, _V), targets.reshape(-1))
    found = ours(tokens, targets)
    torch.testing.assert_close(found, loss, rtol=2e-5, atol=0)
    loss.backward()
    found.backward()
    largest = max(float(p.grad.norm()) for p in ours.parameters() if p.grad is not None)
    for name, parameter in ours.named_parameters():
        gradient = _theirs(name, _RULES[kind], lambda key: _gradient(weights[key]))
        assert parameter.grad is not None
        deviation = float((parameter.grad - gradient).norm()) / max(float(gradient.norm()), 1e-3 * largest)
        assert deviation < 1e-3, name


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _roomy(architecture: Any) -> Any:
    """Hugging Face's Switch drops by sequence, this project by micro-batch: none of both drops here."""

    def layers(stack: Any) -> Any:
        return tuple(
            replace(one, feed_forward=replace(one.feed_forward, capacity_factor=None))
            if hasattr(one.feed_forward, "capacity_factor")
            else one
            for one in stack
        )

    return replace(architecture, encoder=layers(architecture.encoder), decoder=layers(architecture.decoder))
