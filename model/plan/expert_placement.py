"""Which experts lie on which expert-parallel rank, with or without copies of hot ones, so that the busiest has least.

Every rank has room for as many experts, as expert parallelism needs. An expert with copies shares its rows out evenly
among them. Chosen so that the rows of the busiest rank are as few as can be:

    greedy    copies go to the expert with most rows a copy, one after another; all are placed, those with most rows
              first, each on the rank with least (LPT, Graham 1969), then swapped with other ranks' as long as that
              helps; the best of several numbers of copies
    exact     an integer programme (HiGHS, by scipy), with z_ec = 1 where expert e has c copies and w_erc = 1 where one
              of them lies on rank r:   min T,   sum_e,c (l_e / c) w_erc <= T,   sum_r w_erc = c z_ec,
              sum_c z_ec = 1,   sum_e,c w_erc <= slots of a rank; a copy more may be worse than one less, so that slots
              may stay empty

Loads are rows of experts, l_e. Leaves out which experts tokens choose together, and so which rows a node saves.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.core.errors import InputError
from moemodel.model.core.extras import needs_extra

_NEAR = 1e-4  # of the least that any placement can have: near enough to it to look no further
_SECONDS = 10.0  # for an integer programme
_TRIES = 8  # numbers of copies that are tried, evenly up to what there may be, and none


@dataclass(frozen=True)
class Placement:
    """Experts of each rank, ascending; `slots` of all ranks together, some of which may be empty."""

    ranks: tuple[tuple[int, ...], ...]
    slots: int

    @cached_property
    def copies(self) -> Counter[int]:
        """How often each expert is there."""
        return Counter(expert for rank in self.ranks for expert in rank)

    def rank_loads(self, loads: FloatArray) -> FloatArray:
        """Rows of each rank, [..., R], of loads [..., E]."""
        share = self._share(loads)
        return np.stack([share[..., list(rank)].sum(axis=-1) for rank in self.ranks], axis=-1)

    def rank_skew(self, loads: FloatArray) -> float:
        """Rows of the busiest rank over the mean, the mean over steps."""
        ranks = self.rank_loads(np.atleast_2d(loads))
        return float((ranks.max(axis=-1) / ranks.mean(axis=-1)).mean())

    def expert_skew(self, loads: FloatArray) -> float:
        """Rows of the busiest copy over the mean of all slots, the mean over steps."""
        loads = np.atleast_2d(loads)
        busiest = self._share(loads).max(axis=-1)
        return float((busiest * self.slots / loads.sum(axis=-1)).mean())

    def _share(self, loads: FloatArray) -> FloatArray:
        """Rows of one copy of each expert."""
        copies = np.array([self.copies[expert] for expert in range(loads.shape[-1])])
        return np.asarray(loads / copies)


def in_order(experts: int, ranks: int) -> Placement:
    """As frameworks place them: the first experts on the first rank."""
    each = experts // ranks
    return Placement(tuple(tuple(range(r * each, (r + 1) * each)) for r in range(ranks)), experts)


def check_copies(experts: int, ranks: int, copies: int) -> None:
    """Refuse what no placement can hold.

    Raises:
        InputError: what was found and what is allowed.
    """
    most = experts * (ranks - 1)
    if copies < 0 or copies > most or (experts + copies) % ranks:
        raise InputError(
            f"copies: found {copies}; allowed: multiples of ep {ranks} up to {most}, so that every rank holds as many "
            "experts and none twice"
        )


def greedy(loads: FloatArray, ranks: int, copies: int = 0) -> Placement:
    """By LPT and swaps.

    Args:
        loads: rows of each expert, [E].
        ranks: that the experts are shared out among.
        copies: beyond one of each expert.

    Raises:
        InputError: as `check_copies`.
    """
    check_copies(len(loads), ranks, copies)
    tried = sorted({round(part * copies / _TRIES) for part in range(_TRIES + 1)})
    slots = (len(loads) + copies) // ranks
    found = [_greedy(loads, ranks, some, slots) for some in tried]
    return min(found, key=lambda placement: float(placement.rank_loads(loads).max()))


def _greedy(loads: FloatArray, ranks: int, copies: int, slots: int) -> Placement:
    """With exactly so many copies."""
    counts = _copied(loads, ranks, copies)
    share = loads / counts
    held: list[set[int]] = [set() for _ in range(ranks)]
    for expert in np.argsort(-share, kind="stable"):
        for _ in range(counts[expert]):
            _put(int(expert), held, share, slots)
    _swap(held, share)
    return Placement(tuple(tuple(sorted(rank)) for rank in held), slots * ranks)


def _copied(loads: FloatArray, ranks: int, copies: int) -> IntArray:
    """How many of each expert, one more at a time of that with most rows a copy; no more than ranks."""
    counts = np.ones(len(loads), dtype=np.int64)
    for _ in range(copies):
        counts[np.argmax(np.where(counts < ranks, loads / counts, -1.0))] += 1
    return counts


def _put(expert: int, held: list[set[int]], share: FloatArray, slots: int) -> None:
    """On the rank with least that has room and does not hold it; where none has, one of another makes room."""
    load = [sum(share[e] for e in rank) for rank in held]
    free = [r for r, rank in enumerate(held) if len(rank) < slots and expert not in rank]
    if free:
        held[min(free, key=lambda r: load[r])].add(expert)
        return
    room = next(r for r, rank in enumerate(held) if len(rank) < slots)  # holds it
    other = min((r for r, rank in enumerate(held) if expert not in rank), key=lambda r: load[r])
    moved = next(e for e in held[other] if e not in held[room])
    held[other].remove(moved)
    held[other].add(expert)
    held[room].add(moved)


def _swap(held: list[set[int]], share: FloatArray) -> None:
    """Experts of the busiest rank with others', the best swap first, as long as both ranks end below it."""
    load = np.array([sum(share[e] for e in rank) for rank in held])
    while True:
        busiest = int(np.argmax(load))
        best = _best_swap(held, share, load, busiest)
        if best is None:
            return
        mine, rank, theirs = best
        moved = share[mine] - share[theirs]
        held[busiest].symmetric_difference_update({mine, theirs})
        held[rank].symmetric_difference_update({mine, theirs})
        load[busiest] -= moved
        load[rank] += moved


def _best_swap(held: list[set[int]], share: FloatArray, load: FloatArray, busiest: int) -> tuple[int, int, int] | None:
    """Expert of the busiest rank, the other rank and its expert, of the swap whose higher load of both is least."""
    best, least = None, load[busiest] * (1 - 1e-12)  # what rounding changes is no gain
    for rank, others in enumerate(held):
        for mine in sorted(held[busiest] - others):
            for theirs in sorted(others - held[busiest]):
                moved = share[mine] - share[theirs]
                higher = max(load[busiest] - moved, load[rank] + moved)
                if higher < least:
                    best, least = (mine, rank, theirs), higher
    return best


@dataclass(frozen=True, kw_only=True)
class ExactPlacement:
    """A placement, and how near it is to the best.

    Attributes:
        placement: it.
        gap: rows of its busiest rank over what none can get below, less 1.
    """

    placement: Placement
    gap: float


def exact(loads: FloatArray, ranks: int, copies: int = 0, *, seconds: float = _SECONDS) -> ExactPlacement:
    """The best placement, or the best found in so many seconds; that by `greedy` where it is as good as any can be.

    Raises:
        InputError: as `check_copies`.
        MissingExtraError: scipy is not installed.
    """
    begun = greedy(loads, ranks, copies)
    least, found = float(loads.sum()) / ranks, float(begun.rank_loads(loads).max())
    if found <= least * (1 + _NEAR):
        return ExactPlacement(placement=begun, gap=found / least - 1 if least else 0.0)
    solved, bound = _programme(loads, ranks, copies, seconds)
    bound = max(bound, least)
    best = min((p for p in (solved, begun) if p is not None), key=lambda p: float(p.rank_loads(loads).max()))
    return ExactPlacement(placement=best, gap=max(float(best.rank_loads(loads).max()) / bound - 1, 0.0))


def _programme(loads: FloatArray, ranks: int, copies: int, seconds: float) -> tuple[Placement | None, float]:
    """What HiGHS finds, None where nothing, and the bound that it proves."""
    with needs_extra("an exact placement", "calibrate"):
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array
    experts, most = len(loads), min(ranks, copies + 1)
    shape = (experts, ranks, most)
    size = experts * ranks * most + experts * most + 1  # w, then z, then T
    scale = float(loads.sum()) / ranks or 1.0  # so that T is about 1
    terms, low, high = _constraints(loads / scale, shape, (experts + copies) // ranks, size)
    objective = np.zeros(size)
    objective[-1] = 1.0
    integral = np.ones(size, dtype=np.int64)
    integral[-1] = 0
    upper = np.ones(size)
    upper[-1] = np.inf
    found = milp(
        objective,
        constraints=LinearConstraint(
            csr_array(terms.coordinates, shape=(len(low), size)), np.array(low), np.array(high)
        ),
        integrality=integral,
        bounds=Bounds(0, upper),
        options={"time_limit": seconds, "mip_rel_gap": 0.0},
    )
    bound = float(found.mip_dual_bound) * scale if found.mip_dual_bound is not None else 0.0
    if found.x is None:
        return None, bound
    lies = np.round(found.x[: experts * ranks * most]).reshape(shape).sum(axis=2)
    held = tuple(tuple(int(e) for e in np.flatnonzero(lies[:, r])) for r in range(ranks))
    return Placement(held, experts + copies), bound


def _constraints(
    loads: FloatArray, shape: tuple[int, int, int], slots: int, size: int
) -> tuple[_Terms, list[float], list[float]]:
    """Rows of the programme with their bounds, as in the module's docstring."""
    experts, ranks, most = shape
    w = np.arange(experts * ranks * most).reshape(shape)
    z = experts * ranks * most + np.arange(experts * most).reshape(experts, most)
    shares = loads[:, None] / (1.0 + np.arange(most))
    terms = _Terms()
    low: list[float] = []
    high: list[float] = []

    def bound(least: float, greatest: float) -> None:
        low.append(least)
        high.append(greatest)

    for e in range(experts):
        terms.add(len(low), z[e], np.ones(most))
        bound(1, 1)
        for c in range(most):
            terms.add(len(low), np.append(w[e, :, c], z[e, c]), np.append(np.ones(ranks), -(c + 1.0)))
            bound(0, 0)
    for r in range(ranks):
        terms.add(len(low), w[:, r].ravel(), np.ones(experts * most))
        bound(0, slots)
        terms.add(len(low), np.append(w[:, r].ravel(), size - 1), np.append(shares.ravel(), -1.0))
        bound(-np.inf, 0)
    return terms, low, high


class _Terms:
    """A sparse matrix while its rows are written."""

    def __init__(self) -> None:
        self._rows: list[IntArray] = []
        self._columns: list[IntArray] = []
        self._values: list[FloatArray] = []

    def add(self, row: int, columns: IntArray, values: FloatArray) -> None:
        """What a row holds."""
        self._rows.append(np.full(len(columns), row))
        self._columns.append(columns)
        self._values.append(values)

    @property
    def coordinates(self) -> tuple[FloatArray, tuple[IntArray, IntArray]]:
        """As scipy's matrices take them."""
        return np.concatenate(self._values), (np.concatenate(self._rows), np.concatenate(self._columns))
