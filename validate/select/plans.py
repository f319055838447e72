"""Which plans are run: the best of a search that fit the hardware at hand, or those named, and their controls."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moemodel.model.core.errors import InputError, MoeModelError
from moemodel.model.hardware.gpu import read_gpu
from moemodel.model.plan.checks import architecture_of, check_architecture
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration, fingerprint
from moemodel.model.results.feasibility import fits
from moemodel.model.results.validation import SkippedPlan
from moemodel.model.search.document import Ranges, Search, SearchCluster
from moemodel.model.search.result import SearchResult
from moemodel.model.step.system import system_of
from moemodel.validation.select.baselines import baselines_for
from moemodel.validation.select.runnable import Choice, Hardware, PlanRequest, added, choice_of, comparison_group, same

_PICKS = ("fastest", "least_energy", "knee", "least_energy_within")  # the ends of the front, then what lies between


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The plans to run, those that are not, and what a reader should know."""

    choices: tuple[Choice, ...]
    set_aside: tuple[SkippedPlan, ...]
    notes: tuple[str, ...] = ()


class _Picker:
    """Collects what can be run, and what can't."""

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware
        self.choices: list[Choice] = []
        self.set_aside: list[SkippedPlan] = []
        self.notes: list[str] = []

    def take(self, request: PlanRequest, most: int | None = None) -> None:
        """A plan, if it can be run, and there are no `most` others yet or it is one of them."""
        full = most is not None and len(self.choices) >= most
        found = choice_of(request, self.hardware)
        if isinstance(found, SkippedPlan):
            self.set_aside += [] if full else [found]
        elif most is None or len(self.choices) < most or any(same(found, other) for other in self.choices):
            self.choices = added(self.choices, found)

    def control(self, document: Search, reference: Plan | None, calibration: Calibration, seed: int) -> None:
        """The controls of a search."""
        others = [choice.plan for choice in self.choices]
        found = baselines_for(document, reference, self.hardware, calibration, seed=seed, others=others)
        self.notes += found.notes
        for request in found.requests:
            self.take(request)

    def reasons(self) -> str:
        """Why plans were set aside, each reason once."""
        return "; ".join(dict.fromkeys(plan.reason for plan in self.set_aside))

    def chosen(self) -> Chosen:
        """What was collected."""
        return Chosen(choices=tuple(self.choices), set_aside=tuple(self.set_aside), notes=tuple(self.notes))


def from_search(
    result: SearchResult, hardware: Hardware, calibration: Calibration, *, top: int, controls: bool, seed: int
) -> Chosen:
    """The best plans of a search that can be run here: those with a name first, then evenly over the front, then the
    fastest behind it.

    Args:
        result: of the search.
        hardware: at hand.
        calibration: of the GPU.
        top: how many at most, controls not counted.
        controls: whether to add them.
        seed: of the random control.

    Raises:
        InputError: none of them can be run here; with the reasons.
    """
    picker = _Picker(hardware)
    for request in _by_merit(result):
        picker.take(request, most=top)
    if not picker.choices:
        raise InputError(
            f"none of the {len(result.front)} plans of search {result.search.name} can be run here: "
            f"{picker.reasons()}. Search for the hardware at hand, or name plan files"
        )
    if result.calibration.sha256 != fingerprint(calibration):
        picker.notes.append(
            f"The search rests on calibration {result.calibration.name} ({result.calibration.sha256[:12]}), these "
            f"predictions on {calibration.name} ({fingerprint(calibration)[:12]})."
        )
    if controls:
        reference = next((entry.plan for entry in result.references if entry.plan.cluster.gpus <= hardware.gpus), None)
        picker.control(result.search, reference, calibration, seed)
    return picker.chosen()


def _by_merit(result: SearchResult) -> Iterator[PlanRequest]:
    """Entries of the front: picks, then the others evenly spread; each once. Then the fastest behind it."""
    names: dict[int, list[str]] = {}
    for pick in dict.fromkeys((*_PICKS, *result.picks)):
        if pick in result.picks:
            names.setdefault(result.picks[pick], []).append(pick.replace("_", " "))
    by_number = {entry.number: entry for entry in result.front}
    for number in (*names, *_spread([number for number in by_number if number not in names])):
        named = f" ({', '.join(names[number])})" if number in names else ""
        yield PlanRequest(role=f"front {number}{named}", plan=by_number[number].plan)
    for place, entry in enumerate(result.next_best, start=1):
        yield PlanRequest(role=f"next {place} behind the front", plan=entry.plan)


def _spread(values: Sequence[int]) -> list[int]:
    """Values so that any first few of them are spread over the whole: the middle, then the middles of the halves."""
    if not values:
        return []
    middle = len(values) // 2
    left, right = _spread(values[:middle]), _spread(values[middle + 1 :])
    halves = [value for pair in zip(left, right, strict=False) for value in pair]
    return [values[middle], *halves, *left[len(right) :], *right[len(left) :]]


def from_plans(
    requests: Iterable[PlanRequest], hardware: Hardware, calibration: Calibration, *, controls: bool, seed: int
) -> Chosen:
    """Plans that somebody names; controls for every model and batch among them.

    Args:
        requests: the plans, and where each is from.
        hardware: at hand.
        calibration: of the GPU.
        controls: whether to add them.
        seed: of the random controls.

    Raises:
        InputError: no plan can be run here; with the reasons.
        InfeasiblePlanError: degrees that don't divide the architecture.
    """
    picker = _Picker(hardware)
    for request in requests:
        _check(request)
        picker.take(replace(request, notes=_doubts(request.plan, calibration)))
    if not picker.choices:
        raise InputError(f"no plan can be run here: {picker.reasons()}")
    groups: dict[Hashable, list[Plan]] = {}
    for choice in picker.choices if controls else ():
        groups.setdefault(comparison_group(choice.asked), []).append(choice.plan)
    for plans in groups.values():
        picker.control(_search_around(plans), None, calibration, seed)
    return picker.chosen()


def _check(request: PlanRequest) -> None:
    """Refuse degrees that don't divide the architecture; an error says where the plan is from."""
    try:
        check_architecture(request.plan, architecture_of(request.plan))
    except MoeModelError as error:
        raise type(error)(f"{request.role}: {error}") from None


def _doubts(plan: Plan, calibration: Calibration) -> tuple[str, ...]:
    """What is predicted to go wrong; the plan is run all the same, since somebody asked for it."""
    if read_gpu(plan.cluster.gpu, key="cluster.gpu").name != calibration.gpu:
        return ()
    fit = bool(fits(architecture_of(plan), [plan], system_of(plan, calibration))[0])
    return () if fit else ("It is predicted not to fit in memory.",)


def _search_around(plans: Sequence[Plan]) -> Search:
    """All that is legal for the model, batch and GPUs of some plans, at the clock that the governor gives."""
    first = plans[0]
    cluster = first.cluster
    return Search(
        name=_called(first),
        architecture=first.architecture,
        layers=first.layers,
        sequence_length=first.sequence_length,
        global_batch=first.global_batch,
        precision=first.precision,
        backend=first.backend,
        cluster=SearchCluster(
            gpu=cluster.gpu,
            gpus=(max(plan.cluster.gpus for plan in plans),),
            gpus_per_node=cluster.gpus_per_node,
            internode=cluster.internode,
        ),
        routing=first.routing,
        site=first.site,
        search=Ranges(cp=(1,)),
        clocks_MHz=None,
    )


def _called(plan: Plan) -> str:
    """What controls of a plan's model are named after."""
    return Path(plan.architecture).stem if plan.architecture.endswith(".json") else plan.architecture
