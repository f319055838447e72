"""Programs at other clocks than those that were read: their time, their counters, and how warm they get.

Counters of one clock are carried to others by the time that the work takes there (`projected`):

    t(f)/t(f0) = 1 - sm + sm q(f)/q(f0),   q(f)^p = (c f0/f)^p + m^p

sm share of the time with work on SMs, the rest doesn't follow the clock; m share of it that memory's bandwidth alone
would take; c what SMs would take if memory were infinitely fast, no less than they need to issue the loads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moemodel.calibration.fit.power import Loads
from moemodel.calibration.published.activity_power import ActivityPower
from moemodel.model.core.arrays import FloatArray, IntArray


@dataclass(frozen=True, kw_only=True)
class Bandwidth:
    """Memory against the SM clock: B/s that it delivers, B/s that SMs issue at the reference clock, p-norm of both."""

    memory_Bps: float
    issue_Bps: float
    p: float


def projected(loads: Loads, top_N: IntArray, bandwidth: Bandwidth) -> tuple[Loads, FloatArray]:
    """Counters that each row would show, had only those of one clock been read; and the time it takes.

    Args:
        loads: programs at clocks; only the clocks of the rows are used, and all of the rows `top_N`.
        top_N: for each row, the row of its program that was read.
        bandwidth: of the GPU.

    Returns:
        Loads with the same power and temperature, and the run time over that of the row read, [N].
    """
    sm, bytes_Bps = loads.duty[top_N], (loads.rate_per_s * loads.bytes_B)[top_N]
    slower = loads.clock_Hz[top_N] / loads.clock_Hz
    p = bandwidth.p
    memory = np.minimum(bytes_Bps / sm / bandwidth.memory_Bps, 1.0)
    issue = np.minimum(bytes_Bps / sm / bandwidth.issue_Bps, 1.0)
    compute = np.maximum((1 - memory**p) ** (1 / p), issue)
    busy = (((compute * slower) ** p + memory**p) / (compute**p + memory**p)) ** (1 / p)
    time = 1 - sm + sm * busy
    carried = {name: getattr(loads, name)[top_N] for name in ("flops", "vector_ops", "bytes_B")}
    rate = loads.rate_per_s[top_N] / time
    return replace(loads, **carried, duty=sm * busy / time, rate_per_s=rate), time


def with_steady_temperature(loads: Loads, power: ActivityPower, level: FloatArray | float = 1.0) -> Loads:
    """The loads at the temperature that the model itself gives them (`PowerModel.steady`)."""
    model = power.model
    reference = replace(loads, temperature_C=np.full(len(loads), model.leak_reference_C))
    dynamic_W, idle_W = level * power.dynamic_W(reference), power.static_W(reference)
    settled = [replace(model, base_W=idle).steady(own)[1] for idle, own in zip(idle_W, dynamic_W, strict=True)]
    return replace(loads, temperature_C=np.array(settled))
