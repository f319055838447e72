"""Why a plan is not what a search proposes: what refuses it, or which plan of the front beats it, and by how much.

All that a plan breaks is named, not the first alone: keys in which it is another job than the search's, choices that
are not among the search's, rules, memory, limits. A plan that the search could have found is held against the front: a
plan of the front beats it that is no worse in any objective and better in one, to the ten digits of `pareto`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from moemodel.model.core.documents import Real, Strict, Whole
from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import check_power_and_clock
from moemodel.model.plan.clock import ClocksSpec, clock_text
from moemodel.model.plan.dispatch import OF_DISPATCH
from moemodel.model.plan.left_to_framework import NONE_IN_A_SEARCH, ONE_FOR_ALL
from moemodel.model.plan.optimizer_states import needs_shards, steps_whole_matrices
from moemodel.model.plan.rules import PlanRule, architecture_rules, as_counted, degree_rules
from moemodel.model.plan.skew import skew_of
from moemodel.model.plan.spec import ParallelSpec, Plan, plan_text
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.outcome import outcome
from moemodel.model.search.candidates import candidates, clocks_MHz
from moemodel.model.search.difference import change, other_choices, told_by
from moemodel.model.search.distinguish import difference_errors
from moemodel.model.search.document import Search
from moemodel.model.search.pareto import to_digits
from moemodel.model.search.problem import (
    SearchProblem,
    constraint_values,
    costs_of,
    limits_of,
    memory_of,
    problem_of,
    summary,
)
from moemodel.model.search.quantities import QUANTITIES, ObjectiveName
from moemodel.model.search.relax import NothingFeasibleError
from moemodel.model.search.result import Change, Entry, SearchResult, figure_of
from moemodel.model.search.room import memory_B, memory_risk, room_of
from moemodel.model.step.memory import Memory

_WHOLE_FRONT = 100_000  # plans of the front to hold a plan against: more than there are
_FIXED = (
    *("architecture", "layers", "sequence_length", "global_batch", "precision"),
    *ONE_FOR_ALL,
    *("backend", "power_cap_W"),
)
_FIXED_CLUSTER = ("gpu", "gpu_variant", "gpus_per_node", "internode", "data_loading")

Find = Callable[[Search], SearchResult]


class Reason(Strict):
    """One thing that refuses a plan.

    Attributes:
        kind: "job": a key in which it is no plan of the search's; "choice": not among its choices; "rule": of degrees
            that don't go together; "memory"; "limit".
        name: of the key, the choice, the rule or the limit.
        says: in words.
        value, limit: what it needs and what is allowed, where these are numbers; `over` by what share it needs more.
    """

    kind: Literal["job", "choice", "rule", "memory", "limit"]
    name: str
    says: str
    value: Real | None = None
    limit: Real | None = None
    over: Real | None = None


class Beaten(Strict):
    """The plan of the front that beats one by most: the product of what it saves in the objectives is largest.

    Attributes:
        number: its place on the whole front, of which a result may keep less.
        others: how many more of the front beat the plan.
        plan_yaml, summary: the plan.
        choices: in which it differs.
        objectives: by what share the plan that is explained has more of each (negative: less); with what is known of
            that difference.
    """

    number: Whole
    others: Whole
    plan_yaml: str
    summary: str
    choices: tuple[str, ...]
    objectives: dict[ObjectiveName, Change]


class Explanation(Strict):
    """Why a plan is not the one that a search proposes.

    Attributes:
        summary: of the plan.
        verdict: "refused"; "beaten"; "on the front"; "equal": it costs what a plan of the front costs; "better": it
            is outside of the choices of the search, and no plan of the front beats it.
        reasons: all that refuses it.
        values: what it has of all that can be optimized or limited, by name; empty where it can't be predicted.
        number: on the whole front, of it or its equal; null where there is none.
        beaten_by: null where none does.
        nothing_feasible: what the search itself has to say, where no plan is feasible.
    """

    summary: str
    verdict: Literal["refused", "beaten", "on the front", "equal", "better"]
    reasons: tuple[Reason, ...] = ()
    values: dict[str, Real] = Field(default_factory=dict)
    number: Whole | None = None
    beaten_by: Beaten | None = None
    nothing_feasible: str | None = None

    def to_json(self) -> str:
        """As text; numbers by the names of the quantities."""
        return self.model_dump_json(indent=1) + "\n"


def explain(document: Search, plan: Plan | Mapping[str, Any], calibration: Calibration, find: Find) -> Explanation:
    """Why a plan is refused or beaten.

    Args:
        document: the search.
        plan: the plan; plain data where its degrees don't go together, so that it is none.
        calibration: of the search's GPU.
        find: makes the search.

    Raises:
        InputError, CalibrationError: as `problem_of` does.
    """
    problem = problem_of(document, calibration)
    if not isinstance(plan, Plan):
        return Explanation(summary=_described(plan), verdict="refused", reasons=tuple(_broken(problem, plan)))
    reasons = [*_another_job(document, plan), *_outside(problem, plan, calibration), *_rules_broken(problem, plan)]
    if any(reason.kind in ("job", "rule") for reason in reasons):
        return Explanation(summary=summary(plan), verdict="refused", reasons=tuple(reasons))
    reasons += _memory(problem, plan)
    own = _as_searched(document, plan)
    batch = batch_of(own)
    found = constraint_values(problem, batch, predict(problem.architecture, batch, problem.machine))
    reasons += _limits(problem, found)
    values = {name: float(value[0]) for name, value in found.items() if math.isfinite(value[0])}
    explained = Explanation(summary=summary(plan), verdict="refused", reasons=tuple(reasons), values=values)
    try:
        front = find(document.model_copy(update={"keep": _WHOLE_FRONT})).front
    except NothingFeasibleError as error:
        return explained.model_copy(update={"nothing_feasible": str(error)})
    if any(reason.kind != "choice" for reason in reasons):
        return explained
    return _held_against(problem, own, explained, front, calibration)


# ---- what refuses it -------------------------------------------------------------------------------------------------


def _another_job(document: Search, plan: Plan) -> Iterator[Reason]:
    """Keys that a search fixes, and the plan has otherwise."""
    pairs = {name: (getattr(plan, name), getattr(document, name)) for name in _FIXED}
    pairs |= {f"cluster.{n}": (getattr(plan.cluster, n), getattr(document.cluster, n)) for n in _FIXED_CLUSTER}
    listed = {name: getattr(plan.routing, name) for name in OF_DISPATCH if getattr(document.search, name) is not None}
    pairs |= {"routing": (plan.routing, document.routing.model_copy(update=listed)), "mode": (plan.mode, "training")}
    pairs |= {name: (getattr(plan, name), None) for name in NONE_IN_A_SEARCH}
    pairs |= {"lora": (plan.lora, document.lora_in(plan.parallel))}
    pairs |= {"site.inlet_C": (plan.site.inlet_C, document.site.inlet_C)}
    for name, (found, searched) in pairs.items():
        if found != searched:
            yield Reason(kind="job", name=name, says=f"{name} {found}: the search is for {searched}")


def _outside(problem: SearchProblem, plan: Plan, calibration: Calibration) -> Iterator[Reason]:
    """Choices that the search doesn't have."""
    document, gpu = problem.document, problem.machine.gpu
    given = {name: values for name, values in document.search if values is not None}
    given |= {"gpus": document.cluster.gpus, "schedule": document.schedule}
    words: dict[str, object] = {**plan.choices, "recompute": plan.recompute, "schedule": plan.schedule}
    words |= {"sequence_parallel": plan.parallel.sequence_parallel, **plan.expert_choices}
    found = [name for name, values in given.items() if words[name] not in values]
    found = [name for name in found if not (name == "schedule" and plan.parallel.pp == 1)]
    for name in found:
        allowed = ", ".join(str(value) for value in given[name])
        yield Reason(kind="choice", name=name, says=f"{name} {words[name]}: the search has {allowed}")
    clocks = clocks_MHz(document, gpu, calibration)
    of_its_own = document.clocks_per is not None and isinstance(plan.clock_MHz, ClocksSpec)
    if plan.clock_MHz not in clocks and not of_its_own:
        allowed = ", ".join("auto" if clock is None else f"{clock:g}" for clock in clocks)
        yield Reason(
            kind="choice", name="clock_MHz", says=f"clock_MHz {clock_text(plan.clock_MHz)}: the search has {allowed}"
        )
    if not found and not list(_rules_broken(problem, plan)) and not _is_candidate(problem, plan, calibration):
        says = "a choice that the search leaves out is searched up to bounds, and the plan lies beyond them"
        yield Reason(kind="choice", name="bounds", says=says)


def _is_candidate(problem: SearchProblem, plan: Plan, calibration: Calibration) -> bool:
    """Whether the search looks at it, at whatever clock."""
    columns = candidates(problem, calibration).columns
    same = np.ones(len(columns["gpus"]), dtype=np.bool_)
    for name, value in plan.choices.items():
        if name != "schedule" or plan.parallel.pp > 1:
            same &= columns[name] == value
    return bool(same.any())


def _rules_of(problem: SearchProblem) -> list[PlanRule]:
    document = problem.document
    shapes = architecture_rules(
        problem.architecture,
        sequence_length=document.sequence_length,
        skew=skew_of(document),
        cp_comm=document.cp_comm,
    )
    framework = framework_of(document.backend)
    degrees = degree_rules(
        global_batch=document.global_batch,
        framework=framework,
        shards_states=needs_shards(document.optimizer, framework),
        whole_matrices=steps_whole_matrices(document.optimizer),
    )
    ordered = as_counted([*shapes, *degrees])
    return [rule for rule in ordered if isinstance(rule, PlanRule)]


def _rules_broken(problem: SearchProblem, plan: Plan) -> Iterator[Reason]:
    yield from _broken_by(problem, plan.choices)
    try:
        check_power_and_clock(plan, problem.machine.gpu)
    except InputError as error:
        yield Reason(kind="rule", name="clock", says=str(error))


def _broken_by(problem: SearchProblem, choices: Mapping[str, int]) -> Iterator[Reason]:
    """Rules that some choices break, each once, in the order in which a search asks."""
    columns = {name: np.asarray(value, dtype=np.int64) for name, value in choices.items()}
    told = set()
    for rule in _rules_of(problem):
        if rule.is_violated(columns) and (rule.key, rule.message(choices)) not in told:
            told.add((rule.key, rule.message(choices)))
            yield Reason(kind="rule", name=rule.key, says=rule.message(choices))


def _broken(problem: SearchProblem, data: Mapping[str, Any]) -> Iterator[Reason]:
    """Rules that plain data breaks, which is no plan for that."""
    yield from _broken_by(problem, choices_of_data(data))


def is_plan_but_for_rules(data: Mapping[str, Any]) -> bool:
    """Whether plain data would be a plan if its degrees, which are well-formed, went together."""
    cluster = data.get("cluster")
    if not isinstance(cluster, dict) or not isinstance(data.get("parallel", {}), dict):
        return False
    alone = {
        "cluster": cluster | {"gpus": 1},
        "parallel": {},
        "micro_batch": 1,
        "micro_batches_per_schedule": None,
        "micro_batches_per_round": None,
        "decoder_sequence_length": None,
        "optimizer": None,
    }
    try:
        Plan.model_validate(dict(data) | alone)
        choices = choices_of_data(data)
    except InputError:
        return False
    return all(isinstance(value, int) and value >= 0 for value in choices.values()) and choices["micro_batch"] > 0


def choices_of_data(data: Mapping[str, Any]) -> dict[str, int]:
    """The choices of a plan's plain data, by name.

    Raises:
        InputError: a choice that no plan could have.
    """
    parallel = ParallelSpec.model_validate(data.get("parallel") or {})
    alone = {"architecture": "opt-350m", "sequence_length": 1, "global_batch": 1, "cluster": {"gpu": "h100-sxm-80gb"}}
    words = {name: data[name] for name in ("recompute", "schedule") if name in data}
    words |= {"routing": {key: value for key, value in (data.get("routing") or {}).items() if key in OF_DISPATCH}}
    numbers = {"gpus": (data.get("cluster") or {}).get("gpus", 1), "micro_batch": data.get("micro_batch", 1)}
    return (
        Plan.model_validate(alone | words).choices
        | {name: int(value or 0) for name, value in parallel.model_dump().items()}
        | numbers
    )


def _described(data: Mapping[str, Any]) -> str:
    choices = choices_of_data(data)
    words = [f"{name} {choices[name]}" for name in ("gpus", "dp", "tp", "pp", "ep", "cp") if choices[name] > 1]
    return " ".join([*words, f"zero {choices['zero_stage']}", f"micro {choices['micro_batch']}"])


def _memory(problem: SearchProblem, plan: Plan) -> Iterator[Reason]:
    batch = batch_of(plan)
    memory = memory_of(problem, batch)
    room = room_of(problem, batch, memory.peak_B)
    if room.kept[0]:
        return
    peak_B, there_B = float(memory.peak_B[0]), min(memory_B(problem), problem.machine.memory_B)
    name = "memory" if room.too_large[0] else "memory_risk" if room.risky[0] else "memory_share"
    why = {
        "memory": "does not fit",
        "memory_risk": f"may not fit, by less than limits.memory_risk {memory_risk(problem):g} asks",
        "memory_share": f"is over limits.memory_share {problem.document.limits.memory_share}",
    }
    says = (
        f"memory: {why[name]}: {peak_B / 1e9:.1f} GB of {there_B / 1e9:.1f} GB; the largest term is {_largest(memory)}"
    )
    yield Reason(kind="memory", name=name, says=says, value=peak_B, limit=there_B, over=peak_B / there_B - 1)


def _largest(memory: Memory) -> str:
    return max(memory.terms_B, key=lambda name: float(memory.terms_B[name][0])).replace("_", " ")


def _limits(problem: SearchProblem, values: Mapping[str, Any]) -> Iterator[Reason]:
    for name, limit in limits_of(problem).items():
        value = float(values[name][0])
        if value > limit:
            over = value / limit - 1
            says = f"limits.{name} {limit:.6g}: it has {value:.6g}, {over:.2%} more"
            yield Reason(kind="limit", name=name, says=says, value=value, limit=limit, over=over)


# ---- what beats it ---------------------------------------------------------------------------------------------------


def _as_searched(document: Search, plan: Plan) -> Plan:
    """A plan with the site and the tokens of the search."""
    return plan.model_copy(update={"site": document.site, "tokens": document.tokens})


def _held_against(
    problem: SearchProblem, plan: Plan, explained: Explanation, front: tuple[Entry, ...], calibration: Calibration
) -> Explanation:
    names = problem.objectives
    mine = costs_of(problem, {name: np.array([explained.values[name]]) for name in names})[0]
    its = costs_of(problem, {name: np.array([_value(entry, name) for entry in front]) for name in names})
    mine_O, its_FO = to_digits(mine), to_digits(its)
    equal = np.flatnonzero((its_FO == mine_O).all(axis=1))
    if equal.size:
        entry = front[int(equal[0])]
        same = not list(other_choices(plan, entry.plan))
        verdict = "on the front" if same else "equal"
        return explained.model_copy(update={"verdict": verdict, "number": entry.number})
    better = np.flatnonzero((its_FO <= mine_O).all(axis=1))
    if not better.size:
        return explained.model_copy(update={"verdict": "better"})
    most = better[np.argmin(np.log(its_FO[better]).sum(axis=1))]
    beaten = _beaten(problem, plan, front[int(most)], explained.values, calibration)
    return explained.model_copy(
        update={"verdict": "beaten", "beaten_by": beaten.model_copy(update={"others": better.size - 1})}
    )


def _value(entry: Entry, name: ObjectiveName) -> float:
    figure = figure_of(entry, name)
    if figure is None:
        raise InfeasiblePlanError(f"objectives: {name} isn't known of plan {entry.number}")
    return figure.value


def _beaten(
    problem: SearchProblem, plan: Plan, entry: Entry, values: Mapping[str, float], calibration: Calibration
) -> Beaten:
    answers = [outcome(one, calibration, even_if_it_does_not_fit=True) for one in (plan, entry.plan)]
    errors = difference_errors(answers, problem.machine)
    log_errors = {"time": float(errors["time"][0, 1]), "energy": float(errors["energy"][0, 1]), "count": 0.0}
    changes = {}
    for name in problem.objectives:
        kind = told_by(name, problem.document.site)
        changes[name] = change(values[name], _value(entry, name), None if kind is None else log_errors[kind])
    return Beaten(
        number=entry.number,
        others=0,
        plan_yaml=plan_text(entry.plan),
        summary=summary(entry.plan),
        choices=tuple(other_choices(entry.plan, plan)),
        objectives=changes,
    )


def in_words(explained: Explanation) -> str:
    """An explanation as people read it."""
    lines = [f"{explained.summary}: {explained.verdict}"]
    lines += [f"- {reason.says}" for reason in explained.reasons]
    beaten = explained.beaten_by
    if explained.number is not None:
        kind = "it is plan" if explained.verdict == "on the front" else "it costs what costs plan"
        lines.append(f"- {kind} {explained.number} of the whole front")
    if explained.verdict == "better":
        lines.append("- no plan of the front beats it: the search does not have its choices")
    if beaten is not None:
        more = f", and {beaten.others} more plans of the front" if beaten.others else ""
        lines.append(f"- plan {beaten.number} of the whole front beats it{more}: {beaten.summary}")
        lines.append(f"- that has {', '.join(beaten.choices)}")
        lines += [f"- {_in_objective(name, found)}" for name, found in beaten.objectives.items()]
    if explained.nothing_feasible:
        lines.append(explained.nothing_feasible)
    return "\n".join(lines)


def _in_objective(name: str, found: Change) -> str:
    words = "less is better" if not QUANTITIES[name].higher_is_better else "more is better"
    if found.share == 0:
        return f"{name}: the same"
    share = f"{name}: the plan has {found.share:+.2%} ({words})"
    if found.interval is None:
        return f"{share}; how well that is known, nobody says"
    low, high = found.interval
    told = "they can be told apart" if found.told_apart else "they can't be told apart"
    return f"{share}, 90 % interval {low:+.2%} to {high:+.2%}: {told}"
