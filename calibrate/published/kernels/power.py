"""Power of kernels that were repeated for a second, as a calibration has it.

    P = min(share x limit, P_model(work / t, f)),   the SMs at work in all of t but launches and the host's part of it

Nothing is fitted to it. Most readings from 50 us on are at the limit, where they say only that the model reaches it; of
the rest, those of an H200, whose power this project measured, lie lower than its kernels draw: fitted to them, all
energies of work together come out at 0.80 of what they are, for 0.1 points less error, and each by itself at a tenth to
twice, for none.
Below 50 us the host leaves gaps between kernels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moemodel.calibration.published.kernels.clocks import Conditions
from moemodel.model.core.arrays import FloatArray
from moemodel.model.operators.work import Work

SHORTEST_S = 50e-6


def held_W(conditions: Conditions, work: Work, time_s: FloatArray, busy_s: FloatArray) -> FloatArray:
    """Power that is read, W [U].

    Args:
        conditions: that kernels ran under, with the limit.
        work: of each.
        time_s: from one to the next.
        busy_s: of that, in which SMs are busy.
    """
    free = replace(conditions, limit_W=None)
    clock_Hz = free.clock_Hz(work, np.repeat(time_s[:, None], len(free.clock_Hz_K), axis=1))
    wanted_W = conditions.power_W(work, time_s, busy_s, clock_Hz)
    return np.asarray(np.minimum(wanted_W, np.inf if conditions.limit_W is None else conditions.limit_W))
