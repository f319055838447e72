"""The document of `moemodel run`: one plan, in what its runs differ, and how long each trains. No torch here.

name: experts
plan: {architecture: olmoe-1b-7b, layers: 2, sequence_length: 2048, global_batch: 16, cluster: {gpu: h200}}
matrix:
  backend: [torch, deepspeed]
  global_batch: [16, 32]
  gpus: [{cluster.gpus: 1}, {cluster.gpus: 2, parallel.dp: 2, parallel.ep: 2}]
samples: 640
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from moemodel.model.core.documents import Strict, Switch, read_yaml
from moemodel.model.core.errors import InputError
from moemodel.model.plan.spec import Count, Plan, Text, plan_text
from moemodel.profiler.data.spec import DataSpec

Value = str | int | float | bool | None
# Keys of a matrix that are the document's own, not the plan's.
_OWN = ("learning_rate", "seed")
_MOST_CELLS = 10_000  # assumed: more is a typing error
_NAME = re.compile(r"[^A-Za-z0-9.+-]+")


class RunDocument(Strict):
    """What is trained, in every combination of a matrix.

    Attributes:
        plan: what all runs share, by the keys of a plan.
        matrix: a key of the plan ("parallel.dp"), `learning_rate` or `seed` -> its values; or a word of one's own ->
            mappings of several such keys that belong together. A matrix without keys is one run.
        samples: sequences that each run trains on in its measured steps: GPUs x batch x iterations.
        warmup_steps: optimizer steps before them.
        repeats: runs of each cell; seeds differ by one.
    """

    name: Text = "runs"
    plan: dict[str, Any]
    matrix: dict[str, list[Value | dict[str, Value]]] = Field(default_factory=dict)
    samples: Count
    warmup_steps: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] = 10
    repeats: Annotated[int, Field(ge=1, le=1_000, strict=True)] = 1
    learning_rate: Annotated[float, Field(gt=0, le=10, strict=True)] = 1e-4
    seed: Annotated[int, Field(ge=0, le=2**31, strict=True)] = 0
    data: DataSpec = DataSpec()
    codecarbon: Switch | None = Field(
        default=None, description="CodeCarbon beside the meter; null: where it is installed and site.region is known"
    )

    @model_validator(mode="after")
    def _cells(self) -> RunDocument:
        empty = [key for key, values in self.matrix.items() if not values]
        if empty:
            raise ValueError(f"matrix.{empty[0]}: found no value; allowed: one or more")
        number = self.repeats
        for values in self.matrix.values():
            number *= len(values)
        if number > _MOST_CELLS:
            raise ValueError(f"matrix: found {number:,} runs; allowed: {_MOST_CELLS:,}")
        return self


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a matrix.

    Attributes:
        name: of its folder; no two cells share it.
        values: in what it differs, by key.
        plan: that is run.
        plan_yaml: as it is run.
        learning_rate, seed, repeat: of it.
        steps: measured.
    """

    name: str
    values: Mapping[str, Value]
    plan: Plan
    plan_yaml: str
    learning_rate: float
    seed: int
    repeat: int
    steps: int


def read_run(path: Path) -> RunDocument:
    """A checked document from a YAML file.

    Raises:
        InputError: the file, line and key of each mistake, what was found and what is allowed.
    """
    return read_yaml(path, RunDocument)


def on_gpu(document: RunDocument, gpu: str | None) -> RunDocument:
    """The document with another GPU in its plans' place, so that they are predicted for what they run on.

    Args:
        document: checked by itself.
        gpu: name or description file, or "cpu"; None: the plans'.
    """
    if gpu is None:
        return document
    cluster = document.plan.get("cluster")
    changed = (cluster if isinstance(cluster, dict) else {}) | {"gpu": gpu}
    return document.model_copy(update={"plan": document.plan | {"cluster": changed}})


def cells(document: RunDocument, folder: Path) -> list[Cell]:
    """The runs of a document, repeat after repeat, so that each repeat of all is done before the next.

    Args:
        document: checked by itself.
        folder: that a path in its plan is relative to.

    Raises:
        InputError: a cell's plan is none: which cell, what was found and what is allowed; two cells of one name;
            samples that are no whole number of steps.
    """
    made = [
        _cell(document, chosen, repeat, folder)
        for repeat in range(document.repeats)
        for chosen in itertools.product(*(_named(key, values) for key, values in document.matrix.items()))
    ]
    names = [cell.name for cell in made]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(
            f"matrix: two runs would be called {twice!r}; allowed: values that differ in letters or digits"
        )
    return made


def _named(key: str, values: list[Value | dict[str, Value]]) -> Iterator[dict[str, Value]]:
    for value in values:
        yield dict(value) if isinstance(value, dict) else {key: value}


def _cell(document: RunDocument, chosen: tuple[dict[str, Value], ...], repeat: int, folder: Path) -> Cell:
    values = {key: value for part in chosen for key, value in part.items()}
    name = _folder_name(values, repeat, document.repeats)
    own = {key: values[key] for key in _OWN if key in values}
    plan = _plan(document, values, name, folder)
    if document.samples % plan.global_batch:
        raise InputError(
            f"samples: found {document.samples}, with global_batch {plan.global_batch} in run {name}; allowed: "
            f"multiples of it, such as {max(1, round(document.samples / plan.global_batch)) * plan.global_batch}"
        )
    return Cell(
        name=name,
        values=values,
        plan=plan,
        plan_yaml=plan_text(plan),
        learning_rate=_number(own, "learning_rate", document.learning_rate, name),
        seed=int(_number(own, "seed", document.seed, name)) + repeat,
        repeat=repeat,
        steps=document.samples // plan.global_batch,
    )


def _number(own: Mapping[str, Value], key: str, default: float, name: str) -> float:
    value = own.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise InputError(f"matrix.{key}: found {value!r} in run {name}; allowed: numbers, zero or more")
    return value


def _plan(document: RunDocument, values: Mapping[str, Value], name: str, folder: Path) -> Plan:
    """The plan of a cell.

    Raises:
        InputError: see `cells`.
    """
    keys = deepcopy(document.plan) | {"name": name}
    for key, value in values.items():
        if key not in _OWN:
            _set(keys, key, value)
    try:
        return Plan.model_validate(keys).read_in(folder)
    except InputError as error:
        raise InputError(f"run {name}: {error}") from None


def _set(keys: dict[str, Any], key: str, value: Value) -> None:
    *path, last = key.split(".")
    at = keys
    for part in path:
        inner = at.setdefault(part, {})
        if not isinstance(inner, dict):
            raise InputError(
                f"matrix.{key}: the plan has {part}: {inner!r}; allowed: keys of a plan, such as parallel.dp"
            )
        at = inner
    at[last] = value


def _folder_name(values: Mapping[str, Value], repeat: int, repeats: int) -> str:
    parts = [f"{key.rpartition('.')[2]}-{_NAME.sub('-', str(value))}" for key, value in values.items()]
    if repeats > 1 or not parts:
        parts.append(f"repeat-{repeat}")
    return "_".join(parts)
