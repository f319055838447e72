"""Clocks by stage and phase in a run: what each rank asks for, and what the driver is told, when. No card is needed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import HashStore  # type: ignore[attr-defined]

from moemodel.model.architecture.spec import Architecture, Attention, Layer, Mlp
from moemodel.model.plan.spec import Plan
from moemodel.profiler.backends.base import TrainingRun, builder
from moemodel.profiler.clocks.clock_control import ClockControl
from moemodel.profiler.devices.cpu import CpuDevice
from moemodel.profiler.jobs.ranks import Ranks
from moemodel.profiler.platforms.registry import open_named, platform_of
from moemodel.profiler.training import worker
from moemodel.profiler.training.asked_clocks import clocks_of_rank, untold_phases
from moemodel.profiler.training.measure import measure_run
from moemodel.profiler.training.orders import Job, VisitOrder
from moemodel.profiler.training.phase_locks import PhaseLocks, device_passed, telling
from moemodel.profiler.training.worker import Worker
from tests.profiler.clocks import test_clock_control as fakes
from tests.small_plans import CONFIG, small_plan

control, device, guardian, nvml, permitted = (  # the fake NVML, and who talks to it
    fakes.control,
    fakes.device,
    fakes.guardian,
    fakes.nvml,
    fakes.permitted,
)
BY_PHASE = {"forward": 1200.0, "backward": 1410.0, "optimizer": 900.0}


def plan(clock_MHz: Any, **changes: Any) -> Plan:
    document = {
        "architecture": "opt-350m",
        "sequence_length": 2048,
        "global_batch": 16,
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 8},
        "parallel": {"dp": 2, "tp": 2, "pp": 2},
        "clock_MHz": clock_MHz,
    }
    return Plan.model_validate(document | changes)


def now() -> Callable[[], object]:
    return lambda: None


def step(locks: PhaseLocks, micro_batches: int) -> None:
    for phase in ("start", *("forward", "backward") * micro_batches, "optimizer"):
        locks.mark(phase)


# --- what a rank asks for --------------------------------------------------------------------------------------------


def test_a_rank_asks_for_the_clocks_of_its_stage() -> None:
    asked = plan({"stages": [1200, {"forward": 1500}], "optimizer": 900})
    first, second = dict.fromkeys(BY_PHASE, 1200.0), {"forward": 1500.0, "backward": None, "optimizer": 900.0}
    assert [clocks_of_rank(asked, rank) for rank in range(8)] == [first] * 4 + [second] * 4


@pytest.mark.parametrize(("asked", "clock"), [(None, None), (1410, 1410.0), ({"stages": [900, 900]}, 900.0)])
def test_one_clock_is_every_ranks(asked: Any, clock: float | None) -> None:
    assert all(set(clocks_of_rank(plan(asked), rank).values()) == {clock} for rank in range(8))


def test_phases_that_are_not_told_apart_are_refused_by_name() -> None:
    assert untold_phases(plan({"stages": [900, 1200]})) is None
    assert untold_phases(plan({"optimizer": 900})) is None
    assert "forward and backward passes of a pipeline are not told apart" in str(untold_phases(plan({"forward": 900})))
    one = {"cluster": {"gpu": "h100-sxm-80gb", "gpus": 1}, "parallel": {}}
    assert untold_phases(plan({"forward": 900}, **one)) is None
    silent = plan({"forward": 900}, backend="megatron-deepspeed", precision="fp32", **one)
    assert "megatron-deepspeed does not tell when a phase ends" in str(untold_phases(silent))


# --- what the driver is told -----------------------------------------------------------------------------------------


def test_nvml_is_told_of_every_change_and_reset(control: ClockControl, nvml: Any) -> None:
    with control:
        with PhaseLocks(control, BY_PHASE, 2, now) as locks:
            step(locks, 2)
            step(locks, 2)
        assert locks.trouble is None
    passes = [("lock", 1200, 1200), ("lock", 1410, 1410)] * 2
    told = [*passes, ("lock", 900, 900), *passes, ("lock", 900, 900), ("lock", 1200, 1200)]
    assert nvml.told == [*told, ("reset",)]


def test_nothing_is_told_of_a_clock_that_stands_already(control: ClockControl, nvml: Any) -> None:
    with control, PhaseLocks(control, {"forward": 1200, "backward": 1200, "optimizer": 900}, 3, now) as locks:
        step(locks, 3)
    assert nvml.told[:3] == [("lock", 1200, 1200), ("lock", 900, 900), ("lock", 1200, 1200)]


def test_a_phase_of_the_governors_is_unlocked(control: ClockControl, nvml: Any) -> None:
    with control, PhaseLocks(control, {"forward": 1200, "backward": None, "optimizer": None}, 1, now) as locks:
        step(locks, 1)
    assert nvml.told == [("lock", 1200, 1200), ("reset",), ("lock", 1200, 1200), ("reset",)]


def test_a_pipelines_passes_are_one_phase(control: ClockControl, nvml: Any) -> None:
    with control, PhaseLocks(control, {"forward": 1200, "backward": 1200, "optimizer": 900}, 8, now) as locks:
        for phase in ("start", "pipeline", "optimizer"):
            locks.mark(phase)
    assert nvml.told == [("lock", 1200, 1200), ("lock", 900, 900), ("lock", 1200, 1200), ("reset",)]


def test_the_clock_waits_for_the_device_and_the_host_does_not(control: ClockControl, nvml: Any) -> None:
    gate = threading.Event()
    with control:
        with PhaseLocks(control, BY_PHASE, 1, lambda: gate.wait) as locks:
            step(locks, 1)  # comes back although the device has done nothing
            assert nvml.told == []
            gate.set()
        assert len(nvml.told) == locks.changes == 4


def test_what_the_driver_refuses_is_said_and_ends_the_changes(control: ClockControl, nvml: Any) -> None:
    nvml.errors["lock"] = nvml.NVML_ERROR_NO_PERMISSION
    with control:
        with PhaseLocks(control, BY_PHASE, 1, now) as locks:
            step(locks, 1)
        assert "no permission to lock clocks" in str(locks.trouble)


def test_a_device_that_fails_is_trouble_too(control: ClockControl) -> None:
    def lost() -> object:
        raise RuntimeError("CUDA error: the device is lost")

    with control, PhaseLocks(control, BY_PHASE, 1, lambda: lost) as locks:
        locks.mark("start")
    assert "the device is lost" in str(locks.trouble)


def test_the_simulated_gpu_runs_at_the_clock_of_the_phase(tmp_path: Path) -> None:
    simulated, _ = open_named(f"sim:h100?state={tmp_path / 'state.json'}")
    settings = platform_of(simulated).settings()
    assert settings is not None
    seen = []

    def look() -> Callable[[], object]:
        return lambda: seen.append(settings.driver.state.locked_Hz)  # type: ignore[attr-defined]

    with ClockControl(simulated, settings) as clocks:
        with PhaseLocks(clocks, BY_PHASE, 1, look) as locks:
            step(locks, 1)
        assert locks.trouble is None
    assert [None if hz is None else hz[1] for hz in seen] == [None, 1200e6, 1410e6, 900e6]
    assert settings.driver.state.locked_Hz is None  # type: ignore[attr-defined]


# --- in training -----------------------------------------------------------------------------------------------------


@pytest.fixture
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_a_run_sets_its_clocks_in_every_step(control: ClockControl, nvml: Any) -> None:
    layer = Layer(
        attentions=(Attention(heads=2, kv_heads=2, head_dim=8),),
        feed_forward=Mlp(width=32, activation="silu", gated=True),
        norm="rms",
    )
    architecture = Architecture(
        name="tiny", hidden=16, vocab=64, embedding_width=16, tied=False, decoder=(layer,) * 2, max_seq=64
    )
    run = TrainingRun(name="t", architecture=architecture, seq=8, micro_batch=1, micro_batches=3, steps=4, warmup=1)
    processor = CpuDevice()
    with control:
        with PhaseLocks(control, BY_PHASE, 3, device_passed(processor.torch_device)) as locks:
            row = measure_run(run, processor, warm_s=0.0, measured_s=0.0, build=telling(builder("torch"), locks.mark))
        assert locks.trouble is None
    assert row.forward_time_s is not None  # the measurement's own marks are told as before
    once = [("lock", 1200, 1200), ("lock", 1410, 1410)] * 3 + [("lock", 900, 900)]
    steps, rest = divmod(len(nvml.told) - 2, len(once))
    assert rest == 0
    assert steps >= row.steps + 1
    assert nvml.told[:-2] == once * steps
    assert nvml.told[-2:] == [("lock", 1200, 1200), ("reset",)]


def test_a_run_that_is_not_built_tells_nothing() -> None:
    told: list[str] = []
    assert telling(lambda *_: None, told.append)(None, torch.device("cpu")) is None  # type: ignore[arg-type]
    assert told == []


def lone_worker(
    control: ClockControl, clocks: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[Worker, list[dict[str, Any]]]:
    """A worker that is all of its job, on a processor, and whose clock is the fake NVML's; and what it tells."""
    job = Job(
        gpu="cpu",
        clocks=clocks,  # type: ignore[arg-type]
        warm_s=0.0,
        measured_s=0.0,
        timeout_s=10.0,
        launcher_pid=1,
        launcher_host="here",
        visits=[],
    )
    monkeypatch.setattr(worker.dist.distributed_c10d, "_get_default_store", HashStore)
    made = Worker(job, Path(), Ranks(rank=0, size=1, local_rank=0, device=torch.device("cpu")), CpuDevice(), control)
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(made, "_emit_event", lambda event, **facts: told.append({"event": event, **facts}))
    return made, told


def visit(folder: Path, clock_MHz: str) -> VisitOrder:
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    text = small_plan("small", 1).replace("global_batch: 2", "global_batch: 2\nclock_MHz: " + clock_MHz)
    return VisitOrder(plan_yaml=text, folder=str(folder), repeat=0, seed=0)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize(
    ("clock_MHz", "first", "most"),
    [
        ("1200", [("lock", 1200, 1200)], 2),
        ("{stages: [1410]}", [("lock", 1410, 1410)], 2),
        ("{forward: 1200, backward: 1200, optimizer: 900}", [("lock", 900, 900), ("lock", 1200, 1200)], 1000),
    ],
)
def test_a_worker_holds_what_its_plan_asks_for(
    clock_MHz: str,
    first: list[Any],
    most: int,
    control: ClockControl,
    nvml: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, told = lone_worker(control, "auto", monkeypatch)
    with control:
        order = visit(tmp_path, clock_MHz)
        assert made._run_visit(order, made._peers("all", 1), 0.0) is None
    assert [(event["clock_held"], event["clock_note"]) for event in told] == [(True, None)]
    assert nvml.told[: len(first)] == first
    assert len(nvml.told) <= most
    assert nvml.told[-1] == ("reset",)


@pytest.mark.usefixtures("_one_thread")
def test_a_worker_that_may_not_lock_says_so_or_refuses(
    control: ClockControl, nvml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = visit(tmp_path, "{forward: 1200, optimizer: 900}")
    nvml.errors["lock"] = nvml.NVML_ERROR_NO_PERMISSION
    made, told = lone_worker(control, "auto", monkeypatch)
    assert made._run_visit(order, made._peers("all", 1), 0.0) is None
    assert told[0]["clock_held"] is False
    assert "no permission to lock clocks" in told[0]["clock_note"]
    made, told = lone_worker(control, "lock", monkeypatch)
    refusal = made._run_visit(order, made._peers("again", 1), 0.0)
    assert str(refusal).startswith("clock_MHz 1200/auto/900 can't be held: ")
    assert told == []
