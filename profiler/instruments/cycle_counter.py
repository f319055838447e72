"""The clock that the SMs really run at: their cycle counter against the GPU's nanosecond timer.

NVML's clock is a set point; under a power cap the true clock was measured up to 500 MHz below it. A tiny Triton kernel
stamps `%clock64` (cycles of this SM), `%globaltimer` (ns) and `%smid` before and after a stretch of work; the clock is
the median over SMs of cycles over time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moemodel.profiler.devices.base import Device

_PROGRAMS_PER_SM = 4  # so that every SM gets at least one
_FIELDS = 3  # cycles, time, SM
_SLOTS = 2048  # stamps kept until they are read: 12.7 kB each on an H100, 26 MB in all

StampKernel = Callable[[torch.Tensor, int], None]  # (buffer, programs)


@dataclass(frozen=True)
class Stamp:
    """A queued reading: its slot in the ring, and its number, by which an overwritten one is known."""

    slot: int
    number: int


class ClockReader:
    """Queues stamps on the current stream and turns pairs of them into mean clocks.

    Attributes:
        note: why there are no true clocks; None where there are.
    """

    def __init__(self, device: Device, slots: int = _SLOTS) -> None:
        self.note: str | None = None
        self._slots = slots
        self._next = 0
        self._kernel: StampKernel | None = None
        self._programs = (device.info.multiprocessors or 0) * _PROGRAMS_PER_SM
        try:
            self._kernel = _stamp_kernel(device.torch_device)
        except _UnavailableError as error:
            self.note = f"true clock not measured: {error}"
            return
        size = (slots, self._programs * _FIELDS)
        self._ring = torch.zeros(size, dtype=torch.int64, device=device.torch_device)
        self.stamp()  # compiles the kernel, outside any measurement
        torch.cuda.synchronize()

    def stamp(self) -> Stamp | None:
        """Queue a stamp; about 20 µs of host time, no synchronisation. None where clocks cannot be read."""
        if self._kernel is None:
            return None
        stamp = Stamp(slot=self._next % self._slots, number=self._next)
        self._next += 1
        self._kernel(self._ring[stamp.slot], self._programs)
        return stamp

    def mean_Hz(self, a: Stamp | None, b: Stamp | None) -> float | None:
        """Mean clock between two stamps, after the work between them is done; None if either is not there."""
        return self.means_Hz([(a, b)])[0]

    def means_Hz(self, pairs: Sequence[tuple[Stamp | None, Stamp | None]]) -> list[float | None]:
        """`mean_Hz` of many pairs with one copy from the device."""
        known = [s for pair in pairs for s in pair if s is not None and s.number >= self._next - self._slots]
        if self._kernel is None or not known:
            return [None] * len(pairs)
        numbers = sorted({s.number for s in known})
        slots = torch.tensor([n % self._slots for n in numbers], device=self._ring.device)
        raw = self._ring.index_select(0, slots).cpu().numpy().reshape(len(numbers), self._programs, _FIELDS)
        by_number = dict(zip(numbers, raw, strict=True))
        return [self._pair_Hz(by_number, a, b) for a, b in pairs]

    def _pair_Hz(self, by_number: dict[int, NDArray[np.int64]], a: Stamp | None, b: Stamp | None) -> float | None:
        if a is None or b is None or a.number not in by_number or b.number not in by_number:
            return None
        return clock_Hz(by_number[a.number], by_number[b.number])


def clock_Hz(before: NDArray[np.int64], after: NDArray[np.int64]) -> float | None:
    """Median over the SMs present in both readings of cycles passed over time passed.

    Args:
        before: rows of (cycles, time in ns, SM), one a program; several programs may share an SM.
        after: the same, later.
    """
    sms = int(max(before[:, 2].max(), after[:, 2].max())) + 1
    cycles_first, time_first = _by_sm(before, sms)
    cycles_last, time_last = _by_sm(after, sms)
    cycles = cycles_last - cycles_first
    time_ns = time_last - time_first
    good = (time_first > 0) & (time_last > 0) & (cycles > 0) & (time_ns > 0)
    if not good.any():
        return None
    return float(np.median(cycles[good] / time_ns[good]) * 1e9)


def _by_sm(stamp: NDArray[np.int64], sms: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    cycles = np.zeros(sms, dtype=np.int64)
    time_ns = np.zeros(sms, dtype=np.int64)
    cycles[stamp[:, 2]] = stamp[:, 0]  # of several programs on an SM, the last one: both of its fields
    time_ns[stamp[:, 2]] = stamp[:, 1]
    return cycles, time_ns


class _UnavailableError(Exception):
    pass


def _stamp_kernel(device: torch.device) -> StampKernel:
    """The compiled stamp kernel's launcher.

    Raises:
        _UnavailableError: there is no CUDA device or no Triton.
    """
    if device.type != "cuda":
        raise _UnavailableError(f"the device is {device.type}, which has no SM cycle counter")
    try:
        from moemodel.profiler.instruments._stamp import launch_stamp
    except ImportError as error:
        raise _UnavailableError(f"Triton cannot be imported ({error}); pip install triton") from error
    try:
        probe: Any = torch.zeros(_FIELDS, dtype=torch.int64, device=device)
        launch_stamp(probe, 1)
        torch.cuda.synchronize()
    except Exception as error:  # Triton raises whatever its compiler driver does (no C compiler, …)
        cc = os.environ.get("CC", "gcc")
        raise _UnavailableError(f"Triton cannot build a kernel here (is {cc} installed?): {error!r:.200}") from error
    return launch_stamp
