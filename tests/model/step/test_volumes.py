"""FLOPs and bytes of a step against closed forms that count them from the outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moemodel.model.layers.parameters import parameters
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.step.system import system_of
from moemodel.model.step.volumes import step_volumes

MakePlan = Callable[..., Plan]

LAYERS, HIDDEN, SEQ, BATCH = 24, 1024, 2048, 16  # of OPT-350M, and of a plan of the fixture
TOKENS = SEQ * BATCH
_ELEMENT_B = 2.0


@pytest.fixture
def volumes(plan_of: MakePlan, calibration: Calibration) -> Callable[..., dict[str, float]]:
    """Of a plan of OPT-350M with some keys changed."""

    def of(**changes: Any) -> dict[str, float]:
        plan = plan_of(**changes)
        found = step_volumes(architecture_of(plan), batch_of(plan), system_of(plan, calibration))
        sent = {axis: float(size_B[0]) for axis, size_B in found.sent_B.items()}
        return {"flops": float(found.flops[0]), "traffic_B": float(found.memory_traffic_B[0])} | sent

    return of


def test_flops_are_six_a_parameter_and_token(volumes: Callable[..., dict[str, float]], plan_of: MakePlan) -> None:
    """Kaplan et al. 2020: 6 N T, and attention; flash attention multiplies once more in its backward pass."""
    weights = parameters(architecture_of(plan_of())).total - SEQ * HIDDEN  # but for learned positions
    attention = LAYERS * 2 * 2 * HIDDEN * SEQ / 2 * TOKENS  # forward, half of the pairs
    found = volumes()["flops"]
    assert found == pytest.approx(6 * weights * TOKENS + (1 + 2.5) * attention, rel=0.01)


@pytest.mark.parametrize(("backend", "again"), [("megatron", 1.0), ("torch", 2 / 3)])
def test_full_recomputation_is_one_more_forward_pass_of_the_layers(
    backend: str, again: float, volumes: Callable[..., dict[str, float]]
) -> None:
    """Less the head; torch leaves out the last product, 4 of 12 h^2 (torch/utils/checkpoint.py, early_stop)."""
    whole, once = (volumes(recompute=recompute, backend=backend)["flops"] for recompute in ("full", "none"))
    assert whole / once == pytest.approx(1 + again / 3, rel=0.06)


def test_the_work_is_shared_out(volumes: Callable[..., dict[str, float]]) -> None:
    alone = volumes()["flops"]
    assert volumes(cluster={"gpus": 8}, parallel={"dp": 8})["flops"] == pytest.approx(alone / 8, rel=1e-6)
    assert volumes(cluster={"gpus": 4}, parallel={"pp": 4})["flops"] == pytest.approx(alone / 4, rel=1e-6)
    assert volumes(cluster={"gpus": 2}, parallel={"tp": 2})["flops"] == pytest.approx(alone / 2, rel=0.01)


@pytest.mark.parametrize("dp", [2, 8])
def test_a_ring_reduces_every_gradient(
    dp: int, volumes: Callable[..., dict[str, float]], plan_of: MakePlan, calibration: Calibration
) -> None:
    """2 (n-1)/n of all gradients, as wide as the framework sends them, however many micro-batches."""
    plan = plan_of(cluster={"gpus": dp}, parallel={"dp": dp})
    gradient_B = system_of(plan, calibration).gradient_B
    whole_B = gradient_B * parameters(architecture_of(plan)).total
    found = volumes(cluster={"gpus": dp}, parallel={"dp": dp})
    assert found["dp"] == pytest.approx(2 * (dp - 1) / dp * whole_B, rel=0.01)
    assert found["tp"] == found["pp"] == found["ep"] == found["cp"] == 0


def test_two_all_reduces_a_layer_each_way(volumes: Callable[..., dict[str, float]]) -> None:
    """Shoeybi et al. 2019, section 3: 4 of T D elements a layer, each 2 (n-1)/n of it, and what the ends reduce."""
    found = volumes(cluster={"gpus": 4}, parallel={"tp": 4})["tp"]
    layers_B = LAYERS * 4 * 2 * (3 / 4) * TOKENS * HIDDEN * _ELEMENT_B
    assert layers_B < found < 1.05 * layers_B
    again = volumes(cluster={"gpus": 4}, parallel={"tp": 4}, recompute="full")["tp"]
    assert again - found == pytest.approx(layers_B / 2, rel=1e-6)  # what the forward pass sent, once more
    spread = volumes(cluster={"gpus": 4}, parallel={"tp": 4, "sequence_parallel": True})["tp"]
    assert spread == pytest.approx(found, rel=0.05)  # the same bytes, Korthikanti et al. 2022, section 4.2.2


def test_every_boundary_is_crossed_both_ways(
    volumes: Callable[..., dict[str, float]], plan_of: MakePlan, calibration: Calibration
) -> None:
    """Activations and their gradients over 3 boundaries of 4 stages; two stages sum the gradients of what they tie."""
    message_B = TOKENS * HIDDEN * _ELEMENT_B  # of all micro-batches
    tied_B = system_of(plan_of(), calibration).gradient_B * 50272 * 512  # the embedding, which the head shares
    found = volumes(cluster={"gpus": 4}, parallel={"pp": 4})["pp"]
    assert found == pytest.approx((2 * 3 * message_B + 2 * tied_B) / 4, rel=0.05)
    twice = volumes(cluster={"gpus": 4}, parallel={"pp": 4, "virtual_stages": 2})["pp"]
    assert twice - found == pytest.approx(2 * 4 / 4 * message_B, rel=1e-6)


def test_rows_go_to_experts_and_back(plan_of: MakePlan, calibration: Calibration) -> None:
    """GShard: two all-to-alls each way of T top_k rows, of which (n-1)/n leave the GPU."""
    plan = plan_of(
        architecture="olmoe-1b-7b", layers=4, cluster={"gpus": 8}, parallel={"dp": 8, "ep": 8}, global_batch=16
    )
    found = step_volumes(architecture_of(plan), batch_of(plan), system_of(plan, calibration))
    rows_B = (TOKENS / 8) * 8 * 2048 * _ELEMENT_B
    assert float(found.sent_B["ep"][0]) == pytest.approx(4 * 4 * 7 / 8 * rows_B, rel=1e-3)


def test_memory_traffic_is_more_than_the_states_once(
    volumes: Callable[..., dict[str, float]], plan_of: MakePlan
) -> None:
    """The optimizer alone reads and writes 12 bytes of float32 states a parameter."""
    found = volumes()
    assert found["traffic_B"] > 2 * 12 * parameters(architecture_of(plan_of())).total
    assert volumes(micro_batch=16)["traffic_B"] < found["traffic_B"]  # weights are read less often
