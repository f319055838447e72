"""What a simulated GPU draws, at a clock, a temperature and a rate of work.

Voltage follows the clock by the alpha-power law of short-channel transistors (Sakurai & Newton 1990, IEEE J.
Solid-State Circuits 25(2): a gate's delay goes as C V / I_D, with I_D ~ (V - V_th)^alpha):

    f / f_top = g(V) / g(V_top),   g(V) = (V - V_th)^alpha / V

and the regulator gives the next whole step above that. It leaks exponentially in temperature and in voltage, by the
subthreshold and by the gate current (Liao, He & Lepak 2005, IEEE Trans. CAD 24(7), with its constants for 65 nm;
T in K; only ratios are used here, so I_s cancels):

    I(T, V) = A T^2 exp((a V + b)/T) + B exp(c V + d),   P_leak = leak V I(T, V) / (V_top I(323 K, V_top))

The core switches (C V^2 f), and what carries its current to the die heats as I^2 R (conduction losses of a regulator:
Erickson & Maksimovic, Fundamentals of Power Electronics, ch. 3), so the more is drawn, the dearer it is to draw. Memory
costs its bytes and the rows that are opened for them (O'Connor et al. 2017, Fine-Grained DRAM, MICRO):

    P_core = P_leak + (V/V_top)^2 (tree f/f_top + active f/f_top + switching of the work)
    P = fixed + P_core + R (P_core / V)^2 + bytes/s (e_dram + e_open opens)

Left out: losses of the regulator's own switching, leakage that differs over the die.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from moemodel.profiler.simulated.chip import Electrics

# Liao, He & Lepak 2005: A, B, alpha, beta, gamma, delta for 65 nm.
_A, _B = 1.1432e-12, 1.0126e-14
_ALPHA_K_PER_V, _BETA_K = 466.4029, -1224.74083
_GAMMA_PER_V, _DELTA = 6.28153, 6.9094
_REFERENCE_C = 50.0
_KELVIN = 273.15
_HALVINGS = 40


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Power of a load but for leakage and what current loses.

    Attributes:
        core_W: switching, at the voltage it runs at.
        memory_W: of device memory.
    """

    core_W: float = 0.0
    memory_W: float = 0.0


class Silicon:
    """The module's docstring for one chip.

    Args:
        electrics: its constants.
        clock_max_Hz: f_top.
    """

    def __init__(self, electrics: Electrics, clock_max_Hz: float) -> None:
        self.electrics = electrics
        self.clock_max_Hz = clock_max_Hz
        self.voltage_V = cache(self._voltage_V)
        self._leak_per_VA = electrics.leak_W / (electrics.top_V * _current(_REFERENCE_C, electrics.top_V))

    def leak_W(self, voltage_V: float, temperature_C: float) -> float:
        """P_leak."""
        return self._leak_per_VA * voltage_V * _current(temperature_C, voltage_V)

    def switching2(self, clock_Hz: float) -> float:
        """(V / V_top)^2."""
        return (self.voltage_V(clock_Hz) / self.electrics.top_V) ** 2

    def tree_W(self, clock_Hz: float) -> float:
        """What the clock tree draws at a clock."""
        return self.electrics.tree_W * self.switching2(clock_Hz) * clock_Hz / self.clock_max_Hz

    def power_W(self, clock_Hz: float, temperature_C: float, draw: Draw) -> float:
        """P; the clock tree counts without being in `draw`."""
        e, voltage_V = self.electrics, self.voltage_V(clock_Hz)
        core_W = self.leak_W(voltage_V, temperature_C) + self.tree_W(clock_Hz) + draw.core_W
        return e.fixed_W + core_W + e.conduction_Ohm * (core_W / voltage_V) ** 2 + draw.memory_W

    def _voltage_V(self, clock_Hz: float) -> float:
        """The regulator's step for a clock; g rises with V, so it is found by bisection."""
        e = self.electrics
        wanted = self._speed(e.top_V) * clock_Hz / self.clock_max_Hz
        low, high = e.threshold_V, 2 * e.top_V
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._speed(middle) < wanted else (low, middle)
        return math.ceil(high / e.step_V - 1e-6) * e.step_V

    def _speed(self, voltage_V: float) -> float:
        """g."""
        return float((voltage_V - self.electrics.threshold_V) ** self.electrics.alpha / voltage_V)


def _current(temperature_C: float, voltage_V: float) -> float:
    """I(T, V) over I_s."""
    kelvin = temperature_C + _KELVIN
    subthreshold = _A * kelvin**2 * math.exp((_ALPHA_K_PER_V * voltage_V + _BETA_K) / kelvin)
    return subthreshold + _B * math.exp(_GAMMA_PER_V * voltage_V + _DELTA)
