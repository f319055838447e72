"""What a prediction says of how rows get to experts."""

from __future__ import annotations

from collections.abc import Iterator

from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.plan.mesh import ParallelMesh
from moemodel.model.plan.spec import Plan
from moemodel.model.step.system import System


def dispatch_notes(plan: Plan, architecture: Architecture, machine: System) -> Iterator[str]:
    """Of a plan whose experts are spread: what its dispatch rests on, and a limit of nodes that does nothing, or that
    no token's experts can keep to."""
    blocks = [layer.feed_forward for layer in architecture.layers if isinstance(layer.feed_forward, Moe)]
    mesh = ParallelMesh.of(plan.parallel, shards_experts=machine.framework.shards_experts)
    network = machine.network
    routing, nodes = plan.routing, max(mesh.expert_group.size / network.gpus_per_node, 1.0)
    if not blocks or mesh.expert_group.size == 1:
        return
    if routing.dispatch == "deepep":
        yield (
            f"Rows go to experts by DeepEP at {network.nic_dispatch_efficiency:g} of the NICs' and "
            f"{network.node_dispatch_efficiency:g} of the bandwidth inside "
            "a node, which its README states of H800 and B200 and nobody measured here; nodes are taken to fall evenly."
        )
    if routing.node_limit is None:
        return
    if routing.dispatch != "deepep":
        yield (
            f"routing.node_limit {routing.node_limit} saves nothing with dispatch {routing.dispatch}, which sends to a "
            "node as often as it holds experts of a token."
        )
    tightest = max(blocks, key=lambda block: block.top_k / block.experts)
    held = routing.node_limit * tightest.experts / nodes
    if held < tightest.top_k:
        yield (
            f"routing.node_limit {routing.node_limit}: so many nodes hold {held:g} experts of a layer, fewer than the "
            f"{tightest.top_k} of a token: no router can keep to it."
        )
