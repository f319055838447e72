"""The sensors of an NVIDIA GPU through NVML (nvidia-ml-py). Reads only.

The meter's reader process runs this too, so it imports nothing heavy: no torch, no numpy.

NVML answers what it cannot read by an error, or by a number that is none: all bits set, or less than nothing. Both are
None here; what was odd is kept in `oddities`.

On a superchip (a GPU and a Grace CPU in one module) the energy counter and the driver's average power are the module's;
the instantaneous power alone is the GPU's (nvidia-smi has "Module Power Readings" of its own). There the counter is not
read at all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from moemodel.profiler.devices.nvml import LASTING_ERRORS, load_nvml, text

OPEN_SENSORS = "moemodel.profiler.devices.nvml_sensors:open_sensors"  # for the reader process, see `Address`

_MILLI = 1e-3
_MEGA = 1e6
_SUPERCHIP = re.compile(r"\b(GH200|GB[23]00|VR200)\b", re.IGNORECASE)
# What a number may be at most, by the first word of its name (assumed, each several times what there is): more is none,
# 0xFFFFFFFF above all.
_MOST = {
    "energy": 1e15,  # J; NVML's counter is of 64 bits, in mJ
    "power": 20e3,
    "limit": 20e3,  # of power
    "clock": 20e9,
    "temperature": 200.0,
    "memory": 1e15,
}
_NEVER_ZERO = ("limit", "clock", "temperature")  # what a sensor that is not there says


class NvmlSensors:
    """What one GPU's sensors say; None where it has no such sensor, or what it says is no reading.

    Args:
        nvml: the `pynvml` module, or something that behaves like it; it must be initialised.
        handle: NVML's handle of the GPU.

    Attributes:
        name: of the GPU; None where NVML does not tell.
        superchip: whether its counter is that of a module with a CPU.
        oddities: sensor -> what it said that is no reading, the last time.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        # A sensor that this GPU or this user cannot read fails the same way each time: ask once, then stop asking.
        self._missing: set[str] = set()
        self._lasting = {getattr(nvml, name, None) for name in LASTING_ERRORS}
        self.oddities: dict[str, float] = {}
        self.name = self.ask("name", lambda n, h: text(n.nvmlDeviceGetName(h)))
        self.superchip = self.name is not None and _SUPERCHIP.search(self.name) is not None

    def energy_J(self) -> float | None:
        """The counter; it changes every 100 ms on an H100."""
        if self.superchip:
            return None
        return self.read("energy", lambda n, h: n.nvmlDeviceGetTotalEnergyConsumption(h), _MILLI)

    def power_W(self) -> float | None:
        """Instantaneous power where the driver has it, else its own average (on a superchip the module's: None)."""
        instant = self._field("power instant", "NVML_FI_DEV_POWER_INSTANT", _MILLI)
        if instant is not None or self.superchip:
            return instant
        return self.read("power", lambda n, h: n.nvmlDeviceGetPowerUsage(h), _MILLI)

    def reported_clock_Hz(self) -> float | None:
        """What the driver says the SM clock is."""
        return self.read("clock", lambda n, h: n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_SM), _MEGA)

    def temperature_C(self) -> float | None:
        """Of the die."""
        return self.read("temperature", lambda n, h: n.nvmlDeviceGetTemperature(h, n.NVML_TEMPERATURE_GPU))

    def memory_temperature_C(self) -> float | None:
        """Of the memory."""
        return self._field("temperature of the memory", "NVML_FI_DEV_MEMORY_TEMP", 1.0)

    def used_memory_B(self) -> float | None:
        """As the driver sees it, other processes on this GPU included."""
        return self.read("memory", lambda n, h: n.nvmlDeviceGetMemoryInfo(h).used)

    def ask(self, what: str, question: Callable[[Any, Any], Any]) -> Any:
        """An answer of NVML's (asked with it and the handle); None where it has none, and then never asked again."""
        if what in self._missing:
            return None
        try:
            return question(self._nvml, self._handle)
        except AttributeError:  # an older nvidia-ml-py
            self._missing.add(what)
        except (LookupError, OSError, TypeError, ValueError):  # an answer that is none, or the library itself
            return None
        except self._nvml.NVMLError as error:
            if getattr(error, "value", None) in self._lasting:
                self._missing.add(what)
        return None

    def read(self, what: str, question: Callable[[Any, Any], Any], scale: float = 1.0) -> float | None:
        """A number of NVML's, times `scale`; None where it has none, or says one that cannot be.

        Args:
            what: its name, which begins with a word of `_MOST`.
            question: asked with NVML and the handle.
            scale: of NVML's unit.
        """
        word = what.partition(" ")[0]
        raw = self.ask(what, lambda n, h: float(question(n, h)))
        if raw is None:
            return None
        value = float(raw) * scale
        if not math.isfinite(value) or not 0 <= value <= _MOST[word]:
            self.oddities[what] = value
            return None
        return None if value == 0 and word in _NEVER_ZERO else value

    def close(self) -> None:
        """Give NVML back."""
        try:
            self._nvml.nvmlShutdown()
        except (AttributeError, OSError, self._nvml.NVMLError):
            return

    def _field(self, what: str, name: str, scale: float) -> float | None:
        def read(nvml: Any, handle: Any) -> int:
            field = nvml.nvmlDeviceGetFieldValues(handle, [getattr(nvml, name)])[0]
            if field.nvmlReturn != nvml.NVML_SUCCESS:
                raise nvml.NVMLError(field.nvmlReturn)
            return int(field.value.uiVal)

        return self.read(what, read, scale)


def oddity(what: str, value: float) -> str:
    """What to know of a reading that cannot be."""
    return f"NVML's {what} said {value:g}, which cannot be: taken as no reading"


def open_sensors(uuid: str) -> NvmlSensors:
    """Those of the GPU with this UUID.

    Raises:
        DeviceError: NVML cannot be loaded.
        nvml.NVMLError: it knows no such GPU.
    """
    nvml = load_nvml()
    return NvmlSensors(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid))
