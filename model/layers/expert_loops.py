"""Loops over the experts of a plain Mixture-of-Experts in PyTorch, forward: one module an expert, as studies have.

Two forms (`profiler.studies.perceptrons`): over `every` expert, with a mask over all rows; over the `chosen` ones, by
the numbers of their rows. The host's time goes by operators that the interpreter calls, as the measured layers have
about one kernel each; those are counted in that code, and a test holds them to it. The device's goes by kernels, of
which an operator may have several (torch 2.11): `nonzero` counts, then selects in two, and writes the indices of two
dimensions in one more (Nonzero.cu); top-k gathers and sorts; `unique` is assumed to take six. Every expert is taken to
have rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from moemodel.model.architecture.spec import Moe
from moemodel.model.frameworks.base import Framework
from moemodel.model.frameworks.moe_form import ByChoices, HostWaits, Launches, MoeForm, StreamedKernels

Loop = Literal["every", "chosen"]

_NONZERO = 3.0  # kernels


def _every(moe: Moe) -> MoeForm:
    experts = float(moe.experts)
    # top-k beyond the choice (1), two fills, numbers and these repeated; product, repeat, sum at the end; of an expert
    # comparison, any, both masks, rows put back
    small = 8 + experts * (3 + 2 * _NONZERO)
    kernels = (
        StreamedKernels(over="choices", forward=small, forward_B=4 * experts),
        StreamedKernels(over="chosen_rows", forward=1, forward_B=4),  # samples repeated
        StreamedKernels(over="chosen_rows", forward=experts, forward_B=4),  # rows taken
    )
    # gate, top-k, softmax, two fills, numbers, these and samples repeated, product, repeat, sum; comparison, any, its
    # reading, rows taken, rows put back. It waits for any and for both masks.
    return _form(moe, kernels, fixed=11, each=5, reads=3 * experts)


def _chosen(moe: Moe) -> MoeForm:
    experts = float(moe.experts)
    # top-k beyond the choice (1), a fill, unique (6); comparison, nonzero of two dimensions, weights, product, sum
    small = 8 + experts * (5 + _NONZERO)
    kernels = (
        StreamedKernels(over="choices", forward=small, forward_B=4 * experts),
        StreamedKernels(over="chosen_rows", forward=experts, forward_B=4),
    )
    # gate, top-k, softmax, a fill, unique; comparison, nonzero, the number's reading, rows, weights, product, sum. It
    # waits for unique, for nonzero and for the number.
    return _form(moe, kernels, fixed=5, each=7, reads=1 + 2 * experts)


def _form(moe: Moe, kernels: tuple[StreamedKernels, ...], *, fixed: float, each: float, reads: float) -> MoeForm:
    return MoeForm(
        padding="never",
        products="each",
        dispatch="kernels",
        sorts_again=False,
        kernels=kernels,
        launches=Launches(
            forward=ByChoices(one=fixed, two=fixed, more=fixed),
            backward=ByChoices(one=0, two=0, more=0),
            each_forward=each + moe.depth - 1,  # and an activation for each product but the last
        ),
        host_waits=HostWaits(forward=reads, cut=reads),
        separate_experts=True,
    )


def with_expert_loop(framework: Framework, loop: Loop, moe: Moe) -> Framework:
    """A framework that runs a block as a loop, in its forward pass."""
    return replace(framework, moe=_every(moe) if loop == "every" else _chosen(moe))
