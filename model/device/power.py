"""Power and energy of operators against the SM clock, and the temperature that goes with it.

    P = P_base + P_tree v(f) f/f0 + leak (T - T0) + E_dyn/t (1 + rise (T - T0))
    E_dyn(op, f) = c_kind (v(f) (e_flop flops + e_vector vector_ops + e_cache bytes + p_active f/f0 t) + e_dram bytes)

    v(f) = (V(f)/V(f0))^2, V flat below a knee, then linear: V ~ 1 + slope max(0, f/f_knee - 1)
           times a share below clocks where readings of a board show that it drops again: linear between two, then flat
    e_*  energy of a unit of work at the reference clock f0; p_active  power of clocked SMs beside their work, at f0,
         in the time t beyond launch and tail (in which few SMs are active)
    P_tree  what the clock tree draws at f0, whether SMs work or not
    c_kind  a factor for each operator and pass, shrunk towards 1 by the calibration

Energy of a unit of work scales with V^2, and the clock tree's power with f V^2 (Weste & Harris, CMOS VLSI Design,
ch. 5); memory and links have supplies of their own that don't follow the SM clock. Left out: dependence on the values
of the data (the calibration uses random ones, as training has), and that chips differ (`predict.chips`).

`rise` is what warm circuits, regulators and memory add in proportion to the load: a copying H100 draws 1.3 W more for
each degree, an idle one 0.7 W.

Temperature in the steady state of a long run: T = T_inlet + R P (see `device.thermal`), solved together with P.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moemodel.model.core.arrays import FloatArray
from moemodel.model.device.thermal import thermal_model
from moemodel.model.operators.work import Kind, Pass, Work
from moemodel.model.records.calibration import Calibration

# Of the loop of temperature and leakage, assumed: a load that would take more has no steady state; its power stands far
# above every limit, so that the governor slows it.
_MOST_GAIN = 0.99


@dataclass(frozen=True, kw_only=True)
class PowerModel:
    """The parameters of the module's docstring; units in the names."""

    base_W: float
    tree_W: float = 0.0
    leak_W_per_C: float
    leak_reference_C: float
    rise_per_C: float = 0.0
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
    drop_from_Hz: float = 0.0
    drop_to_Hz: float = 0.0
    drop_share: float = 1.0

    def voltage2(self, clock_Hz: FloatArray) -> FloatArray:
        """v(f)."""
        risen = np.square(self._voltage(clock_Hz) / self._voltage(np.asarray(self.clock_reference_Hz)))
        if self.drop_share == 1.0:
            return np.asarray(risen)
        return np.asarray(risen * np.interp(clock_Hz, self.drops_Hz, (self.drop_share, 1.0)))

    @property
    def drops_Hz(self) -> tuple[float, ...]:
        """Clocks between which the square of the voltage drops, ascending; none where it does not."""
        return () if self.drop_share == 1.0 else (self.drop_to_Hz, self.drop_from_Hz)

    def _voltage(self, clock_Hz: FloatArray) -> FloatArray:
        return np.asarray(1 + self.voltage_slope * np.maximum(0.0, clock_Hz / self.knee_Hz - 1))

    def clocked_W(self, clock_Hz: FloatArray) -> FloatArray:
        """What the clock tree draws at a clock."""
        return self.clock_tree_W(self.switching(clock_Hz))

    def clock_tree_W(self, switching: FloatArray) -> FloatArray:
        """The same, of what is given as `switching`."""
        return np.asarray(self.tree_W * switching)

    def switching(self, clock_Hz: FloatArray) -> FloatArray:
        """v(f) f/f0: power of what switches at every cycle, over that at the reference clock."""
        return np.asarray(self.voltage2(clock_Hz) * clock_Hz / self.clock_reference_Hz)

    def static_W(self, temperature_C: FloatArray | float) -> FloatArray:
        """Power of the idle GPU at a die temperature, without its clock tree."""
        return np.asarray(self.base_W + self.leak_W_per_C * (np.asarray(temperature_C) - self.leak_reference_C))

    def total_W(self, dynamic_W: FloatArray, temperature_C: float) -> FloatArray:
        """P at a die temperature, of a load whose dynamic power (clock tree included) at the reference temperature is
        given."""
        warm = 1 + self.rise_per_C * (temperature_C - self.leak_reference_C)
        return np.asarray(self.static_W(temperature_C) + warm * dynamic_W)

    def dynamic_J(
        self, kind: Kind, direction: Pass, work: Work, clock_Hz_K: FloatArray, busy_s_UK: FloatArray
    ) -> FloatArray:
        """E_dyn of one call at the reference temperature, [U, K]."""
        return np.asarray(self.factor(kind, direction) * self.unscaled_J(work, clock_Hz_K, busy_s_UK))

    def factor(self, kind: Kind, direction: Pass) -> float:
        """Of an operator, on its dynamic energy."""
        return self.kinds.get(f"{kind}/{direction}", 1.0)

    def unscaled_J(self, work: Work, clock_Hz_K: FloatArray, busy_s_UK: FloatArray) -> FloatArray:
        """E_dyn without the operators' factors, [U, K]."""
        switching = self.flop_J * work.flops + self.vector_op_J * work.vector_ops + self.cache_J_per_B * work.bytes_B
        dram = self.dram_J_per_B * work.bytes_B
        active = self.active_W * clock_Hz_K / self.clock_reference_Hz * busy_s_UK
        dynamic = self.voltage2(clock_Hz_K) * (np.atleast_1d(switching)[:, None] + active)
        return np.asarray(dynamic + np.atleast_1d(dram)[:, None])

    def steady(self, dynamic_W: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Steady power and die temperature of a load whose dynamic power at the reference temperature is given.

        P = P_base + D + L (T - T0) with L = leak + rise D, T = T_inlet + R P: two linear equations.
        """
        slope = self.leak_W_per_C + self.rise_per_C * dynamic_W
        cool_W = self.base_W + dynamic_W + slope * (self.inlet_C - self.leak_reference_C)
        gain = np.minimum(slope * self.thermal_C_per_W, _MOST_GAIN)
        steady_W = np.maximum(cool_W, 0.0) / (1 - gain)
        return steady_W, self.inlet_C + self.thermal_C_per_W * steady_W

    def steady_slope(self, dynamic_W: FloatArray) -> FloatArray:
        """How steady power rises with dynamic power: dP/dD of `steady`, below the most gain."""
        warm = self.inlet_C - self.leak_reference_C
        left = 1 - np.minimum((self.leak_W_per_C + self.rise_per_C * dynamic_W) * self.thermal_C_per_W, _MOST_GAIN)
        steady_W = self.steady(dynamic_W)[0]
        return np.asarray((1 + self.rise_per_C * warm + self.rise_per_C * self.thermal_C_per_W * steady_W) / left)


def power_model(calibration: Calibration, *, inlet_C: float | None = None) -> PowerModel:
    """The power model of a calibration.

    Args:
        calibration: of a GPU.
        inlet_C: temperature of the inlet air, instead of that at calibration.
    """
    power = {name: p.value for name, p in calibration.power.parameters.items()}
    thermal = thermal_model(calibration)
    return PowerModel(
        **power,
        thermal_C_per_W=thermal.total_C_per_W,
        inlet_C=thermal.inlet_C if inlet_C is None else inlet_C,
        clock_reference_Hz=calibration.clock_reference_Hz,
        link_W=calibration.network.parameters["link_power"].value,
        kinds={name: p.value for name, p in calibration.power.kinds.items()},
    )
