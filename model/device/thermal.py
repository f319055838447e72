"""Temperature of the die: two masses, die and heat sink, in a row to the inlet air.

    T(t) = T_inlet + (T_1 + T_2),   dT_i/dt = (R_i P - T_i) / tau_i,   T_i = R_i P in the steady state

The two-mass network's answer to a step of power is a sum of two exponentials; R_i and tau_i are theirs (Incropera,
Fundamentals of Heat and Mass Transfer, ch. 5: lumped capacitances). Power and temperature are solved together, since
leakage rises with temperature:

    P(t) = P_0 + slope (T(t) - T_0)

which is linear: the matrix exponential gives both at any time. Left out: fans that answer to temperature, air that a
neighbour has warmed (say a higher inlet).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moemodel.model.core.arrays import FloatArray
from moemodel.model.records.calibration import Calibration


@dataclass(frozen=True, kw_only=True)
class ThermalModel:
    """R_i (K/W), tau_i (s) and the inlet's temperature (C)."""

    die_C_per_W: float
    die_s: float
    sink_C_per_W: float
    sink_s: float
    inlet_C: float

    @property
    def total_C_per_W(self) -> float:
        """Rise of the steady state."""
        return self.die_C_per_W + self.sink_C_per_W

    def after(
        self,
        time_s: FloatArray,
        power_W: float,
        *,
        before_W: float,
        start_C: float | None = None,
        slope_W_per_C: float = 0.0,
        reference_C: float = 0.0,
    ) -> tuple[FloatArray, FloatArray]:
        """Temperature and power some time after a load began, [times].

        Args:
            time_s: since the load began.
            power_W: of the load at `reference_C`.
            before_W: what was drawn before, long enough for the die to have settled.
            start_C: temperature when the load began; None: the heat sink had settled too.
            slope_W_per_C: how power rises with temperature.
            reference_C: T_0.
        """
        start = np.array([self.die_C_per_W, self.sink_C_per_W]) * before_W
        if start_C is not None:
            start[1] = start_C - self.inlet_C - start[0]
        r = np.array([self.die_C_per_W, self.sink_C_per_W])
        tau = np.array([self.die_s, self.sink_s])
        # d/dt (T_1, T_2) = A (T_1, T_2) + b
        matrix = (slope_W_per_C * np.outer(r, np.ones(2)) - np.eye(2)) / tau[:, None]
        constant = r * (power_W + slope_W_per_C * (self.inlet_C - reference_C)) / tau
        settled = -np.linalg.solve(matrix, constant)
        rates, modes = np.linalg.eig(matrix)
        amplitudes = np.linalg.solve(modes, (start - settled).astype(complex))
        decays = np.exp(np.multiply.outer(np.asarray(time_s, dtype=np.float64), rates)) * amplitudes
        rise_C = settled.sum() + np.real(decays @ modes.T).sum(axis=-1)
        temperature_C = self.inlet_C + rise_C
        return np.asarray(temperature_C), np.asarray(power_W + slope_W_per_C * (temperature_C - reference_C))


def thermal_model(calibration: Calibration) -> ThermalModel:
    """The thermal model of a calibration."""
    found = {name: parameter.value for name, parameter in calibration.thermal.parameters.items()}
    return ThermalModel(
        die_C_per_W=found["die_C_per_W"],
        die_s=found["die_time"],
        sink_C_per_W=found["sink_C_per_W"],
        sink_s=found["sink_time"],
        inlet_C=found["inlet_C"],
    )
