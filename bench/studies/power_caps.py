"""Fit time and mean power of programs under power caps: of a GPU a few parameters, of each program five.

A program alternates between work on the GPU and stretches in which the GPU waits (for the host, the data). Its work
draws more in some stretches than in others, which the governor meets one by one: each runs at the highest clock at
which it draws no more than the cap, or at the locked clock, or at the lowest clock if it draws more even there.

    work:     tau(f) = m + (1 - m) f0/f                                time, relative to that at f0
              P(f)   = base + v(f) (clocked + active) f/f0 + D_j ((1 - e) v(f) + e) / tau(f)
              P(f_j) = share x cap                                     f_j by `device.dvfs.crossing`
    waiting:  P_idle = base + clocked                                  at f0
    run:      t      = t_work (mean_j tau(f_j) + waiting)
              P      = t_work (mean_j tau(f_j) P(f_j) + waiting P_idle) / t

    of the GPU:      base, clocked, active, W; knee and slope of v(f) (`model.device.power`); e, the share of dynamic
                     energy that doesn't follow the SMs' voltage (memory); share, of the cap at which mean power settles
    of the program:  t_work; waiting, relative to t_work; m, the share of work that doesn't follow the clock; D, dynamic
                     power of work at f0, W; spread of D_j, four stretches of equal work, relative

All together by robust least squares on log time and log power, each worth 3 %, with a wide prior for each parameter: a
program has no more than a few rows. Leakage is in the base: no temperatures are given. Left out: the governor's
overshoot and the time that it takes to settle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moemodel.calibration.least_squares import minimise
from moemodel.calibration.published.activity_power import voltage_model
from moemodel.model.core.arrays import FloatArray, IntArray, take_rows
from moemodel.model.device.dvfs import crossing
from moemodel.model.device.power import PowerModel

_ERROR = 0.03  # log; assumed, of a reading
_CLOCKS = 48  # of the range, between which power is linear: some 25 MHz apart on an A100
_MOST_STEPS = 60  # of least squares, at most
_STRETCHES = np.array([-1.0, -1 / 3, 1 / 3, 1.0]) * np.sqrt(9 / 5)  # evenly apart, of unit variance
_LEAST_LEVEL = 0.02  # of the mean, that no stretch draws less than


@dataclass(frozen=True, kw_only=True)
class CapRows:
    """Runs under caps. N rows; `clock_Hz` is the highest clock allowed, locked or the GPU's own."""

    code_N: IntArray  # programs, numbered from 0
    cap_W: FloatArray
    clock_Hz: FloatArray
    time_s: FloatArray
    power_W: FloatArray


@dataclass(frozen=True, kw_only=True)
class Range:
    """Where a parameter is expected, how far around, and how far it may go."""

    mean: float
    deviation: float
    low: float
    high: float


# Assumed, and wide: a GPU of some hundred watts. The rows move them.
GPU_PARAMETERS = {
    "base_W": Range(mean=40, deviation=20, low=0, high=200),
    "clocked_W": Range(mean=20, deviation=20, low=0, high=200),
    "active_W": Range(mean=30, deviation=30, low=0, high=300),
    "knee": Range(mean=0.75, deviation=0.15, low=0.3, high=0.95),  # over the reference clock
    "slope": Range(mean=1, deviation=0.7, low=0, high=4),
    "memory_energy": Range(mean=0.3, deviation=0.3, low=0, high=1),
    "sustained_share": Range(mean=0.98, deviation=0.02, low=0.85, high=1.05),
}
# Assumed, and wide. Logarithms of t_work and D begin at what the rows of the program show.
CODE_PARAMETERS = {
    "log_work_s": Range(mean=0, deviation=3, low=-20, high=20),
    "waiting": Range(mean=0.1, deviation=0.3, low=0, high=20),
    "memory": Range(mean=0.4, deviation=0.3, low=0, high=1),
    "log_dynamic_W": Range(mean=0, deviation=1, low=0, high=8),
    "spread": Range(mean=0.2, deviation=0.15, low=0, high=0.7),
}
_G, _C = len(GPU_PARAMETERS), len(CODE_PARAMETERS)


@dataclass(frozen=True, kw_only=True)
class CapModel:
    """The fitted parameters, [7] of the GPU and [U, 5] of programs, in the order of the tables above."""

    gpu: FloatArray
    code: FloatArray
    lowest_Hz: float
    reference_Hz: float

    @property
    def parameters(self) -> dict[str, float]:
        """Of the GPU, by name."""
        return dict(zip(GPU_PARAMETERS, map(float, self.gpu), strict=True))

    def power(self) -> PowerModel:
        """Voltage curve and base as `model.device.power` has them."""
        p = self.parameters
        return voltage_model(
            p["knee"] * self.reference_Hz, p["slope"], self.reference_Hz, base_W=p["base_W"], active_W=p["active_W"]
        )

    def predict(self, rows: CapRows) -> tuple[FloatArray, FloatArray]:
        """Time, s, and mean power, W, of rows; their own are not looked at."""
        p, model, code = self.parameters, self.power(), self.code[rows.code_N]
        work_s, waiting = np.exp(code[:, 0]), code[:, 1]
        memory_N1, dynamic_N1 = code[:, 2, None], np.exp(code[:, 3, None])
        dynamic_W_NJ = dynamic_N1 * np.maximum(_LEAST_LEVEL, 1 + code[:, 4, None] * _STRETCHES)

        def tau(clock_Hz: FloatArray, memory: FloatArray) -> FloatArray:
            return memory + (1 - memory) * self.reference_Hz / clock_Hz

        def draw_W(clock_Hz: FloatArray, memory: FloatArray, dynamic_W: FloatArray) -> FloatArray:
            v, relative = model.voltage2(clock_Hz), clock_Hz / self.reference_Hz
            energy = (1 - p["memory_energy"]) * v + p["memory_energy"]
            clocks = v * relative * (p["clocked_W"] + p["active_W"])
            return np.asarray(p["base_W"] + clocks + dynamic_W * energy / tau(clock_Hz, memory))

        clock_Hz_K = np.linspace(self.lowest_Hz, self.reference_Hz, _CLOCKS)
        grid_W = draw_W(clock_Hz_K, memory_N1[:, :, None], dynamic_W_NJ[:, :, None]).reshape(-1, _CLOCKS)
        limit_W = np.repeat(p["sustained_share"] * rows.cap_W, len(_STRETCHES))
        held_Hz = crossing(np.maximum.accumulate(grid_W, axis=1), clock_Hz_K, limit_W).reshape(dynamic_W_NJ.shape)
        clock_Hz_NJ = np.minimum(held_Hz, rows.clock_Hz[:, None])
        tau_NJ = tau(clock_Hz_NJ, memory_N1)
        idle_W = p["base_W"] + p["clocked_W"]
        relative = tau_NJ.mean(axis=1) + waiting
        energy = (tau_NJ * draw_W(clock_Hz_NJ, memory_N1, dynamic_W_NJ)).mean(axis=1) + waiting * idle_W
        return work_s * relative, energy / relative


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """Least squares over x: the GPU's parameters, then each program's in turn."""

    rows: CapRows
    codes: int
    lowest_Hz: float
    reference_Hz: float

    def model(self, x: FloatArray) -> CapModel:
        return CapModel(
            gpu=x[:_G], code=x[_G:].reshape(-1, _C), lowest_Hz=self.lowest_Hz, reference_Hz=self.reference_Hz
        )

    def expected(self) -> FloatArray:
        """Means of the priors, a program's time and power from its own rows."""
        code = np.tile([r.mean for r in CODE_PARAMETERS.values()], (self.codes, 1))
        beside_W = GPU_PARAMETERS["base_W"].mean + GPU_PARAMETERS["active_W"].mean
        for index in range(self.codes):
            own = take_rows(self.rows, self.rows.code_N == index)
            code[index, 0] = np.log(0.9 * own.time_s.min())  # less the tenth that the prior lets it wait
            code[index, 3] = np.log(max(own.power_W.max() - beside_W, 10.0))
        return np.concatenate([[r.mean for r in GPU_PARAMETERS.values()], code.ravel()])

    def all(self, field: str) -> FloatArray:
        """A field of every parameter's range."""
        gpu, code = ([getattr(r, field) for r in table.values()] for table in (GPU_PARAMETERS, CODE_PARAMETERS))
        return np.concatenate([gpu, np.tile(code, self.codes)]).astype(np.float64)

    def errors(self, x: FloatArray) -> FloatArray:
        """Of time, then of power, in units of the reading's."""
        time_s, power_W = self.model(x).predict(self.rows)
        return np.asarray(np.log(np.concatenate([time_s / self.rows.time_s, power_W / self.rows.power_W])) / _ERROR)

    def slopes(self, x: FloatArray) -> FloatArray:
        """Derivatives of `errors`. A row depends on its own program alone, so one step serves all programs."""
        count, step = len(self.rows.time_s), 1e-5
        here, row = self.errors(x), np.arange(count)
        out = np.zeros((2 * count, len(x)))
        for index in range(_G):
            size = step * max(1.0, abs(float(x[index])))
            out[:, index] = (self.errors(x + size * (np.arange(len(x)) == index)) - here) / size
        for index in range(_C):
            moved = np.zeros(len(x))
            moved[_G + index :: _C] = step
            slope = (self.errors(x + moved) - here) / step
            column = _G + _C * self.rows.code_N + index
            out[row, column], out[count + row, column] = slope[:count], slope[count:]
        return out


def fit_caps(rows: CapRows, codes: int, lowest_Hz: float, reference_Hz: float) -> CapModel:
    """The model of `codes` programs, each with at least one row, on one GPU."""
    problem = _Problem(rows=rows, codes=codes, lowest_Hz=lowest_Hz, reference_Hz=reference_Hz)
    mean, deviation, low, high = (problem.expected(), *(problem.all(f) for f in ("deviation", "low", "high")))

    def misses(x: FloatArray) -> FloatArray:
        return np.concatenate([problem.errors(x), (x - mean) / deviation])

    def slopes(x: FloatArray) -> FloatArray:
        return np.vstack([problem.slopes(x), np.diag(1 / deviation)])

    start = np.clip(mean, low + 1e-6, high - 1e-6)
    best = minimise(
        misses, start, low=low, high=high, loss="soft_l1", slopes=slopes, size=deviation, evaluations=_MOST_STEPS
    )
    return problem.model(best)
