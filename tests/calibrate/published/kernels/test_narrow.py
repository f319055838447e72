"""Products of fewer bits, made from a law, fitted, lent and derived."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moemodel.calibration.derive.transfer import derive_calibration
from moemodel.calibration.published.kernels.narrow import GroupedPace, lent
from moemodel.calibration.published.kernels.overlay import overlay_readings
from moemodel.calibration.published.kernels.readings import Readings, read_readings
from moemodel.calibration.store.catalogue import shipped
from moemodel.model.device.operator_cost import OperatorCostModel
from moemodel.model.device.power import power_model
from moemodel.model.device.precision import rescale_for_precision
from moemodel.model.device.roofline import chip_of_calibration, operator_time
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.hardware.gpu import read_gpu
from moemodel.model.operators.calls import Call, Phase
from moemodel.model.operators.work import GEMM_PASSES, Kind, Pass, Shape
from moemodel.model.records.calibration import Calibration, KernelFit

GPU = "h200-sxm-141gb"
ROWS = 700
RATE, BANDWIDTH_Bps, LAUNCH_S = 1200e12, 3.5e12, 5e-6


def fp8_table(folder: Path) -> list[Readings]:
    """Products as fast as their slower half, behind a cast that reads rows of 16 bits and writes 8 at 2 TB/s."""
    random = np.random.default_rng(1)
    m, n, k = (np.round(2 ** random.uniform(low, 13.5, ROWS) / 64) * 64 for low in (7, 9, 9))
    products_s = np.maximum(2 * m * n * k / RATE, (m * k + n * k + 2 * m * n) / BANDWIDTH_Bps)
    time_s = LAUNCH_S + products_s + 3 * m * k / 2e12
    table = pd.DataFrame({"m": m, "n": n, "k": k, "latency_ms": time_s * 1e3, "gemm_dtype": "fp8"})
    path = folder / "fp8.parquet"
    table.assign(system="h200_sxm", software="law 2").to_parquet(path)
    return read_readings([path])


@pytest.fixture(scope="module")
def base() -> Calibration:
    return shipped(GPU)


@pytest.fixture(scope="module")
def overlaid(base: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """The H200 under 8-bit products of the law alone."""
    calibration, errors = overlay_readings(base, read_gpu(GPU), fp8_table(tmp_path_factory.mktemp("law")))
    assert not errors  # those are of products in 16 bits and of attention
    return calibration


def kernel(calibration: Calibration, direction: Pass = Pass.FORWARD) -> KernelFit:
    fit = calibration.kernel("fp8", Kind.GEMM, direction)
    assert fit is not None
    return fit


@pytest.mark.parametrize("direction", GEMM_PASSES)
def test_products_are_those_of_the_law_without_the_casts(overlaid: Calibration, direction: Pass) -> None:
    """As a plan in fp8 prices them. Of a square product all passes are one; its cast would be 0.1 ms. Gradients are
    summed in float32 every 128 of depth: read on an H100, 1,224 of 1,302 TFLOP/s.
    """
    in_fp8 = rescale_for_precision(overlaid, framework_of("megatron-core"), "fp8", read_gpu(GPU))
    clocks = np.linspace(*in_fp8.clock_range_Hz, 9)
    pricer = OperatorCostModel(in_fp8, chip_of_calibration(in_fp8), power_model(in_fp8), clocks)
    side, once = np.array([8192.0]), np.ones(1)
    call = Call(
        kind=Kind.GEMM, direction=direction, shape=Shape(m=side, n=side, k=side), phase=Phase.FORWARD, count=once
    )
    time_s = pricer.phase_costs([call], 1)[Phase.FORWARD].time_s_UK[0, -1]
    rate = RATE if direction is Pass.FORWARD else RATE * 1224 / 1302
    assert time_s == pytest.approx(LAUNCH_S + 2 * side.item() ** 3 / rate, rel=0.06)


def test_what_is_of_16_bits_stays(base: Calibration, overlaid: Calibration) -> None:
    assert [fit.parameters for fit in overlaid.operators] == [fit.parameters for fit in base.operators]
    assert overlaid.power == base.power
    grouped = [fit for fit in base.kernels if fit.kind is Kind.GROUPED_GEMM]
    assert [fit for fit in overlaid.kernels if fit.kind is Kind.GROUPED_GEMM] == grouped
    assert {fit.dtype for fit in overlaid.kernels if fit.kind is Kind.GEMM} == {"fp8"}  # none older, nearer the peak
    assert "law 2" in kernel(overlaid).parameters["p"].source
    assert "law 2" in overlaid.provenance


def test_backward_passes_are_assumed_and_less_certain(overlaid: Calibration) -> None:
    forward, backward = kernel(overlaid), kernel(overlaid, Pass.BACKWARD_WEIGHT)
    assert forward.parameters["p"].origin == "fitted"
    assert backward.parameters["p"].origin == "assumed"
    assert backward.log_error > forward.log_error


def test_a_gpu_derived_from_another_has_its_kernels_if_it_multiplies_their_operands(overlaid: Calibration) -> None:
    old = read_gpu(GPU)
    newer = derive_calibration(overlaid, old, read_gpu("h100-nvl-94gb"))
    share = newer.kernel("fp8", Kind.GEMM, Pass.FORWARD)
    assert share is not None
    assert share.values == pytest.approx(kernel(overlaid).values)
    assert {p.origin for p in share.parameters.values()} == {"assumed"}
    assert derive_calibration(overlaid, old, read_gpu("a100-sxm-80gb")).kernels == []  # no 8-bit floats


def test_lent_kernels_say_whose_they_are_and_are_less_certain(overlaid: Calibration) -> None:
    fit = lent(kernel(overlaid), read_gpu(GPU), 0.12)
    assert fit.log_error == pytest.approx(np.hypot(kernel(overlaid).log_error, 0.12), abs=1e-5)
    assert fit.parameters["p"].source.startswith(f"as on {GPU}: ")


def test_a_pace_leaves_no_efficiency_above_one(base: Calibration) -> None:
    fit = base.operator(Kind.GROUPED_GEMM, Pass.FORWARD)
    assert fit is not None
    made = GroupedPace(computing=3.0, moving=0.5).applied(fit, "tried")
    shares = {name: p.value for name, p in made.items() if name.startswith("efficiency")}
    assert max(shares.values()) == pytest.approx(1.0, rel=1e-4)
    assert made["memory_efficiency"].value == pytest.approx(0.5 * fit.values["memory_efficiency"], rel=1e-4)
    assert made["depth0"] == fit.parameters["depth0"]


def test_grouped_kernels_that_ship_are_slower_than_peaks_and_faster_than_16_bits() -> None:
    """Of 8 bits, a product of 64 experts with 1024 rows each; tensor cores are twice as fast."""
    for name in ("h200-sxm-141gb", "b300-sxm-288gb"):
        calibration = shipped(name)
        wide = calibration.operator(Kind.GROUPED_GEMM, Pass.FORWARD)
        narrow = calibration.kernel("fp8", Kind.GROUPED_GEMM, Pass.FORWARD)
        assert wide is not None
        assert narrow is not None
        chip, clock = chip_of_calibration(calibration), np.array([1.9e9])
        twice = type(chip)(**(vars(chip) | {"flops_per_cycle": 2 * chip.flops_per_cycle}))
        shape = Shape(m=65536, n=2048, k=4096, experts=64)
        wide_s = operator_time(wide.model_copy(update={"residual": None}), chip, shape, clock).time_s_UK.item()
        narrow_s = operator_time(narrow, twice, shape, clock).time_s_UK.item()
        assert 0.45 * wide_s < narrow_s < 0.9 * wide_s, name
