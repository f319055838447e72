"""The choice of clocks as a linear programme, and, with clocks that are not mixed, as an integer one (HiGHS, by scipy).

    min   sum_g sum_k x_gk cost_gk  +  W T
    with  s_a + sum_k x_g(a)k t_ak + lag_ab <= s_b     for every edge a, b
          s_e + sum_k x_g(e)k t_ek <= T                for every operation e at the end
          sum_k x_gk = 1,  0 <= x <= 1,  0 <= s,  T <= deadline

s: when an operation begins; x: how much of its work is done at each clock; W: what all stages draw together that wait.
An operation between two clocks is on the line between them (Kelley 1961; Phillips and Dessouky 1977; Chung et al. 2024
for pipelines), so that the least over x is a lower bound of what any clocks need. The linear programme is given the
pieces of that line, whose slopes rise, so that they are used in order without being told to: it is solved three times
faster than with x.

The bound is that of its dual, over all clocks, though the programme mixes only some (`Choice.hull`): with prices y >= 0
of the edges and Y_a the sum of those that leave a,

    sum_g min_k (cost_gk + sum_a Y_a t_ak)  +  sum_ab y_ab lag_ab  +  min_T (W - sum_e y_e) T

with T between the fastest step and the deadline holds for any y, exactly (weak duality), whatever the solver's
tolerances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.frontier.choices import Choice
from moemodel.model.frontier.paths import Paths

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_INFEASIBLE = 2  # a status of scipy's
ROUNDING = 1e-9  # of a deadline: what sums of times differ by that are the same


@dataclass(frozen=True, kw_only=True)
class Relaxed:
    """The answer where operations may mix clocks.

    Attributes:
        time_s: of the step.
        operation_s: of each operation, [N].
        bound_J: no clocks need less.
    """

    time_s: float
    operation_s: FloatArray
    bound_J: float


class Programme:
    """The choice of a pipeline's clocks.

    Args:
        paths: through it.
        choices: to make.
        power_W: of all stages that wait, the idle power included.
    """

    def __init__(self, paths: Paths, choices: Sequence[Choice], power_W: float) -> None:
        self._paths, self._choices, self._power_W = paths, choices, power_W
        self._size = len(paths.order)
        fastest_s_N, slowest_s_N = (_operation_s(choices, k, self._size) for k in (0, -1))
        self.fastest_s = paths.makespan_s(fastest_s_N.tolist())
        self._slowest_s = paths.makespan_s(slowest_s_N.tolist())
        self._fastest_s_N = fastest_s_N
        # units in which figures are near 1, which the solver's tolerances are meant for
        self._unit_s = float(np.mean(fastest_s_N))
        self._unit_J = max(power_W * self._unit_s, max(float(np.ptp(choice.cost_J)) for choice in choices))
        self._pieces = _Columns.pieces(choices)

    def relaxed(self, deadline_s: float) -> Relaxed:
        """Where operations may mix clocks.

        Args:
            deadline_s: of the step, no shorter than `fastest_s`; infinite where there is none.
        """
        from scipy.optimize import linprog

        pieces, latest_s = self._pieces, self._latest_s(deadline_s)
        takes = pieces.takes(self._size)
        rows: Any = self._order_rows(takes)  # scipy's stubs know of no sparse matrix here, nor of an array of bounds
        bounds: Any = self._bounds(pieces, latest_s)
        found = linprog(
            self._costs(pieces),
            A_ub=rows,
            b_ub=self._limits(self._fastest_s_N),
            bounds=bounds,
            method="highs-ds",
        )
        self._check(found.status, found.message)
        x = np.asarray(found.x)
        return Relaxed(
            time_s=float(x[self._size]) * self._unit_s,
            operation_s=self._fastest_s_N + takes @ x[self._size + 1 :],
            bound_J=self._bound_J(-found.ineqlin.marginals * self._unit_J / self._unit_s, latest_s),
        )

    def exact(self, deadline_s: float) -> list[int] | None:
        """Which clock of each choice, none mixed; None where no clocks meet the deadline.

        HiGHS has no bound on the time that this takes, and at times writes a line of its own to standard output.

        Args:
            deadline_s: of the step, or infinite.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp

        clocks = _Columns.clocks(self._choices)
        bounds = self._bounds(clocks, self._latest_s(deadline_s))
        found = milp(
            self._costs(clocks),
            constraints=[
                LinearConstraint(self._order_rows(clocks.takes(self._size)), ub=self._limits(np.zeros(self._size))),
                LinearConstraint(self._one_of_each(clocks), lb=1.0, ub=1.0),
            ],
            integrality=np.r_[np.zeros(self._size + 1), np.ones(clocks.count)],
            bounds=Bounds(bounds[:, 0], bounds[:, 1]),
            options={"mip_rel_gap": 0.0},
        )
        if found.status == _INFEASIBLE:
            return None
        self._check(found.status, found.message)
        assert found.x is not None  # solved
        return clocks.chosen(found.x[self._size + 1 :])

    def _latest_s(self, deadline_s: float) -> float:
        return min(deadline_s * (1 + ROUNDING), self._slowest_s)

    def _check(self, status: int, message: str) -> None:
        if status != 0:
            raise RuntimeError(f"HiGHS did not solve a pipeline of {self._size} operations: {message}")

    # ---- the matrix: columns are s of each operation, T, and x -------------------------------------------------------

    def _costs(self, columns: _Columns) -> FloatArray:
        waiting = self._power_W * self._unit_s / self._unit_J
        return np.concatenate([np.zeros(self._size), [waiting], columns.cost_J / self._unit_J])

    def _bounds(self, columns: _Columns, latest_s: float) -> FloatArray:
        highest = np.concatenate([np.full(self._size + 1, latest_s / self._unit_s), np.ones(columns.count)])
        return np.column_stack([np.zeros(len(highest)), highest])

    def _limits(self, base_s_N: FloatArray) -> FloatArray:
        """Of the rows, where each operation takes so long beside its columns."""
        paths = self._paths
        lag_s = np.concatenate([paths.lag_s_E, np.zeros(len(paths.ends))])
        return -(lag_s + base_s_N[self._first]) / self._unit_s

    @property
    def _first(self) -> IntArray:
        """The operation of each row: of each edge, and each at the end."""
        return np.concatenate([self._paths.source_E, self._paths.ends])

    def _order_rows(self, takes: csr_array) -> csr_array:
        """A row for each edge, and for each operation at the end."""
        from scipy.sparse import csr_array, hstack

        first = self._first
        then = np.concatenate([self._paths.target_E, np.full(len(self._paths.ends), self._size)])
        rows = np.arange(len(first))
        begins = csr_array(
            (np.repeat([1.0, -1.0], len(first)), (np.tile(rows, 2), np.concatenate([first, then]))),
            shape=(len(first), self._size + 1),
        )
        return csr_array(hstack([begins, takes[first] / self._unit_s]))

    def _one_of_each(self, columns: _Columns) -> csr_array:
        from scipy.sparse import csr_array

        return csr_array(
            (np.ones(columns.count), (columns.choice, self._size + 1 + np.arange(columns.count))),
            shape=(len(self._choices), self._size + 1 + columns.count),
        )

    # ---- the bound ---------------------------------------------------------------------------------------------------

    def _bound_J(self, prices_W: FloatArray, latest_s: float) -> float:
        """Of what any clocks need, for prices of edges and ends."""
        paths = self._paths
        prices_W = np.maximum(prices_W, 0.0)
        edges_W, ends_W = np.split(prices_W, [len(paths.lag_s_E)])
        leaving_W = np.bincount(self._first, prices_W, self._size)
        entering_W = np.bincount(paths.target_E, edges_W, self._size)
        choices_J = sum(
            float((choice.cost_J + leaving_W[choice.members] @ choice.time_s).min()) for choice in self._choices
        )
        begins_J = float(np.minimum(leaving_W - entering_W, 0.0).sum()) * latest_s
        step_W = self._power_W - float(ends_W.sum())
        step_J = min(step_W * self.fastest_s, step_W * latest_s)
        return choices_J + float(edges_W @ paths.lag_s_E) + begins_J + step_J


def _operation_s(choices: Sequence[Choice], k: int, operations: int) -> FloatArray:
    """Of every operation at one of its clocks, [N]."""
    time_s = np.zeros(operations)
    for choice in choices:
        time_s[choice.members] = choice.time_s[:, k]
    return time_s


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """Columns of all choices, one choice behind another, X of them.

    Attributes:
        choice: that each belongs to, [X].
        cost_J: [X].
        entries: operation, column and time in s, of everything that takes time.
    """

    choice: IntArray
    cost_J: FloatArray
    entries: tuple[IntArray, IntArray, FloatArray]

    @classmethod
    def clocks(cls, choices: Sequence[Choice]) -> _Columns:
        """Every clock of each choice."""
        return cls._of(choices, [choice.time_s for choice in choices], [choice.cost_J for choice in choices])

    @classmethod
    def pieces(cls, choices: Sequence[Choice]) -> _Columns:
        """From each clock of the hull to the next slower one."""
        return cls._of(
            choices,
            [np.diff(choice.time_s[:, choice.hull], axis=1) for choice in choices],
            [np.diff(choice.cost_J[choice.hull]) for choice in choices],
        )

    @classmethod
    def _of(cls, choices: Sequence[Choice], time_s: list[FloatArray], cost_J: list[FloatArray]) -> _Columns:
        counts = [len(costs) for costs in cost_J]
        starts = np.cumsum([0, *counts])[:-1].tolist()
        operations = [np.repeat(choice.members, n) for choice, n in zip(choices, counts, strict=True)]
        columns = [
            np.tile(np.arange(start, start + n), len(choice.members))
            for choice, start, n in zip(choices, starts, counts, strict=True)
        ]
        times = np.concatenate([taken.ravel() for taken in time_s])
        return cls(
            choice=np.repeat(np.arange(len(choices)), counts),
            cost_J=np.concatenate(cost_J),
            entries=(np.concatenate(operations), np.concatenate(columns), times),
        )

    @property
    def count(self) -> int:
        return len(self.choice)

    def takes(self, operations: int) -> csr_array:
        """Time in s of every operation in each column, [N, X]."""
        from scipy.sparse import csr_array

        operation, column, time_s = self.entries
        return csr_array((time_s, (operation, column)), shape=(operations, self.count))

    def chosen(self, shares: FloatArray) -> list[int]:
        """Of each choice, the column that has most of it, counted from the choice's first."""
        starts = np.searchsorted(self.choice, np.arange(self.choice[-1] + 1))
        return [int(part.argmax()) for part in np.split(shares, starts[1:])]
