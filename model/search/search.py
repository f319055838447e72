"""The search: every legal plan of an architecture on a cluster, predicted in one pass, and the front of the best.

    candidates    every combination of the choices, less those that are no legal plan
    memory        less those that do not fit: it needs no clock, so that only what fits meets the clocks
    predict       all others at every clock, in batches of bounded size
    limits        less those that take too long, too much energy, power or memory
    front         of the objectives, step time and energy unless others are given; picks; references; each kept plan
                  with its intervals, and from which it can't be told apart

Axes: P plans, each at one clock.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from moemodel.model.core.arrays import IntArray
from moemodel.model.core.errors import InputError
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration, reference_to
from moemodel.model.results.outcome import Outcome, outcomes
from moemodel.model.search.candidates import Candidates, at_clocks, candidates, clocks_Hz
from moemodel.model.search.contenders import contenders
from moemodel.model.search.difference import differences
from moemodel.model.search.distinguish import alike
from moemodel.model.search.document import Search
from moemodel.model.search.pareto import picks, thin
from moemodel.model.search.problem import SearchProblem, constraint_values, problem_of
from moemodel.model.search.quantities import QUANTITIES
from moemodel.model.search.reference import references
from moemodel.model.search.relax import nothing_feasible
from moemodel.model.search.result import (
    SCHEMA_VERSION,
    Counts,
    Entry,
    Refusal,
    SearchResult,
    entry_of,
    version,
)
from moemodel.model.search.stage_clocks import Front, Member, refined_front
from moemodel.model.search.state import MOST_NEXT, PredictedPlans, SearchState

_NUMBER = re.compile(r"[0-9][0-9.,]*")
_NEXT = 10  # plans behind the front that are kept, for a validation to run: one of them may be the best in truth
_MOST_PREDICTIONS = 50_000_000  # half an hour on one core
# Predictions, up to which all plans are predicted, so that it is known of each whether it keeps the limits: seconds.
_ALL_OF_THEM = 200_000
_BATCH = 50_000  # plans predicted at once: about 0.1 GB; smaller batches price the same shapes again


Progress = Callable[[str, int, int], None]


def _silent(part: str, done: int, total: int) -> None:
    """Nobody listens."""


def search(
    document: Search, calibration: Calibration, progress: Progress = _silent, *, exhaustive: bool | None = None
) -> SearchResult:
    """The front of all legal plans within the limits.

    Args:
        document: a checked search (`read_search`).
        calibration: of its GPU.
        progress: is told, about once a second, of a part ("memory", "bounds", "prediction", of which each clock counts,
            "clocks", "front") how many of how many plans are done.
        exhaustive: predict every plan (True), or none that a bound shows to be beaten (False); the front is the same.
            None: every plan of spaces that are small enough.

    Raises:
        InputError, CalibrationError: see `problem_of`; too many plans.
        NothingFeasibleError: no plan is feasible; names the reasons with counts, and by how much to relax which limit.
    """
    problem = problem_of(document, calibration)
    legal = candidates(problem, calibration)
    state = SearchState(problem, legal)
    fitting = state.keep_fitting(legal, partial(progress, "memory"))
    total = len(fitting) * len(legal.clocks_MHz)
    if exhaustive or (exhaustive is None and total <= _ALL_OF_THEM):
        _predict_all(problem, fitting, state, partial(progress, "prediction"))
    else:
        _predict_contenders(problem, fitting, state, progress)
    if not len(state.index):
        raise nothing_feasible(problem, legal, state, predicted_plans, partial(progress, "limits"))
    return _result(problem, calibration, legal, state, progress)


def _predict_all(
    problem: SearchProblem, fitting: Candidates, state: SearchState, progress: Callable[[int, int], None]
) -> None:
    """Predict every plan at every clock."""
    total = len(fitting) * len(fitting.clocks_MHz)
    _refuse_too_many(total, fitting)
    progress(0, total)
    for predicted in predicted_plans(problem, fitting):
        state.add(predicted)
        progress(state.predicted, total)


def _predict_contenders(problem: SearchProblem, fitting: Candidates, state: SearchState, progress: Progress) -> None:
    """Predict the plans that a bound does not show to be beaten, at every clock."""
    clocks = len(fitting.clocks_MHz)
    found = contenders(problem, fitting, state, partial(progress, "bounds"))
    for some in found:
        _refuse_too_many(state.predicted, fitting)
        for predicted in predicted_plans(problem, some):
            state.add(predicted)
        progress("prediction", state.predicted + state.outdone, len(fitting) * clocks)


def _refuse_too_many(predictions: int, fitting: Candidates) -> None:
    """Refuse what would take an hour.

    Raises:
        InputError: with what to give fewer of.
    """
    if predictions > _MOST_PREDICTIONS:
        raise InputError(
            f"search: {len(fitting):,} plans fit in memory, at {len(fitting.clocks_MHz)} clocks each: more than "
            f"{_MOST_PREDICTIONS:,} predictions; give fewer values of a choice under `search`, or fewer clocks_MHz"
        )


def predicted_plans(problem: SearchProblem, legal: Candidates) -> Iterator[PredictedPlans]:
    """Every plan at every clock, predicted a batch at a time."""
    clocks = clocks_Hz(legal.clocks_MHz)
    if not len(clocks):
        return
    order = _shapes_together(legal)
    step = max(1, _BATCH // len(clocks))
    for start in range(0, len(order), step):
        rows = order[start : start + step]
        plans = at_clocks(legal.take(rows).batch(problem.document), clocks)
        values = constraint_values(problem, plans, predict(problem.architecture, plans, problem.machine))
        index = (legal.index[rows][:, None] * len(clocks) + np.arange(len(clocks))).ravel()
        yield PredictedPlans(index_P=index, plans=plans, values=values)


def _shapes_together(legal: Candidates) -> IntArray:
    """Rows ordered by the shape of their micro-batch, which a batch of plans prices once."""
    names = ("micro_batch", "recompute", "sequence_parallel", "ep", "cp", "tp")
    return np.lexsort([legal.columns[name] for name in names])


def _result(
    problem: SearchProblem,
    calibration: Calibration,
    legal: Candidates,
    state: SearchState,
    progress: Progress,
) -> SearchResult:
    document, found_front = problem.document, refined_front(state, partial(progress, "clocks"))
    front = len(found_front.members)
    best = [QUANTITIES[name].best for name in problem.objectives]
    named = picks(found_front.costs_FO, names=best, slack=document.within_of_fastest)
    kept = thin(front, document.keep, named.values())
    followers = state.next_best(_NEXT if len(problem.objectives) > 1 else max(_NEXT, min(document.keep, MOST_NEXT)))
    members = [*(found_front.members[row] for row in kept), *(Member(place=place) for place in followers.tolist())]
    progress("front", 0, len(members))
    plans = [member.plan(state, f"{document.name}-{number:02d}") for number, member in enumerate(members, start=1)]
    answers = outcomes(plans, calibration)
    found = references(problem, legal, calibration)
    entries = tuple(_compared(problem, answers, found))
    numbers = {name: kept.index(place) + 1 for name, place in named.items()}
    picked = sorted({number - 1 for number in numbers.values()})
    return SearchResult(
        schema_version=SCHEMA_VERSION,
        moemodel_version=version(),
        search=document,
        calibration=reference_to(calibration),
        counts=Counts(
            combinations=legal.total,
            refused=tuple(Refusal(reason=r.key, says=r.message, plans=r.plans) for r in state.refusals()),
            predicted=state.predicted,
            outdone=state.outdone,
            feasible=state.feasible,
            front=front,
        ),
        objectives=problem.objectives,
        front=entries[: len(kept)],
        next_best=entries[len(kept) :],
        picks=numbers,
        references=found,
        differences=differences(numbers, answers[: len(kept)], problem.machine),
        notes=_notes(problem, entries, kept, picked, found_front, found),
    )


def _compared(problem: SearchProblem, answers: Sequence[Outcome], found: Sequence[Entry]) -> Iterator[Entry]:
    """Entries, numbered from 1, with what each gains over its reference, and from which it can't be told apart."""
    alike_FF = alike(answers, problem.machine)
    on_gpus = {entry.plan.cluster.gpus: entry for entry in found}
    for row, answer in enumerate(answers):
        entry, reference = entry_of(row + 1, answer, problem.machine), on_gpus.get(answer.plan.cluster.gpus)
        others = tuple((np.flatnonzero(alike_FF[row]) + 1).tolist())
        gains = {} if reference is None else _gains(entry, reference)
        yield entry.model_copy(update={"not_distinguishable_from": others} | gains)


def _gains(entry: Entry, reference: Entry) -> dict[str, float | None]:
    mine, its = entry.it_energy_J, reference.it_energy_J
    return {
        "time_vs_reference": entry.step_time_s.value / reference.step_time_s.value - 1,
        "it_energy_vs_reference": None if mine is None or its is None else mine.value / its.value - 1,
    }


def _notes(
    problem: SearchProblem,
    entries: Sequence[Entry],
    kept: Sequence[int],
    picked: Sequence[int],
    front: Front,
    found: Sequence[Entry],
) -> tuple[str, ...]:
    document = problem.document
    missing = [str(n) for n in document.cluster.gpus if all(entry.plan.cluster.gpus != n for entry in found)]
    tells = "neither time nor energy tells" if problem.has_power else "time does not tell"
    notes = [
        *document.file_notes,
        document.limits.deadline_note,
        f"{len(kept)} of the {len(front.members)} plans on the front are kept (`keep`)."
        if len(kept) < len(front.members)
        else "",
        front.note,
        f"Plans are alike where {tells} which is better, in nine of ten cases: most of the error is common to "
        "all plans on one GPU, and cancels between them.",
        "" if document.tokens else "Give `tokens` for the days, emissions and cost of the whole run.",
        "Limits hold for predicted values, not for the upper ends of their intervals."
        if document.limits.model_dump(exclude_none=True)
        else "",
        f"There is no reference on {', '.join(missing)} GPUs: no first plan fits there within the limits."
        if missing
        else "",
        *_in_common(entries),
        *_of_picks([entries[row] for row in picked], _in_common(entries)),
    ]
    return tuple(note for note in notes if note)


def _in_common(entries: Sequence[Entry]) -> list[str]:
    """What the predictions of all kept plans have to say."""
    first, *others = entries
    return [note for note in first.notes if all(note in entry.notes for entry in others)]


def _of_picks(picked: Sequence[Entry], common: Sequence[str]) -> Iterator[str]:
    """What the predictions of plans with a name have to say beyond that; what differs in its figures alone, once."""
    first: dict[str, str] = {}  # of the notes that differ in figures alone
    for entry in picked:
        for note in entry.notes:
            if note not in common:
                first.setdefault(_NUMBER.sub("", note), note)
    for text in first.values():
        numbers = [str(entry.number) for entry in picked if text in entry.notes]
        yield f"Plan{'s' * (len(numbers) > 1)} {', '.join(numbers)}: {text}"
