"""The forms in which frameworks run Mixture-of-Experts blocks (`frameworks.moe_form`), as operators.

Symbols: T tokens, D hidden, E experts, k of them a token, C rows of an expert's buffer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from moemodel.model.architecture.spec import Moe
from moemodel.model.core.arrays import FloatArray
from moemodel.model.frameworks.moe_form import MoeForm, StreamedKernels, Tensor
from moemodel.model.layers.base import COPY_B, LayerOp, linear
from moemodel.model.operators.work import Kind, Pass, Shape


def router_operators(moe: Moe, form: MoeForm, tokens: FloatArray, hidden: int) -> Iterator[LayerOp]:
    """Scores of all experts, their softmax and the choice.

    A product in float32 takes as long as one of 16 bits that is so many times wider. Noisy gates have a second one, of
    the noise's width (Shazeer et al. 2017, equation 4).
    """
    width = moe.experts * (form.float32_times if form.float32_router else 1.0)
    yield replace(linear(tokens, width, hidden), gating=True)
    if moe.router == "noisy_topk":
        yield replace(linear(tokens, width, hidden, shares_input=True), gating=True)
    choice = Shape(m=tokens, experts=moe.experts, top_k=moe.top_k)
    yield LayerOp(kind=Kind.ROUTER, shape=choice, gating=True)


def dispatch_by_mask(tokens: FloatArray, slots: FloatArray, hidden: int) -> LayerOp:
    """`sec,sm->ecm`: a product of E C rows, D wide and T deep; masks get no gradient."""
    shape = Shape(m=tokens * slots, n=hidden, k=tokens)
    return LayerOp(kind=Kind.GEMM, shape=shape, backward=(Pass.BACKWARD_INPUT,), gating=True)


def combine_by_mask(tokens: FloatArray, slots: FloatArray, hidden: int) -> LayerOp:
    """`sec,ecm->sm`: a product of T rows, D wide and E C deep."""
    return LayerOp(kind=Kind.GEMM, shape=Shape(m=tokens, n=hidden, k=tokens * slots), gating=True)


def gradient_fan_in(shape: Shape) -> Iterator[LayerOp]:
    """Nothing forward; backward, gradients of the router's and of the dispatch's input are added."""
    yield LayerOp(kind=Kind.COPY, shape=shape, grad_fan_in=shape, only_backward=True, gating=True)


def expert_product(form: MoeForm, rows: Shape) -> LayerOp:
    """One product of all experts that a GPU holds: `rows.m` of them, `rows.experts` experts."""
    if form.products != "each":
        return LayerOp(kind=Kind.GROUPED_GEMM, shape=rows)
    one = Shape(m=np.asarray(rows.m) / np.asarray(rows.experts), n=rows.n, k=rows.k)
    return LayerOp(kind=Kind.GEMM, shape=one, mask=np.asarray(rows.experts))


def each_expert(form: MoeForm, op: LayerOp, rows: Shape) -> Iterator[LayerOp]:
    """An elementwise operator on all rows at once, or on those of each expert by themselves."""
    if form.products != "each":
        yield op
        return
    experts = np.asarray(rows.experts)
    yield replace(op, shape=replace(op.shape, m=np.asarray(op.shape.m) / experts), mask=experts)


def tensor_sizes(
    moe: Moe, hidden: int, *, tokens: FloatArray, slots: FloatArray, busiest: FloatArray, local: FloatArray
) -> dict[Tensor, FloatArray]:
    """Elements of each tensor that plain kernels go over. [P] each.

    Args:
        moe: the block.
        hidden: D.
        tokens: T that a GPU routes.
        slots: rows of a token, E C / T.
        busiest: rows of the busiest rank over the mean.
        local: experts of a GPU.
    """
    return {
        "places": tokens,
        "tokens": tokens * hidden,
        "scores": tokens * moe.experts,
        "choices": tokens * moe.top_k,
        "chosen_rows": tokens * moe.top_k * hidden,
        "expert_rows": tokens * slots * busiest * hidden,
        "inner_rows": tokens * slots * busiest * moe.width,
        "every_expert_rows": tokens * slots * busiest * hidden * local,
        "router_weights": np.full_like(tokens, moe.experts * hidden),
        "masks": tokens * tokens * slots,
    }


def streamed_operators(
    kernels: Iterable[StreamedKernels], sizes: dict[Tensor, FloatArray], top_k: int, local: FloatArray
) -> Iterator[LayerOp]:
    """Plain kernels as copies that move as many bytes: so many, each an even share of them; `local`: experts that a
    GPU holds."""
    for one in kernels:
        if not one.runs(top_k):
            continue
        elements, times = sizes[one.over], local if one.each_expert else np.ones_like(local)
        elements = elements / times
        for count, size_B, backward in ((one.forward, one.forward_B, False), (one.backward, one.backward_B, True)):
            if count:
                shape = Shape(m=elements * (size_B / count / COPY_B))
                added_s = backward * one.backward_expert_s * local / (count * times)
                op = _repeated(shape, count * times, backward=backward)
                yield replace(op, operand_energy=one.energy, added_s=added_s)


def plain_launches(kernels: Iterable[StreamedKernels], local: FloatArray) -> tuple[FloatArray, FloatArray]:
    """How many they are forward and backward, of so many experts of a GPU. [P] each."""
    every = list(kernels)
    times = [local if one.each_expert else np.ones_like(local) for one in every]
    forward = sum((one.forward * each for one, each in zip(every, times, strict=True)), np.zeros_like(local))
    backward = sum((one.backward * each for one, each in zip(every, times, strict=True)), np.zeros_like(local))
    return np.asarray(forward), np.asarray(backward)


def _repeated(shape: Shape, times: FloatArray, *, backward: bool) -> LayerOp:
    """Copies of a shape, so many in each plan, in a forward or in a backward pass."""
    if not backward:
        return LayerOp(kind=Kind.COPY, shape=shape, mask=times, gating=True)
    return LayerOp(kind=Kind.COPY, shape=shape, copies=(shape,), mask=times, gating=True, only_backward=True)


def streamed_kept_B(
    kernels: Iterable[StreamedKernels], sizes: dict[Tensor, FloatArray], top_k: int
) -> FloatArray | None:
    """What plain kernels keep for the backward pass, bytes; None: nothing. [P]"""
    kept = [one.kept_B * sizes[one.over] for one in kernels if one.kept_B and one.runs(top_k)]
    return np.asarray(sum(kept)) if kept else None


def policy_launches(form: MoeForm, top_k: int) -> tuple[float, float]:
    """Kernels of a plan's routing policies, forward and backward."""
    run = [one for one in form.policies if one.runs(top_k)]
    return sum(one.forward for one in run), sum(one.backward for one in run)
