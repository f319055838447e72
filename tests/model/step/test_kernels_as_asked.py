"""Kernels that a plan asks for, or its framework has: of attention, of the loss, fused and compiled ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.core.errors import InputError
from moemodel.model.device.roofline import ATTENTIONS, chip_of_calibration, operator_time
from moemodel.model.layers.base import MicroBatch
from moemodel.model.layers.layer import layer_blocks
from moemodel.model.operators.work import Kind, Pass, Shape
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration, OperatorFit
from moemodel.model.results.outcome import outcome
from moemodel.model.step import stage_cost
from moemodel.model.step.layer_operators import Workload
from moemodel.model.step.system import System, framework_as_run, system_of

# TFLOP/s of causal attention, forward and backward, at the SM clock (MHz) that each ran at: torch 2.11 on an H100,
# 2,048 wide, 16,384 tokens, 2026-11-28 (bench/measured/kernel-generations)
_READ = {
    ("flash2", 64): ((295, 1757), (276, 1924)),
    ("cudnn", 64): ((443, 1749), (433, 1789)),
    ("flash2", 128): ((310, 1817), (313, 1901)),
    ("cudnn", 128): ((558, 1676), (531, 1732)),
}
_ELEMENTWISE = {Kind.RMS_NORM, Kind.LAYER_NORM, Kind.ROTARY, Kind.GELU, Kind.SWIGLU, Kind.SWIGLU_PACKED}


def plan(**changes: Any) -> Plan:
    document: dict[str, Any] = {
        "architecture": "llama-3-8b",
        "layers": 2,
        "sequence_length": 4096,
        "global_batch": 4,
        "cluster": {"gpu": "h100-sxm-80gb"},
    }
    return Plan.model_validate(document | changes)


@pytest.fixture(scope="module")
def h100() -> Calibration:
    return shipped("h100-sxm-80gb")


def system(h100: Calibration, **changes: Any) -> System:
    return system_of(plan(**changes), h100)


def attention_s(machine: System, direction: Pass, head_dim: int, clock_MHz: float) -> float:
    (fit,) = (fit for fit in machine.calibration.operators if fit.kind is Kind.ATTENTION and fit.direction is direction)
    heads = 2048 // head_dim
    shape = Shape(batch=1, heads=heads, kv_heads=heads, seq=16384, head_dim=head_dim)
    found = operator_time(fit, chip_of_calibration(machine.calibration), shape, np.array([clock_MHz * 1e6]))
    return float(found.time_s_UK[0, 0])


@pytest.mark.parametrize(("kernel", "head_dim"), _READ)
@pytest.mark.parametrize("backward", [False, True])
def test_kernels_take_what_was_read_of_them(h100: Calibration, kernel: str, head_dim: int, backward: bool) -> None:
    rate, clock_MHz = _READ[kernel, head_dim][backward]
    flops = 2 * 2048 * 16384**2 * (2.5 if backward else 1.0)
    direction = Pass.BACKWARD if backward else Pass.FORWARD
    found_s = attention_s(system(h100, attention=kernel), direction, head_dim, clock_MHz)
    assert found_s == pytest.approx(flops / (rate * 1e12), rel=0.12)


def test_a_fit_whose_speed_hardly_knows_the_width_of_heads_has_other_kernels_too(h100: Calibration) -> None:
    """Wider heads cannot be slower: what the second generation loses at either width is halfway between both."""

    def narrow(fit: OperatorFit) -> OperatorFit:
        head_dim0 = fit.parameters["head_dim0"].model_copy(update={"value": 0.1})
        return fit.model_copy(update={"parameters": fit.parameters | {"head_dim0": head_dim0}})

    fits = [narrow(fit) if fit.kind in ATTENTIONS else fit for fit in h100.operators]
    own = h100.model_copy(update={"operators": fits})
    times = [attention_s(system(own, attention=name), Pass.FORWARD, 128, 1700.0) for name in ("cudnn", "flash2")]
    assert 0.516 < times[0] / times[1] < 0.649
    assert outcome(plan(backend="torchtitan"), own).step_time_s is not None


def test_generations_follow_each_other(h100: Calibration) -> None:
    """Abstracts: the third 1.5 to 2.0 times the second, the second about twice the first."""
    order = ("flash1", "flash2", "flash3")
    first, second, third = (attention_s(system(h100, attention=name), Pass.FORWARD, 128, 1700.0) for name in order)
    assert 1.5 <= first / second <= 3.0
    assert 1.5 <= second / third <= 2.0


def test_no_kernel_asked_for_is_the_measured_one(h100: Calibration) -> None:
    assert system(h100).calibration is h100
    assert system(h100, attention="cudnn").calibration is h100


def test_a_kernel_of_another_generation_of_gpus_is_refused() -> None:
    with pytest.raises(InputError, match=r"attention: found flash3, .* a100-sxm-80gb .*; allowed: flash1, flash2, unf"):
        system_of(plan(attention="flash3", cluster={"gpu": "a100-sxm-80gb"}), shipped("a100-sxm-80gb"))


def test_a_framework_may_run_an_older_kernel(h100: Calibration) -> None:
    """Of which nothing is known on other GPUs: there the measured one stands."""
    torch_s, titan_s = (
        attention_s(system(h100, backend=name), Pass.FORWARD, 128, 1700.0) for name in ("torch", "torchtitan")
    )
    assert titan_s == pytest.approx(torch_s / 0.516, rel=0.01)
    b200 = shipped("b200-sxm-180gb")
    assert system_of(plan(backend="torchtitan", cluster={"gpu": "b200-sxm-180gb"}), b200).calibration is b200


def test_unfused_attention_keeps_its_scores() -> None:
    framework = framework_as_run(plan(attention="unfused"))
    assert not framework.flash_attention
    assert framework.softmax == "plain"


@pytest.mark.parametrize(
    ("attention", "dropout", "score_B"),
    [
        ("unfused", False, 2),  # probabilities, which the product reads
        ("unfused", True, 2 + 1 + 2),  # and the mask, and what dropout left of them
        ("unfused-fp32", False, 4 + 2),  # float32, and what the product reads
        ("unfused-fp32", True, 4 + 1 + 2),
    ],
)
def test_bytes_of_a_score_that_stay(attention: str, dropout: bool, score_B: int) -> None:
    """Of a layer of Llama 3 8B, 32 heads, beyond what it keeps at half of the length."""
    kept_B = []
    for seq in (1024, 2048):
        made = plan(attention=attention, dropout=dropout, sequence_length=seq, backend="megatron")
        batch = MicroBatch.of(batch_of(made), framework_as_run(made), made.precision)
        block = layer_blocks(architecture_of(made).layers[0], architecture_of(made).hidden).blocks[0]
        (scores,) = [kept for kept in block.kept(batch) if kept.parts == ("core_attn",)]
        kept_B.append(float(np.ravel(scores.size_B)[0]))
    assert kept_B == [score_B * 32 * seq**2 for seq in (1024, 2048)]


def passes(found: Plan) -> set[tuple[Kind, Pass]]:
    architecture = architecture_of(found)
    work = Workload(architecture, batch_of(found), framework=framework_as_run(found), precision=found.precision)
    calls = [call for layer in architecture.layers for call in work.passes(layer)] + work.head()
    return {(call.kind, call.direction) for call in calls}


@pytest.mark.parametrize(
    ("changes", "fused", "loss"),
    [
        ({}, False, False),
        ({"compile": True}, True, True),
        ({"cross_entropy": "fused"}, False, True),
        ({"backend": "megatron-core"}, True, True),
        ({"backend": "megatron-core-local"}, False, True),  # of plain kernels instead
        ({"backend": "torchtitan", "compile": True}, True, False),  # its layers alone
        ({"backend": "torchtitan", "compile": True, "cross_entropy": "compiled"}, True, True),
        ({"backend": "fsdp"}, False, True),
    ],
)
def test_what_is_fused_is_no_kernel_of_torch(changes: dict[str, Any], fused: bool, loss: bool) -> None:
    found = passes(plan(**changes))
    assert {kind for kind, _ in found}.isdisjoint(_ELEMENTWISE) is fused
    assert ((Kind.CROSS_ENTROPY, Pass.BACKWARD) not in found) is loss  # forward some log another


def test_a_fused_kernel_moves_its_least_bytes() -> None:
    """SwiGLU of T tokens and width W: two of W read, one written, of 2 bytes; backward three and two."""
    found = plan(backend="megatron-core", global_batch=1)
    work = Workload(architecture_of(found), batch_of(found), framework=framework_as_run(found), precision="bf16-mixed")
    tokens, width = 4096, 14336
    copied_B = [
        4 * float(np.max(call.shape.arrays()["m"]))
        for call in work.passes(architecture_of(found).layers[0])
        if call.kind is Kind.COPY
    ]
    for tensors in (3, 5):
        assert 2 * tensors * tokens * width in copied_B


@pytest.mark.parametrize("backend", ["megatron", "fsdp", "nanotron"])
def test_only_torch_compiles(backend: str) -> None:
    with pytest.raises(InputError, match=rf"compile: found true with backend {backend}.*allowed: .*torchtitan"):
        framework_as_run(plan(backend=backend, compile=True))


@pytest.mark.parametrize("backend", ["torch", "megatron", "megatron-deepspeed"])
def test_graphs_take_the_host_away(h100: Calibration, backend: str) -> None:
    """Of a model that the host bounds; one that the device bounds takes as long as before."""

    def step_s(**changes: Any) -> float:
        precision = "fp32" if backend == "megatron-deepspeed" else "bf16-mixed"
        asked = plan(backend=backend, precision=precision, **changes)
        return outcome(asked, h100, even_if_it_does_not_fit=True).step_time_s.value

    small = {"architecture": "opt-350m", "sequence_length": 256, "layers": None}
    assert step_s(**small, cuda_graphs=True) < 0.7 * step_s(**small)
    large = {"sequence_length": 8192, "global_batch": 8, "micro_batch": 4}
    assert step_s(**large, cuda_graphs=True) == pytest.approx(step_s(**large), rel=1e-9)


def test_graphs_of_parts_leave_the_rest_to_the_host(h100: Calibration) -> None:
    """Of a model that the host bounds; kernels are counted off the profiled layer by hand."""

    def step_s(**changes: Any) -> float:
        document = {
            "architecture": "qwen3-30b-a3b",
            "layers": 6,
            "sequence_length": 128,
            "global_batch": 32,
            "backend": "megatron-core",
            "cluster": {"gpu": "h100-sxm-80gb", "gpus": 8},
            "parallel": {"dp": 8, "ep": 8},
            "routing": {"skew": "balanced"},
        }
        asked = Plan.model_validate(document | changes)
        return outcome(asked, h100, even_if_it_does_not_fit=True).step_time_s.value

    whole, router, attention, queued = (step_s(cuda_graphs=graphs) for graphs in (True, "router", "attention", None))
    assert whole < attention < router < queued
    # of 58 kernels forward and 74 backward a router's graph takes 20 and 10 in two launches; attention's all but 12 and
    # 24; a kernel is as dear as the mean of the layer's own
    lanes = {lane.backend: lane.blocks for lane in h100.host}["torch"]
    forward_s, backward_s = (lanes[f"moe_layer_qk_norm/{side}"].value for side in ("forward", "backward"))
    passes = 6 * 4 * 2.8
    saved_s = queued - router
    assert saved_s == pytest.approx(passes * (forward_s * 19 / 58 + backward_s * 9 / 74), rel=0.02)
    more_s = router - attention
    assert more_s == pytest.approx(passes * (forward_s * (45 - 19) / 58 + backward_s * (49 - 9) / 74), rel=0.02)


@pytest.mark.parametrize("graphs", ["attention", "router"])
def test_graphs_of_parts_change_nothing_where_the_device_is_behind(h100: Calibration, graphs: str) -> None:
    large = {"sequence_length": 8192, "global_batch": 8, "micro_batch": 4, "backend": "megatron-core"}

    def step_s(**changes: Any) -> float:
        return outcome(plan(**large, **changes), h100, even_if_it_does_not_fit=True).step_time_s.value

    assert step_s(cuda_graphs=graphs) == pytest.approx(step_s(), rel=1e-9)


def test_parts_of_graphs_are_named() -> None:
    with pytest.raises(InputError, match=r"cuda_graphs: found 'mlp'; .*'attention' or 'router'"):
        plan(cuda_graphs="mlp")


@pytest.mark.parametrize(("backend", "slower"), [("megatron", 1.1), ("torch", 1.1), ("megatron-core", 1.1)])
def test_hosts_of_other_gpus_take_longer(backend: str, slower: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that nothing but the host bounds; Grace's, which Megatron-LM's tests on GB200 show."""
    small = {"architecture": "opt-350m", "sequence_length": 256, "layers": None, "global_batch": 32}
    asked = plan(**small, backend=backend, cluster={"gpu": "gb200-186gb"})

    def step_s() -> float:
        return outcome(asked, shipped("gb200-186gb")).step_time_s.value

    found_s = step_s()
    monkeypatch.setattr(stage_cost, "HOSTS", {})
    known = any(lane.backend == backend for lane in shipped("gb200-186gb").host)
    assert found_s / step_s() == pytest.approx(1.0 if known else slower, rel=0.1)


def test_compiling_and_older_kernels_move_time(h100: Calibration) -> None:

    def step_s(**changes: Any) -> float:
        return outcome(plan(**changes), h100, even_if_it_does_not_fit=True).step_time_s.value

    assert step_s(compile=True) < step_s() < step_s(attention="flash2") < step_s(attention="unfused")
