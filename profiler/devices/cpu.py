"""The host processor as a device. Reads only.

Its energy comes from RAPL where the powercap files are readable (root, on most systems). Where they are not, CodeCarbon
can guess: the processor's TDP by its table, or 4 W a thread for one that it does not know, times
`0.1 + 0.9 load^3`. That is no measurement, and `info.power_source` says "guess": it lets the chain run and an order of
magnitude be seen, and must not be fitted as if it had been measured.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Protocol

import torch

from moemodel.model.core.extras import how_to_install
from moemodel.model.records.profile import DeviceInfo
from moemodel.profiler.devices.base import ActivityMeter, LinkMeter, NoActivity, NoLinks

_POWERCAP = Path("/sys/class/powercap")
_GUESS_EVERY_S = 0.1  # the system counts load in hundredths of a second


class _Energy(Protocol):
    """A source of the processor's energy."""

    def energy_J(self) -> float | None: ...
    def power_W(self) -> float | None: ...


class CpuDevice:
    """The host processor.

    Args:
        powercap: folder of the powercap files.
        guess: without RAPL, have CodeCarbon guess the power, if it is installed.
    """

    def __init__(self, powercap: Path = _POWERCAP, *, guess: bool = False) -> None:
        self.torch_device = torch.device("cpu")
        packages = [_RaplPackage(folder) for folder in _readable_packages(powercap)]
        guessed = codecarbon_guess() if guess and not packages else None
        self._energy: _Energy | None = _Rapl(packages) if packages else guessed
        self.info = DeviceInfo(
            name=processor_name(),
            vendor="cpu",
            memory_B=memory_B(),
            power_source="rapl" if packages else "guess" if guessed else None,
        )

    def energy_J(self) -> float | None:
        return None if self._energy is None else self._energy.energy_J()

    def power_W(self) -> float | None:
        return None if self._energy is None else self._energy.power_W()

    def reported_clock_Hz(self) -> float | None:
        return None

    def temperature_C(self) -> float | None:
        return None

    def memory_temperature_C(self) -> float | None:
        return None

    def used_memory_B(self) -> float | None:
        return None

    def activity(self) -> ActivityMeter:
        return NoActivity()

    def link_traffic(self) -> LinkMeter:
        return NoLinks()

    def close(self) -> None:
        return None


def power_note(info: DeviceInfo) -> str | None:
    """What a reader of energies must know of their source; None where they were measured."""
    if info.power_source == "guess":
        return (
            "power is a guess: RAPL cannot be read here, so that CodeCarbon takes the processor's TDP times a function "
            "of its load; do not fit it. For measured power, run as root or chmod a+r /sys/class/powercap/*/energy_uj"
        )
    if info.vendor == "cpu" and info.power_source is None:
        return (
            "no energy: RAPL cannot be read here; run as root or chmod a+r /sys/class/powercap/*/energy_uj, or to have "
            f"it guessed, {how_to_install('codecarbon')}"
        )
    return None


# --- RAPL ------------------------------------------------------------------------------------------------------------


class _Rapl:
    """The sum of the packages' counters."""

    def __init__(self, packages: list[_RaplPackage]) -> None:
        self._packages = packages

    def energy_J(self) -> float:
        return sum(package.energy_J() for package in self._packages)

    def power_W(self) -> float | None:
        return None


class _RaplPackage:
    """One processor package's counter, made monotonic across its wrap-around."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "energy_uj"
        range_file = folder / "max_energy_range_uj"
        self._range_uJ = int(range_file.read_text()) if range_file.exists() else 0
        self._last_uJ = int(self._file.read_text())
        self._turns = 0

    def energy_J(self) -> float:
        now_uJ = int(self._file.read_text())
        if now_uJ < self._last_uJ:
            self._turns += 1
        self._last_uJ = now_uJ
        return (now_uJ + self._turns * self._range_uJ) * 1e-6


def _readable_packages(powercap: Path) -> list[Path]:
    """Package domains only (`intel-rapl:0`): their sub-domains are part of them."""
    folders = sorted(f for f in powercap.glob("intel-rapl:*") if re.fullmatch(r"intel-rapl:\d+", f.name))
    return [f for f in folders if os.access(f / "energy_uj", os.R_OK)]


# --- a guess ---------------------------------------------------------------------------------------------------------


class GuessedEnergy:
    """Power that is guessed every 100 ms, added up: each guess, of the load up to then, counts until the next one.

    Args:
        mean_power_W: since it was asked last.
        now_s: the time.
    """

    def __init__(self, mean_power_W: Callable[[], float], now_s: Callable[[], float] = time.perf_counter) -> None:
        self._mean_power_W, self._now_s = mean_power_W, now_s
        self._at_s = self._asked_s = now_s()
        self._energy_J, self._power_W = 0.0, mean_power_W()
        self._lock = threading.Lock()  # the meter's thread reads it too

    def energy_J(self) -> float:
        """Up to now."""
        with self._lock:
            now_s = self._now_s()
            self._energy_J += self._power_W * (now_s - self._at_s)
            self._at_s = now_s
            if now_s - self._asked_s >= _GUESS_EVERY_S:
                self._asked_s, self._power_W = now_s, self._mean_power_W()
            return self._energy_J

    def power_W(self) -> float:
        """The last guess."""
        self.energy_J()
        return self._power_W


def codecarbon_guess() -> GuessedEnergy | None:
    """CodeCarbon's estimate for this processor, from its TDP and load; None where CodeCarbon is not installed."""
    try:
        cpu, util = import_module("codecarbon.core.cpu"), import_module("codecarbon.core.util")
        hardware = import_module("codecarbon.external.hardware")
    except ImportError:
        return None
    logger = logging.getLogger("codecarbon")
    before = logger.level
    logger.setLevel(logging.CRITICAL)  # that it guesses is said by `power_note`
    try:
        tdp = cpu.TDP()
        tdp_W = None if tdp.tdp is None else tdp.tdp * util.count_physical_cpus()
        processor = hardware.CPU.from_utils("", hardware.MODE_CPU_LOAD, tdp.model, tdp_W)
    except AttributeError:  # another version
        return None
    finally:
        logger.setLevel(before)
    processor.start()
    time.sleep(_GUESS_EVERY_S)  # for a first load
    return GuessedEnergy(lambda: float(processor.total_power().W))


# --- the host --------------------------------------------------------------------------------------------------------


def processor_name() -> str:
    """The processor's model name, or its architecture where the system does not tell."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def memory_B() -> int:
    """Physical memory of the host."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
