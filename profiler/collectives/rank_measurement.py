"""The section as every rank of a job runs it: times of collectives, loads held, overlap; rank 0 tells the rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, TypeVar

from moemodel.model.records.profile import IDLE_LINKS, CollectiveRow, OverlapRow
from moemodel.profiler.collectives.collective_timer import CollectiveTimer, Timing
from moemodel.profiler.collectives.operations import Buffers, Operation, computation
from moemodel.profiler.collectives.points import LinkPoint, OverlapPoint, longest
from moemodel.profiler.collectives.process_groups import ProcessGroups, RankGroup
from moemodel.profiler.collectives.request import Request
from moemodel.profiler.collectives.sustained import SustainedPower, SustainedRunner, Work
from moemodel.profiler.devices.base import Device
from moemodel.profiler.instruments.cycle_counter import ClockReader
from moemodel.profiler.jobs.events import EventWriter
from moemodel.profiler.jobs.ranks import Ranks

ReadingT = TypeVar("ReadingT", Timing, SustainedPower)

_PILOT_CALLS = 8  # of a computation
_LEAST_S = 1e-7  # what a call takes at least, to divide by


class Section:
    """The section on one rank.

    Args:
        ranks: who this is.
        device: that it drives.
        request: what to measure; the same on every rank.
        events: written on rank 0.
    """

    def __init__(self, ranks: Ranks, device: Device, request: Request, events: EventWriter) -> None:
        self._ranks, self._device, self._request, self._events = ranks, device, request, events
        self._scale = request.scale
        points: list[LinkPoint | OverlapPoint] = [*request.points, *request.overlaps]
        self._points = points
        self._groups = ProcessGroups(ranks, {point.ranks for point in points}, self._scale.timeout_s)
        self._clock = ClockReader(device)
        self._timer = CollectiveTimer(device, self._clock)
        self._runner = SustainedRunner(
            device, self._clock, device.link_traffic(), self._scale.settle_s, self._scale.window_s
        )
        self._buffers = Buffers(device.torch_device, longest(points), request.seed + ranks.rank)
        self._computations: dict[str, SustainedPower] = {}  # alone
        self._collectives: dict[LinkPoint, tuple[Timing, SustainedPower]] = {}

    def run(self) -> None:
        """Measure everything, as far as the time goes."""
        if self._clock.note:
            self._tell("note", text=self._clock.note)
        points = self._points
        for index, point in enumerate(points):
            if not self._groups.told(time.time() < self._request.until_wall_s):
                self._tell("left", count=len(points) - index)
                return
            self._tell("at", what=str(point))
            if isinstance(point, LinkPoint):
                self._link(point)
            else:
                self._overlap(point)

    def _tell(self, event: str, **facts: Any) -> None:
        if self._ranks.rank == 0:
            self._events.write(event, **facts)

    # --- collectives by themselves ---------------------------------------------------------------------------------

    def _link(self, point: LinkPoint) -> None:
        group = self._groups.group(point.ranks)
        reading = self._link_reading(point, group) if group else None
        heard = [(_told(Timing, timing), _told(SustainedPower, held)) for timing, held in self._gather(reading)]
        if self._ranks.rank == 0:
            self._tell_row(_link_row(point, heard))

    def _link_reading(self, point: LinkPoint, group: RankGroup) -> tuple[Timing | None, SustainedPower | None]:
        if point.collective == IDLE_LINKS:
            return None, self._runner.idle(group)
        operation = self._buffers.operation(point, group)
        timing = self._timing(operation, group)
        return timing, self._hold(operation, timing, group) if point.held else None

    def _timing(self, operation: Operation, group: RankGroup) -> Timing:
        scale = self._scale
        return self._timer.timing(
            operation, group, stretches=scale.stretches, stretch_s=scale.stretch_s, most=scale.calls_most
        )

    def _hold(
        self, operation: Operation, timing: Timing, group: RankGroup, beside: Work | None = None, priority: int = 0
    ) -> SustainedPower:
        return self._runner.hold(group, _work(operation, timing, group), beside, priority)

    # --- beside a computation --------------------------------------------------------------------------------------

    def _overlap(self, point: OverlapPoint) -> None:
        group = self._groups.group(point.ranks)
        reading = self._overlap_reading(point, group) if group else None
        heard = [tuple(SustainedPower(**held) for held in loads) for loads in self._gather(reading)]
        if self._ranks.rank == 0:
            self._tell_row(_overlap_row(point, heard))

    def _overlap_reading(
        self, point: OverlapPoint, group: RankGroup
    ) -> tuple[SustainedPower, SustainedPower, SustainedPower]:
        """The computation alone, the collective alone, both."""
        link = LinkPoint(collective=point.collective, ranks=point.ranks, size_B=point.size_B)
        operation = self._buffers.operation(link, group)
        computing = self._computing(point, group)
        shape = f"{point.computation} {point.m} {point.n} {point.k}"
        if shape not in self._computations:
            self._computations[shape] = self._runner.hold(group, None, computing)
        if link not in self._collectives:
            timing = self._timing(operation, group)
            self._collectives[link] = (timing, self._hold(operation, timing, group))
        timing, collective = self._collectives[link]
        both = self._hold(operation, timing, group, computing, point.priority)
        return self._computations[shape], collective, both

    def _computing(self, point: OverlapPoint, group: RankGroup) -> Work:
        """The computation as work, timed in passing: how many calls make a chunk need not be exact."""
        call = computation(point.computation, point.m, point.n, point.k, self._device.torch_device, self._request.seed)

        def run(calls: int) -> None:
            for _ in range(calls):
                call()

        quick = Operation(call=call)
        timing = self._timer.timing(quick, group, stretches=1, stretch_s=1e-3, most=_PILOT_CALLS)
        return Work(run=run, time_s=max(_LEAST_S, group.most(timing.time_s)))

    def _gather(self, reading: Sequence[Timing | SustainedPower | None] | None) -> list[Any]:
        """What the ranks of a point read, as JSON has it, on rank 0."""
        plain = None if reading is None else [None if part is None else asdict(part) for part in reading]
        return [heard for heard in self._groups.gather(plain) if heard is not None]

    def _tell_row(self, row: CollectiveRow | OverlapRow) -> None:
        """Tell a row, and what this rank's device is like now."""
        row = replace(row, temperature_C=self._device.temperature_C(), wall_s=time.time())
        self._tell("row", table=row.TABLE, row=asdict(row))


def _work(operation: Operation, timing: Timing, group: RankGroup) -> Work:
    """A collective as work whose chunks are the same on every rank; small ones go as fast as the host queues them."""
    call_s = max(timing.time_s, timing.host_time_s or 0.0) * operation.per_call
    return Work(
        run=partial(Operation.run, operation), time_s=max(_LEAST_S, group.most(call_s)), messages=operation.per_call
    )


def _told(kind: type[ReadingT], said: dict[str, Any] | None) -> ReadingT | None:
    """A reading from its JSON."""
    return None if said is None else kind(**said)


def _link_row(point: LinkPoint, heard: Sequence[tuple[Timing | None, SustainedPower | None]]) -> CollectiveRow:
    """The row of a point, from what the group's ranks read.

    Time is the longest over the ranks: a step goes on when the last of them has what it waits for. Everything else is
    the mean.
    """
    timings = [timing for timing, _ in heard if timing]
    helds = [held for _, held in heard if held]
    return CollectiveRow(
        collective=point.collective,
        ranks=point.ranks,
        size_B=point.size_B,
        skew=point.skew,
        calls=timings[0].calls if timings else None,
        time_s=max((timing.time_s for timing in timings), default=None),
        host_time_s=_mean([timing.host_time_s for timing in timings]),
        clock_Hz=_mean([timing.clock_Hz for timing in timings]),
        held_time_s=max((held.collective_time_s for held in helds if held.collective_time_s), default=None),
        duration_s=_mean([held.duration_s for held in helds]),
        power_W=_mean([held.power_W for held in helds]),
        held_clock_Hz=_mean([held.clock_Hz for held in helds]),
        nvlink_tx_Bps=_mean([held.sent_Bps for held in helds]),
        nvlink_rx_Bps=_mean([held.received_Bps for held in helds]),
    )


def _overlap_row(point: OverlapPoint, heard: Sequence[tuple[SustainedPower, ...]]) -> OverlapRow:
    """The row of a point, from what the ranks read: longest times of collectives, means of everything else."""
    computing, collective, both = ([held[i] for held in heard] for i in range(3))
    return OverlapRow(
        **asdict(point),
        calls=both[0].calls,
        duration_s=_mean([held.duration_s for held in both]),
        computation_time_s=_mean([held.computation_time_s for held in computing]),
        collective_time_s=max((h.collective_time_s for h in collective if h.collective_time_s), default=None),
        together_computation_time_s=_mean([held.computation_time_s for held in both]),
        together_collective_time_s=max((h.collective_time_s for h in both if h.collective_time_s), default=None),
        computation_power_W=_mean([held.power_W for held in computing]),
        collective_power_W=_mean([held.power_W for held in collective]),
        together_power_W=_mean([held.power_W for held in both]),
        computation_clock_Hz=_mean([held.clock_Hz for held in computing]),
        collective_clock_Hz=_mean([held.clock_Hz for held in collective]),
        together_clock_Hz=_mean([held.clock_Hz for held in both]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of what is known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
