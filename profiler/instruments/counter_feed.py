"""Edges of energy counters that a process of its own reads (`reader_process`), as if they had been found here."""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict

from moemodel.model.core.errors import DeviceError
from moemodel.profiler.devices.address import Address
from moemodel.profiler.devices.nvml_sensors import oddity
from moemodel.profiler.instruments.counter_reading import Edge
from moemodel.profiler.instruments.reader_process import ALIVE, EDGE, ODD, POWER, RECORD, SENSORS

_START_S = 20.0  # to find the GPUs: NVML takes about a second on a machine of eight
_END_S = 2.0  # to end after stdin is closed; then it is killed
_CHUNK_B = 1 << 16  # read at once: what a pipe holds
# Isolated; then what this process finds, after Python's own modules, whose place nothing lying about takes.
_BEGIN = (
    "import json, os, sys; "
    "sys.path += [entry or os.getcwd() for entry in json.loads(sys.argv[1]) if entry not in sys.path]; "
    "from moemodel.profiler.instruments.reader_process import main; "
    "sys.exit(main(sys.argv[2:]))"
)


class FedFinder:
    """One counter's edges from the reader; a `counter_reading.Finder`.

    Attributes:
        edges, powers: see there.
        asked_s, read_s: when the counter was asked, and answered, last; None before.
        remarks: readings that could not be.
    """

    read_by = "process"

    def __init__(self, feed: CounterFeed) -> None:
        self.edges: deque[Edge] = deque()
        self.powers: deque[tuple[float, float]] = deque()
        self.asked_s: float | None = None
        self.read_s: float | None = None
        self.remarks: list[str] = []
        self._feed = feed

    def poll(self) -> None:
        """Take in what the reader has written; waits for nothing."""
        self._feed.poll()


class CounterFeed:
    """The reader process, and what it writes.

    It is started by fork and exec at once, which is safe after CUDA has begun; it ends with this process, however that
    ends. A child that was forked from this process inherits the pipes and must not use them.

    Args:
        addresses: of the sensors of each device.

    Attributes:
        finders: of each device.
        pid: of the reader.
        error: why nothing more comes; None while it does.

    Raises:
        DeviceError: it does not start, or does not find a device.
    """

    def __init__(self, addresses: Sequence[Address]) -> None:
        self.finders = [FedFinder(self) for _ in addresses]
        self.error: str | None = None
        self._lock = threading.Lock()  # the thread that writes files may take in records too
        self._rest = b""
        self._owner = os.getpid()
        job = json.dumps({"parent": os.getpid(), "addresses": [asdict(address) for address in addresses]})
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _BEGIN, json.dumps(sys.path), job],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except (OSError, TypeError, ValueError) as error:  # no interpreter to be found (an embedded one), no room
            raise DeviceError(f"the reader of energy counters cannot be started: {error}") from error
        self.pid = self._process.pid
        assert self._process.stdout is not None
        self._source = self._process.stdout.fileno()
        answer = self._answer()
        if answer != "ready":
            self.close()
            raise DeviceError(f"the reader of energy counters does not start: {answer or 'it ended'}")
        os.set_blocking(self._source, False)

    def poll(self) -> None:
        """Take in what has come; waits for nothing."""
        with self._lock:
            while self.error is None and os.getpid() == self._owner:
                try:
                    read = os.read(self._source, _CHUNK_B)
                except BlockingIOError:
                    return
                if not read:
                    self.error = "their reader ended before the session did"
                    return
                self._take(self._rest + read)

    def close(self) -> None:
        """End the reader; what it had written is taken in first."""
        if os.getpid() != self._owner or self._process.stdin is None:
            return
        if self._process.poll() is None:
            self.poll()
        self.error = self.error or "closed"
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _answer(self) -> str:
        """The first line; empty if none comes in time."""
        end_s, line = time.monotonic() + _START_S, b""
        while not line.endswith(b"\n"):
            if not select.select([self._source], [], [], max(end_s - time.monotonic(), 0.0))[0]:
                return f"nothing was heard of it for {_START_S:.0f} s"
            read = os.read(self._source, 1)  # no more: records follow
            if not read:
                break
            line += read
        return line.decode(errors="replace").strip().removeprefix("failed: ")

    def _take(self, data: bytes) -> None:
        whole = len(data) - len(data) % RECORD.size
        self._rest = data[whole:]
        for kind, device, a, b, c in RECORD.iter_unpack(data[:whole]):
            finder = self.finders[device]
            if kind == EDGE:
                finder.edges.append(Edge(a, b, c))
                finder.asked_s = finder.read_s = max(finder.read_s or a, a + b / 2)
            elif kind == POWER:
                finder.powers.append((a, b))
            elif kind == ALIVE:
                finder.asked_s = None if math.isnan(a) else a
                finder.read_s = None if math.isnan(b) else b
            elif kind == ODD:
                finder.remarks.append(oddity(SENSORS[int(b)], a))
