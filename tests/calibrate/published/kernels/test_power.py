"""Power that is read of repeated kernels, made from known energies, and fitted."""

from __future__ import annotations

import numpy as np
import pytest

from moemodel.calibration.published.kernels.clocks import Conditions
from moemodel.calibration.published.kernels.power import Drawn, fit_power, repeats_error
from moemodel.model.core.arrays import FloatArray
from moemodel.model.device.dvfs import TensorLimit
from moemodel.model.device.power import PowerModel
from moemodel.model.device.roofline import RooflineChip
from moemodel.model.operators.work import Work

BASE_W, ACTIVE_W, LIMIT_W = 100.0, 200.0, 700.0
FLOP_J, BYTE_J = 0.5e-12, 60e-12
ROWS = 600


def conditions(flop_J: float, byte_J: float) -> Conditions:
    """Of a GPU without leakage whose voltage is flat, so that energies can be added up by hand."""
    power = PowerModel(
        base_W=BASE_W,
        leak_W_per_C=0.0,
        leak_reference_C=50.0,
        flop_J=flop_J,
        vector_op_J=0.0,
        cache_J_per_B=0.0,
        dram_J_per_B=byte_J,
        active_W=ACTIVE_W,
        knee_Hz=2e9,
        voltage_slope=0.0,
        clock_reference_Hz=2e9,
        thermal_C_per_W=0.0,
        inlet_C=30.0,
        link_W=0.0,
        kinds={},
    )
    chip = RooflineChip(multiprocessors=100, flops_per_cycle=5000, bandwidth_Bps=3e12, l2_B=1e7, clock_Hz=2e9)
    return Conditions(chip=chip, top_Hz=2e9, fast=TensorLimit(clock_Hz=np.inf, sharpness=1.0), power=power)


def kernels() -> Drawn:
    """Busy for a part of a time between 0.1 and 10 ms, at up to 900 TFLOP/s and 3 TB/s."""
    random = np.random.default_rng(3)
    time_s = 10 ** random.uniform(-3.9, -2, ROWS)
    flops, moved_B = time_s * random.uniform(0, 9e14, ROWS), time_s * random.uniform(0, 3e12, ROWS)
    return Drawn(
        work=Work(flops=flops, vector_ops=np.zeros(ROWS), bytes_B=moved_B),
        time_s=time_s,
        busy_s=time_s * random.uniform(0.3, 1, ROWS),
        features=np.log2(np.c_[flops, moved_B]),
    )


def drawn_W(k: Drawn) -> FloatArray:
    """By hand."""
    work_W = (FLOP_J * k.work.flops + BYTE_J * k.work.bytes_B + ACTIVE_W * k.busy_s) / k.time_s
    return np.asarray(np.minimum(BASE_W + work_W, 0.985 * LIMIT_W))


def test_energies_are_found_from_others() -> None:
    """From half of a FLOP's energy and twice a byte's; a tenth of the readings are of an idle GPU."""
    k = kernels()
    read_W = drawn_W(k)
    idle = np.random.default_rng(4).random(ROWS) < 0.1
    read_W[idle] = BASE_W + 0.15 * (read_W[idle] - BASE_W)
    seen = np.arange(ROWS) % 3 > 0
    fit = fit_power(
        k.take(seen), read_W[seen], (np.arange(ROWS) % 3 == 1)[seen], conditions(FLOP_J / 2, 2 * BYTE_J), LIMIT_W
    )
    assert fit.parameters["flop"] == pytest.approx(2, rel=0.1)
    assert fit.parameters["byte"] == pytest.approx(0.5, rel=0.2)
    off = fit.read_W(k.take(~seen & ~idle)) / drawn_W(k.take(~seen & ~idle)) - 1
    assert np.abs(off).mean() < 0.04


def test_readings_of_the_same_work_differ_by_what_no_model_can_tell() -> None:
    """Two of one kernel, 100 and 300 W, are each half of their median off; a third is of another."""
    ones = np.ones(3)
    k = Drawn(
        work=Work(flops=1e12 * ones, vector_ops=0 * ones, bytes_B=1e9 * ones),
        time_s=np.array([1e-3, 1e-3, 2e-3]),
        busy_s=1e-3 * ones,
        features=np.zeros((3, 1)),
    )
    error, rows = repeats_error(k, np.array([100.0, 300.0, 500.0]))
    assert error == pytest.approx(0.5)
    assert rows == 2
    assert np.isnan(repeats_error(k.take(np.array([0, 2])), np.array([100.0, 500.0]))[0])
