"""Changes a GPU's locked clocks and power limit, and restores them whatever happens. Nothing else changes either.

Before the first change a guardian process (`guardian`) starts, in a session of its own, and every change is announced
to it first. Settings are restored by this process where it gets to it (success, exceptions, Ctrl-C, SIGTERM), and by
the guardian where it doesn't (kill -9), or fails. If the guardian dies first, this process restores and stops.

What there was before: the power limit is read. A lock can't be read through NVML, so clocks go back to the driver's own
choice: a lock that somebody else set before is lost, which is said before the first lock.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from moemodel.model.core.errors import DeviceError
from moemodel.profiler.clocks.device_settings import DeviceSettings
from moemodel.profiler.clocks.settings import AskedClocks, Clocks, SettingError
from moemodel.profiler.devices.address import Address
from moemodel.profiler.devices.base import Device
from moemodel.profiler.jobs.isolation import child_environment

VARIABLE = "MOEMODEL_CLOCKS"  # what a site says of locking: see `ClockControl.obstacle`
_FORBIDS = ("passive", "as-is")
_ANSWER_S = 30.0  # for the guardian to start, or to answer: the driver may have to be loaded
_RESTORE_S = 60.0  # for the guardian to restore and leave


class ObstacleError(DeviceError):
    """Something stands against changing a setting, found out without changing it.

    Attributes:
        reason: what it is.
    """

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what} can't be changed: {reason}; use --clocks passive, which changes no setting")
        self.reason = reason


class ClockControl:
    """Locked clocks and power limit of a device, restored when the block ends.

    Args:
        device: whose settings.
        settings: what may be set on it (`platforms.base.Platform.settings`); None if nothing.

    Nothing is changed, and no guardian started, before a method is called that changes something.
    """

    def __init__(self, device: Device, settings: DeviceSettings | None) -> None:
        self._name = device.info.name
        self._settings = settings
        self._power_range_W = device.info.power_limit_range_W
        self._guardian: GuardianProcess | None = None
        self._locked = False
        self._power_limit_W: float | None = None  # as it was found, once it was changed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    @property
    def guardian(self) -> GuardianProcess | None:
        """Who restores if this process can't; None before the first change."""
        return self._guardian

    @property
    def is_shared(self) -> bool:
        """Whether other processes can reach the GPU at all."""
        return self._settings is not None and self._settings.address is not None

    def clocks_Hz(self) -> list[float]:
        """Clocks that can be locked, ascending; none on a device without."""
        return self._settings.clocks_Hz() if self._settings else []

    def obstacle(self) -> str | None:
        """Why clocks must not be locked now, found out without changing anything; None where nothing is against it."""
        forbidden = os.environ.get(VARIABLE)
        if forbidden in _FORBIDS:
            return f"{VARIABLE}={forbidden} in the environment forbids it"
        if self._settings is None:
            return f"{self._name} has no clocks that moemodel can lock"
        if not self.clocks_Hz():
            return f"{self._name} lists no clocks"
        return self._settings.obstacle()

    def company(self) -> str | None:
        """Who else computes on the GPU now; None where nobody is known to."""
        return self._settings.company() if self._settings else None

    def missing_privilege(self) -> str | None:
        """Why the driver will refuse to lock clocks, found out without changing anything; None where it may not."""
        return self._settings.missing_privilege() if self._settings else None

    def refused(self) -> str | None:
        """Why the driver refuses to lock clocks, found out by locking them to their full range; None if it does not.

        Raises:
            DeviceError: no guardian can be started, or the driver fails in another way than by refusing.
        """
        clocks_Hz = self.clocks_Hz()
        try:
            self._lock(clocks_Hz[0], clocks_Hz[-1])
        except SettingError as error:
            if error.lasting:
                return str(error)
            raise
        self.unlock()
        return None

    def lock(self, clock_Hz: float) -> None:
        """Hold the SM clock at `clock_Hz`, as far as the power limit allows.

        Raises:
            ObstacleError: something stands against it; nothing was changed.
            DeviceError: the driver refuses, or there is no guardian any more.
        """
        obstacle = self.obstacle()
        if obstacle:
            raise ObstacleError(f"the clock of {self._name}", obstacle)
        self._lock(clock_Hz, clock_Hz)

    def unlock(self) -> None:
        """Leave the clock to the driver; nothing happens where it isn't locked.

        Raises:
            DeviceError: the driver fails to.
        """
        if self._settings and self._locked:
            self._settings.driver.unlock()
            self._locked = False

    def set_power_limit(self, power_W: float) -> None:
        """Change the power limit; the first call remembers what it was.

        Raises:
            ObstacleError: something stands against it; nothing was changed.
            DeviceError: the value is not allowed, the driver refuses, or there is no guardian any more.
        """
        obstacle = self.obstacle()
        if self._settings is None or obstacle:
            raise ObstacleError(f"the power limit of {self._name}", str(obstacle))
        low_W, high_W = self._power_range_W or (0.0, float("inf"))
        if not low_W <= power_W <= high_W:
            raise DeviceError(
                f"power limit of {self._name}: found {power_W:.0f} W; allowed: {low_W:.0f} to {high_W:.0f} W"
            )
        driver = self._settings.driver
        before_W = driver.power_limit_W() if self._power_limit_W is None else self._power_limit_W
        self._announce(power_limit_W=before_W)
        self._power_limit_W = before_W
        driver.set_power_limit(power_W)

    def restore(self) -> None:
        """Undo every change, and let the guardian go.

        Raises:
            DeviceError: neither this process nor the guardian could; the message says how a person can.
        """
        trouble = self._restore()
        guardian, self._guardian = self._guardian, None
        if guardian is None:
            if trouble:
                raise trouble
            return
        if trouble is None:
            guardian.tell({"forget": True})
        restored = guardian.leave()
        if trouble and not restored:
            raise trouble
        self._locked, self._power_limit_W = False, None

    def _lock(self, low_Hz: float, high_Hz: float) -> None:
        if self._settings is None:
            raise DeviceError(f"{self._name} has no clocks that moemodel can lock; use --clocks passive")
        self._announce(locks=True)
        was_locked, self._locked = self._locked, True  # before: an interruption may come in between
        try:
            self._settings.driver.lock(low_Hz, high_Hz)
        except SettingError as error:
            if error.lasting and not was_locked:  # nothing was changed, so there is nothing to restore
                self._locked = False
                if self._guardian and self._power_limit_W is None:
                    self._guardian.tell({"forget": True})
            raise

    def _announce(self, **change: Any) -> None:
        """Tell the guardian what is about to be changed; it is started if there is none yet.

        Raises:
            DeviceError: it can't be started, or has died: then all is restored.
        """
        address = self._settings.address if self._settings else None
        if address is None:
            return  # the settings die with this process
        if self._guardian is None:
            self._guardian = GuardianProcess(self._name, address)
        if not self._guardian.tell(change):
            self._guardian.leave()
            self._guardian = None
            self.restore()
            raise DeviceError(
                f"the guardian of the settings of {self._name} has died; they are restored, run again to go on"
            )

    def _restore(self) -> SettingError | None:
        """Undo every change from this process; what went wrong first, if anything."""
        trouble: SettingError | None = None
        if self._settings is None:
            return None
        driver = self._settings.driver
        if self._power_limit_W is not None:
            try:
                driver.set_power_limit(self._power_limit_W)
                self._power_limit_W = None
            except SettingError as error:
                trouble = self._by_hand(error, self._power_limit_W)
        try:
            self.unlock()
        except SettingError as error:
            trouble = trouble or self._by_hand(error, None)
        return trouble

    def _by_hand(self, error: SettingError, power_W: float | None) -> SettingError:
        command = self._settings.driver.by_hand(power_W) if self._settings else ""
        return SettingError(f"{self._name} was not restored: {error}; restore by hand, as root: {command}")


class GuardianProcess:
    """The guardian, seen from the process that it guards.

    Args:
        name: of the device, for a reader.
        address: of its settings.

    Attributes:
        pid: its process id.

    Raises:
        DeviceError: it does not come up; nothing may be changed then.
    """

    def __init__(self, name: str, address: Address) -> None:
        job = json.dumps({"name": name, "address": asdict(address), "parent": os.getpid()})
        # Its stderr is ours, for it outlives us with what it has to say.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "moemodel.profiler.clocks.guardian", job],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(os.environ),
            start_new_session=True,
        )
        self.pid = self._process.pid
        answer = self._answer()
        if answer != "ready":
            self.leave()
            reason = answer.removeprefix("failed: ") or "it does not start"
            raise DeviceError(f"no settings of {name} are changed without a guardian to restore them: {reason}")

    def tell(self, change: dict[str, Any]) -> bool:
        """Whether it has heard of a change."""
        pipe = self._process.stdin
        if pipe is None or pipe.closed:
            return False
        try:
            pipe.write(json.dumps(change).encode() + b"\n")
            pipe.flush()
        except OSError:
            return False
        return self._answer() == "noted"

    def leave(self) -> bool:
        """Let it restore what it knows of and end; whether it says that nothing is left changed."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        try:
            return self._process.wait(_RESTORE_S) == 0
        except subprocess.TimeoutExpired:  # it goes on trying
            return False

    def _answer(self) -> str:
        """Its next line; empty if there is none in time."""
        pipe = self._process.stdout
        if pipe is None or pipe.closed:
            return ""
        end_s = time.monotonic() + _ANSWER_S
        line = b""
        while not line.endswith(b"\n"):
            left_s = max(0.0, end_s - time.monotonic())
            if not select.select([pipe], [], [], left_s)[0]:
                return ""
            read = os.read(pipe.fileno(), 1)
            if not read:
                break
            line += read
        return line.decode(errors="replace").strip()


# --- which way -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How clocks are dealt with, and why, where that wasn't asked for in so many words."""

    clocks: Clocks
    note: str | None = None


def choose_clocks(
    asked: AskedClocks,
    control: ClockControl,
    *,
    begun: Clocks | None = None,
    needed: bool = True,
    announce: Callable[[str], None] = lambda _: None,
) -> Choice:
    """The best that is permitted of what was asked.

    "auto" locks where this process may and nobody else computes on the GPU, and leaves the clocks alone otherwise. All
    that can be found out without changing anything is found out first; the lock that is then tried holds the clock in
    its full range, so it limits nothing.

    Args:
        asked: of the clocks.
        control: of the device.
        begun: how the profile that is to go on was begun; None for a new one.
        needed: whether anything would be measured at locked clocks.
        announce: told before the first lock.

    Raises:
        DeviceError: a lock was asked for, or is what the profile goes on with, and is not permitted.
    """
    if asked in ("passive", "as-is"):
        return Choice(clocks=asked)
    if asked == "auto" and begun is not None and begun != "lock":
        return Choice(clocks=begun, note=f"clocks: {begun}, as this profile was begun")
    if asked == "auto" and not needed:
        return Choice(clocks=begun or "passive", note="clocks: left alone; only section sweep would lock them")
    reason = _against_locking(asked, control, begun, announce)
    if reason is None:
        alone = "nobody else computes here" if control.is_shared else "this process alone has this GPU"
        return Choice(clocks="lock", note=f"clocks: lock, for section sweep; it is permitted, and {alone}")
    if asked == "lock":
        raise DeviceError(f"--clocks lock: {reason}; use --clocks passive, which changes no setting")
    if begun == "lock":
        raise DeviceError(f"this profile was begun with --clocks lock, and {reason}; give another folder as --output")
    return Choice(clocks="passive", note=f"clocks: passive, not locked: {reason}")


def _against_locking(
    asked: AskedClocks, control: ClockControl, begun: Clocks | None, announce: Callable[[str], None]
) -> str | None:
    reason = control.obstacle()
    if reason is None and asked == "auto" and begun != "lock":
        reason = control.missing_privilege()
    if reason is None:
        announce(
            "the SM clocks are going to be locked, if the driver permits it, step by step in section sweep, and given "
            "back to the driver at its end; a lock that somebody set before is lost. --clocks passive, or "
            f"{VARIABLE}=passive in the environment, changes no setting"
        )
        reason = control.refused()
    return reason
