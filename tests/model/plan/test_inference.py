"""Plans of forward passes alone: what they may say, and what is predicted of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.core.errors import InputError
from moemodel.model.device.precision import rescale_for_precision
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.hardware.gpu import read_gpu
from moemodel.model.plan.spec import Plan, plan_text
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.outcome import Outcome, outcome
from moemodel.profiler.backends.torch_native.supported_plans import check_runs

MakePlan = Callable[..., Plan]

H100: Calibration = load_calibration(None, "h100-sxm-80gb", key="gpu")


def answer(make: MakePlan, **changes: Any) -> Outcome:
    return outcome(make(**changes), H100)


def test_a_step_is_its_forward_passes(plan_of: MakePlan) -> None:
    trained, passed = answer(plan_of), answer(plan_of, mode="inference")
    assert set(passed.phases) == {"forward", "communication", "idle"}
    assert sum(phase.time_s for phase in passed.phases.values()) == pytest.approx(passed.step_time_s.value)
    assert passed.phases["forward"].time_s < trained.phases["forward"].time_s  # no loss
    assert passed.phases["forward"].time_s > 0.8 * trained.phases["forward"].time_s
    assert passed.model_flops == pytest.approx(trained.model_flops / 3)
    assert "step" in passed.to_json()


def test_inferences_are_sequences(plan_of: MakePlan) -> None:
    found = answer(plan_of, mode="inference", global_batch=32, micro_batch=8)
    assert found.inferences_per_s is not None
    assert found.inferences_per_J is not None
    assert found.inferences_per_s.value == pytest.approx(32 / found.step_time_s.value)
    assert found.inferences_per_J.value == pytest.approx(32 / found.gpu_energy_J.value)
    assert found.inferences_per_J.low is not None
    assert found.inferences_per_J.low < found.inferences_per_J.value
    assert found.to_json()["step"]["inferences_per_J"] == found.inferences_per_J.to_json()
    trained = answer(plan_of)
    assert trained.inferences_per_s is trained.inferences_per_J is None
    assert "inferences_per_J" not in trained.to_json()["step"]


def test_only_parameters_and_one_layer_take_memory(plan_of: MakePlan) -> None:
    found = answer(plan_of, mode="inference", precision="bf16")
    assert found.memory_terms_B["parameters"] == pytest.approx(2 * found.parameters)
    assert not {"gradients", "optimizer_states"} & set(found.memory_terms_B)
    deeper = answer(plan_of, mode="inference", precision="bf16", layers=6)
    assert deeper.memory_terms_B["activations"] == found.memory_terms_B["activations"]


def test_several_gpus_exchange_no_gradients(plan_of: MakePlan) -> None:
    one = answer(plan_of, mode="inference", global_batch=16)
    two = answer(plan_of, mode="inference", global_batch=32, cluster={"gpus": 2}, parallel={"dp": 2})
    assert two.step_time_s.value == pytest.approx(one.step_time_s.value)
    assert two.gpu_energy_J.value == pytest.approx(2 * one.gpu_energy_J.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parallel": {"zero_stage": 1}}, "parallel.zero_stage: found 1; allowed: 0"),
        ({"recompute": "full"}, "recompute: found full; allowed: none"),
        ({"gradient_dtype": "fp32"}, "gradient_dtype: found fp32; allowed: null"),
        ({"backend": "megatron"}, "backend: found megatron; allowed: torch"),
        ({"cluster": {"gpus": 2}, "parallel": {"pp": 2}}, "parallel.pp: found 2; allowed: 1"),
        ({"routing": {"balance_loss": 0.01}}, "routing.balance_loss: found 0.01; allowed: 0.0"),
    ],
)
def test_what_only_training_has_is_refused(plan_of: MakePlan, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan_of(mode="inference", **changes)


def test_it_is_read_back_and_not_run(plan_of: MakePlan) -> None:
    plan = plan_of(mode="inference")
    assert "mode: inference" in plan_text(plan)
    assert Plan.model_validate(plan.model_dump()) == plan
    with pytest.raises(InputError, match="mode: found inference; allowed for plans that are run: training"):
        check_runs(plan, read_architecture(plan.architecture))


def test_float32_products_are_those_of_the_pipes() -> None:
    gpu = read_gpu("h100-sxm-80gb")
    found = rescale_for_precision(H100, framework_of("torch"), "fp32", gpu)
    rate = found.chip["multiprocessors"].value * found.chip["flops_per_cycle"].value * gpu.peaks["fp32"].clock_Hz
    assert rate == pytest.approx(gpu.peaks["fp32"].flops_per_s, rel=1e-3)
    (product,) = (fit for fit in found.operators if (fit.kind, fit.direction) == ("gemm", "forward"))
    assert product.parameters["alignment"].value == 1.0
    assert len({p.value for name, p in product.parameters.items() if name.startswith("efficiency_")}) == 1
    assert "tensor_clock" not in found.governor.parameters
    assert rescale_for_precision(H100, framework_of("torch"), "bf16", gpu) is H100
