"""What a prediction says of what a plan chooses and nobody measured here."""

from __future__ import annotations

from collections.abc import Iterator

from moemodel.model.plan.spec import Plan
from moemodel.model.step.system import System


def choice_notes(plan: Plan, machine: System) -> Iterator[str]:
    """Of what the host keeps: how fast that is taken to be."""
    offload = machine.framework.offload
    if offload is None:
        return
    link = f"the host link is taken to reach {offload.link_Bps / 1e9:.3g} GB/s either way"
    memory = f"and the host's memory {offload.memory_Bps / 1e9:.3g} GB/s for each GPU (offload.host_memory_GBps)"
    said = plan.offload is not None and "host_memory_GBps" in plan.offload.model_fields_set
    assumed = "" if said or not offload.optimizer else ", which is assumed"
    yield f"Of what the host keeps: {link} {memory if offload.optimizer else ''}".rstrip() + f"{assumed}."
