"""What a GPU draws that holds a job's memory and runs nothing: while a checkpoint is written, or a run is paused."""

from __future__ import annotations

import math

import numpy as np

from moemodel.model.device.power import power_model
from moemodel.model.step.system import System


def idle_power_W(machine: System) -> float:
    """Of one GPU: as its description has measured it, else base, leakage and clock tree at the highest clock.

    NaN where no power was measured.
    """
    calibration = machine.calibration
    if calibration.power.points == 0:
        return math.nan
    if machine.gpu.idle_power_W is not None:
        return machine.gpu.idle_power_W
    power = power_model(calibration)
    return float(power.steady(power.clocked_W(np.array(calibration.clock_range_Hz[1:])))[0][0])
