"""Bytes of what optimizers keep, against the closed forms of Megatron's documentation and of the states' own sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.core.errors import InputError
from moemodel.model.layers.parameters import parameters
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration
from moemodel.model.search.document import Search
from moemodel.model.step.system import system_of

MakePlan = Callable[..., Plan]
STATES = ("parameters", "gradients", "optimizer_states")


def bytes_per_parameter(plan: Plan, calibration: Calibration) -> float:
    """Of parameters, gradients and optimizer states on one GPU."""
    found = predict(architecture_of(plan), batch_of(plan), system_of(plan, calibration))
    held = sum(found.memory_terms_B[name][0] for name in STATES)
    return float(held) / parameters(read_architecture(plan.architecture)).total


@pytest.fixture
def plan(plan_of: MakePlan) -> Callable[..., Plan]:
    """Of OPT-350M, whose parameters all ranks share."""

    def make(optimizer: Any, *, dp: int = 8, zero_stage: int = 1, **others: Any) -> Plan:
        return plan_of(
            **{"backend": "megatron", "global_batch": 4 * dp} | others,
            optimizer=optimizer,
            parallel={"dp": dp, "zero_stage": zero_stage},
            cluster={"gpus": dp},
        )

    return make


# Megatron-LM, docs/user-guide/features/dist_optimizer.md: 18, and 6 + 12 / d; and with its precision-aware optimizer:
# weights 2 and sums of gradients 4 or 2; master or remainder, and two moments, over d
@pytest.mark.parametrize(
    ("optimizer", "zero_stage", "gradients", "expected"),
    [
        (None, 0, "fp32", lambda d: 18.0),  # noqa: ARG005
        (None, 1, "fp32", lambda d: 6 + 12 / d),
        (None, 1, "bf16", lambda d: 4 + 12 / d),
        ({"exp_avg": "bf16", "exp_avg_sq": "bf16", "master": "fp32"}, 1, "fp32", lambda d: 6 + (4 + 2 + 2) / d),
        ({"exp_avg": "bf16", "exp_avg_sq": "bf16"}, 1, "bf16", lambda d: 4 + (2 + 2 + 2) / d),
        ({"exp_avg": "fp8", "exp_avg_sq": "bf16"}, 1, "fp32", lambda d: 6 + (2 + 1 + 2) / d),
        ({"exp_avg": "fp16", "exp_avg_sq": "fp16", "master": "fp16"}, 1, "fp32", lambda d: 6 + (2 + 2 + 2) / d),
        ({"master": "remainder"}, 1, "fp32", lambda d: 6 + (2 + 4 + 4) / d),
    ],
)
@pytest.mark.parametrize("dp", [2, 8])
def test_bytes_of_a_parameter_under_megatron(
    optimizer: Any,
    zero_stage: int,
    gradients: str,
    expected: Callable[[int], float],
    dp: int,
    plan: Callable[..., Plan],
    calibration: Calibration,
) -> None:
    one = plan(optimizer, dp=dp, zero_stage=zero_stage, gradient_dtype=gradients)
    assert bytes_per_parameter(one, calibration) == pytest.approx(expected(dp), rel=1e-3)


def test_8_bit_adam_keeps_a_scale_a_block(plan: Callable[..., Plan], calibration: Calibration) -> None:
    """Of 256 elements, float32: two bytes and a 32nd a parameter in place of eight."""
    plain, small = (
        bytes_per_parameter(plan(states, backend="torch", zero_stage=0), calibration)
        for states in (None, {"exp_avg": "int8", "exp_avg_sq": "int8"})
    )
    assert plain - small == pytest.approx(8 - 2 * (1 + 4 / 256), rel=1e-3)


def test_an_update_moves_what_it_keeps(plan_of: MakePlan, calibration: Calibration) -> None:
    """Float32 states: 28 bytes a parameter; 16-bit moments beside remainders, which are read with the weights, 2 + 2 +
    2 x 6 + 2 = 18. So few sequences that the optimizer is all that differs."""
    times_s, energies_J = [], []
    for states in (None, {"exp_avg": "bf16", "exp_avg_sq": "bf16"}):
        plan = plan_of(
            architecture="llama-3-8b", backend="megatron", optimizer=states, parallel={"zero_stage": 1}, global_batch=1
        )
        found = predict(architecture_of(plan), batch_of(plan), system_of(plan, calibration))
        times_s.append(found.step_time_s[0])
        energies_J.append(found.energy_J[0])
    architecture = read_architecture("llama-3-8b")
    moved_B = (28 - 18) * parameters(architecture).total
    bandwidth_Bps = moved_B / (times_s[0] - times_s[1])
    assert 2.5e12 < bandwidth_Bps < 3.35e12  # of an H100, whose data sheet has the latter
    assert energies_J[1] < energies_J[0]


@pytest.mark.parametrize(
    ("optimizer", "others", "message"),
    [
        (
            {"exp_avg": "int8"},
            {},
            "optimizer.exp_avg: found int8 with backend megatron; allowed: fp32, bf16, fp16, fp8",
        ),
        ({"exp_avg": "bf16"}, {"backend": "megatron-v2"}, "found bf16 with backend megatron-v2; allowed: fp32"),
        ({"master": "fp16"}, {"backend": "torch"}, "optimizer.master: found fp16 with backend torch; allowed: fp32"),
        ({"exp_avg": "int8"}, {"backend": "torch", "precision": "bf16"}, "with precision bf16; allowed: null"),
        ({"exp_avg": "bf16"}, {"zero_stage": 0}, "with zero_stage 0 and backend megatron"),
        ({"exp_avg": "fp4"}, {}, "optimizer.exp_avg"),
        ({}, {}, "optimizer: .*allowed: null, muon, or a type other than fp32"),
    ],
)
def test_types_that_a_framework_has_not_are_refused(
    optimizer: Any, others: dict[str, Any], message: str, plan: Callable[..., Plan]
) -> None:
    with pytest.raises(InputError, match=message):
        plan(optimizer, **others)


def test_a_search_shards_states_of_other_types() -> None:
    document = {
        "architecture": "opt-350m",
        "sequence_length": 2048,
        "global_batch": 64,
        "backend": "megatron",
        "optimizer": {"exp_avg": "bf16", "exp_avg_sq": "bf16"},
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 2},
    }
    search = Search.model_validate(document)
    assert search.plan(gpus=2, dp=2).parallel.zero_stage == 1
    with pytest.raises(InputError, match="zero_stage 0"):
        search.plan(gpus=2, dp=2, zero_stage=0)
    with pytest.raises(InputError, match="allowed: fp32"):
        Search.model_validate(document | {"backend": "nanotron"})


def test_dropout_keeps_a_mask_of_each_blocks_output(plan_of: MakePlan, calibration: Calibration) -> None:
    """A byte of every element, two blocks a layer (Korthikanti et al. 2022, section 4.1); a flash kernel keeps none."""

    def found(backend: str, *, dropout: bool) -> Any:
        one = plan_of(architecture="llama-3-8b", backend=backend, dropout=dropout, global_batch=8, micro_batch=8)
        return predict(architecture_of(one), batch_of(one), system_of(one, calibration))

    for backend in ("megatron", "torch"):
        without, with_it = (found(backend, dropout=dropout) for dropout in (False, True))
        more_B = with_it.memory_terms_B["activations"] - without.memory_terms_B["activations"]
        assert more_B[0] == pytest.approx(2 * 32 * 8 * 2048 * 4096)
        assert with_it.step_time_s[0] > without.step_time_s[0]
        assert with_it.energy_J[0] > without.energy_J[0]
    apart, fused = (
        found(b, dropout=True).step_time_s[0] / found(b, dropout=False).step_time_s[0] for b in ("torch", "megatron")
    )
    assert fused < apart  # a kernel with the bias and the residual
