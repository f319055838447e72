"""What a validation has asked and found so far, in its folder, so that an interrupted one goes on.

question.json   what is run, written first; another question in the same folder is refused
visits.jsonl    one line a run, written when it ends, or fails
jobs/           logs of the processes that ran it (`profiler.launch`)
report.json     everything together (`model.validation`), and report.html the same to look at
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from moemodel.model.core.documents import Strict, parse_yaml, read_json, read_text
from moemodel.model.core.errors import InputError
from moemodel.model.core.files import write_atomic
from moemodel.model.plan.spec import Plan
from moemodel.model.results.validation import Environment, Failed, SetAside, Visit

SCHEMA_VERSION = 1
QUESTION = "question.json"
VISITS = "visits.jsonl"

_FREE = ("set_aside", "notes")  # of a question: they are for the reader, and change nothing of what is run


class Asked(Strict):
    """A plan to run.

    Attributes:
        name: no two plans share it.
        asked_yaml: as its author wrote it; `plan_yaml` as it is run.
        roles, notes: see `validation.PlanReport`.
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


class Question(Strict):
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
    plans: tuple[Asked, ...]
    set_aside: tuple[SetAside, ...]
    search: str | None
    repeats: int
    seconds: float
    warm_s: float
    seed: int
    asked_clocks: str
    environment: Environment
    notes: tuple[str, ...]

    def order(self) -> Iterator[tuple[Asked, int]]:
        """Every plan and round, in the order in which they are run: whole rounds, each shuffled."""
        random = np.random.default_rng(self.seed)
        for repeat in range(self.repeats):
            for index in random.permutation(len(self.plans)):
                yield self.plans[index], repeat


# Failures of which the machine may have been the cause: asked the same again, a validation tries those plans again.
_RETRIED = ("no progress", "crashed")


class Line(Strict):
    """A run that ended: one of `visit` and `failed`."""

    plan: str
    visit: Visit | None = None
    failed: Failed | None = None


class Session:
    """A validation's folder.

    Args:
        folder: made if there is none; one that holds the same question is gone on with.
        question: what is run.

    Raises:
        InputError: the folder holds another question, another thing, or is damaged.
        OSError: it can't be written to.
    """

    def __init__(self, folder: Path, question: Question) -> None:
        self.folder, self.question = folder, question
        self._visits = folder / VISITS
        if (folder / QUESTION).exists():
            _check_same(folder, read_question(folder), question)
        else:
            _begin(folder, question)

    @cached_property
    def lines(self) -> list[Line]:
        """Runs that ended so far, read (and a line that was cut off removed) at first use: within `alone`."""
        return [line for line in _read_lines(self._visits) if not _worth_a_retry(line)]

    @property
    def resumed(self) -> bool:
        """Some runs were made before."""
        return bool(self.lines)

    def add(self, line: Line) -> None:
        """Keep a run that ended, on disk when this returns."""
        with self._visits.open("ab") as file:
            file.write(line.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.lines.append(line)

    def left(self) -> list[tuple[Asked, int]]:
        """Runs that are still to be made, in order; a plan that failed is not run again (see `_RETRIED`)."""
        failed = {line.plan for line in self.lines if line.failed}
        done = {(line.plan, line.visit.repeat) for line in self.lines if line.visit}
        return [
            (asked, repeat)
            for asked, repeat in self.question.order()
            if asked.name not in failed and (asked.name, repeat) not in done
        ]


def _worth_a_retry(line: Line) -> bool:
    return line.failed is not None and line.failed.kind in _RETRIED


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else validates in this folder meanwhile.

    Raises:
        InputError: somebody does.
    """
    with (folder / QUESTION).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{folder}: another `moemodel validate` is at work in it; wait for it, or name a new folder with -o"
            ) from None
        yield


def read_question(folder: Path) -> Question:
    """What was asked in a folder.

    Raises:
        InputError: missing, malformed, or of another version of moemodel.
    """
    return read_json(folder / QUESTION, Question)


def _begin(folder: Path, question: Question) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty, and holds no validation to go on with; name a new folder with -o")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / QUESTION, question.model_dump_json(indent=1) + "\n")


def _check_same(folder: Path, found: Question, asked: Question) -> None:
    """Refuse to mix the runs of two questions."""
    before, now = _essence(found), _essence(asked)
    for name in before:
        if before[name] != now.get(name):
            raise InputError(
                f"{folder}: holds another validation: {name}: found {before[name]}, asked for {now.get(name)}. "
                "Ask the same to go on with it, or name a new folder with -o"
            )


def _essence(question: Question) -> dict[str, object]:
    """What decides what is measured. Of the environment that is the hardware, not whose turn it is there."""
    whole: dict[str, Any] = json.loads(question.model_dump_json(exclude=set(_FREE)))
    device = question.environment.device
    environment, plans = whole.pop("environment"), whole.pop("plans")
    return (
        whole
        | {"gpu": environment["gpu"], "device": device.name, "uuid": device.uuid, "launcher": environment["launcher"]}
        | {"plans": ", ".join(plan["name"] for plan in plans)}
        | {f"plan {plan['name']}": _in_one_line(plan["plan_yaml"]) for plan in plans}
    )


def _in_one_line(yaml: str) -> str:
    return ", ".join(line.strip() for line in yaml.splitlines())


def _read_lines(path: Path) -> Iterable[Line]:
    """Runs that ended; a last line that was cut off while it was written is dropped, here and on disk."""
    if not path.exists():
        return
    text = read_text(path)
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            yield Line.model_validate_json(line)
        except ValidationError:
            raise InputError(
                f"{path}:{number}: is no run of a validation; name a new folder with -o, or delete that line to make "
                "the run again"
            ) from None
