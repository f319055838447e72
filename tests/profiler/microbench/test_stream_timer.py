"""Timing on the CPU stream, and how many calls make a sample."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from moemodel.model.core.errors import DeviceError
from moemodel.model.operators.work import Kind, Pass
from moemodel.profiler.instruments.energy_sampler import EnergySampler
from moemodel.profiler.microbench.budget import budget_for
from moemodel.profiler.microbench.cases import Case
from moemodel.profiler.microbench.harness import Cost, Harness
from moemodel.profiler.microbench.points import Point, Sizes
from moemodel.profiler.microbench.stream_timer import CpuStream, pause

COPY = Point(kind=Kind.COPY, direction=Pass.FORWARD, sizes=Sizes(m=10))


def test_cpu_stream_times_calls() -> None:
    sleeping = Case(COPY, (lambda: time.sleep(0.004),))
    stream = CpuStream()
    (sample,) = stream.read([stream.queue(sleeping, 5)])
    assert sample.calls == 5
    assert 0.004 <= sample.time_s < 0.02
    assert sample.host_time_s is None
    assert sample.clock_Hz is None


def test_pause_is_precise() -> None:
    for seconds in (0.0, 0.0005, 0.005):
        begun_s = time.perf_counter()
        pause(seconds)
        assert time.perf_counter() - begun_s >= seconds


@pytest.mark.parametrize(
    ("cost", "samples", "calls"),
    [
        (Cost(time_s=1e-4, host_s=5e-6), 4, 10),  # as long as wanted
        (Cost(time_s=20e-3, host_s=5e-6), 4, 1),  # longer than wanted
        (Cost(time_s=2e-6, host_s=5e-6), 1, 64),  # no more than so many
        (Cost(time_s=5e-5, host_s=60e-6), 4, 10),  # 20 launches a call: 4 samples must fit into the launch queue
    ],
)
def test_calls_in_a_sample(cost: Cost, samples: int, calls: int) -> None:
    assert cost.calls_in(1e-3, samples) == calls


def test_lead_covers_the_host() -> None:
    assert Cost(time_s=1e-5, host_s=1e-5).spin_s(20) > 20 * 1e-5
    assert Cost(time_s=1e-5, host_s=1.0).spin_s(20) <= 20e-3


def test_an_error_that_breaks_the_device_ends_the_run(bare_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Harness(bare_device, budget_for(torch.device("cpu")), 0, EnergySampler(bare_device))
    assert bench.skip("an operator", RuntimeError("not here\nbecause")).reason == "not here"

    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(bench.stream, "synchronize", broken)
    with pytest.raises(DeviceError, match=r"an operator: .*run again to go on"):
        bench.skip("an operator", RuntimeError("illegal"))
