"""How well predictions order plans: Kendall's tau and regret, among plans that are alternatives to each other.

Plans are alternatives if they train the same model on the same batch: whether OPT-350M or a model ten times its size
takes longer is no question that a prediction is needed for, and would only flatter it.

    tau-b    (C - D) / sqrt((C + D + T_p)(C + D + T_m))    over all pairs of alternatives
    regret   measured(plan predicted best) / min measured - 1    within one group of alternatives

    C, D pairs in the same and in the opposite order; T_p, T_m pairs tied in the prediction alone, in the measurement
    alone (Kendall 1945). With one group it is `scipy.stats.kendalltau`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations

_SURE = 2.0  # standard errors of the difference: 95 % of true ties count as ties
_DIGITS = 10  # what two predictions must differ in not to be tied: later digits depend on the order of sums


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A plan as it is ranked by one quantity: smaller is better; `error` is the standard error of what was measured."""

    name: str
    group: Hashable
    predicted: float
    measured: float
    error: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Regret:
    """What the plan predicted best costs over the best measured, as a share of that; names of the two."""

    share: float
    chosen: str
    best: str


def kendall(plans: Sequence[Ranked], *, told_apart: bool = False) -> tuple[float | None, int]:
    """Kendall's tau-b over pairs of alternatives, and how many pairs; None where nothing differs.

    Args:
        plans: ranked by one quantity.
        told_apart: only pairs that differ by more in the measurement than two standard errors of the difference.
    """
    signs = [
        (_sign(a.predicted, b.predicted), _sign(a.measured, b.measured))
        for a, b in combinations(plans, 2)
        if a.group == b.group and not (told_apart and _alike(a, b))
    ]
    agree = sum(p * m for p, m in signs)
    differ = math.prod((sum(abs(p) for p, _ in signs), sum(abs(m) for _, m in signs)))
    return (agree / math.sqrt(differ) if differ else None), len(signs)


def _alike(a: Ranked, b: Ranked) -> bool:
    return abs(a.measured - b.measured) <= _SURE * math.hypot(a.error, b.error)


def _sign(a: float, b: float) -> int:
    if abs(a - b) <= 10.0**-_DIGITS * max(abs(a), abs(b)):
        return 0
    return 1 if a > b else -1


def regrets(plans: Sequence[Ranked]) -> list[Regret]:
    """The regret of every group of two alternatives or more, in the order in which they appear."""
    groups: dict[Hashable, list[Ranked]] = {}
    for plan in plans:
        groups.setdefault(plan.group, []).append(plan)
    return [_regret(group) for group in groups.values() if len(group) > 1]


def _regret(group: Sequence[Ranked]) -> Regret:
    chosen = min(group, key=lambda plan: plan.predicted)
    best = min(group, key=lambda plan: plan.measured)
    return Regret(share=chosen.measured / best.measured - 1, chosen=chosen.name, best=best.name)
