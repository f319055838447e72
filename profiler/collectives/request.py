"""What the processes that measure collectives are asked.

They answer by events (`jobs.events`), which the first rank writes: "at", what is being measured now; "row", a finished
row and its table; "note", what a reader of the profile should know; "left", how many points the time did not suffice
for.
"""

from __future__ import annotations

import json
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
        events: file to tell in, in the folder of the job.
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
