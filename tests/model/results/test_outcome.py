"""The answer for one plan: figures that follow from one another, intervals, notes, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from moemodel.model.architecture.hf_config import list_architectures
from moemodel.model.core.errors import CalibrationError, InfeasiblePlanError, InputError
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration, Parameter
from moemodel.model.results.carbon import grid_intensity
from moemodel.model.results.estimate import Estimate
from moemodel.model.results.outcome import outcome, outcomes
from moemodel.model.search.baseline import baseline_plan

MakePlan = Callable[..., Plan]

# OLMoE on 16 GPUs in two nodes, with everything that a run can cost.
OLMOE: dict[str, Any] = {
    "architecture": "olmoe-1b-7b",
    "sequence_length": 4096,
    "global_batch": 128,
    "micro_batch": 1,
    "cluster": {"gpus": 16},
    "parallel": {"dp": 16, "zero_stage": 1},
    "tokens": 1e12,
    "site": {"region": "FRA", "pue": 1.1, "price_per_kWh": 0.2, "gpu_hour_price": 2.0, "host_power_W": 100.0},
}


def test_an_interval_is_log_normal() -> None:
    estimate = Estimate.of(100.0, 0.1)
    assert estimate.low is not None
    assert estimate.high is not None
    assert math.log(estimate.high / 100) == pytest.approx(0.1 * 1.6449, rel=1e-4)
    assert estimate.low * estimate.high == pytest.approx(100.0**2)


def test_an_unknown_error_has_no_interval() -> None:
    assert Estimate.of(1.0, None).to_json() == {"value": 1.0, "interval": None}
    assert (Estimate.of(1.0, None) + Estimate.of(1.0, 0.1)).low is None


def test_figures_follow_from_one_another(plan_of: MakePlan, calibration: Calibration) -> None:
    answer = outcome(plan_of(**OLMOE), calibration)
    step = answer.step_time_s.value
    assert answer.tokens == 128 * 4096
    assert answer.tokens_per_s.value == pytest.approx(answer.tokens / step)
    assert answer.tokens_per_s_per_gpu.value == pytest.approx(answer.tokens / step / 16)
    assert answer.gpu_energy_J.value == pytest.approx(16 * answer.power_W.value * step)
    assert answer.gpu_energy_per_token_J.value == pytest.approx(answer.gpu_energy_J.value / answer.tokens)
    assert sum(phase.time_s for phase in answer.phases.values()) == pytest.approx(step)
    assert sum(phase.energy_J for phase in answer.phases.values()) == pytest.approx(answer.gpu_energy_J.value)
    assert sum(answer.memory_terms_B.values()) == pytest.approx(answer.memory_B.value)
    assert list(answer.memory_terms_B.values()) == sorted(answer.memory_terms_B.values(), reverse=True)
    assert list(answer.phases) == ["forward", "backward", "optimizer", "communication", "idle"]


def test_totals_of_the_run(plan_of: MakePlan, calibration: Calibration) -> None:
    answer = outcome(plan_of(**OLMOE), calibration)
    run = answer.run
    assert run is not None
    assert run.steps == math.ceil(1e12 / (128 * 4096))
    assert run.hours.value == pytest.approx(run.steps * answer.step_time_s.value / 3600)
    watts = 16 * (answer.power_W.value + 100.0)
    assert run.energy_kWh.value == pytest.approx(watts / 1000 * run.hours.value * 1.1)
    assert run.emissions_kg.value == pytest.approx(run.energy_kWh.value * grid_intensity("FRA"))
    assert run.cost is not None
    assert run.cost.value == pytest.approx(run.energy_kWh.value * 0.2 + run.hours.value * 16 * 2.0)


def test_every_energy_has_its_own_name(plan_of: MakePlan, calibration: Calibration) -> None:
    """GPUs draw what they draw; a host adds its watts for the step's seconds; the site adds its share of all that."""
    answer = outcome(plan_of(**OLMOE), calibration)
    gpus_J = 16 * answer.power_W.value * answer.step_time_s.value
    with_hosts_J = 16 * (answer.power_W.value + 100.0) * answer.step_time_s.value
    step = answer.to_json()["step"]
    assert step["gpu_energy_J"]["value"] == pytest.approx(gpus_J)
    assert step["it_energy_J"]["value"] == pytest.approx(with_hosts_J)
    assert step["meter_energy_J"]["value"] == pytest.approx(1.1 * with_hosts_J)
    assert step["energy_J"] == step["gpu_energy_J"]
    assert step["it_energy_J"]["interval"][0] < with_hosts_J < step["it_energy_J"]["interval"][1]


def test_without_prices_there_is_no_cost_and_without_tokens_no_run(plan_of: MakePlan, calibration: Calibration) -> None:
    unpriced = outcome(plan_of(**OLMOE | {"site": {}}), calibration).run
    assert unpriced is not None
    assert unpriced.cost is None
    assert outcome(plan_of(**OLMOE | {"tokens": None}), calibration).run is None


def test_intervals_contain_their_figures_and_end_at_hard_limits(plan_of: MakePlan, calibration: Calibration) -> None:
    answer = outcome(plan_of(**OLMOE, power_cap_W=550), calibration)
    for figure in (answer.step_time_s, answer.gpu_energy_J, answer.clock_Hz, answer.power_W, answer.mfu):
        assert figure is not None
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low < figure.value <= figure.high
    assert answer.power_W.high == pytest.approx(550.0, rel=3e-3)  # what averaging over stretches of a step leaves
    mostly_waiting = outcome(plan_of(sequence_length=256), calibration)  # for the host: its tensor cores idle
    assert mostly_waiting.clock_Hz.high == 1980e6


def test_power_is_less_sure_away_from_the_clocks_that_were_measured(
    plan_of: MakePlan, calibration: Calibration
) -> None:
    def width(clock_MHz: float) -> float:
        power = outcome(plan_of(clock_MHz=clock_MHz), calibration).power_W
        assert power.low is not None
        return power.value / power.low

    assert width(345) > width(600) > width(1500) == pytest.approx(width(1200))


def test_memory_has_the_interval_that_is_stated_or_a_wide_one(plan_of: MakePlan, calibration: Calibration) -> None:
    """A calibration that states no error of memory is not sure of it."""
    unknown = outcome(plan_of(), calibration).memory_B
    assert unknown.low == pytest.approx(unknown.value * math.exp(-1.6449 * 0.1), rel=1e-4)
    error = Parameter(value=0.04, unit="1", origin="measured", source="test")
    memory = calibration.memory.model_copy(update={"parameters": calibration.memory.parameters | {"log_error": error}})
    known = outcome(plan_of(), calibration.model_copy(update={"memory": memory}))
    assert known.memory_B.low == pytest.approx(known.memory_B.value * math.exp(-1.6449 * 0.04), rel=1e-4)


def test_without_times_memory_is_what_it_is_with_them(plan_of: MakePlan, calibration: Calibration) -> None:
    """A calibration that knows no operator's time answers with the same memory, FLOPs and volumes, and nothing else."""
    plan = plan_of(**OLMOE)
    known = outcome(plan, calibration, with_volumes=True)
    bare = outcome(plan, calibration.model_copy(update={"operators": []}))
    assert bare.memory_B == known.memory_B
    assert bare.memory_terms_B == known.memory_terms_B
    assert bare.fits == known.fits
    assert bare.model_flops == pytest.approx(known.model_flops)
    assert bare.to_json()["work"] == known.to_json()["work"]
    assert bare.calibration is None
    assert math.isnan(bare.step_time_s.value)
    assert math.isnan(bare.it_energy_J.value)
    assert json.loads(json.dumps(bare.to_json(), allow_nan=False))["phases"]["forward"]["time_s"] is None


def test_json_is_plain_and_complete(plan_of: MakePlan, calibration: Calibration) -> None:
    document = outcome(plan_of(**OLMOE), calibration).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["plan"] == plan_of(**OLMOE).model_dump()
    assert set(document["step"]) >= {"step_time_s", "tokens_per_s", "mfu", "clock_MHz", "power_per_gpu_W", "energy_J"}
    low, high = document["step"]["step_time_s"]["interval"]
    assert low < document["step"]["step_time_s"]["value"] < high
    assert document["run"]["emissions_kgCO2e"]["value"] > 0


def test_fewer_layers(plan_of: MakePlan, calibration: Calibration) -> None:
    whole, half = (outcome(plan_of(layers=n), calibration) for n in (24, 12))
    assert half.step_time_s.value < whole.step_time_s.value
    assert half.parameters < whole.parameters


# Changes to a plan of OPT-350M on one H100, the words of the refusal.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "too many layers": ({"layers": 25}, r"layers: found 25; opt-350m has 24 decoder layers; allowed: 1 to 24"),
    "clock above": (
        {"clock_MHz": 2500},
        r"clock_MHz: found 2500; allowed on h100-sxm-80gb: 345 to 1980 in steps of 15",
    ),
    "clock below": ({"clock_MHz": 200}, r"clock_MHz: found 200; allowed on h100-sxm-80gb: 345 to 1980"),
    "clock between steps": ({"clock_MHz": 1001}, r"clock_MHz: found 1001; .*the nearest are 990 and 1005"),
    "power cap": ({"power_cap_W": 900}, r"power_cap_W: found 900; allowed on h100-sxm-80gb: 200 to 700"),
    "unknown architecture": ({"architecture": "opt-350"}, r"architecture: found 'opt-350'; .*did you mean 'opt-350m'"),
    "unknown gpu": ({"cluster": {"gpu": "h100-sx"}}, r"gpu: found 'h100-sx'; .*did you mean 'h100-sxm'"),
    "unknown network": ({"cluster": {"internode": "rdma"}}, r"cluster.internode: found 'rdma'; allowed: .*ethernet"),
    "unknown region": ({"tokens": 1e9, "site": {"region": "Atlantis"}}, r"region: found 'Atlantis'"),
}


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED)
def test_what_a_gpu_or_a_list_does_not_have(
    changes: dict[str, Any], words: str, plan_of: MakePlan, calibration: Calibration
) -> None:
    with pytest.raises(InputError, match=words):
        outcome(plan_of(**changes), calibration)


def test_a_clock_on_a_step_is_accepted(plan_of: MakePlan, calibration: Calibration) -> None:
    """Kernels run at it, but for the cycles that tensor cores skip well below their own limit of 1600 MHz."""
    answer = outcome(plan_of(clock_MHz=1200), calibration)
    assert 0.99 * 1200e6 < answer.clock_Hz.value < 1200e6
    assert outcome(plan_of(clock_MHz=600), calibration).clock_Hz.value == pytest.approx(600e6, rel=1e-4)


def test_a_calibration_of_another_gpu(plan_of: MakePlan, calibration: Calibration) -> None:
    with pytest.raises(CalibrationError, match=r"test-h100 is of h100-sxm-80gb, but cluster.gpu is a100-sxm-80gb"):
        outcome(plan_of(cluster={"gpu": "a100"}), calibration)


class TestMemory:
    """A plan too large for its GPUs."""

    TOO_LARGE: dict[str, Any] = OLMOE | {"micro_batch": 8}

    def test_is_refused_with_its_terms_and_what_would_help(self, plan_of: MakePlan, calibration: Calibration) -> None:
        with pytest.raises(InfeasiblePlanError) as caught:
            outcome(plan_of(**self.TOO_LARGE), calibration)
        message = str(caught.value)
        assert "does not fit in memory: the fullest GPU needs" in message
        assert "h100-sxm-80gb has 85.5 GB" in message
        assert "Largest terms: activations" in message
        assert "Any one of these would make it fit: micro_batch" in message

    def test_every_change_named_makes_it_fit(self, plan_of: MakePlan, calibration: Calibration) -> None:
        smaller = plan_of(**self.TOO_LARGE | {"micro_batch": 1})
        recomputed = plan_of(**self.TOO_LARGE | {"recompute": "full"})
        assert outcome(smaller, calibration).fits
        assert outcome(recomputed, calibration).fits

    def test_is_answered_if_asked_for(self, plan_of: MakePlan, calibration: Calibration) -> None:
        answer = outcome(plan_of(**self.TOO_LARGE), calibration, even_if_it_does_not_fit=True)
        assert not answer.fits
        assert "does not fit in memory" in answer.notes[0]

    def test_where_no_single_change_helps(self, plan_of: MakePlan, calibration: Calibration) -> None:
        with pytest.raises(InfeasiblePlanError, match=r"No single change makes it fit; the most helpful: .*more GPUs"):
            outcome(plan_of(architecture="gpt3-175b", cluster={"gpus": 8}, parallel={"dp": 8}), calibration)

    def test_on_one_gpu_with_nothing_to_change(self, plan_of: MakePlan, calibration: Calibration) -> None:
        with pytest.raises(InfeasiblePlanError, match=r"No single change of the plan makes it smaller; use more GPUs"):
            outcome(plan_of(architecture="gpt3-175b", recompute="full"), calibration)


class TestNotes:
    """What the reader is told."""

    @staticmethod
    def notes(plan: Plan, calibration: Calibration) -> str:
        return "\n".join(outcome(plan, calibration).notes)

    def test_provenance_comes_last(self, plan_of: MakePlan, calibration: Calibration) -> None:
        last = outcome(plan_of(), calibration).notes[-1]
        assert last == "Calibration test-h100: Made up for tests; nothing here was measured."

    def test_balanced_routing_is_an_assumption_of_experts_alone(
        self, plan_of: MakePlan, calibration: Calibration
    ) -> None:
        assert "Routing is assumed balanced" in self.notes(plan_of(**OLMOE), calibration)
        assert "Routing" not in self.notes(plan_of(**OLMOE | {"routing": {"skew": 1.3}}), calibration)
        assert "Routing" not in self.notes(plan_of(), calibration)

    def test_links_from_a_datasheet(self, plan_of: MakePlan, calibration: Calibration) -> None:
        two_nodes = self.notes(plan_of(**OLMOE), calibration)
        assert "Links between nodes are not measured: 50 GB/s a GPU and 5 us" in two_nodes
        assert "links inside a node are not measured (assumed)" in two_nodes
        assert "Links" not in self.notes(plan_of(), calibration)

    def test_a_clock_that_was_never_measured(self, plan_of: MakePlan, calibration: Calibration) -> None:
        assert "lies outside the 1150 to 1980 MHz" in self.notes(plan_of(clock_MHz=600), calibration)
        assert "lies outside" not in self.notes(plan_of(clock_MHz=1200), calibration)

    def test_a_clock_that_the_power_limit_forbids(self, plan_of: MakePlan, calibration: Calibration) -> None:
        capped = self.notes(plan_of(micro_batch=8, power_cap_W=300, clock_MHz=1980), calibration)
        assert "Under the power limit of 300 W the GPU sustains" in capped
        assert "below the 1980 MHz that are asked for" in capped

    def test_a_backend_without_host_times(self, plan_of: MakePlan, calibration: Calibration) -> None:
        assert "no host times for the backend megatron" in self.notes(plan_of(backend="megatron"), calibration)

    def test_shapes_that_were_never_measured(self, plan_of: MakePlan, calibration: Calibration) -> None:
        narrow = [
            fit.model_copy(update={"measured": dict.fromkeys(fit.measured, (1.0, 16.0))})
            for fit in calibration.operators
        ]
        notes = self.notes(plan_of(), calibration.model_copy(update={"operators": narrow}))
        assert "of the device time is in operator shapes outside what was measured" in notes


class TestDraft:
    """The first plan that `init` writes."""

    @pytest.mark.parametrize("name", [name for name in list_architectures() if name != "deepseek-v3"])
    def test_predicts(self, name: str, calibration: Calibration) -> None:
        assert outcome(baseline_plan(name, "h100", 64, calibration), calibration).fits

    @pytest.mark.parametrize("gpus", [1, 2, 3, 6, 8, 12])
    def test_takes_any_number_of_gpus(self, gpus: int, calibration: Calibration) -> None:
        plan = baseline_plan("opt-350m", "h100", gpus, calibration)
        assert plan.cluster.gpus == gpus
        assert outcome(plan, calibration).fits

    def test_says_when_nothing_fits(self, calibration: Calibration) -> None:
        with pytest.raises(InfeasiblePlanError, match=r"deepseek-v3 on 8 x h100-sxm-80gb: none of \d+ plans .*more"):
            baseline_plan("deepseek-v3", "h100", 8, calibration)


def test_plans_that_are_predicted_together_cost_what_each_does_alone(
    plan_of: MakePlan, calibration: Calibration
) -> None:
    """In their order, whether one batch can hold them or not."""
    stages = {"stages": [1800.0, {"forward": 1500.0, "backward": 1650.0, "optimizer": None}]}
    changes: list[dict[str, Any]] = [
        {},
        {"parallel": {"dp": 8, "pp": 2}, "clock_MHz": stages},
        {"cluster": {"gpus": 8}, "parallel": {"dp": 8, "zero_stage": 3}},
        {"clock_MHz": 1500.0, "micro_batch": 2, "recompute": "full"},
        {"routing": {"skew": 2.0}},
        {"parallel": {"dp": 16, "ep": 8}, "power_cap_W": 500.0},
    ]
    plans = [plan_of(**OLMOE | change) for change in changes]
    for plan, answer in zip(plans, outcomes(plans, calibration), strict=True):
        alone = outcome(plan, calibration)
        assert answer.notes == alone.notes
        assert _numbers(answer.to_json()) == pytest.approx(_numbers(alone.to_json()), rel=1e-9)


def _numbers(document: Any) -> list[float]:
    """Every number of a document, in its order."""
    if isinstance(document, dict):
        return [number for value in document.values() for number in _numbers(value)]
    if isinstance(document, list):
        return [number for value in document for number in _numbers(value)]
    return [document] if isinstance(document, float | int) else []
