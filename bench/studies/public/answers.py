"""Answers to many runs: those of one model on one machine are predicted together, as a search does it.

Figures are those of `run.answer_to`, without what it adds for a reader.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.errors import MoeModelError
from moemodel.model.plan.batch import joined
from moemodel.model.plan.checks import architecture_of, check_architecture, check_power_and_clock
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.results.estimate import Estimate
from moemodel.model.results.feasibility import verdict_of
from moemodel.model.results.routing_cost import routing_costs
from moemodel.model.step.system import System, system_of
from studies.public.run import Answer, PublicRun, answer_to, at, calibration_of, counted_B, first_line, stage_memory

_COLUMNS = frozenset({"name", "sequence_length", "global_batch", "micro_batch", "recompute", "schedule", "parallel"})


def answers(runs: Sequence[PublicRun]) -> list[Answer]:
    """What is said of each run."""
    together: dict[Hashable, list[int]] = {}
    for place, run in enumerate(runs):
        together.setdefault(_alike(run) or place, []).append(place)
    found: dict[int, Answer] = {}
    for places in together.values():
        found |= dict(zip(places, _answered([runs[place] for place in places]), strict=True))
    return [found[place] for place in range(len(runs))]


def _answered(runs: Sequence[PublicRun]) -> list[Answer]:
    """Of runs that can be predicted together."""
    if len(runs) > 1:
        try:
            return _together(runs)
        except MoeModelError:
            pass  # of one or of all: each says so itself
    return [answer_to(run) for run in runs]


def _alike(run: PublicRun) -> Hashable | None:
    """What runs that can be predicted together share; None: it has to be asked alone."""
    plan = run.plans[0]
    if len(run.plans) > 1 or isinstance(plan, str):
        return None
    try:
        architecture = architecture_of(plan)
    except MoeModelError:
        return None
    return (architecture, alike(plan), run.stage) if calibration_of(plan).has_times else None


def alike(plan: Plan) -> str:
    """What plans share that can be predicted together."""
    own = plan.model_dump(exclude=set(_COLUMNS))
    if plan.stage_layers is not None:  # the model is cut by it and these
        own |= {"pp": plan.parallel.pp, "virtual_stages": plan.parallel.virtual_stages}
    return json.dumps(own, sort_keys=True)


def _plan(run: PublicRun) -> Plan:
    plan = run.plans[0]
    assert isinstance(plan, Plan)
    return plan


def _together(runs: Sequence[PublicRun]) -> list[Answer]:
    """As `answer_to` has it.

    Raises:
        MoeModelError: what one of them, or all, can't be told for.
    """
    architecture, one = architecture_of(_plan(runs[0])), _plan(runs[0])
    system = system_of(one, calibration_of(one))
    refused = {
        place: reason for place, run in enumerate(runs) if (reason := _refusal(_plan(run), architecture, system))
    }
    legal = [place for place in range(len(runs)) if place not in refused]
    plans = [_plan(runs[place]) for place in legal]
    if not plans:
        return [Answer(reason=refused[place]) for place in range(len(runs))]
    p = predict(architecture, joined(plans), system)
    routing = routing_costs(plans, architecture, system, p)
    stage_B = _stage_memory_B([runs[place] for place in legal], plans, architecture, system)
    found = [Answer(reason=refused.get(place, "")) for place in range(len(runs))]
    for row, (place, plan) in enumerate(zip(legal, plans, strict=True)):
        likely, routed = float(p.fit_probability[row]), routing[row]
        time = Estimate.of(float(p.step_time_s[row]), float(p.step_time_error[row]))
        found[place] = Answer(
            plan=plan,
            time=time if routed is None else time.reaching(routed.time_reach),
            memory_B=stage_B.get(row, counted_B(runs[place], float(p.memory_B[row]), at(p.memory_terms_B, row))),
            fit_probability=likely,
            verdict=verdict_of(likely),
        )
    return found


def _stage_memory_B(
    runs: Sequence[PublicRun], plans: Sequence[Plan], architecture: Architecture, system: System
) -> dict[int, float]:
    """What sources count of the stage that they measured, by row; nothing where they measured the fullest."""
    if runs[0].stage is None:
        return {}
    pipelines: dict[tuple[int, int], list[int]] = {}
    for row, plan in enumerate(plans):
        pipelines.setdefault((plan.parallel.pp, plan.parallel.virtual_stages), []).append(row)
    found: dict[int, float] = {}
    for rows in pipelines.values():
        memory = stage_memory(architecture, joined([plans[row] for row in rows]), system, runs[0].stage)
        found |= {
            row: counted_B(runs[row], float(memory.peak_B[place]), at(memory.terms_B, place))
            for place, row in enumerate(rows)
        }
    return found


def _refusal(plan: Plan, architecture: Architecture, system: System) -> str:
    try:
        check_architecture(plan, architecture)
        check_power_and_clock(plan, system.gpu)
    except MoeModelError as error:
        return first_line(error)
    return ""
