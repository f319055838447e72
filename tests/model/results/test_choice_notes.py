"""Notes on what a plan chooses and nobody measured."""

from __future__ import annotations

from typing import Any

import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.plan.spec import Plan
from moemodel.model.results.choice_notes import choice_notes
from moemodel.model.step.system import system_of


def _notes(**changes: Any) -> list[str]:
    plan = Plan.model_validate(
        {"architecture": "opt-350m", "sequence_length": 2048, "global_batch": 16, "cluster": {"gpu": "h100-sxm-80gb"}}
        | changes
    )
    return list(choice_notes(plan, system_of(plan, shipped("h100-sxm-80gb"))))


@pytest.mark.parametrize(
    ("offload", "note"),
    [
        (
            {"optimizer": 1.0},
            "Of what the host keeps: the host link is taken to reach 55.5 GB/s either way and the host's memory 61 "
            "GB/s for each GPU (offload.host_memory_GBps), which is assumed.",
        ),
        (
            {"activations": 1.0, "link_GBps": 400.0},
            "Of what the host keeps: the host link is taken to reach 400 GB/s either way.",
        ),
    ],
)
def test_of_the_host(offload: dict[str, Any], note: str) -> None:
    assert _notes(offload=offload) == [note]
    assert _notes() == []
