"""Energy of what readings multiplied, found in tables whose products ran as their power lets them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from moemodel.calibration.derive.large_product import LargeProduct
from moemodel.calibration.published.kernels.fitted import conditions_of
from moemodel.calibration.published.kernels.operands import operands_energy
from moemodel.calibration.published.kernels.readings import Readings
from moemodel.calibration.store.catalogue import shipped
from moemodel.model.device.power import power_model
from moemodel.model.hardware.gpu import read_gpu

GPU, LIMIT_W, SIDE = "h200-sxm-141gb", 700.0, 8192.0


def held_products(zeros_factor: float, rows: int = 1000, random_rows: int = 50) -> pd.DataFrame:
    """Large products at the power limit, few of them of random numbers, the others of operands of less energy."""
    calibration = shipped(GPU)
    power, product = power_model(calibration), LargeProduct.of(calibration)
    held_W = calibration.governor.parameters["sustained_share"].value * LIMIT_W
    factors = np.where(np.arange(rows) < random_rows, 1.0, zeros_factor)
    rates = {factor: product.times_energy(factor).sustained_flops_per_s(power, held_W) for factor in set(factors)}
    latency_ms = [2e3 * SIDE**3 / rates[factor] for factor in factors]
    return pd.DataFrame(
        {"m": SIDE, "n": SIDE, "k": SIDE, "latency_ms": latency_ms, "power_W": 0.99 * LIMIT_W, "power_limit_W": LIMIT_W}
    )


def readings(table: pd.DataFrame, dtype: str) -> Readings:
    """The table as that of a data type."""
    return Readings(family="products", gpu=GPU, dtype=dtype, software="law 1", table=table)


@pytest.mark.parametrize("factor", [1.0, 0.85, 0.7])
def test_finds_the_energy_of_the_median_reading(factor: float) -> None:
    assert operands_energy(shipped(GPU), held_products(factor), LIMIT_W) == pytest.approx(factor, rel=0.01)


def test_readings_below_the_limit_and_small_products_tell_nothing() -> None:
    table = held_products(0.7)
    for changed in ({"power_W": 0.9 * LIMIT_W}, {"k": 1024.0}):
        assert operands_energy(shipped(GPU), table.assign(**changed), LIMIT_W) == 1.0


def test_a_hundredth_of_too_few_products_is_none() -> None:
    table = held_products(0.7, rows=99, random_rows=5)
    assert operands_energy(shipped(GPU), table, LIMIT_W) == 1.0


def test_held_products_in_16_bits_alone_ran_at_the_clock_of_their_operands() -> None:
    base, gpu, table = shipped(GPU), read_gpu(GPU), held_products(0.7)
    random = conditions_of(readings(table.assign(power_W=0.9 * LIMIT_W), "bfloat16"), base, gpu)
    assert conditions_of(readings(table, "bfloat16"), base, gpu).factor == pytest.approx(0.7 * random.factor, rel=0.01)
    assert conditions_of(readings(table, "fp8"), base, gpu).factor == random.factor
    bursts = table.assign(power_W=np.nan, power_limit_W=np.nan)
    assert conditions_of(readings(bursts, "bfloat16"), base, gpu).factor == random.factor
