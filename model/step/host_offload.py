"""What goes between a GPU and its host where the host keeps a part of the optimizer or of the activations.

    optimizer     gradients go there, the host updates its share of the parameters that the GPU owns, and these come
                  back, one after another or beside each other (Ren et al. 2021, ZeRO-Offload, section 4; Megatron Core,
                  cpu_offloading/hybrid_optimizer.py). The GPUs stand idle meanwhile.
    activations   what layers keep goes there behind forward passes and comes back behind backward passes

The host's update is bound by its memory. Left out: that the GPU updates its own share meanwhile,
that gradients may go behind backward passes, and what copies take of the GPU's memory bandwidth.

Axes: P plans.
"""

from __future__ import annotations

import numpy as np

from moemodel.model.core.arrays import FloatArray
from moemodel.model.frameworks.base import HostOffload
from moemodel.model.network.collectives import Network
from moemodel.model.step.communication_groups import OverlappableComm
from moemodel.model.step.launch_overhead import CollectiveLaunches
from moemodel.model.step.microbatch_comm import Exchange

# Bytes of a parameter. Gradients go as float32, whatever they were summed in (hybrid_optimizer.py copies them into
# float32 tensors; deepspeed/runtime/zero/stage_1_and_2.py, async_inplace_copy_grad_to_fp32_buffer_from_gpu)
GRADIENT_B = 4.0


def update_s(offload: HostOffload, owned: FloatArray, *, parameter_B: float, update_B: float) -> FloatArray:
    """Time in which the host updates its share of the parameters that a GPU owns, copies included. [P]

    Args:
        offload: shares and bandwidths.
        owned: parameters.
        parameter_B: of one that comes back.
        update_B: of one, that the update moves through the host's memory.
    """
    offloaded = offload.optimizer * owned
    parts = (
        offloaded * GRADIENT_B / offload.link_Bps,
        offloaded * update_B / offload.memory_Bps,
        offloaded * parameter_B / offload.link_Bps,
    )
    return np.asarray(np.maximum.reduce(parts) if offload.overlaps else sum(parts))


def copied(offload: HostOffload, kept_B: FloatArray, network: Network) -> Exchange:
    """What a pass of one micro-batch sends to the host, or gets back, of what its layers keep; behind the pass.

    A byte is taken to need as much energy as over the links between GPUs.
    """
    time_s = offload.activations * kept_B / offload.link_Bps
    less = np.minimum(offload.link_Bps / network.node_Bps, 1.0) - 1.0
    calls = CollectiveLaunches.none(len(time_s))
    overlappable = OverlappableComm(time_s=time_s, hideable_s=time_s)
    return Exchange(exposed_s=np.zeros_like(time_s), overlappable=overlappable, calls=calls, beside_s=less * time_s)
