"""What a job tells while it runs: one JSON object a line, in a file that is followed. No torch here.

Each event is on disk before the job goes on, so that nothing is lost when it is ended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"
Event = dict[str, Any]  # what it is stands under "event"


class EventWriter:
    """Appends events to a file.

    Args:
        file: made if it is not there.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def write(self, event: str, **facts: Any) -> None:
        """Add an event, whole and on disk."""
        line = json.dumps({"event": event, **facts}).encode() + b"\n"
        with self._file.open("ab", buffering=0) as file:
            file.write(line)
            os.fsync(file.fileno())


class EventReader:
    """Reads events as they are written, whole lines only.

    Args:
        file: need not be there yet.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read_B = 0

    def news(self) -> Iterator[Event]:
        """The events since the last time."""
        if not self._file.exists():
            return
        with self._file.open("rb") as lines:
            lines.seek(self._read_B)
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                self._read_B += len(line)
                yield json.loads(line)
