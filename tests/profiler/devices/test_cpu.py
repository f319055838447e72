"""The processor: RAPL where it can be read, else CodeCarbon's guess, which says that it is one."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from moemodel.model.core.errors import DeviceError
from moemodel.profiler.devices import cpu as cpu_device
from moemodel.profiler.devices.cpu import CpuDevice, GuessedEnergy, codecarbon_guess, power_note
from moemodel.profiler.instruments.energy_sampler import EnergySampler
from moemodel.profiler.platforms.registry import open_device


def _package(folder: Path, energy_uJ: int) -> Path:
    folder.mkdir()
    (folder / "energy_uj").write_text(str(energy_uJ))
    return folder / "energy_uj"


def test_rapl_is_measured_and_preferred(tmp_path: Path) -> None:
    _package(tmp_path / "intel-rapl:0", 900_000)
    device = CpuDevice(tmp_path, guess=True)
    assert device.info.power_source == "rapl"
    assert device.energy_J() == pytest.approx(0.9)
    assert device.power_W() is None
    assert power_note(device.info) is None


def test_without_rapl_and_without_a_guess_there_is_none(tmp_path: Path) -> None:
    device = CpuDevice(tmp_path)
    assert device.info.power_source is None
    assert device.energy_J() is None
    assert device.power_W() is None
    assert "no energy: RAPL cannot be read here" in (power_note(device.info) or "")


def test_guesses_are_added_up() -> None:
    now = [0.0]
    powers = iter([100.0, 50.0, 20.0])
    guessed = GuessedEnergy(lambda: next(powers), lambda: now[0])
    assert guessed.power_W() == 100
    now[0] = 0.09
    assert guessed.energy_J() == pytest.approx(9.0)
    now[0] = 0.12  # asked again
    assert guessed.energy_J() == pytest.approx(12.0)
    assert guessed.power_W() == 50
    now[0] = 0.2  # too soon
    assert guessed.energy_J() == pytest.approx(12.0 + 4.0)
    now[0] = 1.2
    assert guessed.energy_J() == pytest.approx(16.0 + 50.0)  # never backwards
    assert guessed.power_W() == 20


def test_codecarbons_guess_rises_with_load(tmp_path: Path) -> None:
    pytest.importorskip("codecarbon")
    device = CpuDevice(tmp_path, guess=True)
    assert device.info.power_source == "guess"
    assert "power is a guess" in (power_note(device.info) or "")
    with EnergySampler(device) as sampler:
        begin_s = time.perf_counter()
        while time.perf_counter() < begin_s + 0.6:
            sum(range(1000))
        window = sampler.window(begin_s, time.perf_counter())
    assert window is not None
    assert 0.5 < window.power_W < 2000


def test_without_codecarbon_there_is_no_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "codecarbon"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    assert codecarbon_guess() is None
    assert CpuDevice(tmp_path, guess=True).info.power_source is None


def test_a_profile_of_the_cpu_may_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_device, "_readable_packages", lambda _: [])
    monkeypatch.setattr(cpu_device, "codecarbon_guess", lambda: GuessedEnergy(lambda: 10.0))
    assert open_device("cpu", {}).info.power_source == "guess"


def test_a_profile_of_a_recording_is_refused() -> None:
    with pytest.raises(DeviceError, match=r"--gpu replay:x\.jsonl: .*no work can be timed.*recorded_session"):
        open_device("replay:x.jsonl", {})
