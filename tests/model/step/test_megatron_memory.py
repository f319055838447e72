"""Memory under Megatron-LM's settings, against what its functional tests published, and in closed form.

Published: the allocator's peak on the last rank (NVIDIA/Megatron-LM, commit d98e8a6, tests/functional_tests/test_cases,
`mem-max-allocated-bytes` of golden_values_dev_dgx_*.json), of GPTs of 12 layers, 512 wide, on eight GPUs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.plan.batch import joined
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.megatron_arguments import megatron_run
from moemodel.model.plan.spec import Plan
from moemodel.model.schedule.pipeline_layout import stages
from moemodel.model.step.memory import MemoryModel
from moemodel.model.step.system import system_of

MiB = 2.0**20
GPT: dict[str, Any] = {
    "--num-layers": 12,
    "--hidden-size": 512,
    "--num-attention-heads": 8,
    "--seq-length": 1024,
    "--max-position-embeddings": 1024,
    "--micro-batch-size": 4,
    "--global-batch-size": 32,
    "--bf16": True,
    "--no-gradient-accumulation-fusion": True,
}
SHORT: dict[str, Any] = {"--deterministic-mode": True, "--transformer-impl": "transformer_engine"}
LOCAL: dict[str, Any] = {"--deterministic-mode": True, "--transformer-impl": "local"}
EXPERTS: dict[str, Any] = {
    "--num-experts": 8,
    "--moe-router-topk": 1,
    "--expert-model-parallel-size": 2,
    "--tensor-model-parallel-size": 2,
    "--sequence-parallel": True,
    "--disable-bias-linear": True,
    "--use-distributed-optimizer": True,
}
LAST_OF_FOUR: dict[str, Any] = {"--pipeline-model-parallel-size": 4, "--apply-query-key-layer-scaling": True}
LOSS: dict[str, Any] = {"--tensor-model-parallel-size": 2, "--pipeline-model-parallel-size": 2}
LOSS |= {"--cross-entropy-loss-fusion": True, "--transformer-impl": "transformer_engine"}
BERT = GPT | {"--num-layers": 24, "--hidden-size": 1024, "--num-attention-heads": 16, "--seq-length": 512}
BERT |= {"--max-position-embeddings": 512, "--global-batch-size": 128, "--attention-backend": "unfused"}

PUBLISHED: dict[str, tuple[dict[str, Any], str, float]] = {
    "own layers": (GPT | LOCAL | LAST_OF_FOUR, "a100", 2748673024.0),
    "own layers, fp16": (GPT | LOCAL | LAST_OF_FOUR | {"--bf16": None, "--fp16": True}, "a100", 2676108288.0),
    "compiled loss": (GPT | LOSS, "h100", 1837640192.0),
    "experts one by one": (GPT | SHORT | EXPERTS, "h100", 2159231488.0),
    "grouped experts": (
        GPT
        | SHORT
        | EXPERTS
        | {"--moe-grouped-gemm": True, "--attention-backend": "unfused", "--overlap-grad-reduce": True},
        "h100",
        3300401152.0,
    ),
    "same bits": (
        GPT | SHORT | {"--use-distributed-optimizer": True, "--attention-backend": "unfused"},
        "a100",
        4673069568.0,
    ),
    "BERT": (BERT | SHORT | {"--pipeline-model-parallel-size": 2}, "h100", 5707393024.0),
}


def allocated(folder: Path, arguments: dict[str, Any], gpu: str, **options: Any) -> dict[str, float]:
    """Terms of what torch allocates on the last stage, B."""
    run = megatron_run(arguments, gpu=f"{gpu}-sxm-80gb", gpus=8, **options)
    (folder / "config.json").write_text(json.dumps(run.config), encoding="utf-8")
    plan = Plan.model_validate(run.plan | {"architecture": str(folder / "config.json")})
    architecture, system = architecture_of(plan), system_of(plan, load_calibration(None, plan.cluster.gpu))
    model = MemoryModel(
        architecture,
        joined([plan]),
        framework=system.framework,
        precision=plan.precision,
        calibration=system.calibration,
    )
    last = stages(architecture, plan.parallel.pp, plan.parallel.virtual_stages)[-1]
    terms = model.stage(last).terms_B
    return {name: float(size_B[0]) for name, size_B in terms.items() if name not in ("fragmentation", "context")}


@pytest.mark.parametrize("run", PUBLISHED)
def test_as_published(run: str, tmp_path: Path) -> None:
    arguments, gpu, published_B = PUBLISHED[run]
    found = allocated(tmp_path, arguments, gpu, model="bert" if run == "BERT" else None)
    assert sum(found.values()) == pytest.approx(published_B, rel=0.02)


def test_products_that_give_the_same_bits_have_eight_workspaces_of_4_MiB_a_thread(tmp_path: Path) -> None:
    usual, same = (allocated(tmp_path, GPT | more, "a100")["workspace"] for more in ({}, SHORT))
    assert same - usual == 2 * (8 * 4 * MiB - 8.125 * MiB)  # torch: 2 of 4 MiB and 8 of 16 KiB


def test_a_compiled_loss_keeps_another_float32_softmax(tmp_path: Path) -> None:
    plain = GPT | {"--tensor-model-parallel-size": 2}
    fused = plain | {"--cross-entropy-loss-fusion": True}
    found = [allocated(tmp_path, arguments, "h100")["loss"] for arguments in (plain, fused)]
    assert found[1] - found[0] == pytest.approx(4 * 4096 * 50432 / 2)


def test_own_layers_multiply_into_a_buffer_of_all_scores(tmp_path: Path) -> None:
    found = allocated(tmp_path, GPT | {"--transformer-impl": "local"}, "h100")["workspace"]
    assert found == 2 * 32 * MiB + 2 * (4 * 8 * 1024 * 1024)  # torch's two workspaces, 16-bit scores


def test_activated_rows_stay_beside_weighted_ones_but_for_gates(tmp_path: Path) -> None:
    """Of GELU and SwiGLU with inner widths that make their products as wide."""
    one = GPT | EXPERTS | {"--num-layers": 2, "--hidden-dropout": 0.0, "--attention-dropout": 0.0}
    plain, gated = (
        allocated(tmp_path, one | more, "h100")["activations"]
        for more in (
            {"--moe-ffn-hidden-size": 2048},
            {"--moe-ffn-hidden-size": 2048, "--swiglu": True, "--ffn-hidden-size": 2048},
        )
    )
    rows = 4096  # of two GPUs' 4,096 tokens each half are of a rank's four experts
    inner = rows * 2048 / 2
    # 2 bytes each: SwiGLU keeps gate, up-projection and weighted product; GELU input, output and weighted product
    assert gated - plain == pytest.approx(0.0, abs=0.01 * 2 * inner)


def test_experts_in_order_keep_their_outputs_for_index_add(tmp_path: Path) -> None:
    one = GPT | EXPERTS | {"--num-layers": 2}
    usual, same = (
        allocated(tmp_path, one | more, "h100")["activations"] for more in ({}, {"--deterministic-mode": True})
    )
    assert same - usual == pytest.approx(2 * 2 * 4096 * 512)  # layers, bytes, rows, width


def test_grouped_products_have_a_workspace_on_each_of_four_streams(tmp_path: Path) -> None:
    one_by_one, grouped = (
        allocated(tmp_path, GPT | EXPERTS | more, "h100")["workspace"] for more in ({}, {"--moe-grouped-gemm": True})
    )
    assert grouped - one_by_one == 4 * 32 * MiB
