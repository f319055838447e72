"""Figures of a metered run of MLPerf Training, from its logs.

Power is added up by the rule of the benchmark (mlcommons/training_policies, power_measurement.adoc, Scoring): a reading
counts for the time since the one before it. A run counts from `run_start` to `run_stop`, evaluations and what its hosts
wait for included. Steady are its blocks of training but for the first, which waits for workers that load data; of these
the readings count whose whole time lies within a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np

from moemodel.model.core.arrays import FloatArray
from studies.public.mllog import Event, events, spans, steps_of

_TIMER = "train_step_timing in s"
# A steady reading stands for no longer than this: nodes of SMC were read every 2 s, but for gaps of up to 20 s in which
# nobody knows what they drew; Dell's every 1 to 2 s
_LONGEST_S = 3.0
# by how much clocks of meters may differ: those of Dell's nodes do by up to 17 s, each by the same in all ten runs
_SHIFTS_S = np.arange(-30.0, 31.0)

Span = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Readings:
    """What a node's meter showed.

    Attributes:
        time_s: of each reading, ascending. [N]
        power_W: in the mean since the reading before. [N]
    """

    time_s: FloatArray
    power_W: FloatArray

    @classmethod
    def of(cls, text: str) -> Readings:
        """From a node's log; times that were written twice count once."""
        told = {_time_s(event): float(event["value"]) for event in events(text) if event["key"] == "power_reading"}
        times = sorted(told)
        return cls(time_s=np.array(times), power_W=np.array([told[time] for time in times]))

    def energy_J(self, span: Span) -> float:
        """Within a span of time; the last reading holds to its end."""
        start_s, stop_s = span
        ends = np.append(np.clip(self.time_s, start_s, stop_s), stop_s)
        return float(np.diff(ends, prepend=start_s) @ np.append(self.power_W, self.power_W[-1]))

    def at(self, time_s: FloatArray) -> FloatArray:
        """What stood at some times; after the last reading that one."""
        return self.power_W[np.minimum(np.searchsorted(self.time_s, time_s), len(self.power_W) - 1)]

    def beside(self, other: Readings, span: Span) -> Readings:
        """By the clock of another node's meter: shifted by the whole seconds at which both differ most evenly."""
        grid_s = np.arange(*span)
        wanted_W = other.at(grid_s)
        uneven_W = [float(np.std(wanted_W - self.at(grid_s - shift_s))) for shift_s in _SHIFTS_S]
        return replace(self, time_s=self.time_s + _SHIFTS_S[int(np.argmin(uneven_W))])

    def mean_W(self, spans: Sequence[Span]) -> float:
        """Of what was read wholly within some spans; NaN: nothing was."""
        stands_s = np.diff(self.time_s)
        inside = np.any([(self.time_s[:-1] >= a) & (self.time_s[1:] <= b) for a, b in spans], axis=0)
        weights = stands_s * (inside & (stands_s <= _LONGEST_S))
        return float(weights @ self.power_W[1:] / weights.sum()) if weights.any() else float("nan")


@dataclass(frozen=True, kw_only=True)
class TimedRun:
    """When a run did what.

    Attributes:
        span: from `run_start` to `run_stop`.
        blocks: of training, in order; `steps` of the optimizer in each.
        evaluations: between them.
        timer_s: median of what the program itself took a step for; None: its log tells none.
    """

    span: Span
    blocks: tuple[Span, ...]
    steps: tuple[int, ...]
    evaluations: tuple[Span, ...]
    timer_s: float | None

    @classmethod
    def of(cls, text: str) -> TimedRun:
        """From the log of a run."""
        told = list(events(text))
        batch = next(int(event["value"]) for event in told if event["key"] == "global_batch_size")
        blocks = list(spans(told, "block"))
        block_s = tuple(block.time_s for block in blocks)
        timed = [(_time_s(event), event["value"][_TIMER]) for event in told if _is_timed(event)]
        return cls(
            span=next(spans(told, "run")).time_s,
            blocks=block_s,
            steps=_steps_by_timer(block_s, timed) if timed else tuple(int(count) for count in steps_of(blocks, batch)),
            evaluations=tuple(evaluation.time_s for evaluation in spans(told, "eval")),
            timer_s=float(np.median([value for _, value in timed])) if timed else None,
        )


def _time_s(event: Event) -> float:
    return float(event["time_ms"]) / 1e3


def _is_timed(event: Event) -> bool:
    return event["key"] == "tracked_stats" and _TIMER in event["value"]


def _steps_by_timer(blocks: Sequence[Span], timed: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    return tuple(sum(start_s <= time_s <= stop_s for time_s, _ in timed) for start_s, stop_s in blocks)


def switches_W(text: str) -> float:
    """What a log of switches says: what they are specified to draw at most, or else the mean of what was measured."""
    told = list(events(text))
    stated = [float(event["value"]) for event in told if event["key"] == "interconnect_power_est"]
    read = [float(event["value"]) for event in told if event["key"] == "power_reading"]
    return stated[0] if stated else fmean(read)


def conversion(text: str) -> float | None:
    """What a node's log states that its power supplies give of what they draw."""
    return next((float(event["value"]) for event in events(text) if event["key"] == "conversion_eff"), None)


def figures(result: Path, meters: Mapping[str, Path], *, same_clock: bool = True) -> dict[str, float]:
    """Of one run.

    Args:
        result: its log.
        meters: folders of its nodes' logs, by where these measure (`ac`, `dc`).
        same_clock: of its log and all meters; else that of the log is taken for `node_0`'s, and others by it.
    """
    run = TimedRun.of(result.read_text(encoding="utf-8", errors="replace"))
    steady = run.blocks[1:]
    found: dict[str, float] = {
        "steps": sum(run.steps),
        "run_s": run.span[1] - run.span[0],
        "evaluation_s": sum(stop_s - start_s for start_s, stop_s in run.evaluations),
        "steady_s": sum(stop_s - start_s for start_s, stop_s in steady),
        "steady_steps": sum(run.steps[1:]),
    }
    if run.timer_s is not None:
        found["step_timer_s"] = run.timer_s
    for side, folder in meters.items():
        texts = [file.read_text(encoding="utf-8") for file in sorted(folder.glob("node_*.txt"))]
        nodes = [Readings.of(text) for text in texts]
        if not same_clock:
            nodes = [node.beside(nodes[0], run.span) for node in nodes]
        means_W = np.array([node.mean_W(steady) for node in nodes])
        found[f"node_{side}_W"] = float(np.nanmean(means_W))
        found[f"node_{side}_spread_W"] = float(np.nanstd(means_W))
        found[f"run_{side}_J"] = sum(node.energy_J(run.span) for node in nodes)
        stated = conversion(texts[0])
        if stated is not None:
            found["conversion"] = stated
        for file in sorted(folder.glob("sw_*.txt")):
            found["switches_W"] = switches_W(file.read_text(encoding="utf-8"))
    return found


def runs(results: Mapping[str, Path], *, same_clock: bool = True) -> dict[str, dict[str, float]]:
    """Of every run of a system, by the name of its log.

    Args:
        results: folders of logs of the same runs, by where their nodes were measured (`ac`, `dc`).
        same_clock: as of `figures`.
    """
    found = {}
    for log in sorted(next(iter(results.values())).glob("result_*.txt")):
        meters = {side: folder / "power" / log.stem for side, folder in results.items()}
        found[log.stem] = figures(log, meters, same_clock=same_clock)
    return found
