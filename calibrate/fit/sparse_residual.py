"""What a form misses, over many rows: a kernel regression on a few of them (Nystroem; Rasmussen & Williams, ch. 8).

    log(time / form) = sum_j a_j k(x, z_j),    k = exp(-|x - z|), distances in units of one length per feature
    a = argmin  sum_i w_i (r_i - K_i a)^2 + lambda a^T K_zz a

    z  inducing points, Z of the N rows        w  weights that turn squares into absolute values, so that rows which
    r  log(measured / form)                       repeat worse than others pull no harder

Lengths and lambda are those that predict an inner fifth of the shapes best, by coordinate search. The kernel is that of
`model.records.calibration.Residual`, which holds the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray
from moemodel.model.records.calibration import Residual

_LARGEST = 0.6  # of a log ratio: beyond it a row says only which way
_ROUNDS = 2  # over all coordinates of the search
_SEARCH_POINTS, _SEARCH_ROWS, _JUDGED_ROWS = 200, 3000, 1500  # while searching
_REWEIGHTED = 3
_LEAST = 0.01  # of an error: below it a square stays a square
_START_LENGTH, _START_RIDGE = 3.0, 1.0  # octaves; assumed, as the steps of the search
_LENGTH_STEP, _RIDGE_STEP = 3.0, 5.0
_JITTER = 1e-8


@dataclass(frozen=True, kw_only=True)
class SparseResidual:
    """Lengths [F], points [Z, F] and weights [Z] of the module's docstring."""

    lengths: FloatArray
    points: FloatArray
    weights: FloatArray

    def log_ratio(self, features: FloatArray) -> FloatArray:
        """Of measured time over the form's, [N], at features [N, F]."""
        return np.asarray(_kernel(features, self.points, self.lengths) @ self.weights)

    def record(self, names: Sequence[str], spread: float, noise: float) -> Residual:
        """For a calibration, in as many digits as tell.

        Args:
            names: of the features.
            spread: standard deviation of what it explains.
            noise: of what it leaves.
        """
        signal = max(spread, 1e-6)
        return Residual(
            features=list(names),
            lengths=[_rounded(length, 4) for length in self.lengths],
            signal=_rounded(signal, 4),
            noise=_rounded(noise, 4),
            points=[[round(float(x), 3) for x in point] for point in self.points],
            weights=[_rounded(weight / _rounded(signal, 4) ** 2, 6) for weight in self.weights],
        )


def fit_sparse_residual(features: FloatArray, missed: FloatArray, inner: BoolArray, points: int) -> SparseResidual:
    """Fit what a form missed.

    Args:
        features: of each row, [N, F].
        missed: log(measured / form), [N].
        inner: rows of the shapes that lengths are judged by, [N].
        points: inducing points, at most.
    """
    order = np.random.default_rng(0).permutation(len(features))
    r = np.clip(missed, -_LARGEST, _LARGEST)
    z = np.round(features[order[: min(points, len(order) // 2 + 1)]], 3)
    learnt = order[~inner[order]][:_SEARCH_ROWS]
    judged = order[inner[order]][:_JUDGED_ROWS]
    search = _Search(features=features, missed=r, points=z[:_SEARCH_POINTS], learnt=learnt, judged=judged)
    lengths, ridge = search.best() if len(judged) and len(learnt) else search.start()
    return SparseResidual(lengths=lengths, points=z, weights=_weights(features, r, z, lengths, ridge))


@dataclass(frozen=True, kw_only=True)
class _Search:
    """For lengths and ridge, by the mean absolute error of rows that weren't learnt."""

    features: FloatArray
    missed: FloatArray
    points: FloatArray
    learnt: IntArray
    judged: IntArray

    def start(self) -> tuple[FloatArray, float]:
        return np.full(self.features.shape[1], _START_LENGTH), _START_RIDGE

    def best(self) -> tuple[FloatArray, float]:
        lengths, ridge = self.start()
        least = self._error(lengths, ridge)
        for _ in range(_ROUNDS):
            for index in range(len(lengths) + 1):
                for up in (False, True):
                    moved, moved_ridge = _moved(lengths, ridge, index, up=up)
                    error = self._error(moved, moved_ridge)
                    if error < least:
                        least, lengths, ridge = error, moved, moved_ridge
        return lengths, ridge

    def _error(self, lengths: FloatArray, ridge: float) -> float:
        a = _weights(self.features[self.learnt], self.missed[self.learnt], self.points, lengths, ridge)
        predicted = _kernel(self.features[self.judged], self.points, lengths) @ a
        return float(np.abs(predicted - self.missed[self.judged]).mean())


def _moved(lengths: FloatArray, ridge: float, index: int, *, up: bool) -> tuple[FloatArray, float]:
    """One coordinate a step further; the last is the ridge."""
    if index == len(lengths):
        return lengths, ridge * (_RIDGE_STEP if up else 1 / _RIDGE_STEP)
    moved = lengths.copy()
    moved[index] *= _LENGTH_STEP if up else 1 / _LENGTH_STEP
    return moved, ridge


def _weights(x: FloatArray, r: FloatArray, z: FloatArray, lengths: FloatArray, ridge: float) -> FloatArray:
    """a of the module's docstring."""
    K, Kzz, w = _kernel(x, z, lengths), _kernel(z, z, lengths), np.ones(len(x))
    for left in range(_REWEIGHTED, -1, -1):
        KW = K * w[:, None]
        matrix = KW.T @ K + ridge * Kzz
        matrix.flat[:: len(z) + 1] += _JITTER * len(x)
        a = np.linalg.solve(matrix, KW.T @ r)
        if left:
            errors = np.abs(K @ a - r)
            w = np.maximum(np.median(errors), _LEAST) / np.maximum(errors, _LEAST / 2)
    return np.asarray(a)


def _kernel(x: FloatArray, z: FloatArray, lengths: FloatArray) -> FloatArray:
    u, v = x / lengths, z / lengths
    squares = np.square(u).sum(1)[:, None] + np.square(v).sum(1)[None, :] - 2 * u @ v.T
    return np.asarray(np.exp(-np.sqrt(np.maximum(squares, 0.0))))


def _rounded(value: float, digits: int) -> float:
    return float(f"{float(value):.{digits}g}")
