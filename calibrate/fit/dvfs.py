"""Fit what the governor does (see `model.device.dvfs`): its slow limit on power, its fast one on the tensor cores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from moemodel.calibration.fit.power import Loads, work_of
from moemodel.calibration.least_squares import minimise
from moemodel.calibration.store.profile_tables import AlternatingTable, OperatorTable, PowerTable
from moemodel.model.core.arrays import BoolArray, FloatArray, StringArray, take_rows
from moemodel.model.device.dvfs import TensorLimit
from moemodel.model.device.roofline import ATTENTIONS, PRODUCTS, RooflineChip
from moemodel.model.device.sustained_load import Part, SustainedLoad, sustained_load
from moemodel.model.operators.work import Kind, Pass, Shape
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
_GAINS_HZ_PER_J = (1e6, 3e8)  # in which the gain is looked for: assumed, wide about an H100's 6e7
_LEAST_TOLD = 0.01  # of an alternation's mean power, between these gains: less, and it does not tell them apart


def fit_governor(
    loads: Loads,
    operators: OperatorTable,
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


def _tensor(operators: OperatorTable, chip: RooflineChip, source: str) -> tuple[dict[str, Parameter], float]:
    """The fast limit, from operators that ran below a clock that was set high; and the error that it leaves.

    Where no clock was set below the highest, the sharpness can't be told and is as on an H100.
    """
    chosen = (
        _on_tensor_cores(operators.kind)
        & ~np.isnan(operators.clock_Hz)
        & (operators.clock_reported_Hz > _TOP * chip.clock_Hz)
        & (operators.time_s > _SHORTEST_S)
        & ~np.char.startswith(operators.sweep, "mixed")  # the reported clock is that of the heavy load
    )
    rows = take_rows(operators, chosen)
    true_Hz, set_Hz = rows.clock_Hz, rows.clock_reported_Hz
    if len(rows) < _FEWEST or np.median(true_Hz / set_Hz) > _TOP:
        return {}, 0.0
    full_flops = rows.time_s * true_Hz * chip.multiprocessors * chip.flops_per_cycle
    tensor_use = np.minimum(1.0, work_of(rows).flops / full_flops)

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


def _on_tensor_cores(kind: StringArray) -> BoolArray:
    """Operators that are products, or made of them."""
    return np.isin(kind, [str(each) for each in (*PRODUCTS, *ATTENTIONS)])


def fit_gain(
    calibration: Calibration, alternating: AlternatingTable, loads: PowerTable, cap_W: float, source: str
) -> Parameter:
    """How fast the clock answers, for which alternations come out at their mean power, and at clocks that follow their
    length as measured.

    The limit holds power, whatever a watt makes of the clock: an H200's alternations, whose clocks come out 1 to 8 %
    high at any gain, are matched best by a governor that hardly moves if that counts. So the mean error of clocks is
    left out. Bursts with pauses, most of which meet no limit, tell of their operators' power instead.

    Args:
        calibration: complete but for the gain.
        alternating: table `alternating`.
        loads: table `power`; the first product and the copy in it are what alternates.
        cap_W: power limit of the GPU.
        source: of what is measured.
    """
    heavy, light = (_first(loads, kind) for kind in (Kind.GEMM, Kind.COPY))
    whole = np.flatnonzero(_whole(alternating))
    if not len(whole) or heavy is None or light is None:
        return _assumed_gain()
    turns = [_Turns.of(alternating, row, heavy, light) for row in whole]

    def cost(log_gain: float) -> float:
        there = with_gain(calibration, Parameter.assumed(float(np.exp(log_gain)), "Hz/J", ""))
        power, clock = np.array([turn.miss(there, cap_W) for turn in turns]).T
        return float(np.mean(np.square(power)) + np.var(clock)) / 2

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


def _whole(rows: AlternatingTable) -> BoolArray:
    """Alternations of which all is known, the temperature too: without it leakage is not."""
    clocks = (rows.heavy_clock_Hz, rows.light_clock_Hz)
    columns = (rows.heavy_s, rows.light_s, *clocks, rows.power_W, rows.temperature_C)
    return np.asarray(~np.isnan(np.stack(columns)).any(axis=0))


def _first(loads: PowerTable, kind: Kind) -> _Load | None:
    """The first load of a kind."""
    rows = np.flatnonzero((loads.kind == str(kind)) & ~np.isnan(loads.time_s))
    return _Load.of(loads, rows[0]) if len(rows) else None


@dataclass(frozen=True, kw_only=True)
class _Load:
    """A held load; what was not read is NaN."""

    kind: Kind
    direction: Pass
    shape: Shape
    time_s: float
    power_W: float
    clock_Hz: float
    temperature_C: float

    @classmethod
    def of(cls, loads: PowerTable, row: np.intp) -> _Load:
        return cls(
            kind=Kind(str(loads.kind[row])),
            direction=Pass(str(loads.direction[row])),
            shape=take_rows(loads.shape, np.array([row])),
            time_s=float(loads.time_s[row]),
            power_W=float(loads.power_W[row]),
            clock_Hz=float(loads.clock_Hz[row]),
            temperature_C=float(loads.temperature_C[row]),
        )

    def part(self, lasting_s: float, clock_Hz: float | None = None) -> Part:
        """As many calls as lasted so long, at a clock that its time follows (None: it doesn't)."""
        slower = 1.0 if clock_Hz is None or np.isnan(self.clock_Hz) else self.clock_Hz / clock_Hz
        calls = max(1, round(lasting_s / (self.time_s * slower)))
        return Part(kind=self.kind, direction=self.direction, shape=self.shape, calls=calls)


@dataclass(frozen=True, kw_only=True)
class _Turns:
    """An alternation: its parts, and what was measured."""

    parts: tuple[Part, ...]
    power_W: float
    clock_Hz: float
    temperature_C: float

    @classmethod
    def of(cls, rows: AlternatingTable, row: np.intp, heavy: _Load, light: _Load) -> _Turns:
        heavy_s, light_s, heavy_Hz = float(rows.heavy_s[row]), float(rows.light_s[row]), float(rows.heavy_clock_Hz[row])
        cycles = heavy_s * heavy_Hz + light_s * float(rows.light_clock_Hz[row])
        return cls(
            parts=(heavy.part(heavy_s, heavy_Hz), light.part(light_s)),
            power_W=float(rows.power_W[row]),
            clock_Hz=cycles / (heavy_s + light_s),
            temperature_C=float(rows.temperature_C[row]),
        )

    def miss(self, calibration: Calibration, cap_W: float) -> tuple[float, float]:
        """Logarithms of predicted over measured power and clock."""
        found = self.held(calibration, cap_W)
        return float(np.log(found.power_W / self.power_W)), float(np.log(found.clock_Hz / self.clock_Hz))

    def held(self, calibration: Calibration, cap_W: float) -> SustainedLoad:
        """What a calibration says of it."""
        return sustained_load(self.parts, calibration, power_limit_W=cap_W, time_s=0.0, start_C=self.temperature_C)
