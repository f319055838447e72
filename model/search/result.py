"""What a search found, as it is stored: the front with a whole plan each, the picks, what was refused and why.

`cli` writes it to `moemodel-search.json`, where whoever reruns the best plans on hardware reads it.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ConfigDict

from moemodel import __version__
from moemodel.model.core.documents import Strict, parse_yaml, read_json
from moemodel.model.core.errors import InputError
from moemodel.model.plan.spec import Plan, plan_text
from moemodel.model.records.calibration import CalibrationRef
from moemodel.model.results.estimate import Estimate
from moemodel.model.results.outcome import Outcome
from moemodel.model.search.document import Search

SCHEMA_VERSION = 1
DEFAULT_FILE = "moemodel-search.json"


class Figure(Strict):
    """A value and its central 90 % interval; null where its error isn't known."""

    value: float
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, estimate: Estimate) -> Figure:
        low, high = estimate.low, estimate.high
        return cls(value=estimate.value, interval=None if low is None or high is None else (low, high))


class RunFigures(Strict):
    """The whole run, as a prediction gives it."""

    hours: Figure
    energy_kWh: Figure
    emissions_kgCO2e: Figure
    cost: Figure | None


class Entry(Strict):
    """One plan and what it costs; per step unless the name says otherwise.

    Attributes:
        number: place on the front, 1 the fastest; those of `next_fastest` follow; 0 the reference.
        plan_yaml: the plan, as `moemodel predict` reads it.
        energy_J: of all GPUs, and of their hosts where `site.host_power_W` is given; `gpu_energy_J` without them.
        power_per_gpu_W: mean of one GPU; `hottest_gpu_power_W` of the one that draws most.
        clock_MHz: true SM clock that the GPUs sustain.
        memory_B: peak of the fullest GPU.
        run: the whole run; null where the search gives no tokens.
        time_vs_reference, energy_vs_reference: share that it takes more than the reference (negative: less).
        not_distinguishable_from: numbers of plans whose intervals overlap with this one's both in time and in energy.
        misses: limits of the search that it exceeds; none on the front.
        notes: of the prediction.
    """

    number: int
    plan_yaml: str
    step_time_s: Figure
    energy_J: Figure
    gpu_energy_J: Figure
    power_per_gpu_W: Figure
    hottest_gpu_power_W: Figure
    clock_MHz: Figure
    memory_B: Figure
    run: RunFigures | None
    time_vs_reference: float | None = None
    energy_vs_reference: float | None = None
    not_distinguishable_from: tuple[int, ...] = ()
    misses: tuple[str, ...] = ()
    notes: tuple[str, ...]

    @property
    def plan(self) -> Plan:
        """The plan."""
        return parse_yaml(self.plan_yaml, Plan, f"plan {self.number}")


class Refusal(Strict):
    """Combinations that one reason refused; each combination counts once, for the first reason that applies."""

    reason: str
    says: str
    plans: int


class Counts(Strict):
    """How many there were: combinations, those predicted in full, those within all limits, those on the front."""

    combinations: int
    refused: tuple[Refusal, ...]
    predicted: int
    feasible: int
    front: int


class SearchResult(Strict):
    """What a search found.

    Attributes:
        front: members of the Pareto front of step time and energy that were kept, fastest first.
        next_fastest: the fastest plans of which no clock is on the front, each at its fastest clock: what a validation
            reruns too where the front is short.
        picks: what the members with a name are called -> their number.
        reference: what `moemodel init` would propose for the same batch, without a search; null where that fits
            nowhere.
        notes: on all of it, a sentence each.

    >>> import moemodel
    >>> found = moemodel.search("examples/search-two-gpus.yaml")
    >>> fastest = found.front[found.picks["fastest"] - 1]
    >>> fastest.number, fastest.plan.cluster.gpus
    (1, 2)
    """

    schema_version: int
    moemodel_version: str
    search: Search
    calibration: CalibrationRef
    counts: Counts
    front: tuple[Entry, ...]
    next_fastest: tuple[Entry, ...] = ()
    picks: dict[str, int]
    reference: Entry | None
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """The text of the file: the same result gives the same bytes."""
        return self.model_dump_json(indent=1, by_alias=True) + "\n"


class _Version(Strict):
    model_config = ConfigDict(extra="ignore")
    schema_version: int


def read_search_result(path: Path | str) -> SearchResult:
    """A stored result.

    Raises:
        InputError: missing, not JSON, of another schema version, or malformed; with the place.
    """
    version = read_json(Path(path), _Version).schema_version
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema_version: found {version}; this moemodel reads {SCHEMA_VERSION}. "
            "Search again with `moemodel optimize`"
        )
    return read_json(Path(path), SearchResult)


def entry_of(number: int, answer: Outcome) -> Entry:
    """One plan as it is stored, from its prediction."""
    run = answer.run
    return Entry(
        number=number,
        plan_yaml=plan_text(answer.plan),
        step_time_s=Figure.of(answer.step_time_s),
        energy_J=Figure.of(answer.it_energy_J),
        gpu_energy_J=Figure.of(answer.gpu_energy_J),
        power_per_gpu_W=Figure.of(answer.power_W),
        hottest_gpu_power_W=Figure.of(answer.hottest_power_W),
        clock_MHz=Figure.of(answer.clock_Hz * 1e-6),
        memory_B=Figure.of(answer.memory_B),
        run=None
        if run is None
        else RunFigures(
            hours=Figure.of(run.hours),
            energy_kWh=Figure.of(run.energy_kWh),
            emissions_kgCO2e=Figure.of(run.emissions_kg),
            cost=None if run.cost is None else Figure.of(run.cost),
        ),
        notes=answer.notes,
    )


def version() -> str:
    """Of the package that searched."""
    return __version__
