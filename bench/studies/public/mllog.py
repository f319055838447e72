"""Logs in MLPerf's form (mlcommons/logging, mlperf_logging/mllog): events, and spans between two of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MARK = ":::MLLOG "

Event = Mapping[str, Any]


def events(text: str) -> Iterator[Event]:
    """What a log holds; an event can stand behind a rank, and one whose line another rank wrote into is left out."""
    for said in text.split(_MARK)[1:]:
        try:
            event, _ = json.JSONDecoder().raw_decode(said)
        except json.JSONDecodeError:
            continue
        yield event


@dataclass(frozen=True, kw_only=True)
class LogSpan:
    """From `..._start` to `..._stop` of one name, with what the event that ends it says."""

    start_ms: float
    stop_ms: float
    stop: Event

    @property
    def time_s(self) -> tuple[float, float]:
        """Both ends."""
        return self.start_ms / 1e3, self.stop_ms / 1e3

    @property
    def length_s(self) -> float:
        return (self.stop_ms - self.start_ms) * 1e-3


def spans(log: Sequence[Event], name: str) -> Iterator[LogSpan]:
    """Of a name (`run`, `block`, `eval`), in order; one of which an end is missing is left out."""
    start_ms: float | None = None
    for event in log:
        if event["key"] == f"{name}_start":
            start_ms = float(event["time_ms"])
        elif event["key"] == f"{name}_stop" and start_ms is not None:
            yield LogSpan(start_ms=start_ms, stop_ms=float(event["time_ms"]), stop=event)
            start_ms = None


def steps_of(blocks: Sequence[LogSpan], batch: int, sequence_length: int | None = None) -> list[float]:
    """Steps of the optimizer in each block of training. Left out: samples of a block whose end is lost count for the
    next one.

    Args:
        blocks: in order; where they end they say what was trained since the run began, in samples, or in them alone, in
            tokens (GPT-3's: `epoch_count`).
        batch: samples of a step.
        sequence_length: tokens of a sample; None: blocks count what they count.
    """
    found: list[float] = []
    trained = 0
    for block in blocks:
        said = block.stop["metadata"]
        alone = said["epoch_count"] / (sequence_length or 1) if "epoch_count" in said else None
        found.append((said["samples_count"] - trained if alone is None else alone) / batch)
        trained = said.get("samples_count", 0)
    return found
