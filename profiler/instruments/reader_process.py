"""The reader: a small process that reads energy counters, so that the process that trains does not.

Run by `counter_feed` beside one meter; it imports nothing heavy: no torch, no numpy. A thread would do the same
readings, and where the host is what a step waits for, each costs the training thread the interpreter's lock, which
changes hands twice; a process shares nothing with it but a pipe.

It writes "ready", or "failed: why", on a line of its own, then records of 32 bytes (`RECORD`):

    EDGE device time_s width_s energy_J     the counter of that device changed
    POWER device time_s power_W nan         a power reading
    ALIVE device asked_s read_s nan         the counter was asked last, and answered last (nan: never), every 0.25 s
    ODD device value sensor nan             a reading that cannot be, and of `SENSORS` which

Times are of `time.perf_counter`, which all processes of a machine share. A record is written whole or not at all: where
nobody takes them, they are kept here, up to a day's. The end is when stdin is closed, or when its parent is another
than it was (a child of the trainer may hold the other end of stdin open): training has ended, or was killed.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from moemodel.profiler.devices.address import Address
from moemodel.profiler.instruments.counter_reading import EdgeFinder

RECORD = struct.Struct("<ii3d")
EDGE, POWER, ALIVE, ODD = range(4)
SENSORS = ("sensor", "energy", "power", "power instant")

_ALIVE_S = 0.25  # between looks at who the parent is, too
_KEPT = 1_000_000  # records: a day of one counter
_AT_ONCE = 64  # records in one write: less than a pipe takes whole (POSIX: 512 bytes at least, Linux 4096)
_NAN = math.nan
# What a terminal or a batch system sends to all processes of a job: its trainer decides, and this one ends with it.
_IGNORED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCONT", "SIGXCPU", "SIGPIPE")


class Reader:
    """Reads counters whenever they are due, and says so.

    Args:
        sensors: of each device: `energy_J()`, `power_W()`, and maybe `oddities`.
        sink: file descriptor of the records; it must not block.
    """

    def __init__(self, sensors: Sequence[Any], sink: int) -> None:
        self._sensors = sensors
        self._sink = sink
        self._finders = [EdgeFinder(each, time.perf_counter) for each in sensors]
        self._told_odd: set[tuple[int, str]] = set()
        self._waiting: deque[bytes] = deque(maxlen=_KEPT)
        self._alive_s = 0.0

    def turn(self) -> float:
        """Read what is due, write what is known; seconds until something is due again."""
        for device, finder in enumerate(self._finders):
            if time.perf_counter() >= finder.due_s:
                finder.read()
                self._take(device, finder)
        now_s = time.perf_counter()
        if now_s >= self._alive_s:
            self._alive_s = now_s + _ALIVE_S
            for device, finder in enumerate(self._finders):
                self._emit_record(ALIVE, device, _or_nan(finder.asked_s), _or_nan(finder.read_s))
        self._write()
        due_s = min([self._alive_s, *(finder.due_s for finder in self._finders)])
        return max(due_s - time.perf_counter(), 0.0)

    def _take(self, device: int, finder: EdgeFinder) -> None:
        while finder.edges:
            self._emit_record(EDGE, device, *finder.edges.popleft())
        while finder.powers:
            self._emit_record(POWER, device, *finder.powers.popleft())
        for what, value in getattr(self._sensors[device], "oddities", {}).items():
            if (device, what) not in self._told_odd:
                self._told_odd.add((device, what))
                self._emit_record(ODD, device, value, float(SENSORS.index(what)) if what in SENSORS else 0.0)

    def _emit_record(self, kind: int, device: int, *values: float) -> None:
        self._waiting.append(RECORD.pack(kind, device, *(*values, _NAN, _NAN)[:3]))

    def _write(self) -> None:
        while self._waiting:
            records = [self._waiting.popleft() for _ in range(min(len(self._waiting), _AT_ONCE))]
            try:
                os.write(self._sink, b"".join(records))  # no more than PIPE_BUF: whole or not at all
            except BlockingIOError:
                self._waiting.extendleft(reversed(records))
                return


def _or_nan(value: float | None) -> float:
    return _NAN if value is None else value


def watch(sensors: Sequence[Any], parent: int, source: int, sink: int) -> None:
    """Read until there is nobody left to read for.

    Args:
        sensors: of each device.
        parent: process id of who started this one.
        source: file descriptor that is closed in the end.
        sink: of the records.
    """
    os.set_blocking(sink, False)
    reader = Reader(sensors, sink)
    while os.getppid() == parent:
        try:
            wait_s = reader.turn()
        except BrokenPipeError:
            return
        if select.select([source], [], [], wait_s)[0] and not os.read(source, 1):
            return


def main(arguments: list[str]) -> int:
    """Read the devices that the job names (JSON: parent, addresses)."""
    for name in _IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    job = json.loads(arguments[0])
    try:
        sensors = [Address(**address).open() for address in job["addresses"]]
    except Exception as error:  # noqa: BLE001 - whatever the driver's library raises: the meter then reads by itself
        sys.stdout.write(f"failed: {type(error).__name__}: {error}\n")
        return 1
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    watch(sensors, job["parent"], sys.stdin.fileno(), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
