"""Files of command-line arguments: what a launch script, a text, a YAML or JSON file gives a training program.

Nothing in them is run. Of a script, every `--name value` counts, in the order of the file, later ones over earlier
ones; variables that it sets itself (`TP=8`) are put in.

    launch.sh, .txt    --tensor-model-parallel-size ${TP} --swiglu
    .yaml, .json       names and values, under MODEL_ARGS or on their own
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moemodel.model.core.documents import load_json, read_text
from moemodel.model.core.errors import InputError
from moemodel.model.core.shown import shown
from moemodel.model.core.yaml_text import yaml_data

_ASSIGNED = re.compile(r"^\s*(?:export\s+)?([A-Za-z_]\w*)=([^\s(]*)", re.MULTILINE)
_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)(?::[-=]([^}]*))?\}?")
_UNDER = "MODEL_ARGS"


def read_arguments(path: Path) -> dict[str, Any]:
    """Arguments in a file, name -> value; True for a flag.

    Raises:
        InputError: there is no such file, it holds none, or a value is a variable that the file does not set.
    """
    if path.suffix in (".yaml", ".yml", ".json"):
        is_json = path.suffix == ".json"
        return _of_document(path, load_json(path) if is_json else yaml_data(read_text(path), str(path))[0])
    try:
        found = arguments_of(read_text(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if not found:
        raise InputError(
            f"{path}: found no argument; allowed: a text with --name value, or YAML or JSON of names and values"
        )
    return found


def names_bert(path: Path) -> bool:
    """Whether a launch script starts Megatron's training of BERT."""
    return path.suffix not in (".yaml", ".yml", ".json") and "pretrain_bert" in read_text(path)


def _of_document(path: Path, document: Any) -> dict[str, Any]:
    inner = document.get(_UNDER, document) if isinstance(document, Mapping) else document
    if not isinstance(inner, Mapping) or not inner:
        raise InputError(f"{path}: found {type(inner).__name__}; allowed: names and values of arguments")
    return {str(name): value for name, value in inner.items()}


def arguments_of(text: str) -> dict[str, Any]:
    """Arguments in a text.

    Raises:
        InputError: quotes that don't close, or a variable that the text does not set.
    """
    variables: dict[str, str] = {}
    for name, value in _ASSIGNED.findall(text):  # in order: each may name those before it, or itself with a default
        variables[name] = _put_in(value.strip("'\""), variables)
    try:
        words = shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise InputError(f"found a text that no shell would take ({error}); allowed: quotes that close") from None
    return dict(_pairs(list(_bare(words)), variables))


def _bare(words: list[str]) -> Iterator[str]:
    """Words, those of arrays and of quoted lists of arguments among them."""
    for word in words:
        inner = word.split("=", 1)[1] if re.match(r"[A-Za-z_]\w*=\s*\(?\s*-{2}", word) else word
        parts = inner.split() if "--" in inner and " " in inner.strip() else [inner]
        for part in parts:
            bare = part.strip("()")
            if bare:
                yield bare


def _pairs(words: list[str], variables: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    place = 0
    while place < len(words):
        word, place = words[place], place + 1
        if not re.match(r"--[A-Za-z]", word):
            continue
        name, is_joined, value = word.partition("=")
        values = [value] if is_joined else []
        while not is_joined and place < len(words) and _is_value(words[place]):
            values.append(words[place])
            place += 1
        yield name, _resolved(name, " ".join(values), variables) if values else True


_ENDS = ("torchrun", "python", "python3", "srun", "&&", "||", "|", ";", "fi", "then", "else", "done", "EOF")


def _is_value(word: str) -> bool:
    """Whether a word belongs to the argument before it, rather than to the script around it."""
    is_ours = word.startswith("--") or word in _ENDS or "[@]" in word or "[*]" in word
    return not is_ours and re.match(r"[A-Za-z_]\w*=", word) is None


def _put_in(value: str, variables: Mapping[str, str]) -> str:
    """A value with variables of the text put in; those that it does not set stay as they are."""

    def of(match: re.Match[str]) -> str:
        return variables.get(match[1], match[2] if match[2] is not None else match[0])

    return _VARIABLE.sub(of, value)


def _resolved(name: str, value: str, variables: Mapping[str, str]) -> str:
    """A value of an argument with variables put in.

    Raises:
        InputError: one that the text does not set, in an argument that is a number.
    """
    resolved = _put_in(value, variables)
    unset = _VARIABLE.search(resolved)
    if unset and re.search(r"size|layers|heads|batch|length|experts|topk", name):
        raise InputError(f"{name}: found {shown(value)}, and nothing that sets {unset[1]}; allowed: a value")
    return resolved
