"""Clocks by stage and phase at the door: what they mean, and which are refused with which words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import yaml

from moemodel.model.core.errors import InputError
from moemodel.model.hardware.gpu import read_gpu
from moemodel.model.plan.batch import batch_of, joined
from moemodel.model.plan.checks import check_power_and_clock
from moemodel.model.plan.clock import Auto, ByStage, Locked, clock_text
from moemodel.model.plan.spec import Plan, plan_text

ANY = math.inf


def plan(clock_MHz: Any, **changes: Any) -> Plan:
    document = {
        "architecture": "opt-350m",
        "sequence_length": 2048,
        "global_batch": 64,
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 2},
        "parallel": {"pp": 2},
        "clock_MHz": clock_MHz,
    }
    return Plan.model_validate(document | changes)


@pytest.mark.parametrize(
    ("asked", "limits_MHz"),
    [
        ({"forward": 1200}, [(1200, ANY, ANY)] * 2),
        ({"stages": [1200, None]}, [(1200,) * 3, (ANY,) * 3]),
        ({"stages": [1200, None], "optimizer": 900}, [(1200,) * 3, (ANY, ANY, 900)]),
        ({"stages": [{"backward": 1500}, 1410], "backward": 600}, [(ANY, 1500, ANY), (1410,) * 3]),
        ({"stages": [{"forward": 1500}, None], "backward": 600}, [(1500, 600, ANY), (ANY, 600, ANY)]),
    ],
)
def test_what_a_stage_does_not_say_is_as_the_phases_of_all(asked: Any, limits_MHz: list[tuple[float, ...]]) -> None:
    clock = plan(asked).clock
    assert isinstance(clock, ByStage)
    assert np.array(clock.limits_Hz) == pytest.approx(np.array(limits_MHz, dtype=float) * 1e6)


@pytest.mark.parametrize(
    ("asked", "clock"),
    [
        ({}, Auto()),
        ({"stages": [None, None]}, Auto()),
        ({"stages": [1200, 1200]}, Locked(1.2e9)),
        ({"forward": 1200, "backward": 1200, "optimizer": 1200}, Locked(1.2e9)),
        ({"stages": [1200, None], "forward": 1200, "backward": 1200, "optimizer": 1200}, Locked(1.2e9)),
    ],
)
def test_the_same_everywhere_is_one_clock(asked: Any, clock: Any) -> None:
    assert plan(asked).clock == clock


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"stages": [1200]}, "clock_MHz.stages: found 1 entries; allowed: 2, one for each stage"),
        ({"forwards": 1200}, "unknown key 'clock_MHz.forwards'; allowed here: backward, change_ms, forward, op"),
        (
            {"stages": [1200, {"fwd": 1}]},
            "unknown key 'clock_MHz.stages.1.fwd'; allowed here: backward, forward,",
        ),
        ({"backward": "fast"}, "clock_MHz.backward: found 'fast'"),
        (
            {"stages": [1200, "fast"]},
            "clock_MHz.stages.1: found 'fast'; allowed: a clock in MHz, null, or a mapping",
        ),
        (
            [1200, 1300],
            "clock_MHz: allowed: a clock in MHz, null, or a mapping of some of forward, back",
        ),
        (True, "clock_MHz: found True; allowed: a clock in MHz"),
        ({"forward": -3}, "clock_MHz.forward: found -3"),
    ],
)
def test_what_is_no_clock_is_refused_by_its_place(asked: Any, words: str) -> None:
    with pytest.raises(InputError) as error:
        plan(asked)
    assert words in str(error.value)
    assert "pydantic" not in str(error.value)


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        ({"stages": [1200, {"backward": 2400}]}, "clock_MHz.stages.1.backward: found 2400"),
        ({"stages": [100, 1200]}, "clock_MHz.stages.0: found 100"),
        ({"optimizer": 1201}, "clock_MHz.optimizer: found 1201"),
        (2400, "clock_MHz: found 2400"),
    ],
)
def test_clocks_outside_the_gpus_range_are_refused_by_their_place(asked: Any, key: str) -> None:
    with pytest.raises(InputError) as error:
        check_power_and_clock(plan(asked), read_gpu("h100-sxm-80gb", key="cluster.gpu"))
    assert key in str(error.value)
    assert "345 to 1980 in steps of 15" in str(error.value)


def test_inference_has_no_backward_pass_to_set_a_clock_for() -> None:
    with pytest.raises(InputError, match=r"clock_MHz\.backward: found 1200 with mode inference"):
        plan({"backward": 1200}, mode="inference", cluster={"gpu": "h100-sxm-80gb", "gpus": 1}, parallel={})


def test_a_plan_is_read_back_from_its_text() -> None:
    asked = plan({"stages": [1200, {"forward": 1500}], "optimizer": 900})
    assert Plan.model_validate(yaml.safe_load(plan_text(asked))) == asked


def test_batches_keep_clocks_of_pipelines_of_several_lengths() -> None:
    plans = [plan(None), plan({"forward": 1200}), plan({"stages": [1, 2, 3, 4]}, **_four())]
    together = joined(plans)
    assert together.clock_limits_Hz.shape == (3, 4, 3)
    assert together.has_clocks_by_stage.tolist() == [False, True, True]
    assert np.isnan(together.clock_limits_Hz[1, 2:]).all()
    assert together.take(np.array([2])).clock_limits_Hz[0, :, 1] == pytest.approx([1e6, 2e6, 3e6, 4e6])
    assert together.clock_Hz.tolist() == [ANY, ANY, 4e6]
    assert batch_of(plans[0]).clock_limits_Hz.size == 0


def _four() -> dict[str, Any]:
    return {"cluster": {"gpu": "h100-sxm-80gb", "gpus": 4}, "parallel": {"pp": 4}}


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (None, "auto"),
        (1410, "1410"),
        ({"forward": 1200, "backward": 1410}, "1200/1410/auto"),
        ({"stages": [1200, {"forward": 900}]}, "1200,900/auto/auto"),
    ],
)
def test_clocks_are_written_short(asked: Any, text: str) -> None:
    assert clock_text(plan(asked).clock_MHz) == text
