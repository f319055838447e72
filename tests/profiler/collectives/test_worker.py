"""One rank of a job that measures collectives, when it fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moemodel.model.core.errors import InputError
from moemodel.profiler.collectives.points import scale_for
from moemodel.profiler.collectives.request import Request
from moemodel.profiler.collectives.worker import serve
from moemodel.profiler.jobs.failures import gravest_failure


def test_a_rank_leaves_behind_why_it_failed_where_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "5")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    request = Request(
        gpu="cpu",
        points=(),
        overlaps=(),
        scale=scale_for(cpu=True, ranks=2),
        seed=0,
        until_wall_s=0.0,
        events=tmp_path / "events.jsonl",
    )
    with pytest.raises(InputError):
        serve(request)
    failure = gravest_failure(tmp_path)
    assert failure is not None
    assert failure.reason.startswith("rank 5: environment: WORLD_SIZE")
    with pytest.raises(InputError):  # on another machine there is no such folder
        serve(replace(request, events=tmp_path / "nowhere" / "events.jsonl"))
    assert {file.name for file in tmp_path.iterdir()} == {"failure-5.json"}
