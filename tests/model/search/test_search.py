"""The search against the same plans taken one at a time, and what must hold of any front."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moemodel.model.core.documents import parse_yaml
from moemodel.model.core.errors import CalibrationError, InfeasiblePlanError, InputError
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.hardware.gpu import read_gpu
from moemodel.model.plan.dispatch import OF_DISPATCH
from moemodel.model.plan.spec import Plan, plan_text
from moemodel.model.records.calibration import Calibration, fingerprint
from moemodel.model.results.outcome import Outcome, outcome
from moemodel.model.search import search as search_module
from moemodel.model.search.candidates import candidates, clocks_MHz
from moemodel.model.search.document import ClockRange, Search, read_search
from moemodel.model.search.pareto import pareto, picks, thin, to_digits
from moemodel.model.search.problem import problem_of, summary
from moemodel.model.search.result import Entry, read_search_result
from moemodel.model.search.search import predicted_plans, search
from moemodel.model.search.state import SearchState

ROOT = Path(__file__).parents[3]
HOSTS_W = 200.0


def make(**changes: Any) -> Search:
    """OPT-350M on 8 GPUs, a hundred combinations; nested keys are updated, others replaced."""
    document: dict[str, Any] = {
        "name": "test",
        "architecture": "opt-350m",
        "sequence_length": 2048,
        "global_batch": 64,
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 8},
        "search": {
            "tp": [1, 2],
            "pp": [1, 2],
            "cp": 1,
            "zero_stage": [1, 3],
            "sequence_parallel": False,
            "virtual_stages": 1,
            "micro_batch": [1, 4],
            "recompute": ["none", "full"],
        },
        "clocks_MHz": [None, 1200, 1605],
        "site": {"host_power_W": HOSTS_W, "price_per_kWh": 0.1, "gpu_hour_price": 2.0},
        "tokens": 1e10,
    }
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(document.get(key), dict)
        document[key] = document[key] | value if nested else value
    return Search.model_validate(document)


def seen(document: Search, calibration: Calibration) -> tuple[SearchState, dict[int, dict[str, float]]]:
    """Everything that a search predicts: its state, and what each plan needs, by place among the candidates."""
    problem = problem_of(document, calibration)
    legal = candidates(problem, calibration)
    state, needs = SearchState(problem, legal), dict[int, dict[str, float]]()
    for predicted in predicted_plans(problem, state.keep_fitting(legal)):
        state.add(predicted)
        for row, index in enumerate(predicted.index_P.tolist()):
            needs[index] = {name: float(values[row]) for name, values in predicted.values.items()}
    return state, needs


def energy_of(answer: Outcome) -> float:
    """Of GPUs and hosts, as a search counts it."""
    hosts_W = answer.plan.cluster.gpus * answer.plan.site.host_power_W
    return answer.gpu_energy_J.value + answer.step_time_s.value * hosts_W


# ---- the search against single plans --------------------------------------------------------------------------------


def test_each_plan_costs_what_it_costs_alone_and_the_front_is_theirs(calibration: Calibration) -> None:
    state, needs = seen(make(), calibration)
    assert len(needs) >= 60
    costs = []
    for index, found in needs.items():
        alone = outcome(state.plan(index), calibration)
        assert alone.run is not None
        assert found["step_time_s"] == pytest.approx(alone.step_time_s.value, rel=1e-9)
        assert found["it_energy_J"] == pytest.approx(energy_of(alone), rel=1e-9)
        assert found["power_per_gpu_W"] == pytest.approx(alone.hottest_power_W.value, rel=1e-9)
        assert found["cluster_power_W"] == pytest.approx(8 * (alone.power_W.value + HOSTS_W), rel=1e-9)
        assert found["run_hours"] == pytest.approx(alone.run.hours.value, rel=1e-9)
        assert found["gpu_energy_J"] == pytest.approx(alone.gpu_energy_J.value, rel=1e-9)
        assert found["run_days"] == pytest.approx(alone.run.hours.value / 24, rel=1e-9)
        assert found["run_kWh"] == pytest.approx(alone.run.energy_kWh.value, rel=1e-9)
        assert found["run_kgCO2e"] == pytest.approx(alone.run.emissions_kg.value, rel=1e-9)
        assert alone.run.cost is not None
        assert found["run_cost"] == pytest.approx(alone.run.cost.value, rel=1e-9)
        assert found["memory_B"] == pytest.approx(alone.memory_B.value, rel=1e-9)
        assert found["tokens_per_s_per_gpu"] == pytest.approx(alone.tokens_per_s_per_gpu.value, rel=1e-9)
        costs.append((alone.step_time_s.value, energy_of(alone)))
    best = {cost for cost in costs if not any(_beats(other, cost) for other in costs)}
    front = [(entry.step_time_s.value, it_energy(entry)) for entry in search(make(keep=1000), calibration).front]
    assert front == [pytest.approx(cost, rel=1e-9) for cost in sorted(_apart(best))]


def it_energy(entry: Entry) -> float:
    assert entry.it_energy_J is not None
    return entry.it_energy_J.value


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Better in one and no worse in the other, to nine digits."""
    no_worse = all(a <= b * (1 + 1e-9) for a, b in zip(one, other, strict=True))
    return no_worse and any(a < b * (1 - 1e-9) for a, b in zip(one, other, strict=True))


def _apart(costs: set[tuple[float, float]]) -> list[tuple[float, float]]:
    """One of those that are the same to nine digits."""
    return list({tuple(float(f"{value:.9g}") for value in cost): cost for cost in costs}.values())


# Spaces of a hundred to a thousand combinations, most of them no plan, over all that can be chosen.
SPACES: dict[str, dict[str, Any]] = {
    "dense": {
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": [4, 6, 8]},
        "schedule": ["1f1b", "gpipe"],
        "search": {
            "dp": [1, 2, 3, 4],
            "tp": [1, 2, 3],
            "pp": [1, 2],
            "ep": [1, 2],
            "cp": [1, 2],
            "zero_stage": [1, 2],
            "sequence_parallel": [False, True],
            "virtual_stages": [1, 3],
            "micro_batch": [1, 3],
            "recompute": "none",
        },
        "clocks_MHz": None,
    },
    "derived degrees": {
        "architecture": "olmoe-1b-7b",
        "layers": 6,
        "backend": "megatron-core",
        "schedule": ["gpipe", "zero-bubble"],
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": [8, 12]},
        "search": {
            "tp": [1, 4],
            "pp": [1, 2, 4],
            "ep": [1, 2, 4, 8],
            "cp": [1, 3],
            "zero_stage": [0, 3],
            "sequence_parallel": False,
            "virtual_stages": [1, 2, 4],
            "micro_batch": [2, 16],
            "recompute": ["none", "full"],
        },
        "clocks_MHz": None,
    },
    "cut experts": {
        "architecture": "olmoe-1b-7b",
        "layers": 6,
        "backend": "megatron-core",
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": [8, 16]},
        "search": {
            "tp": [1, 2],
            "pp": [1, 2],
            "ep": [1, 4, 8],
            "etp": [None, 1, 2, 4, 3],
            "dispatch": ["alltoall", "deepep", "allgather"],
            "node_limit": [None, 1],
            "dispatch_overlap": [None, True],
            "cp": 1,
            "zero_stage": 1,
            "sequence_parallel": False,
            "virtual_stages": 1,
            "micro_batch": [1, 2],
            "recompute": "none",
        },
        "clocks_MHz": None,
    },
    "memory and clocks": {
        "architecture": "llama-3-8b",
        "sequence_length": 8192,
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 8},
        "search": {
            "tp": [1, 2, 8, 16],
            "pp": [1, 4],
            "ep": 1,
            "cp": [1, 2],
            "zero_stage": [0, 1, 3],
            "sequence_parallel": None,
            "virtual_stages": 1,
            "micro_batch": [1, 2],
            "recompute": ["none", "selective", "full"],
        },
        "clocks_MHz": [None, 1200, 1201, 5000],
    },
    "encoder and decoder": {
        "architecture": "switch-base-128",
        "sequence_length": 512,
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 8},
        "search": {
            "tp": [1, 2, 8],
            "pp": [1, 2, 8],
            "ep": [1, 4, 8],
            "cp": [1, 8],
            "zero_stage": [0, 2],
            "sequence_parallel": None,
            "virtual_stages": [1, 2],
            "micro_batch": [1, 64],
            "recompute": "none",
        },
        "clocks_MHz": None,
    },
}


def _combinations(document: Search) -> list[dict[str, Any]]:
    """Every combination of a search whose choices are all given but for dp; one at a time, as a user would."""
    given = document.search.model_dump()
    given["sequence_parallel"] = given["sequence_parallel"] or (False, True)
    given |= {name: given[name] or (None,) for name in ("dp", "etp", *OF_DISPATCH)}
    given["replicas"] = given["replicas"] or (1,)
    gpu = read_gpu(document.cluster.gpu)
    given |= {"gpus": document.cluster.gpus, "schedule": document.schedule, "clock_MHz": document.clocks_MHz or (None,)}
    assert gpu.clock_min_Hz is not None
    return [dict(zip(given, values, strict=True)) for values in product(*given.values())]


def _accepted(document: Search, choices: dict[str, Any], calibration: Calibration) -> bool:
    """Whether a plan of these choices is one that `moemodel predict` answers for."""
    if choices["dp"] is None:
        choices = choices | {"dp": max(1, choices["gpus"] // (choices["tp"] * choices["pp"] * choices["cp"]))}
    parallel = {name: choices[name] for name in choices if name in _DEGREES}
    others = {name: value for name, value in choices.items() if name not in (*_DEGREES, *OF_DISPATCH, "gpus")}
    said = {
        "architecture": document.architecture,
        "layers": document.layers,
        "backend": document.backend,
        "sequence_length": document.sequence_length,
        "global_batch": document.global_batch,
        "cluster": {"gpu": document.cluster.gpu, "gpus": choices["gpus"]},
        "parallel": parallel,
        "routing": {name: choices[name] for name in OF_DISPATCH if choices[name] is not None},
    }
    try:
        answer = outcome(Plan.model_validate(said | others), calibration, even_if_it_does_not_fit=True)  # of no advice
    except (InputError, InfeasiblePlanError):
        return False
    return answer.fit_probability > 0.5


_DEGREES = ("dp", "tp", "pp", "ep", "etp", "cp", "replicas", "zero_stage", "sequence_parallel", "virtual_stages")


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_a_plan_is_refused_if_and_only_if_predict_refuses_it(space: dict[str, Any], calibration: Calibration) -> None:
    _agrees(make(**space), calibration)


@pytest.mark.parametrize("width", [4104, 4098])
def test_each_size_that_tp_has_to_divide_counts(width: int, tmp_path: Path, calibration: Calibration) -> None:
    """12 heads, 4 for keys: of the wider model tp 8 is refused for its heads and 6 for its keys, of the other 4 for its
    width. With sequence_parallel, 2046 tokens refuse tp 4 in both.
    """
    config = json.loads((ROOT / "model" / "presets" / "architectures" / "llama-3-8b.json").read_text(encoding="utf-8"))
    config |= {"hidden_size": 768, "num_attention_heads": 12, "num_key_value_heads": 4, "intermediate_size": width}
    config |= {"num_hidden_layers": 2, "head_dim": 64}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    narrow = {
        "architecture": str(tmp_path / "config.json"),
        "sequence_length": 2046,
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": [6, 8]},
        "search": {"tp": [1, 2, 3, 4, 6, 8], "pp": [1, 2], "ep": 1, "sequence_parallel": [False, True]},
        "clocks_MHz": None,
    }
    _agrees(make(**narrow, global_batch=48), calibration)


def _agrees(document: Search, calibration: Calibration) -> None:
    """Search and single plans refuse the same, but for what is one plan: without a pipeline, one schedule counts, and
    one ZeRO stage where no rank has others to share states with, and etp as the framework has it is null. A search does
    not look at pipelines whose ends count as layers, of which there are more chunks than layers.
    """
    state, needs = seen(document, calibration)
    combinations = _combinations(document)
    assert state.legal.total == len(combinations) > 100
    sample = np.random.default_rng(0).permutation(len(combinations))[:125].tolist()
    kept = {_key(state.plan(index)) for index in needs}
    assert kept
    assert sum(refusal.plans for refusal in state.refusals()) == len(combinations) - len(needs)
    for combination in (combinations[row] for row in sample):
        same = combination["pp"] == 1 and combination["schedule"] != document.schedule[0]
        spread = combination["ep"] > 1 or (combination["etp"] or 1) > 1
        listed = ((name, getattr(document.search, name)) for name in OF_DISPATCH)
        same |= not spread and any(values and combination[name] != values[0] for name, values in listed)
        replicas = _key_of(combination)[0] * combination["cp"]
        cuts = framework_of(document.backend).shards_experts
        replicas *= 1 if cuts and document.search.etp is None else combination["tp"]
        same |= None in (document.search.etp or ()) and combination["etp"] == (combination["tp"] if cuts else 1)
        same |= replicas == 1 and combination["zero_stage"] != (document.search.zero_stage or (0,))[0]
        same |= combination["pp"] * combination["virtual_stages"] > len(state.problem.architecture.layers)
        accepted = not same and _accepted(document, combination, calibration)
        assert accepted == (_key_of(combination) in kept), combination


def _key(plan: Plan) -> tuple[Any, ...]:
    return _key_of(
        plan.parallel.model_dump()
        | {"gpus": plan.cluster.gpus, "micro_batch": plan.micro_batch, "recompute": plan.recompute}
        | {"schedule": plan.schedule, "clock_MHz": plan.clock_MHz}
        | {name: getattr(plan.routing, name) for name in OF_DISPATCH}
    )


def _key_of(choices: dict[str, Any]) -> tuple[Any, ...]:
    dp = choices["dp"] or choices["gpus"] // (choices["tp"] * choices["pp"] * choices["cp"])
    names = (*_DEGREES[1:], "gpus", "micro_batch", "recompute", "schedule", "clock_MHz")
    return (dp, choices["dispatch"] or "alltoall", *(choices[name] for name in (*names, *OF_DISPATCH[1:])))


@pytest.mark.parametrize(
    ("architecture", "gpus", "batch"),
    [("opt-350m", 12, 48), ("olmoe-1b-7b", 16, 64), ("qwen3-30b-a3b", 64, 128), ("mlp-moe-small", 4, 16)],
)
def test_left_out_means_everything_legal(architecture: str, gpus: int, batch: int, calibration: Calibration) -> None:
    """What is left out finds every legal plan that lists of all small numbers find."""
    fixed = {
        "architecture": architecture,
        "global_batch": batch,
        "sequence_length": 128,
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": gpus},
        "clocks_MHz": None,
    }
    numbers = list(range(1, 9))
    every = dict.fromkeys(("tp", "cp", "virtual_stages"), numbers) | {
        "pp": list(range(1, gpus + 1)),
        "ep": list(range(1, gpus + 1)),
        "zero_stage": 0,
        "sequence_parallel": [False, True],
        "micro_batch": numbers,
        "recompute": "none",
    }
    free = dict.fromkeys(("tp", "pp", "cp", "ep", "virtual_stages", "sequence_parallel"))
    found = []
    for choices in (every, every | free):
        document = make(**fixed, search=choices)
        problem = problem_of(document, calibration)
        legal = candidates(problem, calibration)
        found.append(set(zip(*(legal.columns[name].tolist() for name in sorted(legal.columns)), strict=True)))
    assert found[0] == found[1]
    assert found[0]


# ---- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("step_time_s", "gpu_energy_J", "it_energy_J", "power_per_gpu_W", "cluster_power_W"),
        *("run_hours", "run_days", "run_kWh", "run_kgCO2e", "run_cost"),
    ],
)
def test_limits_keep_what_is_within_them(name: str, calibration: Calibration) -> None:
    _, needs = seen(make(), calibration)
    values = np.array([found[name] for found in needs.values()])
    limit = float(np.median(values))
    state, _ = seen(make(limits={name: limit}), calibration)
    assert state.feasible == int((values <= limit).sum())
    over = {refusal.key: refusal.plans for refusal in state.refusals()}
    assert over[name] == int((values > limit).sum())
    for index in state.index.tolist():
        assert needs[index][name] <= limit


def test_a_share_of_memory(calibration: Calibration) -> None:
    result = search(make(limits={"memory_share": 0.06}), calibration)
    everything = search(make(), calibration)
    assert result.counts.feasible < everything.counts.feasible
    available = read_gpu("h100-sxm-80gb").memory_B
    assert available is not None
    assert all(entry.memory_B.value <= 0.06 * available for entry in result.front)
    assert any(refusal.reason == "memory_share" for refusal in result.counts.refused)


def small_gpu(tmp_path: Path, memory_B: float) -> dict[str, Any]:
    """A cluster of GPUs that differ from an H100 in their memory alone."""
    preset = json.loads((ROOT / "model/presets/gpus/h100-sxm-80gb.json").read_text())
    path = tmp_path / "gpu.json"
    preset["memory_B"]["value"] = int(memory_B)
    path.write_text(json.dumps(preset))
    return {"gpu": str(path), "gpus": 8}


def peaks_GB(calibration: Calibration) -> list[float]:
    """Peaks of all plans, and so memories of which some plans fit well, some hardly."""
    _, needs = seen(make(), calibration)
    return sorted({round(found["memory_B"] / 1e9, 3) for found in needs.values()})


@pytest.mark.parametrize("risk", [0.01, 0.5, 0.9, 0.97, 0.999999])
def test_a_plan_is_kept_or_refused_whatever_the_risk(risk: float, tmp_path: Path, calibration: Calibration) -> None:
    """Above a risk of 0.95 a plan that does not fit, by its verdict, is refused once, and not kept as well."""
    peak_GB = peaks_GB(calibration)
    cluster = small_gpu(tmp_path, peak_GB[len(peak_GB) // 2] * 0.83e9)  # so that it does not fit, with 0.96 or so
    result = search(make(cluster=cluster, limits={"memory_risk": risk}, keep=1000), calibration)
    counts = result.counts
    assert counts.combinations == counts.feasible + sum(refusal.plans for refusal in counts.refused)
    assert any(refusal.reason.startswith("memory_") for refusal in counts.refused)
    for entry in (*result.front, *result.next_best, *result.references):
        assert entry.fit_probability > max(1 - risk, 0.05 - 1e-9)
        assert entry.memory_verdict != "does not fit"


def test_more_risk_keeps_more_plans_until_they_do_not_fit_at_all(tmp_path: Path, calibration: Calibration) -> None:
    peak_GB = peaks_GB(calibration)
    cluster = small_gpu(tmp_path, peak_GB[len(peak_GB) // 2] * 0.83e9)

    def feasible(risk: float) -> int:
        return search(make(cluster=cluster, limits={"memory_risk": risk}), calibration).counts.feasible

    found = [feasible(risk) for risk in (0.001, 0.5, 0.95, 0.999999)]
    assert found == sorted(found)
    assert found[0] < found[1]
    assert found[2] == found[3]


def test_a_reference_keeps_the_risk_of_its_search(tmp_path: Path, calibration: Calibration) -> None:
    """The first plan that would be tried fits with little more than one half; a careful search passes it over."""
    (first,) = search(make(), calibration).references
    cluster = small_gpu(tmp_path, first.memory_B.value * 1.01)
    (daring,) = search(make(cluster=cluster), calibration).references
    careful = search(make(cluster=cluster, limits={"memory_risk": 0.01}), calibration).references
    assert 0.5 < daring.fit_probability < 0.99
    assert careful
    assert all(entry.fit_probability > 0.99 for entry in careful)


def test_what_is_refused_and_what_is_not_add_up(calibration: Calibration) -> None:
    limits = {"step_time_s": 0.9, "power_per_gpu_W": 600.0, "memory_share": 0.5}
    counts = search(make(limits=limits, clocks_MHz=[None, 1200, 1201]), calibration).counts
    assert counts.combinations == counts.feasible + sum(refusal.plans for refusal in counts.refused)
    assert all(refusal.plans > 0 for refusal in counts.refused)
    assert max(Counter(refusal.reason for refusal in counts.refused).values()) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"limits": {"step_time_s": 1e-3}}, ("limits.step_time_s 0.001", "nearest miss: dp 8", "(limit 0.001)")),
        ({"search": {"tp": 3}}, ("tp does not divide the attention heads (16)",)),
        ({"search": {"micro_batch": 7}}, ("micro_batch x dp does not divide global_batch (64)",)),
        ({"clocks_MHz": 5000}, ("clocks_MHz 5000: h100-sxm-80gb has 345 to 1980 in steps of 15",)),
        (
            {"architecture": "llama-3-70b"},
            ("does not fit in memory (largest term", "GB of 85.5 GB; the largest term is"),
        ),
        ({"limits": {"memory_share": 0.01}}, ("limits.memory_share 0.01", "GB of 0.9 GB")),
    ],
)
def test_where_nothing_is_feasible_the_reasons_are_named(
    changes: dict[str, Any], words: tuple[str, ...], calibration: Calibration
) -> None:
    with pytest.raises(InfeasiblePlanError) as caught:
        search(make(**changes), calibration)
    assert str(caught.value).startswith("no plan is feasible. Of ")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"architecture": "opt-1"}, InputError, "opt-1"),
        ({"layers": 99}, InputError, "layers: found 99"),
        ({"sequence_length": 4096}, InfeasiblePlanError, "2048 learned positions"),
        ({"power_cap_W": 5}, InputError, "power_cap_W: found 5"),
        ({"site": {"region": "atlantis"}}, InputError, "site.region"),
        ({"cluster": {"gpu": "a100"}}, CalibrationError, "test-h100 is of h100-sxm-80gb"),
    ],
)
def test_what_no_choice_could_mend(
    changes: dict[str, Any], error: type[Exception], message: str, calibration: Calibration
) -> None:
    with pytest.raises(error, match=message):
        search(make(**changes), calibration)


def blind(calibration: Calibration) -> Calibration:
    """Of a device whose power nobody can read."""
    return calibration.model_copy(update={"power": calibration.power.model_copy(update={"points": 0})})


@pytest.mark.parametrize(
    ("objectives", "key"),
    [
        (None, "step_time_s"),
        ("memory_B", "memory_B"),
        (["tokens_per_s_per_gpu", "memory_B"], "tokens_per_s_per_gpu"),
        (["run_days"], "run_days"),
    ],
)
def test_without_power_what_is_known_can_be_searched_for(objectives: Any, key: str, calibration: Calibration) -> None:
    result = search(make(objectives=objectives), blind(calibration))
    with_power = search(make(objectives=objectives or "step_time_s"), calibration)
    assert result.objectives[0] == key
    assert [entry.plan for entry in result.front] == [entry.plan for entry in with_power.front]
    for entry in (*result.front, *result.next_best, *result.references):
        assert entry.step_time_s.value > 0
        assert (entry.it_energy_J, entry.gpu_energy_J, entry.power_per_gpu_W) == (None, None, None)
        assert entry.run is not None
        assert (entry.run.energy_kWh, entry.run.emissions_kgCO2e, entry.run.cost) == (None, None, None)
    assert any("Power was not measured" in note for note in result.notes)
    assert any("time does not tell" in note for note in result.notes)
    assert '"value": null' not in result.to_json()
    assert "NaN" not in result.to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objectives": ["step_time_s", "it_energy_J"]},
            "objectives: it_energy_J: calibration test-h100 has no measured",
        ),
        ({"objectives": "energy_J"}, "objectives: it_energy_J: .*known are step_time_s, memory_B"),
        ({"objectives": "run_cost"}, "objectives: run_cost"),  # a part of it is for electricity
        ({"limits": {"power_per_gpu_W": 600}}, "limits.power_per_gpu_W: calibration"),
        ({"limits": {"run_kgCO2e": 600, "step_time_s": 1}}, "^limits.run_kgCO2e: calibration"),
    ],
)
def test_without_power_what_rests_on_it_is_refused(
    changes: dict[str, Any], message: str, calibration: Calibration
) -> None:
    with pytest.raises(CalibrationError, match=message):
        search(make(**changes), blind(calibration))


def test_without_power_gpu_hours_have_a_cost(calibration: Calibration) -> None:
    site = {"price_per_kWh": None, "gpu_hour_price": 2.0}
    result = search(make(objectives="run_cost", site=site), blind(calibration))
    run = result.front[0].run
    assert run is not None
    assert run.cost is not None
    assert run.cost.value == pytest.approx(run.hours.value * 8 * 2.0)


def test_too_many_plans_are_refused_before_memory_runs_out(
    calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moemodel.model.search.candidates._MOST_ROWS", 20)
    with pytest.raises(InputError, match="search: more than 20 plans at"):
        search(make(), calibration)


# ---- clocks ---------------------------------------------------------------------------------------------------------


def test_clocks_that_are_asked_for(calibration: Calibration) -> None:
    h100, cpu = read_gpu("h100-sxm-80gb"), read_gpu("cpu")
    ranged = make(clocks_MHz={"from": 1200, "to": 1500, "step": 100})
    assert clocks_MHz(ranged, h100, calibration) == (1200, 1305, 1395, 1500)  # steps of 15 from 345
    assert clocks_MHz(make(clocks_MHz={"from": 1980, "to": 1980, "step": 1}), h100, calibration) == (1980,)
    assert clocks_MHz(make(clocks_MHz=1201), h100, calibration) == (1201,)
    assert clocks_MHz(make(clocks_MHz=None), h100, calibration) == (None,)
    governor, *others = clocks_MHz(make(clocks_MHz="measured"), h100, calibration)
    assert governor is None
    assert len(others) == 10
    low_Hz, high_Hz = calibration.clock_measured_Hz
    assert all(clock is not None and low_Hz - 15e6 <= clock * 1e6 <= high_Hz + 15e6 for clock in others)
    assert clocks_MHz(make(clocks_MHz="measured"), cpu, calibration) == (None,)


def test_a_range_is_read_by_its_names_in_the_file() -> None:
    clocks = make(clocks_MHz={"from": 1200, "to": 1500, "step": 100}).clocks_MHz
    assert isinstance(clocks, ClockRange)
    assert (clocks.lowest, clocks.highest) == (1200, 1500)


# ---- the answer -----------------------------------------------------------------------------------------------------


def test_the_same_search_gives_the_same_bytes(calibration: Calibration, monkeypatch: pytest.MonkeyPatch) -> None:
    once = search(make(), calibration).to_json()
    assert search(make(), calibration).to_json() == once
    monkeypatch.setattr(search_module, "_BATCH", 7)  # nor does it matter how plans are batched
    assert search(make(), calibration).to_json() == once


def test_what_is_stored_reads_back(calibration: Calibration, tmp_path: Path) -> None:
    result = search(make(clocks_MHz={"from": 1200, "to": 1500, "step": 100}, name="größer"), calibration)
    path = tmp_path / "moemodel-search.json"
    path.write_text(result.to_json(), encoding="utf-8")
    assert read_search_result(path) == result
    assert result.calibration.sha256 == fingerprint(calibration)
    for entry in result.front:
        answer = outcome(entry.plan, calibration)
        assert answer.step_time_s.value == entry.step_time_s.value
        assert entry.plan.name == f"größer-{entry.number:02d}"
        assert parse_yaml(plan_text(entry.plan), Plan, "again") == entry.plan


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", ":1: not JSON"), ("{}", "'schema_version' is missing"), ('{"schema_version": 9}', "this moemodel reads 2")],
)
def test_what_is_no_result(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_search_result(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("memory_verdict", None, "memory_verdict"),
        ("fit_probability", None, "fit_probability"),
        ("memory_verdict", "fits well", "memory_verdict: found 'fits well'"),
        ("fit_probability", 1.5, "fit_probability: found 1.5"),
    ],
)
def test_a_stored_verdict_is_not_made_up(
    key: str, value: object, message: str, calibration: Calibration, tmp_path: Path
) -> None:
    """One that is missing does not read as: fits, surely."""
    document = json.loads(search(make(), calibration).to_json())
    del document["front"][0][key]
    document["front"][0] |= {} if value is None else {key: value}
    path = tmp_path / "moemodel-search.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=message):
        read_search_result(path)


def test_picks_and_reference(calibration: Calibration) -> None:
    result = search(make(within_of_fastest=0.1), calibration)
    times = [entry.step_time_s.value for entry in result.front]
    energies = [it_energy(entry) for entry in result.front]
    assert times == sorted(times)
    assert energies == sorted(energies, reverse=True)
    assert result.picks["fastest"] == 1
    assert result.picks["least_energy"] == len(result.front)
    within = result.picks["least_energy_within"] - 1
    assert times[within] <= 1.1 * times[0]
    assert within + 1 == len(times) or times[within + 1] > 1.1 * times[0]
    (reference,) = result.references
    assert reference.plan.global_batch == 64
    assert reference.plan.clock_MHz is None
    for entry in result.front:
        assert entry.time_vs_reference == pytest.approx(entry.step_time_s.value / reference.step_time_s.value - 1)
        assert entry.it_energy_vs_reference == pytest.approx(it_energy(entry) / it_energy(reference) - 1)


OBJECTIVES = [
    *("step_time_s", "it_energy_J", "gpu_energy_J", "memory_B", "tokens_per_s_per_gpu", "power_per_gpu_W"),
    *("cluster_power_W", "run_hours", "run_days", "run_kWh", "run_kgCO2e", "run_cost"),
]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_alone_finds_its_best(name: str, calibration: Calibration) -> None:
    state, needs = seen(make(objectives=name), calibration)
    values = {index: found[name] for index, found in needs.items()}
    best = max(values.values()) if name == "tokens_per_s_per_gpu" else min(values.values())
    result = search(make(objectives=name), calibration)
    assert [len(result.front), set(result.picks.values())] == [1, {1}]
    assert values[int(state.index[0])] == pytest.approx(best, rel=1e-9)
    assert result.front[0].plan.model_copy(update={"name": "x"}) == state.plan(int(state.index[0]), "x")
    ranked = [entry.step_time_s.value for entry in (*result.front, *result.next_best)]
    if name == "step_time_s":
        assert ranked == sorted(ranked)
        assert len(ranked) > 10  # a search for one thing is a ranking


def test_two_other_objectives_have_a_front(calibration: Calibration) -> None:
    document = make(objectives=["run_cost", "memory_B"], cluster={"gpu": "h100-sxm-80gb", "gpus": [4, 8]})
    result = search(document, calibration)
    costs = [entry.run.cost.value for entry in result.front if entry.run and entry.run.cost]
    assert len(costs) > 1
    assert costs == sorted(costs)
    assert sorted((entry.memory_B.value for entry in result.front), reverse=True) == [
        entry.memory_B.value for entry in result.front
    ]
    assert set(result.picks) == {"least_cost", "least_memory", "least_memory_within", "knee"}


LIMITS: list[dict[str, float]] = [
    {},
    {"power_per_gpu_W": 500.0},
    {"memory_share": 0.15},
    {"step_time_s": 0.85, "power_per_gpu_W": 650.0},
    {"run_cost": 260.0},
]


@pytest.mark.parametrize("limits", LIMITS)
def test_a_reference_keeps_the_limits_on_the_same_gpus(limits: dict[str, float], calibration: Calibration) -> None:
    document = make(limits=limits, cluster={"gpu": "h100-sxm-80gb", "gpus": [4, 8]}, keep=100)
    result = search(document, calibration)
    assert result.references
    for entry in (*result.front, *result.references):
        answer = outcome(entry.plan, calibration)
        assert answer.run is not None
        assert answer.run.cost is not None
        assert answer.hottest_power_W.value <= limits.get("power_per_gpu_W", 700)
        assert answer.memory_B.value <= limits.get("memory_share", 1) * 80e9 * 1.1  # of 85.5 GB
        assert answer.step_time_s.value <= limits.get("step_time_s", 1e9)
        assert answer.run.cost.value <= limits.get("run_cost", 1e9)
    for entry in result.front:
        reference = result.reference(entry.plan.cluster.gpus)
        if reference is None:
            assert entry.time_vs_reference is None
        else:
            gain = entry.step_time_s.value / reference.step_time_s.value - 1
            assert entry.time_vs_reference == pytest.approx(gain)
    missing = {4, 8} - {entry.plan.cluster.gpus for entry in result.references}
    assert any("There is no reference" in note for note in result.notes) == bool(missing)


def test_a_reference_is_one_of_the_searched_plans_where_it_can_be(calibration: Calibration) -> None:
    search_for = {"tp": 2, "micro_batch": 1, "zero_stage": 3}
    (inside,) = search(make(search=search_for), calibration).references
    assert inside.plan.parallel.tp == 2
    assert inside.outside == ()
    (outside,) = search(make(search=search_for | {"micro_batch": 8}), calibration).references
    assert outside.outside == ("micro_batch 4",) or "micro_batch" in " ".join(outside.outside)


def test_without_a_first_plan_there_is_no_reference(calibration: Calibration) -> None:
    changes: dict[str, Any] = {"cluster": {"gpus": 3}, "search": {"pp": 3, "tp": 1, "micro_batch": 1}}
    assert search(make(global_batch=3, **changes), calibration).references  # dp 3 divides a batch of 3
    result = search(make(global_batch=4, **changes), calibration)
    assert result.references == ()
    assert any("no reference on 3 GPUs" in note for note in result.notes)
    assert result.front[0].time_vs_reference is None


def test_what_is_alike_is_so_on_both_sides(calibration: Calibration) -> None:
    result = search(make(keep=100), calibration)
    entries = (*result.front, *result.next_best)
    alike = {entry.number: set(entry.not_distinguishable_from) for entry in entries}
    assert all(one not in others for one, others in alike.items())
    assert all(one in alike[other] for one, others in alike.items() for other in others)
    assert any(alike.values())
    assert not all(len(others) == len(entries) - 1 for others in alike.values())


def test_what_is_said_of_picks_alone_names_them(calibration: Calibration) -> None:
    result = search(make(), calibration)
    picked = {number: result.front[number - 1] for number in result.picks.values()}
    common = set.intersection(*(set(entry.notes) for entry in (*result.front, *result.next_best)))
    mine = [note for note in result.notes if re.match(r"Plans? [0-9, ]+: ", note)]
    assert mine
    for note in mine:
        numbers, _, text = note.removeprefix("Plans ").removeprefix("Plan ").partition(": ")
        assert text not in common
        assert {int(number) for number in numbers.split(", ")} == {
            n for n, entry in picked.items() if text in entry.notes
        }


def test_a_region_that_is_none_is_refused_without_tokens_too(calibration: Calibration) -> None:
    with pytest.raises(InputError, match=r"site\.region"):
        search(make(site={"region": "atlantis"}, tokens=None), calibration)


def test_more_predictions_than_anybody_waits_for_are_refused(
    calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "_MOST_PREDICTIONS", 50)
    with pytest.raises(InputError, match="plans fit in memory, at 3 clocks each: more than 50 predictions; give fewer"):
        search(make(), calibration)


def test_how_far_a_search_is(calibration: Calibration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "_BATCH", 30)
    told: list[tuple[str, int, int]] = []
    result = search(make(), calibration, lambda *part: told.append(part))
    assert list(dict.fromkeys(part for part, _, _ in told)) == ["memory", "prediction", "front"]
    predictions = [(done, total) for part, done, total in told if part == "prediction"]
    assert predictions[0] == (0, result.counts.predicted)
    assert predictions[-1] == (result.counts.predicted, result.counts.predicted)
    assert [done for done, _ in predictions] == sorted(done for done, _ in predictions)
    assert len(predictions) > 3


@pytest.mark.parametrize("gpus", [999_983, 720_720, 1_000_000])
def test_divisors_of_any_number_of_gpus_are_found_at_once(gpus: int, calibration: Calibration) -> None:
    free = dict.fromkeys(("tp", "pp", "cp", "ep", "virtual_stages", "sequence_parallel"))
    document = make(cluster={"gpu": "h100-sxm-80gb", "gpus": gpus}, global_batch=gpus, search=free)
    legal = candidates(problem_of(document, calibration), calibration)
    columns = legal.columns
    assert (columns["dp"] * columns["tp"] * columns["pp"] * columns["cp"] == gpus).all()
    expected = {n for n in range(1, 25) if gpus % n == 0 and n <= 24}  # 24 layers
    assert set(columns["pp"].tolist()) == expected


def test_degrees_whose_product_is_too_large_for_an_integer_are_refused(calibration: Calibration) -> None:
    huge = {"dp": [8, 1_000_000], "tp": [1, 4096], "pp": [1, 10_000], "cp": [1, 32_768], "ep": 1, "micro_batch": 1}
    state, needs = seen(make(search=huge), calibration)
    assert {state.plan(index).parallel.dp for index in needs} == {8}
    assert sum(refusal.plans for refusal in state.refusals()) == state.legal.total - len(needs)


def test_keep_keeps_the_picks(calibration: Calibration) -> None:
    everything = search(make(keep=1000), calibration)
    few = search(make(keep=1), calibration)
    assert few.counts == everything.counts
    assert len(few.front) == len(set(everything.picks.values()))
    for name, number in few.picks.items():
        kept, full = few.front[number - 1], everything.front[everything.picks[name] - 1]
        assert kept.step_time_s == full.step_time_s
        assert summary(kept.plan) == summary(full.plan)


def test_hosts_count_as_energy(calibration: Calibration) -> None:
    """Watts that burn whatever the plan move the least energy towards speed."""
    without = search(make(site={"host_power_W": 0.0}), calibration)
    heavy = search(make(site={"host_power_W": 5000.0}), calibration)
    assert without.front[-1].it_energy_J == without.front[-1].gpu_energy_J
    assert heavy.front[-1].step_time_s.value <= without.front[-1].step_time_s.value


# ---- the front ------------------------------------------------------------------------------------------------------

costs = st.lists(st.tuples(*[st.integers(1, 12).map(lambda n: n / 4)] * 2), min_size=1, max_size=60)


@given(costs)
@settings(max_examples=200, deadline=None)
def test_no_member_is_beaten_and_everything_else_is(points: list[tuple[float, float]]) -> None:
    time, energy = np.array(points).T
    front = pareto(time, energy).tolist()

    def beats(a: int, b: int) -> bool:
        return bool(time[a] <= time[b] and energy[a] <= energy[b] and (time[a] < time[b] or energy[a] < energy[b]))

    for member in front:
        assert not any(beats(other, member) for other in range(len(points)))
    for other in set(range(len(points))) - set(front):
        twin = [m for m in front if points[m] == points[other]]
        assert any(beats(member, other) for member in front) or (twin and twin[0] < other)
    assert time[front].tolist() == sorted(time[front].tolist())


@given(costs, st.integers(0, 60))
@settings(max_examples=100, deadline=None)
def test_a_front_of_fronts_is_the_front(points: list[tuple[float, float]], cut: int) -> None:
    """Batches may be merged as they come."""
    time, energy = np.array(points).T
    parts = [np.arange(len(points))[:cut], np.arange(len(points))[cut:]]
    kept = np.sort(np.concatenate([part[pareto(time[part], energy[part])] for part in parts if len(part)]))
    assert kept[pareto(time[kept], energy[kept])].tolist() == pareto(time, energy).tolist()


def test_last_digits_decide_nothing() -> None:
    time = np.array([1.0, 1.0 - 1e-14, 2.0])
    energy = np.array([5.0, 5.0 + 1e-13, 4.0])
    assert pareto(time, energy).tolist() == [0, 2]
    assert to_digits(np.zeros(2)).tolist() == [0.0, 0.0]
    assert to_digits(np.array([123456.789012345, 1e-9])).tolist() == pytest.approx([123456.7890, 1e-9], rel=1e-10)


def test_a_knee() -> None:
    costs, names = np.array([[1.0, 10.0], [1.1, 4.0], [2.0, 3.5], [3.0, 3.0]]), ("fastest", "least_energy")
    expected = {"fastest": 0, "least_energy_within": 0, "knee": 1, "least_energy": 3}
    assert picks(costs, names=names, slack=0.0) == expected
    assert picks(costs, names=names, slack=1.0)["least_energy_within"] == 2
    assert set(picks(costs[:1], names=names, slack=0.1).values()) == {0}
    assert picks(costs[:1, :1], names=names[:1], slack=0.1) == {"fastest": 0}


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 49))
@settings(deadline=None)
def test_thinning_keeps_ends_and_names(size: int, keep: int, named: int) -> None:
    named = min(named, size - 1)
    kept = thin(size, keep, [named])
    assert {0, size - 1, named} <= set(kept)
    assert kept == sorted(set(kept))
    assert len(kept) <= max(keep, 3)
    assert len(kept) >= min(size, keep) - 2


# ---- the document ---------------------------------------------------------------------------------------------------

GOOD = """\
architecture: opt-350m
sequence_length: 2048
global_batch: 64
cluster: {gpu: h100-sxm-80gb, gpus: 8}
search:
  tp: [1, 2]
clocks_MHz: null
limits: {step_time_s: 2}
"""


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ("  tp: [1, 2]", "  tpp: 1", ":6: unknown key 'search.tpp'; allowed here: cp, dispatch, dispatch_overlap"),
        ("  tp: [1, 2]", "  tp: [1, 0]", ":6: search.tp.1: found 0; input should be greater than 0"),
        ("  tp: [1, 2]", "  tp: two", ":6: search.tp: found 'two'; input should be a valid integer"),
        ("  tp: [1, 2]", "  tp: []", ":6: search.tp: value should have at least 1 item"),
        ("  tp: [1, 2]", "  zero_stage: [4]", ":6: search.zero_stage.0: found 4; input should be less than or equal"),
        (
            "  tp: [1, 2]",
            "  sequence_parallel: 1",
            ":6: search.sequence_parallel: found 1; input should be",
        ),
        (
            "  tp: [1, 2]",
            "  recompute: some",
            ":6: search.recompute: found 'some'; allowed: 'none', 'selective' or 'full'",
        ),
        (
            "MHz: null",
            "MHz: fast",
            ":7: clocks_MHz: found 'fast'; allowed: a clock, a list of clocks, {from",
        ),
        ("MHz: null", "MHz: []", ":7: clocks_MHz: allowed: a clock, a list of clocks"),
        ("MHz: null", "MHz: {from: 1200}", ":7: the key 'clocks_MHz.to' is missing"),
        (
            "MHz: null",
            "MHz: {from: 1200, until: 1}",
            ":7: unknown key 'clocks_MHz.until'; allowed here: from, step",
        ),
        ("MHz: null", "MHz: {from: 3, to: 2, step: 1}", ":7: clocks_MHz: from 3 to 2; allowed: `to` no lower"),
        (
            "MHz: null",
            "MHz: {from: 1, to: 2, step: 1e-6}",
            ":7: clocks_MHz.step: found 1e-06; allowed: what makes",
        ),
        ("{step_time_s: 2}", "{run_hours: 2}", ":8: limits.run_hours: what is of the whole run needs `tokens`"),
        ("{step_time_s: 2}", "{memory_share: 80}", ":8: limits.memory_share: found 80; input should be less than"),
        ("cluster:", "objectives: speed\ncluster:", ":4: objectives: found 'speed'; input should be 'step_time_s', "),
        ("cluster:", "objectives: []\ncluster:", ":4: objectives: value should have at least 1 item"),
        ("cluster:", "objectives: run_cost\ncluster:", "objectives: run_cost: what is of the whole run needs `tokens`"),
        ("{step_time_s: 2}", "{run_cost: 2}\ntokens: 1e9", ":8: limits.run_cost: a cost needs site.price_per_kWh"),
        ("{step_time_s: 2}", "{energy_J: 2, it_energy_J: 2}", ":8: limits: it_energy_J: stands twice, once by its"),
        (
            "  tp: [1, 2]",
            "  dp: [9999999999999999999999999]",
            ":6: search.dp.0: found 9999999999999999999999999; input",
        ),
        ("global_batch: 64", "global_batch: 4611686018427387904", ":3: global_batch: found 4611686018427387904; input"),
        ("gpus: 8", "gpus: 1000000000000000003", ":4: cluster.gpus: found 1000000000000000003; input should be less"),
        ("gpus: 8", "gpus: [8, x]", ":4: cluster.gpus.1: found 'x'; input should be a valid integer"),
        (
            "gpus: 8",
            "nodes: 8",
            ":4: unknown key 'cluster.nodes'; allowed here: data_loading, gpu, gpu_variant, gpus, "
            "gpus_per_node, internode",
        ),
        ("global_batch: 64\n", "", ": the key 'global_batch' is missing"),
        ("cluster:", "keep: 0\ncluster:", ":4: keep: found 0; input should be greater than 0"),
    ],
)
def test_a_mistake_has_a_place(good: str, bad: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    assert good in GOOD
    path.write_text(GOOD.replace(good, bad), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_search(path)
    assert message in str(caught.value)


def test_one_value_means_a_list_of_one_and_twice_means_once() -> None:
    document = make(search={"tp": 2, "recompute": "full", "pp": [2, 1, 2]}, schedule="gpipe")
    assert document.search.tp == (2,)
    assert document.search.recompute == ("full",)
    assert document.search.pp == (2, 1)
    assert document.schedule == ("gpipe",)
    with pytest.raises(InputError):
        make(search={"tp": True})


def test_nothing_under_a_key_is_nothing_given(tmp_path: Path) -> None:
    """All keys of `search` and `limits` in comments."""
    path = tmp_path / "search.yaml"
    text = GOOD.replace("  tp: [1, 2]", "  # tp: [1, 2]").replace(" {step_time_s: 2}", "")
    path.write_text(text, encoding="utf-8")
    document = read_search(path)
    assert document.search.tp is None
    assert document.limits.step_time_s is None


def test_the_example_is_a_search() -> None:
    document = read_search(ROOT / "examples" / "search-olmoe.yaml")
    text = (ROOT / "examples" / "search-olmoe.yaml").read_text(encoding="utf-8")
    for name in (*type(document.search).model_fields, *type(document.limits).model_fields):
        assert f"  {name}" in text or f"# {name}" in text, name
