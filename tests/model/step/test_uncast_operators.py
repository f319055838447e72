"""Operators of 16 bits in a model whose layers multiply 8 or 4: its ends, attention, routers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.device.operator_cost import OperatorCostModel, PhaseCost
from moemodel.model.device.power import power_model
from moemodel.model.device.roofline import chip_of_calibration
from moemodel.model.operators.calls import Call, Phase
from moemodel.model.operators.work import Kind, Pass, Shape
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.step.layer_operators import Workload
from moemodel.model.step.stage_cost import BlockCosts
from moemodel.model.step.system import System, framework_as_run, system_of

H100, B200 = "h100-sxm-80gb", "b200-sxm-180gb"
NARROW = [(H100, "fp8"), (B200, "fp8"), (B200, "mxfp8"), (B200, "nvfp4")]
CLOCKS_Hz = np.array([1.0e9, 1.4e9, 1.9e9])


def plan(gpu: str, precision: str, **changes: Any) -> Plan:
    document = {"architecture": "llama-3-8b", "sequence_length": 4096, "global_batch": 8, "backend": "megatron-core"}
    return Plan.model_validate(document | {"precision": precision, "cluster": {"gpu": gpu}} | changes)


def system(made: Plan) -> System:
    return system_of(made, load_calibration(None, made.cluster.gpu))


def pricer(machine: System) -> OperatorCostModel:
    calibration = machine.calibration
    chip, power = chip_of_calibration(calibration), power_model(calibration)
    return OperatorCostModel(calibration, chip, power, CLOCKS_Hz, uncast=machine.uncast)


def ends(made: Plan) -> list[PhaseCost]:
    """What embedding and head cost, forward and backward."""
    machine = system(made)
    power = power_model(machine.calibration)
    blocks = BlockCosts(architecture_of(made), batch_of(made), machine=machine, power=power, clock_Hz_K=CLOCKS_Hz)
    return [*blocks.embedding.values(), *blocks.head.values()]


@pytest.mark.parametrize(("gpu", "precision"), NARROW)
def test_a_models_ends_cost_what_they_do_in_16_bits(gpu: str, precision: str) -> None:
    wide, narrow = ends(plan(gpu, "bf16-mixed")), ends(plan(gpu, precision))
    for there, here in zip(wide, narrow, strict=True):
        assert here.time_s_UK == pytest.approx(there.time_s_UK)
        assert here.energy_J_UK == pytest.approx(there.energy_J_UK)
        assert here.cycles_UK == pytest.approx(there.cycles_UK)


@pytest.mark.parametrize("direction", [Pass.FORWARD, Pass.BACKWARD])
@pytest.mark.parametrize(("gpu", "precision"), NARROW)
def test_attention_costs_what_it_does_in_16_bits(gpu: str, precision: str, direction: Pass) -> None:
    """Time, energy, and how far tensor cores slow the clock in a burst."""
    shape = Shape(batch=1, heads=32, kv_heads=8, seq=32768, head_dim=128)
    call = Call(kind=Kind.ATTENTION, direction=direction, shape=shape, phase=Phase.FORWARD, count=np.ones(1))
    costs = [
        pricer(system(plan(gpu, name))).phase_costs([call], 1)[Phase.FORWARD] for name in ("bf16-mixed", precision)
    ]
    assert costs[1].time_s_UK == pytest.approx(costs[0].time_s_UK)
    assert costs[1].energy_J_UK == pytest.approx(costs[0].energy_J_UK)
    assert costs[1].cycles_UK == pytest.approx(costs[0].cycles_UK)


@pytest.mark.parametrize(("gpu", "precision"), NARROW)
def test_a_product_that_is_not_cast_costs_what_it_does_in_16_bits(gpu: str, precision: str) -> None:
    shape, count = Shape(m=8192.0, n=8192.0, k=8192.0), np.ones(1)
    made = {"kind": Kind.GEMM, "direction": Pass.FORWARD, "shape": shape, "phase": Phase.FORWARD, "count": count}
    wide, narrow = (pricer(system(plan(gpu, name))) for name in ("bf16-mixed", precision))
    usual = wide.phase_costs([Call(**made)], 1)[Phase.FORWARD]
    cast, uncast = (narrow.phase_costs([Call(**made, uncast=u)], 1)[Phase.FORWARD] for u in (False, True))
    assert uncast.time_s_UK == pytest.approx(usual.time_s_UK)
    assert uncast.energy_J_UK == pytest.approx(usual.energy_J_UK)
    assert (cast.time_s_UK < 0.8 * usual.time_s_UK).all()


def test_of_a_layer_with_experts_the_routers_product_alone_is_not_cast() -> None:
    made = plan(H100, "fp8", architecture="qwen3-30b-a3b", parallel={"ep": 1})
    architecture = architecture_of(made)
    work = Workload(architecture, batch_of(made), framework=framework_as_run(made), precision="fp8")
    products = [call for call in work.passes(architecture.layers[0]) if call.kind is Kind.GEMM]
    assert {float(np.max(call.shape.arrays()["n"])) for call in products if call.uncast} == {128.0}
    assert sum(not call.uncast for call in products if call.direction is Pass.FORWARD) == 2  # of attention
