"""The search: every legal plan of an architecture on a cluster, predicted in one pass, and the front of the best.

    candidates    every combination of the choices, less those that are no legal plan
    memory        less those that do not fit: it needs no clock, so that only what fits meets the clocks
    predict       all others at every clock, in batches of bounded size
    limits        less those that take too long, too much energy, power or memory
    front         of step time and energy; picks; the reference; each kept plan with its intervals

Axes: P plans, each at one clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.plan.batch import PlanBatch, batch_of
from moemodel.model.plan.checks import check_architecture
from moemodel.model.plan.clock import clock_of
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration, reference_to
from moemodel.model.results.outcome import outcome
from moemodel.model.search.baseline import first_choices, first_that_fits
from moemodel.model.search.candidates import Candidates, candidates
from moemodel.model.search.document import Search
from moemodel.model.search.pareto import overlapping, picks, thin
from moemodel.model.search.problem import SearchProblem, constraint_values, limits_of, problem_of
from moemodel.model.search.result import SCHEMA_VERSION, Counts, Entry, Figure, Refusal, SearchResult, entry_of, version
from moemodel.model.search.state import PredictedPlans, SearchState

_NEXT = 10  # plans behind the front that are kept, for a validation to run: one of them may be the best in truth
_BATCH = 50_000  # plans predicted at once: about 0.1 GB; smaller batches price the same shapes again


def search(document: Search, calibration: Calibration) -> SearchResult:
    """The front of all legal plans within the limits.

    Args:
        document: a checked search (`read_search`).
        calibration: of its GPU.

    Raises:
        InputError, CalibrationError: see `problem_of`; too many plans.
        InfeasiblePlanError: no plan is feasible; names the reasons with counts, and the nearest miss.
    """
    problem = problem_of(document, calibration)
    legal = candidates(problem, calibration)
    state = SearchState(problem, legal)
    for predicted in predicted_plans(problem, state.keep_fitting(legal)):
        state.add(predicted)
    if not len(state.index):
        raise InfeasiblePlanError(state.infeasible_message())
    return _result(problem, calibration, legal, state)


def predicted_plans(problem: SearchProblem, legal: Candidates) -> Iterator[PredictedPlans]:
    """Every plan at every clock, predicted a batch at a time."""
    clocks = np.array([clock_of(clock_MHz).highest_Hz(math.inf) for clock_MHz in legal.clocks_MHz])
    if not len(clocks):
        return
    order = _shapes_together(legal)
    step = max(1, _BATCH // len(clocks))
    for start in range(0, len(order), step):
        rows = order[start : start + step]
        plans = _at_clocks(legal.take(rows).batch(problem.document), clocks)
        values = constraint_values(problem, plans, predict(problem.architecture, plans, problem.machine))
        index = (legal.index[rows][:, None] * len(clocks) + np.arange(len(clocks))).ravel()
        yield PredictedPlans(index_P=index, plans=plans, values=values)


def _shapes_together(legal: Candidates) -> IntArray:
    """Rows ordered by the shape of their micro-batch, which a batch of plans prices once."""
    names = ("micro_batch", "recompute", "sequence_parallel", "ep", "cp", "tp")
    return np.lexsort([legal.columns[name] for name in names])


def _at_clocks(plans: PlanBatch, clock_Hz: FloatArray) -> PlanBatch:
    rows = np.repeat(np.arange(len(plans)), len(clock_Hz))
    return replace(plans.take(rows), clock_Hz=np.tile(clock_Hz, len(plans)))


def _result(problem: SearchProblem, calibration: Calibration, legal: Candidates, state: SearchState) -> SearchResult:
    document, front = problem.document, len(state.index)
    named = picks(state.time_s, state.energy_J, slack=document.within_of_fastest)
    kept = thin(front, document.keep, named.values())
    entries = []
    for number, place in enumerate(kept, start=1):
        plan = state.plan(int(state.index[place]), f"{document.name}-{number:02d}")
        entries.append(entry_of(number, outcome(plan, calibration)))
    followers = []
    for number, index in enumerate(state.next_fastest(_NEXT).tolist(), start=len(kept) + 1):
        followers.append(entry_of(number, outcome(state.plan(index, f"{document.name}-{number:02d}"), calibration)))
    reference = _reference(problem, calibration)
    return SearchResult(
        schema_version=SCHEMA_VERSION,
        moemodel_version=version(),
        search=document,
        calibration=reference_to(calibration),
        counts=Counts(
            combinations=legal.total,
            refused=tuple(Refusal(reason=r.key, says=r.message, plans=r.plans) for r in state.refusals()),
            predicted=state.predicted,
            feasible=state.feasible,
            front=front,
        ),
        front=tuple(_compared(entries, reference)),
        next_fastest=tuple(e if reference is None else e.model_copy(update=_gains(e, reference)) for e in followers),
        picks={name: kept.index(place) + 1 for name, place in named.items()},
        reference=reference,
        notes=_notes(problem, entries, front, reference),
    )


def _compared(entries: list[Entry], reference: Entry | None) -> Iterator[Entry]:
    """With what each gains over the reference, and from which it can't be told apart."""
    alike = _overlap([e.step_time_s for e in entries]) & _overlap([e.energy_J for e in entries])
    for row, entry in enumerate(entries):
        others = tuple(entries[i].number for i in np.flatnonzero(alike[row]) if i != row)
        gains = {} if reference is None else _gains(entry, reference)
        yield entry.model_copy(update={"not_distinguishable_from": others} | gains)


def _overlap(figures: list[Figure]) -> NDArray[np.bool_]:
    """Which intervals overlap; one that isn't known overlaps with all."""
    unknown = (-math.inf, math.inf)
    low, high = np.array([unknown if f.interval is None else f.interval for f in figures]).T
    return overlapping(low, high)


def _gains(entry: Entry, reference: Entry) -> dict[str, float]:
    return {
        "time_vs_reference": entry.step_time_s.value / reference.step_time_s.value - 1,
        "energy_vs_reference": entry.energy_J.value / reference.energy_J.value - 1,
    }


def reference_plan(problem: SearchProblem) -> Plan | None:
    """What `moemodel init` would propose for this batch on the first number of GPUs; None where that fits nowhere."""
    return first_that_fits(problem.architecture, list(_first_plans(problem)), problem.machine)


def _reference(problem: SearchProblem, calibration: Calibration) -> Entry | None:
    plan = reference_plan(problem)
    if plan is None:
        return None
    batch = batch_of(plan)
    prediction = predict(problem.architecture, batch, problem.machine)
    values = constraint_values(problem, batch, prediction)
    missed = [name for name, limit in limits_of(problem).items() if values[name][0] > limit]
    share = problem.document.limits.memory_share
    if share is not None and prediction.memory_B[0] > share * problem.machine.memory_B:
        missed.append("memory_share")
    return entry_of(0, outcome(plan, calibration)).model_copy(update={"misses": tuple(missed)})


def _first_plans(problem: SearchProblem) -> Iterator[Plan]:
    document, gpus = problem.document, problem.document.cluster.gpus[0]
    node = document.cluster.gpus_per_node or problem.machine.gpu.gpus_per_node
    for choices in first_choices(problem.architecture, gpus, node):
        try:
            plan = document.plan(**choices.pop("parallel"), **choices, gpus=gpus, name=f"{document.name}-reference")
            check_architecture(plan, problem.architecture)
        except (InputError, InfeasiblePlanError):
            continue
        yield plan


def _notes(problem: SearchProblem, entries: list[Entry], front: int, reference: Entry | None) -> tuple[str, ...]:
    document = problem.document
    found = [
        *document.file_notes,
        f"{len(entries)} of the {front} plans on the front are kept (`keep`)." if len(entries) < front else "",
        "Plans that can't be told apart have 90 % intervals that overlap in time and in energy. Most of the error is "
        "common to all plans on one GPU, so that their order is surer than this says.",
        f"Energy counts {document.site.host_power_W:g} W of its host for every GPU (site.host_power_W)."
        if document.site.host_power_W
        else "Energy is that of the GPUs alone; give site.host_power_W to count what a slower plan costs their hosts.",
        "Limits hold for predicted values, not for the upper ends of their intervals."
        if document.limits.model_dump(exclude_none=True)
        else "",
        ""
        if reference
        else f"There is no reference: no first plan fits on {document.cluster.gpus[0]} GPUs with this batch.",
        *_in_common(entries),
    ]
    return tuple(note for note in found if note)


def _in_common(entries: list[Entry]) -> list[str]:
    """What the predictions of all kept plans have to say."""
    first, *others = entries
    return [note for note in first.notes if all(note in entry.notes for entry in others)]
