"""Read an architecture: a preset's name, a Hugging Face `config.json`, or a folder that holds one.

The file is data only: nothing in it is run, and no code is fetched. Keys that don't change the shape (dropout, dtype,
token ids, …) are ignored: the file belongs to another program. What is read of it is in `architecture.families`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moemodel.model.architecture.families import FAMILIES, Family
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
    family = _family(config, path)
    source = config.pop(_SOURCE, str(path))
    try:
        return family.model_validate(config).architecture(name, str(source))
    except ValidationError as error:
        raise InputError(describe(error, family, str(path), {}, config)) from None


def _config_file(given: str | Path) -> Path:
    """The file to read."""
    path = Path(given)
    file = path / "config.json" if is_there(path) and path.is_dir() else path
    if is_there(file):
        return file
    if file == path and is_path(str(given)):
        raise InputError(f"architecture: {given}: no such file")
    raise unknown("architecture", str(given), list_architectures(), or_else="the path of a config.json")


def _read_object(path: Path) -> dict[str, Any]:
    config = load_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path}: found a JSON {type(config).__name__}; allowed: an object of keys and values")
    return config


def _family(config: dict[str, Any], path: Path) -> type[Family]:
    if "model_type" not in config:
        raise InputError(f"{path}: the key 'model_type' is missing; allowed: {', '.join(FAMILIES)}")
    model_type = str(config["model_type"])
    if model_type not in FAMILIES:
        raise unknown(f"{path}: model_type", model_type, FAMILIES)
    return FAMILIES[model_type]
