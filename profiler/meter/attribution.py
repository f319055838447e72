"""Mean power of phases that are far shorter than the energy counter's tick.

The counter ticks every 100 ms; a forward pass takes 15. So the phases are timed exactly, energy is counted over many
ticks, and every interval between two counter edges i is one equation:

    E_i = sum over phases p of T_ip P_p + error

    E_i   energy counted in interval i, J
    T_ip  time that phase p ran in interval i, s; what no phase covers is a phase of its own, `OUTSIDE`
    P_p   mean power of phase p, W, not negative

solved by non-negative least squares. An edge that is seen late gives one interval what its neighbour lacks, so errors
of neighbours are anti-correlated. Their covariance is taken as tridiagonal (edge times, and variation of power itself),
its two figures from the residuals, and the equations are weighted by it. The counter may lag behind the work: the
constant lag that leaves the least residual is fitted too, and its uncertainty is in the standard errors. Steps that all
take the same mix say little of the lag, and one that is wrong by 20 ms gives a phase's energy to the next; so what it
was on the GPUs where it was measured counts as an observation of it (`_LAG_KNOWN_S`).

A call of a phase that takes longer than others, since the host was late, does no more work in that time. So where the
calls of a phase differ in length, another column takes what is beyond the mean call:

    E_i = sum over phases p of T_ip P_p - (T_ip - n_ip T_p) D_p + error

    n_ip  calls of p in interval i, one that reaches into it as the part of its time that does
    T_p   mean length of a call, s
    D_p   how much less power the device draws in what calls take beyond the mean, W; of any sign, not reported

Over a session T_ip - n_ip T_p comes to nothing, so that P_p remains the mean power of the phase.

Standard errors are those of the active set: of the phases whose power came out above zero, as if it had been known
beforehand that the others draw nothing. They say how far noise moves the result. Not in them: power that depends on
which phases are neighbours, or a counter that samples instead of integrating (see `window_s`); the residual tells.

Phases that come in the same mix in every interval cannot be told apart by any method. They are reported together, with
their mean power.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import cholesky_banded, solve_banded
from scipy.optimize import minimize_scalar, nnls

from moemodel.model.core.arrays import BoolArray, FloatArray
from moemodel.model.core.errors import DeviceError, InputError
from moemodel.profiler.instruments.counter_edges import CounterEdges, regular_times
from moemodel.profiler.instruments.counter_reading import WIDEST_EDGE_S, most_rise_J

# Axes: E edges, I intervals between them (E - 1), P columns: phases, or groups of them.
Groups: TypeAlias = list[tuple[int, ...]]

OUTSIDE = "outside phases"
STUCK_S = 1.0  # a counter that ticks every 100 ms and has not changed for so long is stuck
# In which the counter's lag is sought, in steps and then to 20 us: an H100's is 6 ms (the recording in bench/measured).
_LAG_RANGE_S = (-0.005, 0.040)
_LAG_STEP_S = 0.0025
# The lag and its standard error before anything is fitted: phases of random length in random order, for which alone the
# lag is told well, put it at 5.7 ms on an H100 and at 6.5 ms on an H200 (bench/measured/*-attribution.jsonl); the error
# is assumed, twice their distance, rounded up.
_LAG_KNOWN_S = (0.006, 0.002)
_STEADY = 0.01  # assumed: calls whose lengths deviate by less from their mean are all alike
_SAME_MIX = 0.99  # cosine of two columns of T: the mix varies by less than about 10 %
_NEGLIGIBLE = 1e-4  # share of the time under which what no phase covers is no phase
_LARGE_RESIDUAL = 0.05  # assumed, of an interval's energy: from there on a note warns (docs/meter.md)
_NOISE_MARGIN = 5.0  # then noise pulls a power by at most 4 % of its distance from the neighbours'
_MOST_LONGER = 1000.0  # assumed: nobody runs so many times as long for the power of a phase
_LONGER_MARGIN = 1.3  # assumed: what a standard error of few intervals is uncertain by
_LEAST_NOISE = 1e-4  # of an interval's energy: the counter's own resolution
_FEWEST = 8  # edges for a line through them, and intervals for a fit: with fewer, both follow the noise


@dataclass(frozen=True, kw_only=True)
class PhasePower:
    """Mean power of one phase, or of several that cannot be told apart.

    Attributes:
        phases: one name, or those of a group.
        time_share: of the time attributed.
        power_W: None where it cannot be told.
        standard_error_W: from the active set; None where there is no power, or where it is at its bound of 0 W.
    """

    phases: tuple[str, ...]
    time_share: float
    power_W: float | None
    standard_error_W: float | None


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """Mean power by phase, and how far to trust it.

    Attributes:
        groups: phases, the longest first; those that come in the same mix are one entry.
        intervals: between counter edges: the number of equations.
        duration_s: time they cover.
        energy_J: counted in that time.
        lag_s: how far the counter lags behind the work, fitted.
        residual_share: root mean square of what the phases leave unexplained, of an interval's mean energy.
        notes: what could not be told, and why.
    """

    groups: tuple[PhasePower, ...]
    intervals: int
    duration_s: float
    energy_J: float
    lag_s: float
    residual_share: float
    notes: tuple[str, ...]

    def of(self, phase: str) -> PhasePower:
        """A phase's power, on its own.

        Raises:
            InputError: there is no such phase, or its power cannot be told from others'.
        """
        for group in self.groups:
            if phase not in group.phases:
                continue
            if len(group.phases) > 1:
                raise InputError(_same_mix(group))
            if group.power_W is None:
                raise InputError(_too_short(group))
            return group
        names = ", ".join(name for group in self.groups for name in group.phases)
        raise InputError(f"phase {phase!r}: not among those measured: {names}")


def check_counter(
    edges: CounterEdges,
    start_s: float,
    end_s: float,
    stuck_s: float = STUCK_S,
    *,
    asked_s: float | None = None,
    most_W: float = math.inf,
) -> None:
    """Check that the counter rose, by no more than can be, and went on rising, from `start_s` to `end_s`.

    Args:
        edges: of the counter.
        start_s: from when on it must rise.
        end_s: its last reading.
        stuck_s: for so long it may stay the same, or not answer.
        asked_s: when it was asked last; None: `end_s`.
        most_W: mean power between two edges that no device like this can have.

    Raises:
        DeviceError: it ran backwards, jumped, stuck or fell silent; the message says which readings to trust.
    """
    step_J = np.diff(edges.energy_J)
    longest_s = np.diff(edges.time_s) + (edges.width_s[1:] + edges.width_s[:-1]) / 2
    wrong = (step_J < 0) | (step_J > most_rise_J(most_W, longest_s))
    if wrong.any():
        at = int(np.argmax(wrong))
        good_J, good_s = edges.energy_J[at] - edges.energy_J[0], edges.time_s[at] - edges.time_s[0]
        what = (
            f"ran backwards, by {-step_J[at]:.1f} J"
            if step_J[at] < 0
            else f"jumped by {step_J[at]:.1f} J in {longest_s[at]:.2f} s, more than this device can use"
        )
        raise DeviceError(
            f"the energy counter {what}, {edges.time_s[at + 1] - start_s:.1f} s into the session (a reset, or a reload "
            f"of the driver). Trust the {good_J:.1f} J of the {good_s:.1f} s before that, the phase times and the "
            "power readings; no energy across it"
        )
    silent_s = 0.0 if asked_s is None else asked_s - end_s
    if silent_s > stuck_s:
        raise DeviceError(
            f"the energy counter did not answer for {silent_s:.1f} s, from {end_s - start_s:.1f} s into the session "
            "(is the GPU lost? see nvidia-smi). Trust the phase times and the power readings; no energy in that time"
        )
    # Between readings that found no change: how long nobody looked says nothing about the counter.
    inside = (edges.time_s >= start_s) & (edges.time_s <= end_s)
    half_s = edges.width_s[inside] / 2
    since_s = np.concatenate(([start_s], edges.time_s[inside] + half_s))
    still_s = np.concatenate((edges.time_s[inside] - half_s, [end_s])) - since_s
    if still_s.max() > stuck_s:
        raise DeviceError(
            f"the energy counter did not change for {still_s.max():.1f} s, from "
            f"{since_s[int(still_s.argmax())] - start_s:.1f} s into the session (on a GPU that works it ticks every "
            "0.1 s). Trust the phase times and the power readings; not energies from the counter in that time"
        )


def attribute(
    spans: Mapping[str, ArrayLike],
    edges: CounterEdges,
    *,
    window_s: float | None = None,
    max_error: float = 0.15,  # assumed: a power less well known is no finding
    timing_noise_s: float = 5e-5,  # assumed: several times what a CUDA event is known to; the meter gives its own
) -> Attribution:
    """Mean power of each phase from counter edges.

    Args:
        spans: phase -> its (start, end) in seconds, shape (n, 2), on the clock of the edges. Phases may not overlap.
        edges: of the counter, in order of time.
        window_s: None for a counter that integrates. For one that samples: each interval's energy is its length times
            the mean power over the last `window_s` before its end.
        max_error: a phase whose standard error is above this share of the mean power is not told apart.
        timing_noise_s: how exactly starts and ends are known. Noise in them pulls a phase's power towards that of its
            neighbours; the pull that this much noise would have is part of the standard errors. A phase whose time,
            given the others', varies by less than five times this noise is not told apart.

    Raises:
        InputError: too few intervals for so many phases, or phases overlap.
        DeviceError: the counter ran backwards.
    """
    equations = _Equations(spans, edges, window_s)
    fit = _Fit(equations, [(column,) for column in equations.kept()])
    while True:
        uncertain, too_even = _uncertainty(equations, fit, max_error, timing_noise_s)
        unresolved = (uncertain > 1) | too_even
        pair = _same_mix_pair(fit, unresolved)
        if pair is None:
            break
        fit = _Fit(equations, _merged(fit.groups, pair))
    longer_P = np.where(too_even, np.inf, uncertain**2)
    return _report(equations, fit, ~unresolved, fit.pull_W_P(timing_noise_s), longer_P)


# --- equations -------------------------------------------------------------------------------------------------------


class _Equations:
    """One for each interval between usable edges."""

    def __init__(self, spans: Mapping[str, ArrayLike], edges: CounterEdges, window_s: float | None) -> None:
        arrays = {name: _sorted(name, span) for name, span in spans.items() if np.size(span)}
        if not arrays:
            raise InputError("no phase was measured: power cannot be attributed")
        self.names = (*arrays, OUTSIDE)
        self._window_s = window_s
        origin_s = min(float(span[0, 0]) for span in arrays.values())
        end_s = max(float(span[-1, 1]) for span in arrays.values()) - origin_s
        counts = [len(span) for span in arrays.values()]
        self.spans_P = np.array([*counts, max(counts)])
        self._counts = counts
        self._cumulative = [_cumulative(span - origin_s) for span in arrays.values()]
        self._even = [
            _even(known) if _varies(span) else None
            for known, span in zip(self._cumulative, arrays.values(), strict=True)
        ]
        _check_no_overlap(arrays)

        usable = edges.width_s <= WIDEST_EDGE_S
        time_s = regular_times(edges.time_s[usable] - origin_s, edges.width_s[usable])
        energy_J = edges.energy_J[usable]
        # Only where the phases are known, whatever the lag.
        known = (time_s >= _LAG_RANGE_S[1] + (window_s or 0.0)) & (time_s <= end_s + _LAG_RANGE_S[0])
        self._edge_s, energy_J = time_s[known], energy_J[known]
        self.energy_J_I = np.diff(energy_J)
        if (self.energy_J_I < 0).any():
            check_counter(edges, float(edges.time_s[0]), float(edges.time_s[-1]), np.inf)
        needed = max(_FEWEST, 3 * len(self.names))
        if len(self.energy_J_I) < needed:
            raise InputError(
                f"{len(self.energy_J_I)} intervals between counter edges are too few for {len(arrays)} phases: "
                f"{needed} are needed, better 300; the counter ticks every 0.1 s, so run for 30 s"
            )

    @property
    def noise_PP(self) -> FloatArray:
        """Covariance of an interval's times of phases, in units of the timing noise squared.

        Each start and end that is wrong gives to its phase what it takes from the time outside.
        """
        own = 2 * np.array(self._counts, dtype=float) / len(self.energy_J_I)
        return np.block([[np.diag(own), -own[:, None]], [-own[None, :], own.sum()[None, None]]])

    @property
    def duration_s(self) -> float:
        return float(self._edge_s[-1] - self._edge_s[0])

    def time_s_IP(self, lag_s: float) -> FloatArray:
        """Time of each phase, the last column of none, in each interval, the counter lagging by `lag_s`."""
        columns = [self._passed_s(known, lag_s) for known in self._cumulative]
        outside_s = np.maximum(np.diff(self._edge_s) - np.sum(columns, axis=0), 0.0)
        return np.column_stack([*columns, outside_s])

    def beyond_s_ID(self, lag_s: float) -> FloatArray:
        """What calls took beyond the mean call of their phase, of phases whose calls differ."""
        columns = [
            self._passed_s(known, lag_s) - self._passed_s(even, lag_s)
            for known, even in zip(self._cumulative, self._even, strict=True)
            if even is not None
        ]
        return np.column_stack(columns) if columns else np.zeros((len(self.energy_J_I), 0))

    def _passed_s(self, known: tuple[FloatArray, FloatArray], lag_s: float) -> FloatArray:
        """What has passed in each interval, of what is known up to some instants."""
        at_s = self._edge_s - lag_s
        if self._window_s is None:
            return np.diff(np.interp(at_s, *known))
        passed_s = np.interp(at_s[1:], *known) - np.interp(at_s[1:] - self._window_s, *known)
        return np.asarray(passed_s * np.diff(at_s) / self._window_s)

    def kept(self) -> list[int]:
        """Columns that took any time."""
        share = self.time_s_IP(0.0).sum(axis=0) / self.duration_s
        return [column for column in range(len(self.names)) if share[column] > _NEGLIGIBLE]


def _sorted(name: str, span: ArrayLike) -> FloatArray:
    array = np.asarray(span, dtype=float).reshape(-1, 2)
    if (array[:, 1] < array[:, 0]).any():
        raise InputError(f"phase {name!r}: a span ends before it starts")
    return array[np.argsort(array[:, 0], kind="stable")]


def _check_no_overlap(arrays: Mapping[str, FloatArray]) -> None:
    """Raises InputError where two spans overlap by more than rounding and timing noise."""
    together = np.concatenate(list(arrays.values()))
    names = np.repeat(list(arrays), [len(span) for span in arrays.values()])
    order = np.argsort(together[:, 0], kind="stable")
    over_s = together[order[:-1], 1] - together[order[1:], 0]
    allowed_s = 0.001 + 0.02 * (together[:, 1] - together[:, 0]).mean()  # assumed: 1 ms, and 2 % of a span
    if len(over_s) and over_s.max() > allowed_s:
        at = int(over_s.argmax())
        raise InputError(
            f"phases '{names[order[at]]}' and '{names[order[at + 1]]}' overlap by {over_s[at] * 1e3:.2f} ms: "
            "energy can be attributed to one phase at a time only"
        )


def _varies(span: FloatArray) -> bool:
    """Whether calls differ in length, and are enough to say by what."""
    lengths_s = span[:, 1] - span[:, 0]
    return len(span) >= _FEWEST and float(np.std(lengths_s)) > _STEADY * float(np.mean(lengths_s))


def _even(known: tuple[FloatArray, FloatArray]) -> tuple[FloatArray, FloatArray]:
    """The same instants, and the time that a phase would have run up to each if its calls were all as long."""
    instants_s, passed_s = known
    calls = np.repeat(np.arange(len(instants_s) // 2 + 1), 2)[1:-1]
    return instants_s, calls * float(passed_s[-1]) / (len(instants_s) // 2)


def _cumulative(span: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Instants, and the time that a phase has run up to each."""
    passed_s = np.cumsum(span[:, 1] - span[:, 0])
    before_s = np.concatenate(([0.0], passed_s[:-1]))
    return np.maximum.accumulate(span.ravel()), np.column_stack((before_s, passed_s)).ravel()


# --- fit -------------------------------------------------------------------------------------------------------------


class _Fit:
    """Powers of groups of columns: least squares, weighted, with the lag."""

    def __init__(self, equations: _Equations, groups: Groups) -> None:
        self._equations, self.groups = equations, groups
        energy_J = equations.energy_J_I
        self._freedom = max(len(energy_J) - len(groups) - 1 - equations.beyond_s_ID(0.0).shape[1], 1)
        rough_s = self._rough_lag_s()
        whiten = _whitener(self._solved(rough_s, _as_it_is)[2])
        self.lag_s = self._exact_lag_s(rough_s, whiten)
        self.time_s_IP = self.columns(self.lag_s)
        self.power_W_P, self._white, residual = self._solved(self.lag_s, whiten)
        floor = _LEAST_NOISE * float(np.linalg.norm(whiten(np.full_like(energy_J, energy_J.mean())))) / len(energy_J)
        self._variance = max(float(np.sum(residual**2)) / self._freedom, floor**2)
        self.residual_J_I = self._unexplained_J_I()
        self._lag_column = self._apart(whiten(self._slope(_LAG_STEP_S / 5)), self.lag_s, whiten)
        signs = np.where(np.random.default_rng(0).random(len(energy_J)) < 0.5, -1.0, 1.0)
        self._weight = float(np.sum(whiten(signs) ** 2))  # trace of the weights: Hutchinson's estimate

    def columns(self, lag_s: float) -> FloatArray:
        time_s_IP = self._equations.time_s_IP(lag_s)
        return np.column_stack([time_s_IP[:, list(group)].sum(axis=1) for group in self.groups])

    def _rough_lag_s(self) -> float:
        low_s, high_s = _LAG_RANGE_S
        grid_s = np.arange(low_s, high_s + _LAG_STEP_S / 2, _LAG_STEP_S)
        missed = np.array([self._miss(lag_s, _as_it_is) for lag_s in grid_s])
        return float(grid_s[int(np.argmin(missed + missed.min() / self._freedom * _unlikely(grid_s)))])

    def _exact_lag_s(self, rough_s: float, whiten: Callable[[FloatArray], FloatArray]) -> float:
        variance = self._miss(rough_s, whiten) / self._freedom
        found = minimize_scalar(
            lambda lag_s: self._miss(lag_s, whiten) + variance * _unlikely(lag_s),
            bounds=(max(_LAG_RANGE_S[0], rough_s - _LAG_STEP_S), min(_LAG_RANGE_S[1], rough_s + _LAG_STEP_S)),
            method="bounded",
            options={"xatol": 2e-5, "maxiter": 40},
        )
        return float(found.x)

    def _miss(self, lag_s: float, whiten: Callable[[FloatArray], FloatArray]) -> float:
        return float(np.sum(self._solved(lag_s, whiten)[2] ** 2))

    def _solved(
        self, lag_s: float, whiten: Callable[[FloatArray], FloatArray]
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Powers of groups at a lag; columns, and what is not explained, both weighted, without what calls beyond the
        mean explain."""
        white = self._apart(whiten(self.columns(lag_s)), lag_s, whiten)
        target = self._apart(whiten(self._equations.energy_J_I), lag_s, whiten)
        power_W_P = _solve(white, target)
        return power_W_P, white, target - white @ power_W_P

    def _apart(self, white: FloatArray, lag_s: float, whiten: Callable[[FloatArray], FloatArray]) -> FloatArray:
        """Of weighted columns, what is at right angles to the time that calls take beyond the mean."""
        beyond = self._equations.beyond_s_ID(lag_s)
        if not beyond.shape[1]:
            return white
        basis = np.linalg.qr(whiten(beyond))[0]
        return np.asarray(white - basis @ (basis.T @ white))

    def _unexplained_J_I(self) -> FloatArray:
        """Of the energy of each interval."""
        left_J = self._equations.energy_J_I - self.time_s_IP @ self.power_W_P
        return self._apart(left_J, self.lag_s, _as_it_is)

    def _slope(self, step_s: float) -> FloatArray:
        """What the lag changes in the energy of an interval, W."""
        later, earlier = self.columns(self.lag_s + step_s), self.columns(self.lag_s - step_s)
        return np.asarray((later - earlier) @ self.power_W_P / (2 * step_s))

    def error_W_P(self, *, active_only: bool) -> FloatArray:
        """Standard errors: of all columns, or of those above zero, the others NaN."""
        active = self.power_W_P > 0 if active_only else np.ones(len(self.groups), dtype=bool)
        error_W = np.full(len(self.groups), np.nan)
        if active.any():
            jacobian = np.column_stack((self._white[:, active], self._lag_column))
            known = np.zeros(jacobian.shape[1])
            known[-1] = math.sqrt(self._variance) / _LAG_KNOWN_S[1]  # the lag that others had is one more equation
            error_W[active] = np.sqrt(self._variance * _inverse_diagonal(np.vstack((jacobian, known)))[:-1])
        return error_W

    def pull_W_P(self, timing_noise_s: float) -> FloatArray:
        """How far noise in starts and ends would have pulled each power: (A'A)^-1 S P, S the noise's part of A'A."""
        noise_s2_PP = self._equations.noise_PP * timing_noise_s**2
        member = np.zeros((len(noise_s2_PP), len(self.groups)))
        for column, group in enumerate(self.groups):
            member[list(group), column] = 1.0
        shift = self._weight * (member.T @ noise_s2_PP @ member) @ self.power_W_P
        return np.asarray(np.abs(np.linalg.lstsq(self._white.T @ self._white, shift, rcond=1e-12)[0]))


def _unlikely(lag_s: FloatArray | float) -> Any:
    """Squared distance of a lag from those that were measured, in standard errors."""
    known_s, error_s = _LAG_KNOWN_S
    return ((lag_s - known_s) / error_s) ** 2


def _solve(white: FloatArray, target: FloatArray) -> FloatArray:
    """Non-negative least squares, by way of a small triangular system."""
    q, r = np.linalg.qr(white)
    return np.asarray(nnls(r, q.T @ target)[0])


def _inverse_diagonal(jacobian: FloatArray) -> FloatArray:
    """Diagonal of (J'J)^-1, very large where it is singular."""
    norm = np.linalg.norm(jacobian, axis=0)
    scale = np.where(norm > 0, norm, 1.0)
    _, singular, rows = np.linalg.svd(jacobian / scale, full_matrices=False)
    singular = np.maximum(singular, 1e-9 * singular[0])
    return np.asarray(np.sum((rows / singular[:, None]) ** 2, axis=0) / scale**2)


def _as_it_is(values: FloatArray) -> FloatArray:
    return values


def _whitener(residual_J: FloatArray) -> Callable[[FloatArray], FloatArray]:
    """What makes errors with the residuals' tridiagonal covariance independent, each of about variance one.

    Late edges: variance 2s, covariance of neighbours -s. Power that varies by itself: variance v, no covariance. Some
    of v is always assumed: without it, a slow drift would count as knowledge.
    """
    own = float(np.mean(residual_J**2))
    if own <= 0 or not np.isfinite(own):
        return _as_it_is
    edge = min(max(-float(np.mean(residual_J[1:] * residual_J[:-1])), 0.0), own / 2)
    varying = max(own - 2 * edge, 0.1 * own)  # assumed: a tenth at least
    bands = np.zeros((2, len(residual_J)))
    bands[0] = 2 * edge + varying
    bands[1, :-1] = -edge
    lower = cholesky_banded(bands, lower=True)
    return lambda values: np.asarray(solve_banded((1, 0), lower, values))


# --- what can be told ------------------------------------------------------------------------------------------------


def _uncertainty(
    equations: _Equations, fit: _Fit, max_error: float, timing_noise_s: float
) -> tuple[FloatArray, BoolArray]:
    """Of each group its standard error over the largest that is told, and whether it hardly varies beyond the noise.

    The error falls with the square root of the time; what hardly varies can't be told however long the run is.
    """
    limit_W = max_error * float(equations.energy_J_I.sum()) / equations.duration_s
    error = np.hypot(fit.error_W_P(active_only=False), fit.pull_W_P(timing_noise_s)) / limit_W
    own_s = np.sqrt(1 / _inverse_diagonal(fit.time_s_IP) / len(fit.time_s_IP))  # rms of what the others don't explain
    boundaries = 2 * equations.spans_P[[group[0] for group in fit.groups]] / len(fit.time_s_IP)
    noise_s = timing_noise_s * np.sqrt(np.maximum(boundaries, 1.0))
    return np.asarray(error), np.asarray(own_s < _NOISE_MARGIN * noise_s)


def _same_mix_pair(fit: _Fit, unresolved: BoolArray) -> tuple[int, int] | None:
    """Two groups of nearly the same mix everywhere, at least one of which is not resolved; the most alike."""
    unit = fit.time_s_IP / np.linalg.norm(fit.time_s_IP, axis=0)
    alike = unit.T @ unit
    pairs = [
        (a, b)
        for a, b in combinations(range(len(unresolved)), 2)
        if (unresolved[a] or unresolved[b]) and alike[a, b] > _SAME_MIX
    ]
    return max(pairs, key=lambda pair: float(alike[pair]), default=None)


def _merged(groups: Groups, pair: tuple[int, int]) -> Groups:
    a, b = pair
    return [*(group for i, group in enumerate(groups) if i not in pair), groups[a] + groups[b]]


def _report(
    equations: _Equations, fit: _Fit, resolved: BoolArray, pull_W_P: FloatArray, longer_P: FloatArray
) -> Attribution:
    energy_J = float(equations.energy_J_I.sum())
    error_W = np.hypot(fit.error_W_P(active_only=True), pull_W_P)
    groups = [
        PhasePower(
            phases=tuple(equations.names[column] for column in sorted(group)),
            time_share=float(fit.time_s_IP[:, i].sum()) / equations.duration_s,
            power_W=float(fit.power_W_P[i]) if resolved[i] else None,
            standard_error_W=float(error_W[i]) if resolved[i] and np.isfinite(error_W[i]) else None,
        )
        for i, group in enumerate(fit.groups)
    ]
    times_longer = {group.phases: float(longer) for group, longer in zip(groups, longer_P, strict=True)}
    groups.sort(key=lambda group: -group.time_share)
    notes = [_same_mix(group) for group in groups if len(group.phases) > 1]
    notes += [
        _too_short(group, equations.duration_s, times_longer[group.phases])
        for group in groups
        # assumed: of a fiftieth of the time outside phases nobody asks the power
        if len(group.phases) == 1 and group.power_W is None and not (_is_outside(group) and group.time_share < 0.02)
    ]
    residual_share = float(np.sqrt(np.mean(fit.residual_J_I**2)) / equations.energy_J_I.mean())
    if residual_share > _LARGE_RESIDUAL:
        notes.append(
            f"phases explain an interval's energy only to {residual_share:.1%}: power changed within phases or over "
            "the session, or the counter's edges are known badly; take these powers as means, their errors as too small"
        )
    return Attribution(
        groups=tuple(groups),
        intervals=len(equations.energy_J_I),
        duration_s=equations.duration_s,
        energy_J=energy_J,
        lag_s=fit.lag_s,
        residual_share=residual_share,
        notes=tuple(notes),
    )


def _is_outside(group: PhasePower) -> bool:
    return group.phases == (OUTSIDE,)


def _same_mix(group: PhasePower) -> str:
    mean = "not even that" if group.power_W is None else f"{group.power_W:.0f} W"
    return (
        f"{' and '.join(repr(name) for name in group.phases)} come in the same mix in every counter interval, so that "
        f"their powers cannot be told apart; their mean can: {mean}. Steps whose time does not divide the counter's "
        "tick (another micro-batch or sequence length), or a longer run, would tell them apart"
    )


def _too_short(group: PhasePower, duration_s: float | None = None, times_longer: float = math.inf) -> str:
    """Why a phase's power is not told; `times_longer`: a run of so many times the duration would tell it."""
    what = f"{group.phases[0]!r} takes {group.time_share:.2%} of the time, and "
    if duration_s is not None and times_longer <= _MOST_LONGER:
        needed_s = duration_s * max(times_longer, 1.0) * _LONGER_MARGIN
        return (
            f"{what}its power is not known well enough after {duration_s:.0f} s: run longer, for about "
            f"{needed_s:.0f} s, or join it to a neighbour"
        )
    return (
        f"{what}varies too little from one counter interval to the next to tell its power from the others'; join it to "
        "a neighbour, or vary its length by another micro-batch or sequence length (to run longer helps little)"
    )
