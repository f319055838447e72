"""A framework with the kernels that a plan asks for: of attention, of the loss, and those that torch.compile makes."""

from __future__ import annotations

from dataclasses import replace

from moemodel.model.core.errors import InputError
from moemodel.model.frameworks.base import Framework, FusedOperator
from moemodel.model.frameworks.registry import FRAMEWORKS
from moemodel.model.plan.spec import Plan

# What torch.compile makes one kernel of in a layer, either way (`torch/_inductor`: pointwise chains and the reductions
# in them); routers and rows on their way to experts are calls of their own. Left out: a residual that the norm behind
# it reads in the same kernel, and fewer launches
COMPILED: frozenset[FusedOperator] = frozenset(
    {"rms_norm", "layer_norm", "rotary", "gelu", "relu", "swiglu", "swiglu_packed"}
)
# Of a loss that it makes kernels of: 16-bit logits read twice forward; backward read, and their gradient written
_COMPILED_LOSS_B = (4.0, 4.0)
_COMPILED_LOGIT_B = 4.0  # of which the 16-bit logits and that gradient stay
# Where float32 logits are an output of the program as well: these, and zeros that the targets' gradients are put in
_RETURNED_LOGIT_B = 8.0
# Of a fused one, as Transformer Engine's and Liger's Triton kernels: read twice, the gradient written in their place;
# backward this is scaled
FUSED_LOSS_B = (6.0, 4.0)


# Of Megatron's, as torch.compile's kernels (core/fusions/fused_cross_entropy.py): to float32 and their largest (2 read,
# 4 written), exponentials and their sum (8), softmax (8); backward a copy (8), times the loss's gradient, that copied
# back and to 16 bits (4 read, 6 written)
COMPILED_LOSS_B = (22.0, 18.0)


def kernels_as_asked(framework: Framework, plan: Plan) -> Framework:
    """The framework, with what a plan says of its kernels.

    Raises:
        InputError: it asks for what the framework does not have.
    """
    found = _attention(_loss(_compiled(framework, plan), plan), plan)
    if found.compiles_with_mask and found.attention == "cudnn-masked":
        found = replace(found, repeats_keys=True)
    if plan.collective_checks:
        found = replace(found, checks_collectives=True, keeps_norm_shards=found.keeps_norm_shards or found.frees_late)
    if not plan.cuda_graphs:
        return found
    if isinstance(plan.cuda_graphs, bool):
        return replace(found, captured=True, moe=replace(found.moe, expert_kernel_s=0.0, fuses_casts=True))
    return replace(found, captured_parts=plan.cuda_graphs)


def _compiled(framework: Framework, plan: Plan) -> Framework:
    if plan.compile is None or not (plan.compile or framework.compiles):
        return framework
    if not framework.compiles:
        names = ", ".join(name for name, known in FRAMEWORKS.items() if known.compiles)
        raise InputError(
            f"compile: found true with backend {framework.name}, whose layers torch.compile does not make kernels of; "
            f"allowed: false, null, or backend {names}"
        )
    if not plan.compile:
        return replace(framework, fused_kernels=framework.fused_kernels - COMPILED)
    # of what runs again the graph has only what leads to a gradient (torch/_functorch/partitioners.py)
    made = framework.fused_kernels | COMPILED
    found = replace(framework, fused_kernels=made, compiled=True, recompute_stops_early=True)
    if framework.compiles_with_mask:
        found = replace(found, attention="cudnn-masked")
    if framework.fused_loss_B is not None or not framework.compiles_loss:
        return found
    logit_B = _RETURNED_LOGIT_B if framework.returns_logits else _COMPILED_LOGIT_B
    return replace(found, fused_loss_B=_COMPILED_LOSS_B, logit_B=logit_B)


def _loss(framework: Framework, plan: Plan) -> Framework:
    """Kernels of the loss; how many bytes of a logit stay is `system`'s."""
    match plan.cross_entropy:
        case "fused":
            return replace(framework, fused_loss_B=framework.fused_loss_B or FUSED_LOSS_B, eager_loss=False)
        case "compiled":
            return replace(framework, fused_loss_B=COMPILED_LOSS_B, eager_loss=False)
        case "plain" if framework.fused_loss_B is not None:
            return replace(framework, fused_loss_B=None, eager_loss=not framework.torch_launch)
        case _:
            return framework


def _attention(framework: Framework, plan: Plan) -> Framework:
    if plan.attention is None:
        return framework
    if plan.attention == "unfused":
        plain = "plain" if framework.torch_launch else framework.softmax  # torch's has no kernel that masks as well
        return replace(framework, attention="unfused", flash_attention=False, softmax=plain)
    if plan.attention == "unfused-fp32":
        found = replace(framework, attention="unfused-fp32", flash_attention=False)
        return replace(found, softmax="fused", softmax_longest=0)  # whose fused kernel takes no sequence
    return replace(framework, attention=plan.attention, flash_attention=True)
