"""Keys of a configuration that its family doesn't read: harmless, of a structure that the family lacks, or unknown.

Every key is one of: read by the family; harmless (it changes neither shape nor work to speak of, by the reason below);
of a structure that the family doesn't have (refused, while its value switches it on); of another file's business
(named in a note); or unknown (named in a note).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import AliasChoices

from moemodel.model.architecture.family import OTHER_LAYERS, Family
from moemodel.model.core.shown import shortened, shown

# Why keys change neither a model's shape nor its work to speak of, and which: patterns of
# whole keys.
HARMLESS: dict[str, str] = {
    "what the file is about": r"""
        _.* architectures auto_map base_model.* classifier_bias custom_pipelines? finetuning_task id2label
        is_decoder is_llama_config label2id language library_name license model_name model_type name_or_path
        num_labels output_(attentions|hidden_states|past) problem_type return_dict.* summary_.*
        task_specific_params text_model_type tf_legacy_loss tokenizer_.* torchscript transformers_version
        unsloth_.* use_bfloat16
    """,
    "types of the numbers in the file": r"""
        .*_cache_dtype .*_fp32.* .*_in_fp32 bf16 dtype fp16 fp32 params_dtype residual_dtype skip_bias_add.*
        torch_dtype
    """,
    "which tokens mean what": r"""
        (bos|eos|pad|unk|sep|cls|eod)_token
        (image|video|audio|ignore|im_start|im_end)_(token|index|placeholder).* .*_token_(id|index)s?
        (im|text|mask)_.*_id media_placeholder.* n_special org_vocab_size video_placeholder vocab_type
    """,
    "initial values": r"""
        .*init_(std|method|device|scale|config|range|std_factor).* .*initializer.* embedding_init_std
        init_device init_std initializer_factor mup_.* rescale_prenorm_residual use_mup verbose
    """,
    "constants of norms, scores and activations": r"""
        (.*_)?(eps|epsilon) .*_multiplier(_scale)? .*_scalar .*softcap.* apply_query_key_layer_scaling
        apply_residual_connection_post_layernorm attention_scaling attention_value_scale attn_scale
        attn_temperature_tuning .*_fusion clip_qkv dim_model_base embed(ding)?_scale floor_scale hidden_act_(alpha|beta)
        layer_norm_type layernorm_.*_(alpha|beta) logit_scale logits_scaling max_attn_val max_attn_value moe_norm_min
        norm_head
        norm_softmax norm_type normalization_function post_?norm reorder_and_upcast_attn
        scale_(emb|depth|attn_weights|embedding) scale_attention.* scale_attn.* scale_decoder_outputs
        slow_but_exact softmax_scale swiglu_(alpha|limit) use_ghostnorm use_logn_attn use_rmsnorm
    """,
    "positions without parameters": r"""
        .*_rope .*_rope_.* .*alibi.* attn_uses_sequence_id initial_context_length max_model_len max_position_id
        max_seq_len(gth)?
        max_sequence_length model_max_length mrope.* n_ctx n_positions no_rope.*
        original_max_position_embeddings partial_rotary.* pos_emb.* position_embedding_type
        relative_attention_max_distance rope.* rotary.* seq_len seq_length sinusoidal_pos_embds use_alibi
        use_dynamic_ntk use_rotary.*
    """,
    "dropout, which a framework has or has not": r"""
        .*(dropout|pdrop).* .*_drop .*drop_rate .*jitter.* .*noise.* layerdrop
    """,
    "training of routers": r"""
        .*aux_loss.* .*moe_(loss|router_(dtype|act|score).*|aux.*|gate.*) .*router_(aux|z)_.* add_router_probs
        aux_.* batch_prioritized.* expert_capacity group_limited_greedy moe_drop_tokens moe_expert_capacity.*
        moe_group_score moe_layer_recompute moe_normalize.* moe_random_routing_dropped_token moe_renorm.*
        moe_router_.* moe_use_aux_free n_group norm_min norm_topk_prob normalize_expert_weights
        output_router_logits routed_scaling_factor router_bias_update.* router_dtype router_ignore_padding.*
        router_load_balancing.* router_scaling_factor router_z_loss.* score_function scoring_func
        second_expert_policy seq_aux topk_(group|method) use_expert_bias
    """,
    "how a program runs it": r"""
        _?attn_implementation attn_backend attn_impl chunk_size_feed_forward ep_size flash_attn.* fuse_.*
        fused_.* gradient_checkpointing.* inference_.* logits_to_keep moe_shared_expert_overlap
        num_logits_to_keep onnx_safe parallel_.*_size pretraining_tp sequence_parallel.* softmax_precision
        tensor_parallel.* tp_size use_cache use_cache_quantization use_custom_.* use_deterministic.*
        use_flash_attention.* use_flash_attn.* use_fused.* use_mamba_kernels use_triton.* use_unpadded
        validate_runner_input
    """,
    "generation of text": r"""
        bad_words_ids begin_suppress_tokens cache_implementation chat_format diversity_penalty do_sample
        early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_.* generation_config
        is_long_.* length_penalty max_length max_new_tokens min_length no_repeat_ngram_size num_beam_groups
        num_beams num_return_sequences prefix remove_invalid_values repetition_penalty suppress_tokens
        temperature top_[kp] typical_p use_long_context
    """,
    "tying, which T5 and its like state twice": r"""
        tie_encoder_decoder tie_weights
    """,
    "windows, of which other keys say that there are none": r"""
        max_window_layers
    """,
}


@dataclass(frozen=True)
class _Keys:
    """Names and patterns of keys, with spaces between. Most keys are a name: patterns are compiled when one is not."""

    text: str

    def __contains__(self, key: str) -> bool:
        return key in self._names or self._patterns.fullmatch(key) is not None

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(word for word in self.text.split() if word.isidentifier())

    @cached_property
    def _patterns(self) -> re.Pattern[str]:
        return re.compile("|".join(f"(?:{word})" for word in self.text.split() if not word.isidentifier()))


_HARMLESS = _Keys(" ".join(HARMLESS.values()))

_TAKES_AWAY = re.compile(r"bias|norm|gate|glu|causal|scale|affine|tie|qk")
_MOST_LISTED = 20  # keys in one note
_OFF: tuple[object, ...] = (None, False, 0, "", [], {})


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A structure that keys switch on.

    Attributes:
        keys: pattern of its keys.
        what: the structure.
        instead: families that have it, if any do.
        neutral: a value that leaves it off, beside none, false and zero.
        on: the one value that switches it on, where only one does.
    """

    keys: str
    what: str
    instead: str = ""
    neutral: object = None
    on: object = None

    def is_on(self, value: object) -> bool:
        """Whether a value of one of its keys switches it on."""
        values = value if isinstance(value, list) else [value]
        if self.on is not None:
            return any(each == self.on for each in values)
        return any(each not in _OFF and each != self.neutral for each in values)


STRUCTURES = (
    Structure(
        keys=r"index(er)?_.*|dsa_.*|nsa_.*|moba_.*|sparse_attention.*|use_sparse_attention",
        what="sparse attention, whose indexer chooses keys",
    ),
    Structure(
        keys=r"mamba_.*|ssm_.*|hybrid_override_pattern|layers_block_type|attn_layer_(period|offset|indices)|state_size",
        what="Mamba (state-space) layers",
    ),
    Structure(
        keys=r"linear_(attn_config|num_(key|value)_heads|(key|value)_head_dim|conv_kernel_dim)|full_attention_interval",
        what="gated DeltaNet (linear attention)",
    ),
    Structure(keys=r"lightning.*", what="lightning attention (linear attention)"),
    Structure(keys=r"attn_type_list", what="lightning attention (linear attention)", on=0),  # MiniMax; 1: softmax
    Structure(keys=r"conv_L_cache|full_attn_idxs", what="short convolutions in place of attention"),
    Structure(keys=r"hc_.*|.*hyper_connection.*|mhc_.*", what="hyper-connections"),
    Structure(keys=r"compress_.*|o_lora_rank|o_groups|num_hash_layers", what="compressed sparse attention"),
    Structure(
        keys=r"use_cla|num_kv_shared_layers|use_yoco|kv_sharing.*", what="layers that share keys and values (CLA)"
    ),
    Structure(
        keys=r"residual_moe|parallel_attn_mlp_res|use_residual|enable_moe_block",
        what="a dense block beside the experts",
    ),
    Structure(keys=r"moe_latent_size", what="experts in a latent space"),
    Structure(
        keys=r"hidden_size_per_layer_input|altup_.*|laurel_rank", what="per-layer embeddings and alternating updates"
    ),
    Structure(
        keys=r"add_cross_attention|cross_attention_(layers|hidden_size)|is_encoder_decoder",
        what="cross attention",
        instead="t5",
    ),
    Structure(keys=r"num_loops|total_ut_steps|mean_recurrence|num_recurrent_.*", what="layers that run several times"),
    Structure(keys=r"zero_expert_num", what="experts that compute nothing"),
    Structure(keys=r"attention_k_eq_v", what="layers whose values are their keys"),
    Structure(
        keys=r"attention_types|blocksparse_.*|block_sparse.*|attention_window", what="local or block-sparse attention"
    ),
    Structure(keys=r"pruned_heads", what="pruned heads"),
    Structure(keys=r"attention_chunk_size", what="attention in chunks", instead="llama4_text"),
    Structure(keys=r"use_mla", what="latent attention", instead="deepseek_v3"),
    Structure(
        keys=r"(kv|q)_lora_rank|qk_(rope|nope)_head_dim", what="latent attention", instead="deepseek_v2, deepseek_v3"
    ),
    Structure(keys=r"v_head_dim", what="values of another width than keys", instead="deepseek_v3, mimo_v2_flash"),
    Structure(
        keys=r"(moe_)?num_(local_|routed_)?experts|n_routed_experts|moe_num_experts|n_experts|num_moe_experts|expert_num",
        what="routed experts",
        instead="mixtral, qwen3_moe, deepseek, glm4_moe",
        neutral=1,
    ),
    Structure(
        keys=r"n_shared_experts?|num_shared_experts?|moe_num_shared_experts|(moe_)?shared_(expert_)?intermediate_size",
        what="experts that every token passes",
        instead="qwen2_moe, glm4_moe, deepseek_v3",
    ),
    Structure(
        keys=r"first_k_dense_replace|mlp_only_layers|num_dense_layers|mlp_layer_types|moe_layers|expert_layer_offset",
        what="dense layers among sparse ones",
        instead="qwen3_moe, glm4_moe, deepseek_v3",
    ),
    Structure(
        keys=r"moe_layer_(freq|frequency|interval)|interleave_moe_layer_step|decoder_sparse_step|expert_layer_period"
        r"|moe_every_k_layers|moe_layer_step",
        what="experts in every so many-th layer",
        instead="qwen3_moe, ernie4_5_moe, llama4_text",
        neutral=1,
    ),
    Structure(keys=r"sinks|use_sinks?|add_.*_sink_bias", what="attention sinks", instead="gpt_oss"),
)

# Of what reads images, sound or video.
_SENSES = _Keys(r"""
    anyres_.* num_media_embeds .*_thumbnail .*audio_config .*encoder_config .*image_.* .*projector.*
    .*spatial_conv_size .*speech_config
    .*vision_config .*visual .*visual_config audio_.* candidate_resolutions code2wav_config deepstack_.*
    downsample_ratio dynamic_image_size enable_(audio_output|talker) force_image_size fullatt_block_indexes
    global_view_pos image_.* img_.* max_dynamic_patch min_dynamic_patch mm_.* multimodal_.* pad2square
    patch_size pixel_.* ps_version select_layer spatial_merge_size talker_config template tile_tag
    token2wav_config use_backbone_lora use_im.* use_llm_lora use_unified_vision_chunk video_.* vision_.* vit_.*
""")
_LEFT_OUT = "{keys}: what reads images, sound or video is left out of counts and predictions."
# Keys that mean something, but nothing that counts and times rest on; what to say of them.
_NOTED = (
    (
        _Keys(r"quantization_config quantization compression_config expert_dtype bnb_.* quant_.*"),
        "{keys}: the file's weights are quantized. They are counted and trained here in the plan's precision.",
    ),
    (_SENSES, _LEFT_OUT),
    (
        _Keys(r"mtp_.* use_mtp num_mtp_.* num_nextn_predict_layers .*multi_token.*"),
        "{keys}: multi-token prediction is not part of the model here.",
    ),
    (
        _Keys(r"sliding_window.* use_sliding_window layer_types window_size"),
        "{keys}: models of this type have no windows in transformers; attention is counted as full.",
    ),
)


def keys_read(family: type[Family]) -> frozenset[str]:
    """Names of all keys that a family reads, or knows to change nothing."""
    found = set(family.ignored)
    for name, field in family.model_fields.items():
        alias = field.validation_alias
        if isinstance(alias, AliasChoices):
            found |= {str(choice) for choice in alias.choices}
        else:
            found.add(str(alias) if alias is not None else name)
    return frozenset(found)


def check_aliases(family: type[Family], config: Mapping[str, Any]) -> None:
    """Refuse a value that is stated twice, differently.

    Raises:
        ValueError: it is.
    """
    for field in family.model_fields.values():
        alias = field.validation_alias
        if not isinstance(alias, AliasChoices) or "hidden_act" in alias.choices:  # of which some files have two
            continue
        stated = {str(key): config[str(key)] for key in alias.choices if config.get(str(key)) is not None}
        if len({repr(value) for value in stated.values()}) > 1:
            raise ValueError(
                f"{' and '.join(f'{key} {shown(value)}' for key, value in stated.items())} differ; keep one"
            )


def check_keys(
    read: frozenset[str], config: Mapping[str, Any], model_type: str, *, around: bool = False
) -> tuple[str, ...]:
    """Notes on the keys that a family doesn't read.

    Args:
        read: keys that it reads (`keys_read`).
        config: the file.
        model_type: what the file calls the family.
        around: these keys stand around a language model, which has its own.

    Raises:
        ValueError: keys switch on a structure that the family doesn't have.
    """
    rest = {key: value for key, value in config.items() if key not in read and value is not None}
    _refuse_structures(rest, model_type)
    named: dict[str, list[str]] = {}
    unknown = []
    for key, value in rest.items():
        if any(re.fullmatch(structure.keys, key) for structure in STRUCTURES):
            continue  # switched off
        if key in _HARMLESS:
            continue
        message = next((message for keys, message in _NOTED if key in keys), None)
        if around and isinstance(value, dict):
            message = _LEFT_OUT
        if message is None and not _is_off(key, value):
            unknown.append(f"{_key(key)} ({shown(value)})")
        elif (
            message is not None
            and value not in _OFF
            and not (isinstance(value, list) and set(map(str, value)) == {"full_attention"})
        ):
            named.setdefault(message, []).append(_key(key))
    notes = [message.format(keys=_listed(keys)) for message, keys in named.items()]
    if unknown and around:
        notes.append(f"Around the language model, and not read: {_listed(unknown)}.")
    elif unknown:
        notes.append(
            f"Not read, since {model_type} has no such key: {_listed(unknown)}. If one of them changes the model's "
            "shape or work, counts and predictions are off by it."
        )
    return tuple(notes)


def _is_off(key: str, value: object) -> bool:
    """Whether an unknown key adds nothing; false may take away what a family has where its name says so."""
    return value in _OFF and (value is not False or not _TAKES_AWAY.search(key))


def _refuse_structures(rest: Mapping[str, Any], model_type: str) -> None:
    """Refuse all structures that are switched on."""
    found: dict[str, tuple[Structure, list[str]]] = {}
    for key, structure in _switched_on(rest):
        found.setdefault(structure.what, (structure, []))[1].append(f"{_key(key)} {shown(rest[key])}")
    if not found:
        return
    said = [
        f"{_listed(keys)}: {what}" + (f" (as in {structure.instead})" if structure.instead else "")
        for what, (structure, keys) in found.items()
    ]
    raise ValueError(
        f"model_type {model_type!r} has no such structure: {'; '.join(said)}. Set the model_type that the model is of, "
        "or remove the keys if the model doesn't have it"
    )


def _switched_on(rest: Mapping[str, Any]) -> Iterator[tuple[str, Structure]]:
    for key, value in rest.items():
        if key == "layer_types" and isinstance(value, list):
            for kind in sorted({str(each) for each in value} & set(OTHER_LAYERS)):
                yield key, Structure(keys=key, what=OTHER_LAYERS[kind])
        for structure in STRUCTURES:
            if re.fullmatch(structure.keys, key) and structure.is_on(value):
                yield key, structure


def _listed(keys: Sequence[str]) -> str:
    """Keys of a user's, in a sentence: no more than a reader reads."""
    more = f", and {len(keys) - _MOST_LISTED} more" if len(keys) > _MOST_LISTED else ""
    return ", ".join(keys[:_MOST_LISTED]) + more


def _key(key: str) -> str:
    """A key of a user's, so that a terminal obeys nothing in it."""
    return shortened(key) if key.isprintable() else shown(key)
