"""What keeps a clock down, by name; descriptions that differ from the calibration's; calibrations for trying only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.core.errors import CalibrationError
from moemodel.model.device.description import rescale_for_description
from moemodel.model.hardware.gpu import Gpu, Peak, read_gpu
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results import outcome as results
from moemodel.model.results.outcome import Outcome, outcome

MakePlan = Callable[..., Plan]

# A step that draws what the GPU may.
BUSY: dict[str, Any] = {"architecture": "llama-3-8b", "layers": 8, "global_batch": 16, "sequence_length": 4096}


@pytest.fixture(scope="module")
def h100() -> Calibration:
    return shipped("h100-sxm-80gb")


def _about_the_clock(answer: Outcome) -> str:
    words = ("Heat", "power limit", "Tensor cores")
    return next(note for note in answer.notes if any(word in note for word in words))


def test_the_power_limit_holds_the_clock(plan_of: MakePlan, h100: Calibration) -> None:
    note = _about_the_clock(outcome(plan_of(**BUSY, power_cap_W=500), h100))
    assert note.startswith("Under the power limit of 500 W the GPU sustains")


def test_heat_holds_the_clock(plan_of: MakePlan, h100: Calibration) -> None:
    """At some inlet the die would pass 89 C at less than the power limit, at a clock that the GPU still has."""
    answer = outcome(plan_of(**BUSY, site={"inlet_C": 60.0}), h100)
    assert answer.temperature_C == pytest.approx(89.0, abs=1.0)
    assert answer.hottest_power_W.value < 650
    note = _about_the_clock(answer)
    assert note.startswith("Heat holds the clock back: at the 89 C at which the hardware slows the clock")


def test_heat_that_no_clock_holds(plan_of: MakePlan, h100: Calibration) -> None:
    answer = outcome(plan_of(**BUSY, site={"inlet_C": 80.0}), h100)
    assert answer.temperature_C > 90
    note = _about_the_clock(answer)
    assert note.startswith("Heat cannot be held: even at the lowest clock, 345 MHz, the die that draws most")
    assert f"settle at {answer.temperature_C:.0f} C, above the 89 C" in note


def test_a_limit_below_what_the_lowest_clock_draws(plan_of: MakePlan, h100: Calibration) -> None:
    """Every GPU of this plan is alike: the clock is the lowest there is, and the note says the GPU's power."""
    gpu = read_gpu("h100-sxm-80gb")
    answer = outcome(plan_of(**BUSY, power_cap_W=gpu.power_limit_min_W), h100)
    note = _about_the_clock(answer)
    if answer.hottest_power_W.value > 1.01 * 200:
        assert note.startswith("A power limit of 200 W cannot be held: even at the lowest clock, 345 MHz, the GPU")
        assert f"takes {answer.hottest_power_W.value:.0f} W" in note
        assert answer.clock_Hz.value == pytest.approx(345e6, rel=0.01)
    else:
        assert note.startswith("Under the power limit of 200 W the GPU sustains")


@pytest.mark.parametrize(
    ("gpus", "per_node", "words"),
    [
        (12, 8, "12 GPUs fill no whole number of nodes of 8"),
        (16, 8, None),
        (4, 8, None),
        (128, 72, "128 GPUs fill no whole number of nodes of 72"),
        (128, 64, None),
    ],
)
def test_gpus_that_fill_no_whole_number_of_nodes(
    gpus: int, per_node: int, words: str | None, plan_of: MakePlan, h100: Calibration
) -> None:
    document = {"global_batch": gpus, "cluster": {"gpus": gpus, "gpus_per_node": per_node}, "parallel": {"dp": gpus}}
    notes = outcome(plan_of(**document), h100).notes
    said = [note for note in notes if "no whole number of nodes" in note]
    assert [note.startswith(words or "") for note in said] == [True] * (words is not None)


# ---- descriptions ---------------------------------------------------------------------------------------------------


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Gpu]:
    """Makes every plan's H100 one whose description was changed."""

    def make(**changes: Any) -> Gpu:
        gpu = replace(read_gpu("h100-sxm-80gb"), **changes)
        monkeypatch.setattr("moemodel.model.plan.spec.read_gpu", lambda *_, **__: gpu)
        return gpu

    return make


@pytest.mark.parametrize("name", ["h100-sxm-80gb", "a100-sxm-80gb", "a100-sxm-40gb"])
def test_what_ships_goes_together(name: str) -> None:
    calibration = shipped(name)
    assert rescale_for_description(calibration, read_gpu(name)) == (calibration, ())


def test_more_bandwidth_makes_what_memory_binds_faster(
    plan_of: MakePlan, h100: Calibration, described: Callable[..., Gpu]
) -> None:
    plan = plan_of(**BUSY)
    before = outcome(plan, h100)
    described(memory_bandwidth_Bps=4.8e12)
    after = outcome(plan, h100)
    assert "memory_bandwidth_Bps 4.8e+12 instead of 3.35e+12 B/s" in " ".join(after.notes)
    assert after.step_time_s.value < before.step_time_s.value
    # the optimizer streams its states from memory and does nothing else
    speedup = before.phases["optimizer"].time_s / after.phases["optimizer"].time_s
    assert speedup == pytest.approx(4.8 / 3.35, rel=0.05)
    assert after.step_time_s.high is not None
    assert before.step_time_s.high is not None
    # the interval reaches to where nothing follows the new figure
    assert after.step_time_s.high >= before.step_time_s.value
    wider = after.step_time_s.high / after.step_time_s.value
    assert wider > before.step_time_s.high / before.step_time_s.value


# A figure of the description, what it is changed to, and the words of the note.
CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "peak": ({"peaks": {"bf16": Peak(flops_per_s=756e12, clock_Hz=1.83e9)}}, "peaks.bf16"),
    "multiprocessors": ({"multiprocessors": 114}, "multiprocessors 114 instead of 132"),
    "cache": ({"l2_B": 50 << 19}, "l2_B"),
    "links": ({"nvlink_Bps": 300e9}, "links_Bps 3e+11 instead of 4.5e+11"),
    "clock": ({"clock_max_Hz": 1755e6}, "clock_max_Hz 1.755e+09 instead of 1.98e+09 Hz"),
}


@pytest.mark.parametrize(("changes", "words"), CHANGES.values(), ids=CHANGES)
def test_every_figure_that_times_rest_on_is_read(
    changes: dict[str, Any], words: str, plan_of: MakePlan, h100: Calibration, described: Callable[..., Gpu]
) -> None:
    plan = plan_of(**BUSY, cluster={"gpus": 8}, parallel={"dp": 4, "tp": 2})
    before = outcome(plan, h100)
    described(**changes)
    after = outcome(plan, h100)
    assert words in " ".join(after.notes)
    assert after.step_time_s.value != before.step_time_s.value
    if "clock_max_Hz" in changes:
        assert after.clock_Hz.value <= 1755e6


def test_another_gpu_under_the_same_name_is_refused(
    plan_of: MakePlan, h100: Calibration, described: Callable[..., Gpu]
) -> None:
    described(memory_bandwidth_Bps=0.9e12)
    with pytest.raises(CalibrationError, match=r"another GPU than the description of h100-sxm-80gb: memory_bandwidth"):
        outcome(plan_of(**BUSY), h100)


# ---- trying ---------------------------------------------------------------------------------------------------------


def test_a_calibration_for_trying_says_so_first(plan_of: MakePlan, h100: Calibration) -> None:
    reason = "For trying the commands only: held-out errors reach 767 %."
    answer = results.outcome(plan_of(), h100.model_copy(update={"trial": reason}))
    assert answer.notes[0] == reason
    assert reason not in outcome(plan_of(), h100).notes


def test_a_known_fault_of_interleaved_pipelines_is_named(plan_of: MakePlan, h100: Calibration) -> None:
    def named(backend: str, chunks: int) -> bool:
        plan = plan_of(backend=backend, cluster={"gpus": 2}, parallel={"pp": 2, "virtual_stages": chunks})
        return any("several chunks a stage" in note for note in outcome(plan, h100).notes)

    assert named("torch", 2)
    assert not named("torch", 1)
    assert not named("megatron-core", 2)


def test_phases_above_the_power_limit_are_explained(plan_of: MakePlan, h100: Calibration) -> None:
    """Kernels between messages may draw more than the limit, which holds over their mean."""
    plan = plan_of(**BUSY, power_cap_W=350)
    answer = outcome(plan, h100, even_if_it_does_not_fit=True)
    above = [
        name
        for name in ("forward", "backward", "optimizer")
        if answer.phases[name].energy_J > 1.005 * 350.0 * answer.phases[name].time_s * plan.cluster.gpus
    ]
    said = [note for note in answer.notes if note.startswith("While their kernels run")]
    assert bool(above) == bool(said)
    assert all(name in said[0] for name in above)
