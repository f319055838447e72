"""CodeCarbon's levels with the real CodeCarbon, offline: on this processor, and on a GPU whose counter a test moves."""

from __future__ import annotations

import csv
import json
import logging
import math
import socket
import sys
import time
import warnings
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moemodel.model.core.errors import DeviceError, InputError
from moemodel.model.records.profile import DeviceInfo
from moemodel.model.results.regions import find_region, list_regions
from moemodel.profiler.emissions import codecarbon as emissions
from moemodel.profiler.emissions.codecarbon import (
    LEVELS,
    CodeCarbonLevels,
    _intensity_kg_per_kWh,
    check_place,
    gpu_indices,
)
from moemodel.profiler.emissions.reconciliation import METER
from moemodel.profiler.meter.energy_meter import Meter

codecarbon = pytest.importorskip("codecarbon", reason="CodeCarbon's levels: pip install 'moemodel[codecarbon]'")

_PLACE: dict[str, Any] = {"country": "CAN", "region": "quebec"}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no configuration of whoever runs the tests, no rank."""

    def refuse(*_: Any) -> None:
        raise AssertionError("CodeCarbon asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def _levels(folder: Path, **options: Any) -> CodeCarbonLevels:
    return CodeCarbonLevels(folder, **({"run": "r1", "model": "tiny", "devices": ["cpu"]} | _PLACE | options))


def _loop(carbon: CodeCarbonLevels, steps: int = 3, phase_s: float = 0.003) -> None:
    for _ in range(steps):
        with carbon.step():
            for phase in ("forward", "backward"):
                with carbon.phase(phase):
                    time.sleep(phase_s)


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


# --- on this processor -----------------------------------------------------------------------------------------------


def test_three_levels_in_codecarbons_own_csv(tmp_path: Path) -> None:
    with _levels(tmp_path) as carbon:
        _loop(carbon, phase_s=0.02)  # what is shorter than 50 ms at the end of a session, CodeCarbon does not measure
    folder = tmp_path / "r1" / "tiny" / "rank0"
    assert sorted(f.name for f in folder.iterdir()) == [
        "emissions_phases.csv",
        "emissions_session.csv",
        "emissions_steps.csv",
    ]
    data = import_module("codecarbon.output_methods.emissions_data")
    (session,) = _rows(folder / "emissions_session.csv")
    assert set(session) == {column.name for column in fields(data.EmissionsData)}
    assert (session["country_iso_code"], session["region"], session["tracking_mode"]) == ("CAN", "quebec", "machine")
    steps, phases = _rows(folder / "emissions_steps.csv"), _rows(folder / "emissions_phases.csv")
    assert set(steps[0]) == {column.name for column in fields(data.TaskEmissionsData)}
    assert [row["task_name"] for row in steps] == ["step 0", "step 1", "step 2"]
    assert [row["task_name"] for row in phases][:3] == ["step 0 forward", "step 0 backward", "step 1 forward"]
    assert all(0.02 <= float(row["duration"]) < 0.5 for row in phases)
    assert float(session["duration"]) >= sum(float(row["duration"]) for row in steps)
    # CodeCarbon guesses the processor's power from its load, for session and steps at moments of their own.
    assert float(session["energy_consumed"]) > 0.8 * sum(float(row["energy_consumed"]) for row in steps) > 0


def test_the_summary_adds_up_and_says_what_it_cost(tmp_path: Path) -> None:
    with _levels(tmp_path) as carbon:
        _loop(carbon, 5)
    summary = carbon.summary()
    assert list(summary.levels) == list(LEVELS)
    assert [level.readings for level in summary.levels.values()] == [1, 5, 10]
    assert summary.steps == 5
    step, phase, session = summary.levels["step"], summary.levels["phase"], summary.levels["session"]
    rows = _rows(carbon.folder / "emissions_steps.csv")
    assert step.ram_J == pytest.approx(sum(float(row["ram_energy"]) for row in rows) * 3.6e6)
    for level in (step, phase):
        assert 0 < level.inside_s < summary.duration_s
        assert level.share_of_time == pytest.approx(level.inside_s / summary.duration_s)
        assert level.inside_s_per_step == pytest.approx(level.inside_s / 5)
        assert level.waited_s == 0  # there is no device to wait for
    assert session.background_s is not None
    document = json.loads(summary.to_json())
    assert document["levels"]["step"]["readings"] == 5
    assert any("guesses the energy of memory" in note for note in document["notes"])  # that it guesses is not lost


def test_quebec_is_not_canada(tmp_path: Path) -> None:
    """The region is what makes the figure: hydropower."""

    def intensity(region: str | None) -> float:
        with _levels(tmp_path, run=str(region), region=region, levels=["session"]) as carbon:
            time.sleep(0.06)
        (row,) = _rows(carbon.folder / "emissions_session.csv")
        return float(row["emissions"]) / float(row["energy_consumed"])

    assert intensity("quebec") < 0.05 < intensity(None)


def test_one_level_is_one_file(tmp_path: Path) -> None:
    with _levels(tmp_path, levels=["step"]) as carbon:
        _loop(carbon)
    assert [file.name for file in carbon.folder.iterdir()] == ["emissions_steps.csv"]
    assert list(carbon.summary().levels) == ["step"]


def test_sessions_and_ranks_do_not_overwrite(tmp_path: Path) -> None:
    for rank in (0, 0, 3):
        with _levels(tmp_path, rank=rank, levels=["session", "phase"], model="org/tiny") as carbon:
            _loop(carbon, 1 + rank)
    folder = tmp_path / "r1" / "org-tiny"
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob("*.csv")) == [
        "rank0/emissions_phases.2.csv",
        "rank0/emissions_phases.csv",
        "rank0/emissions_session.2.csv",
        "rank0/emissions_session.csv",
        "rank3/emissions_phases.csv",
        "rank3/emissions_session.csv",
    ]
    assert len(_rows(folder / "rank3" / "emissions_phases.csv")) == 8


def test_a_killed_run_keeps_whole_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emissions, "_WRITE_EVERY_S", 0.0)
    carbon = _levels(tmp_path)
    carbon.__enter__()
    _loop(carbon)  # and here it is killed
    assert len(_rows(carbon.folder / "emissions_session.csv")) == 1
    assert len(_rows(carbon.folder / "emissions_steps.csv")) == 3
    assert all(None not in row and None not in row.values() for row in _rows(carbon.folder / "emissions_phases.csv"))
    carbon.__exit__(None, None, None)


def test_what_an_exception_ends_is_no_reading(tmp_path: Path) -> None:
    with _levels(tmp_path) as carbon:
        _loop(carbon, 1)
        with pytest.raises(ZeroDivisionError), carbon.step(), carbon.phase("forward"):
            _ = 1 / 0
        _loop(carbon, 1)
    assert [level.readings for level in carbon.summary().levels.values()] == [1, 2, 4]
    assert len(_rows(carbon.folder / "emissions_steps.csv")) == 2


def test_tasks_do_not_pile_up(tmp_path: Path) -> None:
    """CodeCarbon keeps every task of a session, and writes all of them at each flush."""
    with _levels(tmp_path, levels=["step"]) as carbon:
        _loop(carbon, 4)
        assert carbon._levels["step"]._tracker._tasks == {}


def test_phases_outside_steps(tmp_path: Path) -> None:
    with _levels(tmp_path, levels=["phase"]) as carbon, carbon.phase("data"):
        time.sleep(0.003)
    assert [row["task_name"] for row in _rows(carbon.folder / "emissions_phases.csv")] == ["data"]


# --- beside a meter --------------------------------------------------------------------------------------------------


class _Gpu:
    """A GPU as NVML shows it, to CodeCarbon and to the meter: 400 W, and a counter that ticks every 100 ms."""

    def __init__(self) -> None:
        self.info = DeviceInfo(name="NVIDIA Fake", vendor="nvidia", uuid="GPU-1111-2222", memory_B=1)
        self.torch_device = torch.device("meta")
        self.seen = 1.0  # share of the energy that CodeCarbon sees

    def energy_J(self) -> float:
        return 400.0 * 0.1 * math.floor(time.perf_counter() / 0.1)

    def power_W(self) -> float:
        return 400.0

    def close(self) -> None: ...


class _Nvml:
    """The part of `pynvml` that CodeCarbon 3.3 uses; this process's GPU is the second of two."""

    NVMLError = RuntimeError
    NVMLError_NotSupported = RuntimeError

    def __init__(self, gpu: _Gpu) -> None:
        self._gpu = gpu

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        if uuid != self._gpu.info.uuid:
            raise self.NVMLError("not found")
        return 1

    def nvmlDeviceGetIndex(self, handle: int) -> int:
        return handle

    def nvmlDeviceGetName(self, handle: int) -> str:
        return f"NVIDIA Fake {handle}"

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return self._gpu.info.uuid if handle == 1 else "GPU-3333"

    def nvmlDeviceGetMemoryInfo(self, _: int) -> SimpleNamespace:
        return SimpleNamespace(total=1, free=1, used=0)

    def nvmlDeviceGetEnforcedPowerLimit(self, _: int) -> int:
        return 700_000

    def nvmlDeviceGetPowerUsage(self, _: int) -> int:
        return 400_000

    def nvmlDeviceGetUtilizationRates(self, _: int) -> SimpleNamespace:
        return SimpleNamespace(gpu=100)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        share = self._gpu.seen if handle == 1 else 5.0
        return round(self._gpu.energy_J() * 1e3 * share)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> _Gpu:
    """A GPU that the real CodeCarbon finds."""
    made = _Gpu()
    nvml = _Nvml(made)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    core, nvidia = import_module("codecarbon.core.gpu"), import_module("codecarbon.core.gpu_nvidia")
    cache = import_module("codecarbon.core.hardware_cache")
    monkeypatch.setattr(core, "PYNVML_AVAILABLE", True)
    monkeypatch.setattr(core, "is_nvidia_system", lambda: True)
    monkeypatch.setattr(nvidia, "pynvml", nvml)
    monkeypatch.setattr(cache, "_plans", {})
    return made


def _train(meter: Meter, steps: int, step_s: float) -> float:
    """Mean time of a step by the loop's own watch, which on a busy machine is longer than what was asked for."""
    spent_s = 0.0
    for _ in range(steps):
        with meter.step():
            begun_s = time.perf_counter()
            for phase, share in (("forward", 0.35), ("backward", 0.65)):
                with meter.phase(phase):
                    time.sleep(step_s * share)
            spent_s += time.perf_counter() - begun_s
    return spent_s / steps


def _reconciled(folder: Path, gpu: _Gpu, attempts: int = 5) -> tuple[Meter, CodeCarbonLevels]:
    """A session of 60 steps that agrees. A busy machine that delays a reading spoils one now and then; a fault, all."""
    for attempt in range(attempts):
        carbon = _levels(folder / str(attempt), measure_every_s=0.5)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore" if attempt < attempts - 1 else "error", message=".*CodeCarbon: ")
            with Meter(folder / str(attempt), devices=[gpu], strict=True, read_every=4, observers=[carbon]) as meter:
                _train(meter, 60, 0.03)
        if carbon.reconciliation is not None and carbon.reconciliation.agrees:
            break
    return meter, carbon


def test_a_loop_annotated_once_is_reconciled(tmp_path: Path, gpu: _Gpu) -> None:
    meter, carbon = _reconciled(tmp_path, gpu)
    assert meter.summary().devices[0].steps == 60
    found = carbon.reconciliation
    assert found is not None
    assert found.agrees, str(found)
    session, steps = found.comparisons[:2]
    assert session.codecarbon_J == pytest.approx(400.0 * session.duration_s, abs=2 * 40.0)  # and not GPU 0's
    assert found.steps_compared >= 55
    per_tick = 0.1 / fmean(step.time_s for step in found.steps)  # three steps, or fewer on a busy machine
    assert 0.6 * (1 - 1 / per_tick) < found.steps_zero / found.steps_compared < 1
    assert steps.trust == METER
    assert any(f.level == "info" and "as they must" in f.text for f in found.findings)
    written = json.loads((carbon.folder / "rank0-reconciliation.json").read_text())
    assert written == json.loads(found.to_json())
    assert (carbon.folder / "rank0-reconciliation.txt").read_text() == f"{found}\n"
    assert len(_rows(carbon.folder / "emissions_phases.csv")) == 120


def test_what_codecarbon_does_not_see_is_said_by_the_meter_too(tmp_path: Path, gpu: _Gpu) -> None:
    gpu.seen = 0.8
    carbon = _levels(tmp_path, levels=["session"])
    with (
        pytest.warns(RuntimeWarning, match=r"CodeCarbon: CodeCarbon read .* Trust the energy counter"),
        Meter(devices=[gpu], observers=[carbon]) as meter,
    ):
        time.sleep(4.0)
    assert carbon.reconciliation is not None
    assert [finding.level for finding in carbon.reconciliation.findings] == ["error"]
    assert any("Trust the energy counter" in note for note in meter.summary().notes)


def test_steps_of_the_meter_do_not_contain_codecarbon(tmp_path: Path, gpu: _Gpu) -> None:
    carbon = _levels(tmp_path, levels=["step"])
    with Meter(devices=[gpu], strict=True, observers=[carbon]) as meter:
        inside_s = _train(meter, 20, 0.02)
    with_readings_s = fmean(reading.duration_s for reading in carbon.readings()["step"])
    step_time_s = meter.summary().devices[0].step_time_s
    assert step_time_s is not None
    assert step_time_s < with_readings_s
    assert step_time_s == pytest.approx(inside_s, rel=0.15)


def test_an_observer_that_fails_ends_alone(tmp_path: Path, gpu: _Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(country: str, region: str | None) -> str | None:
        raise InputError(f"no tables of {country}, {region}")

    monkeypatch.setattr("moemodel.profiler.emissions.codecarbon.check_place", fails)
    carbon = _levels(tmp_path, country="Canada")
    with (
        pytest.warns(RuntimeWarning, match="CodeCarbonLevels ended, metering goes on: no tables of CAN, "),
        Meter(devices=[gpu], observers=[carbon]) as meter,
    ):
        _train(meter, 5, 0.01)
    assert meter.summary().devices[0].steps == 5
    assert carbon.reconciliation is None
    assert logging.getLogger("codecarbon").filters == []


def test_an_observer_that_fails_later_stops_its_threads(tmp_path: Path, gpu: _Gpu) -> None:
    carbon = _levels(tmp_path, levels=["session", "step"])
    meter = Meter(devices=[gpu], observers=[carbon])
    meter.start()
    _train(meter, 2, 0.01)

    def broken(*, keep: bool = True) -> None:
        if keep:
            raise ValueError("broken")

    carbon._levels["step"].end = broken  # type: ignore[method-assign]
    with pytest.warns(RuntimeWarning, match="CodeCarbonLevels ended, metering goes on: ValueError: broken"):
        _train(meter, 3, 0.01)
    meter.stop()
    assert meter.summary().devices[0].steps == 5
    assert carbon._levels["session"]._tracker._scheduler is None
    assert len(_rows(carbon.folder / "emissions_session.csv")) == 1


def test_the_device_is_waited_for_around_readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waits.append(str(device)))

    class Cuda(_Gpu):
        def __init__(self) -> None:
            super().__init__()
            self.info = DeviceInfo(name="a GPU", vendor="cpu", memory_B=1)
            self.torch_device = torch.device("cuda", 1)

    for synchronize, expected in ((True, 2 + 4 + 1), (False, 1)):
        waits.clear()
        carbon = _levels(tmp_path, synchronize=synchronize)
        carbon.begin_session([Cuda()])
        _loop(carbon, 1)
        carbon.end_session()
        assert waits == ["cuda:1"] * expected
    session_only = _levels(tmp_path, levels=["session"])
    session_only.begin_session([Cuda()])
    waits.clear()
    _loop(session_only, 3)
    assert waits == []
    session_only.end_session()


# --- what is asked for -----------------------------------------------------------------------------------------------


def test_gpus_are_named_by_their_number(gpu: _Gpu) -> None:
    assert gpu_indices([gpu]) == [1]
    gpu.info = gpu.info.model_copy(update={"uuid": "GPU-9"})
    monkey = sys.modules["pynvml"]
    monkey._gpu = _Gpu()  # type: ignore[attr-defined]
    with pytest.raises(DeviceError, match="no number for GPU-9"):
        gpu_indices([gpu])


def test_codecarbon_finds_no_gpu_by_its_uuid(gpu: _Gpu) -> None:
    """Why they are: a silent zero. When this fails, CodeCarbon has mended it."""
    hardware = import_module("codecarbon.external.hardware").GPU.from_utils([gpu.info.uuid])
    assert list(hardware._get_gpu_ids()) == []


def test_codecarbon_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "codecarbon"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with pytest.raises(InputError, match=r"pip install 'moemodel\[codecarbon\]'"), _levels(tmp_path):
        pass
    assert not list(tmp_path.rglob("*.csv"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": ["epoch"]}, "levels: found 'epoch'; allowed: session, step, phase"),
        ({"levels": []}, "levels: none"),
        ({"run": "..."}, r"run: found '\.\.\.'"),
        ({"model": "/"}, "model: found '/'"),
        ({"country": "atlantis"}, "country: found 'atlantis'"),
        ({"country": "DEU", "region": "nonsense-region"}, "region: found 'nonsense-region'"),
    ],
)
def test_what_cannot_be(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _levels(tmp_path, **options)


@pytest.mark.parametrize(
    ("country", "region"),
    [
        ("CAN", "quebec"),
        ("CA", "Québec"),
        ("Canada", "QC"),
        ("POL", None),
        ("UK", None),
        ("SWE", "se3"),
        ("us-east-1", None),
    ],
)
def test_places_that_are_known(country: str, region: str | None) -> None:
    assert check_place(country, region) is None


def test_the_mean_of_a_country_with_parts_is_said_to_be_one() -> None:
    assert "mean grid of CAN" in (check_place("CAN", None) or "")


@pytest.mark.parametrize(
    ("country", "region", "message"),
    [
        ("atlantis", None, "country: found 'atlantis'"),
        ("DEU", "nonsense-region", "region: found 'nonsense-region'; of Germany only the mean is known"),
        ("SWE", "SE9", "region: found 'SE9'; allowed: SE1, SE2, SE3, SE4"),
        ("CAN", "quebeck", "region: found 'quebeck'; allowed: .*quebec"),
        ("USA", "_source", "region: found '_source'; allowed: alabama, .*wyoming$"),
        ("USA", "_unit", "region: found '_unit'; allowed: alabama, "),
        ("DEU", "us-east-1", r"region: found 'us-east-1'; .*is in Virginia, USA \(USA-virginia\)"),
        ("world", None, "country: found 'world'"),
    ],
)
def test_places_that_are_none(country: str, region: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_place(country, region)


def test_both_halves_have_one_intensity_of_every_place() -> None:
    """CodeCarbon computes, from its own tables, what predictions read from theirs."""
    for code in list_regions():
        if code != "world":
            place = find_region(code)
            assert _intensity_kg_per_kWh(place) == pytest.approx(place.kgCO2e_per_kWh, rel=1e-3), code


def test_a_tracker_of_another_table_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moemodel.profiler.emissions.codecarbon._intensity_kg_per_kWh", lambda _: 0.1)
    assert "takes 0.1 kgCO2e/kWh for DEU, predictions 0.3" in (check_place("DEU", None) or "")


def test_a_session_is_had_once(tmp_path: Path) -> None:
    with _levels(tmp_path, levels=["session"]) as carbon:
        pass
    with pytest.raises(InputError, match="make new ones"), carbon:
        pass
