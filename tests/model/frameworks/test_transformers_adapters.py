"""PEFT's adapters under Hugging Face's Trainer: against a layer written here, against runs on an H200, and in closed
form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from moemodel.api import predict
from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.layers.adapted_model import model_adapters
from moemodel.model.layers.base import MicroBatch
from moemodel.model.layers.layer import layer_blocks
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan, read_plan
from moemodel.model.predict.predict import predict as predict_plans
from moemodel.model.results.outcome import outcome
from moemodel.model.step.system import framework_as_run, system_of

BENCH = Path(__file__).parents[3] / "bench"
BOARD = "h200-sxm-141gb"
HIDDEN, HEADS, KV_HEADS, INNER, TOKENS, RANK = 512, 8, 2, 1024, 256, 4
HEAD = HIDDEN // HEADS
PRODUCTS = {
    "qkv": [(HIDDEN, HIDDEN), (KV_HEADS * HEAD, HIDDEN), (KV_HEADS * HEAD, HIDDEN)],
    "proj": [(HIDDEN, HIDDEN)],
    "fc1": [(INNER, HIDDEN), (INNER, HIDDEN)],
    "fc2": [(HIDDEN, INNER)],
}
EVERY = tuple(PRODUCTS)


def _runs(name: str) -> list[str]:
    return sorted(file.stem for file in (BENCH / "measured" / name).glob("*.json"))


@pytest.mark.parametrize("name", _runs("transformers-lora"))
def test_steps_take_as_long_and_draw_as_much_as_measured(name: str) -> None:
    measured = json.loads((BENCH / "measured" / "transformers-lora" / f"{name}.json").read_text())
    plan = read_plan(BENCH / "plans" / "transformers-lora" / f"{name}.yaml")
    found = predict(plan)
    assert found.step_time_s.value == pytest.approx(measured["step_time_s"], rel=0.05)
    assert found.energy.gpu_J.value == pytest.approx(measured["energy_J"], rel=0.09)
    allocated_B = found.memory_B.value - found.memory_terms_B["context"] - found.memory_terms_B["fragmentation"]
    assert allocated_B == pytest.approx(measured["allocated_B"], rel=0.03)
    reserved_B = allocated_B + found.memory_terms_B["fragmentation"]
    assert reserved_B == pytest.approx(measured["reserved_B"], rel=0.05)
    adapters = model_adapters(architecture_of(plan), framework_as_run(plan), plan.precision)
    assert found.parameters + (adapters or 0) == measured["parameters"]


@pytest.mark.parametrize("name", _runs("transformers-short"))
def test_the_host_bounds_short_micro_batches(name: str) -> None:
    """Hosts of one kind of machine differ by a quarter from one time to the next, which intervals hold."""
    measured = json.loads((BENCH / "measured" / "transformers-short" / f"{name}.json").read_text())
    found = predict(BENCH / "plans" / "transformers-short" / f"{name}.yaml")
    assert found.step_time_s.low < measured["step_time_s"] < found.step_time_s.high
    assert found.step_time_s.high < 2.5 * found.step_time_s.low


# ---- what a layer keeps ---------------------------------------------------------------------------------------------


def _norm(weight_D: torch.Tensor, x_TD: torch.Tensor) -> torch.Tensor:
    wide_TD = x_TD.to(torch.float32)
    scaled_TD = wide_TD * torch.rsqrt(wide_TD.pow(2).mean(-1, keepdim=True) + 1e-5)
    return weight_D * scaled_TD.to(x_TD.dtype)


def _adapted(targets: tuple[str, ...], dropout: float) -> Callable[[str, int, torch.Tensor], torch.Tensor]:
    """Frozen 16-bit products, with float32 adapters beside some of them."""
    frozen = {key: [torch.randn(size, dtype=torch.bfloat16) for size in sizes] for key, sizes in PRODUCTS.items()}

    def trained(*size: int) -> torch.Tensor:
        return torch.randn(*size).requires_grad_()

    pairs = {key: [(trained(RANK, k), trained(n, RANK)) for n, k in PRODUCTS[key]] for key in targets}

    def product(key: str, index: int, x_TK: torch.Tensor) -> torch.Tensor:
        found = functional.linear(x_TK, frozen[key][index])
        if key not in pairs:
            return found
        down, up = pairs[key][index]
        wide_TK = x_TK.to(torch.float32)
        read_TK = torch.native_dropout(wide_TK, dropout, True)[0] if dropout else wide_TK
        return found + functional.linear(functional.linear(read_TK, down), up) * 2.0

    return product


def _rotated(x_HTK: torch.Tensor, cos_TK: torch.Tensor, sin_TK: torch.Tensor) -> torch.Tensor:
    low, high = x_HTK.chunk(2, dim=-1)
    return x_HTK * cos_TK + torch.cat((-high, low), dim=-1) * sin_TK


def _layer(x_TD: torch.Tensor, product: Callable[[str, int, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """A layer of Llama as transformers runs it."""
    ones_D = torch.ones(HIDDEN, dtype=torch.bfloat16)
    cos_TK, sin_TK = torch.ones((2, TOKENS, HEAD), dtype=torch.bfloat16)
    normed_TD = _norm(ones_D, x_TD)
    q, k, v = (product("qkv", i, normed_TD).unflatten(-1, (-1, HEAD)).transpose(0, 1)[None] for i in range(3))
    q, k = _rotated(q, cos_TK, sin_TK), _rotated(k, cos_TK, sin_TK)
    out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    x_TD = x_TD + product("proj", 0, out[0].transpose(0, 1).reshape(TOKENS, HIDDEN))
    normed_TD = _norm(ones_D, x_TD)
    inner_TF = functional.silu(product("fc1", 0, normed_TD)) * product("fc1", 1, normed_TD)
    return x_TD + product("fc2", 0, inner_TF)


def _autograd_keeps_B(targets: tuple[str, ...], dropout: float) -> float:
    """Bytes of activations that autograd saves of such a layer; weights, tables and their casts are none."""
    torch.manual_seed(0)
    saved: dict[int, tuple[torch.UntypedStorage, int]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        of_tokens = TOKENS in tensor.shape and tensor.shape != (TOKENS, HEAD)
        if of_tokens:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = (storage, storage.nbytes())
        return tensor

    x_TD = torch.randn(TOKENS, HIDDEN).to(torch.bfloat16).requires_grad_()
    product = _adapted(targets, dropout)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        result = _layer(x_TD * 1, product)
    found = float(sum(size_B for _, size_B in saved.values()))
    del result
    return found


def _plan(tmp_path: Path, **keys: Any) -> Plan:
    config = {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 4,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "hidden_act": "silu",
    }
    file = tmp_path / "small.json"
    file.write_text(json.dumps(config))
    document = {
        "architecture": str(file),
        "sequence_length": TOKENS,
        "global_batch": 1,
        "precision": "bf16",
        "backend": "transformers",
        "cluster": {"gpu": BOARD},
    }
    return Plan.model_validate(document | keys)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("targets", [EVERY, ("qkv",), ("proj", "fc1"), ("qkv", "proj", "fc2")])
def test_a_layer_keeps_what_autograd_does(targets: tuple[str, ...], dropout: float, tmp_path: Path) -> None:
    plan = _plan(tmp_path, lora={"rank": RANK, "targets": targets, "dropout": dropout})
    model, batch = architecture_of(plan), MicroBatch.of(batch_of(plan), framework_as_run(plan), "bf16")
    kept_B = sum(float(np.max(one.size_B)) for one in layer_blocks(model.layers[0], model.hidden).kept(batch))
    assert kept_B == pytest.approx(_autograd_keeps_B(targets, dropout), rel=0.02)


# ---- weights and states ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["transformers", "torchtitan"])
@pytest.mark.parametrize(("dp", "zero"), [(1, 0), (8, 3)])
def test_float32_weights_that_are_frozen_are_kept(backend: str, dp: int, zero: int, tmp_path: Path) -> None:
    """4 bytes each of all weights, over the ranks under ZeRO 3, beside what is gathered or cast for the passes; of
    what is trained the states are 8 bytes more."""

    plan = _plan(
        tmp_path,
        precision="bf16-mixed",
        backend=backend,
        lora={"rank": RANK},
        global_batch=dp,
        parallel={"dp": dp, "zero_stage": zero},
        cluster={"gpu": BOARD, "gpus": dp},
    )
    machine = system_of(plan, load_calibration(None, BOARD))
    terms_B = predict_plans(architecture_of(plan), batch_of(plan), machine).memory_terms_B
    frozen = sum(n * k for sizes in PRODUCTS.values() for n, k in sizes) * 4 + 2 * 512 * HIDDEN + 9 * HIDDEN
    adapters = 4 * RANK * sum(n + k for sizes in PRODUCTS.values() for n, k in sizes)
    copies_B = 2 * (frozen + adapters) if zero == 0 else 0
    found_B = float(terms_B["parameters"][0] + terms_B["optimizer_states"][0])
    assert found_B == pytest.approx((4 * frozen + 12 * adapters) / dp + copies_B, rel=1e-6)


def test_frozen_experts_keep_no_inputs() -> None:
    """Of a row of Qwen3's experts 2048 and 768 elements of 16 bits less than where they are trained."""

    def kept_B(lora: dict[str, Any] | None) -> float:
        document = {
            "architecture": "qwen3-30b-a3b",
            "sequence_length": 4096,
            "global_batch": 1,
            "precision": "bf16",
            "backend": "torch",
            "lora": lora,
            "cluster": {"gpu": BOARD},
        }
        plan = Plan.model_validate(document)
        model, batch = architecture_of(plan), MicroBatch.of(batch_of(plan), framework_as_run(plan), "bf16")
        (block,) = (one for one in layer_blocks(model.layers[0], model.hidden).blocks if one.parts == ("moe",))
        return sum(float(np.max(one.size_B)) for one in block.kept(batch))

    rows = 4096 * 8
    assert kept_B(None) - kept_B({"rank": 16, "targets": ["qkv"]}) == pytest.approx(rows * (2048 + 768) * 2)


# ---- the host -------------------------------------------------------------------------------------------------------


def test_a_step_waits_for_every_adapter() -> None:
    """Traced hosts take 41 us of a tensor and 5 us of each of ten modules: of an adapter about 0.15 ms, in whichever
    layer it is; the device waits, for it has looked at the loss."""
    calibration = load_calibration(None, BOARD)

    def waits_s(targets: list[str]) -> float:
        document = {
            "architecture": "llama-3-8b",
            "layers": 16,
            "sequence_length": 4096,
            "global_batch": 2,
            "micro_batch": 2,
            "precision": "bf16",
            "backend": "transformers",
            "lora": {"rank": 16, "targets": targets},
            "cluster": {"gpu": BOARD},
        }
        return float(outcome(Plan.model_validate(document), calibration).host_wait_s)

    each_s = (waits_s(["qkv", "proj", "fc1", "fc2"]) - waits_s(["qkv", "proj"])) / (16 * 3)
    assert 0.1e-3 < each_s < 0.25e-3
