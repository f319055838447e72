"""Loads held for a while: a collective, a computation, or both at once; their rates, power and true clock.

Of the collective every rank queues the same number of calls. Of the computation each rank queues as much as lasts
until its collectives are done, so that these lie wholly inside it: both rates, and the power, are counted while both
run, with no tail of one alone. Both are queued a few chunks ahead, which covers the host's pauses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from moemodel.profiler.collectives.comm_streams import CommStream, Marker, open_streams
from moemodel.profiler.collectives.process_groups import RankGroup
from moemodel.profiler.devices.base import Device, LinkMeter
from moemodel.profiler.instruments.cycle_counter import ClockReader
from moemodel.profiler.instruments.energy_sampler import EnergySampler

_AHEAD = 3  # chunks that are queued beside the one that runs
_CHUNK_S = 5e-3  # long against a host's pause, short against the window that power is taken over (`points`, 0.55 s)
_NAP_S = 50e-6  # between looks at the lanes: short against a chunk, and leaves the interpreter to other threads


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a stream repeats.

    Attributes:
        run: queues so many calls.
        time_s: of one call, about, by itself.
        messages: that a call sends after one another; times are of one.
    """

    run: Callable[[int], None]
    time_s: float
    messages: int = 1

    @property
    def calls(self) -> int:
        """Of a chunk."""
        return max(1, round(_CHUNK_S / self.time_s))


@dataclass(frozen=True, kw_only=True)
class SustainedPower:
    """What was measured while a load was held, on one rank.

    Attributes:
        collective_time_s, computation_time_s: of one call at the rate that was kept; None: it did not run.
        calls: of the collective, or of the computation where that ran alone, in the window.
        duration_s: of the window.
        power_W, clock_Hz: mean over the window; None where they can't be read.
        sent_Bps, received_Bps: over NVLink.
    """

    collective_time_s: float | None
    computation_time_s: float | None
    calls: int
    duration_s: float
    power_W: float | None
    clock_Hz: float | None
    sent_Bps: float | None
    received_Bps: float | None


@dataclass(kw_only=True)
class _Feed:
    """A stream being kept busy; `left`: chunks still to be queued, None for as many as the time takes."""

    stream: CommStream
    work: Work
    left: int | None
    markers: list[Marker] = field(default_factory=list)
    reached: int = 0

    def feed(self) -> None:
        while self.reached < len(self.markers) and self.markers[self.reached].done():
            self.reached += 1
        while self.left != 0 and len(self.markers) - self.reached <= _AHEAD:
            self.markers.append(self.stream.queue(lambda: self.work.run(self.work.calls)))
            self.left = None if self.left is None else self.left - 1

    @property
    def finished(self) -> bool:
        return self.left == 0 and self.reached == len(self.markers)

    def kept(self, begin_s: float, end_s: float) -> list[Marker]:
        """The chunks that ended between two instants of the markers' time; all of them where that leaves too few."""
        inside = [marker for marker in self.markers if begin_s <= marker.time_s() <= end_s]
        return inside if len(inside) > 1 else self.markers

    def call_s(self, kept: list[Marker]) -> float:
        """Time of a message at the rate at which those chunks ended."""
        return (kept[-1].time_s() - kept[0].time_s()) / ((len(kept) - 1) * self.work.calls * self.work.messages)


class SustainedRunner:
    """Holds loads on the device of this rank.

    Args:
        device: that this rank drives.
        clock: of its true clock.
        links: meter of its NVLinks.
        settle_s: before the window.
        window_s: at least.
    """

    def __init__(self, device: Device, clock: ClockReader, links: LinkMeter, settle_s: float, window_s: float) -> None:
        self._device, self._clock, self._links = device, clock, links
        self._settle_s, self._window_s = settle_s, window_s

    def idle(self, group: RankGroup) -> SustainedPower:
        """Nothing, for as long as a load."""
        group.barrier()
        with EnergySampler(self._device) as sampler:
            begun_s = time.perf_counter()
            time.sleep(self._settle_s + self._window_s)
            power_W = _power_W(sampler, begun_s, time.perf_counter())
        return SustainedPower(
            collective_time_s=None,
            computation_time_s=None,
            calls=0,
            duration_s=self._settle_s + self._window_s,
            power_W=power_W,
            clock_Hz=None,
            sent_Bps=None,
            received_Bps=None,
        )

    def hold(
        self, group: RankGroup, collective: Work | None, computation: Work | None, priority: int = 0
    ) -> SustainedPower:
        """Hold a collective, a computation, or both; every rank of the group calls this at the same time.

        Args:
            group: whose ranks take part.
            collective: with the same time of a call on every rank, which decides how many there are.
            computation: of this rank.
            priority: of the collective's stream.
        """
        long_s = self._settle_s + self._window_s
        streams = open_streams(self._device, self._clock, priority, 0)
        feeds: list[_Feed] = []
        if collective:
            # beside a computation that fills the device, one is let in whenever a kernel of the other ends
            call_s = collective.time_s + (computation.time_s if computation else 0.0)
            chunks = 2 + math.ceil(long_s / (call_s * collective.calls))
            feeds.append(_Feed(stream=streams[0], work=collective, left=chunks))
        if computation:
            feeds.append(_Feed(stream=streams[1], work=computation, left=None))
        group.barrier()
        try:
            with EnergySampler(self._device) as sampler:
                return self._held(feeds, sampler, bool(collective), bool(computation))
        finally:
            for stream in streams:
                stream.close()

    def _held(self, feeds: list[_Feed], sampler: EnergySampler, collective: bool, computation: bool) -> SustainedPower:
        begun_s = time.perf_counter()
        settled_s = begun_s + self._settle_s
        self._keep_busy(feeds, settled_s)
        self._links.begin()
        ended_s = self._keep_busy(feeds, None if collective else settled_s + self._window_s)
        traffic = self._links.end()
        for feed in feeds:
            feed.left = 0
            while not feed.finished:
                feed.feed()
                time.sleep(_NAP_S)
        first = feeds[0]
        kept = first.kept(first.markers[0].time_s() + self._settle_s, math.inf)  # which bounds the second's
        times_s = [first.call_s(kept)]
        times_s += [feed.call_s(feed.kept(kept[0].time_s(), kept[-1].time_s())) for feed in feeds[1:]]
        return SustainedPower(
            collective_time_s=times_s[0] if collective else None,
            computation_time_s=times_s[-1] if computation else None,
            calls=(len(kept) - 1) * first.work.calls,
            duration_s=kept[-1].time_s() - kept[0].time_s(),
            power_W=_power_W(sampler, settled_s, ended_s),
            clock_Hz=self._clock.mean_Hz(kept[0].stamp, kept[-1].stamp),
            sent_Bps=traffic["sent_Bps"],
            received_Bps=traffic["received_Bps"],
        )

    def _keep_busy(self, feeds: list[_Feed], until_s: float | None) -> float:
        """Feed the streams until an instant, or until the first has done all it had to do; the instant of the end."""
        while not feeds[0].finished and (until_s is None or time.perf_counter() < until_s):
            for feed in feeds:
                feed.feed()
            time.sleep(_NAP_S)
        return time.perf_counter()


def _power_W(sampler: EnergySampler, begun_s: float, ended_s: float) -> float | None:
    window = sampler.window(begun_s, ended_s)
    return window.power_W if window else None
