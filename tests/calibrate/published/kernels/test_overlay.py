"""Readings made from a law that is written down here, fitted, and priced again as a plan's products are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moemodel.calibration.published.kernels.clocks import Conditions
from moemodel.calibration.published.kernels.fitted import conditions_of, fit_kernels, timed
from moemodel.calibration.published.kernels.grouped import layers
from moemodel.calibration.published.kernels.overlay import base_of, overlay_readings
from moemodel.calibration.published.kernels.readings import Readings, read_readings
from moemodel.calibration.store.catalogue import shipped
from moemodel.model.core.arrays import FloatArray
from moemodel.model.core.errors import InputError
from moemodel.model.device.dvfs import TensorLimit
from moemodel.model.device.operator_cost import OperatorCostModel
from moemodel.model.device.power import PowerModel, power_model
from moemodel.model.device.roofline import RooflineChip, chip_of_calibration
from moemodel.model.hardware.gpu import read_gpu
from moemodel.model.operators.calls import Call, Phase
from moemodel.model.operators.work import Kind, Pass, Shape, Work
from moemodel.model.records.calibration import Calibration

GPU = "h200-sxm-141gb"
ROWS = 700


def law_s(m: FloatArray, n: FloatArray, k: FloatArray, element_B: float = 2.0, rate: float = 500e12) -> FloatArray:
    """A device that is as fast as its slower half, after 6 us."""
    moved = element_B * (m * k + n * k) + 2 * m * n
    return 6e-6 + np.maximum(2 * m * n * k / rate, moved / 3e12)


def product_table(folder: Path, dtype: str = "bfloat16", **law: float) -> list[Readings]:
    """Products at shapes that the law prices."""
    random = np.random.default_rng(1)
    m, n, k = (np.round(2 ** random.uniform(low, 13.5, ROWS) / 64) * 64 for low in (7, 9, 9))
    table = pd.DataFrame({"m": m, "n": n, "k": k, "latency_ms": law_s(m, n, k, **law) * 1e3, "gemm_dtype": dtype})
    path = folder / f"{dtype}.parquet"
    table.assign(system="h200_sxm", software="law 1").to_parquet(path)
    return read_readings([path])


@pytest.fixture(scope="module")
def base() -> Calibration:
    """What this project measured on an H200."""
    return shipped(GPU)


@pytest.fixture(scope="module")
def overlaid(base: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """The same under products of the law."""
    calibration, errors = overlay_readings(base, read_gpu(GPU), product_table(tmp_path_factory.mktemp("law")))
    assert [error.name for error in errors] == ["gemm/forward"]
    assert errors[0].median < 0.04
    return calibration


def priced_s(calibration: Calibration, m: float, n: float, k: float) -> float:
    """One product at the highest clock, as a plan's are priced."""
    clocks = np.linspace(*calibration.clock_range_Hz, 9)
    pricer = OperatorCostModel(calibration, chip_of_calibration(calibration), power_model(calibration), clocks)
    call = Call(
        kind=Kind.GEMM, direction=Pass.FORWARD, shape=Shape(m=m, n=n, k=k), phase=Phase.FORWARD, count=np.ones(1)
    )
    return float(pricer.phase_costs([call], 1)[Phase.FORWARD].time_s_UK[0, -1])


@pytest.mark.parametrize("shape", [(8192, 8192, 8192), (4096, 2048, 8192), (128, 8192, 8192), (1024, 4096, 1024)])
def test_prices_products_as_the_law_does(overlaid: Calibration, shape: tuple[int, int, int]) -> None:
    wanted = float(law_s(*(np.array(float(size)) for size in shape)))
    assert priced_s(overlaid, *shape) == pytest.approx(wanted, rel=0.08)


def test_keeps_what_no_reading_shows(base: Calibration, overlaid: Calibration) -> None:
    for part in ("chip", "governor", "power", "thermal", "network", "memory", "host", "clock_range_Hz"):
        assert getattr(overlaid, part) == getattr(base, part), part
    assert len(overlaid.operators) == len(base.operators)
    stream = overlaid.operator(Kind.RMS_NORM, Pass.BACKWARD)
    held = base.operator(Kind.RMS_NORM, Pass.BACKWARD)
    assert stream is not None
    assert held is not None
    assert stream.parameters == held.parameters
    assert "law 1" in overlaid.provenance


def test_other_passes_follow_the_forward_one_and_say_that_it_is_assumed(
    base: Calibration, overlaid: Calibration
) -> None:
    slower = priced_s(overlaid, 8192, 8192, 8192) / priced_s(base, 8192, 8192, 8192)
    for direction in (Pass.BACKWARD_INPUT, Pass.BACKWARD_WEIGHT):
        new, old = overlaid.operator(Kind.GEMM, direction), base.operator(Kind.GEMM, direction)
        assert new is not None
        assert old is not None
        efficiency = new.parameters["efficiency_256x128"]
        assert old.parameters["efficiency_256x128"].value / efficiency.value == pytest.approx(slower, rel=0.15)
        assert efficiency.origin == "assumed"
        assert new.log_error > old.log_error
    forward = overlaid.operator(Kind.GEMM, Pass.FORWARD)
    assert forward is not None
    assert forward.parameters["p"].origin == "fitted"


def test_fp8_is_that_of_faster_tensor_cores_and_narrower_operands(base: Calibration, tmp_path: Path) -> None:
    (table,) = product_table(tmp_path, "fp8", element_B=1.0, rate=1000e12)
    fold = table.fold(5)
    conditions = conditions_of(table, base, read_gpu(GPU))
    kernels = timed(table, conditions.chip)
    assert conditions.chip.flops_per_cycle == pytest.approx(2 * chip_of_calibration(base).flops_per_cycle, rel=1e-3)
    fit = fit_kernels(kernels.take(fold != 0), table.time_s[fold != 0], (fold == 4)[fold != 0], conditions)
    off = fit.time_s(kernels.take(fold == 0)) / table.time_s[fold == 0] - 1
    assert np.median(np.abs(off)) < 0.04


def test_too_few_readings_replace_nothing(base: Calibration, tmp_path: Path) -> None:
    (table,) = product_table(tmp_path)
    with pytest.raises(InputError, match="found 50 of products in bfloat16; needed: at least 100"):
        overlay_readings(base, read_gpu(GPU), [table.take(np.arange(50))])


def test_readings_of_a_gpu_that_was_measured_go_over_what_was_measured(base: Calibration) -> None:
    assert base_of(read_gpu(GPU)) is base
    assert base_of(read_gpu("b200-sxm-180gb")).derived_from == GPU


# ---- clocks and loads -----------------------------------------------------------------------------------------------


def test_the_power_limit_leaves_the_clock_at_which_it_is_drawn() -> None:
    top_Hz, base_W, active_W, limit_W = 2e9, 100.0, 300.0, 600.0
    flops, full_s = 1e12, 2e-3  # at the highest clock: 400 W of operations at 0.8 pJ
    power = PowerModel(
        base_W=base_W,
        leak_W_per_C=0.0,
        leak_reference_C=50.0,
        flop_J=0.8e-12,
        vector_op_J=0.0,
        cache_J_per_B=0.0,
        dram_J_per_B=0.0,
        active_W=active_W,
        knee_Hz=top_Hz,
        voltage_slope=0.0,
        clock_reference_Hz=top_Hz,
        thermal_C_per_W=0.0,
        inlet_C=30.0,
        link_W=0.0,
        kinds={},
    )
    chip = RooflineChip(multiprocessors=100, flops_per_cycle=4096, bandwidth_Bps=1e12, l2_B=1e7, clock_Hz=top_Hz)
    unlimited = TensorLimit(clock_Hz=np.inf, sharpness=1.0)
    held = Conditions(chip=chip, top_Hz=top_Hz, fast=unlimited, power=power, limit_W=limit_W)
    work = Work(flops=np.array([flops]), vector_ops=np.zeros(1), bytes_B=np.zeros(1))
    time_s_UK = (full_s * top_Hz / held.clock_Hz_K)[None, :]
    # by hand: power above idle goes with the clock, 700 W of it at the highest
    wanted_Hz = top_Hz * (limit_W - base_W) / (flops * 0.8e-12 / full_s + active_W)
    assert held.clock_Hz(work, time_s_UK)[0] == pytest.approx(wanted_Hz, rel=1e-3)
    assert held.settled_s(work, time_s_UK)[0] == pytest.approx(full_s * top_Hz / wanted_Hz, rel=1e-3)


def moe_table(folder: Path, load: str) -> Readings:
    row = {"num_tokens": 4096, "hidden_size": 2048, "inter_size": 768, "topk": 8, "num_experts": 128, "moe_tp_size": 1}
    row |= {"moe_ep_size": 4, "moe_dtype": "bfloat16", "distribution": load, "latency_ms": 1.0, "system": "gb200"}
    path = folder / f"{load}.csv"
    pd.DataFrame([row]).to_csv(path, index=False)
    (table,) = read_readings([path])
    return table


def test_even_loads_are_a_share_and_uneven_ones_the_busiest_rank(tmp_path: Path) -> None:
    even, uneven = (layers(moe_table(tmp_path, load)) for load in ("balanced", "power_law_1.2"))
    assert even.rows[0] == 4096 * 8 / 4
    assert even.active[0] == 128 / 4
    assert even.skew[0] == 1.0
    # 256 rows an expert are as many tiles of 256, and twice as many of 128
    np.testing.assert_allclose(even.tiles[0, -2:], [64, 32])
    assert even.rows[0] < uneven.rows[0] <= 4096 * 8
    assert 1 < uneven.skew[0] <= 4096 / 256
