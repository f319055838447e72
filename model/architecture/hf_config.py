"""Read an architecture: a preset's name, a Hugging Face `config.json`, or a folder that holds one.

The file is data only: nothing in it is run, and no code is fetched. It belongs to another program: `families` says
which `model_type` is read as what, `keys` what becomes of keys that nothing reads, `heads` what the model ends in, and
`language_model` where its keys stand in a model of images, sound or video.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moemodel.model.architecture.families import FAMILIES
from moemodel.model.architecture.heads import head_of
from moemodel.model.architecture.keys import check_aliases, check_keys, keys_read
from moemodel.model.architecture.language_model import language_model
from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.documents import describe, load_json
from moemodel.model.core.errors import InputError
from moemodel.model.core.files import is_path, is_there
from moemodel.model.core.suggest import unknown

_PRESETS = Path(__file__).parents[1] / "presets" / "architectures"
_SOURCE = "_source"  # where the facts of a preset come from; free text


@cache
def list_architectures() -> tuple[str, ...]:
    """Names of the presets that ship, sorted."""
    return tuple(sorted(path.stem for path in _PRESETS.glob("*.json")))


def read_architecture(path_or_preset: str | Path) -> Architecture:
    """Read an architecture.

    Args:
        path_or_preset: the name of a preset (`list_architectures`), or the path of a `config.json` or of a folder with
            one. A string that names a preset is that preset; write `./name` for a file or folder of the same name.

    Raises:
        InputError: there is no such preset or file, or the file doesn't describe a model that this package knows. The
            message names the file, the key, what was found and what is allowed.
    """
    if path_or_preset in list_architectures():
        return _preset(str(path_or_preset))
    path = _config_file(path_or_preset)
    return _read(path, path.resolve().parent.name if path.name == "config.json" else path.stem)


@cache
def _preset(name: str) -> Architecture:
    return _read(_PRESETS / f"{name}.json", name)


def _read(path: Path, name: str) -> Architecture:
    """The architecture that a file describes, under a name."""
    config = _read_object(path)
    source = str(config.pop(_SOURCE, path))
    if "model_type" not in config:
        raise InputError(f"{path}: the key 'model_type' is missing; allowed: {', '.join(sorted(FAMILIES))}")
    try:
        part = language_model(config)
        family = part.family
        check_aliases(family, part.config)
        head = head_of(part.config, part.model_type, around=config if part.is_nested else None)
        notes = check_keys(keys_read(family), part.config, part.model_type)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    try:
        architecture = head.on(family.model_validate(part.config).architecture(name, source))
    except ValidationError as error:
        raise InputError(describe(error, family, str(path), {}, part.config)) from None
    return replace(architecture, notes=(*part.notes, *architecture.notes, *notes))


def _config_file(given: str | Path) -> Path:
    """The file to read."""
    path = Path(given)
    file = path / "config.json" if is_there(path) and path.is_dir() else path
    if given != "" and is_there(file):
        return file
    if file == path and is_path(str(given)):
        raise InputError(f"architecture: {given}: no such file")
    raise unknown("architecture", str(given), list_architectures(), or_else="the path of a config.json")


def _read_object(path: Path) -> dict[str, Any]:
    config = load_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path}: found a JSON {type(config).__name__}; allowed: an object of keys and values")
    return config
