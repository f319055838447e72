"""Ways to cut experts and to reach them that no backend runs yet; no framework here."""

from __future__ import annotations

from collections.abc import Iterator

from moemodel.model.frameworks.registry import framework_of
from moemodel.model.plan.spec import Plan


def expert_mistakes(plan: Plan) -> Iterator[str]:
    """What a plan asks of its experts beyond what its backend does: whole ones, or cut as all else is, which get every
    row by an all-to-all that nothing runs beside."""
    usual = plan.parallel.tp if framework_of(plan.backend).shards_experts else 1
    if plan.parallel.etp not in (None, usual):
        yield f"parallel.etp: found {plan.parallel.etp}; allowed for plans that {plan.backend} runs: {usual}, null"
    routing = plan.routing
    if routing.dispatch != "alltoall":
        yield f"routing.dispatch: found {routing.dispatch!r}; allowed for plans that are run: alltoall"
    if routing.dispatch_overlap:
        yield "routing.dispatch_overlap: found true; allowed for plans that are run: false, null"
    for name in ("dispatch_dtype", "node_limit"):
        if (found := getattr(routing, name)) is not None:
            yield f"routing.{name}: found {found!r}; allowed for plans that are run: null"
