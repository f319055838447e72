"""At which clocks the work of a step is priced; between them it is interpolated."""

from __future__ import annotations

import numpy as np

from moemodel.model.core.arrays import FloatArray
from moemodel.model.device.power import PowerModel
from moemodel.model.records.calibration import Calibration

# Of the range, at which blocks are priced; between them, linear in the clock or its period. With 49, step times of
# bench/plans move by 0.07 % in the mean and 0.26 % at most; each takes its time.
_CLOCKS = 7


def priced_clocks(calibration: Calibration, power: PowerModel) -> FloatArray:
    """Clocks that blocks are priced at: evenly over the range, and where the voltage begins to rise or to drop."""
    low_Hz, high_Hz = calibration.clock_range_Hz
    knees_Hz = np.clip([power.knee_Hz, *power.drops_Hz], low_Hz, high_Hz)
    return np.array(sorted({*np.linspace(low_Hz, high_Hz, _CLOCKS), *knees_Hz}))  # `numpy.unique` would import numpy.ma
