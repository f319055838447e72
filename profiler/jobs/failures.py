"""What a process of a job leaves behind when it fails: `failure-RANK.json` in the job's folder. No torch here.

It ends at once, since the others may wait for it in a collective for ever; whoever started them ends them all.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import Field

from moemodel.model.core.documents import Strict, read_json
from moemodel.model.core.errors import InputError
from moemodel.model.core.files import write_atomic

FailureKind = Literal["refused", "memory", "timeout", "crash", "error"]
# The gravest first: what one rank dies of, others report as a broken connection.
_GRAVITY: dict[FailureKind, int] = {"memory": 0, "error": 1, "timeout": 2, "crash": 3, "refused": 4}


class RankFailure(Strict):
    """Why a process ended."""

    visit: int | None = Field(description="number of the visit in the job; null: before the first, or there are none")
    kind: FailureKind
    reason: str


def write_failure(folder: Path, rank: int, failure: RankFailure) -> None:
    """Leave why a process ends; whole or not at all."""
    write_atomic(folder / f"failure-{rank}.json", failure.model_dump_json())


def gravest_failure(folder: Path) -> RankFailure | None:
    """The gravest of what the processes of a job left behind, the first of several; None where they left nothing."""
    found: list[tuple[int, int, RankFailure]] = []
    for file in sorted(folder.glob("failure-*.json")):
        with suppress(InputError):
            failure = read_json(file, RankFailure)
            found.append((_GRAVITY[failure.kind], file.stat().st_mtime_ns, failure))
    return min(found, key=lambda one: one[:2])[2] if found else None
