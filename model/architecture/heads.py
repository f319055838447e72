"""What a model ends in, by the class that `architectures` names: a vocabulary, classes, or nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from moemodel.model.architecture.families import TEXT_PARTS, UNSUPPORTED, family_of, folded, is_class_of, known_type
from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.shown import shown

_VOCABULARY = ("ModelForCausalLM", "ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "WithLMHeadModel")
_SEQUENCE, _TOKEN, _SPAN = "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"
_OF_CLASSES = (_SEQUENCE, _TOKEN, _SPAN)
_BARE = ("TextModel", "Model")
_LAST_WORDS = (*_VOCABULARY, *_OF_CLASSES, *_BARE)
_ENDINGS = re.compile(f"(?P<stem>.+?)(?P<last>{'|'.join(_LAST_WORDS)})")
_SPAN_OUTPUTS = 2  # where an answer begins, and where it ends
# As published reward models have, whose files say nothing (Llama 3 8B's: 7,504,928,768 parameters); transformers 5.24,
# configuration_utils.py, PreTrainedConfig.num_labels, would make it two.
_UNSTATED_LABELS = 1


@dataclass(frozen=True, kw_only=True)
class Head:
    """The end of a model.

    Attributes:
        kind: `vocabulary`, `classes`, or `none`.
        classes: outputs, where there are classes.
        bias: whether these have biases.
        notes: what a reader has to know of it.
    """

    kind: str = "vocabulary"
    classes: int = 0
    bias: bool = False
    notes: tuple[str, ...] = ()

    def on(self, architecture: Architecture) -> Architecture:
        """The architecture with this end."""
        notes = (*architecture.notes, *self.notes)
        if self.kind == "vocabulary":
            return replace(architecture, notes=notes)
        bare = replace(architecture, tied=False, multi_token=(), notes=notes)
        if self.kind == "none":
            return replace(bare, has_head=False, head_bias=False)
        return replace(bare, classes=self.classes, head_bias=self.bias)


def head_of(config: Mapping[str, Any], model_type: str, *, around: Mapping[str, Any] | None = None) -> Head:
    """The end that a file's `architectures` states; a vocabulary where it states none.

    Args:
        config: the language model's keys.
        model_type: the type that it is read as.
        around: the file, where these keys have an object of their own. Its class has the head.

    Raises:
        ValueError: the class is of another type, or ends in what this package doesn't know.
    """
    own = _classes(config)
    if around is not None:
        outer = _classes(around)
        match = _ENDINGS.fullmatch(outer[0]) if outer else None
        if match is not None and (match["last"] in _OF_CLASSES or not own):
            if own and (inner := _ENDINGS.fullmatch(own[0])):
                _class_notes(own[0], inner["stem"], model_type)
            known = match["last"] not in _BARE or known_type(match["stem"]) is not None
            return _head(match["last"], outer[0], {**around, **config}, model_type, ()) if known else Head()
    if not own:
        return Head()
    name = own[0]
    match = _ENDINGS.fullmatch(name)
    if match is None:
        raise ValueError(
            f"architectures: found {shown(name)}, of an unknown head; allowed: {', '.join(_LAST_WORDS)} at its end"
        )
    if match["last"] in _BARE and known_type(match["stem"]) is None and folded(match["stem"]) != folded(model_type):
        raise ValueError(
            f"architectures: found {shown(name)}, of an unknown head; allowed: a class of model_type {model_type}"
        )
    notes = _class_notes(name, match["stem"], model_type)
    if len(set(own)) > 1:
        notes += (f"architectures names {len(own)} classes; the first is read, {shown(name)}.",)
    return _head(match["last"], name, config, model_type, notes)


def _classes(config: Mapping[str, Any]) -> list[str]:
    """Names of the classes that a file says it is of."""
    found = config.get("architectures")
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"architectures: found {shown(found)}; allowed: a list of names of classes")
    return found


def _class_notes(name: str, stem: str, model_type: str) -> tuple[str, ...]:
    """Of the class: that it is of no known type.

    Raises:
        ValueError: it is of another shape than the type that the file states.
    """
    of_class = known_type(stem)
    if of_class is None:
        if folded(stem) == folded(model_type):
            return ()
        return (
            f"architectures names {shown(name)}, a class that is not known; model_type {model_type} says the shape.",
        )
    if of_class in UNSUPPORTED:
        raise ValueError(
            f"architectures: found {shown(name)}, of type {of_class}, while model_type is {model_type!r}. Such models "
            f"have {UNSUPPORTED[of_class]}, which this package doesn't model"
        )
    if is_class_of(of_class, model_type):
        return ()
    raise ValueError(
        f"architectures: found {shown(name)}, while model_type is {model_type!r}, which has another shape; allowed: "
        f"model_type {TEXT_PARTS.get(of_class, of_class)!r}, or a class of {model_type}"
    )


def _head(last: str, name: str, config: Mapping[str, Any], model_type: str, notes: tuple[str, ...]) -> Head:
    if last in _VOCABULARY:
        return Head(notes=notes)
    family = family_of(model_type)
    if family is not None and family.ends_in_vocabulary:
        raise ValueError(f"architectures: found {shown(name)}; of {model_type}, allowed: a vocabulary head")
    if last in _BARE:
        return Head(kind="none", notes=(*notes, "The model ends without a head, as its class in architectures does."))
    outputs, said = (_SPAN_OUTPUTS, ()) if last == _SPAN else _labels(config)
    return Head(
        kind="classes",
        classes=outputs,
        bias=last != _SEQUENCE,
        notes=(
            *notes,
            *said,
            f"The model ends in {outputs} output{'s' * (outputs != 1)} a token, not in a vocabulary.",
        ),
    )


def _labels(config: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """How many classes there are, and a note where the file doesn't say."""
    stated = config.get("num_labels")
    if stated is None and isinstance(config.get("id2label"), dict):
        stated = len(config["id2label"])
    if stated is None:
        return _UNSTATED_LABELS, (
            "The file states no num_labels or id2label; one output is counted (transformers would make it two).",
        )
    if isinstance(stated, bool) or not isinstance(stated, int) or not 0 < stated < 2**31:
        raise ValueError(f"num_labels: found {shown(stated)}; allowed: a number of classes from 1 on")
    return stated, ()
