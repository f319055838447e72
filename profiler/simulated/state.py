"""The settings of a simulated GPU; in a file where they are to outlive the process, as a driver's do.

The guardian process runs this too, so it imports nothing heavy: no torch, no numpy.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from moemodel.model.core.errors import DeviceError
from moemodel.model.core.files import write_atomic
from moemodel.profiler.clocks.settings import SettingError

OPEN_STORED = "moemodel.profiler.simulated.state:open_stored"  # for the guardian, see `clocks.settings.Address`
LOCKING = ("allowed", "refused", "unsupported")
_REFUSALS = {
    "refused": "the simulated driver gives no permission to lock clocks",
    "unsupported": "this simulated GPU can't lock clocks",
}


@dataclass(frozen=True, kw_only=True)
class State:
    """What a simulated driver remembers.

    Attributes:
        locked_Hz: lowest and highest clock that it may run at; None where it is free.
        power_limit_W: that the governor holds; None for the one it was made with.
        failing_unlocks: how many more times unlocking will fail.
        locks: how many times clocks were locked.
    """

    locked_Hz: tuple[float, float] | None = None
    power_limit_W: float | None = None
    failing_unlocks: int = 0
    locks: int = 0


class StoredSettings:
    """`clocks.settings.SettingsDriver` of a simulated GPU.

    Args:
        file: to keep them in; None for the memory of this process.
        locking: one of LOCKING.
        initial: settings of a GPU that has no file yet, which is made then; None if there must be one.

    Raises:
        DeviceError: the file is not such a state, or not there.
    """

    def __init__(self, file: Path | None, locking: str = "allowed", initial: State | None = None) -> None:
        self._file = file
        self._locking = locking
        self._state = initial or State()
        self._seen: tuple[int, int] | None = None  # inode and time of the file that was read last
        if initial is not None and file is not None and not file.exists():
            self._store(initial)
        _ = self.state  # or say what is wrong with it

    @property
    def state(self) -> State:
        """As it is now, whoever changed it."""
        if self._file is not None:
            try:
                stat = self._file.stat()
                if self._seen != (stat.st_ino, stat.st_mtime_ns):
                    self._state = _read(self._file)
                    self._seen = (stat.st_ino, stat.st_mtime_ns)
            except OSError as error:
                raise SettingError(f"the simulated driver's state can't be read: {error}") from error
        return self._state

    def lock(self, low_Hz: float, high_Hz: float) -> None:
        if self._locking in _REFUSALS:
            raise SettingError(_REFUSALS[self._locking], lasting=True)
        state = self.state
        self._store(replace(state, locked_Hz=(low_Hz, high_Hz), locks=state.locks + 1))

    def unlock(self) -> None:
        state = self.state
        if state.failing_unlocks > 0:
            self._store(replace(state, failing_unlocks=state.failing_unlocks - 1))
            raise SettingError("the simulated driver fails to unlock clocks")
        self._store(replace(state, locked_Hz=None))

    def fail_to_unlock(self, times: int) -> None:
        """Have the next attempts to unlock fail, whichever process makes them."""
        self._store(replace(self.state, failing_unlocks=times))

    def power_limit_W(self) -> float:
        limit_W = self.state.power_limit_W
        if limit_W is None:
            raise SettingError("the simulated driver knows no power limit", lasting=True)
        return limit_W

    def set_power_limit(self, power_W: float) -> None:
        self._store(replace(self.state, power_limit_W=power_W))

    def by_hand(self, power_W: float | None) -> str:
        what = "locked_Hz to null" if power_W is None else f"power_limit_W to {power_W:.0f}"
        return f"set {what} in {self._file}"

    def _store(self, state: State) -> None:
        self._state = state
        if self._file is None:
            return
        try:
            write_atomic(self._file, json.dumps(asdict(state)))
        except OSError as error:
            raise SettingError(f"the simulated driver's state can't be written: {error}") from error


def open_stored(file: str) -> StoredSettings:
    """The settings that a simulated GPU keeps in a file.

    Raises:
        DeviceError: the file is not such a state, or not there.
    """
    return StoredSettings(Path(file))


def _read(file: Path) -> State:
    try:
        raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        locked = raw.pop("locked_Hz", None)
        return State(locked_Hz=None if locked is None else (float(locked[0]), float(locked[1])), **raw)
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise DeviceError(f"{file}: not the state of a simulated GPU ({error}); delete it, it is made anew") from error
