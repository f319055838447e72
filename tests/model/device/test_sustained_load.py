"""A held load: what its prices, limits and temperatures must give, whatever the calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moemodel.model.core.errors import CalibrationError
from moemodel.model.device.power import power_model
from moemodel.model.device.sustained_load import Part, SustainedLoad, sustained_load
from moemodel.model.device.thermal import thermal_model
from moemodel.model.operators.work import Kind, Pass, Shape
from moemodel.model.records.calibration import Calibration

CAP_W = 700.0
GEMM = Part(kind=Kind.GEMM, direction=Pass.FORWARD, shape=Shape(m=8192, n=8192, k=8192), calls=10)
COPY = Part(kind=Kind.COPY, direction=Pass.FORWARD, shape=Shape(m=1 << 28), calls=20)


def hungry(calibration: Calibration, watts: float = 900.0) -> Calibration:
    """A GPU that the cap holds back: products draw about so much at the highest clock."""
    parameters = calibration.power.parameters
    dear = parameters["flop_J"].model_copy(update={"value": parameters["flop_J"].value * watts / 550.0})
    power = calibration.power.model_copy(update={"parameters": parameters | {"flop_J": dear}})
    return calibration.model_copy(update={"power": power})


@pytest.fixture(scope="module")
def capped(calibration: Calibration) -> Calibration:
    return hungry(calibration)


def held(calibration: Calibration, *parts: Part, **options: Any) -> SustainedLoad:
    return sustained_load(parts or (GEMM,), calibration, **{"power_limit_W": CAP_W, "time_s": 30.0} | options)


@pytest.mark.parametrize("cap_W", [300.0, 450.0, 700.0])
def test_a_product_without_a_break_draws_its_share_of_the_cap(capped: Calibration, cap_W: float) -> None:
    share = capped.governor.parameters["sustained_share"].value
    load = held(capped, power_limit_W=cap_W, time_s=300.0)
    assert load.power_W <= share * cap_W * 1.005
    assert load.power_W == pytest.approx(share * cap_W, rel=0.02) or load.clock_Hz > 1.5e9


def test_the_cap_lowers_the_clock(capped: Calibration) -> None:
    loads = [held(capped, power_limit_W=w) for w in (250.0, 400.0, 600.0, 1e9)]
    assert (np.diff([load.clock_Hz for load in loads]) > 0).all()
    assert (np.diff([load.round_s for load in loads]) < 0).all()


def test_out_of_the_caps_way_only_tensor_cores_are_slow(calibration: Calibration) -> None:
    copy, product = (held(calibration, part, power_limit_W=1e9) for part in (COPY, GEMM))
    assert copy.clock_Hz == pytest.approx(1980e6, rel=1e-6)
    assert product.clock_Hz < 1.75e9


def test_parts_in_turn_take_the_time_of_both(calibration: Calibration) -> None:
    one, other, both = (held(calibration, *parts, power_limit_W=1e9) for parts in ((GEMM,), (COPY,), (GEMM, COPY)))
    assert both.round_s == pytest.approx(one.round_s + other.round_s)
    cycles = one.clock_Hz * one.round_s + other.clock_Hz * other.round_s
    assert both.clock_Hz == pytest.approx(cycles / both.round_s)
    assert min(one.power_W, other.power_W) < both.power_W < max(one.power_W, other.power_W)


def test_a_pause_lowers_power_and_never_the_clock(capped: Calibration) -> None:
    loads = [held(capped, pause_s=pause_s) for pause_s in (0.0, 5e-3, 20e-3, 0.1, 1.0)]
    assert (np.diff([load.power_W for load in loads]) < 0).all()
    assert (np.diff([load.clock_Hz for load in loads]) >= -1.0).all()
    assert loads[-1].power_W < 200.0


def test_long_turns_are_held_back_more(capped: Calibration) -> None:
    """Mean power of the same mixture: short turns use all of the cap, long ones don't."""
    mixture = [
        held(
            capped,
            Part(kind=Kind.GEMM, direction=Pass.FORWARD, shape=GEMM.shape, calls=25 * n),
            Part(kind=Kind.COPY, direction=Pass.FORWARD, shape=COPY.shape, calls=100 * n),
            power_limit_W=420.0,
            time_s=300.0,
        )
        for n in (1, 4, 16, 64)
    ]
    powers = [load.power_W for load in mixture]
    assert (np.diff(powers) < 0.1).all()
    assert powers[-1] < powers[0] - 0.1
    assert powers[0] <= 420.0 * 1.005


def test_it_gets_warmer_with_time(calibration: Calibration) -> None:
    loads = [held(calibration, time_s=t) for t in (0.0, 1.0, 5.0, 20.0, 60.0, 1e4)]
    assert (np.diff([load.temperature_C for load in loads]) > 0).all()
    power = power_model(calibration)
    (idle_W,), (idle_C,) = power.steady(power.clocked_W(np.array(calibration.clock_range_Hz[1:])))
    assert loads[0].temperature_C == pytest.approx(float(idle_C))
    last = loads[-1]
    assert last.temperature_C == pytest.approx(power.inlet_C + power.thermal_C_per_W * last.power_W, abs=0.1)
    assert float(idle_W) < loads[0].power_W < last.power_W


def test_it_starts_as_warm_as_it_is_said_to(calibration: Calibration) -> None:
    cold, warm = (held(calibration, time_s=0.0, start_C=c) for c in (35.0, 60.0))
    assert (cold.temperature_C, warm.temperature_C) == (pytest.approx(35.0), pytest.approx(60.0))
    power = power_model(calibration)
    dynamic_W = cold.power_W - float(power.static_W(35.0))
    assert warm.power_W - cold.power_W == pytest.approx(
        25.0 * (power.leak_W_per_C + power.rise_per_C * dynamic_W), rel=1e-3
    )


def test_the_longer_it_lasts_the_less_its_start_matters(calibration: Calibration) -> None:
    sink_s = thermal_model(calibration).sink_s
    apart = [
        held(calibration, time_s=t, start_C=60.0).temperature_C - held(calibration, time_s=t).temperature_C
        for t in (0.0, sink_s, 10 * sink_s)
    ]
    assert apart[0] > apart[1] > apart[2]
    assert apart[2] == pytest.approx(0.0, abs=0.01)


def test_an_operator_that_is_not_calibrated_is_named(calibration: Calibration) -> None:
    bare = calibration.model_copy(update={"operators": [f for f in calibration.operators if f.kind != Kind.COPY]})
    with pytest.raises(CalibrationError, match="copy"):
        held(bare, COPY)
