"""A kernel regression on few points: it learns what neighbours share, and is written down as a calibration reads it."""

from __future__ import annotations

import numpy as np

from moemodel.calibration.fit.sparse_residual import fit_sparse_residual
from moemodel.model.core.arrays import FloatArray
from moemodel.model.device.roofline import _residual


def bump(x: FloatArray) -> FloatArray:
    """A fifth up or down over some octaves; the second feature says nothing."""
    return np.asarray(0.2 * np.sin(x[:, 0]))


def test_predicts_rows_that_it_did_not_see() -> None:
    random = np.random.default_rng(0)
    x = random.uniform(0, 10, (1200, 2))
    noisy = bump(x) + random.normal(0, 0.02, len(x))
    noisy[::50] += 3.0  # readings that went wrong
    fit = fit_sparse_residual(x, noisy, np.arange(len(x)) % 5 == 0, 150)
    unseen = random.uniform(0.5, 9.5, (300, 2))
    assert np.median(np.abs(fit.log_ratio(unseen) - bump(unseen))) < 0.02
    assert fit.lengths[1] > fit.lengths[0]


def test_is_written_as_a_calibration_reads_it() -> None:
    x = np.random.default_rng(0).uniform(0, 10, (300, 2))
    fit = fit_sparse_residual(x, bump(x), np.arange(len(x)) % 5 == 0, 60)
    record = fit.record(["m", "n"], spread=0.14, noise=0.03)
    assert len(record.points) == 60
    np.testing.assert_allclose(_residual(record, x, 1)[0], fit.log_ratio(x), atol=1e-4)
