"""Clock control: what NVML is told, what is refused before anything is changed, and what is restored."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moemodel.model.core.errors import DeviceError
from moemodel.profiler.clocks import clock_control, device_settings
from moemodel.profiler.clocks.clock_control import (
    ClockControl,
    GuardianProcess,
    choose_clocks,
)
from moemodel.profiler.clocks.device_settings import NvidiaSettings, is_administrator, other_processes
from moemodel.profiler.clocks.nvml_settings import NvmlDriver
from moemodel.profiler.clocks.settings import SettingError
from moemodel.profiler.devices.address import Address
from moemodel.profiler.devices.nvidia import NvidiaDevice
from moemodel.profiler.simulated.instruments import SimulatedDevice, SimulatedSettings, open_simulated
from moemodel.profiler.simulated.state import OPEN_STORED

KNOWN = {"h100": "h100-sxm-80gb"}
UUID = "GPU-11111111-2222-3333-4444-555555555555"
OTHER_PID = 4_000_001


def process(pid: int, used_B: int | None = 0) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=used_B)


@pytest.fixture(autouse=True)
def permitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine says."""
    monkeypatch.delenv(clock_control.VARIABLE, raising=False)
    monkeypatch.setattr(device_settings, "is_administrator", lambda: True)


@pytest.fixture
def nvml(fake_nvml: Any, fake_gpu: Any) -> Any:
    """The fake NVML, with settings: it notes what it is told in `told`; `errors` has what fails, and how."""

    class Settable(type(fake_nvml)):  # type: ignore[misc]
        NVML_DEVICE_MIG_ENABLE = 1
        NVML_ERROR_INVALID_ARGUMENT = 2
        NVML_ERROR_GPU_IS_LOST = 15

        def __init__(self, *gpus: Any) -> None:
            super().__init__(*gpus)
            self.told: list[tuple[Any, ...]] = []
            self.errors: dict[str, int] = {}
            self.processes: list[SimpleNamespace] = []
            self.mig = 0
            self.utilization: list[int] = []
            self.limit_mW = 650_000

        def _tell(self, what: str, *values: Any) -> None:
            if what in self.errors:
                raise self.NVMLError(self.errors[what])
            self.told.append((what, *values))

        def nvmlDeviceSetGpuLockedClocks(self, _gpu: Any, low: int, high: int) -> None:
            self._tell("lock", low, high)

        def nvmlDeviceResetGpuLockedClocks(self, _gpu: Any) -> None:
            self._tell("reset")

        def nvmlDeviceGetPowerManagementLimit(self, _gpu: Any) -> int:
            return self.limit_mW

        def nvmlDeviceSetPowerManagementLimit(self, _gpu: Any, limit: int) -> None:
            self._tell("limit", limit)
            self.limit_mW = limit

        def nvmlDeviceGetMigMode(self, _gpu: Any) -> list[int]:
            return [self.mig, self.mig]

        def nvmlDeviceGetComputeRunningProcesses(self, _gpu: Any) -> list[SimpleNamespace]:
            if "processes" in self.errors:
                raise self.NVMLError(self.errors["processes"])
            return self.processes

        def nvmlDeviceGetUtilizationRates(self, _gpu: Any) -> SimpleNamespace:
            return SimpleNamespace(gpu=self.utilization.pop(0) if self.utilization else 0)

    return Settable(fake_gpu)


@pytest.fixture
def device(nvml: Any, fake_gpu: Any) -> NvidiaDevice:
    return NvidiaDevice(torch.device("cuda", 0), nvml, fake_gpu)


class NoGuardian:
    """In place of the process: notes what it is told; `alive` is for the test to change."""

    pid = 0

    def __init__(self) -> None:
        self.alive = True
        self.restores = True
        self.heard: list[dict[str, Any]] = []
        self.left = False

    def tell(self, change: dict[str, Any]) -> bool:
        if self.alive:
            self.heard.append(change)
        return self.alive

    def leave(self) -> bool:
        self.left = True
        return self.alive and self.restores


@pytest.fixture
def guardian(monkeypatch: pytest.MonkeyPatch) -> NoGuardian:
    found = NoGuardian()
    monkeypatch.setattr(clock_control, "GuardianProcess", lambda *_: found)
    return found


@pytest.fixture
def control(device: NvidiaDevice, guardian: NoGuardian) -> ClockControl:  # noqa: ARG001 - is in its place
    return ClockControl(device, NvidiaSettings(device, look_s=0))


# --- what NVML is told ----------------------------------------------------------------------------------------------


def test_clocks_are_locked_in_whole_MHz_and_reset(control: ClockControl, nvml: Any, guardian: NoGuardian) -> None:
    with control:
        assert nvml.told == []
        control.lock(1005e6)
        control.lock(1_409_999_999.7)
        assert guardian.heard == [{"locks": True}] * 2
    assert nvml.told == [("lock", 1005, 1005), ("lock", 1410, 1410), ("reset",)]
    assert all(isinstance(value, int) for told in nvml.told for value in told[1:])
    assert guardian.heard[-1] == {"forget": True}
    assert guardian.left


def test_clocks_that_can_be_locked_are_those_that_the_driver_lists(control: ClockControl) -> None:
    assert control.clocks_Hz() == [clock * 1e6 for clock in range(345, 1981, 15)]


def test_the_power_limit_goes_back_to_what_it_was(control: ClockControl, nvml: Any, guardian: NoGuardian) -> None:
    with control:
        control.set_power_limit(500)
        control.set_power_limit(400.4)
    assert nvml.told == [("limit", 500_000), ("limit", 400_400), ("limit", 650_000)]
    assert guardian.heard[:2] == [{"power_limit_W": 650.0}] * 2


@pytest.mark.parametrize("limit_W", [150.0, 701.0])
def test_a_power_limit_out_of_range_is_refused(control: ClockControl, nvml: Any, limit_W: float) -> None:
    with pytest.raises(DeviceError, match=rf"found {limit_W:.0f} W; allowed: 200 to 700 W"):
        control.set_power_limit(limit_W)
    control.restore()
    assert nvml.told == []


def test_an_exception_restores(control: ClockControl, nvml: Any) -> None:
    def fail() -> None:
        with control:
            control.lock(990e6)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert nvml.told[-1] == ("reset",)


def test_nothing_changed_nothing_restored(control: ClockControl, nvml: Any, guardian: NoGuardian) -> None:
    with control:
        pass
    assert nvml.told == []
    assert not guardian.left


def test_a_lock_that_was_refused_leaves_nothing_to_restore(control: ClockControl, nvml: Any, guardian: Any) -> None:
    nvml.errors["lock"] = nvml.NVML_ERROR_NO_PERMISSION
    with control, pytest.raises(SettingError, match="no permission to lock clocks: it takes root"):
        control.lock(990e6)
    assert nvml.told == []
    assert guardian.heard[:2] == [{"locks": True}, {"forget": True}]


def test_a_lock_that_failed_otherwise_is_reset(control: ClockControl, nvml: Any) -> None:
    """Nobody knows whether it took effect."""
    nvml.errors["lock"] = 999
    with control, pytest.raises(SettingError, match="NVML fails to lock clocks"):
        control.lock(990e6)
    assert nvml.told == [("reset",)]


def test_an_old_library_is_named(fake_nvml: Any, fake_gpu: Any) -> None:
    with pytest.raises(SettingError, match="nvidia-ml-py is too old to lock clocks; pip install --upgrade"):
        NvmlDriver(fake_nvml, fake_gpu, UUID).lock(1e9, 1e9)


# --- the guardian, from here ----------------------------------------------------------------------------------------


def test_without_a_guardian_nothing_is_changed(
    device: NvidiaDevice, nvml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock_control.sys, "executable", "/bin/false")
    with ClockControl(device, NvidiaSettings(device)) as bare, pytest.raises(DeviceError, match="without a guardian"):
        bare.lock(990e6)
    assert nvml.told == []


def test_if_the_guardian_dies_this_process_restores_and_stops(
    control: ClockControl, nvml: Any, guardian: NoGuardian
) -> None:
    control.lock(990e6)
    guardian.alive = False
    with pytest.raises(DeviceError, match=r"guardian .* has died; they are restored, run again"):
        control.lock(1005e6)
    assert nvml.told == [("lock", 990, 990), ("reset",)]


def test_if_it_dies_last_this_process_restores(control: ClockControl, nvml: Any, guardian: NoGuardian) -> None:
    with control:
        control.lock(990e6)
        guardian.alive = False
    assert nvml.told[-1] == ("reset",)


def test_what_this_process_cannot_restore_is_left_to_the_guardian(
    control: ClockControl, nvml: Any, guardian: NoGuardian
) -> None:
    with control:
        control.lock(990e6)
        nvml.errors["reset"] = 999
    assert {"forget": True} not in guardian.heard
    assert guardian.left


def test_what_nobody_can_restore_is_said_with_the_command(
    control: ClockControl, nvml: Any, guardian: NoGuardian
) -> None:
    control.lock(990e6)
    guardian.restores = False
    nvml.errors["reset"] = 999
    with pytest.raises(DeviceError, match=rf"not restored: .*as root: nvidia-smi -i {UUID} -rgc"):
        control.restore()


@pytest.fixture
def simulated(tmp_path: Path) -> Iterator[tuple[SimulatedDevice, ClockControl]]:
    device = open_simulated(f"sim:h100?state={tmp_path / 'state.json'}", KNOWN)
    with ClockControl(device, SimulatedSettings(device)) as control:
        yield device, control


def test_a_real_guardian_that_is_killed(simulated: tuple[SimulatedDevice, ClockControl]) -> None:
    device, control = simulated
    control.lock(990e6)
    assert device.gpu.settings.state.locked_Hz == (990e6, 990e6)
    assert control.guardian is not None
    assert os.getsid(control.guardian.pid) == control.guardian.pid  # a session of its own
    os.kill(control.guardian.pid, signal.SIGKILL)
    with pytest.raises(DeviceError, match="has died; they are restored"):
        control.lock(1005e6)
    assert device.gpu.settings.state.locked_Hz is None
    control.lock(1110e6)  # under a new one
    control.restore()
    assert device.gpu.settings.state.locked_Hz is None


def test_the_real_guardian_restores_what_this_process_fails_to(tmp_path: Path) -> None:
    device = open_simulated(f"sim:h100?fail=unlock-fails-3-times&state={tmp_path / 'state.json'}", KNOWN)
    with ClockControl(device, SimulatedSettings(device)) as control:
        control.lock(990e6)
        control.set_power_limit(400)
    assert device.gpu.settings.state.locked_Hz is None
    assert device.gpu.settings.state.failing_unlocks == 0
    assert device.gpu.settings.state.power_limit_W == 700


def test_a_guardian_that_cannot_reach_the_device(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"without a guardian to restore them: .*state can't be read"):
        GuardianProcess("a GPU", Address(opener=OPEN_STORED, argument=str(tmp_path / "nowhere.json")))


# --- what stands against it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "ours_B", "others"),
    [
        ([], 0, 0),
        ([process(os.getpid(), 9)], 5, 0),
        ([process(os.getpid(), 9), process(OTHER_PID, 9)], 5, 1),
        ([process(OTHER_PID, 9)], 0, 1),  # this process has nothing there yet
        ([process(OTHER_PID, 9)], 5, 0),  # this process, under another number
        ([process(OTHER_PID, None)], 5, 0),
        ([process(OTHER_PID, 4)], 5, 1),  # too small to be this process
        ([process(OTHER_PID, 9), process(OTHER_PID + 1, 9)], 5, 1),
    ],
)
def test_who_else_computes(nvml: Any, listed: list[SimpleNamespace], ours_B: int, others: int) -> None:
    nvml.processes = listed
    assert other_processes(nvml, None, os.getpid(), ours_B) == others


def test_a_library_without_a_list_of_processes_does_not_tell() -> None:
    library = SimpleNamespace(NVMLError=RuntimeError)
    assert other_processes(library, None, os.getpid(), 0) is None


def _busy(nvml: Any) -> None:
    nvml.utilization = [40, 35]


@pytest.mark.parametrize(
    ("arrange", "reason"),
    [
        (lambda nvml: nvml.processes.append(process(OTHER_PID)), "another process computes on this GPU"),
        (lambda nvml: setattr(nvml, "mig", 1), "MIG"),
        (lambda nvml: nvml.errors.update(processes=3), "does not tell who else"),
        (_busy, "busy, with a process that NVML does not show"),
    ],
)
def test_an_obstacle_is_found_without_a_change(control: ClockControl, nvml: Any, arrange: Any, reason: str) -> None:
    arrange(nvml)
    with pytest.raises(DeviceError, match=f"--clocks lock: .*{reason}.*; use --clocks passive"):
        choose_clocks("lock", control)
    arrange(nvml)
    choice = choose_clocks("auto", control)
    assert choice.clocks == "passive"
    assert reason in str(choice.note)
    arrange(nvml)
    with pytest.raises(DeviceError, match=reason):
        control.lock(990e6)
    assert not [name for name in nvml.calls if "Set" in name or "Reset" in name]


def test_what_has_just_ended_is_no_obstacle(control: ClockControl, nvml: Any) -> None:
    nvml.utilization = [40, 0]
    assert control.obstacle() is None
    nvml.utilization = [100, 100]  # by now it is this process that computes
    assert control.obstacle() is None


def test_a_gpu_without_mig(control: ClockControl, nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(_: Any) -> None:
        raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(nvml, "nvmlDeviceGetMigMode", unsupported, raising=False)
    assert control.obstacle() is None


@pytest.mark.parametrize("forbidden", ["passive", "as-is"])
def test_a_site_forbids_locking(
    control: ClockControl, nvml: Any, forbidden: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOEMODEL_CLOCKS", forbidden)
    with pytest.raises(DeviceError, match=f"MOEMODEL_CLOCKS={forbidden} in the environment forbids it"):
        choose_clocks("lock", control)
    assert choose_clocks("auto", control).clocks == "passive"
    for change in (lambda: control.lock(990e6), lambda: control.set_power_limit(500)):
        with pytest.raises(DeviceError, match="forbids it"):
            change()
    assert nvml.told == []


def test_a_driver_that_lists_no_clocks_has_those_at_the_ends(
    control: ClockControl, nvml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(nvml, "nvmlDeviceGetSupportedGraphicsClocks", unsupported, raising=False)
    assert control.clocks_Hz() == [345e6, 1980e6]


@pytest.mark.parametrize(
    ("capabilities", "is_one"),
    [
        ("CapEff:\t000001ffffffffff\n", True),
        ("CapEff:\t0000000000000000\n", False),
        ("CapEff:\t00000000a80425fb\n", False),
    ],
)
def test_root_without_the_capability_is_no_administrator(tmp_path: Path, capabilities: str, is_one: bool) -> None:
    """The last are those of root in a container of Docker's."""
    (tmp_path / "status").write_text(f"Name:\tpython\n{capabilities}")
    assert is_administrator(tmp_path / "status") is is_one


def test_where_there_are_no_capabilities_root_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for user, is_one in ((0, True), (1000, False)):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        assert is_administrator(tmp_path / "nowhere") is is_one


# --- which way ------------------------------------------------------------------------------------------------------


def test_auto_asks_no_driver_where_the_privilege_is_missing(
    control: ClockControl, nvml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_settings, "is_administrator", lambda: False)
    announced: list[str] = []
    choice = choose_clocks("auto", control, announce=announced.append)
    assert choice.clocks == "passive"
    assert "takes root (CAP_SYS_ADMIN)" in str(choice.note)
    assert announced == nvml.told == []
    assert choose_clocks("lock", control).clocks == "lock"  # who asks for it in so many words lets the driver decide


def test_auto_locks_where_it_may_and_says_so_before(control: ClockControl, nvml: Any) -> None:
    said: list[int] = []
    choice = choose_clocks(
        "auto", control, announce=lambda text: said.append(len(nvml.told) + 100 * ("locked" in text))
    )
    assert said == [100]  # before anything was told to the driver
    assert choice.clocks == "lock"
    assert "clocks: lock" in str(choice.note)
    assert nvml.told == [("lock", 345, 1980), ("reset",)]  # which limits nothing


@pytest.mark.parametrize(("error", "reason"), [(4, "gives no permission"), (3, "can't lock clocks")])
def test_auto_takes_the_drivers_no(control: ClockControl, nvml: Any, error: int, reason: str) -> None:
    nvml.errors["lock"] = error
    with control:
        choice = choose_clocks("auto", control)
        assert choice.clocks == "passive"
        assert reason in str(choice.note)
        with pytest.raises(DeviceError, match=f"--clocks lock: .*{reason}.*use --clocks passive"):
            choose_clocks("lock", control)
    assert nvml.told == []


def test_auto_changes_nothing_that_is_not_needed(control: ClockControl, nvml: Any) -> None:
    assert choose_clocks("auto", control, needed=False).clocks == "passive"
    assert choose_clocks("auto", control, needed=False, begun="lock").clocks == "lock"
    assert nvml.told == []


def test_auto_goes_on_as_a_profile_was_begun(control: ClockControl, nvml: Any) -> None:
    assert choose_clocks("auto", control, begun="passive").clocks == "passive"
    assert choose_clocks("auto", control, begun="as-is").clocks == "as-is"
    assert nvml.told == []
    assert choose_clocks("auto", control, begun="lock").clocks == "lock"
    nvml.processes.append(process(OTHER_PID))
    with pytest.raises(DeviceError, match=r"begun with --clocks lock, and another process .*another folder"):
        choose_clocks("auto", control, begun="lock")


@pytest.mark.parametrize("asked", ["passive", "as-is"])
def test_what_changes_nothing_asks_nothing(control: ClockControl, nvml: Any, asked: Any) -> None:
    nvml.calls.clear()
    assert choose_clocks(asked, control).clocks == asked
    assert nvml.calls == []
