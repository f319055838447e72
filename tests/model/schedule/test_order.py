"""The order of work of each schedule, and how much of it is open at once, against torch.distributed.pipelining."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from moemodel.model.core.arrays import IntArray
from moemodel.model.schedule import registry
from moemodel.model.schedule.base import Sizes, Work

Orders = Callable[..., list[list[Work]]]

# name, stages, micro-batches, virtual stages
CASES = [
    *(
        (name, n, m, 1)
        for name in ("gpipe", "1f1b")
        for n, m in ((1, 1), (1, 4), (2, 1), (2, 5), (4, 3), (4, 4), (5, 17))
    ),
    *(("1f1b", n, m, v) for n, m, v in ((2, 2, 2), (2, 8, 3), (3, 6, 2), (4, 8, 2), (4, 4, 4))),
    *(("zero-bubble", n, m, v) for n, m, v in ((1, 3, 1), (2, 6, 1), (4, 3, 1), (4, 10, 1), (4, 12, 1))),
    *(("zero-bubble", n, m, v) for n, m, v in ((2, 2, 2), (2, 8, 3), (3, 6, 2), (4, 8, 2))),
    *(("dualpipe-v", n, m, 2) for n, m in ((1, 2), (2, 4), (2, 7), (3, 6), (4, 8), (4, 13), (5, 10), (8, 20))),
]


def sizes(stages: int, micro_batches: int, virtual: int) -> Sizes[int]:
    return Sizes(stages=stages, virtual=virtual, micro_batches=micro_batches)


def column(stages: int, micro_batches: int, virtual: int) -> Sizes[IntArray]:
    return Sizes(stages=np.array([stages]), virtual=np.array([virtual]), micro_batches=np.array([micro_batches]))


def open_at_each_step(order: list[Work], *, until: str) -> Iterator[tuple[Work, int]]:
    """Passes that were begun and are not over, before each piece of work."""
    count = 0
    for work in order:
        yield work, count
        count += (work.kind == "F") - (work.kind == until)


@pytest.mark.parametrize(("name", "n", "m", "v"), CASES)
def test_stages_work_in_the_order_of_torch(name: str, n: int, m: int, v: int, torch_orders: Orders) -> None:
    schedule = registry.find(name, v)
    ours = [schedule.order(stage, sizes(n, m, v)) for stage in range(n)]
    assert ours == torch_orders(name, n, m, v)


@pytest.mark.parametrize(("name", "n", "m", "v"), CASES)
def test_activations_in_flight_are_those_of_open_passes(
    name: str, n: int, m: int, v: int, torch_orders: Orders
) -> None:
    """A pass is open until its backward pass, or its weights' gradients, are done; a chunk's counts as 1 / v."""
    schedule = registry.find(name, v)
    until = "W" if schedule.splits_backward else "B"
    for stage, order in enumerate(torch_orders(name, n, m, v)):
        most = max(count + (work.kind == "F") for work, count in open_at_each_step(order, until=until))
        assert schedule.in_flight(stage, column(n, m, v)) == pytest.approx(most / v)


@pytest.mark.parametrize(("n", "m"), [(2, 6), (4, 4), (4, 12)])
def test_weight_gradients_put_off_are_those_that_wait_beside_the_next(n: int, m: int, torch_orders: Orders) -> None:
    """Of micro-batches whose other gradients are done, when the weights' of one begin."""
    schedule = registry.find("zero-bubble")
    for stage, order in enumerate(torch_orders("zero-bubble", n, m)):
        kinds = "".join(work.kind for work in order)
        waiting = [kinds[:i].count("B") - kinds[:i].count("W") - 1 for i, kind in enumerate(kinds) if kind == "W"]
        assert schedule.deferred(stage, column(n, m, 1)) == max(waiting)


@pytest.mark.parametrize(("name", "n", "m"), [("gpipe", 4, 9), ("1f1b", 4, 9), ("zero-bubble", 4, 8)])
def test_losses_of_earlier_micro_batches(name: str, n: int, m: int, torch_orders: Orders) -> None:
    """On the last stage: passes that are open beside the one whose backward pass begins."""
    schedule = registry.find(name)
    until = "W" if schedule.splits_backward else "B"
    last = torch_orders(name, n, m)[-1]
    most = max(count - 1 for work, count in open_at_each_step(last, until=until) if work.kind == "B")
    assert schedule.earlier_losses(n - 1, column(n, m, 1)) == most
    assert schedule.keeps_every_micro_batch == (most == m - 1)
