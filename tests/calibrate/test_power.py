"""Fits of power, governor and temperature: a device with known coefficients gets its watts, limits and degrees back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from moemodel.calibrate.power import Loads, describe, fit_governor, fit_power, fit_thermal, kind_factors, loads_of
from moemodel.model.calibration import GovernorFit, PowerFit, ThermalFit
from moemodel.model.operators import SHAPE_FIELDS, Kind, Pass, Shape, work
from moemodel.model.power import PowerModel
from moemodel.model.profile import TABLES

FloatArray = NDArray[np.float64]

TOP_HZ, CAP_W = 1.98e9, 700.0
_NO_SHAPE = Shape()

TRUTH = PowerModel(
    base_W=95.0,
    leak_W_per_C=0.8,
    leak_reference_C=50.0,
    flop_J=0.4e-12,
    vector_op_J=3e-12,
    cache_J_per_B=25e-12,
    dram_J_per_B=50e-12,
    active_W=110.0,
    knee_Hz=0.66 * TOP_HZ,
    voltage_slope=0.87,
    clock_reference_Hz=TOP_HZ,
    thermal_C_per_W=0.0,
    inlet_C=50.0,
    link_W=0.0,
    kinds={},
)


@dataclass(frozen=True, kw_only=True)
class Load:
    """An operator held at a share of the time; `time_s` is of one call at `clock_Hz`."""

    kind: Kind | None
    direction: Pass = Pass.FORWARD
    shape: Shape = _NO_SHAPE
    time_s: float = 1e-3
    clock_Hz: float = TOP_HZ
    duty: float = 1.0
    temperature_C: float = 50.0

    def power_W(self, device: PowerModel) -> float:
        """Mean power on a device that obeys the model."""
        static_W = float(device.static_W(self.temperature_C))
        if self.kind is None:
            return static_W
        clock, busy = np.array([self.clock_Hz]), np.array([[self.time_s]])
        joules = device.dynamic_J(self.kind, self.direction, work(self.kind, self.direction, self.shape), clock, busy)
        return static_W + self.duty * joules.item() / self.time_s


IDLE = Load(kind=None)
GEMM = Load(kind=Kind.GEMM, shape=Shape(m=8192, n=8192, k=8192), time_s=2.2e-3)
SMALL = Load(kind=Kind.GEMM, shape=Shape(m=4096, n=512, k=1024), time_s=20e-6)
FLASH = Load(kind=Kind.ATTENTION, shape=Shape(batch=8, heads=16, kv_heads=16, seq=4096, head_dim=128), time_s=1.1e-3)
GELU = Load(kind=Kind.GELU, shape=Shape(m=16384, n=8192), time_s=220e-6)
NORM = Load(kind=Kind.RMS_NORM, shape=Shape(m=16384, n=4096), time_s=110e-6)
COPY = Load(kind=Kind.COPY, shape=Shape(m=1 << 28), time_s=400e-6)
ADAMW = Load(kind=Kind.ADAMW, direction=Pass.STEP, shape=Shape(m=400_000_000), time_s=2.1e-3)
BUSY = (GEMM, SMALL, FLASH, GELU, NORM, COPY, ADAMW)


def _slower(load: Load, clock_Hz: float) -> Load:
    return replace(load, clock_Hz=clock_Hz, time_s=load.time_s * TOP_HZ / clock_Hz)


def _loads() -> Iterator[Load]:
    """Seven operators, held back to several clocks, at several shares of the time, on a die of several temperatures."""
    yield IDLE
    yield replace(IDLE, temperature_C=38.0)
    for index, load in enumerate(BUSY):
        yield load
        yield replace(_slower(load, (0.6 + 0.05 * index) * TOP_HZ), temperature_C=60.0)
    for duty in (0.3, 0.5, 0.8):
        yield replace(GEMM, duty=duty, temperature_C=45.0)
        yield replace(COPY, duty=duty)
    for clock_Hz in (1.1e9, 1.4e9, 1.7e9):
        yield _slower(GEMM, clock_Hz)


def _table(loads: Sequence[Load], device: PowerModel, *, noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Rows of the table `power`."""
    rng = np.random.default_rng(seed)
    rows = []
    for load in loads:
        work_columns: dict[str, object] = {}
        if load.kind is not None:
            sizes = {name: float(values) for name, values in load.shape.arrays().items()}
            work_columns = {"kind": str(load.kind), "direction": str(load.direction), "time_s": load.time_s, **sizes}
        rows.append(
            {
                "load": str(load.kind),
                "duty": load.duty if load.kind is not None else 0.0,
                "power_W": load.power_W(device) * np.exp(noise * rng.standard_normal()),
                "clock_Hz": load.clock_Hz,
                "temperature_C": load.temperature_C,
                **work_columns,
            }
        )
    return pd.DataFrame(rows).reindex(columns=list(TABLES["power"]))


def _fit(loads: Sequence[Load], device: PowerModel, *, noise: float = 0.0) -> tuple[PowerFit, PowerModel]:
    """The fit, and the model that a prediction makes of it."""
    fit, _ = fit_power(loads_of(_table(loads, device, noise=noise), TOP_HZ), TOP_HZ, "made up")
    values = {name: p.value for name, p in fit.parameters.items()}
    return fit, replace(device, **values, kinds={name: p.value for name, p in fit.kinds.items()})


@pytest.fixture(scope="module")
def fitted() -> tuple[PowerFit, PowerModel]:
    return _fit(list(_loads()), TRUTH)


def test_every_load_gets_its_power(fitted: tuple[PowerFit, PowerModel]) -> None:
    fit, found = fitted
    assert fit.points == len(list(_loads()))
    for load in _loads():
        assert load.power_W(found) == pytest.approx(load.power_W(TRUTH), rel=0.02), load
    assert fit.log_error < 0.02


def test_coefficients_and_voltage_come_back(fitted: tuple[PowerFit, PowerModel]) -> None:
    """Those that the loads tell apart; the curve as it acts, since other knees with other slopes act alike."""
    _, found = fitted
    assert found.base_W == pytest.approx(TRUTH.base_W, rel=0.02)
    assert found.flop_J == pytest.approx(TRUTH.flop_J, rel=0.1)
    clock_Hz = np.linspace(0.55, 1.0, 10) * TOP_HZ
    assert found.voltage2(clock_Hz) == pytest.approx(TRUTH.voltage2(clock_Hz), rel=0.05)
    assert all(factor == pytest.approx(1.0, abs=0.03) for factor in found.kinds.values())


@pytest.mark.parametrize("duty", [0.2, 0.65])
@pytest.mark.parametrize("clock_Hz", [1.25e9, 1.9e9])
def test_loads_never_seen_get_their_power(duty: float, clock_Hz: float, fitted: tuple[PowerFit, PowerModel]) -> None:
    """Other shares of the time, other clocks, another temperature."""
    _, found = fitted
    for load in BUSY:
        other = replace(_slower(load, clock_Hz), duty=duty, temperature_C=65.0)
        assert other.power_W(found) == pytest.approx(other.power_W(TRUTH), rel=0.03), other


def test_the_error_it_states_is_that_of_loads_left_out() -> None:
    noise = 0.03
    fit, found = _fit(list(_loads()), TRUTH, noise=noise)
    assert 0.5 * noise < fit.log_error < 3 * noise
    for load in _loads():
        assert load.power_W(found) == pytest.approx(load.power_W(TRUTH), rel=3 * noise)


def test_operators_that_differ_keep_their_own_factor() -> None:
    device = replace(TRUTH, kinds={"attention/forward": 1.25, "rms_norm/forward": 0.8})
    loads = [*_loads(), _slower(FLASH, 1.3e9), _slower(NORM, 1.3e9)]
    fit, found = _fit(loads, device)
    assert found.kinds["attention/forward"] > 1.1 > 0.9 > found.kinds["rms_norm/forward"]
    errors = [abs(load.power_W(found) / load.power_W(device) - 1) for load in loads]
    assert np.median(errors) < 0.02
    assert max(errors) < 0.1
    assert all(p.origin == "measured" for p in fit.kinds.values())


def test_power_never_falls_with_work_or_clock(fitted: tuple[PowerFit, PowerModel]) -> None:
    fit, found = fitted
    assert all(p.value >= 0 for p in fit.parameters.values())
    for load in BUSY:
        watts = [_slower(load, clock_Hz).power_W(found) for clock_Hz in np.linspace(0.6e9, TOP_HZ, 12)]
        assert (np.diff(watts) >= 0).all()
        assert load.power_W(found) >= replace(load, duty=0.5).power_W(found)


def test_a_warm_die_leaks(fitted: tuple[PowerFit, PowerModel]) -> None:
    """Loads that differ in nothing else differ by the leakage alone, and base_W is for the reference temperature."""
    fit, found = fitted
    leak = fit.parameters["leak_W_per_C"].value
    cool, warm = (replace(GEMM, temperature_C=t).power_W(found) for t in (40.0, 70.0))
    assert warm - cool == pytest.approx(30 * leak)
    idle = replace(IDLE, temperature_C=fit.parameters["leak_reference_C"].value)
    assert idle.power_W(found) == pytest.approx(fit.parameters["base_W"].value)


def test_activity_counters_correct_the_share_of_loads_that_the_host_holds_up() -> None:
    """A load queued without pauses of its own was busy for what the counter says; one with pauses for its share."""
    table = _table([GEMM, replace(GEMM, duty=0.5), GEMM], TRUTH)
    table["sm_activity"] = [0.4, 0.9, np.nan]
    loads = loads_of(table, TOP_HZ)
    assert loads.duty.tolist() == [0.4, 0.5, 1.0]
    assert loads.rate_per_s == pytest.approx(np.array([1.0, 0.5, 1.0]) / GEMM.time_s)


def test_readings_that_are_missing() -> None:
    """No power: no load. No clock: the driver's, then the highest. No temperature: the reference."""
    table = _table([IDLE, GEMM, COPY, GELU], TRUTH)
    table.loc[0, "power_W"] = np.nan
    table.loc[1, "clock_Hz"] = np.nan
    table.loc[2, ["clock_Hz", "clock_reported_Hz"]] = [np.nan, 1.2e9]
    table.loc[3, "temperature_C"] = np.nan
    loads = loads_of(table, TOP_HZ)
    assert loads.keys == ["gemm/forward", "copy/forward", "gelu/forward"]
    assert loads.clock_Hz.tolist() == [TOP_HZ, 1.2e9, TOP_HZ]
    assert loads.temperature_C[2] == 50.0


def test_loads_are_described_for_a_person() -> None:
    loads = loads_of(_table(list(_loads()), TRUTH), TOP_HZ)
    fit, solution = fit_power(loads, TOP_HZ, "made up")
    lines = describe(loads, solution, kind_factors(loads, solution))
    assert [name for name, _, _ in lines] == loads.names
    assert [found for _, _, found in lines] == pytest.approx([measured for _, measured, _ in lines], rel=0.02)
    assert fit.points == len(lines)


# ---- the governor ---------------------------------------------------------------------------------------------------


def _governed(loads: Sequence[tuple[float, float, float]], temperature_C: float = 50.0) -> Loads:
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
            "temperature_C": temperature_C,
        }
        for duty, clock_Hz, power_W in loads
    ]
    return loads_of(pd.DataFrame(rows).reindex(columns=list(TABLES["power"])), TOP_HZ)


def _governor(loads: Loads, cap_W: float = CAP_W) -> GovernorFit:
    return fit_governor(loads, 95.0, TOP_HZ, cap_W, "made up")


@pytest.mark.parametrize("temperature_C", [50.0, 62.0])
def test_bursts_show_the_fast_limit(temperature_C: float) -> None:
    """Bursts settle at 950 W for a share of the time, the rest is idle; noise of 1 %."""
    rng = np.random.default_rng(0)
    idle_W = float(TRUTH.static_W(temperature_C))
    bursts = [
        (duty, 1.6e9, (duty * 950 + (1 - duty) * idle_W) * np.exp(0.01 * rng.standard_normal()))
        for duty in (0.25, 0.3, 0.4, 0.5, 0.6)
    ]
    fit = _governor(_governed([*bursts, (0.0, TOP_HZ, idle_W), (0.5, TOP_HZ, 300.0)], temperature_C))
    limit = fit.parameters["fast_limit"]
    assert limit.value == pytest.approx(950, rel=0.02)
    assert limit.origin == "measured"
    assert limit.error is not None
    assert limit.error < 0.03


def test_loads_at_the_cap_show_the_share_that_they_keep() -> None:
    held = [(1.0, clock_Hz, share * CAP_W) for clock_Hz, share in ((1.4e9, 0.98), (1.5e9, 0.985), (1.7e9, 0.99))]
    fit = _governor(_governed([*held, (1.0, TOP_HZ, 400.0), (1.0, 1.5e9, 500.0)]))
    share = fit.parameters["sustained_share"]
    assert share.value == pytest.approx(0.985)
    assert share.origin == "measured"


def test_limits_that_nothing_reached_are_said_to_be_assumed() -> None:
    fit = _governor(_governed([(1.0, TOP_HZ, 300.0), (0.5, TOP_HZ, 200.0)]))
    assert fit.parameters["sustained_share"].value == 1.0
    assert fit.parameters["sustained_share"].origin == "assumed"
    assert fit.parameters["fast_limit"].value >= 5 * CAP_W  # never in the way


def test_a_fast_limit_that_nothing_reached_is_not_measured() -> None:
    fit = _governor(_governed([(1.0, TOP_HZ, 300.0), (0.5, TOP_HZ, 200.0)]))
    assert fit.parameters["fast_limit"].origin == "assumed"


def test_a_device_without_a_power_limit() -> None:
    fit = _governor(_governed([(1.0, TOP_HZ, 300.0), (0.5, TOP_HZ, 200.0)]), cap_W=np.inf)
    assert np.isfinite(fit.parameters["fast_limit"].value)


# ---- temperature ----------------------------------------------------------------------------------------------------


def _trace(
    *, inlet_C: float, die: tuple[float, float], sink: tuple[float, float], seed: int = 0, step_s: float = 0.1
) -> pd.DataFrame:
    """Rows of the table `thermal`: a cold device under loads that change; each mass is (K/W, time constant in s)."""
    rng = np.random.default_rng(seed)
    power_W = np.repeat(rng.choice([120.0, 250.0, 400.0, 550.0, 700.0], 60), 40)
    rise = np.zeros(2)
    resistance, time_constant = np.array([die, sink]).T
    temperature_C = []
    rise += resistance * power_W[0]
    for watts in power_W:
        rise += (resistance * watts - rise) * (1 - np.exp(-step_s / time_constant))
        temperature_C.append(inlet_C + rise.sum())
    reading = np.round(np.array(temperature_C) + 0.2 * rng.standard_normal(len(power_W)))  # NVML gives whole degrees
    elapsed_s = step_s * np.arange(len(power_W))
    columns = {"load": "mixed", "elapsed_s": elapsed_s, "power_W": power_W, "temperature_C": reading}
    return pd.DataFrame(columns | {"wall_s": 1.8e9 + elapsed_s}).reindex(columns=list(TABLES["thermal"]))


def _rise(fit: ThermalFit) -> float:
    return fit.parameters["thermal_C_per_W"].value


@pytest.mark.parametrize(("die_s", "sink_s"), [(2.0, 20.0), (2.5, 37.0), (1.4, 12.0)])
def test_the_steady_rise_comes_back(die_s: float, sink_s: float) -> None:
    """Time constants on the grid and between its points."""
    fit = fit_thermal(_trace(inlet_C=27.0, die=(0.022, die_s), sink=(0.031, sink_s)), "made up")
    assert _rise(fit) == pytest.approx(0.053, rel=0.05)
    assert fit.parameters["inlet_C"].value == pytest.approx(27.0, abs=1.5)
    assert fit.parameters["thermal_C_per_W"].origin == "measured"


def test_gaps_in_the_readings_do_not_matter() -> None:
    trace = _trace(inlet_C=27.0, die=(0.022, 2.0), sink=(0.031, 20.0))
    trace.loc[trace.index[::3], "temperature_C"] = np.nan
    assert _rise(fit_thermal(trace, "made up")) == pytest.approx(0.053, rel=0.05)


def test_a_trace_too_short_models_no_rise_and_says_so() -> None:
    fit = fit_thermal(_trace(inlet_C=27.0, die=(0.022, 2.0), sink=(0.031, 20.0)).head(99), "made up")
    assert _rise(fit) == 0
    assert all(p.origin == "assumed" for p in fit.parameters.values())
    assert "no temperature trace" in fit.parameters["thermal_C_per_W"].source


def test_a_profile_that_was_resumed_has_two_traces() -> None:
    first, second = (_trace(inlet_C=27.0, die=(0.022, 2.0), sink=(0.031, 20.0), seed=seed) for seed in (1, 2))
    second["wall_s"] += 1000.0
    fit = fit_thermal(pd.concat([first, second], ignore_index=True), "made up")
    assert _rise(fit) == pytest.approx(0.053, rel=0.05)
