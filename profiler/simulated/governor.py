"""Which clock a simulated GPU gets.

Slow limit, a stepping controller with a dead band (Lefurgy, Wang & Ware 2007, Server-Level Power Control, ICAC: the
controllers by fixed steps that they compare with): at every period it looks at power averaged over the last ones;
above the target the clock goes down by a step, and by more the farther above; below the band it goes up in the same
way; in the band it stays. What is set is a whole number of the driver's steps, and no more than a lock allows (a lock
holds the clock down; it does not hold it up against the cap). Above the slowdown temperature it goes down in any case.

Fast limit, pulse skipping: above an onset the share of clock pulses that is left out rises with the tensor cores' duty
u and with how far above the onset the clock is,

    f_true = f_set - skipping u (f_set - f_onset)

(an H100 80GB HBM3 under products set to 1530, 1800, 1965, 1980 MHz ran at 1437, 1568, 1583, 1596 MHz, and at 1705 MHz
under attention set to 1980 MHz; with onset 1400 MHz and skipping 0.72 the line is within 4 % of these).
"""

from __future__ import annotations

import math

from moemodel.profiler.simulated.chip import Governor, SimulatedChip


class SteppingGovernor:
    """The slow limit.

    Args:
        chip: whose clock it sets.

    Attributes:
        set_Hz: the clock now.
    """

    def __init__(self, chip: SimulatedChip) -> None:
        self._chip = chip
        self._mean_W = 0.0
        self._steps = self._highest = round((chip.clock_max_Hz - chip.clock_min_Hz) / chip.clock_step_Hz)
        self.set_Hz = chip.clock_max_Hz

    def decide(self, power_W: float, *, cap_W: float, too_hot: bool, lock_Hz: float) -> None:
        """Set the clock anew.

        Args:
            power_W: mean since the last decision.
            cap_W: the power limit.
            too_hot: the die is above its slowdown temperature.
            lock_Hz: highest clock allowed.
        """
        g = self._chip.governor
        keep = math.exp(-g.period_s / g.memory_s)
        self._mean_W = keep * self._mean_W + (1 - keep) * power_W
        change = min(_change(g, self._mean_W / cap_W), -1 if too_hot else g.most_steps)
        self._steps = min(self._highest, max(0, self._steps + change))
        allowed = math.floor((lock_Hz - self._chip.clock_min_Hz) / self._chip.clock_step_Hz + 1e-9)
        self.set_Hz = self._chip.clock_min_Hz + max(0, min(self._steps, allowed)) * self._chip.clock_step_Hz


def _change(g: Governor, share: float) -> int:
    """Steps to go, at a power that is this share of the cap."""
    above, below = share / g.target - 1, 1 - g.band - share / g.target
    if above > 0:
        return -min(g.most_steps, 1 + math.floor(above / g.down_step))
    return min(g.most_steps, 1 + math.floor(below / g.up_step)) if below > 0 else 0


def true_clock_Hz(g: Governor, set_Hz: float, tensor_use: float) -> float:
    """f_true at a clock that is set, under a kernel whose tensor cores work for a share of its time."""
    return set_Hz - g.skipping * min(1.0, tensor_use) * max(0.0, set_Hz - g.onset_Hz)
