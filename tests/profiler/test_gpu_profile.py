"""What only a GPU can show: true clocks, energy, activity, and a short profile of the real thing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from moemodel.model.hardware.gpu import list_gpus, read_gpu
from moemodel.profiler.devices.base import Device
from moemodel.profiler.instruments.energy_sampler import EnergySampler
from moemodel.profiler.microbench.budget import budget_for
from moemodel.profiler.microbench.cases import build
from moemodel.profiler.microbench.grid import cpu_grid, gpu_grid
from moemodel.profiler.microbench.harness import Harness
from moemodel.profiler.microbench.operands import Pool
from moemodel.profiler.platforms.registry import open_device
from moemodel.profiler.run import Workload, profile
from moemodel.profiler.sections.loads import gpu_loads

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU HERE: profiling on a GPU is not tested"),
]


@pytest.fixture(scope="module")
def gpu() -> str:
    return torch.cuda.get_device_name(0)


@pytest.fixture(scope="module")
def device(gpu: str) -> Iterator[Device]:
    known = {alias: d.name for d in map(read_gpu, list_gpus()) for alias in (d.name, *d.aliases)}
    device = open_device(gpu, known)
    yield device
    device.close()


@pytest.fixture(scope="module")
def bench(device: Device) -> Iterator[Harness]:
    with EnergySampler(device) as sampler:
        yield Harness(device, budget_for(device.torch_device), 0, sampler)


def test_true_clock_is_within_the_gpus_range(bench: Harness) -> None:
    assert bench.clock.note is None
    before = bench.clock.stamp()
    bench.heavy.run(5)
    after = bench.clock.stamp()
    torch.cuda.synchronize()
    clock_Hz = bench.clock.mean_Hz(before, after)
    assert clock_Hz is not None
    assert bench.device.info.clock_min_Hz is not None
    assert bench.device.info.clock_max_Hz is not None
    assert bench.device.info.clock_min_Hz < clock_Hz < 1.02 * bench.device.info.clock_max_Hz


def test_energy_under_load_is_near_the_power_limit(bench: Harness) -> None:
    begun_s = time.perf_counter()
    while time.perf_counter() < begun_s + 1.5:
        bench.heavy.run(5)
        torch.cuda.synchronize()
    window = bench.sampler.window(begun_s + 0.4, time.perf_counter())
    assert window is not None
    limit_W = bench.device.info.power_limit_W
    assert limit_W is not None
    assert 0.6 * limit_W < window.power_W < 1.05 * limit_W


@pytest.mark.parametrize("point", cpu_grid(0), ids=str)
def test_every_case_runs_on_the_gpu(bench: Harness, point: object) -> None:
    case = build(point, Pool(bench.device.torch_device, 1 << 20, seed=0))  # type: ignore[arg-type]
    case.run(3)
    torch.cuda.synchronize()


def test_a_short_profile(gpu: str, tmp_path: Path) -> None:
    work = Workload(points=gpu_grid(0)[:12], sweep=[], loads=gpu_loads()[1:2])
    outcome = profile(gpu, tmp_path / "p", sections=["mixed", "power", "solo"], workload=work, budget_s=60)
    assert not outcome.skips
    operators = pd.read_parquet(outcome.folder / "operators.parquet")
    assert operators.clock_Hz.notna().all()
    assert operators.host_time_s.notna().all()
    median = operators.groupby("sweep").clock_Hz.median()
    assert median["mixed"] < median["solo"]
    (load,) = pd.read_parquet(outcome.folder / "power.parquet").to_dict("records")
    assert load["power_W"] > 100
    assert 0 < load["dram_activity"] < 1
