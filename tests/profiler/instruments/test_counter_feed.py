"""The reader process: it reads as a thread would, loads nothing heavy, and leaves no orphan however its parent ends."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moemodel.model.core.errors import DeviceError
from moemodel.profiler.devices.address import Address
from moemodel.profiler.instruments.counter_feed import CounterFeed

# A counter of 400 W that ticks every 50 ms; what else the process has loaded is told as "power".
SENSORS = """
import math, sys, time
class Sensors:
    oddities = {}
    def __init__(self, argument):
        self.power = float(argument)
    def energy_J(self):
        return None if self.power < 0 else self.power * math.floor(time.perf_counter() / 0.05) * 0.05
    def power_W(self):
        return float(sum(name in sys.modules for name in ("torch", "numpy", "pydantic", "pandas")))
def open_sensors(argument):
    if argument == "none":
        raise OSError("no such GPU")
    return Sensors(argument)
"""


@pytest.fixture
def opener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "some_sensors.py").write_text(SENSORS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "some_sensors:open_sensors"


def _gone(pid: int, within_s: float = 5.0) -> bool:
    """Whether a process that is not our child ends, or is a zombie of somebody else's."""
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_edges_are_on_the_clock_of_this_process(opener: str) -> None:
    begun_s = time.perf_counter()
    feed = CounterFeed([Address(opener=opener, argument="400"), Address(opener=opener, argument="-1")])
    time.sleep(0.6)
    feed.finders[0].poll()
    ended_s = time.perf_counter()
    edges = list(feed.finders[0].edges)
    assert 5 <= len(edges) <= 13
    assert all(begun_s < edge.time_s < ended_s for edge in edges)
    for edge in edges:  # a tick lies within the width of each
        off_s = (edge.time_s + 0.025) % 0.05 - 0.025
        assert abs(off_s) <= edge.width_s / 2 + 0.002
        assert edge.energy_J == pytest.approx(400 * math.floor((edge.time_s + edge.width_s / 2) / 0.05) * 0.05, abs=21)
    assert feed.finders[0].read_s == pytest.approx(ended_s, abs=0.4)
    assert not feed.finders[1].edges
    assert feed.finders[1].read_s is None
    assert len(feed.finders[1].powers) >= 3  # without a counter, ten times a second
    assert {power_W for _, power_W in feed.finders[1].powers} == {0.0}  # nothing heavy is loaded there
    feed.close()
    assert _gone(feed.pid)
    assert feed.error == "closed"


def test_a_device_that_it_cannot_open_is_said(opener: str) -> None:
    with pytest.raises(DeviceError, match="does not start: OSError: no such GPU"):
        CounterFeed([Address(opener=opener, argument="none")])
    with pytest.raises(DeviceError, match="does not start: ModuleNotFoundError"):
        CounterFeed([Address(opener="nowhere:at_all", argument="")])


def test_signals_of_a_terminal_or_batch_system_do_not_end_it(opener: str) -> None:
    feed = CounterFeed([Address(opener=opener, argument="400")])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        os.kill(feed.pid, number)
    time.sleep(0.3)
    feed.poll()
    assert feed.error is None
    os.kill(feed.pid, signal.SIGKILL)
    time.sleep(0.1)
    feed.poll()
    assert feed.error == "their reader ended before the session did"
    feed.close()


PARENT = """
import os, sys, time
from moemodel.profiler.devices.address import Address
from moemodel.profiler.instruments.counter_feed import CounterFeed
feed = CounterFeed([Address(opener="some_sensors:open_sensors", argument="400")])
child = os.fork()  # as a DataLoader's worker: it holds the pipes too, and lives on
if child == 0:
    feed.close()  # is not its own
    time.sleep(20)
    os._exit(0)
print(feed.pid, child, flush=True)
if sys.argv[1] == "returns":
    sys.exit(0)
if sys.argv[1] == "raises":
    raise RuntimeError
time.sleep(20)
"""


@pytest.mark.parametrize("end", ["killed", "returns", "raises"])
def test_no_orphan_is_left(opener: str, tmp_path: Path, end: str) -> None:
    del opener
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, end], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as parent:
        assert parent.stdout is not None
        pid, child = map(int, parent.stdout.readline().split())
        try:
            if end == "killed":
                time.sleep(0.2)
                assert not _gone(pid, 0.0)
                parent.send_signal(signal.SIGKILL)
            assert _gone(pid)
        finally:
            os.kill(child, signal.SIGKILL)


def test_what_nobody_takes_is_kept(opener: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far more than a pipe holds, taken in pieces of any size."""
    from moemodel.profiler.instruments import counter_feed
    from moemodel.profiler.instruments.reader_process import EDGE, Reader

    del opener
    source, sink = os.pipe()
    os.set_blocking(sink, False)
    os.set_blocking(source, False)
    reader = Reader([], sink)
    for number in range(10_000):
        reader._emit_record(EDGE, 0, float(number), 0.0, 1.0)
    monkeypatch.setattr(counter_feed, "_CHUNK_B", 1000)  # no whole number of records
    feed = CounterFeed.__new__(CounterFeed)
    feed.finders, feed.error, feed._rest, feed._source = [counter_feed.FedFinder(feed)], None, b"", source
    feed._owner, feed._lock = os.getpid(), counter_feed.threading.Lock()
    for _ in range(20):
        reader._write()
        feed.poll()
    assert [edge.time_s for edge in feed.finders[0].edges] == [float(number) for number in range(10_000)]
    os.close(source)
    os.close(sink)
