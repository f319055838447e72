"""The fit of power: a device with known coefficients gets its watts back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest

from moemodel.calibration.fit.power import TREE_SHARE, fit_power, loads_of
from moemodel.calibration.store.profile_tables import PowerTable
from moemodel.model.device.power import PowerModel
from moemodel.model.operators.work import Kind, Pass, Shape, work
from moemodel.model.records.calibration import Parameter, PowerFit
from moemodel.model.records.profile import TABLES

TOP_HZ = 1.98e9
_NO_SHAPE = Shape()

TRUTH = PowerModel(
    base_W=95.0,
    tree_W=95.0 * TREE_SHARE / (1 - TREE_SHARE),
    leak_W_per_C=0.8,
    leak_reference_C=50.0,
    rise_per_C=0.0016,
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
        if self.kind is None:
            return float(device.total_W(device.clocked_W(np.array(self.clock_Hz)), self.temperature_C))
        clock, busy = np.array([self.clock_Hz]), np.array([[self.time_s]])
        joules = device.dynamic_J(self.kind, self.direction, work(self.kind, self.direction, self.shape), clock, busy)
        dynamic_W = self.duty * joules.item() / self.time_s + device.clocked_W(clock).item()
        return float(device.total_W(np.array(dynamic_W), self.temperature_C))


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
                "sm_activity": load.duty if load.kind is not None else 0.0,
                **work_columns,
            }
        )
    return pd.DataFrame(rows).reindex(columns=list(TABLES["power"]))


def _leakage(device: PowerModel) -> dict[str, Parameter]:
    """What `calibrate.fit.thermal.fit_leakage` would say of a device."""
    units = {"leak_W_per_C": "W/K", "rise_per_C": "1/K", "leak_reference_C": "C"}
    return {
        name: Parameter(value=getattr(device, name), unit=unit, origin="measured", source="made up")
        for name, unit in units.items()
    }


def _fit(loads: Sequence[Load], device: PowerModel, *, noise: float = 0.0) -> tuple[PowerFit, PowerModel]:
    """The fit, and the model that a prediction makes of it."""
    fit, _ = fit_power(
        loads_of(PowerTable.of(_table(loads, device, noise=noise)), TOP_HZ), TOP_HZ, _leakage(device), "made up"
    )
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
    """Without noise all of them, though the grid has neither the knee nor the slope; within a tenth with 1 % of it."""
    _, found = fitted
    names = ("base_W", "flop_J", "vector_op_J", "active_W", "knee_Hz", "voltage_slope")
    for name in names:
        assert getattr(found, name) == pytest.approx(getattr(TRUTH, name), rel=0.01), name
    assert all(factor == pytest.approx(1.0, abs=0.003) for factor in found.kinds.values())
    _, noisy = _fit(list(_loads()), TRUTH, noise=0.002)
    clock_Hz = np.linspace(0.55, 1.0, 10) * TOP_HZ
    assert noisy.voltage2(clock_Hz) == pytest.approx(TRUTH.voltage2(clock_Hz), rel=0.03)


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
    """Loads that differ in nothing else differ by leakage and rise alone; base_W is for the reference temperature."""
    fit, found = fitted
    leak, rise = (fit.parameters[name].value for name in ("leak_W_per_C", "rise_per_C"))
    cool, reference, warm = (replace(GEMM, temperature_C=t).power_W(found) for t in (40.0, 50.0, 70.0))
    assert warm - cool == pytest.approx(30 * (leak + rise * (reference - found.base_W)))
    idle = replace(IDLE, temperature_C=fit.parameters["leak_reference_C"].value)
    assert idle.power_W(found) == pytest.approx(fit.parameters["base_W"].value + fit.parameters["tree_W"].value)


def test_activity_counters_correct_the_share_of_loads_that_the_host_holds_up() -> None:
    """A load queued without pauses of its own was busy for what the counter says; one with pauses for its share."""
    table = _table([GEMM, replace(GEMM, duty=0.5), GEMM], TRUTH)
    table["sm_activity"] = [0.4, 0.9, np.nan]
    loads = loads_of(PowerTable.of(table), TOP_HZ)
    assert loads.duty.tolist() == [0.4, 0.5, 1.0]
    assert loads.rate_per_s == pytest.approx(np.array([1.0, 0.5, 1.0]) / GEMM.time_s)


def test_short_calls_count_only_where_a_counter_says_how_busy_they_keep_the_sms() -> None:
    """A load that waits for the host would pass for a busy GPU that draws hardly anything."""
    table = _table([IDLE, GEMM, SMALL, replace(SMALL, duty=0.5)], TRUTH)
    table["sm_activity"] = [0.0, 1.0, 0.1, 0.05]
    assert loads_of(PowerTable.of(table), TOP_HZ).duty.tolist() == [0.0, 1.0, 0.1, 0.5]
    table["sm_activity"] = np.nan
    assert loads_of(PowerTable.of(table), TOP_HZ).duty.tolist() == [0.0, 1.0, 0.5]  # one with pauses ran for its share


def test_readings_that_are_missing() -> None:
    """No power: no load. No clock: the driver's, then the highest. No temperature: the reference."""
    table = _table([IDLE, GEMM, COPY, GELU], TRUTH)
    table.loc[0, "power_W"] = np.nan
    table.loc[1, "clock_Hz"] = np.nan
    table.loc[2, ["clock_Hz", "clock_reported_Hz"]] = [np.nan, 1.2e9]
    table.loc[3, "temperature_C"] = np.nan
    loads = loads_of(PowerTable.of(table), TOP_HZ)
    assert loads.keys == ["gemm/forward", "copy/forward", "gelu/forward"]
    assert loads.clock_Hz.tolist() == [TOP_HZ, 1.2e9, TOP_HZ]
    assert loads.temperature_C[2] == 50.0
