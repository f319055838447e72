"""Batches of plans: what a column may be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moemodel.model.plan.batch import PlanBatch, joined
from moemodel.model.plan.spec import Plan

DOCUMENT = {
    "architecture": "opt-350m",
    "sequence_length": 2048,
    "global_batch": 64,
    "cluster": {"gpu": "h100-sxm-80gb", "gpus": 4},
    "parallel": {"dp": 2, "pp": 2},
}


def batch(*scheduled: int | None) -> PlanBatch:
    """One plan for each number of micro-batches of a schedule."""
    return joined([Plan.model_validate(DOCUMENT | {"micro_batches_per_schedule": one}) for one in scheduled])


def test_a_schedule_passes_all_of_a_step_where_nobody_says() -> None:
    plans = batch(None, 8)
    assert plans.scheduled.tolist() == [32, 8]
    columns = {name: value for name, value in vars(plans).items() if name != "micro_batches_per_schedule"}
    assert PlanBatch(**columns).scheduled.tolist() == [32, 32]
    assert plans.take(np.array([1, 1])).rounds.tolist() == [4, 4]


@pytest.mark.parametrize("given", [[8], [8, 8, 8], []])
def test_a_column_of_another_length_is_refused(given: list[int]) -> None:
    """It says something of other plans: what it means is not put aside."""
    with pytest.raises(ValueError, match=f"micro_batches_per_schedule: found {len(given)} values; there are 2 plans"):
        replace(batch(None, 8), micro_batches_per_schedule=np.array(given, dtype=np.int64))
