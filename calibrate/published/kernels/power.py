"""Power of kernels that were repeated for a second: what a base calibration's terms are scaled by to have it.

    P = softmin(share x limit, P_model(work / t, f)),   softmin(a, b) = (a^-20 + b^-20)^(-1/20)

P_model is `device.power` with three factors: on the energy of a tensor operation, on what clocked multiprocessors draw,
on the energy of a byte. What an idle GPU draws stays the base's: every reading is of a busy one, so that nothing tells
it from what clocked multiprocessors draw. A reading at the limit
says only that the model's power reaches it. Readings of less than 50 us are left out: between kernels so short the host
leaves gaps of its own length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moemodel.calibration.least_squares import minimise
from moemodel.calibration.published.kernels.clocks import Conditions
from moemodel.model.core.arrays import FloatArray, take_rows
from moemodel.model.device.power import PowerModel
from moemodel.model.operators.work import Work

SHORTEST_S = 50e-6
FACTORS: dict[str, tuple[str, ...]] = {  # of the fit -> parameters of the power model
    "flop": ("flop_J",),
    "active": ("active_W",),
    "byte": ("dram_J_per_B", "cache_J_per_B"),
}
_SHARPNESS = 20.0  # of the limit
_OUTLIER = 0.05
_PRIOR = 0.5  # log: how far a derived term may be off before the readings have to say so; assumed
_ROWS = 1500  # of each table


@dataclass(frozen=True, kw_only=True)
class PowerReadings:
    """One table's. U kernels.

    Attributes:
        conditions: under which they ran.
        work: of each; time_s of each; power_W measured.
    """

    conditions: Conditions
    work: Work
    time_s: FloatArray
    power_W: FloatArray


def held_W(readings: PowerReadings, conditions: Conditions, time_s: FloatArray | None = None) -> FloatArray:
    """Power that is read, W [U], at times measured or given."""
    t = readings.time_s if time_s is None else time_s
    free = replace(conditions, limit_W=None)
    clock_Hz = free.clock_Hz(readings.work, np.repeat(t[:, None], len(free.clock_Hz_K), axis=1))
    wanted_W = conditions.power_W(readings.work, t, clock_Hz)
    limit_W = conditions.limit_W or np.inf
    ratio = np.maximum(wanted_W / limit_W, 1e-3)
    return np.asarray(wanted_W / (1 + ratio**_SHARPNESS) ** (1 / _SHARPNESS))


def scaled_power(power: PowerModel, factors: dict[str, float]) -> PowerModel:
    """A power model with its terms times the factors of `FACTORS`."""
    changed = {part: getattr(power, part) * factors[name] for name, parts in FACTORS.items() for part in parts}
    return replace(power, **changed)


def fit_power(tables: Sequence[PowerReadings]) -> dict[str, float]:
    """The factors, 1 where nothing is said; by robust least squares on log power."""
    chosen = [_longest(table) for table in tables]
    names = list(FACTORS)

    def errors(x: FloatArray) -> FloatArray:
        factors = dict(zip(names, np.exp(x), strict=True))
        rows = [
            np.log(held_W(t, replace(t.conditions, power=scaled_power(t.conditions.power, factors))) / t.power_W)
            for t in chosen
        ]
        return np.concatenate([*rows, x * (_OUTLIER / _PRIOR)])

    if not any(len(table.power_W) for table in chosen):
        return dict.fromkeys(names, 1.0)
    found = minimise(errors, np.zeros(len(names)), low=-3.0, high=3.0, loss="soft_l1", scale=_OUTLIER, evaluations=60)
    return {name: float(np.exp(value)) for name, value in zip(names, found, strict=True)}


def _longest(table: PowerReadings) -> PowerReadings:
    """Of a table, readings long enough, a sample of them."""
    rows = np.flatnonzero((table.time_s > SHORTEST_S) & np.isfinite(table.power_W))
    rows = np.random.default_rng(0).permutation(rows)[:_ROWS]
    return replace(table, work=take_rows(table.work, rows), time_s=table.time_s[rows], power_W=table.power_W[rows])
