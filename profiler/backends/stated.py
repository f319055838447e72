"""Keys of a plan that a runner leaves to its program, so that none may be stated."""

from __future__ import annotations

from collections.abc import Iterator

from moemodel.model.plan.spec import Plan

_LEFT_TO_THE_PROGRAM = (
    "attention",
    "compile",
    "cuda_graphs",
    "cross_entropy",
    "deterministic",
    "gradient_dtype",
    "fp8_recipe",
    "parameter_dtype",
    "activation_input_dtype",
    "tp_comm_overlap",
    "loss_chunks",
    "cp_comm",
    "multi_token",
    "dropout",
    "optimizer",
    "lora",
    "offload",
    "micro_batches_per_schedule",
    "stage_layers",
)


def stated(plan: Plan, where: str) -> Iterator[str]:
    """A message for each that a plan states.

    Args:
        plan: to be run.
        where: null is allowed, such as "allowed for plans that are run".
    """
    for name in _LEFT_TO_THE_PROGRAM:
        if (found := getattr(plan, name)) is not None:
            yield f"{name}: found {found!r}; {where}: null"
    if plan.routing.products is not None:
        yield f"routing.products: found {plan.routing.products!r}; {where}: null"
