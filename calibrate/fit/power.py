"""Fit power (see `model.device.power`).

Each held load gives one equation. With share d of the time busy, time t of a call, true clock f while busy:

    P = base + leak dT + (1 + rise dT) (p_tree v(f) f/f0
          + d/t (v(f) (e_flop flops + e_vector ops + e_cache bytes + p_active f/f0 t) + e_dram bytes)),     dT = T - T0

An idle GPU shows base + p_tree at its clock, which is the highest unless it was locked; so the tree's share of that is
found with the voltage curve where idle GPUs were seen at several clocks, and is that of an A100 otherwise.

It is linear in base, p_active and the energies once leakage (see `calibrate.fit.thermal`) and the voltage curve are
given, so those are found by non-negative least squares (power cannot be negative), for each knee and slope of a grid
and then about the best of them. Equations are weighed by 1/P: errors count relatively. What remains for an operator is
kept as a factor on its dynamic energy, shrunk towards 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.optimize import minimize, nnls

from moemodel.calibration.store.profile_tables import MeasuredOperators, PowerTable
from moemodel.model.core.arrays import FloatArray, known_or, take_rows
from moemodel.model.operators.work import Kind, Pass, Work, work
from moemodel.model.records.calibration import Parameter, PowerFit

UNITS = {
    "base_W": "W",
    "tree_W": "W",
    "active_W": "W",
    "flop_J": "J",
    "vector_op_J": "J",
    "cache_J_per_B": "J/B",
    "dram_J_per_B": "J/B",
}
_COEFFICIENTS = ("idle_W", *(name for name in UNITS if name not in ("base_W", "tree_W")))
# Of what an idle GPU draws at its highest clock, the share of the clock tree: an A100 SXM4 between loads drew 80.7 W at
# 510 MHz, 88.0 W at 1110 MHz and 109.0 W at 1410 MHz, 31 W more at the top than without clock (readings of the
# published DVFS study that `calibrate.published.activity_power` names, 27 to 30 C).
TREE_SHARE = 0.28
_TREE_SOURCE = "its share of idle power is taken to be that of an A100, 0.28: no idle GPU was seen at another clock"
_CLOCKS_APART = 0.1  # assumed: relative range of idle clocks that shows the tree
_SHRINK = 0.1  # assumed: loads' worth of belief that an operator is like the rest
_FACTOR_COST = 0.1  # assumed: of a squared log factor against a squared log error, in choosing the voltage curve
_ROOM_C = 50.0  # where there is no sensor: leakage counts for nothing then
_BUSY_LEAST = 0.05  # assumed: share of the time below which a load says nothing of its operator
_FULL = 0.95  # assumed: share of the time from which a load counts as uninterrupted
_HOST_BOUND_S = 3e-5  # calls shorter than this may wait for the host, and what is mostly launch keeps few SMs busy
_FOLDS = 5  # as in `calibrate.fit.operators`


@dataclass(frozen=True, kw_only=True)
class Loads:
    """Held loads, idle ones included. N rows; work is of one call, rate in calls a second of wall time. `clock_Hz` is
    the true clock while busy, `set_Hz` that of the pauses (None: the same)."""

    names: list[str]
    keys: list[str]  # kind/direction; "" when idle
    power_W: FloatArray
    clock_Hz: FloatArray
    set_Hz: FloatArray | None = None
    temperature_C: FloatArray
    duty: FloatArray
    rate_per_s: FloatArray
    flops: FloatArray
    vector_ops: FloatArray
    bytes_B: FloatArray

    def __len__(self) -> int:
        return len(self.names)


def loads_of(table: PowerTable, clock_reference_Hz: float) -> Loads:
    """The loads of a profile's `power` table that have a power reading.

    Short calls without pauses count only where there are activity counters: for how long SMs had work isn't known else.
    """
    unknown = np.isnan(table.sm_activity) & (table.time_s < _HOST_BOUND_S) & (table.duty >= _FULL)
    rows = take_rows(table, ~np.isnan(table.power_W) & ~unknown)
    clock_Hz = known_or(known_or(rows.clock_Hz, rows.clock_reported_Hz), clock_reference_Hz)
    calls = work_of(rows)
    duty = np.where(np.isnan(rows.time_s), 0.0, rows.duty)
    operators = zip(rows.kind.tolist(), rows.direction.tolist(), strict=True)
    return Loads(
        names=rows.load.tolist(),
        keys=["" if d == 0 else f"{kind}/{direction}" for d, (kind, direction) in zip(duty, operators, strict=True)],
        power_W=rows.power_W,
        clock_Hz=clock_Hz,
        set_Hz=known_or(rows.clock_reported_Hz, clock_Hz),
        temperature_C=known_or(rows.temperature_C, _ROOM_C),
        duty=_active(duty, rows.sm_activity),
        rate_per_s=np.where(duty > 0, duty / known_or(rows.time_s, 1.0), 0.0),
        flops=calls.flops,
        vector_ops=calls.vector_ops,
        bytes_B=calls.bytes_B,
    )


def _active(duty: FloatArray, sm_activity: FloatArray) -> FloatArray:
    """Share of the time in which SMs had work. A load queued without pauses keeps them busy only if the host is fast
    enough, so for those it is what the counters say; one with pauses of its own ran for its share."""
    counted = np.where(np.isnan(sm_activity) | (duty < _FULL), duty, sm_activity)
    return np.minimum(duty, counted)


def work_of(rows: MeasuredOperators) -> Work:
    """Work of one call, of each row; none where nothing ran."""
    calls = Work(flops=np.zeros(len(rows)), vector_ops=np.zeros(len(rows)), bytes_B=np.zeros(len(rows)))
    for kind, direction in sorted(set(zip(rows.kind.tolist(), rows.direction.tolist(), strict=True))):
        if kind:
            at = (rows.kind == kind) & (rows.direction == direction)
            one = work(Kind(kind), Pass(direction), take_rows(rows.shape, at))
            calls.flops[at], calls.vector_ops[at], calls.bytes_B[at] = one.flops, one.vector_ops, one.bytes_B
    return calls


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """What temperature does to power: W/K, and share of dynamic power per K, about a reference."""

    leak_W_per_C: float
    rise_per_C: float
    reference_C: float

    def static_W(self, loads: Loads) -> FloatArray:
        """Beyond that at the reference."""
        return np.asarray(self.leak_W_per_C * (loads.temperature_C - self.reference_C))

    def factor(self, loads: Loads) -> FloatArray:
        """Of dynamic power."""
        return np.asarray(1 + self.rise_per_C * (loads.temperature_C - self.reference_C))


@dataclass(frozen=True, kw_only=True)
class _Voltage:
    knee_Hz: float
    slope: float

    def squared(self, clock_Hz: FloatArray, reference_Hz: float) -> FloatArray:
        """v(f) of `model.device.power`."""
        return np.square(self._relative(clock_Hz) / self._relative(np.asarray(reference_Hz)))

    def _relative(self, clock_Hz: FloatArray) -> FloatArray:
        return np.asarray(1 + self.slope * np.maximum(0.0, clock_Hz / self.knee_Hz - 1))


@dataclass(frozen=True, kw_only=True)
class PowerSolution:
    """Coefficients in the order of `_COEFFICIENTS`, the voltage curve, and the clock tree's share of what an idle GPU
    draws at the reference clock."""

    coefficients: FloatArray
    voltage: _Voltage
    tree_share: float
    leakage: Leakage
    reference_Hz: float

    @property
    def values(self) -> dict[str, float]:
        """By name, those of `UNITS`."""
        found = dict(zip(_COEFFICIENTS, self.coefficients.tolist(), strict=True))
        idle_W = found.pop("idle_W")
        return {"base_W": (1 - self.tree_share) * idle_W, "tree_W": self.tree_share * idle_W, **found}

    def terms(self, loads: Loads) -> FloatArray:
        """What each coefficient contributes to the power of each load."""
        return _terms(loads, self.voltage, self.tree_share, self.leakage, self.reference_Hz) * self.coefficients

    def power_W(self, loads: Loads, kinds: dict[str, float]) -> FloatArray:
        """Power of loads, with operators' factors."""
        terms = self.terms(loads)
        factor = np.array([kinds.get(key, 1.0) for key in loads.keys])
        return np.asarray(terms[:, 0] + factor * terms[:, 1:].sum(axis=1) + self.leakage.static_W(loads))


def _terms(loads: Loads, voltage: _Voltage, tree_share: float, leakage: Leakage, reference_Hz: float) -> FloatArray:
    """Columns of the linear equations."""
    v = voltage.squared(loads.clock_Hz, reference_Hz)
    rate = loads.rate_per_s
    warm = leakage.factor(loads)
    set_Hz = loads.clock_Hz if loads.set_Hz is None else loads.set_Hz
    paused = (1 - loads.duty) * voltage.squared(set_Hz, reference_Hz) * set_Hz / reference_Hz
    ticking = loads.duty * v * loads.clock_Hz / reference_Hz + paused
    columns = (
        1 - tree_share + tree_share * warm * ticking,
        warm * v * loads.duty * loads.clock_Hz / reference_Hz,
        warm * v * rate * loads.flops,
        warm * v * rate * loads.vector_ops,
        warm * v * rate * loads.bytes_B,
        warm * rate * loads.bytes_B,
    )
    return np.stack(columns, axis=1)


def solve_power(loads: Loads, reference_Hz: float, leakage: Leakage) -> PowerSolution:
    """The best voltage curve, with non-negative coefficients for it: the best of a grid, then refined."""
    idle_Hz = loads.clock_Hz[[not key for key in loads.keys]]
    told = len(idle_Hz) > 1 and bool(np.ptp(idle_Hz) > _CLOCKS_APART * reference_Hz)

    def solved(knee: float, slope: float, tree_share: float = TREE_SHARE) -> PowerSolution:
        voltage = _Voltage(knee_Hz=knee * reference_Hz, slope=slope)
        return _coefficients(loads, voltage, tree_share, leakage, reference_Hz)

    def cost(x: FloatArray) -> float:
        return _cost(loads, solved(*map(float, x)))

    # knees over the reference clock, and slopes: assumed to hold any GPU's (an H100's are 0.71 and 0.64), then refined
    grid = (solved(float(k), float(s)) for k, s in product(np.linspace(0.45, 0.9, 10), np.linspace(0.0, 2.0, 11)))
    coarse = min(grid, key=lambda solution: _cost(loads, solution))
    free = 3 if told else 2
    start = np.array([coarse.voltage.knee_Hz / reference_Hz, coarse.voltage.slope, TREE_SHARE])[:free]
    # first steps as wide as half of the grid's, or so; bounds beyond which no GPU is expected (assumed)
    corners = np.vstack([start, start + np.diag([0.03, 0.1, 0.05])[:free, :free]])
    options: Any = {"xatol": 1e-3, "fatol": 1e-9, "initial_simplex": corners}
    bounds = [(0.3, 1.0), (0.0, 4.0), (0.0, 0.9)][:free]
    fine = minimize(cost, start, method="Nelder-Mead", bounds=bounds, options=options)
    return min(coarse, solved(*map(float, fine.x)), key=lambda solution: _cost(loads, solution))


def _cost(loads: Loads, solution: PowerSolution) -> float:
    """Error that is left once operators have their factors, so that the voltage curve follows the clock and not the
    mix of operators that happened to run at it."""
    factors = kind_factors(loads, solution)
    errors = np.log(np.maximum(solution.power_W(loads, factors), 1.0) / loads.power_W)
    spread = np.log(list(factors.values())) if factors else np.zeros(1)
    return float(np.square(errors).mean() + _FACTOR_COST * np.square(spread).mean())


def _coefficients(
    loads: Loads, voltage: _Voltage, tree_share: float, leakage: Leakage, reference_Hz: float
) -> PowerSolution:
    terms = _terms(loads, voltage, tree_share, leakage, reference_Hz)
    target = loads.power_W - leakage.static_W(loads)
    weight = 1 / loads.power_W
    scale = np.maximum(np.abs(terms * weight[:, None]).max(axis=0), 1e-30)
    solution, _ = nnls(terms * weight[:, None] / scale, target * weight)
    coefficients = solution / scale
    return PowerSolution(
        coefficients=coefficients,
        voltage=voltage,
        tree_share=tree_share,
        leakage=leakage,
        reference_Hz=reference_Hz,
    )


def kind_factors(loads: Loads, solution: PowerSolution) -> dict[str, float]:
    """Each operator's dynamic power over what the common energies give, shrunk towards 1 by its few loads."""
    terms = solution.terms(loads)
    dynamic = terms[:, 1:].sum(axis=1)
    measured = loads.power_W - solution.leakage.static_W(loads) - terms[:, 0]
    usable = (loads.duty > _BUSY_LEAST) & (measured > 0) & (dynamic > 0)
    ratios: dict[str, list[float]] = {}
    ratio = np.ones(len(loads))
    ratio[usable] = measured[usable] / dynamic[usable]
    for key, log_ratio, use in zip(loads.keys, np.log(ratio), usable, strict=True):
        if use:
            ratios.setdefault(key, []).append(float(log_ratio))
    return {key: float(np.exp(sum(r) / (len(r) + _SHRINK))) for key, r in ratios.items()}


def fit_power(
    loads: Loads, reference_Hz: float, leakage: dict[str, Parameter], source: str
) -> tuple[PowerFit, PowerSolution]:
    """Power parameters; their error is of loads that were left out.

    Args:
        loads: held loads.
        reference_Hz: clock that energies are for.
        leakage: parameters of `calibrate.fit.thermal.fit_leakage`.
        source: of what is measured.
    """
    known = Leakage(
        leak_W_per_C=leakage["leak_W_per_C"].value,
        rise_per_C=leakage["rise_per_C"].value,
        reference_C=leakage["leak_reference_C"].value,
    )
    solution = solve_power(loads, reference_Hz, known)
    factors = kind_factors(loads, solution)
    parameters = {name: Parameter.measured(value, UNITS[name], source) for name, value in solution.values.items()}
    if solution.tree_share == TREE_SHARE:
        parameters["tree_W"] = tree_parameter(solution.values["tree_W"])
    parameters |= leakage | {
        "knee_Hz": Parameter.measured(solution.voltage.knee_Hz, "Hz", source),
        "voltage_slope": Parameter.measured(solution.voltage.slope, "1", source),
    }
    fit = PowerFit(
        parameters=parameters,
        kinds={key: Parameter.measured(value, "1", source) for key, value in sorted(factors.items())},
        log_error=held_out_power(loads, reference_Hz, known),
        points=len(loads),
    )
    return fit, solution


def tree_parameter(value: float) -> Parameter:
    """`tree_W` where its share of idle power is taken from elsewhere."""
    return Parameter.assumed(value, "W", _TREE_SOURCE)


def held_out_power(loads: Loads, reference_Hz: float, leakage: Leakage) -> float:
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
        seen, unseen = take_rows(loads, ~out), take_rows(loads, out)
        solution = solve_power(seen, reference_Hz, leakage)
        errors += list(np.log(solution.power_W(unseen, kind_factors(seen, solution)) / unseen.power_W))
    return float(np.sqrt(np.mean(np.square(errors)))) if errors else 0.0
