"""What a plan's routing policies make a framework run beside its own router.

Elements of scores are float32 behind a softmax. Normalised weights, and ones that are not, differ by two kernels over
the choices of a token, which is too little to tell; biases that balance without a loss are moved once a step, by a
kernel over the experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from moemodel.model.core.errors import InputError
from moemodel.model.frameworks.base import Framework
from moemodel.model.frameworks.moe_form import MoeForm, StreamedKernels
from moemodel.model.plan.routing import RoutingSpec


def form_as_asked(framework: Framework, routing: RoutingSpec) -> MoeForm:
    """The form of a framework's Mixture-of-Experts block under a plan's routing; the same object where that asks for
    nothing.

    Raises:
        InputError: no padding, of a framework that always pads.
    """
    form, policies = framework.moe, tuple(_policies(framework.moe, routing))
    if policies:
        form = replace(form, policies=policies)
    if routing.products is not None and routing.products != form.products:
        form = replace(form, products=routing.products, separate_experts=routing.products == "each")
    if routing.pad is None:
        return form
    if form.padding == "always":
        if not routing.pad:
            raise InputError(
                f"routing.pad: found false with backend {framework.name}, which pads every expert's rows; allowed: "
                "true, or null"
            )
        return form
    return replace(form, padding="capacity" if routing.pad else "never")


def _policies(form: MoeForm, routing: RoutingSpec) -> Iterator[StreamedKernels]:
    if (
        routing.jitter
    ):  # noise (2 B of an element written), times the input (4 read, 2 written); backward times it again
        yield StreamedKernels(over="tokens", forward=2, backward=1, forward_B=8, backward_B=6, kept_B=2)
    if routing.temperature != 1:
        yield StreamedKernels(over="scores", forward=1, backward=1, forward_B=4, backward_B=4)
    if routing.router == "noisy_topk":  # noise, softplus, their product, the sum (Shazeer et al. 2017, equation 4)
        yield StreamedKernels(over="scores", forward=4, backward=3, forward_B=16, backward_B=14, kept_B=6)
    if routing.balance_loss and not form.balance_loss:  # means of probabilities; their gradient, added to the scores'
        yield StreamedKernels(over="scores", forward=4, backward=3, forward_B=8, backward_B=16)
    if routing.z_loss:  # logarithm of the sum of exponentials, its square and mean; backward a softmax and a sum
        yield StreamedKernels(over="scores", forward=4, backward=4, forward_B=10, backward_B=20, kept_B=4)
    if routing.bias_rate:  # added to scores before the choice
        yield StreamedKernels(over="scores", forward=1, forward_B=8)
    if routing.router == "expert_choice":  # scores of each expert over tokens put side by side, of which it chooses
        yield StreamedKernels(over="scores", forward=2, backward=2, forward_B=12, backward_B=8)
