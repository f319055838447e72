"""Answers to many runs: those of one dense model on one machine are predicted together, as a search does it.

Figures are those of `run.answer_to`, without what it adds for a reader.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.errors import MoeModelError
from moemodel.model.plan.batch import joined
from moemodel.model.plan.checks import architecture_of, check_architecture
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.results.estimate import Estimate
from moemodel.model.results.feasibility import verdict_of
from moemodel.model.step.system import System, system_of
from studies.public.run import Answer, PublicRun, answer_to, at, counted_B, first_line, stage_memory

_MANY = 32
_COLUMNS = frozenset({"name", "sequence_length", "global_batch", "micro_batch", "recompute", "schedule", "parallel"})


def answers(runs: Sequence[PublicRun]) -> list[Answer]:
    """What is said of each run."""
    alike: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        alike.setdefault(_alike(run) or str(place), []).append(place)
    found: dict[int, Answer] = {}
    for places in alike.values():
        some = [runs[place] for place in places]
        together = len(places) >= _MANY and _is_dense(some[0])
        found |= dict(zip(places, _together(some) if together else map(answer_to, some), strict=True))
    return [found[place] for place in range(len(runs))]


def _alike(run: PublicRun) -> str | None:
    """What runs that can be predicted together share; None: it has to be asked alone."""
    plan = run.plans[0]
    if len(run.plans) > 1 or isinstance(plan, str):
        return None
    return f"{alike(plan)}, memory of stage {run.stage}"


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


def _is_dense(run: PublicRun) -> bool:
    return not architecture_of(_plan(run)).has_experts


def _together(runs: Sequence[PublicRun]) -> list[Answer]:
    architecture = architecture_of(_plan(runs[0]))
    refused = {place: reason for place, run in enumerate(runs) if (reason := _refusal(_plan(run), architecture))}
    legal = [place for place in range(len(runs)) if place not in refused]
    plans = [_plan(runs[place]) for place in legal]
    system = system_of(plans[0], load_calibration(None, plans[0].cluster.gpu))
    p = predict(architecture, joined(plans), system)
    stage_B = _stage_memory_B([runs[place] for place in legal], plans, architecture, system)
    found = [Answer(reason=refused.get(place, "")) for place in range(len(runs))]
    for row, (place, plan) in enumerate(zip(legal, plans, strict=True)):
        likely = float(p.fit_probability[row])
        found[place] = Answer(
            plan=plan,
            time=Estimate.of(float(p.step_time_s[row]), float(p.step_time_error[row])),
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


def _refusal(plan: Plan, architecture: Architecture) -> str:
    try:
        check_architecture(plan, architecture)
    except MoeModelError as error:
        return first_line(error)
    return ""
