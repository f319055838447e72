"""A framework that a user describes: a YAML file that says which known one it is like, and in what it differs.

    name: our-trainer
    like: megatron-core
    fused_kernels: [rms_norm, layer_norm, rotary, swiglu_packed]
    attention: flash2
    overlapped: [gradients]
    host_factors: {forward: 1.5, backward: 1.5}
    precisions: {fp8: {cast_B: 4.0}}

Keys are those of `Framework` that hold a switch, a number, a word or a list of words; `precisions` changes recipes of
the known one (`PrecisionRecipe`), and adds none.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import Field, create_model

from moemodel.model.core.documents import Strict, read_yaml
from moemodel.model.core.errors import InputError
from moemodel.model.frameworks import base
from moemodel.model.frameworks.base import Framework, Precision, PrecisionRecipe

SUFFIXES = (".yaml", ".yml")
_NOT_SAID = frozenset({"name", "precisions", "moe", "forward_only"})  # a name has its own line, forms are code


def _optional(record: type[Any], left_out: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Fields of a record as keys of a document that need not be there."""
    hints = get_type_hints(record, vars(base))
    return {field.name: (hints[field.name] | None, None) for field in fields(record) if field.name not in left_out}


_Recipe = create_model("_Recipe", __base__=Strict, **_optional(PrecisionRecipe))
_Document = create_model(
    "_Document",
    __base__=Strict,
    name=(str, Field(min_length=1, max_length=100)),
    like=(str, Field(min_length=1, max_length=100)),
    precisions=(dict[Precision, _Recipe], Field(default_factory=dict)),
    **_optional(Framework, _NOT_SAID),
)


def names_framework_file(backend: str) -> bool:
    """Whether a plan's `backend` is the path of a file."""
    return backend.endswith(SUFFIXES)


def read_framework(path: Path, known: dict[str, Framework]) -> Framework:
    """The framework of a file.

    Args:
        path: of the file.
        known: what it may be like, by name.

    Raises:
        InputError: the file, line and key of each mistake, what was found and what is allowed.
    """
    document = read_yaml(path, _Document)
    said = document.model_dump(exclude_unset=True)
    like = said.pop("like")
    if like not in known:
        raise InputError(f"{path}: like: found {like!r}; allowed: {', '.join(sorted(known))}")
    if said["name"] in known:
        raise InputError(f"{path}: name: found {said['name']!r}, which is a known framework; allowed: another name")
    recipes = dict(known[like].precisions)
    for precision, changes in said.pop("precisions", {}).items():
        if precision not in recipes:
            raise InputError(f"{path}: precisions: found {precision}; allowed: those of {like}: {', '.join(recipes)}")
        recipes[precision] = replace(recipes[precision], **changes)
    changed = {key: getattr(document, key) for key in said if key != "name"}
    return replace(known[like], name=said["name"], precisions=recipes, memory_log_error=None, **changed)
