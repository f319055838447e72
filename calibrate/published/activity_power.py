"""Fit the power model to programs at locked SM clocks that are known by their activity counters alone.

    P = base + leak (T - T0) + v(f) p_tree f/f0 + c_code D(f) (1 + rise (T - T0))
    D = v(f) (p_active f/f0 sm + e_flop flops/s + e_vector ops/s + e_cache B/s) + e_dram B/s

the terms of `model.power`. (An idle A100 draws 79 W at 210 MHz and 109 W at 1410: in between its clock tree, p_tree,
shows the voltage curve all by itself, see `PRIORS`.)

c_code is the level of a program: values of its data, integer and shared-memory work, nothing of which is counted. It is
estimated for the programs of the fit, so that they tell the voltage curve and the static part by their shape, which is
good to a percent, and the energies by their level, which is good to a third; it is 1 for any other program, unless one
reading of it is given (`level`). All unknowns are found together, by least squares on

    (predicted / measured - 1) / 2 %,   log(c_code) / 0.4,   (x / x_prior - 1) / error  for what is known from elsewhere

(`PRIORS`), since half of the programs may not exercise a unit that the other half does (FP64 tensor cores: one).

Leakage is not fitted. Temperature follows power (T = T_inlet + R P), so a free coefficient would read power off the
thermometer: it comes out at 3.5 W/K, five times what an idle GPU shows. It is held at what cooling GPUs show instead
(`calibrate.thermal`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from moemodel.calibration.fit.power import Loads
from moemodel.calibration.fit.thermal import LEAK_REFERENCE_C, LEAK_W_PER_C, RISE_PER_C
from moemodel.calibration.least_squares import minimise
from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.device.power import PowerModel

STATIC = ("base_W", "tree_W")
DYNAMIC = ("active_W", "flop_J", "vector_op_J", "cache_J_per_B", "dram_J_per_B")
COEFFICIENTS = STATIC + DYNAMIC
_ROW_ERROR = 0.02  # assumed, relative, of a reading about the shape that its program has
LEVEL_SPREAD = 0.4  # log; assumed, of c_code over programs


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What is known of a coefficient from elsewhere, at the lowest voltage, and the relative error of that."""

    value: float
    error: float = 1.0


PRIORS = {
    # The same A100 between the runs, in the raw readings of the data's source: 63 gaps at 21 clocks from 510 to
    # 1410 MHz draw 75.8 W (at 28.2 C) + 15.4 W V^2 f/f0 with V rising from 1122 MHz by 1.65, within 0.3 W.
    "base_W": Prior(value=75.8 + LEAK_W_PER_C * (LEAK_REFERENCE_C - 28.2), error=0.03),
    "tree_W": Prior(value=15.4, error=0.1),
    # H100, FP64 product on tensor cores, steady rows (h100-dvfs): 0.225 W/MHz of 132 SMs with 256 FLOP a cycle, 6.6 pJ;
    # N5 draws 30 % less than N7 (TSMC, page of the 5 nm technology), and 4N is an N5. Activities count 16-bit
    # FLOPs (`public.loads_of_activities`), of which there are 16 to one in FP64.
    "flop_J": Prior(value=9.5e-12 / 16),
    # 7 nm: 1.7 pJ for an FP32 multiply-add (Jouppi et al., ISCA 2021); four register accesses of as much each (assumed)
    "vector_op_J": Prior(value=8.5e-12),
    # assumed: 0.1 pJ a bit and mm of wire, over some 16 mm of die
    "cache_J_per_B": Prior(value=13e-12),
    # HBM2: 3.9 pJ a bit (O'Connor et al., MICRO 2017)
    "dram_J_per_B": Prior(value=31e-12),
}
_ACTIVE_W = 50.0  # where its search begins, and the size of its steps; no prior holds it
_KNEE, _SLOPE = 0.75, 1.0  # where the search begins; the knee over the reference clock
_OWN_SUPPLY = ("base_W", "dram_J_per_B")  # don't follow the SMs' voltage


def voltage_model(knee_Hz: float, slope: float, reference_Hz: float, **terms: float) -> PowerModel:
    """The product's power model with this voltage curve; other terms are zero unless given."""
    values = dict.fromkeys(("base_W", *DYNAMIC, "thermal_C_per_W", "inlet_C", "link_W"), 0.0)
    leak = {"leak_W_per_C": 0.0, "leak_reference_C": LEAK_REFERENCE_C}
    return PowerModel(
        **(values | leak | terms), knee_Hz=knee_Hz, voltage_slope=slope, clock_reference_Hz=reference_Hz, kinds={}
    )


@dataclass(frozen=True, kw_only=True)
class ActivityPower:
    """A fitted power model. `levels` are of the programs of the fit."""

    model: PowerModel
    levels: Mapping[str, float]

    def static_W(self, loads: Loads) -> FloatArray:
        """Power of each row that does not depend on the program."""
        return np.asarray(self.model.static_W(loads.temperature_C) + self.model.clocked_W(loads.clock_Hz))

    def dynamic_W(self, loads: Loads) -> FloatArray:
        """The rest, at level 1."""
        m = self.model
        weights = np.array([getattr(m, name) for name in DYNAMIC])
        warm = 1 + m.rise_per_C * (loads.temperature_C - m.leak_reference_C)
        return np.asarray(warm * (dynamic_terms(loads, m.voltage2(loads.clock_Hz), m.clock_reference_Hz) @ weights))

    def power_W(self, loads: Loads, level: FloatArray | float = 1.0) -> FloatArray:
        """Power of each row, given the level of its program."""
        return self.static_W(loads) + level * self.dynamic_W(loads)

    def level(self, loads: Loads) -> FloatArray:
        """Level that each row's own power shows, given that its static part is right."""
        return np.maximum((loads.power_W - self.static_W(loads)) / self.dynamic_W(loads), 0.0)


def dynamic_terms(loads: Loads, voltage2: FloatArray, reference_Hz: float) -> FloatArray:
    """What multiplies each of `DYNAMIC` at the reference temperature, a row for each load."""
    columns = (
        voltage2 * loads.duty * loads.clock_Hz / reference_Hz,
        voltage2 * loads.rate_per_s * loads.flops,
        voltage2 * loads.rate_per_s * loads.vector_ops,
        voltage2 * loads.rate_per_s * loads.bytes_B,
        loads.rate_per_s * loads.bytes_B,
    )
    return np.stack(columns, axis=1)


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """The least-squares problem of the module's docstring. x: coefficients and the voltage curve in units of their
    start, then log levels."""

    loads: Loads
    reference_Hz: float
    codes: list[str]
    code_N: IntArray
    scale: FloatArray
    level_spread: float

    def model(self, x: FloatArray) -> ActivityPower:
        count = len(COEFFICIENTS)
        values = dict(zip(COEFFICIENTS, (float(v) for v in x[:count] * self.scale), strict=True))
        leakage = {"leak_W_per_C": LEAK_W_PER_C, "rise_per_C": RISE_PER_C}
        model = voltage_model(
            float(x[count]) * self.reference_Hz, float(x[count + 1]), self.reference_Hz, **leakage, **values
        )
        levels = dict(zip(self.codes, (float(v) for v in np.exp(x[count + 2 :])), strict=True))
        return ActivityPower(model=model, levels=levels)

    def residuals(self, x: FloatArray) -> FloatArray:
        logs = x[len(COEFFICIENTS) + 2 :]
        model = self.model(x)
        rows = (model.power_W(self.loads, np.exp(logs)[self.code_N]) / self.loads.power_W - 1) / _ROW_ERROR
        return np.concatenate([rows, logs / self.level_spread, self._off_priors(x, model.model)])

    def _off_priors(self, x: FloatArray, model: PowerModel) -> FloatArray:
        """Coefficients at the lowest voltage, against what is known of them."""
        lowest = float(model.voltage2(np.zeros(1))[0])
        values = dict(zip(COEFFICIENTS, x[: len(COEFFICIENTS)] * self.scale, strict=True))
        return np.array(
            [
                (values[name] * (1.0 if name in _OWN_SUPPLY else lowest) / prior.value - 1) / prior.error
                for name, prior in PRIORS.items()
            ]
        )


def fit_activities(loads: Loads, reference_Hz: float, level_spread: float = LEVEL_SPREAD) -> ActivityPower:
    """The model of programs, `loads.keys`, from readings of them at several clocks each; its thermal line with it."""
    codes = sorted(set(loads.keys))
    number = {code: index for index, code in enumerate(codes)}
    code_N: IntArray = np.array([number[key] for key in loads.keys], dtype=np.int64)
    scale = np.array([PRIORS[name].value if name in PRIORS else _ACTIVE_W for name in COEFFICIENTS])
    problem = _Problem(
        loads=loads, reference_Hz=reference_Hz, codes=codes, code_N=code_N, scale=scale, level_spread=level_spread
    )
    count = len(COEFFICIENTS)
    start = np.concatenate([np.ones(count), [_KNEE, _SLOPE], np.zeros(len(codes))])
    # bounds, assumed and wide: a hundred times a start; knee and slope; levels of a factor 20 either way
    low = np.concatenate([np.zeros(count), [0.3, 0.0], np.full(len(codes), -3.0)])
    high = np.concatenate([np.full(count, 100.0), [0.95, 5.0], np.full(len(codes), 3.0)])
    found = problem.model(minimise(problem.residuals, start, low=low, high=high, evaluations=60))
    rise, inlet = np.polyfit(loads.power_W, loads.temperature_C, 1)
    return replace(found, model=replace(found.model, thermal_C_per_W=float(rise), inlet_C=float(inlet)))
