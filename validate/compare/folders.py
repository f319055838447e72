"""Folders of `moemodel run`, read and checked: what was asked, what was measured, how it ended, what was predicted.

All that is given is read before anything is said of it. Of a run that did not end well, steps are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TypeVar

from moemodel.model.core.documents import Strict, load_json, parse_data, parse_yaml, read_json
from moemodel.model.core.errors import InputError
from moemodel.model.core.files import is_there
from moemodel.model.core.shown import shown
from moemodel.model.plan.spec import Plan
from moemodel.model.records.run import (
    MANIFEST,
    MATRIX,
    PREDICTED,
    RESULT,
    SCHEMA,
    MatrixRecord,
    RunManifest,
    RunResult,
    StepRecord,
    routing_file,
    steps_file,
)
from moemodel.validation.compare.forecast import Forecast, read_forecast
from moemodel.validation.compare.lines import read_lines
from moemodel.validation.compare.routing import Routing, read_routing

DocumentT = TypeVar("DocumentT", bound=Strict)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run, as its folder has it.

    Attributes:
        place: of its folder.
        matrix: the name of the matrix that it was found in; None: it was given alone.
        manifest: what was asked for.
        plan: that was run.
        result: how it ended; None: it was cut short, or is still running.
        steps: of each rank; none of a run that is not done.
        routing: None where no router was recorded, or the run is not done.
        forecast: None where nothing was predicted before it began.
    """

    place: Path
    matrix: str | None
    manifest: RunManifest
    plan: Plan
    result: RunResult | None
    steps: tuple[tuple[StepRecord, ...], ...]
    routing: Routing | None
    forecast: Forecast | None

    @property
    def done(self) -> bool:
        """Whether it can be compared."""
        return self.result is not None and self.result.status == "done"

    @property
    def model(self) -> str:
        """What the architecture of its model is called."""
        path = PurePath(self.plan.architecture)
        name = path.parent.name if path.stem == "config" and path.parent.name else path.stem
        return path.name if path.suffix not in (".json", "") else name


@dataclass(frozen=True, kw_only=True)
class Found:
    """Runs, and what is to be said of the folders that they are from."""

    runs: tuple[Run, ...]
    notes: tuple[str, ...]


def read_runs(folders: Sequence[Path]) -> Found:
    """All runs of run folders and matrix folders.

    Args:
        folders: given, each a run's or a matrix's.

    Raises:
        InputError: a folder that is none of these or is given twice; a run that is there twice; a file that is missing,
            damaged, of a newer version, or contradicts another: place, what was found, what is allowed.
    """
    if not folders:
        raise InputError("found no folder to compare; allowed: one or more folders that `moemodel run` wrote")
    places: dict[Path, Path] = {}
    notes: list[str] = []
    runs: list[Run] = []
    for folder in folders:
        for place, matrix in _places(folder, notes):
            known = places.setdefault(place.resolve(), folder)
            if len(places) == len(runs):
                raise InputError(f"{place}: found twice, in {known} and in {folder}; allowed: every run once")
            runs.append(_read_run(place, matrix))
    _check_copies(runs)
    return Found(runs=tuple(runs), notes=tuple(notes))


def _places(folder: Path, notes: list[str]) -> Iterator[tuple[Path, MatrixRecord | None]]:
    """Folders of runs, and the matrix that they are of."""
    if not is_there(folder):
        raise InputError(f"{shown(str(folder))}: no such folder; allowed: folders that `moemodel run` wrote")
    if not folder.is_dir():
        raise InputError(f"{folder}: found a file; allowed: a folder that `moemodel run` wrote")
    if is_there(folder / MATRIX):
        yield from _of_matrix(folder, notes)
    elif is_there(folder / MANIFEST):
        yield folder, None
    else:
        raise InputError(
            f"{folder}: found neither {MANIFEST} nor {MATRIX}; allowed: a folder of a run, or of a matrix of runs, "
            "that `moemodel run` wrote"
        )


def _of_matrix(folder: Path, notes: list[str]) -> Iterator[tuple[Path, MatrixRecord]]:
    matrix = _versioned(folder / MATRIX, MatrixRecord)
    begun = sorted(each for each in folder.iterdir() if is_there(each / MANIFEST))
    if not begun:
        raise InputError(f"{folder}: found no run that has begun; allowed: one or more, each a folder with {MANIFEST}")
    asked = _cells(matrix.document)
    if asked is not None and asked > len(begun):
        notes.append(f"Matrix {matrix.name}: {len(begun)} of {asked} runs have begun.")
    for place in begun:
        yield place, matrix


def _cells(document: Mapping[str, Any]) -> int | None:
    """How many runs a document asks for; None where it is not of the form that is known."""
    matrix, repeats = document.get("matrix", {}), document.get("repeats", 1)
    if not isinstance(matrix, dict) or not isinstance(repeats, int):
        return None
    return repeats * math.prod(len(values) for values in matrix.values() if isinstance(values, list))


def _check_copies(runs: Sequence[Run]) -> None:
    """That no run lies in two folders: it would count as a repeat, and take from the spread.

    Raises:
        InputError: it does.
    """
    seen: dict[tuple[object, ...], Path] = {}
    for run in runs:
        manifest = run.manifest
        key = (manifest.name, manifest.plan_yaml, manifest.started, manifest.seed, manifest.repeat, str(run.result))
        known = seen.setdefault(key, run.place)
        if known != run.place:
            raise InputError(
                f"{run.place}: found the run that is in {known} too, begun at {manifest.started}; "
                "allowed: every run once"
            )


# ---- one run --------------------------------------------------------------------------------------------------------


def _read_run(place: Path, matrix: MatrixRecord | None) -> Run:
    manifest = _versioned(place / MANIFEST, RunManifest)
    if matrix is not None:
        _check_member(place, manifest, matrix)
    plan = parse_yaml(manifest.plan_yaml, Plan, f"{place / MANIFEST}: plan_yaml")
    result = read_json(place / RESULT, RunResult) if is_there(place / RESULT) else None
    done = result is not None and result.status == "done"
    ranks = len(result.ranks) if result is not None and done else 0
    asked = 0 if result is None else result.steps
    if done and ranks != plan.cluster.gpus:
        raise InputError(f"{place / RESULT}: ranks: found {ranks}; allowed: {plan.cluster.gpus}, as the plan has GPUs")
    return Run(
        place=place,
        matrix=None if matrix is None else matrix.name,
        manifest=manifest,
        plan=plan,
        result=result,
        steps=tuple(_read_steps(place / steps_file(rank), asked) for rank in range(ranks)),
        routing=read_routing(
            [place / routing_file(rank) for rank in range(ranks)], 0 if result is None else result.steps
        ),
        forecast=read_forecast(place / PREDICTED) if is_there(place / PREDICTED) else None,
    )


def _versioned(file: Path, model: type[DocumentT]) -> DocumentT:
    """A document that says of which version it is.

    Raises:
        InputError: of a newer one; or see `read_json`.
    """
    data = load_json(file)
    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > SCHEMA:
        raise InputError(
            f"{file}: schema_version: found {version}, of a newer moemodel; allowed: up to {SCHEMA}, or that moemodel"
        )
    if not isinstance(data, dict):
        raise InputError(f"{file}: found {shown(data)}; allowed: an object, as `moemodel run` writes it")
    return parse_data(data, model, str(file))


def _check_member(place: Path, manifest: RunManifest, matrix: MatrixRecord) -> None:
    """That a run is one of the matrix whose folder it lies in.

    Raises:
        InputError: it is not.
    """
    document, file = matrix.document, place / MANIFEST
    if manifest.name != place.name:
        raise InputError(f"{file}: name: found {manifest.name!r}; allowed: {place.name!r}, as its folder is called")
    for key, asked in (("samples", manifest.samples), ("warmup_steps", manifest.warmup_steps)):
        if key in document and document[key] != asked:
            raise InputError(
                f"{file}: {key}: found {asked}, so it is a run of another matrix; allowed: {document[key]}, as "
                f"{place.parent / MATRIX} asks for"
            )
    known = _keys(document.get("matrix", {}))
    strange = next((key for key in manifest.cell if key not in known), None)
    if strange is not None:
        raise InputError(
            f"{file}: cell: found {shown(strange)}, so it is a run of another matrix; allowed: "
            f"{', '.join(sorted(known)) or 'no key'}, as {place.parent / MATRIX} has"
        )


def _keys(matrix: Any) -> set[str]:
    """Keys that the runs of a matrix can have: its own, or those of the mappings in it."""
    found: set[str] = set()
    for key, values in matrix.items() if isinstance(matrix, dict) else ():
        for value in values if isinstance(values, list) else ():
            found |= set(value) if isinstance(value, dict) else {key}
    return found


def _read_steps(file: Path, asked: int) -> tuple[StepRecord, ...]:
    steps = tuple(read_lines(file, StepRecord))
    if [one.step for one in steps] != list(range(asked)):
        raise InputError(
            f"{file}: found {len(steps)} steps; allowed: {asked}, from 0 on, a line each, as {RESULT} says"
        )
    return steps
