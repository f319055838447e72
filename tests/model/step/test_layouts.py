"""Which plans are laid out together, and that a plan is worth the same wherever it is laid out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.schedule import registry as schedules
from moemodel.model.schedule.pipeline_layout import Stage, Stages
from moemodel.model.step.layouts import layouts_of


@pytest.fixture
def olmoe() -> Architecture:
    return read_architecture("olmoe-1b-7b")


def batch(**columns: Any) -> PlanBatch:
    given: dict[str, Any] = {
        "dp": 1,
        "tp": 1,
        "ep": 1,
        "cp": 1,
        "zero_stage": 0,
        "sequence_parallel": 0,
        "virtual_stages": 1,
        "micro_batch": 1,
        "global_batch": 64,
        "seq": 1024,
        "recompute": 0,
        "schedule": schedules.number("1f1b"),
        "skew": 1.0,
        "clock_Hz": np.inf,
        "power_cap_W": np.inf,
    }
    return PlanBatch.of(**given | columns)


def test_pipelines_that_differ_in_length_are_laid_out_together(olmoe: Architecture) -> None:
    found = layouts_of(olmoe, batch(pp=[16, 1, 4, 2, 8, 4]))
    assert [layout.rows.tolist() for layout in found] == [[1], [3], [0, 2, 4, 5]]
    first, middle, last = found[2].pipeline
    assert isinstance(middle, Stages)
    assert middle.count.tolist() == [14, 2, 6, 2]
    assert middle.first.tolist() == [1, 1, 1, 1]
    assert [count.tolist() for count in middle.layers if not isinstance(count, int)] == [[1.0, 4.0, 2.0, 4.0]]
    assert [(s.embedding, s.head) for s in (first, middle, last)] == [(True, False), (False, False), (False, True)]


def test_a_pipeline_alone_is_counted_in_numbers(olmoe: Architecture) -> None:
    (layout,) = layouts_of(olmoe, batch(pp=[4, 4]))
    assert all(isinstance(stage, Stage) for stage in layout.pipeline)


@pytest.mark.parametrize(
    "columns", [{"virtual_stages": 2}, {"schedule": schedules.number("zero-bubble")}], ids=["chunks", "walked"]
)
def test_what_is_not_known_by_formula_stays_apart(olmoe: Architecture, columns: dict[str, int]) -> None:
    found = layouts_of(olmoe, batch(pp=[4, 8, 4], **columns))
    assert [layout.rows.tolist() for layout in found] == [[0, 2], [1]]


def test_rows_that_are_asked_for_are_those_of_the_whole(olmoe: Architecture) -> None:
    found = layouts_of(olmoe, batch(pp=[4, 1, 8, 2, 4]), np.array([1, 2, 4]))
    assert [layout.rows.tolist() for layout in found] == [[1], [2, 4]]
    assert found[1].place(5).tolist() == [-1, -1, 0, -1, 1]
