"""A framework that a user describes: a YAML file that says which known one it is like, and in what it differs.

    name: our-trainer
    like: megatron-core
    fused_kernels: [rms_norm, layer_norm, rotary, swiglu_packed]
    attention: flash2
    overlapped: [gradients]
    host_factors: {forward: 1.5, backward: 1.5}
    precisions: {fp8: {cast_B: 4.0}}

Keys are those of `Framework` that hold a switch, a number, a word or a list of words; `precisions` changes recipes of
the known one (`PrecisionRecipe`), and adds none. Intervals are those of code that no run was held against.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import Field, create_model

from moemodel.model.core.documents import Strict, read_yaml
from moemodel.model.core.errors import InputError
from moemodel.model.core.files import is_path
from moemodel.model.frameworks import base
from moemodel.model.frameworks.base import Framework, Precision, PrecisionRecipe

# A name has its own line; the form of experts' blocks is code; what is left of memory was seen of known code
_NOT_SAID = frozenset({"name", "precisions", "moe", "workspace_B", "memory_log_error"})
_NOT_SAID |= {"deterministic_workspace_B", "experts_workspace_B"}
_NOT_SAID |= {
    "captured",
    "captured_parts",
    "compiled",
    "forward_only",
    "cp_comm",
    "tp_buffers",
    "loss_chunks",
    "stores_fp8_inputs",
    "offload",
    "lora",
    "deterministic",
    "bucket_parameters",
    "checks_gradients",
    "checks_weights",
}  # a plan says these
_NOT_SAID |= {"short_of_memory"}  # what becomes of it
_SIGNED = frozenset({"sharded_optimizer_B"})  # bytes beside those without ZeRO, which may be fewer
_NAME = Field(min_length=1, max_length=100, pattern=r"^[\w.-]+$")


def names_framework_file(backend: str) -> bool:
    """Whether a plan's `backend` is the path of a file."""
    return is_path(backend)


def is_known_by_now(backend: str) -> bool:
    """Not so of a file by a relative path, which is of the document that names it, and looked for later."""
    return not names_framework_file(backend) or Path(backend).is_absolute()


def read_framework(path: str, known: Mapping[str, Framework]) -> Framework:
    """The framework of a file.

    Args:
        path: of the file.
        known: what it may be like, by name.

    Raises:
        InputError: no such file; or the file, line and key of each mistake, what was found and what is allowed.
    """
    file = Path(path).expanduser()
    try:
        changed = file.stat()
    except OSError:
        raise InputError(
            f"backend: {path}: no such file; allowed: a known framework, or a file that is there"
        ) from None
    return _read(file, changed.st_mtime_ns, changed.st_size, tuple(known.values()))


@cache
def _read(path: Path, changed_ns: int, size_B: int, frameworks: tuple[Framework, ...]) -> Framework:  # noqa: ARG001
    """Once for each state of a file."""
    known = {framework.name: framework for framework in frameworks}
    document = read_yaml(path, _document())
    said = document.model_dump(exclude_unset=True)
    like, name = said["like"], said["name"]
    if like not in known:
        raise InputError(f"{path}: like: found {like!r}; allowed: {', '.join(sorted(known))}")
    if name in known:
        raise InputError(f"{path}: name: found {name!r}, which is another framework's; allowed: a name of its own")
    for key, value in _numbers(said):
        if value < 0 and key not in _SIGNED:
            raise InputError(f"{path}: {key}: found {value:g}; allowed: 0 or more")
    recipes = dict(known[like].precisions)
    for precision, changes in said.get("precisions", {}).items():
        if precision not in recipes:
            raise InputError(
                f"{path}: precisions: found {precision}; allowed of what is like {like}: {', '.join(recipes)}"
            )
        recipes[precision] = replace(recipes[precision], **changes)
    values = {key: getattr(document, key) for key in said if key not in ("name", "like", "precisions")}
    return replace(known[like], name=name, precisions=recipes, **values)


def _numbers(said: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Every number that a file says, with its key."""
    if isinstance(said, dict):
        for name, value in said.items():
            yield from _numbers(value, f"{key}.{name}" if key else name)
    elif isinstance(said, list | tuple):
        for place, value in enumerate(said):
            yield from _numbers(value, f"{key}[{place}]")
    elif isinstance(said, int | float) and not isinstance(said, bool):
        yield key, said


@cache
def _document() -> type[Strict]:
    """What a file may hold. Made when one is read: nobody else needs it."""
    recipe = create_model("Recipe", __base__=Strict, **_optional(PrecisionRecipe))
    keys: dict[str, Any] = {"name": (str, _NAME), "like": (str, _NAME)}
    keys["precisions"] = (dict[Precision, recipe], {})
    return create_model("FrameworkFile", __base__=Strict, **keys, **_optional(Framework, _NOT_SAID))


def _optional(record: type[Any], left_out: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Fields of a record as keys that need not be there."""
    hints = get_type_hints(record, vars(base))
    return {one.name: (hints[one.name], None) for one in fields(record) if one.name not in left_out}
