"""Fit temperature, and what it does to power, from the trace of a profile (see `thermal`, `power` in `model.device`).

Heat flows from the die through its heat sink to the inlet air: two masses, so the die's temperature answers a step of
power by two exponentials,

    T(t) = T_inlet + sum_i R_i (P filtered by a first-order lag tau_i) + sum_i c_i exp(-t/tau_i)

where the last sum is what earlier work left behind. Given the two time constants this is linear, with R_i >= 0; they
are found by least squares on their logarithms.

Leakage: where the die warms or cools under a load that keeps its clock, power moves with it, by

    dP/dT = leak + rise P_dynamic

so cooling with nothing to do, and a memory-bound load when cool and when hot, give both. Temperature and power move
together in every other part of a profile, and say nothing about it.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.optimize import lsq_linear

from moemodel.calibration.least_squares import best_of, minimise
from moemodel.calibration.store.profile_tables import ThermalTable
from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray, take_rows
from moemodel.model.device.stuck_temperature import GAP_S, stuck_temperature
from moemodel.model.records.calibration import Parameter, ThermalFit, warming_gain
from moemodel.model.records.profile import IDLE, LIGHT

# An idle H100 80GB HBM3 between 44 and 56 C, and copying between 49 and 59 C: bench/measured/h100-sxm-80gb-turns.json.
LEAK_W_PER_C = 0.73
RISE_PER_C = 0.0016
LEAK_REFERENCE_C = 50.0  # by choice: the temperature that base_W is for
_FEWEST_READINGS = 100  # 10 s of the trace: less shows nothing of a heat sink
_TIMES_S = ((0.1, 8.0), (5.0, 120.0))  # assumed: in which the time constants are looked for (an H100's: 0.3 and 18 s)
_STARTS_S = ((1.0, 15.0), (2.0, 40.0), (4.0, 80.0))  # assumed: three, lest one ends in a side minimum
_STEP = 0.3  # of the logarithm of a time constant: what makes a difference
_UNSETTLED_S = 0.6  # of a part of the trace: the reading is a tick late, the clock may still rise
_SAME_CLOCK = 0.01  # of the usual one
_LATE_S = 0.1  # of a power reading: the middle of a tick of 100 ms that ended up to a tick ago
_COURSE_S = (1.0, 4.0, 16.0, 64.0)  # time constants whose exponentials follow any cooling or warming
_FEWEST_COOLING = 20  # readings, two seconds: a slope through fewer is noise
_LEAST_COOLING_C = 4.0  # temperatures are whole degrees: that they are rounded is an eighth of it
# Between two stretches of a load memory and regulators warm up, too: copying, three H200 drew 5 to 11 W more in the
# second, whose die was 0.3 to 1.7 C warmer; three H100, whose die was 3.4 to 6 C warmer, 6 to 10 W more.
_APART_C = 3.0


def fit_thermal(table: ThermalTable, source: str) -> ThermalFit:
    """Resistances and time constants of die and heat sink, and the inlet's temperature."""
    rows = _longest(_readings(table))
    if len(rows) < _FEWEST_READINGS:
        return _unknown("no temperature trace in the profile")
    if stuck := stuck_reading(table):
        return _unknown(stuck)
    time_s, power_W, temperature_C = rows.wall_s - rows.wall_s[0], rows.power_W, rows.temperature_C

    def misses(log_tau: FloatArray) -> FloatArray:
        columns = _columns(time_s, power_W, np.exp(log_tau))
        return np.asarray(columns @ _linear(columns, temperature_C) - temperature_C)

    low, high = np.log(np.array(_TIMES_S)).T
    tries = [minimise(misses, np.log(start), low=low, high=high, size=_STEP) for start in _STARTS_S]
    best = best_of(tries, misses)
    die_s, sink_s = np.exp(best)
    die, sink, inlet_C = _linear(_columns(time_s, power_W, np.exp(best)), temperature_C)[:3]
    error_C = float(np.sqrt(np.mean(np.square(misses(best)))))
    rise_C = max(float(np.mean(temperature_C)) - inlet_C, 1.0)
    values = {
        "die_C_per_W": (die, "K/W"),
        "die_time": (die_s, "s"),
        "sink_C_per_W": (sink, "K/W"),
        "sink_time": (sink_s, "s"),
        "inlet_C": (inlet_C, "C"),
    }
    return ThermalFit(
        parameters={
            name: Parameter.measured(float(value), unit, source, error_C / rise_C)
            for name, (value, unit) in values.items()
        }
    )


def stuck_reading(table: ThermalTable) -> str | None:
    """What shows that the temperature stood still where it cannot have; None where nothing does."""
    return stuck_temperature(table.wall_s, table.power_W, table.temperature_C)


def _readings(table: ThermalTable) -> ThermalTable:
    """The rows with power, temperature and time, in its order."""
    rows = take_rows(table, ~np.isnan(table.power_W) & ~np.isnan(table.temperature_C) & ~np.isnan(table.wall_s))
    return take_rows(rows, np.argsort(rows.wall_s))


def _longest(rows: ThermalTable) -> ThermalTable:
    """The longest stretch of a trace without a gap."""
    cuts = [0, *(np.flatnonzero(np.diff(rows.wall_s) > GAP_S) + 1), len(rows)]
    first, last = max(pairwise(cuts), key=lambda cut: cut[1] - cut[0])
    return take_rows(rows, np.arange(first, last))


def _columns(time_s: FloatArray, power_W: FloatArray, tau_s: FloatArray) -> FloatArray:
    """Filtered powers, one, and decays. [readings, 5]"""
    filtered = [_lagged(time_s, power_W, tau) for tau in tau_s]
    return np.stack([*filtered, np.ones_like(time_s), *(np.exp(-time_s / tau) for tau in tau_s)], axis=1)


def _linear(columns: FloatArray, temperature_C: FloatArray) -> FloatArray:
    """Coefficients of the columns; resistances are not negative."""
    low = np.array([0.0, 0.0, -np.inf, -np.inf, -np.inf])
    return np.asarray(lsq_linear(columns, temperature_C, bounds=(low, np.full(5, np.inf))).x)


def _lagged(time_s: FloatArray, power_W: FloatArray, tau_s: float) -> FloatArray:
    """Power through a first-order lag that starts at zero.

    A power reading is the mean of a tick of the sensor that ended some time ago, half of it in the interval before.
    """
    power_W = (power_W + np.append(power_W[1:], power_W[-1])) / 2
    kept = np.exp(-np.diff(time_s, prepend=time_s[0]) / tau_s)
    out = np.empty_like(power_W)
    state = 0.0
    for index, (keep, power) in enumerate(zip(kept, power_W, strict=True)):
        state = state * keep + power * (1 - keep)
        out[index] = state
    return out


def _unknown(why: str) -> ThermalFit:
    """No trace to fit: temperature is not modelled (no rise), and says so."""
    source = f"{why}: no rise is modelled"
    values = {
        "die_C_per_W": (0.0, "K/W"),
        "die_time": (1.0, "s"),
        "sink_C_per_W": (0.0, "K/W"),
        "sink_time": (20.0, "s"),  # any time does where nothing warms
        "inlet_C": (LEAK_REFERENCE_C, "C"),
    }
    return ThermalFit(
        parameters={name: Parameter.assumed(value, unit, source) for name, (value, unit) in values.items()}
    )


# --- leakage ---------------------------------------------------------------------------------------------------------


def fit_leakage(table: ThermalTable, thermal: ThermalFit, source: str) -> dict[str, Parameter]:
    """`leak_W_per_C`, `rise_per_C` and `leak_reference_C` of `model.device.power`.

    Args:
        table: the trace.
        thermal: what `fit_thermal` found of it: a die that would warm up without end tells nothing.
        source: of what is measured.
    """
    found = _measured_leakage(table, source)
    C_per_W = thermal.parameters["die_C_per_W"].value + thermal.parameters["sink_C_per_W"].value
    leak, rise = found["leak_W_per_C"].value, found["rise_per_C"].value
    if warming_gain(leak, rise, C_per_W) >= 1:
        why = f"with the {leak:.3g} W/K and {rise:.3g} of dynamic power a kelvin of the profile a die warms without end"
        found = _as_elsewhere(why)
    reference = Parameter.assumed(LEAK_REFERENCE_C, "C", "the temperature that base_W is for, by choice")
    return found | {"leak_reference_C": reference}


def _as_elsewhere(why: str) -> dict[str, Parameter]:
    """What an H100 leaks."""
    source = f"as an H100 80GB HBM3 of 2026; {why}"
    return {
        "leak_W_per_C": Parameter.assumed(LEAK_W_PER_C, "W/K", source),
        "rise_per_C": Parameter.assumed(RISE_PER_C, "1/K", source),
    }


def _measured_leakage(table: ThermalTable, source: str) -> dict[str, Parameter]:
    """What the trace shows of it."""
    found = [_slope(take_rows(table, table.load == label)) for label in (IDLE, LIGHT)]
    leak, rise = _as_elsewhere("the profile has no cooling trace that shows it").values()
    if found[0] is not None:
        slope, error, idle_W = found[0]
        leak = Parameter.measured(max(slope, 0.0), "W/K", source, _share(error, slope))
        if found[1] is not None and found[1][2] > idle_W:
            loaded, loaded_error, busy_W = found[1]
            value = max(loaded - slope, 0.0) / (busy_W - idle_W)
            spread = float(np.hypot(error, loaded_error)) / (busy_W - idle_W)
            rise = Parameter.measured(value, "1/K", source, _share(spread, value))
    return {"leak_W_per_C": leak, "rise_per_C": rise}


def _slope(rows: ThermalTable) -> tuple[float, float, float] | None:
    """dP/dT under one load, its standard error, and the median power; None where it shows too little.

    Temperatures are whole degrees, which flattens a slope found from them; what power is compared with is their smooth
    course, at the time that a power reading is of. Stretches that the die is about as warm in have a level each, since
    what else tells them apart is more than what the die does.
    """
    rows = _readings(rows)
    if len(rows) < _FEWEST_COOLING:
        return None
    kept = _settled(rows.wall_s) & _usual(rows.clock_reported_Hz)
    if np.count_nonzero(kept) < _FEWEST_COOLING:
        return None
    power_W, temperature_C = rows.power_W[kept], _course(rows.wall_s, rows.temperature_C)[kept]
    _, stretch = np.unique(_stretches(rows.wall_s)[kept], return_inverse=True)
    if np.ptp(_means(temperature_C, stretch)) >= _APART_C:
        stretch = np.zeros_like(stretch)
    spread_C = temperature_C - _means(temperature_C, stretch)[stretch]
    if np.ptp(spread_C) < _LEAST_COOLING_C:
        return None
    spread_W = power_W - _means(power_W, stretch)[stretch]
    slope = float(spread_C @ spread_W / (spread_C @ spread_C))
    misses = spread_W - slope * spread_C
    free = len(power_W) - 2 - int(stretch.max())
    error = float(np.sqrt(misses @ misses / free / (spread_C @ spread_C)))
    return slope, error, float(np.median(power_W))


def _stretches(wall_s: FloatArray) -> IntArray:
    """Number of the stretch of each reading."""
    return np.cumsum(np.diff(wall_s, prepend=wall_s[0]) > GAP_S)


def _means(values: FloatArray, group: IntArray) -> FloatArray:
    """Of each group."""
    return np.asarray(np.bincount(group, weights=values) / np.bincount(group))


def _course(wall_s: FloatArray, temperature_C: FloatArray) -> FloatArray:
    """Temperature when the power of a reading was drawn: a smooth curve through each stretch of readings."""
    out = np.empty_like(temperature_C)
    for stretch in np.split(np.arange(len(wall_s)), np.flatnonzero(np.diff(_stretches(wall_s))) + 1):
        since_s = wall_s[stretch] - wall_s[stretch[0]]
        curve = np.linalg.lstsq(_decays(since_s), temperature_C[stretch], rcond=None)[0]
        out[stretch] = _decays(since_s - _LATE_S) @ curve
    return out


def _decays(since_s: FloatArray) -> FloatArray:
    return np.stack([np.ones_like(since_s), *(np.exp(-since_s / tau) for tau in _COURSE_S)], axis=1)


def _usual(clock_Hz: FloatArray) -> BoolArray:
    """Readings at the clock that most were at; all of them without a clock."""
    if np.isnan(clock_Hz).all():
        return np.ones(len(clock_Hz), dtype=bool)
    return np.asarray(np.abs(clock_Hz / np.nanmedian(clock_Hz) - 1) < _SAME_CLOCK)


def _settled(wall_s: FloatArray) -> BoolArray:
    """Readings that lie some time behind the beginning of their stretch."""
    begun = np.diff(wall_s, prepend=-np.inf) > GAP_S
    return np.asarray(wall_s > wall_s[begun][np.cumsum(begun) - 1] + _UNSETTLED_S)


def _share(error: float, value: float) -> float | None:
    return error / value if value > 0 else None
