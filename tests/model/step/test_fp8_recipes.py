"""How operands of 8 bits are scaled, and a loss in parts: bytes and work against closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.core.errors import InputError
from moemodel.model.operators.work import Kind
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.megatron_arguments import megatron_run
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.predict.prediction import Prediction
from moemodel.model.search.document import Search
from moemodel.model.step.layer_operators import Workload
from moemodel.model.step.system import framework_as_run, system_of
from moemodel.model.step.volumes import step_volumes


def plan(**changes: Any) -> Plan:
    parallel = changes.pop("parallel", {})
    gpus = int(np.prod([parallel.get(degree, 1) for degree in ("dp", "tp", "pp", "cp")]))
    return Plan.model_validate(
        {"architecture": "llama-3-8b", "sequence_length": 4096, "global_batch": 8, "parallel": parallel}
        | {"backend": "megatron-core", "precision": "fp8", "cluster": {"gpu": "h100-sxm-80gb", "gpus": gpus}}
        | changes
    )


def predicted(made: Plan) -> Prediction:
    return predict(architecture_of(made), batch_of(made), system_of(made, shipped("h100-sxm-80gb")))


def cast_B(made: Plan) -> float:
    """Of all casts before products of a layer, forward: copies of 4 bytes an element."""
    framework, architecture = framework_as_run(made), architecture_of(made)
    work = Workload(architecture, batch_of(made), framework=framework, precision=made.precision)
    layer = work.passes(architecture.layers[0])
    return float(sum(4 * np.sum(call.shape.m) for call in layer if call.kind is Kind.COPY and call.phase == "forward"))


BLOCKS_B = 2 + 2 * (1 + 4 / 128)


@pytest.mark.parametrize(
    ("recipe", "normed_B", "element_B"),
    [(None, 6, 6), ("tensorwise", 6, 6), ("delayed", 1, 4), ("blockwise", BLOCKS_B, BLOCKS_B)],
)
def test_bytes_of_casts(recipe: str | None, normed_B: float, element_B: float) -> None:
    """Of the inputs of four products: two behind norms, both 4096 wide, and two others, 4096 and 14336."""
    plain = cast_B(plan(precision="bf16-mixed"))
    normed, others = 4096 * (4096 + 4096), 4096 * (4096 + 14336)
    assert cast_B(plan(fp8_recipe=recipe)) - plain == pytest.approx(normed_B * normed + element_B * others)


@pytest.mark.parametrize(("sequence_parallel", "waits"), [(True, 4), (False, 0)])
def test_tensor_parallel_ranks_share_their_largest(sequence_parallel: bool, waits: int) -> None:
    """Of a layer's four products the inputs of two and the gradients of two: a number each, whose all-reduce takes some
    microseconds among four GPUs of a node."""

    def exposed_s(recipe: str) -> float:
        parallel = {"tp": 4, "sequence_parallel": sequence_parallel}
        found = predicted(plan(fp8_recipe=recipe, parallel=parallel, global_batch=1, tp_comm_overlap=False))
        return float(found.exposed_communication_s[0])

    added_s = exposed_s("tensorwise") - exposed_s("delayed")
    assert waits * 32 * 5e-6 <= added_s <= waits * 32 * 30e-6


def test_scales_of_blocks_are_kept() -> None:
    """Inputs that products keep in 8 bits, of each of 128 a float32 scale."""
    whole, blocks = (predicted(plan(fp8_recipe=r)).memory_terms_B["activations"][0] for r in (None, "blockwise"))
    kept = 32 * 4096 * (4096 + 4096 + 4096 + 14336)
    assert blocks - whole == pytest.approx(4 / 128 * kept, rel=0.15)


def test_blocks_take_kernels_of_their_own() -> None:
    found = {r: predicted(plan(fp8_recipe=r, micro_batch=2)) for r in ("delayed", "tensorwise", "blockwise")}
    delayed_s, current_s, blocks_s = (one.step_time_s[0] for one in found.values())
    assert delayed_s < current_s
    assert blocks_s not in (delayed_s, current_s)
    assert max(blocks_s, current_s) < predicted(plan(precision="bf16-mixed", micro_batch=2)).step_time_s[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"fp8_recipe": "blockwise", "precision": "bf16-mixed"},
            "fp8_recipe: found blockwise with precision bf16-mixed",
        ),
        ({"fp8_recipe": "rowwise"}, "fp8_recipe"),
        ({"fp8_recipe": "delayed", "backend": "torchtitan"}, "fp8_recipe: found delayed with backend torchtitan"),
        ({"loss_chunks": 1}, "loss_chunks"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        plan(**changes)


@pytest.mark.parametrize("chunks", [2, 8])
def test_a_loss_in_parts(chunks: int) -> None:
    """Logits of a part of the tokens, and as much work."""
    whole, parts = (plan(backend="megatron", precision="bf16-mixed", loss_chunks=c) for c in (None, chunks))
    machine = system_of(whole, shipped("h100-sxm-80gb"))
    found = [predicted(made).memory_terms_B["loss"][0] for made in (whole, parts)]
    assert found[1] < found[0]
    done = [step_volumes(architecture_of(made), batch_of(made), machine).flops[0] for made in (whole, parts)]
    assert done[0] == pytest.approx(done[1])
    assert predicted(parts).step_time_s[0] >= 0.999 * predicted(whole).step_time_s[0]


def test_logits_of_a_part() -> None:
    """torch: 12 bytes a logit of 50,272 of each of 16,384 tokens at once."""
    sizes = {"backend": "torch", "precision": "bf16-mixed", "architecture": "opt-350m", "sequence_length": 2048}
    whole, parts = (predicted(plan(loss_chunks=c, micro_batch=8, **sizes)).memory_terms_B["loss"][0] for c in (None, 2))
    assert whole == pytest.approx(12 * 50272 * 16384)
    assert parts == pytest.approx(whole / 2)


def test_a_search_takes_one_for_all() -> None:
    document = Search.model_validate(
        {
            "architecture": "llama-3-8b",
            "sequence_length": 8192,
            "global_batch": 16,
            "backend": "megatron-core",
            "precision": "fp8",
            "fp8_recipe": "blockwise",
            "loss_chunks": 4,
            "cluster": {"gpu": "h100-sxm-80gb", "gpus": 16},
        }
    )
    found = document.plan(dp=2, gpus=2)
    assert (found.fp8_recipe, found.loss_chunks) == ("blockwise", 4)


@pytest.mark.parametrize(
    ("given", "recipe", "precision"),
    [("tensorwise", "tensorwise", "fp8"), (None, "delayed", "fp8"), ("mxfp8", None, "mxfp8"), ("custom", None, "fp8")],
)
def test_megatrons_words(given: str | None, recipe: str | None, precision: str) -> None:
    least = {"num-layers": 2, "hidden-size": 64, "num-attention-heads": 8, "micro-batch-size": 1, "seq-length": 64}
    least |= {"global-batch-size": 8, "vocab-size": 1000, "max-position-embeddings": 64, "fp8-format": "hybrid"}
    found = megatron_run(least | ({"fp8-recipe": given} if given else {}), gpu="h100-sxm-80gb", gpus=8)
    assert (found.plan["fp8_recipe"], found.plan["precision"]) == (recipe, precision)


@pytest.mark.parametrize(("architecture", "rows"), [("llama-3-8b", 14336), ("mixtral-8x7b", 2 * 14336)])
def test_inputs_of_gated_activations(architecture: str, rows: int) -> None:
    """A byte less of each of gate and up-projection, of every token and expert of it, in 32 layers; casts take time."""
    changes = {"architecture": architecture, "precision": "bf16-mixed", "layers": 2}
    plain, stored = (predicted(plan(activation_input_dtype=d, **changes)) for d in (None, "fp8"))
    kept = [one.memory_terms_B["activations"][0] for one in (plain, stored)]
    whole = [one.memory_B[0] for one in (plain, stored)]
    assert max(kept[0] - kept[1], whole[0] - whole[1]) == pytest.approx(2 * 4096 * 2 * rows, rel=0.1)
    assert stored.forward_s[0] > plain.forward_s[0]


def test_megatrons_stored_input() -> None:
    least = {"num-layers": 2, "hidden-size": 64, "num-attention-heads": 8, "micro-batch-size": 1, "seq-length": 64}
    least |= {"global-batch-size": 8, "vocab-size": 1000, "max-position-embeddings": 64}
    found = megatron_run(least | {"activation-func-fp8-input-store": True}, gpu="h100-sxm-80gb", gpus=8)
    assert found.plan["activation_input_dtype"] == "fp8"
    assert not found.unknown


@pytest.mark.parametrize(("gpu", "orders"), [("h100-sxm-80gb", 2), ("b200-sxm-180gb", 1), ("gb300-288gb", 1)])
def test_tensor_cores_that_read_any_order_take_one(gpu: str, orders: int) -> None:
    """Looked through for the largest, read again, and written in so many orders; blocks of 32 always in both."""
    made = plan(cluster={"gpu": gpu, "gpus": 1})
    found = system_of(made, shipped(gpu)).framework.precisions
    assert found["fp8"].cast_B == 2 + 2 + orders
    assert found["mxfp8"].cast_B == 4
