"""Which passes lie in the overlap window of what a stage exchanges once, counted in the order of its schedule."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from moemodel.model.schedule import registry
from moemodel.model.schedule.base import Schedule, Sizes
from moemodel.model.schedule.batch import PlanSchedules

# name, stages, micro-batches, virtual stages, micro-batches of a round (0: as many as there are stages)
CASES = [
    *(("1f1b", n, m, v, 0) for n, m, v in ((4, 8, 2), (2, 2, 4), (2, 4, 4), (8, 16, 3), (4, 10, 2))),
    *(("1f1b", n, m, v, g) for n, m, v, g in ((4, 8, 2, 8), (4, 12, 3, 6), (2, 7, 2, 3), (4, 13, 2, 6))),
    *(("zero-bubble", n, m, v, 0) for n, m, v in ((2, 8, 3), (3, 6, 2), (4, 8, 2), (4, 8, 1), (5, 5, 4), (4, 10, 2))),
    *(("dualpipe-v", n, m, 2, 0) for n, m in ((1, 2), (2, 4), (2, 7), (3, 6), (4, 8), (4, 13), (5, 10), (8, 20))),
    *(("dualpipe", n, m, 2, 0) for n, m in ((2, 4), (4, 8), (8, 16), (8, 20))),
]


def each_stage(name: str, n: int, m: int, v: int, g: int) -> Iterator[tuple[Schedule, int, Sizes[int]]]:
    for stage in range(n):
        yield registry.find(name, v), stage, Sizes(stages=n, virtual=v, micro_batches=m, round=g)


@pytest.mark.parametrize(("name", "n", "m", "v", "g"), CASES)
def test_parameters_of_the_chunk_that_begins_last(name: str, n: int, m: int, v: int, g: int) -> None:
    for schedule, stage, sizes in each_stage(name, n, m, v, g):
        chunks = [work.chunk for work in schedule.order(stage, sizes) if work.kind == "F"]
        begins = {chunk: chunks.index(chunk) for chunk in chunks}
        assert batch(name, sizes).overlap_passes_forward(stage) == pytest.approx(max(begins.values()) / v)


@pytest.mark.parametrize(("name", "n", "m", "v", "g"), CASES)
def test_gradients_of_the_chunk_that_ends_first(name: str, n: int, m: int, v: int, g: int) -> None:
    """A chunk has its gradients when its last backward pass is done, or its last part for weights."""
    for schedule, stage, sizes in each_stage(name, n, m, v, g):
        back = [work for work in schedule.order(stage, sizes) if work.kind != "F"]
        ends = {work.chunk: place for place, work in enumerate(back)}
        after = len(back) - 1 - min(ends.values())
        parts = 2 if schedule.splits_backward else 1
        assert batch(name, sizes).overlap_passes_backward(stage) == pytest.approx(after / parts / v)


@pytest.mark.parametrize(("name", "n", "m", "v", "g"), [case for case in CASES if case[0] != "dualpipe"])
def test_no_later_stage_has_more(name: str, n: int, m: int, v: int, g: int) -> None:
    """So that of like stages the last one tells what none of them hides."""
    schedules = batch(name, Sizes(stages=n, virtual=v, micro_batches=m, round=g))
    for passes in (schedules.overlap_passes_forward, schedules.overlap_passes_backward):
        assert all(passes(stage + 1) <= passes(stage) for stage in range(n - 1))


def test_of_dualpipe_v_each_stage_has_its_own() -> None:
    schedules = batch("dualpipe-v", Sizes(stages=4, virtual=2, micro_batches=8))
    assert [2 * float(schedules.overlap_passes_forward(stage)[0]) for stage in range(4)] == [7, 5, 3, 1]


@pytest.mark.parametrize("name", registry.NAMES)
def test_stages_of_one_chunk_have_none(name: str) -> None:
    schedules = batch(name, Sizes(stages=4, virtual=1, micro_batches=8))
    if registry.find(name).only_virtual is None:
        assert schedules.overlap_passes_forward(1) == schedules.overlap_passes_backward(1) == 0


def test_of_plans_of_several_schedules() -> None:
    """One answer each, of the stage that is asked about."""
    cases = [case for case in CASES if case[0] != "1f1b" or case[4]]
    numbers, stages, micro_batches, virtual, rounds = (
        np.array(column) for column in zip(*((registry.number(name), *rest) for name, *rest in cases), strict=True)
    )
    together = PlanSchedules(numbers, Sizes(stages=stages, virtual=virtual, micro_batches=micro_batches, round=rounds))
    last = stages - 1
    for place, (name, n, m, v, g) in enumerate(cases):
        alone = batch(name, Sizes(stages=n, virtual=v, micro_batches=m, round=g))
        assert together.overlap_passes_forward(last)[place] == alone.overlap_passes_forward(n - 1)
        assert together.overlap_passes_backward(last)[place] == alone.overlap_passes_backward(n - 1)


def batch(name: str, sizes: Sizes[int]) -> PlanSchedules:
    """Of one plan."""
    one = Sizes(
        stages=np.array([sizes.stages]),
        virtual=np.array([sizes.virtual]),
        micro_batches=np.array([sizes.micro_batches]),
        round=np.array([sizes.round]),
    )
    return PlanSchedules(np.array([registry.number(name)]), one)
