"""Keys of a plan that a runner leaves to its program, so that none may be stated."""

from __future__ import annotations

from collections.abc import Iterator

from moemodel.model.plan.left_to_framework import NONE_IN_A_SEARCH, ONE_FOR_ALL
from moemodel.model.plan.spec import Plan


def stated(plan: Plan, where: str) -> Iterator[str]:
    """A message for each that a plan states.

    Args:
        plan: to be run.
        where: null is allowed, such as "allowed for plans that are run".
    """
    for name in (*NONE_IN_A_SEARCH, *ONE_FOR_ALL):
        if (found := getattr(plan, name)) is not None:
            yield f"{name}: found {found!r}; {where}: null"
    if plan.routing.products is not None:
        yield f"routing.products: found {plan.routing.products!r}; {where}: null"
