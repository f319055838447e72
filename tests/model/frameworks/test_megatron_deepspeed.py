"""What Sailor published of the layers that it trains, beside predictions of them.

Its profile of OPT-350M on a GH200 without tensor parallelism: sailor_planner/profiles/OPT-350/GH-96/profile.json.
"""

from __future__ import annotations

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.device.operator_cost import OperatorCostModel
from moemodel.model.device.power import power_model
from moemodel.model.device.roofline import chip_of_calibration
from moemodel.model.operators.calls import Phase
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.results.outcome import outcome
from moemodel.model.step.layer_operators import Workload
from moemodel.model.step.system import system_of

GPU = "gh200-96gb"
# sequences of a micro-batch -> ms of a layer's forward and backward pass
LAYER_MS = {2: (1.771, 5.212), 4: (3.569, 10.343), 8: (6.988, 21.514)}
# dp, tp, pp, sequences of a micro-batch, of a batch -> step in s, memory in B (validation/clariden/OPT-350)
RUNS = {(2, 4, 4, 8, 512): (2.69795, 25_248_661_504), (4, 4, 2, 8, 512): (2.2988, 26_850_885_632)}


def _plan(dp: int, tp: int, pp: int, micro_batch: int, global_batch: int) -> Plan:
    return Plan.model_validate(
        {
            "architecture": "opt-350m",
            "sequence_length": 2048,
            "global_batch": global_batch,
            "micro_batch": micro_batch,
            "precision": "fp32",
            "backend": "megatron-deepspeed",
            "stage_layers": {"embedding": 2},
            "cluster": {"gpu": GPU, "gpus": dp * tp * pp, "gpus_per_node": 4, "internode": "slingshot-11"},
            "parallel": {"dp": dp, "tp": tp, "pp": pp},
        }
    )


def _layer_ms(plan: Plan) -> tuple[float, float]:
    """Forward and backward pass of a layer at the highest clock."""
    calibration = load_calibration(None, GPU)
    machine, architecture = system_of(plan, calibration), architecture_of(plan)
    calibration = machine.calibration
    work = Workload(architecture, batch_of(plan), framework=machine.framework, precision=machine.precision)
    clocks = np.array([1.9e9, 1.98e9])
    pricer = OperatorCostModel(calibration, chip_of_calibration(calibration), power_model(calibration), clocks)
    cost = pricer.phase_costs(work.passes(architecture.layers[0]), 1)
    there, back = (1e3 * float(cost[phase].time_s_UK[0, -1]) for phase in (Phase.FORWARD, Phase.BACKWARD))
    return there, back


@pytest.mark.parametrize(("sequences", "published"), LAYER_MS.items())
def test_layers_take_as_long_as_profiled(sequences: int, published: tuple[float, float]) -> None:
    plan = _plan(1, 1, 1, sequences, sequences)
    assert _layer_ms(plan) == pytest.approx(published, rel=0.08)


@pytest.mark.parametrize(("degrees", "published"), RUNS.items())
def test_pipelines_take_what_was_published(
    degrees: tuple[int, int, int, int, int], published: tuple[float, float]
) -> None:
    """Hosts make a buffer for every message; without that the step of four stages is 15 % too short."""
    found = outcome(_plan(*degrees), load_calibration(None, GPU))
    assert (found.step_time_s.value, found.memory_B.value) == pytest.approx(published, rel=0.06)
