"""The least squares of every fit: bounded, robust, from one start or several, with error bars.

    minimise over x    F(x) = 1/2 sum_i s^2 rho((r_i(x) / s)^2),    low <= x <= high
    rho(z) = z ("linear"),    rho(z) = 2 (sqrt(1 + z) - 1) ("soft_l1": squares within s, absolute values far beyond it)

    r  residuals, N of them            x  parameters, K of them
    s  scale from which a residual counts as an outlier, in the residuals' unit

SciPy's trust-region reflective method finds it (Branch, Coleman and Li, SIAM J. Sci. Comput. 21, 1999; robust losses
after Triggs et al., Bundle Adjustment, 2000, section 4.3). What data and prior leave open of a parameter is that of the
problem made linear at the minimum (Bishop, Pattern Recognition and Machine Learning, 2006, section 3.3):

    C = v (J^T J + v diag(1 / d^2))^-1

    J  slopes dr/dx at the minimum     v  variance of a residual     d  standard deviation of a parameter before the fit

Left out of C: the curvature of r, and the weights of the robust loss. Nothing here draws a random number: starts are
tried in the order given, and of equals the first one wins.

Axes: N residuals, K parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

FloatArray = NDArray[np.float64]
Function = Callable[[FloatArray], FloatArray]

_TOLERANCE = 1e-8  # relative, of cost and parameters: SciPy's own


def minimise(
    residuals: Function,
    start_K: ArrayLike,
    *,
    low: ArrayLike = -np.inf,
    high: ArrayLike = np.inf,
    loss: Literal["linear", "soft_l1"] = "linear",
    scale: float = 1.0,
    slopes: Function | None = None,
    size: float | FloatArray = 1.0,
    evaluations: int | None = None,
    tolerance: float = _TOLERANCE,
    slack: float = 0.0,
) -> FloatArray:
    """The parameters for which the sum of losses is least, near a start.

    Args:
        residuals: parameters [K] -> residuals [N].
        start_K: where the search begins, brought within the bounds; best inside them, since it leaves a bound slowly.
        low: bounds from below, one for each parameter or one for all.
        high: bounds from above.
        loss: of a residual.
        scale: of the loss, in the residuals' unit.
        slopes: parameters [K] -> derivatives of the residuals [N, K]; by differences unless given.
        size: of a step that matters, for each parameter.
        evaluations: of the residuals, at most, those for differences not counted.
        tolerance: relative change of the sum and of the parameters at which the search ends.
        slack: that the search may go beyond the bounds, for a minimum at a bound; the result is brought back.
    """
    lowest, highest = np.asarray(low, dtype=np.float64) - slack, np.asarray(high, dtype=np.float64) + slack
    found = least_squares(
        residuals,
        np.clip(np.asarray(start_K, dtype=np.float64), low, high),
        slopes if slopes is not None else "2-point",
        (lowest, highest),
        loss=loss,
        f_scale=scale,
        x_scale=size,
        max_nfev=evaluations,
        xtol=tolerance,
        ftol=tolerance,
    )
    return np.clip(found.x, low, high)


def half_square(residuals_N: FloatArray) -> float:
    """F of the linear loss."""
    return 0.5 * float(residuals_N @ residuals_N)


def best_of(
    minima: Sequence[FloatArray], residuals: Function, merit: Callable[[FloatArray], float] = half_square
) -> FloatArray:
    """Of several minima that of least `merit`, a measure of its residuals; of equals the first."""
    return min(minima, key=lambda x: merit(residuals(x)))


def standard_errors(slopes_NK: FloatArray, *, variance: float = 1.0, before_K: ArrayLike = np.inf) -> FloatArray:
    """Standard deviations of the parameters, roots of the diagonal of C in the module's docstring. [K]

    Args:
        slopes_NK: derivatives of the residuals at the minimum.
        variance: of a residual.
        before_K: standard deviations of the parameters before the fit; infinite where nothing was known.
    """
    prior = variance / np.square(np.broadcast_to(np.asarray(before_K, dtype=np.float64), slopes_NK.shape[1:]))
    covariance = variance * np.linalg.pinv(slopes_NK.T @ slopes_NK + np.diag(prior))
    return np.sqrt(np.maximum(np.diag(covariance), 0.0))


def difference_slopes(function: Function, x_K: FloatArray, step: float) -> FloatArray:
    """Derivatives of a function of any shape [...] by one step in each parameter, backward if negative. [..., K]"""
    here = function(x_K)
    return np.stack([(function(x_K + move) - here) / step for move in step * np.eye(len(x_K))], axis=-1)


def relative_steps(x_K: FloatArray, relative: float, low_K: FloatArray, high_K: FloatArray) -> FloatArray:
    """Steps for differences as SciPy takes them: a share of each parameter, away from zero, towards it at a bound."""
    smallest = np.sqrt(np.finfo(np.float64).eps)
    away = np.where(x_K >= 0, 1.0, -1.0)
    steps = relative * away * np.abs(x_K)
    steps = np.where(x_K + steps == x_K, smallest * away * np.maximum(1.0, np.abs(x_K)), steps)
    outside = (x_K + steps < low_K) | (x_K + steps > high_K)
    return np.asarray(np.where(outside, -steps, steps))


@dataclass(frozen=True, kw_only=True)
class NearbySlopes:
    """Derivatives of a costly function by differences, taken once for all points that lie close together.

    Attributes:
        function: parameters [K] -> values of any shape.
        step: of the differences, backward if negative.
        near: largest difference of a parameter over which derivatives are used again.
    """

    function: Function
    step: float
    near: float
    _taken: list[tuple[FloatArray, FloatArray]] = field(default_factory=list)

    def __call__(self, x_K: FloatArray) -> FloatArray:
        """Derivatives, [..., K], at the first point they were taken at that is near."""
        for at_K, slopes in self._taken:
            if np.abs(at_K - x_K).max() < self.near:
                return slopes
        slopes = difference_slopes(self.function, x_K, self.step)
        self._taken.append((x_K.copy(), slopes))
        return slopes
