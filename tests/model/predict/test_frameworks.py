"""What the framework changes: which lane a step waits for, alignment of products, memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.device.roofline import chip_of_calibration, operator_time
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.operators.work import Kind, Pass, Shape
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.recompute import Recompute
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration, HostLane, Parameter
from moemodel.model.step.system import System

Batch = Callable[..., PlanBatch]


def _parameter(value: float) -> Parameter:
    return Parameter(value=value, unit="s", origin="assumed", source="made up")


def _megatron(machine: System, kernel_s: float) -> System:
    """A machine under Megatron-LM 2.x whose host needs so long for a kernel."""
    lane = HostLane(backend="megatron-v2", blocks={"kernel": _parameter(kernel_s)}, log_error=0.1)
    calibration = machine.calibration.model_copy(update={"host": [lane]})
    return replace(machine, calibration=calibration, framework=framework_of("megatron-v2"))


def test_a_slow_host_sets_the_step_by_its_kernels(batch: Batch, machine: System) -> None:
    """Far slower than the device, the host makes time proportional to kernels, whatever their size."""
    opt = read_architecture("opt-350m")
    plans = batch(micro_batch=[4, 8], global_batch=[16, 32])
    slow, slower = (predict(opt, plans, _megatron(machine, kernel)).step_time_s for kernel in (5e-3, 10e-3))
    assert slow[0] == pytest.approx(slow[1], rel=0.02)
    assert slower == pytest.approx(2 * slow, rel=0.02)


def test_the_host_queues_collectives_too(batch: Batch, machine: System) -> None:
    opt = read_architecture("opt-350m")
    without, with_tp = predict(opt, batch(tp=[1, 2], micro_batch=4), _megatron(machine, 5e-3)).step_time_s
    assert with_tp > without


def test_a_host_that_waits_cannot_run_ahead(batch: Batch, machine: System) -> None:
    """Passes bound by the host and passes bound by the device do not make up for one another."""
    opt = read_architecture("opt-350m")
    plans = batch(micro_batch=4)
    kernels = np.geomspace(1e-6, 1e-3, 13)
    fast = predict(opt, plans, _megatron(machine, 0.0)).step_time_s[0]
    times = np.array([predict(opt, plans, _megatron(machine, kernel)).step_time_s[0] for kernel in kernels])
    assert times[0] == pytest.approx(fast)
    assert (np.diff(times) >= -1e-12).all()


def test_products_of_odd_width_are_slower(calibration: Calibration) -> None:
    """By alignment^(log2(8/a)/3) for the power of two a that divides their width."""
    fit = calibration.operator(Kind.GEMM, Pass.FORWARD)
    assert fit is not None
    slow = fit.model_copy(update={"parameters": fit.parameters | {"alignment": _parameter(0.5), "t0": _parameter(0)}})
    plain = fit.model_copy(update={"parameters": fit.parameters | {"t0": _parameter(0)}})
    shape = Shape(m=8192, n=np.array([50304, 50300, 50298, 50297]), k=8192)
    clock = np.array([1.5e9])
    chip = chip_of_calibration(calibration)
    ratio = (operator_time(slow, chip, shape, clock).time_s_UK / operator_time(plain, chip, shape, clock).time_s_UK)[
        :, 0
    ]
    assert ratio == pytest.approx(2.0 ** (np.arange(4) / 3), rel=1e-3)


def test_scores_are_kept_without_flash_attention(batch: Batch, machine: System) -> None:
    """5 bytes for each score: probabilities, dropout's mask and output (Korthikanti et al. 2022, section 4.1)."""
    opt = read_architecture("opt-350m")
    plans = batch(micro_batch=4, recompute=list(Recompute))
    flash, whole = (
        predict(opt, plans, replace(machine, framework=framework_of(backend))).memory_terms_B["activations"]
        for backend in ("megatron", "megatron-v2")
    )
    scores = 24 * 4 * 16 * 2048**2 * 5
    masks = 24 * 2 * 4 * 2048 * 1024
    statistics = 24 * 4 * 4 * 2048 * 16
    assert whole[0] - flash[0] == pytest.approx(scores + masks - statistics)
    assert whole[1] < 0.5 * whole[0]
