"""Collectives that torch's hosts compare beforehand: against what such runs measured, and against closed forms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration
from moemodel.model.step.collective_checks import ANY_s, BETWEEN_NODES_s, IN_A_NODE_s, check_s
from moemodel.model.step.communication_groups import Groups
from moemodel.model.step.system import system_of

MakePlan = Callable[..., Plan]

# s of an all-gather and of an all-reduce of 1 GiB over all GPUs of AWS p5 nodes, medians over nanotron's runs
# (Ultra-Scale Playbook, 2024): neither the bytes nor the steps tell them apart
MEASURED = [(64, 20.0e-3, 22.5e-3), (128, 39.7e-3, 42.5e-3), (256, 81.5e-3, 80.4e-3), (512, 166.1e-3, 162.2e-3)]


# s of one collective in steps that the host bound, medians of the same runs' 17 to 66 pipelines of each degree of
# tensor parallelism, by how much longer they took than without
IN_STEPS = [(2, 0.376e-3), (4, 0.84e-3), (8, 1.66e-3), (16, 4.2e-3)]


def planned(plan_of: MakePlan, *, gpus: int, checks: bool | None = None, **parallel: int) -> Plan:
    return plan_of(
        architecture="llama-3-8b",
        sequence_length=512,
        global_batch=parallel.get("dp", 1),
        collective_checks=checks,
        cluster={"gpus": gpus},
        parallel=parallel,
    )


def step_s(plan: Plan, calibration: Calibration) -> float:
    found = predict(architecture_of(plan), batch_of(plan), system_of(plan, calibration))
    return float(found.step_time_s[0])


@pytest.mark.parametrize(("gpus", "gathered_s", "reduced_s"), MEASURED)
def test_what_runs_measured(
    gpus: int, gathered_s: float, reduced_s: float, plan_of: MakePlan, calibration: Calibration
) -> None:
    plan = planned(plan_of, gpus=gpus, dp=gpus)
    groups = Groups(batch_of(plan), system_of(plan, calibration).network, shards_experts=True)
    found = float(check_s(groups["world"])[0])
    assert found == pytest.approx(gathered_s, rel=0.06)
    assert found == pytest.approx(reduced_s, rel=0.16)


@pytest.mark.parametrize(("tp", "measured_s"), IN_STEPS)
def test_what_steps_took(tp: int, measured_s: float, plan_of: MakePlan, calibration: Calibration) -> None:
    plan = planned(plan_of, gpus=16, tp=tp, dp=16 // tp)
    groups = Groups(batch_of(plan), system_of(plan, calibration).network, shards_experts=True)
    assert float(check_s(groups["tp"])[0]) == pytest.approx(measured_s, rel=0.06)


@pytest.mark.parametrize(
    ("parallel", "group", "expected_s"),
    [
        ({"tp": 8, "dp": 4}, "tp", ANY_s + 7 * IN_A_NODE_s),
        ({"tp": 8, "dp": 4}, "data_parallel", ANY_s + 3 * BETWEEN_NODES_s),
        ({"dp": 32}, "data_parallel", ANY_s + 7 * IN_A_NODE_s + 24 * BETWEEN_NODES_s),
        ({"tp": 2, "dp": 16}, "data_parallel", ANY_s + 3 * IN_A_NODE_s + 12 * BETWEEN_NODES_s),
        ({"dp": 32}, "tp", 0.0),
    ],
)
def test_ranks_of_a_group(
    parallel: dict[str, int], group: str, expected_s: float, plan_of: MakePlan, calibration: Calibration
) -> None:
    plan = planned(plan_of, gpus=32, **parallel)
    groups = Groups(batch_of(plan), system_of(plan, calibration).network, shards_experts=True)
    np.testing.assert_allclose(check_s(groups[group]), expected_s, rtol=1e-12)


def test_a_host_that_binds_takes_the_checks_of_its_collectives_longer(
    plan_of: MakePlan, calibration: Calibration
) -> None:
    """Four all-reduces a layer, one behind the embedding and one before the head, three numbers of the loss in two; one
    of all gradients over two nodes of one rank each, and the norm: no less than so many checks, since nothing hides
    them behind a device that is faster."""
    plain, checked = (planned(plan_of, gpus=16, tp=8, dp=2, checks=checks) for checks in (None, True))
    collectives = 4 * 32 + 1 + 1 + 2
    least_s = collectives * (ANY_s + 7 * IN_A_NODE_s) + BETWEEN_NODES_s
    longer_s = step_s(checked, calibration) - step_s(plain, calibration)
    assert least_s * 0.9 < longer_s < least_s * 1.1 + 2 * BETWEEN_NODES_s * 40


def test_one_gpu_has_nothing_to_check(plan_of: MakePlan, calibration: Calibration) -> None:
    plain, checked = (planned(plan_of, gpus=1, checks=checks) for checks in (None, True))
    assert step_s(checked, calibration) == pytest.approx(step_s(plain, calibration), rel=1e-12)
