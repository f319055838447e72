"""Power and energy of operators against the SM clock, and the temperature that goes with it.

    P_static(T) = P_base + leak (T - T0)
    E_dyn(op, f) = c_kind (v(f) (e_flop flops + e_vector vector_ops + e_cache bytes + p_active f/f0 t) + e_dram bytes)
    P(op, f) = P_static + E_dyn / t(f)

    v(f) = (V(f)/V(f0))^2, V flat below a knee, then linear: V ~ 1 + slope max(0, f/f_knee - 1)
    e_*  energy of a unit of work at the reference clock f0; p_active  power of clocked SMs beside their work, at f0,
         in the time t beyond launch and tail (in which few SMs are active)
    c_kind  a factor for each operator and pass, shrunk towards 1 by the calibration

Energy of a unit of work scales with V^2, and the clock tree's power with f V^2 (Weste & Harris, CMOS VLSI Design,
ch. 5); memory and links have supplies of their own that don't follow the SM clock. Left out: dependence on the values
of the data (the calibration uses random ones, as training has), voltage guard bands that differ from chip to chip.

Temperature in the steady state of a long run: T = T_inlet + R P, solved together with P.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moemodel.model.calibration import Calibration
from moemodel.model.operators import Kind, Pass, Work

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PowerModel:
    """The parameters of the module's docstring; units in the names."""

    base_W: float
    leak_W_per_C: float
    leak_reference_C: float
    flop_J: float
    vector_op_J: float
    cache_J_per_B: float
    dram_J_per_B: float
    active_W: float
    knee_Hz: float
    voltage_slope: float
    clock_reference_Hz: float
    thermal_C_per_W: float
    inlet_C: float
    link_W: float  # extra power while a collective runs
    kinds: dict[str, float]

    def voltage2(self, clock_Hz: FloatArray) -> FloatArray:
        """v(f)."""
        return np.square(self._voltage(clock_Hz) / self._voltage(np.asarray(self.clock_reference_Hz)))

    def _voltage(self, clock_Hz: FloatArray) -> FloatArray:
        return np.asarray(1 + self.voltage_slope * np.maximum(0.0, clock_Hz / self.knee_Hz - 1))

    def static_W(self, temperature_C: FloatArray | float) -> FloatArray:
        """P_static at a die temperature."""
        return np.asarray(self.base_W + self.leak_W_per_C * (np.asarray(temperature_C) - self.leak_reference_C))

    def dynamic_J(
        self, kind: Kind, direction: Pass, work: Work, clock_Hz_K: FloatArray, busy_s_UK: FloatArray
    ) -> FloatArray:
        """E_dyn of one call, [U, K]."""
        switching = self.flop_J * work.flops + self.vector_op_J * work.vector_ops + self.cache_J_per_B * work.bytes_B
        switching_U = np.broadcast_to(np.atleast_1d(switching), (len(busy_s_UK),))
        dram_U = np.broadcast_to(np.atleast_1d(self.dram_J_per_B * work.bytes_B), (len(busy_s_UK),))
        active = self.active_W * clock_Hz_K / self.clock_reference_Hz * busy_s_UK
        energy = self.voltage2(clock_Hz_K) * (switching_U[:, None] + active) + dram_U[:, None]
        return np.asarray(self.kinds.get(f"{kind}/{direction}", 1.0) * energy)

    def steady(self, power_W: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Steady power and die temperature of a load that draws `power_W` at the leakage reference temperature.

        P = power + leak (T - T0), T = T_inlet + R P: two linear equations.
        """
        gain = self.leak_W_per_C * self.thermal_C_per_W
        steady_W = (power_W + self.leak_W_per_C * (self.inlet_C - self.leak_reference_C)) / (1 - gain)
        return steady_W, self.inlet_C + self.thermal_C_per_W * steady_W


def power_model(calibration: Calibration) -> PowerModel:
    """The power model of a calibration."""
    power = {name: p.value for name, p in calibration.power.parameters.items()}
    thermal = {name: p.value for name, p in calibration.thermal.parameters.items()}
    return PowerModel(
        **power,
        **thermal,
        clock_reference_Hz=calibration.clock_reference_Hz,
        link_W=calibration.network.parameters["link_power"].value,
        kinds={name: p.value for name, p in calibration.power.kinds.items()},
    )
