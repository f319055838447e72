"""What a job tells and leaves behind: events read once and whole, and which of several failures is the reason."""

from __future__ import annotations

import os
from pathlib import Path

from moemodel.profiler.jobs.events import EVENTS, EventReader, EventWriter
from moemodel.profiler.jobs.failures import RankFailure, gravest_failure, write_failure


def test_events_are_read_once_and_whole(tmp_path: Path) -> None:
    file = tmp_path / EVENTS
    reader, writer = EventReader(file), EventWriter(file)
    assert list(reader.news()) == []
    writer.write("at", what="all_reduce")
    with file.open("a") as half:
        half.write('{"event": "at", "wh')
    assert list(reader.news()) == [{"event": "at", "what": "all_reduce"}]
    with file.open("a") as rest:
        rest.write('at": "x"}\n')
    assert list(reader.news()) == [{"event": "at", "what": "x"}]
    assert list(reader.news()) == []


def test_of_failures_of_one_kind_the_first_is_the_reason(tmp_path: Path) -> None:
    assert gravest_failure(tmp_path) is None
    for rank, kind, at_s in ((0, "crash", 20), (1, "crash", 10), (2, "refused", 1)):
        write_failure(tmp_path, rank, RankFailure(visit=None, kind=kind, reason=f"of rank {rank}"))  # type: ignore[arg-type]
        os.utime(tmp_path / f"failure-{rank}.json", (at_s, at_s))
    (tmp_path / "failure-3.json").write_text("{")  # a rank that was killed while it wrote
    failure = gravest_failure(tmp_path)
    assert failure is not None
    assert failure.reason == "of rank 1"
