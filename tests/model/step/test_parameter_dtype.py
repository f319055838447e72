"""Weights of 8 bits and buffers of tensor parallelism: bytes against closed forms; and NeMo's settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.core.errors import InputError
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.layers.parameters import parameters
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.megatron_arguments import megatron_run
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.predict.prediction import Prediction
from moemodel.model.search.document import Search
from moemodel.model.step.system import framework_as_run, system_of
from moemodel.model.step.volumes import step_volumes

TOTAL = parameters(read_architecture("llama-3-8b")).total
ENDS = 2 * 128256 * 4096 + 4096
LAYERS = TOTAL - ENDS


def plan(parameter_dtype: str | None = None, *, gpu: str = "h100-sxm-80gb", **changes: Any) -> Plan:
    parallel = {"dp": 8, "zero_stage": 1} | changes.pop("parallel", {})
    gpus = int(np.prod([parallel.get(degree, 1) for degree in ("dp", "tp", "pp", "cp")]))
    return Plan.model_validate(
        {"architecture": "llama-3-8b", "sequence_length": 4096, "backend": "megatron-core", "precision": "fp8"}
        | {"global_batch": parallel["dp"], "parameter_dtype": parameter_dtype, "parallel": parallel}
        | {"cluster": {"gpu": gpu, "gpus": gpus}}
        | changes
    )


def predicted(made: Plan) -> Prediction:
    return predict(architecture_of(made), batch_of(made), system_of(made, shipped(made.cluster.gpu)))


def gathered_B(made: Plan) -> float:
    """Of parameters alone, in a step of ZeRO 1: what is sent less the gradients."""
    machine = system_of(made, shipped(made.cluster.gpu))
    sent_B = step_volumes(architecture_of(made), batch_of(made), machine).sent_B["dp"][0]
    return float(sent_B) / (7 / 8) - machine.gradient_B * TOTAL


@pytest.mark.parametrize(
    ("gpu", "precision", "dtype", "kept_B", "sent_B"),
    [
        ("h100-sxm-80gb", "fp8", None, 2, 2),
        ("h100-sxm-80gb", "fp8", "fp8", 2, 1),
        ("h100-sxm-80gb", "fp8", "bf16", 4, 2),
        ("b200-sxm-180gb", "fp8", "fp8", 1, 1),
        ("b200-sxm-180gb", "fp8", "bf16", 3, 2),
        ("b200-sxm-180gb", "mxfp8", "fp8", 2 * 33 / 32, 2),
        ("b200-sxm-180gb", "mxfp8", "bf16", 2 + 2 * 33 / 32, 2),
    ],
)
def test_bytes_kept_and_gathered(gpu: str, precision: str, dtype: str | None, kept_B: float, sent_B: float) -> None:
    made = plan(dtype, gpu=gpu, precision=precision)
    assert predicted(made).memory_terms_B["parameters"][0] == pytest.approx(kept_B * LAYERS + 2 * ENDS)
    assert gathered_B(made) == pytest.approx(sent_B * LAYERS + 2 * ENDS)


def test_what_is_gathered_in_half_the_bytes_takes_half_as_long() -> None:
    """ZeRO 3, whose gathers show: exposed communication falls."""
    shown = [
        predicted(plan(dtype, parallel={"zero_stage": 3})).hidden_communication_s[0]
        + predicted(plan(dtype, parallel={"zero_stage": 3})).exposed_communication_s[0]
        for dtype in (None, "fp8")
    ]
    assert 0.5 < shown[1] / shown[0] < 0.8  # gradients of 2 bytes are sent as before


@pytest.mark.parametrize(("precision", "element_B"), [("bf16-mixed", 20), ("fp8", 14)])
def test_buffers_of_tensor_parallelism(precision: str, element_B: float) -> None:
    """Ten buffers of all tokens by the hidden width; of products of 8 bits six are of one byte."""
    parallel = {"dp": 1, "tp": 4, "sequence_parallel": True}
    plain, buffered = (
        predicted(plan(precision=precision, tp_comm_overlap=overlap, parallel=parallel)) for overlap in (None, True)
    )
    assert buffered.memory_terms_B["tensor_parallel_buffers"][0] == pytest.approx(element_B * 4096 * 4096)
    assert "tensor_parallel_buffers" not in plain.memory_terms_B
    assert buffered.step_time_s[0] == plain.step_time_s[0]


def test_nothing_hidden_without_overlap() -> None:
    parallel = {"dp": 1, "tp": 4, "sequence_parallel": True}
    sizes = {"micro_batch": 4, "global_batch": 4, "parallel": parallel}
    hidden, shown = (predicted(plan(tp_comm_overlap=overlap, **sizes)) for overlap in (True, False))
    assert hidden.hidden_communication_s[0] > 0
    assert shown.hidden_communication_s[0] == 0
    assert shown.step_time_s[0] > hidden.step_time_s[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"parameter_dtype": "fp8", "precision": "bf16-mixed"}, "parameter_dtype: found fp8 with precision bf16-mixed"),
        ({"parameter_dtype": "int8"}, "parameter_dtype"),
        ({"tp_comm_overlap": True, "parallel": {"tp": 2}}, "tp_comm_overlap: found true without parallel.sequence"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        plan(**{"parameter_dtype": None} | changes)


def test_nemos_recipes() -> None:
    """Gradients in float32, weights gathered in 8 bits, tensor parallelism not overlapped."""
    made = plan(backend="nemo")
    found = predicted(made)
    assert found.memory_terms_B["gradients"][0] == pytest.approx(4 * TOTAL)
    assert gathered_B(made) == pytest.approx(LAYERS + 2 * ENDS)
    assert "tp" not in framework_of("nemo").overlapped
    assert framework_as_run(plan(backend="nemo", precision="bf16-mixed")).precisions["bf16-mixed"].gathered_B is None


def test_a_search_takes_one_for_all() -> None:
    document = Search.model_validate(
        {
            "architecture": "llama-3-8b",
            "sequence_length": 8192,
            "global_batch": 16,
            "backend": "megatron-core",
            "precision": "fp8",
            "parameter_dtype": "fp8",
            "tp_comm_overlap": False,
            "cluster": {"gpu": "h100-sxm-80gb", "gpus": 16},
        }
    )
    found = document.plan(dp=2, gpus=2)
    assert (found.parameter_dtype, found.tp_comm_overlap) == ("fp8", False)


def test_megatrons_words() -> None:
    least = {"num-layers": 2, "hidden-size": 64, "num-attention-heads": 8, "micro-batch-size": 1, "seq-length": 64}
    least |= {"global-batch-size": 8, "vocab-size": 1000, "max-position-embeddings": 64, "bf16": True}
    more = {"fp8-format": "hybrid", "fp8-param-gather": True, "tp-comm-overlap": True, "sequence-parallel": True}
    found = megatron_run(least | more | {"tensor-model-parallel-size": 2}, gpu="h100-sxm-80gb", gpus=8)
    assert (found.plan["parameter_dtype"], found.plan["tp_comm_overlap"]) == ("fp8", True)
    assert not found.left_out
    plain = megatron_run(least, gpu="h100-sxm-80gb", gpus=8).plan
    assert (plain["parameter_dtype"], plain["tp_comm_overlap"]) == (None, None)
