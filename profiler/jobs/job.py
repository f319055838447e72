"""What a launcher and the processes of a job tell each other: files in a folder that both see. No torch here.

`job.json` says what to do. `events.jsonl` says what was done, one line an event, each on disk before the job goes on.
A process that fails leaves `failure-RANK.json` and ends at once, since the others may wait for it in a collective for
ever; whoever started them ends them all. Each writes its number to `RANK.pid` and what it prints to `RANK.log`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from moemodel.model.core.documents import Strict

JOB, EVENTS = "job.json", "events.jsonl"
FailureKind = Literal["refused", "memory", "timeout", "crash", "error"]
AskedClocks = Literal["auto", "passive", "lock"]


class VisitOrder(Strict):
    """One visit of a plan."""

    plan_yaml: str
    folder: str = Field(description="that a path in the plan is relative to")
    repeat: int
    seed: int


class Job(Strict):
    """What the processes of one job do."""

    gpu: str = Field(description="GPU that must be there, or cpu")
    clocks: AskedClocks
    warm_s: float
    measured_s: float
    timeout_s: float = Field(description="of a collective")
    launcher_pid: int = Field(description="process whose end ends the job")
    launcher_host: str
    host_repeats: int = Field(default=0, description="steps to measure the host's time of parallel parts in, first")
    visits: list[VisitOrder]


class RankFailure(Strict):
    """Why a process ended."""

    visit: int | None = Field(description="number of the visit in the job; null: before the first")
    kind: FailureKind
    reason: str


def append_event(folder: Path, event: dict[str, Any]) -> None:
    """Add a line, whole and on disk."""
    line = json.dumps(event).encode() + b"\n"
    with (folder / EVENTS).open("ab", buffering=0) as file:
        file.write(line)
        os.fsync(file.fileno())


def write_failure(folder: Path, rank: int, failure: RankFailure) -> None:
    """Leave why a process ends; whole or not at all."""
    partial = folder / f".failure-{rank}.json"
    partial.write_text(failure.model_dump_json(), encoding="utf-8")
    partial.replace(folder / f"failure-{rank}.json")
