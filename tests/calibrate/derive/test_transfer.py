"""Calibrations taken over to GPUs that nobody measured: what must follow from data sheets alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moemodel.calibration.derive.large_product import LargeProduct, public_burst_share, public_sustained_rate
from moemodel.calibration.derive.nearest import nearest
from moemodel.calibration.derive.transfer import derive_calibration, sheet_of
from moemodel.calibration.store.catalogue import derived_from, list_calibrations, load_calibration, shipped
from moemodel.model.core.errors import CalibrationError
from moemodel.model.device.operator_cost import OperatorCostModel
from moemodel.model.device.power import power_model
from moemodel.model.device.roofline import chip_of_calibration
from moemodel.model.hardware.gpu import Gpu, list_gpus, read_gpu
from moemodel.model.operators.calls import Call, Phase
from moemodel.model.operators.work import Kind, Pass, Shape
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration, fingerprint
from moemodel.model.results.outcome import outcome

H100 = "h100-sxm-80gb"


def derived(gpu: Gpu | str, base: str = H100) -> Calibration:
    return derive_calibration(shipped(base), read_gpu(base), read_gpu(gpu) if isinstance(gpu, str) else gpu)


def seconds(calibration: Calibration, kind: Kind, m: float, n: float, k: float = 1.0) -> float:
    """Of one call at the highest clock."""
    clocks = np.linspace(*calibration.clock_range_Hz, 5)
    pricer = OperatorCostModel(calibration, chip_of_calibration(calibration), power_model(calibration), clocks)
    shape = Shape(m=np.array([m]), n=np.array([n]), k=np.array([k]))
    call = Call(kind=kind, direction=Pass.FORWARD, shape=shape, phase=Phase.FORWARD, count=np.ones(1))
    return float(pricer.phase_costs([call], 1)[Phase.FORWARD].time_s_UK[0, -1])


def sustained_share(calibration: Calibration, gpu: str) -> float:
    limit_W = read_gpu(gpu).power_limit_W
    assert limit_W is not None
    held_W = calibration.governor.parameters["sustained_share"].value * limit_W
    product = LargeProduct.of(calibration)
    return product.sustained_flops_per_s(power_model(calibration), held_W) / product.burst_flops_per_s


def test_taken_over_to_itself_nothing_changes() -> None:
    base, same = shipped(H100), derived(H100)
    for kind, sizes in (
        (Kind.GEMM, (4096.0, 4096.0, 4096.0)),
        (Kind.COPY, (1e8, 1.0)),
        (Kind.RMS_NORM, (8192.0, 4096.0)),
    ):
        assert seconds(same, kind, *sizes) == pytest.approx(seconds(base, kind, *sizes), rel=1e-6)
    assert sustained_share(same, H100) == pytest.approx(sustained_share(base, H100), rel=1e-6)


def test_a_large_copy_takes_as_much_less_as_memory_is_faster() -> None:
    took = [seconds(calibration, Kind.COPY, 1e9, 1.0) for calibration in (shipped(H100), derived("h200-sxm-141gb"))]
    assert took[0] / took[1] == pytest.approx(4.8 / 3.35, rel=0.02)


def test_a_large_product_takes_as_much_more_as_multiprocessors_are_fewer() -> None:
    """H20: the H100's multiprocessors, 78 of 132, at its highest clock, of a seventh of the rate."""
    took = [
        seconds(calibration, Kind.GEMM, 8192.0, 8192.0, 8192.0) for calibration in (shipped(H100), derived("h20-96gb"))
    ]
    assert took[1] / took[0] == pytest.approx(989.4 / 148, rel=0.06)


@pytest.mark.parametrize("gpu", ["a100-sxm-80gb", "mi300x-192gb", "mi325x-256gb"])
def test_a_burst_is_what_a_public_test_saw(gpu: str) -> None:
    peak = read_gpu(gpu).peak_16_bit
    assert peak is not None
    found = LargeProduct.of(derived(gpu)).burst_flops_per_s / peak.flops_per_s
    assert found == pytest.approx(public_burst_share(read_gpu(gpu)), rel=0.005)


@pytest.mark.parametrize("gpu", ["a100-sxm-80gb", "b300-sxm-288gb", "mi300x-192gb", "l40s-48gb"])
def test_another_architecture_settles_at_the_same_share_of_its_burst(gpu: str) -> None:
    assert sustained_share(derived(gpu), gpu) == pytest.approx(sustained_share(shipped(H100), H100), rel=1e-3)


@pytest.mark.parametrize("gpu", ["b200-sxm-180gb", "gb200-186gb"])
def test_what_public_tests_saw_sustained_is_sustained_under_that_limit_alone(gpu: str) -> None:
    seen, calibration = public_sustained_rate(read_gpu(gpu)), derived(gpu)
    assert seen is not None
    share = calibration.governor.parameters["sustained_share"].value
    power, product = power_model(calibration), LargeProduct.of(calibration)
    assert product.sustained_flops_per_s(power, share * seen.limit_W) == pytest.approx(seen.flops_per_s, rel=1e-3)
    tighter = derived(replace(read_gpu(gpu), power_limit_W=0.75 * seen.limit_W))
    slow = LargeProduct.of(tighter).sustained_flops_per_s(power_model(tighter), share * 0.75 * seen.limit_W)
    assert slow < 0.9 * seen.flops_per_s


def test_another_die_of_a_generation_is_another_architecture() -> None:
    """GA102 beside GA100: energies of a unit of work are not taken over as they are."""
    a40, a100 = load_calibration(None, "a40-48gb"), shipped("a100-sxm-80gb")
    assert a40.derived_from == a100.name
    assert a40.power.parameters["flop_J"].value > 1.2 * a100.power.parameters["flop_J"].value


def test_the_same_architecture_at_half_the_limit_settles_lower() -> None:
    half = replace(read_gpu(H100), power_limit_W=350.0)
    limits = [sustained_share(derived(gpu), H100) for gpu in (read_gpu(H100),)]
    held_W = 350.0 * shipped(H100).governor.parameters["sustained_share"].value
    product = LargeProduct.of(derived(half))
    low = product.sustained_flops_per_s(power_model(derived(half)), held_W) / product.burst_flops_per_s
    assert low < 0.8 * limits[0]


@pytest.mark.parametrize("missing", ["multiprocessors", "memory_bandwidth_Bps", "l2_B", "power_limit_W"])
def test_a_description_that_says_too_little_is_refused(missing: str) -> None:
    little = replace(read_gpu("b200-sxm-180gb"), **{missing: None})
    assert sheet_of(little) is None
    assert nearest(little, [read_gpu(H100)]) is None
    with pytest.raises(CalibrationError, match=rf"gpu b200-sxm-180gb: nothing can be derived .*{missing}"):
        derived(little)


@pytest.mark.parametrize(
    ("gpu", "base"),
    [
        ("h800-sxm-80gb", "h100-sxm-80gb"),
        ("h20-141gb", "h200-sxm-141gb"),
        ("a40-48gb", "a100-sxm-40gb"),
        ("v100-sxm-32gb", "a100-sxm-40gb"),
        ("l40s-48gb", "h100-sxm-80gb"),
    ],
)
def test_the_nearest_is_of_the_same_architecture_or_of_its_years(gpu: str, base: str) -> None:
    found = nearest(read_gpu(gpu), map(read_gpu, ("a100-sxm-40gb", "a100-sxm-80gb", H100, "h200-sxm-141gb")))
    assert found == read_gpu(base)


def interval_width(name: str) -> float:
    """Of the time of a step, as the logarithm of its end over its beginning."""
    plan = {"architecture": "opt-350m", "sequence_length": 1024, "global_batch": 8, "micro_batch": 8}
    step = outcome(Plan.model_validate(plan | {"cluster": {"gpu": name}}), load_calibration(None, name)).step_time_s
    assert step.low is not None
    assert step.high is not None
    assert 0 < step.low < step.value < step.high
    return float(np.log(step.high / step.low))


@pytest.mark.parametrize("name", [name for name in list_gpus() if name not in (*list_calibrations(), "cpu")])
def test_every_listed_gpu_is_predicted_on_with_an_interval_wider_than_that_of_the_measured(name: str) -> None:
    base, calibration = derived_from(read_gpu(name)), load_calibration(None, name)
    assert base is not None
    assert calibration.derived_from == base.name
    assert calibration.provenance.startswith(f"Derived: nobody measured it. Taken over from {base.name} (")
    assert {p.origin for fit in calibration.operators for p in fit.parameters.values()} == {"assumed"}
    assert interval_width(name) > interval_width(base.name)


def test_a_clock_that_nobody_measured_is_said_to_be_of_the_other_gpu() -> None:
    plan = {
        "architecture": "opt-350m",
        "sequence_length": 1024,
        "global_batch": 8,
        "micro_batch": 8,
        "clock_MHz": 345.0,
    }
    notes = outcome(
        Plan.model_validate(plan | {"cluster": {"gpu": "gh200-96gb"}}), load_calibration(None, "gh200-96gb")
    ).notes
    assert any("MHz that stand for those measured on h100-sxm-80gb; time and power" in note for note in notes)


def test_a_fingerprint_is_as_it_was_before_calibrations_could_be_derived() -> None:
    calibration = shipped(H100)
    assert fingerprint(calibration) != fingerprint(calibration.model_copy(update={"derived_from": "a100"}))
