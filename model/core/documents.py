"""The door for YAML documents: safe loading, validation by pydantic, and errors that name file, line and key."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from moemodel.model.core.errors import InputError

DocumentT = TypeVar("DocumentT", bound=BaseModel)


class Strict(BaseModel):
    """A document, or a part of one, in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, refusing a key given twice and reading 1e12 as the number that it is."""


def _unique_mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise InputError(f"line {key_node.start_mark.line + 1}: a key must be a plain name")
        if key_node.value in seen:
            line = key_node.start_mark.line + 1
            raise InputError(f"line {line}: the key {key_node.value!r} stands twice; keep one of them")
        seen.add(key_node.value)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    # YAML 1.1 wants a dot in the mantissa and a sign in the exponent; people write 1e12.
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _lines(node: yaml.Node | None, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    """Line of every key and item of a composed document, by its path."""
    if node is None:
        return {}
    lines = {path: node.start_mark.line + 1}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*path, str(key.value))
            lines |= _lines(value, place)
            lines[place] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines |= _lines(value, (*path, str(index)))
    return lines


def _allowed(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Keys allowed where an unknown one stands."""
    for step in path[:-1]:
        annotation = model.model_fields[step].annotation if step in model.model_fields else None
        nested = [a for a in (annotation, *getattr(annotation, "__args__", ())) if isinstance(a, type)]
        model = next((a for a in nested if issubclass(a, BaseModel)), model)
    return sorted(field.alias or name for name, field in model.model_fields.items())


def _keys(loc: Sequence[int | str], data: Any, error_type: str) -> tuple[str, ...]:
    """Where in a document a mistake stands: pydantic's place without the members of unions that it tried."""
    keys = []
    for index, part in enumerate(loc):
        stands = part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int)
        if stands:
            data = data[part]
        elif part != "[key]" and not (error_type == "missing" and index == len(loc) - 1):
            continue
        keys.append(str(part))
    return tuple(keys)


def describe(
    error: ValidationError, model: type[BaseModel], source: str, lines: dict[tuple[str, ...], int], data: Any
) -> str:
    """One line for each mistake in `data`: file, line, key, what was found, what is allowed."""
    out: dict[str, list[str]] = {}  # what stands before the semicolon: what may stand there
    items = [(item, _keys(item["loc"], data, item["type"])) for item in error.errors()]
    for item, path in items:
        if len(path) < len(item["loc"]) and any(other[: len(path)] == path != other for _, other in items):
            continue  # the member of a union that the document doesn't mean
        known = next((path[:n] for n in range(len(path), -1, -1) if path[:n] in lines), ())
        place = f"{source}:{lines[known]}" if known in lines else source
        key = ".".join(path) or "document"
        if item["type"] == "extra_forbidden":
            out[f"{place}: unknown key {key!r}; allowed here: {', '.join(_allowed(model, path))}"] = []
        elif item["type"] == "missing":
            out[f"{place}: the key {key!r} is missing"] = []
        elif not path:
            message = item["msg"].removeprefix("Value error, ")
            out[f"{_place(source, message, lines)}: {message}"] = []
        else:
            message = item["msg"].removeprefix("Value error, ")
            found = "" if isinstance(item["input"], dict | list) else f"found {item['input']!r}; "
            out.setdefault(f"{place}: {key}: {found}", []).append(message[0].lower() + message[1:])
    return "\n".join(place + ", or ".join(dict.fromkeys(allowed)) for place, allowed in out.items())


def _place(source: str, message: str, lines: dict[tuple[str, ...], int]) -> str:
    """Where the key stands with which a message about a whole document begins, or where the document does."""
    first = re.match(r"[\w.]+", message)
    key = tuple(first.group().strip(".").split(".")) if first else ()
    known = next((key[:n] for n in range(len(key), -1, -1) if key[:n] in lines), None)
    return source if known is None else f"{source}:{lines[known]}"


def read_text(path: Path) -> str:
    """The text of a user's file.

    Raises:
        InputError: it is missing, a folder, unreadable, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; a file is expected") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def parse_yaml(text: str, model: type[DocumentT], source: str) -> DocumentT:
    """A validated document from YAML text; `source` is what errors call it.

    Raises:
        InputError: not YAML, or not what `model` allows.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            data = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(f"{source}:{line}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not YAML: {error}") from None
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    except RecursionError:
        raise InputError(f"{source}: nested too deeply") from None
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise InputError(f"{source}: found {found}; a mapping of keys is expected")
    return _checked(data, model, source, _lines(node))


def parse_data(data: Any, model: type[DocumentT], source: str) -> DocumentT:
    """A validated document from plain data, such as a dict; `source` is what errors call it.

    Raises:
        InputError: not what `model` allows.
    """
    return _checked(data, model, source, {})


def _checked(data: Any, model: type[DocumentT], source: str, lines: dict[tuple[str, ...], int]) -> DocumentT:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InputError(describe(error, model, source, lines, data)) from None


def read_yaml(path: Path, model: type[DocumentT]) -> DocumentT:
    """A validated document from a YAML file."""
    return parse_yaml(read_text(path), model, str(path))


def read_json(path: Path, model: type[DocumentT]) -> DocumentT:
    """A validated document from a JSON file.

    Raises:
        InputError: unreadable, not JSON (the line is named), or not what `model` allows.
    """
    return parse_data(load_json(path), model, str(path))


def load_json(path: Path) -> Any:
    """What a JSON file holds, unchecked.

    Raises:
        InputError: unreadable, or not JSON (the line is named).
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply") from None
