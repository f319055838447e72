"""The differencing of host times, on known times, and its rows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from moemodel.model.records.profile import HostRow
from moemodel.profiler.backends.torch_native.trainer import Trainer
from moemodel.profiler.devices.cpu import CpuDevice
from moemodel.profiler.host_overhead import single_gpu as host_lane

_TENSORS = {  # parameter tensors of a layer
    "layer_norm biases gelu learned_positions": 16,  # 2 norms of 2, 4 products of 2, 2 products of 2
    "rms_norm rotary swiglu": 9,  # 2 norms, 4 products, 3 products
    "rms_norm qk_norm rotary swiglu": 11,
    "rms_norm rotary swiglu_experts": 9,  # 2 norms, 4 products, router and 2 stacks of experts
    "rms_norm qk_norm rotary swiglu_experts": 11,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _by_block(rows: list[HostRow]) -> dict[tuple[str, str, str], HostRow]:
    return {(row.block, row.direction, row.detail): row for row in rows}


def test_layers_and_the_rest_come_back_out_of_known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that takes 10 µs a layer and 7 µs else forward, twice that backward, 3 µs a tensor and 5 µs a step."""

    def step_s(trainer: Trainer) -> dict[str, float]:
        layers, tensors = len(trainer.model.layers), len(list(trainer.model.parameters()))
        forward_s = 10e-6 * layers + 7e-6
        return {"forward": forward_s, "backward": 2 * forward_s, "step": 3e-6 * tensors + 5e-6}

    monkeypatch.setattr(host_lane, "_step_s", step_s)
    rows = host_lane.measure(CpuDevice(), repeats=1)
    found = _by_block(rows)
    assert len(found) == len(rows)  # no two rows of one block, direction and detail
    for (block, direction, detail), row in found.items():
        assert row.kernels is None
        if block == "optimizer_layer":
            expected_us = 3.0 * _TENSORS[detail]
        else:
            expected_us = {"optimizer_tensor": 3.0, "step": 5.0, "head_and_loss": 7.0}.get(block, 10.0)
        assert row.host_time_s == pytest.approx(expected_us * 1e-6 * (2 if direction == "backward" else 1))


def test_rows_are_those_that_predictions_look_up() -> None:
    rows = _by_block(host_lane.measure(CpuDevice(), repeats=1))
    blocks = {(block, direction) for block, direction, _ in rows}
    layers = {kind.block for kind in host_lane.KINDS}
    passes = {(block, direction) for block in (*layers, "head_and_loss") for direction in ("forward", "backward")}
    assert blocks == passes | {(block, "step") for block in ("optimizer_layer", "optimizer_tensor", "step")}
    assert {detail for block, _, detail in rows if block == "step"} == {"bf16", "bf16-mixed"}
    assert all(row.host_time_s is not None for row in rows.values())


def test_host_times_are_positive_where_nothing_is_differenced() -> None:
    pair = host_lane._pair(host_lane.KINDS[0], "bf16", torch.device("cpu"))
    for passes in host_lane._times_s(pair, 2):
        assert set(passes) == {"forward", "backward", "step"}
        assert min(passes.values()) > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_are_counted_on_a_gpu() -> None:
    trainer = host_lane._pair(host_lane.KINDS[1], "bf16-mixed", torch.device("cuda")).small
    host_lane._launches(trainer, lambda: None)
    kernels = host_lane._kernels(trainer)
    assert kernels["forward"] > 20 * 3
    assert kernels["backward"] > kernels["forward"]
