"""Fit what the governor does (see `model.governor`): its slow limit on power, its fast one on the tensor cores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from moemodel.calibration.fit.power import Loads
from moemodel.calibration.least_squares import minimise
from moemodel.model.core.arrays import FloatArray
from moemodel.model.device.dvfs import TensorLimit
from moemodel.model.device.roofline import ATTENTIONS, PRODUCTS, RooflineChip
from moemodel.model.device.sustained_load import Part, SustainedLoad, sustained_load
from moemodel.model.operators.work import SHAPE_FIELDS, Kind, Pass, Shape, work
from moemodel.model.records.calibration import Calibration, GovernorFit, Parameter

# Of an H100 80GB HBM3: `fit_gain` on the profile h100-sxm-80gb-second.
GAIN_HZ_PER_J = 6.3e7
# Products for 30 to 100 % of the time on an H100 80GB HBM3, set and true MHz: 1380 1365, 1530 1437, 1800 1568,
# 1965 1583, 1980 1596 (this project's first readings): with 10 and f_tensor 1595 MHz they come out within 1.3 %.
SHARPNESS = 10.0
_FULL = 0.95  # assumed: share of the time from which a load counts as uninterrupted
# Spread of the sustained clock between chips of one kind, by how far it is predicted too high in the mean of the
# training runs of bench/measured: 1 and 5 % on one H100, 0 % on another, 6 % on a third that was 15 degrees hotter.
_CHIP_LOG_ERROR = 0.025
_TOP = 0.985  # of the highest clock, two steps of 15 MHz below it: from there the slow limit is not at work
_SHORTEST_S = 3e-5  # calls shorter than this are launch to a good part (7 us in the median of an H100's operators)
_FEWEST = 10  # samples for one parameter and its spread
_BURSTS = (0.4, 0.9)  # assumed: shares of the time for which bursts count: less never meets the cap, more is no burst
_BURST_S = 8e-3  # that the profiler's bursts last on a GPU (profiler.microbench.budget, burst_s)
_GAINS_HZ_PER_J = (1e6, 3e8)  # in which the gain is looked for: assumed, wide about an H100's 6e7
_LEAST_TOLD = 0.01  # of an alternation's mean power, between these gains: less, and it does not tell them apart


def fit_governor(
    loads: Loads,
    operators: pd.DataFrame,
    chip: RooflineChip,
    cap_W: float,
    source: str,
) -> GovernorFit:
    """Both limits; the gain of the slow one is `fit_gain`'s to find, once all else is known.

    Args:
        loads: held loads.
        operators: table `operators`.
        chip: for the rate of its tensor cores.
        cap_W: power limit of the GPU.
        source: of what is measured.
    """
    share = _sustained(loads, chip.clock_Hz, cap_W, source)
    tensor, error = _tensor(operators, chip, source)
    return GovernorFit(
        parameters={**tensor, "sustained_share": share, "gain": _assumed_gain()},
        log_error=float(np.hypot(error, _CHIP_LOG_ERROR)),
    )


def no_governor(source: str) -> dict[str, Parameter]:
    """Parameters of a governor of which nothing was measured."""
    return {"sustained_share": Parameter.assumed(1.0, "1", source), "gain": _assumed_gain()}


def _assumed_gain() -> Parameter:
    return Parameter.assumed(GAIN_HZ_PER_J, "Hz/J", "as an H100 80GB HBM3 in 2026: turns of products and copies")


def _sustained(loads: Loads, clock_max_Hz: float, cap_W: float, source: str) -> Parameter:
    """Share of the cap that loads held back by it settle at."""
    # assumed: all clearly on the limit's side
    held = (loads.duty > _FULL * 0.9) & (loads.clock_Hz < 0.95 * clock_max_Hz) & (loads.power_W > 0.95 * cap_W)
    if not held.any():
        return Parameter.assumed(1.0, "1", "no load of the profile reached the cap")
    shares = loads.power_W[held] / cap_W
    return Parameter.measured(float(np.median(shares)), "1", source, float(np.std(shares)))


def _tensor(operators: pd.DataFrame, chip: RooflineChip, source: str) -> tuple[dict[str, Parameter], float]:
    """The fast limit, from operators that ran below a clock that was set high; and the error that it leaves.

    Where no clock was set below the highest, the sharpness can't be told and is as on an H100.
    """
    rows = operators[
        operators["kind"].isin([*PRODUCTS, *ATTENTIONS])
        & operators["clock_Hz"].notna()
        & operators["clock_reported_Hz"].notna()
        & (operators["time_s"] > _SHORTEST_S)
        & ~operators["sweep"].astype(str).str.startswith("mixed")  # the reported clock is that of the heavy load
    ]
    rows = rows[(rows["clock_reported_Hz"] > _TOP * chip.clock_Hz)]
    true_Hz, set_Hz = rows["clock_Hz"].to_numpy(np.float64), rows["clock_reported_Hz"].to_numpy(np.float64)
    if len(rows) < _FEWEST or np.median(true_Hz / set_Hz) > _TOP:
        return {}, 0.0
    use = np.minimum(1.0, _flops(rows) / (rows["time_s"] * true_Hz * chip.multiprocessors * chip.flops_per_cycle))
    tensor_use = use.to_numpy(np.float64)

    def misses(x: FloatArray) -> FloatArray:
        limit = TensorLimit(clock_Hz=x[0] * chip.clock_Hz, sharpness=SHARPNESS)
        return np.asarray(np.log(limit.true_clock_Hz(set_Hz, tensor_use) / true_Hz))

    found = minimise(misses, [0.8], low=0.2, high=2.0, loss="soft_l1", scale=0.02)
    error = float(1.4826 * np.median(np.abs(misses(found))))  # some rows ran while the clock still rose
    return {
        "tensor_clock": Parameter.measured(float(found[0]) * chip.clock_Hz, "Hz", source, error),
        "tensor_sharpness": Parameter.assumed(
            SHARPNESS, "1", "as an H100 80GB HBM3 in 2026 under products for 30 to 100 % of the time"
        ),
    }, error


def _flops(rows: pd.DataFrame) -> FloatArray:
    """Floating-point operations of one call, of each row."""
    out = np.zeros(len(rows))
    kinds, directions = rows["kind"].to_numpy(str), rows["direction"].to_numpy(str)
    for kind, direction in sorted(set(zip(kinds, directions, strict=True))):
        at = (kinds == kind) & (directions == direction)
        shape = Shape(**{name: rows[name].to_numpy(np.float64)[at] for name in SHAPE_FIELDS})
        out[at] = work(Kind(kind), Pass(direction), shape).flops
    return out


def fit_gain(
    calibration: Calibration, alternating: pd.DataFrame, loads: pd.DataFrame, cap_W: float, source: str
) -> Parameter:
    """How fast the clock answers, for which alternations and bursts come out at their mean power and clock.

    Args:
        calibration: complete but for the gain.
        alternating: table `alternating`.
        loads: table `power`; the first product and the copy in it are what alternates.
        cap_W: power limit of the GPU.
        source: of what is measured.
    """
    rows = alternating.dropna(subset=["heavy_s", "light_s", "heavy_clock_Hz", "light_clock_Hz", "power_W"])
    heavy, light = (_first(loads, kind) for kind in (Kind.GEMM, Kind.COPY))
    if rows.empty or heavy is None or light is None:
        return _assumed_gain()
    turns = [_Turns.of(row, heavy, light) for _, row in rows.iterrows()]
    bursts = loads[loads["duty"].between(*_BURSTS) & loads["clock_Hz"].notna() & loads["power_W"].notna()]
    turns += [_Turns.burst(row) for _, row in bursts.iterrows() if Kind(row["kind"]) in (*PRODUCTS, *ATTENTIONS)]

    def cost(log_gain: float) -> float:
        there = with_gain(calibration, Parameter.assumed(float(np.exp(log_gain)), "Hz/J", ""))
        return float(np.mean([turn.miss(there, cap_W) for turn in turns]))

    slow, fast = (with_gain(calibration, Parameter.assumed(gain, "Hz/J", "")) for gain in _GAINS_HZ_PER_J)
    told = [turn.held(slow, cap_W).power_W / turn.held(fast, cap_W).power_W - 1 for turn in turns]
    if max(told) < _LEAST_TOLD:
        return _assumed_gain()

    found = minimize_scalar(cost, bounds=tuple(np.log(_GAINS_HZ_PER_J)), method="bounded", options={"xatol": 0.02})
    return Parameter.measured(float(np.exp(found.x)), "Hz/J", source, float(np.sqrt(found.fun)))


def with_gain(calibration: Calibration, gain: Parameter) -> Calibration:
    """The calibration with that gain."""
    parameters = {**calibration.governor.parameters, "gain": gain}
    return calibration.model_copy(
        update={"governor": calibration.governor.model_copy(update={"parameters": parameters})}
    )


def _first(loads: pd.DataFrame, kind: Kind) -> pd.Series | None:
    """The first load of a kind."""
    rows = loads[(loads["kind"] == str(kind)) & loads["time_s"].notna()]
    return None if rows.empty else rows.iloc[0]


@dataclass(frozen=True, kw_only=True)
class _Turns:
    """An alternation, or bursts and pauses: its parts, and what was measured."""

    parts: tuple[Part, ...]
    pause_s: float = 0.0
    power_W: float
    clock_Hz: float
    temperature_C: float

    @classmethod
    def of(cls, row: pd.Series, heavy: pd.Series, light: pd.Series) -> _Turns:
        heavy_s, light_s = float(row["heavy_s"]), float(row["light_s"])
        cycles = heavy_s * float(row["heavy_clock_Hz"]) + light_s * float(row["light_clock_Hz"])
        return cls(
            parts=(
                _part(heavy, heavy_s, float(row["heavy_clock_Hz"])),
                _part(light, light_s),
            ),
            power_W=float(row["power_W"]),
            clock_Hz=cycles / (heavy_s + light_s),
            temperature_C=float(row["temperature_C"]),
        )

    @classmethod
    def burst(cls, row: pd.Series) -> _Turns:
        duty = float(row["duty"])
        return cls(
            parts=(_part(row, _BURST_S),),
            pause_s=_BURST_S * (1 - duty) / duty,
            power_W=float(row["power_W"]),
            clock_Hz=float(row["clock_Hz"]),
            temperature_C=float(row["temperature_C"]),
        )

    def miss(self, calibration: Calibration, cap_W: float) -> float:
        """Mean square of the relative errors of power and clock."""
        found = self.held(calibration, cap_W)
        return ((found.power_W / self.power_W - 1) ** 2 + (found.clock_Hz / self.clock_Hz - 1) ** 2) / 2

    def held(self, calibration: Calibration, cap_W: float) -> SustainedLoad:
        """What a calibration says of it."""
        return sustained_load(
            self.parts, calibration, power_limit_W=cap_W, time_s=0.0, pause_s=self.pause_s, start_C=self.temperature_C
        )


def _part(load: pd.Series, lasting_s: float, clock_Hz: float | None = None) -> Part:
    """As many calls of a load as lasted so long, at a clock that its time follows (None: it doesn't)."""
    shape = Shape(**{name: np.array([float(load[name])]) for name in SHAPE_FIELDS})
    held_Hz = float(load["clock_Hz"])
    time_s = float(load["time_s"]) * (1.0 if clock_Hz is None or np.isnan(held_Hz) else held_Hz / clock_Hz)
    return Part(
        kind=Kind(load["kind"]),
        direction=Pass(load["direction"]),
        shape=shape,
        calls=max(1, round(lasting_s / time_s)),
    )
