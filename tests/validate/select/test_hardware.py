"""What is at hand: here a processor, which stands for as many GPUs as it has cores."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from moemodel.model.core.errors import DeviceError
from moemodel.model.plan.spec import Plan
from moemodel.validation.select.hardware import _no_locks, probe_hardware, unable

PlanOf = Callable[..., Plan]


def test_the_processor_is_hardware_too() -> None:
    hardware, environment = probe_hardware("cpu", clocks="auto", launcher="local")
    assert hardware.gpu.name == environment.gpu == "cpu"
    assert hardware.gpus >= 1
    assert hardware.no_locks is not None
    assert environment.clocks == "passive"
    assert environment.device.vendor == "cpu"


def test_clocks_that_cannot_be_held_where_they_must() -> None:
    with pytest.raises(DeviceError, match=r"^--clocks lock: .*; use --clocks passive, which changes no setting$"):
        probe_hardware("cpu", clocks="lock", launcher="local")


def test_a_simulated_gpu_trains_nothing() -> None:
    with pytest.raises(DeviceError, match=r"^--gpu sim:h100 runs operators only, no training steps; "):
        probe_hardware("sim:h100", clocks="auto", launcher="local")


def test_passive_asks_nobody() -> None:
    assert _no_locks(None, "passive") == "--clocks passive"  # type: ignore[arg-type]


def test_slurm_nodes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NNODES", "3")
    one, _ = probe_hardware("cpu", clocks="passive", launcher="local")
    three, _ = probe_hardware("cpu", clocks="passive", launcher="slurm")
    assert three.gpus == 3 * one.gpus


def test_the_runner_is_asked(plan_of: PlanOf) -> None:
    assert unable(plan_of()) is None
    reason = unable(plan_of(cluster={"gpus": 2}, parallel={"cp": 2}))
    assert reason is not None
    assert "parallel.cp" in reason
