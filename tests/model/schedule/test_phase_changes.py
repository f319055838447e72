"""How often stages go from phase to phase: counted by hand, and against a walk through each schedule's order."""

from __future__ import annotations

import numpy as np
import pytest

from moemodel.model.schedule import registry
from moemodel.model.schedule.base import Sizes
from moemodel.model.schedule.batch import PlanSchedules
from moemodel.model.schedule.phase_changes import PHASES, phase_changes

F, B, OPT = PHASES


@pytest.mark.parametrize(
    ("name", "n", "m", "stage", "counts"),
    [
        ("1f1b", 1, 4, 0, {(F, B): 4, (B, F): 3, (B, OPT): 1, (OPT, F): 1}),  # F B F B F B F B O
        ("1f1b", 4, 4, 0, {(F, B): 1, (B, OPT): 1, (OPT, F): 1}),  # F F F F B B B B O
        ("1f1b", 4, 8, 3, {(F, B): 8, (B, F): 7, (B, OPT): 1, (OPT, F): 1}),
        (
            "1f1b",
            4,
            8,
            1,
            {(F, B): 6, (B, F): 5, (B, OPT): 1, (OPT, F): 1},
        ),  # F F F B F B F B F B F B F B B B
        ("gpipe", 4, 8, 2, {(F, B): 1, (B, OPT): 1, (OPT, F): 1}),
    ],
)
def test_counted_by_hand(name: str, n: int, m: int, stage: int, counts: dict[tuple[str, str], int]) -> None:
    found = phase_changes(registry.find(name), stage, Sizes(stages=n, virtual=1, micro_batches=m))
    assert found.counts == counts
    assert found.passes == {F: m, B: m, OPT: 1}


def test_a_step_of_several_schedules_goes_back_to_forward_between_them() -> None:
    sizes = Sizes(stages=4, virtual=1, micro_batches=4)
    assert phase_changes(registry.find("gpipe"), 0, sizes, 3).counts == {(F, B): 3, (B, F): 2, (B, OPT): 1, (OPT, F): 1}


@pytest.mark.parametrize("name", registry.NAMES)
def test_as_many_changes_into_a_phase_as_out_of_it(name: str) -> None:
    for stage in range(4):
        counts = phase_changes(registry.find(name), stage, Sizes(stages=4, virtual=1, micro_batches=12)).counts
        for phase in PHASES:
            into = sum(count for (_, later), count in counts.items() if later == phase)
            assert into == sum(count for (earlier, _), count in counts.items() if earlier == phase) > 0


def test_shares_of_a_batch_are_those_of_each_plan() -> None:
    numbers, stages, virtual = np.array([0, 1, 2, 0]), np.array([4, 4, 4, 1]), np.array([2, 1, 1, 1])
    micro = np.array([8, 8, 8, 5])
    found = PlanSchedules(numbers, Sizes(stages=stages, virtual=virtual, micro_batches=micro)).phase_changes(0)
    for row, (number, n, v, m) in enumerate(zip(numbers, stages, virtual, micro, strict=True)):
        schedule = registry.find(registry.NAMES[number], int(v))
        one = phase_changes(schedule, 0, Sizes(stages=int(n), virtual=int(v), micro_batches=int(m)))
        assert found[row] == pytest.approx(np.array(one.shares))
    assert found[3, 1, 0] == 1.0  # every backward pass follows a forward pass
    assert found[3, 0, 1] == pytest.approx(4 / 5)
