"""The host's time of collectives, units of FSDP and buckets of DDP: measured, or counted in calls."""

from __future__ import annotations

import numpy as np
import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.device.host_overhead import HostCost, HostModel
from moemodel.model.layers.layer import layer_blocks
from moemodel.model.records.calibration import Calibration, HostLane, Parameter
from moemodel.model.step.data_parallel import ExchangeCounts
from moemodel.model.step.launch_overhead import CollectiveLaunches, ParallelHost

CALL = HostCost(forward_s=20e-6, backward_s=10e-6)


def host(calibration: Calibration, *, measured: bool = True, **blocks_s: float) -> ParallelHost:
    """Of a calibration to which these blocks of host time are added; `__` stands for the slash."""
    added = {
        name.replace("__", "/"): Parameter(value=value, unit="s", origin="assumed", source="made up")
        for name, value in blocks_s.items()
    }
    lane = HostLane(backend="torch", blocks=dict(calibration.host[0].blocks) | added, log_error=0.1)
    model = HostModel(calibration.model_copy(update={"host": [lane]}), "torch")
    return ParallelHost(model, CALL, measured=measured)


def counted(**numbers: float) -> CollectiveLaunches:
    none = dict.fromkeys(("tensor_parallel", "sequence_parallel", "expert_parallel", "messages", "actions"), 0.0)
    return CollectiveLaunches(**{name: np.array([value]) for name, value in (none | numbers).items()})


def step_s(
    found: ParallelHost, zero: int, m: int, units: float = 0.0, buckets: float = 0.0, tensors: float = 18.0
) -> float:
    return found.step_s(
        units=np.array([units]),
        buckets=np.array([buckets]),
        layers=np.array([units]),
        tensors=tensors,
        counts=ExchangeCounts(
            gathers_forward=np.array([0.0, 1.0, 1.0, m][zero : zero + 1]),
            gathers_backward=np.array([0.0, 0.0, 0.0, m][zero : zero + 1]),
            reductions=np.array([1.0, 1.0, m, m][zero : zero + 1]),
        ),
        micro_batches=np.array([float(m)]),
    ).item()


def test_what_was_not_measured_counts_as_calls(calibration: Calibration) -> None:
    unknown, other = host(calibration), host(calibration, measured=False)
    calls = counted(tensor_parallel=1, sequence_parallel=2, expert_parallel=3, messages=4, actions=5)
    expected = 9 + 6 * 2 + 20 * 3 + 4 * 4 + 37 * 5
    assert unknown.queued_s(calls, "forward") == pytest.approx(expected * 20e-6)
    assert unknown.queued_s(calls, "backward") == pytest.approx(expected * 10e-6)
    assert other.queued_s(calls, "forward") == pytest.approx(15 * 20e-6)


def test_what_was_measured_counts_as_it_was(calibration: Calibration) -> None:
    known = host(calibration, tensor_collective__forward=1e-3, pipeline_pass__forward=5e-3)
    assert known.queued_s(counted(tensor_parallel=2, messages=1), "forward") == pytest.approx(7e-3)
    assert known.added_s(np.array([8.0])) == pytest.approx(8 * 1.25 * 10e-6)
    assert known.queued_s(counted(tensor_parallel=2), "backward") == pytest.approx(2 * 9 * 10e-6)


def test_units_by_zero_stage(calibration: Calibration) -> None:
    """Of four micro-batches ZeRO 1 exchanges in one either way, ZeRO 2 reduces in all, ZeRO 3 does all in all."""
    known = host(
        calibration,
        fsdp_unit__forward=1.0,
        fsdp_unit__backward=110.0,
        fsdp_unit_kept__backward=100.0,
        fsdp_unit_quiet__forward=1e3,
        fsdp_unit_quiet__backward=1e4,
        fsdp_unit__step=1e6,
    )
    assert step_s(known, 1, 4, units=2) == pytest.approx(2 * (1 + 100 + 3 * 1e3 + 3 * 1e4 + 1e6))
    assert step_s(known, 2, 4, units=2) == pytest.approx(2 * (1 + 400 + 3 * 1e3 + 1e6))
    assert step_s(known, 3, 4, units=2) == pytest.approx(2 * (4 + 440 + 1e6))


def test_units_of_many_tensors_take_longer(calibration: Calibration) -> None:
    known = host(calibration, fsdp_unit__step=1.0)
    few, many = (step_s(known, 3, 1, units=2, tensors=n) for n in (18.0, 38.0))
    assert few == step_s(known, 3, 1, units=2, tensors=2.0)
    assert many == pytest.approx((1 + 0.05 * (38 / 2 - 9)) * few)


def test_buckets_once_a_step(calibration: Calibration) -> None:
    """As many as there are, or as the tensors of the measured layer fill."""
    known = host(calibration, ddp_bucket__backward=1.0)
    assert step_s(known, 0, 4, buckets=30) == pytest.approx(30)
    assert step_s(known, 0, 4, buckets=3, tensors=90) == pytest.approx(90 / 9)
    assert step_s(known, 0, 4) == 0
    assert step_s(host(calibration, measured=False), 3, 4, units=2) == 0


@pytest.mark.parametrize(("name", "tensors"), [("opt-350m", 16), ("llama-3-8b", 9), ("olmoe-1b-7b", 11)])
def test_tensors_of_a_layer(name: str, tensors: int) -> None:
    """As the training model holds them: q, k, v, o, norms, and the feed-forward block's; OPT's with biases."""
    architecture = read_architecture(name)
    assert layer_blocks(architecture.layers[0], architecture.hidden).parameter_tensors() == tensors
