"""Fits of operators: a device that obeys the model gets its times back, and errors say what is not known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from moemodel.calibration.fit.operators import FormErrors, Observations, fit_operator, observations
from moemodel.calibration.least_squares import relative_steps
from moemodel.calibration.store.profile_tables import OperatorTable
from moemodel.model.core.arrays import FloatArray
from moemodel.model.device.roofline import PRODUCTS, RooflineChip, operator_time, parts, shape_features, time_at
from moemodel.model.operators.work import Kind, Pass, Shape
from moemodel.model.records.calibration import OperatorFit

Measure = Callable[..., pd.DataFrame]
Observed = Callable[[pd.DataFrame], Observations]

TOP_HZ, HALF_HZ = 1.98e9, 0.99e9
CLOCKS_HZ = (TOP_HZ, 1.5e9, HALF_HZ)
NOISE = 0.01

PRODUCT = {
    "t0": 4e-6,
    "t1": 2e-6,
    "p": 6.0,
    "quantisation": 0.4,
    "split_depth": 1000.0,
    "split_gain": 0.6,
    "depth0": 120.0,
    "efficiency_256x128": 0.82,
    "efficiency_128x128": 0.7,
    "efficiency_128x64": 0.5,
    "efficiency_64x64": 0.35,
    "memory_efficiency": 0.9,
}
ATTENTION = {
    "t0": 7e-6,
    "t1": 2e-6,
    "p": 5.0,
    "quantisation": 0.2,
    "efficiency": 0.6,
    "head_dim0": 30.0,
    "seq0": 300.0,
    "memory_efficiency": 0.7,
}
STREAM = {
    "t0": 2.5e-6,
    "t1": 1.5e-6,
    "p": 3.0,
    "memory_efficiency": 0.85,
    "cache_efficiency": 2.0,
    "cache_size": 0.5,
    "issue_efficiency": 0.15,
}


@dataclass(frozen=True, kw_only=True)
class Device:
    """An operator of a device that obeys the model exactly."""

    kind: Kind
    direction: Pass
    truth: dict[str, float]
    sizes: dict[str, tuple[int, ...]]  # to draw shapes from

    def draw(self, count: int, seed: int) -> Shape:
        """Random shapes."""
        rng = np.random.default_rng(seed)
        return Shape(**{name: rng.choice(values, count).astype(np.float64) for name, values in self.sizes.items()})

    def time_s(self, chip: RooflineChip, shape: Shape, clocks_Hz: tuple[float, ...]) -> FloatArray:
        """True times, [U, K]."""
        compute_s, memory_s = parts(self.kind, self.direction, self.truth, chip, shape)
        slowdown = chip.clock_Hz / np.asarray(clocks_Hz)[None, :]
        return time_at(self.truth, compute_s[:, None], memory_s[:, None], slowdown)


_POWERS = tuple(2**n for n in range(7, 15))
DEVICES = {
    "product": Device(
        kind=Kind.GEMM,
        direction=Pass.FORWARD,
        truth=PRODUCT,
        sizes={"m": (*_POWERS, 1000, 3000), "n": (*_POWERS[2:], 768, 50304), "k": (*_POWERS[2:], 768)},
    ),
    "grouped": Device(
        kind=Kind.GROUPED_GEMM,
        direction=Pass.BACKWARD_WEIGHT,
        truth=PRODUCT,
        sizes={"m": _POWERS[4:], "n": _POWERS[2:6], "k": _POWERS[2:6], "experts": (8, 16, 64)},
    ),
    "attention": Device(
        kind=Kind.ATTENTION,
        direction=Pass.BACKWARD,
        truth=ATTENTION,
        sizes={
            "batch": (1, 2, 4, 8),
            "heads": (8, 16, 32),
            "kv_heads": (4, 8),
            "seq": (512, 1024, 2048, 4096, 8192),
            "head_dim": (64, 128),
        },
    ),
    "stream": Device(
        kind=Kind.GELU, direction=Pass.FORWARD, truth=STREAM, sizes={"m": _POWERS, "n": (*_POWERS[1:6], 768, 3072)}
    ),
}
by_form = pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES.keys())


@pytest.fixture(scope="module")
def fitted(chip: RooflineChip, measure: Measure, observed: Observed) -> Callable[[Device], OperatorFit]:
    """The fit of sixty noisy shapes at three clocks, made once a device."""
    made: dict[Kind, OperatorFit] = {}

    def fit(device: Device) -> OperatorFit:
        if device.kind not in made:
            table = measure(device.kind, device.direction, device.truth, device.draw(60, 1), CLOCKS_HZ, noise=NOISE)
            made[device.kind], _ = fit_operator(observed(table), chip, "made up")
        return made[device.kind]

    return fit


def _predicted_s(fit: OperatorFit, chip: RooflineChip, shape: Shape, clocks_Hz: tuple[float, ...]) -> FloatArray:
    return operator_time(fit, chip, shape, np.asarray(clocks_Hz)).time_s_UK


@by_form
def test_shapes_never_seen_get_their_times(
    device: Device, fitted: Callable[[Device], OperatorFit], chip: RooflineChip
) -> None:
    unseen = device.draw(300, 2)
    clocks = (TOP_HZ, 1.75e9, 1.2e9, HALF_HZ)
    found = _predicted_s(fitted(device), chip, unseen, clocks)
    error = np.abs(found / device.time_s(chip, unseen, clocks) - 1)
    assert np.median(error) < 0.015
    assert np.quantile(error, 0.9) < 0.06


@by_form
def test_half_the_clock_costs_what_it_does(
    device: Device, fitted: Callable[[Device], OperatorFit], chip: RooflineChip
) -> None:
    unseen = device.draw(300, 3)
    clocks = (TOP_HZ, HALF_HZ)
    found, true = _predicted_s(fitted(device), chip, unseen, clocks), device.time_s(chip, unseen, clocks)
    found_ratio, true_ratio = (times[:, 1] / times[:, 0] for times in (found, true))
    assert np.ptp(true_ratio) > 0.3  # the shapes are bound by different things
    assert np.quantile(np.abs(found_ratio / true_ratio - 1), 0.9) < 0.03


@by_form
def test_the_error_it_states_is_that_of_unseen_shapes(
    device: Device, fitted: Callable[[Device], OperatorFit], chip: RooflineChip
) -> None:
    """Noise is 1 %, and three samples a point halve it; what is stated holds two thirds of new shapes."""
    fit, unseen = fitted(device), device.draw(300, 4)
    price = operator_time(fit, chip, unseen, np.array([TOP_HZ]))
    error = np.abs(np.log(price.time_s_UK[:, 0] / device.time_s(chip, unseen, (TOP_HZ,))[:, 0]))
    assert 0.5 * NOISE / np.sqrt(3) < fit.log_error < 0.06
    assert (error < price.log_error_U).mean() > 0.66


def test_samples_that_waited_for_the_host_change_nothing(
    chip: RooflineChip, measure: Measure, observed: Observed
) -> None:
    """Half of the samples at every clock and shape three times slower than their clock explains."""
    device = DEVICES["stream"]
    table = measure(device.kind, device.direction, device.truth, device.draw(15, 1), CLOCKS_HZ, noise=NOISE)
    paused = pd.concat([table, table.assign(time_s=3.0 * table["time_s"])], ignore_index=True)
    plain, hindered = (fit_operator(observed(rows), chip, "made up")[0] for rows in (table, paused))
    assert hindered == plain


def test_a_sample_that_its_clock_explains_stays(measure: Measure, observed: Observed) -> None:
    """Bound by the SMs, a third of the clock is three times slower."""
    device = DEVICES["product"]
    shape = Shape(m=[4096, 8192], n=[4096, 8192], k=[4096, 8192])
    data = observed(measure(device.kind, device.direction, device.truth, shape, (TOP_HZ, TOP_HZ / 3)))
    assert len(data) == 4
    assert data.shapes == 2
    slow, fast = (data.time_s[data.clock_Hz == clock_Hz] for clock_Hz in (TOP_HZ / 3, TOP_HZ))
    assert (slow > 2.5 * fast).all()


def test_samples_become_one_median_a_shape_and_sweep(measure: Measure, observed: Observed) -> None:
    device = DEVICES["stream"]
    table = measure(device.kind, device.direction, device.truth, device.draw(9, 1), (TOP_HZ,), noise=0.02, samples=5)
    shape = table[["m", "n"]].drop_duplicates()
    data = observed(table)
    assert data.shapes == len(data) == len(shape)
    for m, n, time_s in zip(np.asarray(data.shape.m), np.asarray(data.shape.n), data.time_s, strict=True):
        rows = table[(table["m"] == m) & (table["n"] == n)]
        assert time_s == rows["time_s"].median()


def test_readings_too_short_to_be_one_are_left_out(measure: Measure, observed: Observed) -> None:
    device = DEVICES["stream"]
    table = measure(device.kind, device.direction, device.truth, device.draw(4, 1), (TOP_HZ,))
    zero = table.assign(time_s=0.0)
    assert observed(pd.concat([table, zero], ignore_index=True)).time_s == pytest.approx(observed(table).time_s)


def test_the_drivers_clock_stands_in_for_the_true_one(measure: Measure, observed: Observed) -> None:
    device = DEVICES["stream"]
    table = measure(device.kind, device.direction, device.truth, device.draw(3, 1), (HALF_HZ,))
    data = observed(table.assign(clock_Hz=np.nan, clock_reported_Hz=1.2e9))
    assert (data.clock_Hz == 1.2e9).all()


def test_operators_and_passes_are_apart(measure: Measure) -> None:
    device = DEVICES["stream"]
    table = measure(device.kind, device.direction, device.truth, device.draw(3, 1), (TOP_HZ,))
    other = [table.assign(direction="backward"), table.assign(kind="relu")]
    found = [
        (data.kind, data.direction)
        for data in observations(OperatorTable.of(pd.concat([table, *other], ignore_index=True)))
    ]
    assert found == [(Kind.GELU, Pass.BACKWARD), (Kind.GELU, Pass.FORWARD), (Kind.RELU, Pass.FORWARD)]


def test_a_device_without_clocks_is_fitted_at_its_only_one(
    chip: RooflineChip, measure: Measure, observed: Observed
) -> None:
    device = DEVICES["stream"]
    table = measure(device.kind, device.direction, device.truth, device.draw(20, 1), (TOP_HZ,), noise=NOISE)
    blind = table.assign(clock_Hz=np.nan, clock_reported_Hz=np.nan)
    fit, held_out = fit_operator(observed(blind), chip, "made up")
    unseen = device.draw(100, 2)
    error = _predicted_s(fit, chip, unseen, (chip.clock_Hz,)) / device.time_s(chip, unseen, (TOP_HZ,)) - 1
    assert np.median(np.abs(error)) < 0.03
    assert held_out.median < 0.05


def test_rows_that_are_not_whole_pieces_have_a_price(chip: RooflineChip, measure: Measure, observed: Observed) -> None:
    """Products a third as fast where n is odd; where all shapes were whole the price of others is assumed."""
    truth = PRODUCT | {"alignment": 0.35}
    whole = Shape(m=[1024, 2048, 4096, 8192] * 2, n=[4096, 2048, 1024, 2048, 8192, 4096, 2048, 1024], k=4096)
    odd = Shape(m=[2048, 4096, 8192, 4096], n=[4097, 2049, 8191, 3001], k=4096)
    tables = [measure(Kind.GEMM, Pass.FORWARD, truth, shape, CLOCKS_HZ) for shape in (whole, odd)]
    found = [
        fit_operator(observed(table), chip, "made up")[0].parameters["alignment"]
        for table in (pd.concat(tables, ignore_index=True), tables[0])
    ]
    assert found[0].value == pytest.approx(0.35, rel=0.1)
    assert [p.origin for p in found] == ["measured", "assumed"]
    assert 0 < found[1].value <= 1


@by_form
@pytest.mark.parametrize("odd", [False, True], ids=["whole", "odd"])
def test_slopes_taken_at_once_are_those_taken_one_by_one(
    odd: bool, device: Device, chip: RooflineChip, measure: Measure, observed: Observed
) -> None:
    """Of all forms, with shapes that make `alignment` a parameter and without, inside the bounds and at them."""
    shape = device.draw(20, 3)
    shape = replace(shape, n=np.asarray(shape.n) + odd)
    form = FormErrors.of(observed(measure(device.kind, device.direction, device.truth, shape, CLOCKS_HZ)), chip)
    assert ("alignment" in form.free) == (odd and device.kind in PRODUCTS)
    for share in (1e-6, 0.3, 0.6, 1 - 1e-6):
        x = form.low + share * (form.high - form.low)
        moves = np.diag(relative_steps(x, 1e-3, form.low, form.high))
        columns = [(form.errors(x + move) - form.errors(x)) / move.sum() for move in moves]
        assert form.slopes(x) == pytest.approx(np.stack(columns, axis=1), rel=1e-6, abs=1e-9)


# ---- few shapes -----------------------------------------------------------------------------------------------------


@by_form
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_shapes_are_fitted_too(
    count: int, device: Device, chip: RooflineChip, measure: Measure, observed: Observed
) -> None:
    shape = device.draw(count, 5)
    data = observed(measure(device.kind, device.direction, device.truth, shape, (TOP_HZ, HALF_HZ)))
    fit, held_out = fit_operator(data, chip, "made up")
    assert fit.residual is None
    assert fit.points == held_out.shapes == data.shapes
    assert all(np.isfinite([held_out.median, held_out.mean, held_out.p90, held_out.worst, fit.log_error]))
    found = _predicted_s(fit, chip, shape, (TOP_HZ, HALF_HZ))
    assert found == pytest.approx(device.time_s(chip, shape, (TOP_HZ, HALF_HZ)), rel=0.05)


def test_a_shape_held_out_is_not_known(chip: RooflineChip, measure: Measure, observed: Observed) -> None:
    """The errors of two shapes are those of fits that were given the other one only."""
    device = DEVICES["stream"]
    clocks, sizes = (TOP_HZ, HALF_HZ), (256, 32768)
    tables = [measure(device.kind, device.direction, device.truth, Shape(m=m, n=4096), clocks) for m in sizes]
    alone = [fit_operator(observed(table), chip, "made up")[0] for table in tables]
    honest = [
        np.abs(_predicted_s(fit, chip, shape, clocks) / device.time_s(chip, shape, clocks) - 1).max()
        for fit, shape in zip(alone, (Shape(m=m, n=4096) for m in reversed(sizes)), strict=True)
    ]
    _, held_out = fit_operator(observed(pd.concat(tables, ignore_index=True)), chip, "made up")
    assert max(honest) > 0.1
    assert held_out.worst == pytest.approx(max(honest), rel=0.1)


def test_one_shape_leaves_its_error_unknown(chip: RooflineChip, measure: Measure, observed: Observed) -> None:
    """Nothing was held out: an error of nought would be a lie."""
    device = DEVICES["stream"]
    data = observed(measure(device.kind, device.direction, device.truth, Shape(m=4096, n=4096), (TOP_HZ,)))
    fit, _ = fit_operator(data, chip, "made up")
    assert fit.log_error > 0.05


# ---- standard errors ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large_copies(chip: RooflineChip, measure: Measure, observed: Observed) -> OperatorFit:
    """They say how fast memory is, and nothing of caches and SMs."""
    truth = STREAM | {"issue_efficiency": 20.0}
    shape = Shape(m=2.0 ** np.arange(29, 36))
    table = measure(Kind.COPY, Pass.FORWARD, truth, shape, (TOP_HZ, HALF_HZ), noise=NOISE)
    return fit_operator(observed(table), chip, "made up")[0]


def test_what_the_shapes_do_not_determine_has_no_standard_error(large_copies: OperatorFit) -> None:
    parameters = large_copies.parameters
    assert parameters["issue_efficiency"].error is None
    assert parameters["cache_efficiency"].error is None
    assert parameters["memory_efficiency"].value == pytest.approx(STREAM["memory_efficiency"], rel=0.02)


def test_what_they_do_determine_has_a_small_one(large_copies: OperatorFit) -> None:
    """Fourteen points of 1 % noise or less determine the speed of memory to a few per mille."""
    error = large_copies.parameters["memory_efficiency"].error
    assert error is not None
    assert error < 0.05


def test_more_noise_means_larger_standard_errors(chip: RooflineChip, measure: Measure, observed: Observed) -> None:
    device = DEVICES["stream"]
    errors = []
    for noise in (0.002, 0.02):
        table = measure(device.kind, device.direction, device.truth, device.draw(40, 1), CLOCKS_HZ, noise=noise)
        errors.append(fit_operator(observed(table), chip, "made up")[0].parameters["memory_efficiency"].error)
    quiet, loud = errors
    assert quiet is not None
    assert loud is not None
    assert loud > 3 * quiet


# ---- the residual process -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uneven(chip: RooflineChip, measure: Measure, observed: Observed) -> tuple[Observations, OperatorFit]:
    """A library that has a slow kernel for some widths, which no parameter of the form explains."""
    device = DEVICES["stream"]
    shape = device.draw(60, 6)
    table = measure(device.kind, device.direction, device.truth, shape, CLOCKS_HZ, noise=0.005)
    table["time_s"] *= np.where(table["n"].isin([512, 2048, 768]), 1.3, 1.0)
    data = observed(table)
    return data, fit_operator(data, chip, "made up")[0]


def _without_residual(fit: OperatorFit) -> OperatorFit:
    return fit.model_copy(update={"residual": None})


def _correction(fit: OperatorFit, chip: RooflineChip, shape: Shape) -> FloatArray:
    """Log of what the residual multiplies times by, [U]."""
    with_it, without = (_predicted_s(f, chip, shape, (TOP_HZ,)) for f in (fit, _without_residual(fit)))
    return np.asarray(np.log(with_it / without)[:, 0])


def test_the_process_in_numbers_predicts_what_scikit_learn_does(
    uneven: tuple[Observations, OperatorFit], chip: RooflineChip
) -> None:
    data, fit = uneven
    residual = fit.residual
    assert residual is not None
    analytic = _predicted_s(_without_residual(fit), chip, data.shape, CLOCKS_HZ)
    clock = np.array([CLOCKS_HZ.index(clock_Hz) for clock_Hz in data.clock_Hz])
    missed = np.log(data.time_s / analytic[np.arange(len(data)), clock])
    features = shape_features(data.kind, data.shape)
    groups = np.unique(data.group)
    first = [int(np.flatnonzero(data.group == g)[0]) for g in groups]
    assert np.asarray(residual.points) == pytest.approx(features[first])
    varies = np.ptp(features, axis=0) > 0
    kernel = ConstantKernel(residual.signal**2, "fixed") * Matern(
        np.asarray(residual.lengths)[varies], "fixed", nu=0.5
    ) + WhiteKernel(residual.noise**2, "fixed")
    process = GaussianProcessRegressor(kernel, alpha=1e-8, optimizer=None)
    process.fit(features[first][:, varies], [missed[data.group == g].mean() for g in groups])
    unseen = DEVICES["stream"].draw(50, 7)
    expected = process.predict(shape_features(data.kind, unseen)[:, varies])
    assert np.ptp(expected) > 0.1
    assert _correction(fit, chip, unseen) == pytest.approx(expected, abs=1e-6)


def test_the_process_explains_what_the_form_does_not(
    uneven: tuple[Observations, OperatorFit], chip: RooflineChip
) -> None:
    """Up to a constant, which the form's own parameters may take."""
    _, fit = uneven
    slow, fast = (_predicted_s(fit, chip, Shape(m=4096, n=n), (TOP_HZ,)).item() for n in (2048, 1024))
    true_slow, true_fast = (DEVICES["stream"].time_s(chip, Shape(m=4096, n=n), (TOP_HZ,)).item() for n in (2048, 1024))
    assert slow / fast == pytest.approx(1.3 * true_slow / true_fast, rel=0.05)


def test_far_away_the_form_speaks_alone_and_the_error_widens(
    uneven: tuple[Observations, OperatorFit], chip: RooflineChip
) -> None:
    _, fit = uneven
    assert fit.residual is not None
    length = fit.residual.lengths[fit.residual.features.index("n")]
    shape = Shape(m=4096, n=2048 * 2.0 ** (length * np.array([0.0, 30.0])))
    near, far = np.abs(_correction(fit, chip, shape))
    assert near > 1e-2
    assert far < 1e-6
    everywhere = dict.fromkeys(fit.measured, (1e-9, 1e300))  # the process's own doing, not that of the range measured
    price = operator_time(fit.model_copy(update={"measured": everywhere}), chip, shape, np.array([TOP_HZ]))
    assert price.log_error_U[0] == pytest.approx(fit.log_error, rel=0.05)
    assert price.log_error_U[1] == pytest.approx(np.hypot(fit.log_error, fit.residual.signal), rel=1e-6)


def test_few_shapes_have_no_process(chip: RooflineChip, measure: Measure, observed: Observed) -> None:
    device = DEVICES["stream"]
    table = measure(device.kind, device.direction, device.truth, Shape(m=2.0 ** np.arange(8, 16), n=1024), CLOCKS_HZ)
    fit, _ = fit_operator(observed(table), chip, "made up")
    assert fit.residual is None


# ---- the range measured ---------------------------------------------------------------------------------------------


@by_form
def test_the_range_measured_is_that_of_the_shapes(
    device: Device, fitted: Callable[[Device], OperatorFit], chip: RooflineChip
) -> None:
    fit, seen = fitted(device), device.draw(60, 1)
    for name in device.sizes:
        values = np.asarray(getattr(seen, name))
        assert fit.measured[name] == pytest.approx((values.min(), values.max()))
    assert not operator_time(fit, chip, seen, np.array([TOP_HZ])).outside_U.any()


def test_each_doubling_outside_widens_the_error(fitted: Callable[[Device], OperatorFit], chip: RooflineChip) -> None:
    fit = _without_residual(fitted(DEVICES["stream"]))
    highest = fit.measured["m"][1]
    price = operator_time(fit, chip, Shape(m=highest * 2.0 ** np.arange(6), n=1024), np.array([TOP_HZ]))
    assert price.log_error_U[0] == pytest.approx(fit.log_error)
    assert (np.diff(price.log_error_U) > 0).all()
    widened = np.sqrt(np.square(price.log_error_U) - fit.log_error**2)
    assert widened == pytest.approx(0.1 * np.arange(6), abs=1e-6)
    assert price.outside_U.tolist() == [False, True, True, True, True, True]
