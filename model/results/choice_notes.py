"""What a prediction says of what a plan chooses and nobody measured here."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moemodel.model.architecture.spec import Architecture
from moemodel.model.layers.adapted_model import model_adapters
from moemodel.model.layers.parameters import parameters
from moemodel.model.plan.spec import Plan
from moemodel.model.step.system import System


def choice_notes(plan: Plan, architecture: Architecture, machine: System) -> Iterator[str]:
    """Of adapters: what is trained; of what the host keeps: how fast that is taken to be; of data: how long they
    take."""
    yield from _adapters(architecture, machine)
    yield from _host(plan, machine)
    yield from _data(plan, machine)


def _adapters(architecture: Architecture, machine: System) -> Iterator[str]:
    trained = model_adapters(architecture, machine.framework, machine.precision)
    if trained is None:
        return
    frozen = parameters(architecture).total
    yield (
        f"Of {frozen / 1e9 + trained / 1e9:.4g} B parameters {trained / 1e6:.4g} M are trained, those of adapters "
        "(lora); frozen weights have no gradients, and experts no adapters."
    )


def _host(plan: Plan, machine: System) -> Iterator[str]:
    offload = machine.framework.offload
    if offload is None:
        return
    link = f"the host link is taken to reach {offload.link_Bps / 1e9:.3g} GB/s either way"
    memory = f"and the host's memory {offload.memory_Bps / 1e9:.3g} GB/s for each GPU (offload.host_memory_GBps)"
    said = plan.offload is not None and "host_memory_GBps" in plan.offload.model_fields_set
    assumed = "" if said or not offload.optimizer else ", which is assumed"
    yield f"Of what the host keeps: {link} {memory if offload.optimizer else ''}".rstrip() + f"{assumed}."


def _data(plan: Plan, machine: System) -> Iterator[str]:
    if machine.data_loading is None:
        return
    sequences = plan.micro_batches * plan.micro_batch
    (read_s,) = machine.data_loading.step_s(np.array([sequences]), np.array([plan.parallel.dp]))
    yield (
        f"A step takes {read_s:.3g} s at least, in which {machine.data_loading.workers} processes of each replica read "
        f"its {sequences} sequences (cluster.data_loading)."
    )
