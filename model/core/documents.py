"""The door for documents: YAML and JSON read within bounds, validated by pydantic; errors name file, line and key."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from moemodel.model.core.errors import InputError
from moemodel.model.core.json_text import json_data
from moemodel.model.core.shown import shortened, shown
from moemodel.model.core.yaml_text import yaml_data

DocumentT = TypeVar("DocumentT", bound=BaseModel)

_MOST_B = 32 * 2**20  # of a file; assumed: a validation of a thousand GPUs is as long
_MOST_MISTAKES = 10  # that are listed

# Numbers as documents hold them: `true` and "64" are none.
Real = Annotated[float, Field(strict=True)]
Whole = Annotated[int, Field(strict=True)]


def switch(value: Any) -> Any:
    """True or false where text says so; else the value itself."""
    return _SWITCHES.get(value.casefold(), value) if isinstance(value, str) else value


_SWITCHES = {"yes": True, "on": True, "no": False, "off": False}  # as YAML 1.1 has them; text to `yaml_text`
Switch = Annotated[bool, BeforeValidator(switch), Field(strict=True)]


if TYPE_CHECKING:
    _Model = BaseModel
else:

    class _Door(type(BaseModel)):
        """The class of documents: a bad one that is made by its name raises the error that one that is read does."""

        def __call__(cls, *args, **values):
            with _errors_of(cls, cls.__name__, {}, values):
                return super().__call__(*args, **values)

    class _Model(BaseModel, metaclass=_Door):
        pass


class Strict(_Model):
    """A document, or a part of one, in which an unknown key is an error.

    Made by its name, by one of pydantic's `model_validate...` or by `model_copy`, a bad one raises `InputError`; so
    does a value that is set or deleted, for a document is not changed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """A document from plain data, such as a dict.

        Raises:
            InputError: not what is allowed.
        """
        with _errors_of(cls, cls.__name__, {}, obj):
            return super().model_validate(obj, **options)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """A document from JSON text.

        Raises:
            InputError: not JSON, or not what is allowed.
        """
        with _errors_of(cls, cls.__name__, {}, None):
            return super().model_validate_json(json_data, **options)

    @classmethod
    def model_validate_strings(cls, obj: Any, **options: Any) -> Self:
        """A document from plain data whose numbers are texts.

        Raises:
            InputError: not what is allowed.
        """
        with _errors_of(cls, cls.__name__, {}, obj):
            return super().model_validate_strings(obj, **options)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refused, unless it is pydantic's own.

        Raises:
            InputError: a document is not changed.
        """
        with _unchanged(self, name):
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        """Refused.

        Raises:
            InputError: a document is not changed.
        """
        with _unchanged(self, name):
            super().__delattr__(name)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy in which some values are others, checked as those of a new one are.

        Raises:
            InputError: a value or a key that is not allowed.
        """
        if not update:
            return super().model_copy(deep=deep)
        if not isinstance(update, Mapping):
            raise InputError(
                f"{type(self).__name__}: update: found {shown(update)}; a dict of names and values is expected"
            )
        given = {(info.alias or name): getattr(self, name) for name, info in type(self).model_fields.items()}
        names = {name: info.alias or name for name, info in type(self).model_fields.items()}
        checked = type(self).model_validate(given | {names.get(name, name): value for name, value in update.items()})
        if self.__pydantic_private__:
            checked.__pydantic_private__ = {**self.__pydantic_private__, **_told(checked)}
        return checked


def _told(model: BaseModel) -> dict[str, Any]:
    """Private values that a validator set."""
    return {name: value for name, value in (model.__pydantic_private__ or {}).items() if value}


def _types(annotation: Any) -> Iterator[type]:
    """The classes that an annotation is made of."""
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _types(part)


def _allowed(model: type[BaseModel], path: Sequence[str], data: Any) -> list[str]:
    """Keys allowed where an unknown one stands; of several documents that may stand there, those of the likest."""
    for step in path[:-1]:
        annotation = model.model_fields[step].annotation if step in model.model_fields else None
        data = data.get(step) if isinstance(data, Mapping) else None
        nested = [a for a in _types(annotation) if issubclass(a, BaseModel)]
        model = max(nested, key=partial(_known_keys, data), default=model)
    return sorted(field.alias or name for name, field in model.model_fields.items())


def _known_keys(data: Any, model: type[BaseModel]) -> int:
    """How many keys of a part of a document are a model's."""
    names = {field.alias or name for name, field in model.model_fields.items()}
    return len(names & data.keys()) if isinstance(data, Mapping) else 0


def _keys(loc: Sequence[int | str], data: Any, error_type: str) -> tuple[str, ...]:
    """Where in a document a mistake stands: pydantic's place without the members of unions that it tried."""
    keys = []
    for index, part in enumerate(loc):
        if isinstance(data, Mapping):
            stands = part in data
        else:
            stands = isinstance(data, list | tuple) and isinstance(part, int) and part < len(data)
        if stands:
            data = data[part]
        elif part != "[key]" and not (error_type == "missing" and index == len(loc) - 1):
            continue
        keys.append(str(part))
    return tuple(keys)


def describe(
    error: ValidationError, model: type[BaseModel], source: str, lines: dict[tuple[str, ...], int], data: Any
) -> str:
    """One line for each mistake in `data`, of many the first: file, line, key, what was found, what is allowed."""
    out: dict[str, list[str]] = {}  # what stands before the semicolon: what may stand there
    found = error.errors(include_url=False, include_context=False)
    items = [(item, _keys(item["loc"], data, item["type"])) for item in found]
    deeper = {path[:n] for _, path in items for n in range(len(path))}
    for item, path in items:
        if len(path) < len(item["loc"]) and path in deeper:
            continue  # the member of a union that the document doesn't mean
        known = next((path[:n] for n in range(len(path), -1, -1) if path[:n] in lines), ())
        place = f"{source}:{lines[known]}" if known in lines else source
        key = shortened(".".join(path)) or "document"
        if item["type"] == "extra_forbidden":
            out[f"{place}: unknown key {shown(key)}; allowed here: {', '.join(_allowed(model, path, data))}"] = []
        elif item["type"] == "missing":
            out[f"{place}: the key {shown(key)} is missing"] = []
        elif not path:
            message = item["msg"].removeprefix("Value error, ")
            out[f"{_place(source, message, lines)}: {message}"] = []
        else:
            message = item["msg"].removeprefix("Value error, ")
            seen = "" if isinstance(item["input"], dict | list) else f"found {shown(item['input'])}; "
            out.setdefault(f"{place}: {key}: {seen}", []).append(message[:1].lower() + message[1:])
    described = [place + ", or ".join(dict.fromkeys(allowed)) for place, allowed in out.items()]
    rest = len(described) - _MOST_MISTAKES
    return "\n".join([*described[:_MOST_MISTAKES], *([f"{source}: {rest:,} more mistakes"] if rest > 0 else [])])


@contextmanager
def _errors_of(
    model: type[BaseModel], source: str, lines: dict[tuple[str, ...], int], data: Any
) -> Generator[None, None, None]:
    """What pydantic finds is an `InputError` that says where."""
    try:
        yield
    except ValidationError as error:
        raise InputError(describe(error, model, source, lines, data)) from None
    except UnicodeEncodeError:
        raise InputError(f"{source}: a text holds half of a character (a lone surrogate)") from None


@contextmanager
def _unchanged(model: BaseModel, name: str) -> Generator[None, None, None]:
    """That a document is frozen is said as every other mistake is."""
    try:
        yield
    except ValidationError:
        raise InputError(
            f"{type(model).__name__}: {name}: cannot be set or deleted; make another by model_copy(update={{...}})"
        ) from None


def _place(source: str, message: str, lines: dict[tuple[str, ...], int]) -> str:
    """Where the key stands with which a message about a whole document begins, or where the document does."""
    first = re.match(r"[\w.]+", message)
    key = tuple(first.group().strip(".").split(".")) if first else ()
    known = next((key[:n] for n in range(len(key), -1, -1) if key[:n] in lines), None)
    return source if known is None else f"{source}:{lines[known]}"


def read_text(path: Path) -> str:
    """The text of a user's file.

    Raises:
        InputError: it is missing, a folder, unreadable, too large, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_B + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; a file is expected") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except ValueError:  # the path has a NUL, or half of a character
        raise InputError(f"{shown(str(path))}: no name of a file") from None
    if len(content) > _MOST_B:
        raise InputError(f"{path}: more than {_MOST_B // 2**20} MiB; allowed: less")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None


def parse_yaml(text: str, model: type[DocumentT], source: str) -> DocumentT:
    """A validated document from YAML text; `source` is what errors call it.

    Raises:
        InputError: not YAML, or not what `model` allows.
    """
    data, lines = yaml_data(text, source)
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise InputError(f"{source}: found {found}; a mapping of keys is expected")
    return _checked(data, model, source, lines)


def parse_data(data: Any, model: type[DocumentT], source: str) -> DocumentT:
    """A validated document from plain data, such as a dict; `source` is what errors call it.

    Raises:
        InputError: not what `model` allows.
    """
    return _checked(data, model, source, {})


def _checked(data: Any, model: type[DocumentT], source: str, lines: dict[tuple[str, ...], int]) -> DocumentT:
    with _errors_of(model, source, lines, data):
        return BaseModel.model_validate.__func__(model, data)  # type: ignore[attr-defined, no-any-return]


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
    return json_data(read_text(path), str(path))
