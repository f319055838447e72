"""What a validation has asked and found so far, in its folder, so that an interrupted one goes on.

question.json   what is run, written first; another spec in the same folder is refused
visits.jsonl    one line a run, written when it ends, or fails
jobs/           logs of the processes that ran it (`profiler.training.launch`)
report.json     everything together (`model.results.validation`), and report.html the same to look at
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import model_validator

from moemodel.model.core.documents import Strict, parse_yaml, read_json
from moemodel.model.core.errors import InputError
from moemodel.model.core.files import write_atomic
from moemodel.model.plan.spec import Plan
from moemodel.model.results.validation import Environment, Failed, SkippedPlan, Visit
from moemodel.profiler.store.folder_lock import LOCK

SCHEMA_VERSION = 1
QUESTION = "question.json"
VISITS = "visits.jsonl"

_FREE = ("set_aside", "notes")  # of a spec: they are for the reader, and change nothing of what is run

# By unit, what a run can have measured (seconds: Unix time among them); 0 too, but of the step's time.
_BOUNDS = {"s": (1e-12, 1e11), "J": (1e-9, 1e15), "W": (1e-3, 1e7), "Hz": (1e3, 1e13), "B": (1, 1e18), "C": (-100, 300)}


class RequestedPlan(Strict):
    """A plan to run.

    Attributes:
        name: no two plans share it.
        asked_yaml: as its author wrote it; `plan_yaml` as it is run.
        roles, notes: see `results.validation.PlanReport`.
    """

    name: str
    asked_yaml: str
    plan_yaml: str
    roles: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def plan(self) -> Plan:
        """As it is run."""
        return parse_yaml(self.plan_yaml, Plan, self.name)


class ValidationSpec(Strict):
    """What a validation runs.

    Attributes:
        plans: what is run; `set_aside` what is not.
        search: name of the search that the plans are of; null where they are of files.
        repeats: rounds; in each, every plan is run once, in a shuffled order.
        seconds: of measured steps in a run; `warm_s` of steps before them.
        seed: of the orders, and of weights and data.
        asked_clocks: as `--clocks` says.
        environment: on what it is run.
        notes: on all of it.
    """

    schema_version: int = SCHEMA_VERSION
    plans: tuple[RequestedPlan, ...]
    set_aside: tuple[SkippedPlan, ...]
    search: str | None
    repeats: int
    seconds: float
    warm_s: float
    seed: int
    asked_clocks: str
    environment: Environment
    notes: tuple[str, ...]

    def order(self) -> Iterator[tuple[RequestedPlan, int]]:
        """Every plan and round, in the order in which they are run: whole rounds, each shuffled."""
        random = np.random.default_rng(self.seed)
        for repeat in range(self.repeats):
            for index in random.permutation(len(self.plans)):
                yield self.plans[index], repeat


# Failures of which the machine may have been the cause: asked the same again, a validation tries those plans again.
_RETRIED = ("no progress", "crashed")


class RunRecord(Strict):
    """A run that ended: one of `visit` and `failed`."""

    plan: str
    visit: Visit | None = None
    failed: Failed | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> RunRecord:
        if (self.visit is None) == (self.failed is None):
            raise ValueError("one of visit and failed is expected")
        return self

    @property
    def repeat(self) -> int:
        """Which round it was."""
        ended = self.visit or self.failed
        assert ended is not None  # by `_one_of_them`
        return ended.repeat


class Session:
    """A validation's folder; its owner holds `store.folder_lock`.

    Args:
        folder: made if there is none; one that holds the same spec is gone on with.
        spec: what is run.

    Raises:
        InputError: the folder holds another spec, another thing, or is damaged.
        OSError: it can't be written to.
    """

    def __init__(self, folder: Path, spec: ValidationSpec) -> None:
        self.folder, self.spec = folder, spec
        self._visits = folder / VISITS
        if (folder / QUESTION).exists():
            _check_same(folder, read_spec(folder), spec)
        else:
            _begin(folder, spec)

    @cached_property
    def records(self) -> list[RunRecord]:
        """Runs that ended so far, read (and a line that was cut off removed) at first use.

        Raises:
            InputError: there are lines of something else.
        """
        records = list(_read_lines(self._visits))
        asked = {(plan.name, repeat) for plan, repeat in self.spec.order()}
        for number, record in enumerate(records, start=1):
            for row in record.visit.rows if record.visit else ():
                _check_plausible(row, f"{self._visits}:{number}")
            if (record.plan, record.repeat) not in asked:
                raise InputError(
                    f"{self._visits}:{number}: found plan {record.plan!r}, round {record.repeat + 1}, which this "
                    "validation does not run; name a new folder with -o, or delete that line"
                )
        return [record for record in records if not _worth_a_retry(record)]

    @property
    def resumed(self) -> bool:
        """Some runs were made before."""
        return bool(self.records)

    def add(self, record: RunRecord) -> None:
        """Keep a run that ended, on disk when this returns."""
        records = self.records  # those of before, read before it is among them
        with self._visits.open("ab") as file:
            file.write(record.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        records.append(record)

    def left(self) -> list[tuple[RequestedPlan, int]]:
        """Runs that are still to be made, in order; a plan that failed is not run again (see `_RETRIED`)."""
        failed = {record.plan for record in self.records if record.failed}
        done = {(record.plan, record.visit.repeat) for record in self.records if record.visit}
        return [
            (asked, repeat)
            for asked, repeat in self.spec.order()
            if asked.name not in failed and (asked.name, repeat) not in done
        ]


def _check_plausible(row: Mapping[str, float | None], place: str) -> None:
    """Check that what was measured can have been: a damaged digit would be reported on as if it were true.

    Raises:
        InputError: it can not.
    """
    for column, value in row.items():
        low, high = _BOUNDS.get(column.rpartition("_")[2], (-math.inf, math.inf))
        if value is not None and not low <= value <= high and not (value == 0 and column != "step_time_s"):
            raise InputError(
                f"{place}: {column}: found {value:g}; allowed: {low:g} to {high:g}; name a new folder with -o, or "
                "delete that line to make the run again"
            )


def _worth_a_retry(record: RunRecord) -> bool:
    return record.failed is not None and record.failed.kind in _RETRIED


def read_spec(folder: Path) -> ValidationSpec:
    """What was asked in a folder.

    Raises:
        InputError: missing, malformed, or of another version of moemodel.
    """
    return read_json(folder / QUESTION, ValidationSpec)


def _begin(folder: Path, spec: ValidationSpec) -> None:
    if folder.is_dir():
        for file in folder.glob(f".{QUESTION}.*"):  # of one that was ended, or had no room, before it began
            file.unlink()
    if folder.is_dir() and any(file.name != LOCK for file in folder.iterdir()):
        raise InputError(f"{folder}: is not empty, and holds no validation to go on with; name a new folder with -o")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / QUESTION, spec.model_dump_json(indent=1) + "\n", sync=True)


def _check_same(folder: Path, found: ValidationSpec, asked: ValidationSpec) -> None:
    """Refuse to mix the runs of two specs."""
    before, now = _essence(found), _essence(asked)
    for name in before:
        if before[name] != now.get(name):
            raise InputError(
                f"{folder}: holds another validation: {name}: found {before[name]}, asked for {now.get(name)}. "
                "Ask the same to go on with it, or name a new folder with -o"
            )


def _essence(spec: ValidationSpec) -> dict[str, object]:
    """What decides what is measured. Of the environment that is the hardware, not whose turn it is there."""
    whole: dict[str, Any] = json.loads(spec.model_dump_json(exclude=set(_FREE)))
    device = spec.environment.device
    environment, plans = whole.pop("environment"), whole.pop("plans")
    return (
        whole
        | {"gpu": environment["gpu"], "device": device.name, "uuid": device.uuid, "launcher": environment["launcher"]}
        | {"plans": ", ".join(plan["name"] for plan in plans)}
        | {f"plan {plan['name']}": _in_one_line(plan["plan_yaml"]) for plan in plans}
    )


def _in_one_line(yaml: str) -> str:
    return ", ".join(line.strip() for line in yaml.splitlines())


def _read_lines(path: Path) -> Iterable[RunRecord]:
    """Runs that ended; a last line that was cut off while it was written is dropped, here and on disk.

    The file is cut there, not written anew: what is whole stays, whatever happens meanwhile. Only a line feed ends a
    line: other separators, such as U+2028, may stand in what a framework said.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    *lines, rest = data.split(b"\n")
    if rest and _record(rest) is None:
        os.truncate(path, len(data) - len(rest))
    elif rest:  # all but its end was written
        with path.open("ab") as file:
            file.write(b"\n")
        lines.append(rest)
    for number, line in enumerate(lines, start=1):
        record = _record(line)
        if record is None:
            raise InputError(
                f"{path}:{number}: is no run of a validation; name a new folder with -o, or delete that line to make "
                "the run again"
            )
        yield record


def _record(line: bytes) -> RunRecord | None:
    """What a line holds; None where it is no run."""
    try:
        return RunRecord.model_validate_json(line)
    except InputError:
        return None
