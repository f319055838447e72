"""An iteration laid out in time against the prediction of the same plan, and its trace, read back."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from moemodel.model.core.errors import InputError
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results import iteration as module
from moemodel.model.results.iteration import KINDS, iteration
from moemodel.model.results.outcome import outcome
from moemodel.model.results.trace import trace_text

Make = Callable[..., Plan]

PLANS: dict[str, dict[str, Any]] = {
    "one GPU": {},
    "data parallel": {"cluster": {"gpus": 8}, "parallel": {"dp": 8, "zero_stage": 3}},
    "1f1b": {"cluster": {"gpus": 8}, "parallel": {"pp": 4, "dp": 2}, "global_batch": 32},
    "interleaved": {"cluster": {"gpus": 8}, "parallel": {"pp": 4, "dp": 2, "virtual_stages": 2}, "global_batch": 32},
    "zero-bubble": {"cluster": {"gpus": 8}, "parallel": {"pp": 4, "dp": 2}, "schedule": "zero-bubble"},
    "gpipe": {"cluster": {"gpus": 8}, "parallel": {"pp": 8}, "schedule": "gpipe"},
    "uneven": {"cluster": {"gpus": 7}, "parallel": {"pp": 7}, "global_batch": 28},
    "in rounds": {"cluster": {"gpus": 4}, "parallel": {"pp": 4}, "micro_batches_per_schedule": 8},
    "few micro-batches": {"cluster": {"gpus": 8}, "parallel": {"pp": 8}, "global_batch": 2},
    "a cap": {"power_cap_W": 300.0, "cluster": {"gpus": 4}, "parallel": {"pp": 2, "tp": 2}},
    "clocks of stages and phases": {
        "clock_MHz": {"stages": [1500.0, 1200.0, 1200.0, 1605.0], "forward": 1305.0},
        "cluster": {"gpus": 4},
        "parallel": {"pp": 4},
        "global_batch": 32,
    },
    "experts": {
        "architecture": "olmoe-1b-7b",
        "layers": 4,
        "cluster": {"gpus": 8},
        "parallel": {"pp": 2, "dp": 4, "ep": 4, "zero_stage": 1},
    },
}


@pytest.mark.parametrize("changes", PLANS.values(), ids=PLANS)
def test_sums_are_those_that_are_predicted(changes: dict[str, Any], plan_of: Make, calibration: Calibration) -> None:
    plan = plan_of(**changes)
    laid_out, alone = iteration(plan, calibration), outcome(plan, calibration)
    assert laid_out.step_s == pytest.approx(alone.step_time_s.value, rel=1e-12)
    assert laid_out.walked_s == pytest.approx(laid_out.passes_s, rel=1e-9)
    for kind in KINDS:
        phase = alone.phases["idle" if kind == "waiting" else kind]
        mean_s = sum(line.time_s(kind) for line in laid_out.stages) / len(laid_out.stages)
        assert mean_s == pytest.approx(phase.time_s, rel=1e-9, abs=1e-11 * laid_out.step_s)
    energy_J = sum(line.gpus * line.energy_J for line in laid_out.stages)
    assert energy_J == pytest.approx(alone.gpu_energy_J.value, rel=1e-9)
    assert sum(line.gpus for line in laid_out.stages) == plan.cluster.gpus
    assert max(max(line.memory_B) for line in laid_out.stages) == pytest.approx(alone.memory_B.value, rel=1e-9)
    assert laid_out.host_wait_s == pytest.approx(alone.host_wait_s, abs=1e-12)


@pytest.mark.parametrize("changes", PLANS.values(), ids=PLANS)
def test_a_stage_does_one_thing_at_a_time_and_waits_for_others(
    changes: dict[str, Any], plan_of: Make, calibration: Calibration
) -> None:
    laid_out = iteration(plan_of(**changes), calibration)
    begins, ends = dict[tuple[str, int, int], float](), dict[tuple[str, int, int], float]()
    for line in laid_out.stages:
        assert line.slices[0].start_s == 0
        assert line.slices[-1].end_s == pytest.approx(laid_out.step_s, rel=1e-9)
        for one, then in zip(line.slices, line.slices[1:], strict=False):
            assert one.end_s == pytest.approx(then.start_s, rel=1e-9, abs=1e-12)
        for one in line.slices:
            if one.kind in ("forward", "backward"):
                key = (one.kind, one.chunk, one.micro_batch)
                begins.setdefault(key, one.start_s)
                ends[key] = one.end_s
    last = max(chunk for _, chunk, _ in begins)
    for (kind, chunk, micro_batch), start_s in begins.items():
        if kind == "forward" and chunk > 0:
            assert start_s >= ends["forward", chunk - 1, micro_batch] - 1e-12
        if kind == "backward":
            assert start_s >= begins["forward", last, micro_batch] - 1e-12
            assert chunk == last or start_s >= begins["backward", chunk + 1, micro_batch] - 1e-12


def test_a_trace_read_back_has_the_same_sums(plan_of: Make, calibration: Calibration) -> None:
    plan = plan_of(**PLANS["1f1b"])
    alone = outcome(plan, calibration)
    trace = json.loads(trace_text(iteration(plan, calibration)))
    times_s, energy_J = defaultdict[str, float](float), 0.0
    tracks = defaultdict[int, float](float)
    for event in trace["traceEvents"]:
        assert event["ph"] in "MXC"
        if event["ph"] == "X":
            times_s[event["cat"]] += event["dur"] * 1e-6 / 4
            energy_J += 2 * event["dur"] * 1e-6 * event["args"]["power_W"]
            tracks[event["pid"]] += event["dur"] * 1e-6
    for kind in KINDS:
        phase = alone.phases["idle" if kind == "waiting" else kind]
        assert times_s[kind] == pytest.approx(phase.time_s, rel=1e-9)
    assert energy_J == pytest.approx(alone.gpu_energy_J.value, rel=1e-9)
    assert dict(tracks) == pytest.approx(dict.fromkeys(range(4), alone.step_time_s.value))
    names = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"]
    assert names == [f"stage {stage}, 2 GPUs" for stage in range(4)]
    memory_GB = [e["args"]["GB"] for e in trace["traceEvents"] if e["ph"] == "C" and e["name"] == "memory"]
    assert max(memory_GB) == pytest.approx(alone.memory_B.value * 1e-9)
    power = [e for e in trace["traceEvents"] if e["ph"] == "C" and e["name"] == "power"]
    assert len(power) == sum(e["ph"] == "X" for e in trace["traceEvents"])


def test_memory_grows_with_micro_batches_in_flight(plan_of: Make, calibration: Calibration) -> None:
    """1F1B: the first of 4 stages holds 4 micro-batches at most, the last one; memory moves by so many steps."""
    laid_out = iteration(plan_of(**PLANS["1f1b"]), calibration)
    for line in laid_out.stages:
        levels = {round(size_B / 1e3) for size_B in line.memory_B}
        assert len(levels) == 4 - line.stage + 1


def test_too_many_passes_are_refused(plan_of: Make, calibration: Calibration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_PASSES", 10)
    with pytest.raises(InputError, match="32 passes in a step; allowed: 10"):
        iteration(plan_of(), calibration)
