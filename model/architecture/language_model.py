"""The language model that a configuration describes: its type, its family, and the object that holds its keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moemodel.model.architecture.families import FAMILIES, TEXT_PARTS, UNSUPPORTED, family_of, folded, known_type
from moemodel.model.architecture.family import Family
from moemodel.model.architecture.keys import check_keys
from moemodel.model.core.shown import shown

# Where models of images, sound or video keep their language model.
_PLACES = ("text_config", "llm_config", "language_config", "language_model_config", "thinker_config")

# Defaults of `transformers` 5.24 for sizes: a language model inside another is written without the values that are its
# class's defaults.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "llama4_text": {
        "vocab_size": 202048,
        "hidden_size": 5120,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_local_experts": 16,
    },
    "mistral": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "qwen2": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """What of a file describes its language model.

    Attributes:
        model_type, family: as what it is read.
        config: its keys.
        is_nested: whether they have an object of their own.
        notes: what a reader has to know: what is left out, what is not stated.
    """

    model_type: str
    family: type[Family]
    config: dict[str, Any]
    is_nested: bool = False
    notes: tuple[str, ...] = ()


def language_model(config: Mapping[str, Any]) -> LanguageModel:
    """The language model of a file.

    Raises:
        ValueError: its type is unknown, or known to have what no family here has; or keys around it are.
    """
    outer = _type(config, "model_type")
    place = next((key for key in _PLACES if isinstance(config.get(key), dict)), None)
    if place is None:
        return _flat(config, outer)
    if outer in FAMILIES:
        raise ValueError(
            f"{place}: found an object of keys in a file of model_type {shown(outer)}, which has none; remove one"
        )
    inner = config[place]
    if "model_type" not in inner and any(key in inner for key in _PLACES):  # speech models: thinker_config.text_config
        inner, place = next((inner[key], f"{place}.{key}") for key in _PLACES if isinstance(inner.get(key), dict))
    else:
        deeper = next((key for key in _PLACES if isinstance(inner.get(key), dict)), None)
        if deeper is not None:
            inner, place = inner[deeper], f"{place}.{deeper}"
    if "model_type" not in inner:
        raise ValueError(f"the key '{place}.model_type' is missing; allowed: {', '.join(sorted(FAMILIES))}")
    model_type = _type(inner, f"{place}.model_type")
    return _nested(config, dict(inner), place=place, outer=outer, model_type=model_type)


def _flat(config: Mapping[str, Any], model_type: str) -> LanguageModel:
    """Of a file whose keys stand beside each other."""
    if folded(model_type) == "git" and config.get("residual_moe"):  # Grok-2's file says so
        own = {key: value for key, value in config.items() if key != "architectures"}  # Grok-1's class
        return LanguageModel(model_type="grok-2", family=_family("grok-2", "model_type"), config=own)
    return LanguageModel(model_type=model_type, family=_family(model_type, "model_type"), config=dict(config))


def _nested(
    config: Mapping[str, Any], inner: dict[str, Any], *, place: str, outer: str, model_type: str
) -> LanguageModel:
    """Of an object inside a file; what stands around it is looked at too."""
    family = _family(model_type, f"{place}.model_type")
    read_as = TEXT_PARTS.get(model_type, model_type)
    if inner.get("tie_word_embeddings") is None and config.get("tie_word_embeddings") is not None:
        inner["tie_word_embeddings"] = config["tie_word_embeddings"]
    missing = {key: value for key, value in _DEFAULTS.get(read_as, {}).items() if key not in inner}
    around = {key: value for key, value in config.items() if key not in (*_PLACES, "tie_word_embeddings")}
    notes = [f"model_type {shown(outer)}: its language model alone is described ({place}, a {model_type})."]
    if missing:
        stated = ", ".join(f"{key} {value}" for key, value in missing.items())
        notes.append(f"{place} leaves out what is its class's default in transformers: {stated}.")
    return LanguageModel(
        model_type=model_type,
        family=family,
        config=missing | inner,
        is_nested=True,
        notes=(*notes, *check_keys(frozenset(), around, outer, around=True)),
    )


def _type(config: Mapping[str, Any], key: str) -> str:
    found = config["model_type"]
    if not isinstance(found, str):
        raise ValueError(  # noqa: TRY004 - pydantic and this package's own checks say it so
            f"{key}: found {shown(found)}; allowed: {', '.join(sorted(FAMILIES))}"
        )
    return found


def _family(model_type: str, key: str) -> type[Family]:
    """The family of a type.

    Raises:
        ValueError: there is none.
    """
    family = family_of(model_type)
    if family is not None:
        return family
    known = known_type(model_type)
    if known in UNSUPPORTED:
        raise ValueError(
            f"{key}: found {shown(model_type)}. Such models have {UNSUPPORTED[known]}, which this package doesn't "
            "model; no other model_type would give their counts"
        )
    alike = f"; did you mean {known!r}?" if known is not None else ""
    raise ValueError(f"{key}: found {shown(model_type)}; allowed: {', '.join(sorted(FAMILIES))}{alike}")
