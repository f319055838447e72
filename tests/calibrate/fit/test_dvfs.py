"""Fits of the governor: a device with known limits gives them back, and what nothing shows is said to be assumed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from moemodel.calibration.fit.dvfs import GAIN_HZ_PER_J, SHARPNESS, fit_gain, fit_governor, no_governor, with_gain
from moemodel.calibration.fit.power import Loads, loads_of
from moemodel.calibration.store.profile_tables import AlternatingTable, OperatorTable, PowerTable
from moemodel.model.device.dvfs import TensorLimit
from moemodel.model.device.roofline import RooflineChip
from moemodel.model.device.sustained_load import Part, sustained_load
from moemodel.model.operators.work import SHAPE_FIELDS, Kind, Pass, Shape, work
from moemodel.model.records.calibration import Calibration, GovernorFit, Parameter
from moemodel.model.records.profile import TABLES

TOP_HZ, CAP_W = 1.98e9, 700.0
TENSOR_HZ = 1.57e9
MADE_UP = "made up"
NOTHING = pd.DataFrame(columns=list(TABLES["operators"]))


def _loads(*loads: tuple[float, float, float]) -> Loads:
    """Loads given as (share of the time, clock, mean power)."""
    rows = [
        {
            "load": "gemm",
            "kind": "gemm",
            "direction": "forward",
            **dict.fromkeys(SHAPE_FIELDS, 1.0),
            "time_s": 1e-3,
            "duty": duty,
            "clock_Hz": clock_Hz,
            "power_W": power_W,
            "temperature_C": 50.0,
            "sm_activity": duty,
        }
        for duty, clock_Hz, power_W in loads
    ]
    return loads_of(PowerTable.of(pd.DataFrame(rows).reindex(columns=list(TABLES["power"]))), TOP_HZ)


def _operators(chip: RooflineChip, *, sweep: str = "solo", noise: float = 0.003, share: float = 1.0) -> pd.DataFrame:
    """Products that keep the tensor cores at work for 5 to 95 % of the time, at the clock that this leaves."""
    rng = np.random.default_rng(0)
    limit = TensorLimit(clock_Hz=TENSOR_HZ, sharpness=SHARPNESS)
    rows = []
    for use in np.linspace(0.05, 0.95, 40):
        shape = Shape(m=float(rng.integers(8, 64) * 128), n=8192.0, k=4096.0)
        true_Hz = limit.true_clock_Hz(np.array([TOP_HZ]), np.array([[use]])).item() if share else TOP_HZ
        flops = float(work(Kind.GEMM, Pass.FORWARD, shape).flops)
        time_s = flops / (use * true_Hz * chip.multiprocessors * chip.flops_per_cycle)
        rows.append(
            {
                "kind": "gemm",
                "direction": "forward",
                **{name: float(values) for name, values in shape.arrays().items()},
                "sweep": sweep,
                "time_s": time_s,
                "clock_Hz": true_Hz * np.exp(noise * rng.standard_normal()),
                "clock_reported_Hz": TOP_HZ,
            }
        )
    return pd.DataFrame(rows).reindex(columns=list(TABLES["operators"]))


def _fit(loads: Loads, operators: pd.DataFrame, chip: RooflineChip, cap_W: float = CAP_W) -> GovernorFit:
    return fit_governor(loads, OperatorTable.of(operators), chip, cap_W, MADE_UP)


FREE = _loads((1.0, TOP_HZ, 300.0), (0.5, TOP_HZ, 200.0))

# ---- the share of the cap -------------------------------------------------------------------------------------------


def test_loads_at_the_cap_show_the_share_that_they_keep(chip: RooflineChip) -> None:
    held = [(1.0, clock_Hz, share * CAP_W) for clock_Hz, share in ((1.4e9, 0.98), (1.5e9, 0.985), (1.7e9, 0.99))]
    fit = _fit(_loads(*held, (1.0, TOP_HZ, 400.0), (1.0, 1.5e9, 500.0)), NOTHING, chip)
    share = fit.parameters["sustained_share"]
    assert share.value == pytest.approx(0.985)
    assert share.origin == "measured"


@pytest.mark.parametrize("cap_W", [CAP_W, np.inf])
def test_limits_that_nothing_reached_are_said_to_be_assumed(chip: RooflineChip, cap_W: float) -> None:
    fit = _fit(FREE, NOTHING, chip, cap_W)
    assert fit.parameters["sustained_share"].value == 1.0
    assert fit.parameters["gain"].value == GAIN_HZ_PER_J
    for parameter in fit.parameters.values():
        assert parameter.origin == "assumed"
        assert parameter.source
    assert set(fit.parameters) == {"sustained_share", "gain"}


def test_of_a_device_without_power_readings_nothing_is_known() -> None:
    found = no_governor("why")
    assert found["sustained_share"].source == "why"
    assert "as an H100" in found["gain"].source
    assert {p.origin for p in found.values()} == {"assumed"}


# ---- the tensor cores' own limit ------------------------------------------------------------------------------------


def test_the_clock_of_the_tensor_cores_comes_back(chip: RooflineChip) -> None:
    fit = _fit(FREE, _operators(chip), chip)
    clock = fit.parameters["tensor_clock"]
    assert clock.value == pytest.approx(TENSOR_HZ, rel=0.005)
    assert clock.origin == "measured"
    assert clock.error == pytest.approx(0.003, rel=0.5)
    sharpness = fit.parameters["tensor_sharpness"]
    assert (sharpness.value, sharpness.origin) == (SHARPNESS, "assumed")


def test_rows_that_ran_while_the_clock_still_rose_do_not_pull_it_down(chip: RooflineChip) -> None:
    rows = _operators(chip)
    rows.loc[rows.index[::7], "clock_Hz"] *= 0.8
    assert _fit(FREE, rows, chip).parameters["tensor_clock"].value == pytest.approx(TENSOR_HZ, rel=0.015)


def test_rows_held_by_the_slow_limit_or_beside_another_load_say_nothing(chip: RooflineChip) -> None:
    slow = _operators(chip)
    slow["clock_reported_Hz"] = 1.6e9
    for rows in (slow, _operators(chip, sweep="mixed"), _operators(chip).head(9), _operators(chip).assign(time_s=1e-5)):
        assert "tensor_clock" not in _fit(FREE, rows, chip).parameters


def test_where_products_keep_the_clock_there_is_no_limit(chip: RooflineChip) -> None:
    assert "tensor_clock" not in _fit(FREE, _operators(chip, share=0), chip).parameters


def test_a_device_without_true_clocks_has_none(chip: RooflineChip) -> None:
    rows = _operators(chip)
    rows["clock_Hz"] = np.nan
    assert "tensor_clock" not in _fit(FREE, rows, chip).parameters


# ---- how fast the clock answers -------------------------------------------------------------------------------------

HEAVY = Shape(m=np.array([8192.0]), n=np.array([8192.0]), k=np.array([8192.0]))
LIGHT = Shape(m=np.array([float(1 << 28)]))
LIMIT_W = 640.0  # the light load alone draws less, both in turns more


def _powers(calibration: Calibration) -> pd.DataFrame:
    """Table `power` with the two loads that alternate, each held by itself."""
    rows = []
    for kind, shape in ((Kind.GEMM, HEAVY), (Kind.COPY, LIGHT)):
        part = Part(kind=kind, direction=Pass.FORWARD, shape=shape, calls=1)
        alone = sustained_load([part], calibration, power_limit_W=LIMIT_W, time_s=0.0, start_C=50.0)
        sizes = {name: float(np.squeeze(values)) for name, values in shape.arrays().items()}
        rows.append(
            {"load": kind, "kind": str(kind), "direction": "forward", **sizes, "time_s": alone.round_s}
            | {"clock_Hz": alone.clock_Hz, "power_W": alone.power_W}
        )
    return pd.DataFrame(rows).reindex(columns=list(TABLES["power"]))


def _alternating(
    calibration: Calibration, turns_s: Sequence[float] = (0.03, 0.06, 0.12, 0.2), noise: float = 0.0, seed: int = 0
) -> pd.DataFrame:
    """Table `alternating` of a device that obeys the model."""
    rng = np.random.default_rng(seed)
    heavy = _powers(calibration).iloc[0]
    rows = []
    for turn_s in turns_s:
        alone = [
            Part(kind=kind, direction=Pass.FORWARD, shape=shape, calls=1)
            for kind, shape in ((Kind.GEMM, HEAVY), (Kind.COPY, LIGHT))
        ]
        one_s = [sustained_load([p], calibration, power_limit_W=1e9, time_s=0.0, start_C=50.0).round_s for p in alone]
        parts = [
            Part(kind=p.kind, direction=p.direction, shape=p.shape, calls=round(turn_s / s))
            for p, s in zip(alone, one_s, strict=True)
        ]
        both = sustained_load(parts, calibration, power_limit_W=LIMIT_W, time_s=0.0, start_C=50.0)
        light_s = parts[1].calls * one_s[1]  # memory-bound: the clock hardly counts
        heavy_s = both.round_s - light_s
        heavy_Hz = parts[0].calls * float(heavy["time_s"] * heavy["clock_Hz"]) / heavy_s  # its cycles stay the same
        rows.append(
            {
                "load": f"{turn_s}",
                "heavy_s": heavy_s,
                "light_s": light_s,
                "heavy_clock_Hz": heavy_Hz,
                "light_clock_Hz": (both.clock_Hz * both.round_s - heavy_Hz * heavy_s) / light_s,
                "power_W": both.power_W * np.exp(noise * rng.standard_normal()),
                "temperature_C": 50.0,
            }
        )
    return pd.DataFrame(rows).reindex(columns=list(TABLES["alternating"]))


def _device(calibration: Calibration, gain: float) -> Calibration:
    return with_gain(calibration, Parameter(value=gain, unit="Hz/J", origin="assumed", source=MADE_UP))


@pytest.fixture(scope="module")
def blank(calibration: Calibration) -> Calibration:
    """What `fit_gain` gets: the right device, whose products draw far more than its limit, with another gain."""
    parameters = calibration.power.parameters
    flop = parameters["flop_J"].model_copy(update={"value": 2.5 * parameters["flop_J"].value})
    power = calibration.power.model_copy(update={"parameters": parameters | {"flop_J": flop}})
    return _device(calibration.model_copy(update={"power": power}), 1e7)


def _gain(calibration: Calibration, alternating: pd.DataFrame, loads: pd.DataFrame, cap_W: float) -> Parameter:
    return fit_gain(calibration, AlternatingTable.of(alternating), PowerTable.of(loads), cap_W, MADE_UP)


@pytest.mark.parametrize("gain", [4e6, 9e6, 24e6])
def test_the_gain_comes_back_from_alternations(blank: Calibration, gain: float) -> None:
    device = _device(blank, gain)
    found = _gain(blank, _alternating(device), _powers(device), LIMIT_W)
    assert found.value == pytest.approx(gain, rel=0.1)
    assert (found.unit, found.origin, found.source) == ("Hz/J", "measured", MADE_UP)
    assert found.error is not None
    assert found.error < 0.01


def test_noise_of_the_readings_is_its_error(blank: Calibration) -> None:
    device = _device(blank, 9e6)
    found = _gain(blank, _alternating(device, noise=0.01), _powers(device), LIMIT_W)
    assert found.value == pytest.approx(9e6, rel=0.5)
    assert found.error is not None
    assert 0.001 < found.error < 0.02


def test_no_alternation_gives_the_gain_of_another_gpu_and_says_so(blank: Calibration) -> None:
    rows, loads = _alternating(blank), _powers(blank)
    without_clock = rows.assign(heavy_clock_Hz=np.nan)
    for alternating, powers in (
        (rows.iloc[:0], loads),
        (without_clock, loads),
        (rows.assign(temperature_C=np.nan), loads.assign(duty=1.0)),
        (rows, loads[loads["kind"] == "gemm"]),
        (rows, loads[loads["kind"] == "copy"]),
    ):
        found = _gain(blank, alternating, powers, LIMIT_W)
        assert (found.value, found.origin) == (GAIN_HZ_PER_J, "assumed")
        assert "as an H100 80GB HBM3" in found.source


def test_a_row_without_a_temperature_is_left_out(blank: Calibration) -> None:
    """A device without a thermometer, or one that stood still."""
    device = _device(blank, 9e6)
    rows, loads = _alternating(device, (0.06, 0.2)), _powers(device)
    whole = _gain(blank, rows, loads, LIMIT_W)
    more = pd.concat([rows, rows.assign(temperature_C=np.nan, power_W=9.0)], ignore_index=True)
    assert _gain(blank, more, loads, LIMIT_W).value == whole.value


@pytest.mark.parametrize("limit_W", [400.0, 1e4])
def test_alternations_that_tell_no_gain_from_another_are_not_said_to(blank: Calibration, limit_W: float) -> None:
    """Both loads above the limit draw it whatever the gain, and neither is held back by one far above."""
    found = _gain(blank, _alternating(blank), _powers(blank), limit_W)
    assert (found.value, found.origin) == (GAIN_HZ_PER_J, "assumed")


def test_only_the_gain_is_changed(calibration: Calibration) -> None:
    changed = _device(calibration, 5e6)
    assert changed.governor.parameters["gain"].value == 5e6
    rest = {n: p for n, p in calibration.governor.parameters.items() if n != "gain"}
    assert {n: p for n, p in changed.governor.parameters.items() if n != "gain"} == rest
    assert changed.model_copy(update={"governor": calibration.governor}) == calibration
