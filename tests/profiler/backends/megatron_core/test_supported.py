"""Which models and plans Megatron Core runs here, and what is said of the others; without Megatron Core."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture, Attention, Moe
from moemodel.model.core.errors import InputError
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.profiler.backends.base import check_runs
from moemodel.profiler.backends.megatron_core.supported_models import check_supported
from tests.profiler.backends.megatron_core.here import ARCHITECTURES, EXPERTS, tiny


def _plan(**changes: Any) -> Plan:
    parallel = changes.pop("parallel", {})
    gpus = parallel.get("dp", 1) * parallel.get("tp", 1) * parallel.get("pp", 1) * parallel.get("cp", 1)
    document = {"name": "p", "architecture": "qwen3-moe-8x64", "sequence_length": 512, "global_batch": 16} | changes
    document |= {"backend": "megatron-core", "cluster": {"gpu": "h100-sxm-80gb", "gpus": gpus}, "parallel": parallel}
    return Plan.model_validate(document)


def _refusal(plan: Plan) -> str:
    with pytest.raises(InputError) as refusal:
        check_runs(plan, architecture_of(plan))
    return str(refusal.value)


@pytest.mark.parametrize("name", ["olmoe-1b-7b", "qwen3-30b-a3b", "qwen3-moe-8x64", "mixtral-8x7b", "llama-3-8b"])
def test_models_of_its_kinds_run(name: str) -> None:
    plan = _plan(architecture=name)
    check_runs(plan, architecture_of(plan))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_the_trainings_run_is_supported(name: str) -> None:
    check_supported(ARCHITECTURES[name])


@pytest.mark.parametrize(
    "parallel",
    [
        {"dp": 2, "ep": 2, "zero_stage": 1},
        {"tp": 2, "sequence_parallel": True, "ep": 2},
        {"pp": 2, "virtual_stages": 2},
        {"pp": 4},
    ],
)
def test_degrees_that_run(parallel: dict[str, Any]) -> None:
    plan = _plan(parallel=parallel)
    check_runs(plan, architecture_of(plan))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("switch-base-128", "encoders, "),
        ("deepseek-v3", "latent attention"),
        ("opt-350m", "norms behind blocks"),
    ],
)
def test_models_that_map_to_no_configuration_are_refused_by_name(name: str, said: str) -> None:
    with pytest.raises(InputError) as refusal:
        check_supported(read_architecture(name))
    assert said in str(refusal.value)
    assert str(refusal.value).startswith(f"{name}: the megatron-core backend does not run ")


_ATTENTION = Attention(heads=4, kv_heads=4, head_dim=8)


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        (tiny(EXPERTS, replace(_ATTENTION, window=8)), "windows and chunks of attention"),
        (tiny(EXPERTS, replace(_ATTENTION, sinks=True)), "attention sinks"),
        (tiny(EXPERTS, replace(_ATTENTION, bias_out=True)), "biases of some products"),
        (tiny(EXPERTS, has_head=False), "models without a vocabulary head"),
        (tiny(replace(EXPERTS, router="expert_choice")), "expert_choice routers"),
        (tiny(replace(EXPERTS, router="noisy_topk")), "noisy_topk routers"),
        (tiny(replace(EXPERTS, router="switch_top1")), "switch_top1 routers with more than one expert a token"),
        (tiny(replace(EXPERTS, bias=True)), "expert biases"),
        (tiny(replace(EXPERTS, score_correction=True)), "corrections of softmax scores"),
        (tiny(replace(EXPERTS, depth=2)), "feed-forward blocks of more than one hidden layer"),
    ],
)
def test_parts_that_it_has_not_are_named(architecture: Architecture, said: str) -> None:
    with pytest.raises(InputError, match="the megatron-core backend does not run") as refusal:
        check_supported(architecture)
    assert said in str(refusal.value)


def test_layers_that_differ_are_refused() -> None:
    whole = ARCHITECTURES["qwen3"]
    first = replace(whole.decoder[0], feed_forward=replace(EXPERTS, width=32))
    with pytest.raises(InputError, match="experts of more than one shape"):
        check_supported(replace(whole, decoder=(first, *whole.decoder[1:])))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recompute": "every-2"}, "recompute: found 'every-2'; allowed for plans that are run: none, selective, full"),
        ({"precision": "fp8"}, "precision: found 'fp8'; allowed for plans that are run: bf16-mixed"),
        ({"cross_entropy": "fused"}, "cross_entropy: found 'fused'; allowed for plans that are run: plain, null"),
        ({"gradient_dtype": "fp32"}, "gradient_dtype: found 'fp32'; allowed for plans that are run: bf16, null"),
        ({"parallel": {"cp": 2}}, "parallel.cp: found 2; context parallelism needs Transformer Engine"),
        (
            {"parallel": {"dp": 2, "zero_stage": 3}},
            "parallel.zero_stage: found 3; allowed: 0, 1 (the distributed optimizer)",
        ),
        (
            {"parallel": {"tp": 2}},
            "parallel.sequence_parallel: found false with tp 2; Megatron Core trains experts so only with true",
        ),
        (
            {"architecture": "olmoe-1b-7b", "parallel": {"tp": 2, "sequence_parallel": True}},
            "parallel.tp: found 2; norms over all heads, as olmoe-1b-7b has them, know no tensor parallelism",
        ),
        (
            {"parallel": {"pp": 2}, "schedule": "gpipe"},
            "schedule: found 'gpipe'; allowed with backend megatron-core: 1f1b",
        ),
        (
            {"parallel": {"pp": 2}, "layers": 5},
            "parallel.pp: found 2 with virtual_stages 1; allowed: a product that divides the 5 layers",
        ),
        ({"routing": {"temperature": 2.0}}, "routing.temperature: found 2; allowed: 1"),
        ({"routing": {"residual": True}}, "routing.residual: found true; allowed: false"),
        (
            {"routing": {"bias_rate": 0.1}},
            "routing.bias_rate: found 0.1 with router softmax_topk; allowed: 0, or router sigmoid_topk",
        ),
        (
            {"routing": {"router": "sigmoid_topk", "normalize": False}},
            "routing.normalize: found false with router sigmoid_topk; allowed: true, null",
        ),
        (
            {"routing": {"top_k": 1, "normalize": True}},
            "routing.normalize: found true with one expert a token, whose weight would be 1 without a gradient",
        ),
        ({"routing": {"pad": True}}, "routing.pad: found true without a capacity; allowed: false, null, or true with"),
        (
            {"routing": {"pad": True, "capacity_factor": 9.0}},
            "routing.capacity_factor: found 9 with pad; Megatron Core pads an expert to as many rows as there are "
            "tokens at most, allowed: up to 8 (experts / top_k)",
        ),
    ],
)
def test_plans_outside_are_refused(changes: dict[str, Any], said: str) -> None:
    assert said in _refusal(_plan(**changes))


def test_refusals_load_neither_torch_nor_megatron() -> None:
    code = (
        "import sys; import moemodel.profiler.backends.megatron_core.supported_plans as m; "
        "import moemodel.profiler.backends.megatron_core.settings; "
        "assert not {'torch', 'megatron'} & set(sys.modules), 'loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_experts_are_found_among_dense_layers() -> None:
    from moemodel.profiler.backends.megatron_core.supported_models import dense_of, mixture_of

    sparse = ARCHITECTURES["sparse"]
    assert isinstance(mixture_of(sparse), Moe)
    assert dense_of(sparse) is not None
    assert dense_of(ARCHITECTURES["qwen3"]) is None
    assert mixture_of(ARCHITECTURES["llama"]) is None


def test_a_token_embedding_of_another_width_is_not_cut_into_stages() -> None:
    plan = _plan(architecture="opt-350m", parallel={"pp": 2})
    before = replace(read_architecture("opt-350m").decoder[0], post_norm=False)
    architecture = replace(read_architecture("opt-350m"), decoder=(before,) * 24)
    said = "parallel.pp: found 2; allowed: 1, since Megatron Core has no token embedding of another width"
    with pytest.raises(InputError, match=re.escape(said)):
        check_runs(plan, architecture)
    check_supported(architecture)
