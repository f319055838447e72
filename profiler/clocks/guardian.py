"""The guardian: a small process that restores a GPU's settings when the profiler is done with them, or dead.

Run as `python -m moemodel.profiler.clocks.guardian JOB`, in a session of its own, by `clock_control`; imports nothing
heavy. It reads lines of JSON on stdin and answers each on stdout:

    {"locks": true}          clocks are about to be locked: unlock them in the end
    {"power_limit_W": 700}   the power limit is about to be changed: restore this one in the end
    {"forget": true}         what was changed is restored: nothing is left to do

The end is when stdin is closed, or when its parent is another than it was (a child of the profiler may hold the other
end of stdin open): the profiler has ended, was interrupted, or was killed. NVML can change a lock but not read it, so
clocks go back to the driver's own choice, whatever lock there was before.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from moemodel.model.core.errors import DeviceError
from moemodel.profiler.clocks.settings import SettingError, SettingsDriver, open_driver
from moemodel.profiler.devices.address import Address

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK_S = 0.25  # between looks at who the parent is
_PAUSES_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)  # between attempts to restore; 16 s in all
_CHUNK_B = 4096  # read at once: a page; commands are lines of some bytes


class Guardian:
    """What has to be restored, and how.

    Args:
        name: of the device, for a reader.
        reach: opens its settings; again, where an attempt failed.
        sleep: waits so many seconds.

    Raises:
        DeviceError: the settings can't be reached.
    """

    def __init__(
        self, name: str, reach: Callable[[], SettingsDriver], sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._name = name
        self._reach = reach
        self._sleep = sleep
        self._settings = reach()
        self._locks = False
        self._power_limit_W: float | None = None

    def note(self, change: Mapping[str, Any]) -> None:
        """Remember what is about to be changed, or that it was restored; the first power limit counts."""
        if change.get("forget"):
            self._locks, self._power_limit_W = False, None
        self._locks = self._locks or bool(change.get("locks"))
        if self._power_limit_W is None and "power_limit_W" in change:
            self._power_limit_W = float(change["power_limit_W"])

    def restore(self) -> list[str]:
        """Restore what was noted; returns what a person has to know of what could not be."""
        troubles = []
        limit_W = self._power_limit_W
        if self._locks:
            troubles.append(self._insist("the clocks are still locked", None, lambda s: s.unlock()))
        if limit_W is not None:
            troubles.append(self._insist("its power limit is changed", limit_W, lambda s: s.set_power_limit(limit_W)))
        return [trouble for trouble in troubles if trouble]

    def _insist(self, what: str, power_W: float | None, act: Callable[[SettingsDriver], None]) -> str:
        reason = ""
        for pause_s in (*_PAUSES_S, None):
            try:
                act(self._settings)
            except DeviceError as error:
                reason = str(error)
                if pause_s is None or (isinstance(error, SettingError) and error.lasting):
                    break
                self._sleep(pause_s)
                with suppress(DeviceError):  # else the old way is tried again
                    self._settings = self._reach()
            else:
                return ""
        return f"{self._name}: {what} ({reason}); restore by hand, as root: {self._settings.by_hand(power_W)}"


def listen(parent: int, note: Callable[[Mapping[str, Any]], None], source: int, sink: int) -> None:
    """Note and answer what comes in until there is nobody left who could say more.

    Args:
        parent: process id of who started this one.
        note: what to do with each message.
        source, sink: file descriptors to read from, and to answer to.
    """
    rest = b""
    while os.getppid() == parent:
        if not select.select([source], [], [], _LOOK_S)[0]:
            continue
        read = os.read(source, _CHUNK_B)
        if not read:
            return
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            note(json.loads(line))
            with suppress(BrokenPipeError):
                os.write(sink, b"noted\n")


def main(arguments: list[str]) -> int:
    """Guard what the job (JSON: name, address, parent) says; the exit status is 1 if something was left changed."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    job = json.loads(arguments[0])
    try:
        guardian = Guardian(job["name"], lambda: open_driver(Address(**job["address"])))
    except (DeviceError, ImportError) as error:
        sys.stdout.write(f"failed: {error}\n")
        return 1
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    listen(job["parent"], guardian.note, sys.stdin.fileno(), sys.stdout.fileno())
    troubles = guardian.restore()
    for trouble in troubles:
        with suppress(OSError):  # the terminal may be gone, with the profiler
            sys.stderr.write(f"moemodel: {trouble}\n")
            sys.stderr.flush()
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
