"""Megatron-LM's arguments as plans: published counts of parameters, and no argument that goes lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.megatron_model import layer_pattern
from moemodel.model.core.errors import InputError
from moemodel.model.layers.parameters import parameters
from moemodel.model.plan.megatron_arguments import HARMLESS, LEFT_OUT, MegatronRun, layout_layers, megatron_run

SMALL: dict[str, Any] = {
    "--num-layers": 12,
    "--hidden-size": 512,
    "--num-attention-heads": 8,
    "--seq-length": 1024,
    "--max-position-embeddings": 1024,
    "--micro-batch-size": 4,
    "--hidden-dropout": 0.0,
    "--attention-dropout": 0.0,
    "--bf16": True,
}
MIXTRAL = SMALL | {
    "--num-layers": 32,
    "--hidden-size": 4096,
    "--ffn-hidden-size": 14336,
    "--num-attention-heads": 32,
    "--group-query-attention": True,
    "--num-query-groups": 8,
    "--swiglu": True,
    "--normalization": "RMSNorm",
    "--disable-bias-linear": True,
    "--untie-embeddings-and-output-weights": True,
    "--num-experts": 8,
    "--position-embedding-type": "rope",
    "--moe-router-topk": 2,
    "--tokenizer-type": "Llama2Tokenizer",
}
DEEPSEEK = MIXTRAL | {
    "--num-layers": 61,
    "--hidden-size": 7168,
    "--ffn-hidden-size": 18432,
    "--num-attention-heads": 128,
    "--multi-latent-attention": True,
    "--q-lora-rank": 1536,
    "--kv-lora-rank": 512,
    "--num-experts": 256,
    "--moe-ffn-hidden-size": 2048,
    "--moe-router-topk": 8,
    "--moe-shared-expert-intermediate-size": 2048,
    "--moe-layer-freq": "([0]*3+[1]*58)",
    "--moe-router-score-function": "sigmoid",
}


def run(changes: dict[str, Any] | None = None, *, of: dict[str, Any] = SMALL, **options: Any) -> MegatronRun:
    return megatron_run(of | (changes or {}), **{"gpu": "a100-sxm-80gb", "gpus": 8, **options})


def total_parameters(found: MegatronRun, folder: Path) -> int:
    path = folder / "model.json"
    path.write_text(json.dumps(found.config), encoding="utf-8")
    return parameters(read_architecture(path)).total


@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "published"),
    [(24, 2304, 24, 1.7e9), (96, 12288, 96, 174.6e9), (128, 25600, 160, 1e12)],
)
def test_gpts_have_the_parameters_of_narayanan_2021(
    layers: int, hidden: int, heads: int, published: float, tmp_path: Path
) -> None:
    found = run({"--num-layers": layers, "--hidden-size": hidden, "--num-attention-heads": heads})
    counted = total_parameters(found, tmp_path)
    # equation 2 there: 12 l h^2 (1 + 13 / (12 h) + (V + s) / (12 l h)); it leaves the norm behind the last layer out
    assert counted - 2 * hidden == 12 * layers * hidden**2 + 13 * layers * hidden + (50304 + 1024) * hidden
    assert counted == pytest.approx(published, rel=0.035)  # of two digits there


def test_mixtral_and_deepseek_have_their_published_parameters(tmp_path: Path) -> None:
    assert total_parameters(run(of=MIXTRAL, vocab=32000), tmp_path) == pytest.approx(46.7e9, rel=2e-3)
    assert total_parameters(run(of=DEEPSEEK, vocab=129280), tmp_path) == pytest.approx(671e9, rel=2e-3)


def test_what_is_not_said_is_as_megatron_has_it() -> None:
    found = run({"--swiglu": True, "--tensor-model-parallel-size": 2})
    assert found.config["vocab_size"] == 50432  # 50257 to the next multiple of 128 x 2 (Megatron-LM prints 175 dummies)
    assert found.plan["global_batch"] == 4 * 4
    assert (found.plan["parallel"]["dp"], found.plan["parallel"]["zero_stage"]) == (4, 0)
    assert (found.plan["gradient_dtype"], found.plan["recompute"]) == ("fp32", "none")
    assert found.left_out == found.unknown == ()
    unsaid = run({"--hidden-dropout": None, "--attention-dropout": None})
    assert unsaid.plan["dropout"]  # 0.1 each
    assert not unsaid.left_out


def test_types_of_states_are_read() -> None:
    """Of the precision-aware optimizer, which keeps remainders of float32 weights unless told otherwise."""
    asked: dict[str, Any] = {"--use-precision-aware-optimizer": True, "--exp-avg-dtype": "bf16"}
    found = run(asked | {"--exp-avg-sq-dtype": "fp8"}).plan["optimizer"]
    assert found == {"exp_avg": "bf16", "exp_avg_sq": "fp8", "master": "remainder"}
    assert run(asked | {"--main-params-dtype": "fp16"}).plan["optimizer"]["master"] == "fp16"
    assert run({"--exp-avg-dtype": "bf16"}).plan["optimizer"] is None


def test_rounds_of_micro_batches() -> None:
    said = {"--pipeline-model-parallel-size": 4, "--num-layers-per-virtual-pipeline-stage": 1}
    group = "--microbatch-group-size-per-virtual-pipeline-stage"
    assert run(said | {group: 5}).plan["micro_batches_per_round"] == 5
    assert run(said | {group: 4}).plan["micro_batches_per_round"] is None  # its default
    assert run(said).plan["micro_batches_per_round"] is None


def test_degrees_and_choices() -> None:
    said = {
        "--pipeline-model-parallel-size": 4,
        "--num-layers-per-virtual-pipeline-stage": 1,
        "--sequence-parallel": True,
    }
    said |= {"--use-distributed-optimizer": True, "--overlap-grad-reduce": True, "--fp8-format": "hybrid"}
    found = run(said | {"--recompute-granularity": "full", "--recompute-method": "block", "--recompute-num-layers": 2})
    p = found.plan["parallel"]
    assert (p["dp"], p["pp"], p["virtual_stages"], p["zero_stage"], p["sequence_parallel"]) == (2, 4, 3, 1, False)
    assert (found.plan["precision"], found.plan["backend"], found.plan["recompute"]) == (
        "fp8",
        "megatron-core",
        "first-2",
    )
    parts = run({"--recompute-granularity": "selective", "--recompute-modules": "[moe_act layernorm mystery]"})
    assert parts.plan["recompute"] == "moe_act+layernorm"
    assert parts.left_out == ("--recompute-modules mystery: not computed again here",)


@pytest.mark.parametrize(
    ("said", "kernel"),
    [
        ({}, None),
        ({"--attention-backend": "flash"}, None),
        ({"--attention-backend": "flash", "--flash-attention-version": 3}, "flash3"),
        ({"--attention-backend": "fused"}, "cudnn"),
        ({"--attention-backend": "unfused"}, "unfused"),
        ({"--transformer-impl": "local"}, "unfused"),
    ],
)
def test_kernels_of_attention(said: dict[str, Any], kernel: str | None) -> None:
    assert run(said, gpu="h100-sxm-80gb").plan["attention"] == kernel


def test_cudnn_stands_for_itself_on_hopper_alone() -> None:
    """How fast it is elsewhere is not known: there the framework's kernel stands for it."""
    assert run({"--attention-backend": "fused"}, gpu="a100-sxm-80gb").plan["attention"] is None


def test_only_transformer_engines_loss_keeps_less() -> None:
    fused = {"--cross-entropy-loss-fusion": True}
    assert run().plan["cross_entropy"] == "plain"
    assert run(fused).plan["cross_entropy"] == "compiled"
    assert run(fused | {"--cross-entropy-fusion-impl": "te"}).plan["cross_entropy"] == "fused"


def test_how_experts_are_cut_and_reached() -> None:
    experts = {"--num-experts": 8, "--tensor-model-parallel-size": 2, "--expert-model-parallel-size": 2}
    plain = run(experts).plan
    assert (plain["parallel"]["etp"], plain["routing"]) == (2, {"dispatch": "allgather", "products": "each"})
    whole = {"--expert-tensor-parallel-size": 1, "--moe-token-dispatcher-type": "flex", "--moe-grouped-gemm": True}
    flex = run(experts | whole | {"--overlap-moe-expert-parallel-comm": True}).plan
    assert flex["parallel"]["etp"] == 1
    assert flex["routing"] == {"dispatch": "deepep", "dispatch_overlap": True, "products": "grouped"}
    assert "routing" not in run().plan


def test_layers_that_are_replayed() -> None:
    whole = run({"--cuda-graph-impl": "local"})
    assert (whole.plan["cuda_graphs"], whole.left_out) == (True, ())
    parts = run({"--cuda-graph-impl": "local", "--cuda-graph-modules": "attn"})
    assert parts.plan["cuda_graphs"] is None
    assert parts.left_out == ("--cuda-graph-modules 'attn': the host queues every kernel",)
    assert run().plan["cuda_graphs"] is None


def test_optimizers_of_their_own_shard_less() -> None:
    sharded = {"--use-distributed-optimizer": True, "--tensor-model-parallel-size": 2}
    two = run(sharded | {"--num-distributed-optimizer-instances": 2}).plan["parallel"]
    assert (two["zero_stage"], two["replicas"]) == (1, 2)
    four = run(sharded | {"--num-distributed-optimizer-instances": 4}).plan["parallel"]
    assert four["zero_stage"] == 0
    assert "replicas" not in four


def test_layers_of_stages() -> None:
    # PipelineParallelLayerLayout's own example, and two of Megatron-LM's tests
    assert layout_layers("E|(tt|)*2,(t|)*4,mL") == [0, 2, 2, 1, 1, 1, 1, 0]
    assert layout_layers("Et*2|(tt|)*5t|tmL") == [2, 2, 2, 2, 2, 2, 1, 1]
    assert layout_layers("Et*7|t*7mL") == [7, 7]
    said = {
        "--pipeline-model-parallel-size": 2,
        "--num-layers": 14,
        "--pipeline-model-parallel-layout": "Et*2|(tt|)*5t|tmL",
    }
    found = run(said)
    assert (found.plan["parallel"]["virtual_stages"], sum(found.plan["stage_layers"])) == (4, 14)
    assert run({"--account-for-loss-in-pipeline-split": True}).plan["stage_layers"] == {"head": 1}
    ends = {"--decoder-first-pipeline-num-layers": 2, "--decoder-last-pipeline-num-layers": 2}
    assert run(ends).plan["stage_layers"] == {"first": 2, "last": 2}
    for text in ("Ex|tL", "", "t" * 200_000):
        with pytest.raises(InputError, match="pipeline-model-parallel-layout"):
            layout_layers(text)


def test_nothing_is_dropped_without_a_word() -> None:
    found = run({"--optimizer": "lion", "--frobnicate": 1, "--lr": 1e-4, "--cuda-graph-impl": "none"})
    assert found.unknown == ("frobnicate",)
    assert found.left_out == ("--optimizer 'lion': AdamW is priced and kept instead",)
    assert not any(name.startswith("--") for name in LEFT_OUT)
    assert all(reason for reason in HARMLESS)


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"--perform-rl-step": True}, {}, "--perform-rl-step: found True: reinforcement learning"),
        ({"--img-h": 336}, {}, "encoders of images"),
        ({"--num-layers": "many"}, {}, "--num-layers: found 'many'; allowed: a whole number"),
        ({"--micro-batch-size": None}, {}, "--micro-batch-size: found nothing"),
        (
            {"--tokenizer-type": "TikTokenizer"},
            {},
            "--vocab-size: found nothing; allowed: a number, since TikTokenizer",
        ),
        ({"--tensor-model-parallel-size": 3}, {}, "gpus: found 8; allowed: multiples of tp 3 x pp 1 x cp 1 = 3"),
    ],
)
def test_errors_name_place_found_and_allowed(changes: dict[str, Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as raised:
        run(changes, **options)
    assert words in str(raised.value)


def test_layer_patterns_are_read_and_not_run() -> None:
    assert layer_pattern("([0]*1+[1]*3)") == [0, 1, 1, 1]
    assert layer_pattern("([1]*2+[0])*2") == [1, 1, 0, 1, 1, 0]
    for text in ("__import__('os')", "[2]*3", "[0]*10**9", "([0]*9999)*9999", "", "[0]+1"):
        with pytest.raises(ValueError, match="moe_layer_freq"):
            layer_pattern(text)


def test_layers_of_bert_are_megatrons_own_where_its_specification_is_local() -> None:
    own, engine = run({"--spec": "local"}, model="bert"), run(model="bert")
    assert (own.plan["backend"], own.plan["attention"]) == ("megatron-local", "unfused")
    assert (engine.plan["backend"], engine.plan["attention"]) == ("megatron", None)
    assert not own.left_out
    assert run({"--spec": "local"}).plan["backend"] == "megatron"


@pytest.mark.parametrize(
    ("more", "attention", "is_left_out"),
    [
        ({"--attention-softmax-in-fp32": True}, "unfused-fp32", False),
        ({"--apply-query-key-layer-scaling": True}, "unfused-fp32", False),
        ({}, "unfused", True),  # in 16 bits, which no plan says
    ],
)
def test_a_softmax_of_several_kernels(more: dict[str, Any], attention: str, is_left_out: bool) -> None:
    found = run({"--transformer-impl": "local", "--no-masked-softmax-fusion": True, **more})
    assert found.plan["attention"] == attention
    assert any("softmax" in sentence for sentence in found.left_out) == is_left_out
