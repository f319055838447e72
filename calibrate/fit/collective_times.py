"""Times of collectives, fitted: start, step and bandwidth of each, and what that formula misses at each size.

Least squares of relative errors with coefficients that are not negative (Lawson & Hanson 1974), over all groups and
sizes of a collective:

    t = start + steps a + moved / efficiency

with the steps and what is moved (bytes over the full bandwidth) as `model.network.collectives` counts them; then the
logarithm of measured over formula at each size of each group becomes a curve (`model.records.link_residuals`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar, nnls

from moemodel.calibration.store.profile_tables import CollectiveTable
from moemodel.model.core.arrays import FloatArray, IntArray, take_rows
from moemodel.model.network.collectives import Collective, Network, transfer_time_s
from moemodel.model.records.link_residuals import LinkCurve
from moemodel.model.records.profile import EXCHANGE

STEP_S = 1e-6  # assumed of a step inside a node where only one group was measured, which cannot tell it from a start
_PAIR = 2  # ranks: around a ring of two, a message's way there is its way back
_MOST_SKEW = 2.0  # assumed bound: twice as sensitive to the busiest rank as bytes say
_BYTES_RULE = 3.0  # assumed: a skewed all-to-all tells of its bytes where it takes this many times its start


@dataclass(frozen=True, kw_only=True)
class LinkRows:
    """Measured times of one collective. N rows.

    Attributes:
        collective: which.
        ranks, size_B, time_s: of each row; size of the full tensor, [N].
    """

    collective: Collective
    ranks: FloatArray
    size_B: FloatArray
    time_s: FloatArray


@dataclass(frozen=True, kw_only=True)
class LinkTimes:
    """A collective, fitted.

    Attributes:
        start_s, step_s, efficiency: of the formula; efficiency of the bandwidth given.
        step_measured: several groups tell a step from a start.
        curves: what the formula misses.
    """

    collective: Collective
    start_s: float
    step_s: float
    step_measured: bool
    efficiency: float
    curves: tuple[LinkCurve, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HeldOutSizes:
    """Sizes of a collective that a fit to the others predicts.

    Attributes:
        ranks, size_B, log_ratio: of each; log(predicted / measured).
    """

    collective: Collective
    ranks: FloatArray
    size_B: FloatArray
    log_ratio: FloatArray

    @property
    def log_error(self) -> float:
        """Root mean square of the logarithm."""
        return float(np.sqrt(np.mean(self.log_ratio**2)))


def link_rows(table: CollectiveTable) -> list[LinkRows]:
    """Even collectives inside one node, medians over repeated rows; collectives without rows are left out.

    A message between two ranks is measured by itself; in a larger group it means that every rank sends to the next, as
    rings and pipelines do, which is measured as an exchange.

    Args:
        table: `collectives` of a profile, or of several, one after another.
    """
    inside = (table.nodes == 1) & (table.ranks >= _PAIR) & (table.size_B > 0)
    timed = take_rows(table, ~np.isnan(table.time_s) & inside & (table.skew == 1)).frame()
    around = (timed["collective"] == EXCHANGE) & (timed["ranks"] > _PAIR)
    timed["collective"] = timed["collective"].mask(around, str(Collective.SEND_RECV))
    medians = timed.groupby(["collective", "ranks", "size_B"], as_index=False)["time_s"].median()
    found = []
    for collective in Collective:
        rows = medians[medians["collective"] == str(collective)]
        if len(rows):
            columns = [rows[name].to_numpy(dtype=np.float64) for name in ("ranks", "size_B", "time_s")]
            found.append(LinkRows(collective=collective, ranks=columns[0], size_B=columns[1], time_s=columns[2]))
    return found


def fit_times(rows: LinkRows, node_Bps: float) -> LinkTimes:
    """Fit a collective.

    Args:
        rows: at least two sizes.
        node_Bps: that efficiency is of.
    """
    moved_s, steps = _moved(rows.collective, rows.size_B, rows.ranks, node_Bps)
    several = len(np.unique(steps)) > 1
    start_s, step_s, slowness = _least(rows.time_s, steps, moved_s, free_step=several)
    formula_s = start_s + steps * step_s + moved_s * slowness
    return LinkTimes(
        collective=rows.collective,
        start_s=start_s,
        step_s=step_s,
        step_measured=several,
        efficiency=1 / slowness,
        curves=_curves(rows, np.log(rows.time_s / formula_s)),
    )


def predicted_s(fit: LinkTimes, size_B: FloatArray, ranks: FloatArray, node_Bps: float) -> FloatArray:
    """Times inside a node by a fit, as `model.network.collectives` gives them."""
    count = int(ranks.max(initial=2))
    network = Network(
        gpus_per_node=count,
        node_Bps=node_Bps,
        nic_Bps=node_Bps,
        node_latency_s=fit.step_s,
        nic_latency_s=fit.step_s,
        efficiency={fit.collective: fit.efficiency},
        start_s=fit.start_s,
        overlap=0.0,
        curves={fit.collective: fit.curves},
    )
    n = ranks.astype(np.int64)
    return network.time_s(fit.collective, size_B, n, network.route(n, np.ones_like(n)))


def held_out_sizes(rows: LinkRows, node_Bps: float) -> HeldOutSizes:
    """Every size but the smallest and the largest, each predicted by a fit that saw neither it nor every second one."""
    place = _places(rows)
    last = np.array([place[rows.ranks == n].max() for n in rows.ranks])
    inner = (place > 0) & (place < last)
    log_ratio = np.zeros(len(place))
    for parity in (0, 1):
        tested = inner & (place % 2 == parity)
        fit = fit_times(take_rows(rows, ~tested), node_Bps)
        found_s = predicted_s(fit, rows.size_B[tested], rows.ranks[tested], node_Bps)
        log_ratio[tested] = np.log(found_s / rows.time_s[tested])
    return HeldOutSizes(
        collective=rows.collective, ranks=rows.ranks[inner], size_B=rows.size_B[inner], log_ratio=log_ratio[inner]
    )


def fit_skew(table: CollectiveTable, even: LinkTimes, node_Bps: float) -> tuple[float, float] | None:
    """Of a busiest rank's excess, the share that prolongs an all-to-all, and the log error that is left.

    None where no skewed one was measured that takes much longer than its start.
    """
    rows = take_rows(table, (table.skew > 1) & (table.nodes == 1) & ~np.isnan(table.time_s))
    size_B, ranks, skew, time_s = rows.size_B, rows.ranks, rows.skew, rows.time_s
    large = time_s > _BYTES_RULE * (even.start_s + (ranks - 1) * even.step_s)
    if not large.any():
        return None

    def errors(share: float) -> FloatArray:
        found_s = predicted_s(even, size_B[large] * (1 + share * (skew[large] - 1)), ranks[large], node_Bps)
        return np.asarray(np.log(found_s / time_s[large]))

    best = minimize_scalar(lambda share: float((errors(share) ** 2).sum()), bounds=(0.0, _MOST_SKEW), method="bounded")
    share = float(best.x)
    return share, float(np.sqrt(np.mean(errors(share) ** 2)))


def _moved(
    collective: Collective, size_B: FloatArray, ranks: FloatArray, node_Bps: float
) -> tuple[FloatArray, FloatArray]:
    n = ranks.astype(np.int64)
    bare = Network(
        gpus_per_node=int(n.max()),
        node_Bps=node_Bps,
        nic_Bps=node_Bps,
        node_latency_s=0.0,
        nic_latency_s=0.0,
        efficiency=dict.fromkeys(Collective, 1.0),
        start_s=0.0,
        overlap=0.0,
    )
    return transfer_time_s(collective, size_B, ranks, bare.route(n, np.ones_like(n)))


def _least(
    time_s: FloatArray, steps: FloatArray, moved_s: FloatArray, *, free_step: bool
) -> tuple[float, float, float]:
    """Start, step, and time over that at full bandwidth."""
    known_s = np.zeros_like(time_s) if free_step else np.minimum(steps * STEP_S, 0.5 * time_s.min())
    columns = [np.ones_like(time_s), moved_s, *([steps] if free_step else [])]
    design = np.stack(columns, axis=1) / time_s[:, None]
    scale = design.max(axis=0)
    found, _ = nnls(design / scale, (time_s - known_s) / time_s)
    found = found / scale
    slowness = max(float(found[1]), 1e-12)
    step_s = float(found[2]) if free_step else float(known_s[0] / steps[0])
    return float(found[0]), step_s, slowness


def _curves(rows: LinkRows, log_ratio: FloatArray) -> tuple[LinkCurve, ...]:
    curves = []
    for n in np.unique(rows.ranks):
        mine = np.flatnonzero(rows.ranks == n)
        mine = mine[np.argsort(rows.size_B[mine])]
        curves.append(
            LinkCurve(
                collective=str(rows.collective),
                ranks=int(n),
                size_B=[float(size_B) for size_B in rows.size_B[mine]],
                log_ratio=[round(float(ratio), 5) for ratio in log_ratio[mine]],
            )
        )
    return tuple(curves)


def _places(rows: LinkRows) -> IntArray:
    """The place of each row's size among those of its group, from 0."""
    place = np.zeros(len(rows.ranks), dtype=np.int64)
    for n in np.unique(rows.ranks):
        mine = np.flatnonzero(rows.ranks == n)
        place[mine[np.argsort(rows.size_B[mine])]] = np.arange(len(mine))
    return place


def mean_log_error(held_out: Sequence[HeldOutSizes]) -> float:
    """Root mean square over all held-out sizes."""
    return float(np.sqrt(np.mean(np.concatenate([each.log_ratio for each in held_out]) ** 2)))
