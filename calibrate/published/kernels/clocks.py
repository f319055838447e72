"""At which true SM clock a reading was taken: nobody noted it, so it is what the two limits of `device.dvfs` leave.

    f = highest clock with  f <= fast limit of its tensor use,   and, where the kernel was repeated long enough for the
        power limit to act,  P(work / t, f) <= share x limit

Fitting takes the measured t, predicting the predicted t(f); both solve the same two conditions, so that a form that has
a reading's time at its clock predicts that time, however wrong the power is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moemodel.model.core.arrays import FloatArray
from moemodel.model.device.dvfs import TensorLimit, crossing, time_at_clock
from moemodel.model.device.power import PowerModel
from moemodel.model.device.roofline import RooflineChip
from moemodel.model.operators.work import Work

_CLOCKS = 24  # between which a crossing is taken linear
_LOWEST = 0.25  # of the highest clock; assumed: no reading fell below


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Under which kernels were repeated.

    Attributes:
        chip: in the kernels' precision.
        top_Hz: highest clock.
        fast: limit on tensor cores.
        power: the GPU's, in the kernels' precision; `factor` on the kernels' dynamic energy.
        limit_W: that mean power is held at; None: bursts, too short for it.
    """

    chip: RooflineChip
    top_Hz: float
    fast: TensorLimit
    power: PowerModel
    factor: float = 1.0
    limit_W: float | None = None

    @property
    def clock_Hz_K(self) -> FloatArray:
        """Ascending clocks that are tried."""
        return np.linspace(_LOWEST * self.top_Hz, self.top_Hz, _CLOCKS)

    def clock_Hz(self, work: Work, time_s_UK: FloatArray) -> FloatArray:
        """True clock of kernels that would take these times at `clock_Hz_K`, [U]."""
        clocks = self.clock_Hz_K
        nearness = clocks / self._fast_Hz_UK(work, time_s_UK)
        if self.limit_W is not None:
            nearness = np.maximum(nearness, self.power_W_UK(work, time_s_UK, clocks) / self.limit_W)
        return crossing(np.maximum.accumulate(nearness, axis=1), clocks, np.ones(len(nearness)))

    def settled_s(self, work: Work, time_s_UK: FloatArray) -> FloatArray:
        """Time of kernels that would take these times at `clock_Hz_K`, at the clock that they are left, [U]."""
        return time_at_clock(time_s_UK, self.clock_Hz_K, self.clock_Hz(work, time_s_UK))

    def power_W_UK(self, work: Work, time_s_UK: FloatArray, clock_Hz_K: FloatArray) -> FloatArray:
        """Steady power of kernels repeated without gaps, if nothing limited it."""
        dynamic_J = self.factor * self.power.unscaled_J(work, clock_Hz_K, time_s_UK)
        return self.power.steady(dynamic_J / time_s_UK + self.power.clocked_W(clock_Hz_K))[0]

    def power_W(self, work: Work, time_s: FloatArray, busy_s: FloatArray, clock_Hz: FloatArray) -> FloatArray:
        """The same at one clock each, SMs busy in a part of the time, [U]."""
        voltage2 = self.power.voltage2(clock_Hz)
        switching = self.power.flop_J * work.flops + self.power.vector_op_J * work.vector_ops
        switching = switching + self.power.cache_J_per_B * work.bytes_B
        active_W = self.power.active_W * clock_Hz / self.power.clock_reference_Hz * busy_s / time_s
        dynamic_W = voltage2 * (switching / time_s + active_W) + self.power.dram_J_per_B * work.bytes_B / time_s
        return self.power.steady(self.factor * dynamic_W + self.power.clocked_W(clock_Hz))[0]

    def _fast_Hz_UK(self, work: Work, time_s_UK: FloatArray) -> FloatArray:
        if not np.isfinite(self.fast.clock_Hz):
            return np.full(time_s_UK.shape, self.top_Hz)
        could = time_s_UK * self.clock_Hz_K * (self.chip.multiprocessors * self.chip.flops_per_cycle)
        use = np.minimum(1.0, work.flops[:, None] / could)
        return self.fast.true_clock_Hz(np.asarray([self.top_Hz]), use)
