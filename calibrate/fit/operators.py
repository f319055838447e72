"""Fit the time of each operator: the analytic form of `model.device.roofline`, then a Gaussian process over the rest.

Samples are first reduced to one median a shape and sweep. The analytic parameters are fitted by robust least squares
on log time, so that every shape weighs the same; the process is scikit-learn's, written out as numbers. The error that
the calibration carries is of shapes that were held out: five folds by shape, never by sample.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from moemodel.calibration.least_squares import best_of, difference_slopes, minimise, relative_steps, standard_errors
from moemodel.calibration.store.profile_tables import OperatorTable
from moemodel.model.core.arrays import FloatArray, IntArray, take_rows
from moemodel.model.core.errors import ProfileError
from moemodel.model.device.roofline import (
    ALIGNED,
    FEATURES,
    RooflineChip,
    form_of,
    operator_time,
    parts,
    shape_features,
    time_at,
)
from moemodel.model.operators.work import SHAPE_FIELDS, Kind, Pass, Shape, Work, work
from moemodel.model.records.calibration import OperatorFit, Parameter, Residual

_Name = TypeVar("_Name", Kind, Pass)

_FOLDS = 5  # four fifths of the shapes fit nearly as all do; more folds take as many fits more
_EVALUATIONS = 60  # of least squares, from each start: bounds the time of a fit where a parameter says nothing
_OUTLIER = 0.05  # log error beyond which a row counts less (soft L1)
_STEP = 1e-3  # of a coordinate, in differences
_ALONE = ("alignment",)  # parameters that the forms take only one of at a time
_ONE_SHAPE_LOG_ERROR = 0.25  # assumed: how far one shape of an operator tells of another
_FEWEST = 12  # shapes below which no residual process is fitted: it has up to seven parameters of its own
_SHORTEST_S = 1e-7  # shorter readings are below the resolution of device events
_HINDERED = 1.25  # assumed: a sample this much slower than its clock explains waited for the host


@dataclass(frozen=True, kw_only=True)
class BoundedParameter:
    """A parameter to fit: where it starts and how far it may go; positive ones move in their logarithm."""

    start: float
    low: float
    high: float
    unit: str = "1"

    @property
    def logarithmic(self) -> bool:
        """Whether it is fitted in its logarithm."""
        return self.low > 0


# Starts and bounds are assumed; the data move what they tell, and the rest keeps its start or ends at a bound.
_COMMON = {
    "t0": BoundedParameter(start=3e-6, low=2e-7, high=2e-4, unit="s"),
    "t1": BoundedParameter(start=1e-6, low=1e-8, high=2e-4, unit="s"),
    "p": BoundedParameter(start=4.0, low=1.0, high=20.0),
}
_PRODUCT = {
    **_COMMON,
    "alignment": BoundedParameter(start=0.5, low=0.02, high=1.0),
    "quantisation": BoundedParameter(start=0.6, low=0.0, high=1.0),
    "split_depth": BoundedParameter(start=512.0, low=64.0, high=8192.0),
    "split_gain": BoundedParameter(start=0.7, low=0.0, high=1.0),
    "depth0": BoundedParameter(start=64.0, low=1.0, high=2048.0),
    "efficiency_256x128": BoundedParameter(start=0.9, low=0.3, high=1.1),
    "efficiency_128x128": BoundedParameter(start=0.8, low=0.2, high=1.1),
    "efficiency_128x64": BoundedParameter(start=0.6, low=0.1, high=1.0),
    "efficiency_64x64": BoundedParameter(start=0.4, low=0.05, high=0.9),
    "memory_efficiency": BoundedParameter(start=0.8, low=0.1, high=3.0),
}
_FORMS: dict[str, dict[str, BoundedParameter]] = {
    "product": _PRODUCT,
    "grouped": _PRODUCT,
    "attention": {
        **_COMMON,
        "quantisation": BoundedParameter(start=0.3, low=0.0, high=1.0),
        "efficiency": BoundedParameter(start=0.7, low=0.05, high=1.5),
        "head_dim0": BoundedParameter(start=16.0, low=0.1, high=512.0),
        "seq0": BoundedParameter(start=128.0, low=0.1, high=8192.0),
        "memory_efficiency": BoundedParameter(start=0.8, low=0.05, high=3.0),
    },
    "stream": {
        **_COMMON,
        "memory_efficiency": BoundedParameter(start=0.7, low=0.02, high=1.2),
        "cache_efficiency": BoundedParameter(start=1.5, low=0.02, high=6.0),
        "cache_size": BoundedParameter(start=0.6, low=0.05, high=4.0),
        "issue_efficiency": BoundedParameter(start=0.5, low=1e-4, high=50.0),
    },
}


# What a product keeps of its rate when its rows don't begin at 16 bytes, where a profile has no such product: the
# geometric mean of two, with an error that reaches either.
_UNMEASURED_ALIGNMENT = Parameter.assumed(
    0.28,
    "1",
    "between 0.43 (fitted to public A100 iteration times) and 0.18 (one measured H100 step of GPT-3, vocabulary "
    "50257); profile products of such shapes to know",
    0.45,
)


@dataclass(frozen=True, kw_only=True)
class Observations:
    """Times of one operator and pass. N rows, one a shape and sweep; `group` numbers the shapes."""

    kind: Kind
    direction: Pass
    shape: Shape
    clock_Hz: FloatArray
    time_s: FloatArray
    group: IntArray

    def __len__(self) -> int:
        return int(self.time_s.size)

    @property
    def shapes(self) -> int:
        """How many different shapes there are."""
        return len(np.unique(self.group))


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Errors of shapes that were not fitted: |predicted / measured - 1|."""

    kind: Kind
    direction: Pass
    shapes: int
    median: float
    mean: float
    p90: float
    worst: float


def observations(operators: OperatorTable) -> Iterator[Observations]:
    """Medians of the samples, operator by operator; samples without a clock take the driver's."""
    table = take_rows(operators, operators.time_s > _SHORTEST_S).frame()
    table["clock"] = table["clock_Hz"].fillna(table["clock_reported_Hz"])
    shape = list(SHAPE_FIELDS)
    table = table[_unhindered(table, shape)]
    for (kind, direction), rows in table.groupby(["kind", "direction"], sort=True):
        medians = rows.groupby([*shape, "sweep"], as_index=False)[["time_s", "clock"]].median()
        medians["group"] = medians.groupby(shape).ngroup()
        yield Observations(
            kind=_known(Kind, kind),
            direction=_known(Pass, direction),
            shape=Shape(**{name: medians[name].to_numpy(np.float64) for name in shape}),
            clock_Hz=medians["clock"].to_numpy(np.float64),
            time_s=medians["time_s"].to_numpy(np.float64),
            group=medians["group"].to_numpy(np.int64),
        )


def _free_parameters(data: Observations) -> dict[str, BoundedParameter]:
    """The parameters of an operator's form that its data can say something about."""
    free = _FORMS[form_of(data.kind)]
    if "alignment" not in free:
        return free
    n, k = np.asarray(data.shape.n), np.asarray(data.shape.k)
    odd = bool(((n % ALIGNED != 0) | (k % ALIGNED != 0)).any())
    return {name: parameter for name, parameter in free.items() if odd or name != "alignment"}


def _known(names: type[_Name], found: object) -> _Name:
    """A member of the vocabulary.

    Raises:
        ProfileError: it has no such name.
    """
    try:
        return names(str(found))
    except ValueError:
        raise ProfileError(
            f"table operators: found {names.__name__.lower()} {found}; allowed: {', '.join(sorted(names))}"
        ) from None


def _unhindered(table: pd.DataFrame, shape: list[str]) -> pd.Series:
    """Samples in which the device did not wait for the host.

    An operator slows down by no more than its clock did. A sample that is slower than that, measured from the fastest
    of its shape and the highest clock seen there, contains a pause of the host in queueing it.
    """
    samples = table.groupby(["kind", "direction", *shape])
    fastest_s, highest_Hz = samples["time_s"].transform("min"), samples["clock"].transform("max")
    slowdown = (highest_Hz / table["clock"]).clip(lower=1.0).fillna(1.0)
    return table["time_s"] <= _HINDERED * fastest_s * slowdown


def fit_operator(data: Observations, chip: RooflineChip, source: str) -> tuple[OperatorFit, HeldOut]:
    """Fit one operator and measure its error on held-out shapes.

    Args:
        data: its times.
        chip: what the forms refer to.
        source: where the times come from, for the calibration.
    """
    data = _with_clock(data, chip)
    p, known = _analytic(data, chip), data.shapes > 1
    errors = _held_out(data, chip) if known else _log_ratio(p, data, chip)  # a lone shape's, from its own
    fit = _fit(data, chip, p, source, log_error=_spread(errors) if known else _ONE_SHAPE_LOG_ERROR)
    return fit, _summary(data, errors)


def held_out_error(data: Observations, chip: RooflineChip) -> HeldOut:
    """The error of an operator on held-out shapes alone, as `fit_operator` measures it."""
    data = _with_clock(data, chip)
    lone = data.shapes == 1
    return _summary(data, _log_ratio(_analytic(data, chip), data, chip) if lone else _held_out(data, chip))


def _summary(data: Observations, errors: FloatArray) -> HeldOut:
    """Of log(predicted / measured)."""
    absolute = np.abs(np.expm1(errors))
    return HeldOut(
        kind=data.kind,
        direction=data.direction,
        shapes=data.shapes,
        median=float(np.median(absolute)),
        mean=float(absolute.mean()),
        p90=float(np.quantile(absolute, 0.9)),
        worst=float(absolute.max()),
    )


def _with_clock(data: Observations, chip: RooflineChip) -> Observations:
    """Where no clock could be read at all, every sample counts as taken at the reference clock."""
    clock = np.where(np.isnan(data.clock_Hz), chip.clock_Hz, data.clock_Hz)
    return Observations(
        kind=data.kind, direction=data.direction, shape=data.shape, clock_Hz=clock, time_s=data.time_s, group=data.group
    )


def _held_out(data: Observations, chip: RooflineChip) -> FloatArray:
    """log(predicted / measured) of every row, from fits that did not see its shape."""
    fold = np.random.default_rng(0).permutation(data.shapes)[data.group] % min(_FOLDS, data.shapes)
    errors = np.zeros(len(data))
    for index in np.unique(fold):
        seen, unseen = take_rows(data, fold != index), take_rows(data, fold == index)
        fit = _fit(seen, chip, _analytic(seen, chip), "", log_error=0.0)
        errors[fold == index] = _predict_log(fit, unseen, chip) - np.log(unseen.time_s)
    return errors


def _spread(errors: FloatArray) -> float:
    """Standard deviation of held-out errors about zero; a robust one, so that one odd shape doesn't set it."""
    # 1.4826 medians are a standard deviation of normal errors; half the root mean square at least (assumed)
    return float(max(1.4826 * np.median(np.abs(errors)), 0.5 * np.sqrt(np.mean(np.square(errors)))))


def _fit(data: Observations, chip: RooflineChip, p: dict[str, float], source: str, *, log_error: float) -> OperatorFit:
    deviations = _log_ratio(p, data, chip)
    errors = _standard_errors(data, chip, p) if source else {}
    free = _free_parameters(data)
    features = shape_features(data.kind, data.shape)
    names = FEATURES[form_of(data.kind)]
    bounds = {n: (float(2 ** features[:, i].min()), float(2 ** features[:, i].max())) for i, n in enumerate(names)}
    parameters = {
        name: Parameter.measured(value, free[name].unit, source, errors.get(name)) for name, value in p.items()
    }
    if "alignment" in _FORMS[form_of(data.kind)] and "alignment" not in p:
        parameters["alignment"] = _UNMEASURED_ALIGNMENT
    return OperatorFit(
        kind=data.kind,
        direction=data.direction,
        parameters=parameters,
        residual=_residual(features, -deviations, data.group, list(names)),
        log_error=log_error,
        measured=bounds,
        points=data.shapes,
    )


@dataclass(frozen=True, kw_only=True)
class FormErrors:
    """Errors of an operator's analytic form as a function of its free parameters, in coordinates x between `low` and
    `high`. K parameters, N rows, M sets of parameters."""

    data: Observations
    chip: RooflineChip
    free: dict[str, BoundedParameter]
    low: FloatArray
    high: FloatArray
    least: Work  # of a call of each shape, whatever the parameters

    @classmethod
    def of(cls, data: Observations, chip: RooflineChip) -> FormErrors:
        """Those of an operator's observations, in the parameters that they say something about."""
        free = _free_parameters(data)
        low, high = (np.array([_coordinate(f, getattr(f, edge)) for f in free.values()]) for edge in ("low", "high"))
        least = work(data.kind, data.direction, data.shape)
        return cls(data=data, chip=chip, free=free, low=low, high=high, least=least)

    def encode(self, p: dict[str, float]) -> FloatArray:
        """Coordinates of parameters, [K]."""
        return np.array([_coordinate(f, p[name]) for name, f in self.free.items()])

    def decode(self, x: FloatArray) -> dict[str, float]:
        """Parameters at coordinates [K]."""
        return {name: float(column[0, 0]) for name, column in self._columns(x[None, :]).items()}

    def errors(self, x: FloatArray) -> FloatArray:
        """log(analytic / measured) at coordinates [K], of each row [N]."""
        return _log_ratio(self.decode(x), self.data, self.chip, self.least)

    def slopes(self, x: FloatArray) -> FloatArray:
        """Derivatives of the errors, [N, K], by differences that are evaluated all at once."""
        steps = relative_steps(x, _STEP, self.low, self.high)
        errors_MN = self._errors(np.vstack([x, x + np.diag(steps)]))
        return np.asarray(((errors_MN[1:] - errors_MN[0]) / (x + steps - x)[:, None]).T)

    def _errors(self, x_MK: FloatArray) -> FloatArray:
        """Errors at many coordinates, [M, N]."""
        p, data = self._columns(x_MK), self.data
        time_s = time_at(p, *self._parts(x_MK), self.chip.clock_Hz / data.clock_Hz)
        return np.asarray(np.log(time_s) - np.log(data.time_s))

    def _parts(self, x_MK: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Times of SMs and memory at many coordinates, each [M, N]; rows of another `_ALONE` than the first in turn."""
        p, data = self._columns(x_MK), self.data
        alone = {name: float(p[name][0, 0]) for name in _ALONE if name in p}
        both_s = parts(data.kind, data.direction, p | alone, self.chip, data.shape, self.least)
        compute_s, memory_s = (np.array(part_s) for part_s in both_s)
        for row in sorted({int(m) for name in alone for m in np.flatnonzero(p[name][:, 0] != alone[name])}):
            own = self.decode(x_MK[row])
            compute_s[row], memory_s[row] = parts(data.kind, data.direction, own, self.chip, data.shape, self.least)
        return compute_s, memory_s

    def _columns(self, x_MK: FloatArray) -> dict[str, Any]:
        """Parameters at many coordinates, each [M, 1]: the forms take them as they take numbers, but for `_ALONE`."""
        columns = zip(self.free.items(), x_MK.T, strict=True)
        return {name: (np.exp(x) if f.logarithmic else x)[:, None] for (name, f), x in columns}


def _analytic(data: Observations, chip: RooflineChip) -> dict[str, float]:
    """The better of two fits: from parts that hide behind each other (one kernel), and from parts that add up (several
    kernels in a row). Between them lies a barrier that least squares doesn't cross."""
    form = FormErrors.of(data, chip)
    starts = ({name: f.start for name, f in form.free.items()} | {"p": p} for p in (1.05, 4.0))
    fits = [_from(form, start) for start in starts]
    return form.decode(best_of(fits, form.errors, lambda errors: float(np.abs(errors).mean())))


def _from(form: FormErrors, start: dict[str, float]) -> FloatArray:
    """Coordinates of the parameters, by robust least squares on log time from a start."""
    return minimise(
        form.errors,
        form.encode(start),
        low=form.low,
        high=form.high,
        loss="soft_l1",
        scale=_OUTLIER,
        slopes=form.slopes,
        evaluations=_EVALUATIONS,
    )


def _standard_errors(data: Observations, chip: RooflineChip, p: dict[str, float]) -> dict[str, float | None]:
    """Relative standard errors from the curvature at the solution; None where the data don't determine a parameter."""
    form = FormErrors.of(data, chip)
    x = form.encode(p)
    slopes = difference_slopes(form.errors, x, _STEP)
    # The bounds are all that is known of a direction in which the data say nothing.
    variance = float(np.mean(np.square(form.errors(x))))
    errors = standard_errors(slopes, variance=variance, before_K=form.high - form.low)
    out: dict[str, float | None] = {}
    for index, (name, f) in enumerate(form.free.items()):
        error = float(errors[index])
        error = error if f.logarithmic else error / max(abs(p[name]), 1e-9)
        known = np.square(slopes[:, index]).sum() > 1e-8 and error < 1.0
        out[name] = error if known else None
    return out


def _coordinate(free: BoundedParameter, value: float) -> float:
    return float(np.log(value)) if free.logarithmic else value


def _log_ratio(p: dict[str, float], data: Observations, chip: RooflineChip, least: Work | None = None) -> FloatArray:
    """log(analytic / measured); `least` is the work of a call, if it is known."""
    compute_s, memory_s = parts(data.kind, data.direction, p, chip, data.shape, least)
    time_s = time_at(p, compute_s, memory_s, chip.clock_Hz / data.clock_Hz)
    return np.asarray(np.log(time_s) - np.log(data.time_s))


def _predict_log(fit: OperatorFit, data: Observations, chip: RooflineChip) -> FloatArray:
    """log time of each row at its own clock."""
    clocks, inverse = np.unique(data.clock_Hz, return_inverse=True)
    times = operator_time(fit, chip, data.shape, clocks).time_s_UK
    return np.asarray(np.log(times[np.arange(len(data)), inverse]))


def _residual(features: FloatArray, missed: FloatArray, group: IntArray, names: list[str]) -> Residual | None:
    """A Gaussian process over the mean deviation of each shape, or None where there are too few shapes."""
    shapes, first = np.unique(group, return_index=True)
    if len(shapes) < _FEWEST:
        return None
    target = np.array([missed[group == g].mean() for g in shapes])
    points = features[first]
    varies = np.ptp(points, axis=0) > 0
    # starts and bounds assumed: deviations of 10 %, noise of 3 %, over octaves; nu 1/2 is an exponential
    kernel = ConstantKernel(0.01, (1e-5, 1.0)) * Matern(np.ones(varies.sum()), (0.3, 30.0), nu=0.5) + WhiteKernel(
        1e-3, (1e-6, 0.1)
    )
    process = GaussianProcessRegressor(kernel, alpha=1e-8, random_state=0)
    with warnings.catch_warnings():
        # A length or noise at its bound means that the feature or the noise does not matter.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(points[:, varies], target)
    lengths = np.full(len(names), 1e3)  # a feature that never varied says nothing
    lengths[varies] = process.kernel_.k1.k2.length_scale
    return Residual(
        features=names,
        lengths=lengths.tolist(),
        signal=float(np.sqrt(process.kernel_.k1.k1.constant_value)),
        noise=float(np.sqrt(process.kernel_.k2.noise_level)),
        points=points.tolist(),
        weights=np.asarray(process.alpha_).ravel().tolist(),
    )
