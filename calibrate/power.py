"""Fit power, the governor's fast limit, and temperature (see `model.power` and `model.governor`).

Each held load gives one equation. With share d of the time busy, time t of a call, true clock f while busy:

    P = base + leak (T - T0) + d/t (v(f) (e_flop flops + e_vector ops + e_cache bytes + p_active f/f0 t) + e_dram bytes)

It is linear in base, p_active and the energies once leak and the voltage curve are given, so those are found by
non-negative least squares (power cannot be negative) for each knee and slope of a grid. Equations are weighed by 1/P:
errors count relatively. What remains for an operator is kept as a factor on its dynamic energy, shrunk towards 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import nnls

from moemodel.model.calibration import GovernorFit, Parameter, PowerFit, ThermalFit
from moemodel.model.operators import SHAPE_FIELDS, Kind, Pass, Shape, work

FloatArray = NDArray[np.float64]

UNITS = {
    "base_W": "W",
    "active_W": "W",
    "flop_J": "J",
    "vector_op_J": "J",
    "cache_J_per_B": "J/B",
    "dram_J_per_B": "J/B",
}
_COEFFICIENTS = tuple(UNITS)
LEAK_W_PER_C = 0.8  # idle H100, 42 to 51 degrees, this project's first readings; carried over, not fitted
LEAK_REFERENCE_C = 50.0
_SHRINK = 0.1  # loads' worth of belief that an operator is like the rest
_FACTOR_COST = 0.1  # of a squared log factor against a squared log error, in choosing the voltage curve
_BUSY_LEAST = 0.05  # share of the time below which a load says nothing of its operator
_FULL = 0.95  # share of the time from which a load counts as uninterrupted
# Spread of the sustained clock between chips of one kind: four H100 under one calibration were 2, 3, 3 and 7 % slower
# than predicted in the mean of their training runs, the last of them 15 degrees hotter (bench/measured).
_CHIP_LOG_ERROR = 0.025
_FOLDS = 5
_NO_LIMIT_W = 1e9


@dataclass(frozen=True, kw_only=True)
class Loads:
    """Held loads, idle ones included. N rows; work is of one call, rate in calls a second of wall time."""

    names: list[str]
    keys: list[str]  # kind/direction; "" when idle
    power_W: FloatArray
    clock_Hz: FloatArray
    temperature_C: FloatArray
    duty: FloatArray
    rate_per_s: FloatArray
    flops: FloatArray
    vector_ops: FloatArray
    bytes_B: FloatArray

    def __len__(self) -> int:
        return len(self.names)


def loads_of(table: pd.DataFrame, clock_reference_Hz: float) -> Loads:
    """The loads of a profile's `power` table that have a power reading."""
    rows = table[table["power_W"].notna()].reset_index(drop=True)
    clock = rows["clock_Hz"].fillna(rows["clock_reported_Hz"]).fillna(clock_reference_Hz)
    works = [_work(row) for _, row in rows.iterrows()]
    time_s = rows["time_s"].to_numpy(np.float64)
    duty = np.where(np.isnan(time_s), 0.0, rows["duty"].to_numpy(np.float64))
    rate = np.where(duty > 0, duty / np.where(np.isnan(time_s), 1.0, time_s), 0.0)
    return Loads(
        names=[str(name) for name in rows["load"]],
        keys=["" if d == 0 else f"{row.kind}/{row.direction}" for d, row in zip(duty, rows.itertuples(), strict=True)],
        power_W=rows["power_W"].to_numpy(np.float64),
        clock_Hz=clock.to_numpy(np.float64),
        temperature_C=rows["temperature_C"].fillna(LEAK_REFERENCE_C).to_numpy(np.float64),
        duty=_active(duty, rows["sm_activity"].to_numpy(np.float64)),
        rate_per_s=rate,
        flops=np.array([w[0] for w in works]),
        vector_ops=np.array([w[1] for w in works]),
        bytes_B=np.array([w[2] for w in works]),
    )


def _active(duty: FloatArray, sm_activity: FloatArray) -> FloatArray:
    """Share of the time in which SMs had work. A load queued without pauses keeps them busy only if the host is fast
    enough, so for those it is what the counters say; one with pauses of its own ran for its share."""
    counted = np.where(np.isnan(sm_activity) | (duty < _FULL), duty, sm_activity)
    return np.minimum(duty, counted)


def _work(row: pd.Series) -> tuple[float, float, float]:
    if pd.isna(row["kind"]) or pd.isna(row["time_s"]):
        return 0.0, 0.0, 0.0
    shape = Shape(**{name: float(row[name]) for name in SHAPE_FIELDS})
    w = work(Kind(row["kind"]), Pass(row["direction"]), shape)
    return float(w.flops), float(w.vector_ops), float(w.bytes_B)


@dataclass(frozen=True, kw_only=True)
class _Voltage:
    knee_Hz: float
    slope: float

    def squared(self, clock_Hz: FloatArray, reference_Hz: float) -> FloatArray:
        """v(f) of `model.power`."""
        return np.square(self._relative(clock_Hz) / self._relative(np.asarray(reference_Hz)))

    def _relative(self, clock_Hz: FloatArray) -> FloatArray:
        return np.asarray(1 + self.slope * np.maximum(0.0, clock_Hz / self.knee_Hz - 1))


@dataclass(frozen=True, kw_only=True)
class PowerSolution:
    """Coefficients in the order of `_COEFFICIENTS`, the voltage curve, and log errors of the loads."""

    coefficients: FloatArray
    voltage: _Voltage
    reference_Hz: float
    log_errors: FloatArray

    def power_W(self, loads: Loads, kinds: dict[str, float]) -> FloatArray:
        """Power of loads, with operators' factors."""
        terms = _terms(loads, self.voltage, self.reference_Hz) * self.coefficients
        factor = np.array([kinds.get(key, 1.0) for key in loads.keys])
        return np.asarray(terms[:, 0] + factor * terms[:, 1:].sum(axis=1) + _leak(loads))


def _leak(loads: Loads) -> FloatArray:
    return np.asarray(LEAK_W_PER_C * (loads.temperature_C - LEAK_REFERENCE_C))


def _terms(loads: Loads, voltage: _Voltage, reference_Hz: float) -> FloatArray:
    """Columns of the linear equations."""
    v = voltage.squared(loads.clock_Hz, reference_Hz)
    rate = loads.rate_per_s
    columns = (
        np.ones(len(loads)),
        v * loads.duty * loads.clock_Hz / reference_Hz,
        v * rate * loads.flops,
        v * rate * loads.vector_ops,
        v * rate * loads.bytes_B,
        rate * loads.bytes_B,
    )
    return np.stack(columns, axis=1)


def solve_power(loads: Loads, reference_Hz: float) -> PowerSolution:
    """The best voltage curve of a grid, with non-negative coefficients for it."""
    knees = np.linspace(0.5, 0.85, 8) * reference_Hz
    voltages = (
        _Voltage(knee_Hz=float(knee_Hz), slope=float(slope))
        for knee_Hz, slope in product(knees, np.linspace(0.0, 2.0, 21))
    )
    return min((_coefficients(loads, voltage, reference_Hz) for voltage in voltages), key=lambda s: _cost(loads, s))


def _cost(loads: Loads, solution: PowerSolution) -> float:
    """Error that is left once operators have their factors, so that the voltage curve follows the clock and not the
    mix of operators that happened to run at it."""
    factors = kind_factors(loads, solution)
    errors = np.log(np.maximum(solution.power_W(loads, factors), 1.0) / loads.power_W)
    spread = np.log(list(factors.values())) if factors else np.zeros(1)
    return float(np.square(errors).mean() + _FACTOR_COST * np.square(spread).mean())


def _coefficients(loads: Loads, voltage: _Voltage, reference_Hz: float) -> PowerSolution:
    terms = _terms(loads, voltage, reference_Hz)
    target = loads.power_W - _leak(loads)
    weight = 1 / loads.power_W
    scale = np.maximum(np.abs(terms * weight[:, None]).max(axis=0), 1e-30)
    solution, _ = nnls(terms * weight[:, None] / scale, target * weight)
    coefficients = solution / scale
    predicted = terms @ coefficients + _leak(loads)
    errors = np.log(np.maximum(predicted, 1.0) / loads.power_W)
    return PowerSolution(coefficients=coefficients, voltage=voltage, reference_Hz=reference_Hz, log_errors=errors)


def kind_factors(loads: Loads, solution: PowerSolution) -> dict[str, float]:
    """Each operator's dynamic power over what the common energies give, shrunk towards 1 by its few loads."""
    terms = _terms(loads, solution.voltage, solution.reference_Hz) * solution.coefficients
    dynamic = terms[:, 1:].sum(axis=1)
    measured = loads.power_W - _leak(loads) - terms[:, 0]
    usable = (loads.duty > _BUSY_LEAST) & (measured > 0) & (dynamic > 0)
    ratios: dict[str, list[float]] = {}
    ratio = np.ones(len(loads))
    ratio[usable] = measured[usable] / dynamic[usable]
    for key, log_ratio, use in zip(loads.keys, np.log(ratio), usable, strict=True):
        if use:
            ratios.setdefault(key, []).append(float(log_ratio))
    return {key: float(np.exp(sum(r) / (len(r) + _SHRINK))) for key, r in ratios.items()}


def fit_power(loads: Loads, reference_Hz: float, source: str) -> tuple[PowerFit, PowerSolution]:
    """Power parameters; their error is of loads that were left out."""
    solution = solve_power(loads, reference_Hz)
    factors = kind_factors(loads, solution)
    values = dict(zip(_COEFFICIENTS, solution.coefficients, strict=True))
    parameters = {
        name: Parameter(value=float(value), unit=UNITS[name], origin="measured", source=source)
        for name, value in values.items()
    }
    parameters |= {
        "leak_W_per_C": _assumed(
            LEAK_W_PER_C, "W/K", "as an idle H100 between 42 and 51 C, measured in 2026; not fitted"
        ),
        "leak_reference_C": _assumed(LEAK_REFERENCE_C, "C", "the temperature that base_W is for, by choice"),
        "knee_Hz": _measured(solution.voltage.knee_Hz, "Hz", source),
        "voltage_slope": _measured(solution.voltage.slope, "1", source),
    }
    fit = PowerFit(
        parameters=parameters,
        kinds={key: _measured(value, "1", source) for key, value in sorted(factors.items())},
        log_error=held_out_power(loads, reference_Hz),
        points=len(loads),
    )
    return fit, solution


def _measured(value: float, unit: str, source: str) -> Parameter:
    return Parameter(value=float(value), unit=unit, origin="measured", source=source)


def _assumed(value: float, unit: str, source: str) -> Parameter:
    return Parameter(value=float(value), unit=unit, origin="assumed", source=source)


def held_out_power(loads: Loads, reference_Hz: float) -> float:
    """Root mean square log error of loads left out in turn.

    Only operators of which another load (another shape or share of time) remains count: they have a factor then, as
    every operator has in a prediction. Where no operator has two loads, the common energies alone are judged.
    """
    repeated = [index for index, key in enumerate(loads.keys) if key and loads.keys.count(key) > 1]
    judged = repeated or [index for index, key in enumerate(loads.keys) if key]
    errors = []
    for fold in range(min(_FOLDS, len(judged))):
        out = np.zeros(len(loads), dtype=bool)
        out[judged[fold::_FOLDS]] = True
        seen, unseen = _take(loads, ~out), _take(loads, out)
        solution = solve_power(seen, reference_Hz)
        errors += list(np.log(solution.power_W(unseen, kind_factors(seen, solution)) / unseen.power_W))
    return float(np.sqrt(np.mean(np.square(errors)))) if errors else 0.0


def _take(loads: Loads, rows: NDArray[np.bool_]) -> Loads:
    picked = [i for i, take in enumerate(rows) if take]
    arrays = {
        name: getattr(loads, name)[rows]
        for name in ("power_W", "clock_Hz", "temperature_C", "duty", "rate_per_s", "flops", "vector_ops", "bytes_B")
    }
    return Loads(names=[loads.names[i] for i in picked], keys=[loads.keys[i] for i in picked], **arrays)


def fit_governor(loads: Loads, base_W: float, clock_max_Hz: float, cap_W: float, source: str) -> GovernorFit:
    """The power at which bursts settle, from loads that ran part of the time, below the cap and below the top clock.

    While busy such a load draws (P - (1 - d) P_idle) / d.
    """
    idle_W = base_W + _leak(loads)
    with np.errstate(divide="ignore", invalid="ignore"):
        burst_W = (loads.power_W - (1 - loads.duty) * idle_W) / loads.duty
    slowed = (loads.duty > 0.2) & (loads.duty < 0.62) & (loads.clock_Hz < 0.95 * clock_max_Hz)
    slowed &= loads.power_W < 0.95 * cap_W
    spread = 0.0
    fast = Parameter(value=_NO_LIMIT_W, unit="W", origin="assumed", source="no burst of the profile was held back")
    if slowed.any():
        spread = float(np.std(np.log(burst_W[slowed])))
        limit = float(np.median(burst_W[slowed]))
        fast = Parameter(value=limit, unit="W", origin="measured", source=source, error=spread)
    return GovernorFit(
        parameters={"fast_limit": fast, "sustained_share": _sustained(loads, clock_max_Hz, cap_W, source)},
        log_error=float(np.hypot(spread / 2, _CHIP_LOG_ERROR)),
    )


def _sustained(loads: Loads, clock_max_Hz: float, cap_W: float, source: str) -> Parameter:
    """Share of the cap that loads held back by it settle at."""
    held = (loads.duty > _FULL * 0.9) & (loads.clock_Hz < 0.95 * clock_max_Hz) & (loads.power_W > 0.95 * cap_W)
    if not held.any():
        return Parameter(value=1.0, unit="1", origin="assumed", source="no load of the profile reached the cap")
    shares = loads.power_W[held] / cap_W
    return Parameter(
        value=float(np.median(shares)), unit="1", origin="measured", source=source, error=float(np.std(shares))
    )


def fit_thermal(table: pd.DataFrame, source: str) -> ThermalFit:
    """Steady temperature rise per watt, from the trace of power and temperature of the whole profile.

    T(t) = T_inlet + sum_i R_i (P filtered with time constant tau_i), two masses: die and heat sink. Given the time
    constants it is linear, so a grid of them and non-negative least squares find the rest.
    """
    rows = table[table["power_W"].notna() & table["temperature_C"].notna()].sort_values("wall_s")
    if len(rows) < 100:
        return _thermal_default()
    time_s, power_W, temperature_C = (rows[c].to_numpy(np.float64) for c in ("wall_s", "power_W", "temperature_C"))
    best: tuple[float, FloatArray] | None = None
    for die_s, sink_s in product((1.0, 2.0, 3.0, 5.0), (10.0, 15.0, 20.0, 30.0, 45.0, 60.0)):
        columns = np.stack(
            [_filtered(time_s, power_W, tau) for tau in (die_s, sink_s)] + [np.ones(len(time_s))], axis=1
        )
        solution, miss = nnls(columns, temperature_C)
        if best is None or miss < best[0]:
            best = (float(miss), solution)
    assert best is not None
    miss, (die, sink, inlet) = best[0] / np.sqrt(len(time_s)), best[1]
    return ThermalFit(
        parameters={
            "thermal_C_per_W": Parameter(
                value=float(die + sink),
                unit="K/W",
                origin="measured",
                source=source,
                error=float(miss / max(np.mean(temperature_C) - inlet, 1.0)),
            ),
            "inlet_C": Parameter(value=float(inlet), unit="C", origin="measured", source=source),
        }
    )


def _filtered(time_s: FloatArray, power_W: FloatArray, tau_s: float) -> FloatArray:
    """Power through a first-order lag, started in equilibrium with the first reading."""
    out = np.empty_like(power_W)
    state = power_W[0]
    previous = time_s[0]
    for index, (now, power) in enumerate(zip(time_s, power_W, strict=True)):
        state += (power - state) * (1 - np.exp(-(now - previous) / tau_s))
        previous = now
        out[index] = state
    return out


def _thermal_default() -> ThermalFit:
    """No trace to fit: temperature is not modelled (no rise), and says so."""
    source = "no temperature trace in the profile: no rise is modelled"
    zero = Parameter(value=0.0, unit="K/W", origin="assumed", source=source)
    return ThermalFit(parameters={"thermal_C_per_W": zero, "inlet_C": _at_reference(source)})


def _at_reference(source: str) -> Parameter:
    return Parameter(value=LEAK_REFERENCE_C, unit="C", origin="assumed", source=source)


def describe(loads: Loads, solution: PowerSolution, factors: dict[str, float]) -> Sequence[tuple[str, float, float]]:
    """Each load's name, measured and fitted power, W: for a person to look at."""
    return list(zip(loads.names, loads.power_W, solution.power_W(loads, factors), strict=True))
