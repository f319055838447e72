"""Logs that several ranks write at once, in MLPerf's form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from studies.intervals import holds
from studies.public.mllog import events, spans, steps_of
from studies.public.mlperf_logs import TimedRun


def event(at_ms: int, key: str, value: Any = None, **metadata: Any) -> str:
    return ":::MLLOG " + json.dumps({"time_ms": at_ms, "key": key, "value": value, "metadata": metadata})


LOG = [
    event(0, "global_batch_size", 8),
    event(1_000, "run_start"),
    event(2_000, "block_start"),
    event(4_000, "block_stop", samples_count=16),
    event(5_000, "block_start"),
    event(11_000, "block_stop", samples_count=40),
    event(12_000, "run_stop"),
]


@pytest.mark.parametrize(
    "torn",
    [
        ':::MLLOG {"time_ms": 3000, "key": "tracked_st',  # a line that another rank wrote into
        event(3_000, "tracked_stats", {"loss": 1.0})[:-1] + event(3_000, "throughput", 2.0),
        "0: no event",
    ],
)
@pytest.mark.parametrize("between", ["\n", "\n3: ", " ", ""])
def test_lines_within_each_other_lose_what_was_torn_alone(torn: str, between: str) -> None:
    log = between.join([*LOG[:3], torn, *LOG[3:]])
    run = TimedRun.of(log)
    assert run == TimedRun.of("\n".join(LOG))
    assert (run.blocks, run.steps) == (((2.0, 4.0), (5.0, 11.0)), (2, 3))


def test_a_span_without_one_of_its_ends_is_left_out() -> None:
    log = list(events("\n".join([*LOG[:3], *LOG[4:]])))  # the first block does not end
    assert [span.time_s for span in spans(log, "block")] == [(5.0, 11.0)]
    log = list(events("\n".join([*LOG[:2], *LOG[3:]])))  # nor begin
    assert [span.time_s for span in spans(log, "block")] == [(5.0, 11.0)]


def test_blocks_count_samples_since_the_run_began_or_their_own_tokens() -> None:
    blocks = list(spans(list(events("\n".join(LOG))), "block"))
    assert steps_of(blocks, 8) == [2.0, 3.0]
    tokens = [event(at_ms, f"block_{end}", epoch_count=3 * 8 * 512) for at_ms in (1, 2) for end in ("start", "stop")]
    assert steps_of(list(spans(list(events("\n".join(tokens))), "block")), 8, 512) == [3.0, 3.0]


def test_an_interval_holds_what_lies_between_its_ends() -> None:
    assert [holds([1.0, 2.0], value) for value in (0.9, 1.0, 1.5, 2.0, 2.1)] == [False, True, True, True, False]
    assert not holds([None, None], 1.0)
