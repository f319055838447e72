"""The meter: on a device with a known power and a ticking counter, with a fake CUDA, and when things go wrong."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import time
from bisect import bisect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import moemodel
from moemodel.model.core.errors import InputError
from moemodel.model.records.profile import DeviceInfo
from moemodel.profiler.devices.address import Address
from moemodel.profiler.devices.cpu import CpuDevice
from moemodel.profiler.devices.nvidia import NvidiaDevice
from moemodel.profiler.meter import device_meter, energy_meter
from moemodel.profiler.meter.device_meter import CudaEventTimer
from moemodel.profiler.meter.energy_meter import Meter, open_devices

TICK_S = 0.1


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


class HostClock:
    """The host's clock in a loop that only sleeps: it moves by what is slept, and by nothing that the machine does.

    What else reads a clock does so meanwhile, whenever it is due: it takes the place of the meter's thread.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        self._watched: list[Any] = []
        self._chore_s = math.inf
        monkeypatch.setattr(time, "perf_counter", lambda: self.now_s)
        monkeypatch.setattr(energy_meter, "_now_s", lambda: self.now_s)
        monkeypatch.setattr(time, "sleep", self.sleep)
        monkeypatch.setattr(energy_meter, "CounterWatch", self._watch)

    def sleep(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while (due_s := min([self._chore_s, *(each.due_s for each in self._watched)])) <= end_s:
            self.now_s = max(self.now_s, due_s)
            for each in self._watched:
                if each.due_s <= self.now_s:
                    each.read()
            if self._chore_s <= self.now_s:
                self._chore()
                self._chore_s = self.now_s + 1.0
        self.now_s = end_s

    def _watch(self, watched: list[Any], chore: Callable[[], None]) -> HostClock:
        self._watched, self._chore, self.error = watched, chore, None
        return self

    def start(self) -> None:
        self._chore_s = self.now_s + 1.0
        self.sleep(0.0)

    def stop(self) -> None:
        self._watched, self._chore_s = [], math.inf
        self._chore()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HostClock:
    """In place of the machine's."""
    return HostClock(monkeypatch)


class Heater:
    """A device whose power the test sets; its counter ticks every 100 ms."""

    def __init__(self, name: str = "heater", tick_s: float = TICK_S) -> None:
        self.info = DeviceInfo(name=name, vendor="cpu", memory_B=1)
        self.torch_device = torch.device("cpu")
        self.broken: Callable[[float], float | None] = lambda energy_J: energy_J
        self.closed = False
        self._tick_s = tick_s
        self._since = [(time.perf_counter(), 0.0, 100.0)]  # instant, energy until then, power from then

    def set(self, power_W: float) -> None:
        now_s = time.perf_counter()
        since_s, energy_J, before_W = self._since[-1]
        self._since.append((now_s, energy_J + before_W * (now_s - since_s), power_W))

    def energy_J(self) -> float | None:
        at_s = math.floor(time.perf_counter() / self._tick_s) * self._tick_s
        since_s, energy_J, power_W = self._since[max(bisect(self._since, (at_s,)) - 1, 0)]
        return self.broken(round(energy_J + power_W * max(at_s - since_s, 0.0), 3))

    def power_W(self) -> float | None:
        return self._since[-1][2]

    def close(self) -> None:
        self.closed = True

    def work(self, seconds: float, power_W: float) -> None:
        self.set(power_W)
        time.sleep(seconds * random.uniform(0.9, 1.1))
        self.set(100.0)


def train(meter: Meter, heater: Heater, steps: int) -> None:
    for _ in range(steps):
        with meter.step():
            with meter.phase("forward"):
                heater.work(0.012, 300)
            with meter.phase("backward"):
                heater.work(0.025, 700)


def test_it_is_public() -> None:
    assert moemodel.Meter is Meter


@pytest.mark.usefixtures("clock")
def test_times_powers_and_energies(tmp_path: Path) -> None:
    random.seed(0)
    heater = Heater()
    with Meter(tmp_path, devices=[heater], strict=True, read_every=4) as meter:
        begin_s = time.perf_counter()
        train(meter, heater, 70)
        took_s = time.perf_counter() - begin_s
    device = meter.summary().devices[0]
    assert device.steps == 70
    assert device.step_time_s == pytest.approx(took_s / 70)
    assert device.step_time_standard_error_s is not None
    forward, backward = device.phases["forward"], device.phases["backward"]
    assert (forward.calls, backward.calls) == (70, 70)
    assert forward.time_s + backward.time_s <= took_s
    assert forward.power_W == pytest.approx(300, rel=0.02)
    assert backward.power_W == pytest.approx(700, rel=0.01)
    assert backward.energy_J == pytest.approx((backward.power_W or 0) * backward.time_s)
    assert device.energy_source == "counter"
    assert device.energy_J == pytest.approx((device.power_W or 0) * device.duration_s)
    assert (device.step_energy_J or 0) * 70 == pytest.approx(device.energy_J, rel=0.05)
    assert not heater.closed  # it is the caller's


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    heater = Heater()
    for _ in range(2):
        with Meter(tmp_path / "new", devices=[heater], strict=True) as meter:
            train(meter, heater, 8)
    names = ["rank3-steps.jsonl", "rank3-summary.json", "rank3.2-steps.jsonl", "rank3.2-summary.json"]
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == names
    rows = [json.loads(line) for line in (tmp_path / "new" / names[0]).read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(8))
    assert {row["rank"] for row in rows} == {3}
    assert all(row["time_s"] >= sum(row["phase_time_s"].values()) for row in rows)
    assert rows[4]["energy_J"] == pytest.approx(20, rel=0.5)
    assert abs(rows[0]["start_unix_s"] - time.time()) < 60
    summary = json.loads((tmp_path / "new" / names[3]).read_text())
    assert summary == json.loads(meter.summary().to_json())
    assert (summary["rank"], summary["world_size"], summary["devices"][0]["steps"]) == (3, 8, 8)


def test_plain_calls_and_phases_outside_steps() -> None:
    meter = Meter(devices=["cpu"], strict=True)
    meter.start()
    for _ in range(3):
        meter.begin_phase("data")
        meter.end_phase()
        meter.begin_step()
        for _ in range(2):  # micro-batches
            meter.begin_phase("forward")
            meter.end_phase()
        meter.end_step()
    meter.stop()
    device = meter.summary().devices[0]
    assert device.steps == 3
    assert {name: phase.calls for name, phase in device.phases.items()} == {"data": 3, "forward": 6}


def test_several_devices() -> None:
    heaters = [Heater("one"), Heater("two")]
    with Meter(devices=heaters, strict=True) as meter:
        for _ in range(25):
            with meter.step():
                heaters[0].set(200)
                heaters[1].set(500)
                time.sleep(0.04)
    summary = meter.summary()
    assert [device.name for device in summary.devices] == ["one", "two"]
    assert [device.power_W for device in summary.devices] == pytest.approx([200, 500], rel=0.1)
    assert summary.energy_J == pytest.approx(sum(device.energy_J or 0 for device in summary.devices))


@pytest.mark.usefixtures("clock")
def test_each_device_is_told_the_batches_of_its_steps(tmp_path: Path) -> None:
    """Also one whose counter passes a step later than the last device's."""
    heaters = [Heater("slow", tick_s=0.4), Heater("quick", tick_s=0.01)]
    with Meter(tmp_path, devices=heaters, strict=True, read_every=1) as meter:
        for _ in range(12):
            with meter.step():
                meter.add_batch(samples=2, tokens=64, loss=1.5)
                for heater in heaters:
                    heater.work(0.03, 300)
    rows = [json.loads(line) for line in (tmp_path / "rank0-steps.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    assert all((row["micro_batches"], row["samples"], row["tokens"], row["loss"]) == (1, 2, 64, 1.5) for row in rows)
    summary = meter.summary()
    assert (summary.micro_batches, summary.samples, summary.tokens) == (12, 24, 768)


def test_sums_are_of_all_steps_or_none() -> None:
    with Meter(devices=["cpu"], strict=True) as meter:
        for index in range(4):
            with meter.step():
                if index != 2:
                    meter.add_batch(samples=2, tokens=64)
    summary = meter.summary()
    assert (summary.micro_batches, summary.samples, summary.tokens) == (None, None, None)
    assert any("told nothing of 1 of 4 steps" in note for note in summary.notes)


def test_summary_in_between_and_steps_that_fail() -> None:
    with Meter(devices=["cpu"], read_every=2, strict=True) as meter:
        for i in range(6):
            try:
                with meter.step(), meter.phase("forward"):
                    if i == 3:
                        raise ValueError
            except ValueError:
                pass
        assert meter.summary().devices[0].steps == 4
    assert meter.summary().devices[0].steps == 5


# --- when things go wrong --------------------------------------------------------------------------------------------


def test_a_device_without_sensors_gives_times(bare_device: Any) -> None:
    with Meter(devices=[bare_device], strict=True) as meter, meter.step():
        pass
    device = meter.summary().devices[0]
    assert (device.steps, device.energy_J, device.energy_source) == (1, None, None)
    assert meter.summary().energy_J is None
    assert any("times only" in note for note in device.notes)


@pytest.mark.usefixtures("clock")
def test_a_counter_that_resets_is_not_trusted() -> None:
    heater = Heater()
    offset_J = 0.0
    heater.broken = lambda energy_J: energy_J - offset_J
    with Meter(devices=[heater], strict=True, read_every=1) as meter:
        train(meter, heater, 12)
        offset_J = 500.0
        train(meter, heater, 12)
    device = meter.summary().devices[0]
    assert device.energy_source == "power readings"
    assert any("ran backwards" in note and "Trust the" in note for note in device.notes)
    assert device.phases["forward"].power_W is None


@pytest.mark.usefixtures("clock")
def test_a_counter_that_sticks_is_not_trusted() -> None:
    heater = Heater()
    last_J: list[float] = []
    heater.broken = lambda energy_J: (last_J or [energy_J])[0]
    with Meter(devices=[heater], strict=True) as meter:
        last_J.append(5.0)
        train(meter, heater, 30)
    device = meter.summary().devices[0]
    assert device.energy_source == "power readings"
    assert any("change" in note and "trust" in note.lower() for note in device.notes)


@pytest.mark.usefixtures("clock")
def test_steps_do_not_wait_for_a_counter_that_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_meter, "_UNREAD_S", 0.5)
    heater = Heater()
    last_J: list[float] = []
    heater.broken = lambda energy_J: (last_J or [energy_J])[0]
    with Meter(tmp_path, devices=[heater], strict=True, read_every=1) as meter:
        train(meter, heater, 12)
        last_J.append(heater.energy_J() or 0.0)
        train(meter, heater, 40)
        time.sleep(0.5)
        train(meter, heater, 1)
        deadline_s = time.perf_counter() + 30
        rows: list[dict[str, Any]] = []
        while len(rows) < 50 and time.perf_counter() < deadline_s:
            time.sleep(0.1)
            rows = [json.loads(line) for line in (tmp_path / "rank0-steps.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert len(rows) >= 50
    assert rows[3]["energy_J"] is not None
    assert rows[40]["energy_J"] is None


def test_misuse_is_a_warning_or_an_error() -> None:
    meter = Meter(devices=["cpu"])
    with pytest.warns(RuntimeWarning, match="begin_step: this meter is new, not running"):
        meter.begin_step()
    with meter, meter.step(), meter.phase("forward"):
        with pytest.warns(RuntimeWarning, match="begin_phase 'loss': 'forward' has not ended; phases do not nest"):
            meter.begin_phase("loss")
        with pytest.warns(RuntimeWarning, match="begin_step: the step before has not ended"):
            meter.begin_step()
    assert meter.summary().devices[0].steps == 1
    assert len(meter.summary().notes) == 3
    strict = Meter(devices=["cpu"], strict=True)
    with pytest.raises(InputError, match="end_phase: this meter is new"):
        strict.end_phase()
    with strict, pytest.raises(InputError, match="end_step: no step has begun"):
        strict.end_step()
    with pytest.raises(InputError, match="started before"):
        strict.start()
    with pytest.raises(InputError, match="read_every: found 0"):
        Meter(read_every=0)


def test_a_phase_left_open_ends_with_its_step() -> None:
    with Meter(devices=["cpu"]) as meter:
        meter.begin_step()
        meter.begin_phase("forward")
        with pytest.warns(RuntimeWarning, match="phase 'forward' was still open"):
            meter.end_step()
    assert meter.summary().devices[0].phases["forward"].calls == 1


def test_training_goes_on_when_metering_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    heater = Heater()
    with Meter(devices=[heater], read_every=4) as meter:
        train(meter, heater, 4)
        monkeypatch.setattr(meter._meters[0], "read", lambda: 1 / 0)
        with pytest.warns(RuntimeWarning, match="metering ended, training goes on: ZeroDivisionError"):
            train(meter, heater, 4)
    assert meter.summary().devices[0].steps == 4
    assert len(meter.summary().notes) == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    meter = Meter(tmp_path / "file", devices=["cpu"])
    with pytest.warns(RuntimeWarning, match="metering ended"), meter, meter.step():
        pass
    assert meter.summary().devices == ()


def test_strict_does_not_hide_the_users_error() -> None:
    with pytest.raises(KeyError), Meter(devices=["cpu"], strict=True) as meter, meter.step():
        raise KeyError
    assert meter.summary().devices[0].steps == 0


# --- devices ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, fake_nvml: Any, fake_gpu: Any) -> Any:
    properties = SimpleNamespace(
        name=fake_gpu.name, uuid=fake_gpu.uuid, multi_processor_count=132, total_memory=1 << 30
    )
    monkeypatch.setitem(__import__("sys").modules, "pynvml", fake_nvml)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    return fake_nvml


def _names(wanted: list[Any] | None) -> list[str]:
    return [str(device.torch_device) for device in open_devices(wanted)[0]]


@pytest.mark.usefixtures("two_gpus")
def test_all_visible_or_the_ranks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _names(None) == ["cuda:0", "cuda:1"]
    assert _names([1]) == _names(["cuda:1"]) == _names([torch.device("cuda", 1)]) == ["cuda:1"]
    assert isinstance(open_devices([0])[0][0], NvidiaDevice)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert _names(None) == ["cuda:1"]


def test_nothing_is_ever_set(two_gpus: Any) -> None:
    for device in open_devices(None)[1]:
        device.energy_J()
        device.close()
    assert not [name for name in two_gpus.calls if "Set" in name or "Reset" in name]


def test_without_nvml_times_are_measured(two_gpus: Any) -> None:
    two_gpus.init_error = two_gpus.NVML_ERROR_DRIVER_NOT_LOADED
    devices, _, notes = open_devices([0])
    assert (devices[0].energy_J(), devices[0].power_W()) == (None, None)
    assert "its times are measured, its energy is not" in notes[0]


@pytest.mark.parametrize("wanted", [["tpu9"], ["meta"], [object()], [7], []])
def test_what_is_no_device(wanted: list[Any]) -> None:
    with pytest.raises(InputError, match="devices: "):
        open_devices(wanted)


def test_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert isinstance(open_devices(None)[0][0], CpuDevice)


# --- CUDA's time line ------------------------------------------------------------------------------------------------


class FakeStream:
    """A device 3 ms behind the host, whose clock runs 50 ppm fast."""

    def __init__(self) -> None:
        self.host_s = 100.0

    def device_s(self) -> float:
        return (self.host_s + 0.003) * (1 + 50e-6)


class FakeEvent:
    stream: FakeStream

    def record(self, _: object) -> None:
        self.at_s = self.stream.device_s()

    def query(self) -> bool:
        return self.at_s <= self.stream.host_s * (1 + 50e-6)

    def synchronize(self) -> None:
        self.stream.host_s += 0.003

    def elapsed_time(self, later: FakeEvent) -> float:
        return (later.at_s - self.at_s) * 1e3


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> FakeStream:
    stream = FakeStream()
    FakeEvent.stream = stream
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: FakeEvent())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    monkeypatch.setattr(time, "perf_counter", lambda: stream.host_s)
    return stream


def test_device_time_on_the_hosts_clock(stream: FakeStream) -> None:
    timer = CudaEventTimer(torch.device("cuda", 0))
    for _ in range(3):  # the rate is learnt at the first rebase
        stream.host_s += 30.0
        timer.synchronize()
        timer.rebase()
    stream.host_s += 25.0
    mark, queued_s = timer.mark(), stream.host_s
    assert not timer.done(mark)
    stream.host_s += 0.1
    assert timer.done(mark)
    assert timer.time_s(mark) == pytest.approx(queued_s + 0.003, abs=1e-4)
    timer.release(mark)
    assert timer.mark() is mark


def test_marks_follow_the_current_stream(stream: FakeStream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stream's object is made once; a record whose stream changed is known by the count."""
    del stream
    number, made = [1], []
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: number[0], raising=False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: made.append(number[0]) or number[0])
    recorded: list[Any] = []
    monkeypatch.setattr(FakeEvent, "record", lambda self, on: (recorded.append(on), setattr(self, "at_s", 0.0)))
    timer = CudaEventTimer(torch.device("cuda", 0))
    for number[0] in (1, 1, 1, 2, 2, 1):
        timer.mark()
    assert recorded[-6:] == [1, 1, 1, 2, 2, 1]  # before them the timer's anchor
    assert timer.stream_changes == 3
    assert len(made) == 4


# --- a loop whose host is what a step waits for ----------------------------------------------------------------------


class LaggingEvent:
    """An event that the device gets to 0.2 ms after the host, give or take 10 us."""

    recorded = 0
    draw = random.Random(0)

    def __init__(self, **_: Any) -> None: ...

    def record(self, *_: object) -> None:
        type(self).recorded += 1
        self.at_s = time.perf_counter() + self.draw.uniform(1.9e-4, 2.1e-4)

    def query(self) -> bool:
        return time.perf_counter() > self.at_s

    def synchronize(self) -> None:
        time.sleep(max(self.at_s - time.perf_counter(), 0.0))

    def elapsed_time(self, later: LaggingEvent) -> float:
        return (later.at_s - self.at_s) * 1e3


@pytest.mark.usefixtures("two_gpus")
def test_most_steps_of_a_host_bound_loop_have_no_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: HostClock, fake_nvml: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", LaggingEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    monkeypatch.setattr(LaggingEvent, "recorded", 0)
    monkeypatch.setattr(LaggingEvent, "draw", random.Random(0))
    monkeypatch.setattr(fake_nvml, "nvmlDeviceGetTotalEnergyConsumption", lambda _: int(clock.now_s * 10) * 40_000)
    with Meter(tmp_path, devices=[0], strict=True) as meter:
        for _ in range(200):
            with meter.step():
                with meter.phase("forward"):
                    clock.sleep(0.001)
                with meter.phase("backward"):
                    clock.sleep(0.002)
    assert LaggingEvent.recorded < 6 * 200 / 2  # a sixteenth of the marks, and those that it is learnt from
    device = meter.summary().devices[0]
    assert (device.steps, device.phases["forward"].calls, device.phases["backward"].calls) == (200, 200, 200)
    assert device.step_time_s == pytest.approx(0.003, abs=5e-6)  # half of what events are off by
    assert device.phases["forward"].mean_time_s == pytest.approx(0.001, abs=5e-6)
    assert device.phases["backward"].mean_time_s == pytest.approx(0.002, abs=5e-6)
    rows = [json.loads(line) for line in (tmp_path / "rank0-steps.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(200))
    assert device.read_by == "thread"  # a fake NVML can't be found by another process


# --- a reader process ------------------------------------------------------------------------------------------------

ELSEWHERE = """
import math, time
class Sensors:
    def energy_J(self):
        return 400 * math.floor(time.perf_counter() / 0.1) * 0.1
    def power_W(self):
        return 400.0
def open_sensors(argument):
    return Sensors()
"""


def test_a_device_with_an_address_is_read_by_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bare_device: Any
) -> None:
    (tmp_path / "sensors_elsewhere.py").write_text(ELSEWHERE)
    monkeypatch.syspath_prepend(str(tmp_path))
    bare_device.sensors_at = Address(opener="sensors_elsewhere:open_sensors", argument="")
    with Meter(devices=[bare_device], strict=True) as meter:
        assert meter.reader_pid is not None
        for _ in range(12):
            with meter.step():
                time.sleep(0.1)
    device = meter.summary().devices[0]
    assert (device.read_by, device.energy_source, device.steps) == ("process", "counter", 12)
    assert device.power_W == pytest.approx(400, rel=0.02)
    assert meter.reader_pid is None


def test_a_reader_that_is_killed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bare_device: Any) -> None:
    (tmp_path / "sensors_elsewhere.py").write_text(ELSEWHERE)
    monkeypatch.syspath_prepend(str(tmp_path))
    bare_device.sensors_at = Address(opener="sensors_elsewhere:open_sensors", argument="")
    meter = Meter(devices=[bare_device])
    meter.start()
    os.kill(meter.reader_pid or 0, signal.SIGKILL)
    for _ in range(21):
        with meter.step():
            time.sleep(0.01)
    with pytest.warns(RuntimeWarning, match="reader ended before the session did"):
        meter.stop()
    assert meter.summary().devices[0].steps == 21


def test_a_reader_that_does_not_start_leaves_it_to_a_thread(bare_device: Any) -> None:
    bare_device.sensors_at = Address(opener="nowhere:open_sensors", argument="")
    bare_device.power_W = lambda: 300.0
    with Meter(devices=[bare_device], strict=True) as meter, meter.step():
        time.sleep(0.2)
    device = meter.summary().devices[0]
    assert (device.read_by, device.energy_source, device.power_W) == ("thread", "power readings", 300.0)
    with pytest.raises(InputError, match="reader: found 'nobody'; allowed: process, thread"):
        Meter(reader="nobody")
