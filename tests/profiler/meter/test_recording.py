"""Recordings: what a simulated GPU and a meter said, written down, read again, and replayed to the same results."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from moemodel.model.core.errors import DeviceError, InputError
from moemodel.model.operators.work import Kind, Pass
from moemodel.model.records.profile import DeviceInfo
from moemodel.profiler.instruments.counter_edges import CounterEdges
from moemodel.profiler.instruments.counter_reading import EdgeFinder
from moemodel.profiler.instruments.energy_sampler import EnergySampler
from moemodel.profiler.meter.attribution import Attribution, attribute
from moemodel.profiler.meter.energy_meter import Meter
from moemodel.profiler.meter.recording import (
    RecordedSession,
    RecordingDevice,
    ReplayDevice,
    VirtualClock,
    recorded_session,
)
from moemodel.profiler.microbench.points import Point, Sizes
from moemodel.profiler.simulated.instruments import SimulatedDevice, SimulatedInstruments, open_simulated

_KNOWN = {"h100": "h100-sxm-80gb", "h100-sxm-80gb": "h100-sxm-80gb"}
_POLL_S = 0.005


@contextmanager
def _recorded(file: Path, gpu: str = "sim:h100") -> Iterator[tuple[SimulatedDevice, RecordingDevice, EnergySampler]]:
    """A simulated GPU whose recording is polled by a sampler as a profile does it."""
    device = open_simulated(gpu, _KNOWN)
    with RecordingDevice(device, file, now_s=lambda: device.gpu.now_s) as recorder:
        sampler = EnergySampler(recorder, _POLL_S, now_s=lambda: device.gpu.now_s)
        end = device.gpu.every(_POLL_S, sampler.read)
        yield device, recorder, sampler
        end()


def _work(device: SimulatedDevice, recorder: RecordingDevice, seconds: float) -> dict[str, list[tuple[float, float]]]:
    """Two phases and a gap, in random lengths; their spans."""
    instruments = SimulatedInstruments(device.gpu)
    gemm = instruments.build(Point(kind=Kind.GEMM, direction=Pass.FORWARD, sizes=Sizes(m=512, n=512, k=4096)))
    copy = instruments.build(Point(kind=Kind.COPY, direction=Pass.FORWARD, sizes=Sizes(m=1 << 28)))
    generator = random.Random(0)
    spans: dict[str, list[tuple[float, float]]] = {"gemm": [], "copy": []}
    while device.gpu.now_s < seconds:
        for name, case, call_s in (("gemm", gemm, 26e-6), ("copy", copy, 355e-6)):
            begin = device.gpu.mark()
            case.run(round(generator.uniform(0.005, 0.04) / call_s))
            end = device.gpu.mark()
            device.gpu.synchronize()
            spans[name].append((begin.time_s, end.time_s))
            recorder.phase(name, begin.time_s, end.time_s)
        device.gpu.sleep(generator.uniform(0.005, 0.04))
    return spans


def _powers(found: Attribution) -> dict[str, float | None]:
    return {group.phases[0]: group.power_W for group in found.groups}


def test_the_same_windows_and_the_same_powers_come_out_of_a_replay(tmp_path: Path) -> None:
    file = tmp_path / "session.jsonl"
    with _recorded(file) as (device, recorder, sampler):
        spans = _work(device, recorder, 20.0)
        recorder.mark("done")
        windows = [sampler.window(a, a + 1.5) for a in np.arange(0.5, 17.0, 0.7)]
        edges = np.array([(edge.time_s, edge.energy_J) for edge in sampler._edges])
        end_s = device.gpu.now_s

    clock = VirtualClock()
    replayed = EnergySampler(ReplayDevice(file, clock.now_s), _POLL_S, now_s=clock.now_s)
    while clock.now_s() < end_s:
        replayed.read()
        clock.sleep(_POLL_S)
    for live, again in zip(windows, (replayed.window(a, a + 1.5) for a in np.arange(0.5, 17.0, 0.7)), strict=True):
        assert live is not None
        assert again is not None
        assert again.edges == live.edges
        assert again.energy_J == pytest.approx(live.energy_J, abs=1e-6)
        assert again.power_W == pytest.approx(live.power_W, rel=1e-5)
    said = {r.power_W for r in sampler.trace()}
    assert (
        len(said & {r.power_W for r in replayed.trace()}) > 0.97 * len(said) > 150
    )  # none is made up, hardly one missed

    session = recorded_session(file)
    assert session.complete
    assert [text for _, text in session.marks] == ["done"]
    assert session.info == device.info
    live_powers = attribute(spans, CounterEdges.of(edges[:, 0], edges[:, 1], _POLL_S))
    from_file = session.attribute()
    assert from_file.intervals == live_powers.intervals
    for name, power_W in _powers(live_powers).items():
        assert _powers(from_file)[name] == pytest.approx(power_W, rel=1e-4)
    assert _powers(from_file)["copy"] == pytest.approx(493, rel=0.02)  # and it is the copy's power


def test_a_minute_is_less_than_a_megabyte(tmp_path: Path) -> None:
    file = tmp_path / "session.jsonl"
    with _recorded(file) as (device, recorder, _):
        _work(device, recorder, 20.0)
    assert 10_000 < file.stat().st_size < 1e6 / 3


def test_a_part_of_a_session(tmp_path: Path) -> None:
    file = tmp_path / "session.jsonl"
    with _recorded(file) as (device, recorder, _):
        _work(device, recorder, 4.0)
    session = recorded_session(file)
    part = session.between(1.0, 2.0)
    assert 0 < sum(map(len, part.spans.values())) < sum(map(len, session.spans.values()))
    assert all((span >= 1.0).all() and (span <= 2.0).all() for span in part.spans.values())
    assert 9 <= len(part.edges.time_s) <= 10


def test_a_stuck_counter_is_found_in_the_recording(tmp_path: Path) -> None:
    file = tmp_path / "session.jsonl"
    with _recorded(file, "sim:h100?fail=counter-reset-after-6s") as (device, recorder, _):
        _work(device, recorder, 12.0)
    with pytest.raises(DeviceError, match="ran backwards"):
        recorded_session(file).attribute()


def test_what_cannot_be_read_is_none_again(tmp_path: Path) -> None:
    file = tmp_path / "session.jsonl"
    with _recorded(file, "sim:h100?fail=no-permission") as (device, _, _sampler):
        device.gpu.sleep(1.0)
    replay = ReplayDevice(file, VirtualClock().now_s)
    assert replay.energy_J() is None
    assert replay.power_W() is None
    assert replay.reported_clock_Hz() == device.info.clock_max_Hz
    assert replay.memory_temperature_C() is None
    assert replay.used_memory_B() is None
    assert not len(replay.session.edges.time_s)


def test_after_its_end_a_replay_keeps_its_last_values(tmp_path: Path) -> None:
    file = tmp_path / "session.jsonl"
    with _recorded(file) as (device, recorder, _):
        device.gpu.sleep(1.05)
        last_J = recorder.energy_J()
    clock = VirtualClock()
    replay = ReplayDevice(file, clock.now_s)
    first_J = replay.energy_J()
    assert not replay.ended
    clock.sleep(100.0)
    assert replay.ended
    assert replay.energy_J() == last_J != first_J


# --- the meter's recordings ------------------------------------------------------------------------------------------


class _Heater:
    """100 W, or what a test sets, in ticks of 100 ms of real time."""

    def __init__(self) -> None:
        self.info = DeviceInfo(name="heater", vendor="cpu", memory_B=1)
        self.torch_device = torch.device("cpu")
        self._tick = 0
        self._energy_J = self._shown_J = 0.0
        self._at_s, self._power_W = time.perf_counter(), 100.0

    def set(self, power_W: float) -> None:
        self.energy_J()
        self._power_W = power_W

    def energy_J(self) -> float:
        now_s = time.perf_counter()
        for tick in range(math.floor(self._at_s / 0.1) + 1, math.floor(now_s / 0.1) + 1):
            self._energy_J += self._power_W * max(tick * 0.1 - self._at_s, 0.0)
            self._at_s, self._shown_J = max(tick * 0.1, self._at_s), self._energy_J
        self._energy_J += self._power_W * (now_s - self._at_s)
        self._at_s = now_s
        return self._shown_J

    def power_W(self) -> float:
        return self._power_W

    def close(self) -> None: ...


def _train(meter: Meter, heater: _Heater, steps: int) -> None:
    generator = random.Random(1)
    for _ in range(steps):
        with meter.step():
            for name, power_W in (("forward", 300.0), ("backward", 700.0)):
                with meter.phase(name):
                    heater.set(power_W)
                    time.sleep(generator.uniform(0.008, 0.03))
                    heater.set(100.0)


def test_the_meter_records_what_it_says(tmp_path: Path) -> None:
    heater = _Heater()
    file = tmp_path / "deep" / "session.jsonl"
    with Meter(devices=[heater], strict=True, read_every=4, record=file) as meter:
        _train(meter, heater, 90)
    said = meter.summary().devices[0]
    session = recorded_session(file)
    assert session.complete
    assert len(session.steps) == 90
    assert {name: len(span) for name, span in session.spans.items()} == {"forward": 90, "backward": 90}
    for name, phase in said.phases.items():
        assert float(np.diff(session.spans[name], axis=1).sum()) == pytest.approx(phase.time_s, abs=1e-3)
    found = session.attribute(timing_noise_s=1e-5)
    assert found.intervals == said.intervals
    for name, phase in said.phases.items():
        assert phase.power_W is not None
        assert found.of(name).power_W == pytest.approx(phase.power_W, rel=5e-3)


def test_a_recording_is_metered_again(tmp_path: Path) -> None:
    heater = _Heater()
    file = tmp_path / "session.jsonl"
    with Meter(devices=[heater], strict=True, record=file) as meter:
        _train(meter, heater, 30)
    with Meter(devices=[f"replay:{file}"], strict=True) as again:
        time.sleep(meter.summary().devices[0].duration_s)
    first, second = meter.summary().devices[0], again.summary().devices[0]
    assert second.name == "heater"
    assert second.power_W == pytest.approx(
        first.power_W, rel=0.15
    )  # a run of a second, the ends of which are not the same


def test_several_devices_go_to_several_files(tmp_path: Path) -> None:
    with Meter(devices=[_Heater(), _Heater()], strict=True, record=tmp_path / "two.jsonl"):
        time.sleep(0.05)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["two.1.jsonl", "two.jsonl"]


def test_edges_are_those_that_the_meter_finds(tmp_path: Path) -> None:
    """Also of a counter that changes at every reading."""
    counter = {"ticks": 0.1, "steady": 1e-6}
    for name, tick_s in counter.items():
        now = [0.0]

        class Counter(_Heater):
            def __init__(self, tick_s: float, now: list[float]) -> None:
                super().__init__()
                self._tick_s, self._now = tick_s, now

            def energy_J(self) -> float:
                return math.floor(self._now[0] / self._tick_s) * 30.0 * self._tick_s

        def now_s(now: list[float] = now) -> float:
            return now[0]

        recorder = RecordingDevice(Counter(tick_s, now), tmp_path / f"{name}.jsonl", now_s)
        finder = EdgeFinder(recorder, now_s)
        while now[0] < 3.0:
            if now[0] >= finder.due_s:
                finder.read()
            now[0] += 0.0007
        recorder.finish()
        edges = recorded_session(tmp_path / f"{name}.jsonl").edges
        expected = np.array(finder.edges)
        assert len(expected) > 20
        np.testing.assert_allclose(edges.time_s, expected[:, 0], atol=2e-6)
        np.testing.assert_allclose(edges.width_s, expected[:, 1], atol=2e-6)
        np.testing.assert_allclose(edges.energy_J, expected[:, 2])


# --- files that are not as they should be ----------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "session.jsonl"
    with _recorded(path) as (device, recorder, _):
        _work(device, recorder, 1.0)
    return path


def test_a_recording_is_never_written_over(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(InputError, match="is there already"):
        RecordingDevice(_Heater(), file)
    assert file.read_bytes() == before


def test_a_killed_recording_is_read_up_to_its_last_whole_line(file: Path) -> None:
    whole = recorded_session(file)
    text = file.read_text()
    file.write_text(text[: text.rindex('["end"') + 4])
    cut: RecordedSession = recorded_session(file)
    assert not cut.complete
    np.testing.assert_array_equal(cut.edges.energy_J, whole.edges.energy_J)


@pytest.mark.parametrize(
    "line", ['["energy",1]', "[]", '["phase","a",1]', '["nonsense",1,2]', "{", '["energy",1,2,"x"]', "3"]
)
def test_a_damaged_line_is_named(file: Path, line: str) -> None:
    lines = file.read_text().splitlines()
    lines[4] = line
    file.write_text("\n".join([*lines, ""]))
    with pytest.raises(InputError, match=r"session\.jsonl: line 5: .*damaged"):
        recorded_session(file)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ('{"recording": 99}', "schema version 99; this moemodel reads 1"),
        ('{"other": 1}', "line 1: no header"),
        ("[1]", "line 1: no header"),
        ("what", "line 1: no header"),
        ('{"recording": 1, "device": {"name": "x"}, "start_unix_s": 0}', "line 1: .*vendor"),
        ('{"recording": 1}', "line 1: 'device'"),
    ],
)
def test_a_header_that_is_none(file: Path, header: str, message: str) -> None:
    lines = file.read_text().splitlines()
    file.write_text("\n".join([header, *lines[1:], ""]))
    with pytest.raises(InputError, match=message.replace(".*", "(?s:.*)")):
        recorded_session(file)


def test_no_file_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no recording there.*Meter\(record"):
        recorded_session(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InputError, match="no header"):
        ReplayDevice(tmp_path / "empty.jsonl")


def test_the_file_is_json_lines(file: Path) -> None:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0]["device"]["name"].startswith("simulated")
    assert lines[-1][0] == "end"
    assert {line[0] for line in lines[1:]} <= {
        "energy",
        "power",
        "clock",
        "temperature",
        "memory_temperature",
        "phase",
        "end",
    }
