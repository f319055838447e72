"""Notes on what a plan chooses and nobody measured."""

from __future__ import annotations

from typing import Any

import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.results.choice_notes import choice_notes
from moemodel.model.step.system import system_of


def _notes(**changes: Any) -> list[str]:
    plan = Plan.model_validate(
        {"architecture": "opt-350m", "sequence_length": 2048, "global_batch": 16, "cluster": {"gpu": "h100-sxm-80gb"}}
        | changes
    )
    return list(choice_notes(plan, architecture_of(plan), system_of(plan, shipped("h100-sxm-80gb"))))


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


def test_of_adapters() -> None:
    """Rank 16 beside 4 h^2 and 2 h 4 h of 24 layers of h 1024: 16 (8 h + 10 h), queries, keys and values apart."""
    assert _notes(lora={"rank": 16}) == [
        "Of 0.3383 B parameters 7.078 M are trained, those of adapters (lora); frozen weights have no gradients, and "
        "experts no adapters."
    ]
