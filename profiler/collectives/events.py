"""What the processes that measure are asked, and what they tell: one JSON object a line, in a file that is followed.

The first rank tells where it is, and rows as they are finished; any rank tells why it failed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moemodel.profiler.collectives.points import LinkPoint, OverlapPoint, Scale


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a job's processes have to measure.

    Attributes:
        gpu: name of the GPU description, or "cpu".
        points, overlaps: in order.
        scale: how long.
        seed: of the data.
        until_wall_s: Unix time at which no further point is begun.
        events: file to tell in.
    """

    gpu: str
    points: tuple[LinkPoint, ...]
    overlaps: tuple[OverlapPoint, ...]
    scale: Scale
    seed: int
    until_wall_s: float
    events: Path

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self) | {"events": str(self.events)})


def read_request(text: str) -> Request:
    """A request from its JSON."""
    raw = json.loads(text)
    scale = {name: _tuples(value) for name, value in raw["scale"].items()}
    return Request(
        gpu=raw["gpu"],
        points=tuple(LinkPoint(**point) for point in raw["points"]),
        overlaps=tuple(OverlapPoint(**point) for point in raw["overlaps"]),
        scale=Scale(**scale),
        seed=raw["seed"],
        until_wall_s=raw["until_wall_s"],
        events=Path(raw["events"]),
    )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


class Teller:
    """Writes events; every one is on disk when the call returns."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def at(self, what: str) -> None:
        """What is being measured now."""
        self._tell(event="at", what=what)

    def row(self, table: str, row: dict[str, Any]) -> None:
        """A finished row."""
        self._tell(event="row", table=table, row=row)

    def note(self, text: str) -> None:
        """What a reader of the profile should know."""
        self._tell(event="note", text=text)

    def left(self, count: int) -> None:
        """How many points the time did not suffice for."""
        self._tell(event="left", count=count)

    def failed(self, rank: int, reason: str) -> None:
        """Why a rank gives up; a rank on another machine has no such file, and its launcher says it."""
        if self._file.parent.is_dir():
            self._tell(event="failed", rank=rank, reason=reason)

    def _tell(self, **event: Any) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


class Follower:
    """Reads events as they are written, whole lines only."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._offset = 0

    def news(self) -> Iterator[dict[str, Any]]:
        """The events since the last time."""
        if not self._file.exists():
            return
        with self._file.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            yield json.loads(line)
