"""The collectives themselves: what one call does on a rank, over buffers that are made once.

Data are normal random numbers, since what is sent decides what sending draws. A repeated all-reduce in place doubles
its numbers at every call with two ranks, so they start small and are filled anew before they overflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from moemodel.model.network.collectives import Collective
from moemodel.model.records.profile import EXCHANGE
from moemodel.profiler.collectives.points import LinkPoint, split_elements
from moemodel.profiler.collectives.process_groups import RankGroup
from moemodel.profiler.jobs.ranks import all_gather, reduce_scatter

_WORD_B = 2  # bf16
_SMALL = 2.0**-100  # where repeated sums start; bf16 holds 2^-126 to 2^127
_DOUBLINGS = 200  # from there to before the overflow


def _nothing() -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One collective on one rank.

    Attributes:
        call: queues it once.
        prepare: puts fresh data in place; to be called before every `calls_most` calls.
        calls_most: calls that the data bear; None: any number.
        per_call: messages that one call sends after one another; its time is that of so many.
    """

    call: Callable[[], Any]
    prepare: Callable[[], Any] = _nothing
    calls_most: int | None = None
    per_call: int = 1

    def run(self, calls: int) -> None:
        """Queue so many calls, with fresh data as often as they need it."""
        for index in range(calls):
            if index % (self.calls_most or calls) == 0:
                self.prepare()
            self.call()


class Buffers:
    """Random data to send, and room to receive; made once, for tensors of up to `most_B` bytes."""

    def __init__(self, device: torch.device, most_B: int, seed: int) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        elements = most_B // _WORD_B
        self.source = torch.empty(elements, dtype=torch.bfloat16, device=device).normal_(generator=generator)
        self.sink = torch.empty_like(self.source)

    def operation(self, point: LinkPoint, group: RankGroup) -> Operation:
        """The collective of a point, as this rank of the group takes part in it."""
        elements = point.size_B // _WORD_B
        whole, out = self.source[:elements], self.sink[:elements]
        part, part_out = self.source[: elements // group.ranks], self.sink[: elements // group.ranks]
        match point.collective:
            case Collective.ALL_REDUCE:
                return _all_reduce(whole, out, group)
            case Collective.REDUCE_SCATTER:
                return Operation(call=lambda: reduce_scatter(part_out, whole, group=group.data))
            case Collective.ALL_GATHER:
                return Operation(call=lambda: all_gather(out, part, group=group.data))
            case Collective.ALL_TO_ALL if point.skew == 1:
                return Operation(call=lambda: dist.all_to_all_single(out, whole, group=group.data))
            case Collective.ALL_TO_ALL:
                return self._skewed(point, group)
            case Collective.SEND_RECV:
                return _there_and_back(whole, out, group)
            case _ if point.collective == EXCHANGE:
                return _exchange(whole, out, group)
        raise ValueError(f"no such collective: {point.collective}")

    def _skewed(self, point: LinkPoint, group: RankGroup) -> Operation:
        sent = split_elements(point.size_B // _WORD_B, group.ranks, point.skew)
        received = [sent[group.rank]] * group.ranks
        whole, out = self.source[: sum(sent)], self.sink[: sum(received)]
        return Operation(call=lambda: dist.all_to_all_single(out, whole, received, sent, group=group.data))


def _all_reduce(whole: torch.Tensor, out: torch.Tensor, group: RankGroup) -> Operation:
    return Operation(
        call=lambda: dist.all_reduce(out, group=group.data),
        prepare=lambda: torch.mul(whole, _SMALL, out=out),
        calls_most=max(1, int(_DOUBLINGS / math.log2(group.ranks))),
    )


def _there_and_back(whole: torch.Tensor, out: torch.Tensor, group: RankGroup) -> Operation:
    """A message to rank 1 and one back, so that one waits for the other and latency shows."""
    other = 1 - group.rank

    def call() -> None:
        if group.rank == 0:
            dist.send(whole, other, group=group.data)
            dist.recv(out, other, group=group.data)
        else:
            dist.recv(out, other, group=group.data)
            dist.send(whole, other, group=group.data)

    return Operation(call=call, per_call=2)


def _exchange(whole: torch.Tensor, out: torch.Tensor, group: RankGroup) -> Operation:
    after, before = (group.rank + 1) % group.ranks, (group.rank - 1) % group.ranks

    def call() -> None:
        sends = dist.P2POp(dist.isend, whole, after, group=group.data)
        receives = dist.P2POp(dist.irecv, out, before, group=group.data)
        for work in dist.batch_isend_irecv([sends, receives]):
            work.wait()

    return Operation(call=call)


def computation(name: str, m: int, n: int, k: int, device: torch.device, seed: int) -> Callable[[], Any]:
    """What runs beside a collective: a product "gemm" of m x n x k, or "add" of m elements; bf16, random data."""
    generator = torch.Generator(device).manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(generator=generator)

    if name == "gemm":
        a, b = random(m, k), random(k, n)
        product = torch.empty(m, n, dtype=torch.bfloat16, device=device)
        return lambda: torch.mm(a, b, out=product)
    left, right = random(m), random(m)
    total = torch.empty_like(left)
    return lambda: torch.add(left, right, out=total)
