"""Steps and passes whose host reads results before it goes on: against a queue, played kernel by kernel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.layers.base import MicroBatch
from moemodel.model.layers.embedding_head import HeadBlock
from moemodel.model.operators.work import Kind
from moemodel.model.predict.timeline import _late_forward_s, _late_step_s


def played_s(kernels: list[tuple[float, float, bool]]) -> float:
    """Kernels by host time, device time, and whether the host waits for their result; in turn."""
    host_s = device_s = 0.0
    for queue_s, run_s, read in kernels:
        host_s += queue_s
        device_s = max(device_s, host_s) + run_s
        host_s = device_s if read else host_s
    return max(host_s, device_s)


@pytest.mark.parametrize(("host_s", "device_s"), [(1.0, 0.4), (1.0, 1.1), (0.3, 1.0)])
@pytest.mark.parametrize("read", [0.0, 0.5, 0.875])
def test_what_waits_for_a_result_starts_behind_it(host_s: float, device_s: float, read: float) -> None:
    """A tenth of the device's work lies before the result where there is one: 400 small kernels in each part."""
    before = 0.1 if read else 0.0
    parts = [(read * host_s, before * device_s), ((1 - read) * host_s, (1 - before) * device_s)]
    kernels = [(h / 400, d / 400, i == 399 and part == 0) for part, (h, d) in enumerate(parts) for i in range(400)]
    cost = SimpleNamespace(host_step_s=np.array([[host_s]]), host_step_read=read, step_read=before)
    found = _late_step_s(np.array([[device_s]]), cast(Any, cost))
    assert found.item() == pytest.approx(played_s(kernels), rel=0.01)


@pytest.mark.parametrize("host_s", [(0.5, 0.5), (0.1, 0.9), (0.9, 0.1)])
@pytest.mark.parametrize("device_s", [(0.6, 0.2), (0.6, 0.9), (0.1, 0.1), (1.5, 0.1)])
def test_layers_whose_host_reads_what_routers_chose(host_s: tuple[float, float], device_s: tuple[float, float]) -> None:
    """Forty layers of 100 small kernels up to their router's choice, and as many behind it."""
    layer = [
        (h / 100, d / 100, i == 99 and part == 0)
        for part, (h, d) in enumerate(zip(host_s, device_s, strict=True))
        for i in range(100)
    ]
    before, after = device_s
    cost = SimpleNamespace(
        runs_dry=False,
        host_behind_s=np.array([[40 * host_s[1]]]),
        before_share=np.array([[before / (before + after)]]),
    )
    whole_s, queued_s = np.array([[40 * (before + after)]]), np.array([[40 * sum(host_s)]])
    found = _late_forward_s(whole_s, queued_s, cast(Any, cost))
    assert found.item() == pytest.approx(played_s(layer * 40), rel=0.04)


def test_an_eager_loss_goes_over_the_logits_kernel_by_kernel(batch: Any) -> None:
    """To float32 6 B, maximum 4, shift 8, exponential 8, sum 4, division 8 an element; no fused kernel."""
    architecture = read_architecture("olmoe-1b-7b")
    for name, fused in (("torch", 1), ("megatron-core-local", 0), ("megatron-core", 1)):
        micro_batch = MicroBatch.of(batch(), framework_of(name), "bf16-mixed")
        ops = list(HeadBlock(architecture=architecture).operators(micro_batch))
        assert sum(op.kind is Kind.CROSS_ENTROPY for op in ops) == fused
        moved_B = [4 * float(np.ravel(op.shape.m)[0]) for op in ops if op.kind is Kind.COPY and op.mask is None]
        if not fused:
            elements = float(micro_batch.tokens[0]) * architecture.vocab
            assert moved_B == pytest.approx([1.4 * 38 * elements])  # at 1 / 1.4 of a copy's bandwidth
