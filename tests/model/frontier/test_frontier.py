"""Frontiers of small pipelines against all clocks enumerated, and laws that those of any pipeline keep.

The oracle plays the step pass by pass; it shares no graph, no path and no programme with what is tested.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from moemodel.model.core.arrays import FloatArray
from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.frontier.choices import Shared
from moemodel.model.frontier.frontier import Frontier, Point, Solver, frontier
from moemodel.model.frontier.pipeline import Kind, Pipeline, Table
from moemodel.model.schedule.base import Sizes, Work
from moemodel.model.schedule.registry import find

_ROUNDED = 0.12  # of the least energy: what rounding to 2 to 5 clocks, far apart, costs more at most
_SAME = 1e-9


def pipeline(
    seed: int, schedule: str = "1f1b", *, stages: int, micro_batches: int, clocks: int, virtual: int = 1
) -> Pipeline:
    """Of stages, phases and clocks of all kinds; a slower clock does not always need less energy."""
    rng = np.random.default_rng(seed)
    speed = np.sort(rng.uniform(0.35, 1.0, clocks))[::-1]
    tables: dict[tuple[int, Kind] | Work, Table] = {}
    kinds: list[tuple[Kind, float]] = [("F", 1.0), ("B", 2.0), ("W", 1.0)]
    for stage, (kind, size) in itertools.product(range(stages), kinds):
        time_s = 0.01 * size * rng.uniform(0.7, 1.4) * (0.3 + 0.7 / speed)
        power_W = 20 + 420 * speed ** rng.uniform(1.5, 3.0) * rng.uniform(0.95, 1.05, clocks)
        tables[stage, kind] = Table(clock_Hz=1e9 * speed, time_s=time_s, energy_J=power_W * time_s)
    return Pipeline(
        schedule=find(schedule, virtual),
        sizes=Sizes(stages=stages, virtual=virtual, micro_batches=micro_batches),
        tables=tables,
        waiting_W=tuple(rng.uniform(0, 80, stages).tolist()),
        idle_W=tuple(rng.uniform(0, 90, stages).tolist()),
        message_s=tuple(rng.uniform(0, 0.003, stages).tolist()),
    )


# ---- the oracle -----------------------------------------------------------------------------------------------------


def played(case: Pipeline, time_s: dict[Work, FloatArray]) -> FloatArray:
    """How long the step takes, for each of many sets of times: every stage takes its next pass as soon as it can."""
    stages, chunks = case.sizes.stages, case.sizes.stages * case.sizes.virtual
    todo = [list(case.schedule.order(stage, case.sizes)) for stage in range(stages)]
    free: list[FloatArray | float] = [0.0] * stages
    done: dict[Work, FloatArray] = {}
    while any(todo):
        for stage, passes in enumerate(todo):
            work = passes[0] if passes else None
            if work is None or (comes := arrival(case, work, done, chunks)) is None:
                continue
            done[work] = np.maximum(free[stage], comes) + time_s[work]
            free[stage] = done[passes.pop(0)]
    return np.asarray(np.maximum.reduce(list(done.values())))


def arrival(case: Pipeline, work: Work, done: dict[Work, FloatArray], chunks: int) -> FloatArray | float | None:
    """When what a pass works on is there; None: it has not been sent."""
    kind, chunk, i = work
    if kind == "F" and chunk == 0:
        return 0.0
    if kind == "W" or (kind == "B" and chunk == chunks - 1):
        return done.get(Work("B" if kind == "W" else "F", chunk, i))
    source = Work("F", chunk - 1, i) if kind == "F" else Work("B", chunk + 1, i)
    if source not in done:
        return None
    link = (chunk - 1 if kind == "F" else chunk) % case.sizes.stages
    return done[source] + (case.message_s[link] if case.sizes.stages > 1 else 0.0)


def works_of(case: Pipeline) -> list[Work]:
    return [work for stage in range(case.sizes.stages) for work in case.schedule.order(stage, case.sizes)]


def group_of(case: Pipeline, work: Work, shared: Shared) -> object:
    stage = work.chunk % case.sizes.stages
    return {"operation": work, "stage-phase": (stage, work.kind == "F"), "stage": stage, "pipeline": 0}[shared]


@dataclass(frozen=True)
class Enumerated:
    """Every choice of clocks: time and energy of the step."""

    time_s: FloatArray
    energy_J: FloatArray

    def least_J(self, deadline_s: float) -> float:
        return float(self.energy_J[self.time_s <= deadline_s * (1 + _SAME)].min())


def enumerated(case: Pipeline, shared: Shared = "operation") -> Enumerated:
    works = works_of(case)
    groups = list(dict.fromkeys(group_of(case, work, shared) for work in works))
    clocks = len(next(iter(case.tables.values())).clock_Hz)
    every = np.array(list(itertools.product(range(clocks), repeat=len(groups))))
    chosen = {work: every[:, groups.index(group_of(case, work, shared))] for work in works}
    stage = {work: work.chunk % case.sizes.stages for work in works}
    tables = {work: case.tables[stage[work], work.kind] for work in works}
    time_s = {work: tables[work].time_s[chosen[work]] for work in works}
    step_s = played(case, time_s)
    energy_J = sum((tables[work].energy_J[chosen[work]] for work in works), start=np.zeros(len(every)))
    for s, (waiting_W, idle_W) in enumerate(zip(case.waiting_W, case.idle_W, strict=True)):
        busy_s = sum((time_s[work] for work in works if stage[work] == s), start=np.zeros(len(every)))
        energy_J = energy_J + waiting_W * (step_s - busy_s) + idle_W * step_s
    return Enumerated(time_s=step_s, energy_J=energy_J)


# ---- against the oracle ---------------------------------------------------------------------------------------------

# stages, micro-batches, clocks: up to 4,096 choices of a clock for each operation
_SMALL = [(1, 3, 3), (2, 1, 5), (2, 2, 2), (2, 3, 2), (3, 1, 3), (3, 2, 2), (4, 1, 2)]
_SCHEDULES = ["1f1b", "gpipe"]
_CASES = [(schedule, *size, seed) for schedule in _SCHEDULES for size in _SMALL for seed in range(4)]


def deadlines(every: Enumerated, fastest_s: float) -> list[float]:
    """The fastest step, one that takes to the last bit as long as some clocks do, and two between."""
    times = np.sort(every.time_s)
    middle = float(times[len(times) // 2])
    return [fastest_s, 0.7 * fastest_s + 0.3 * middle, middle, float(times[-1])]


@pytest.mark.parametrize(("schedule", "stages", "micro_batches", "clocks", "seed"), _CASES)
def test_the_least_energy_is_that_of_all_clocks_enumerated(
    schedule: str, stages: int, micro_batches: int, clocks: int, seed: int
) -> None:
    case = pipeline(seed, schedule, stages=stages, micro_batches=micro_batches, clocks=clocks)
    every, solver, rounding = enumerated(case), Solver(case), Solver(case, exact=False)
    assert solver.fastest_s == pytest.approx(every.time_s.min(), rel=1e-12)
    for deadline_s in deadlines(every, solver.fastest_s):
        least_J = every.least_J(deadline_s)
        best, rounded = solver.least_energy(deadline_s), rounding.least_energy(deadline_s)
        assert best.exact
        assert best.energy_J == pytest.approx(least_J, rel=1e-9)
        assert best.bound_J <= least_J * (1 + _SAME)
        assert least_J * (1 - _SAME) <= rounded.energy_J <= least_J * (1 + _ROUNDED)
        for point in (best, rounded):
            assert point.time_s <= deadline_s * (1 + _SAME)
            check_is_one_of(every, point)


def check_is_one_of(every: Enumerated, point: Point) -> None:
    """Its time and energy are those of its clocks, as the oracle plays them."""
    same = np.isclose(every.time_s, point.time_s, rtol=1e-9) & np.isclose(every.energy_J, point.energy_J, rtol=1e-9)
    assert same.any()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shared", ["stage-phase", "stage", "pipeline"])
def test_operations_that_share_a_clock(shared: Shared, seed: int) -> None:
    case = pipeline(seed, _SCHEDULES[seed % 2], stages=2 + seed % 2, micro_batches=4, clocks=3)
    every, solver = enumerated(case, shared), Solver(case, shared=shared)
    for deadline_s in deadlines(every, solver.fastest_s):
        best = solver.least_energy(deadline_s)
        assert best.energy_J == pytest.approx(every.least_J(deadline_s), rel=1e-9)
        assert len({best.clock_Hz[work] for work in works_of(case)}) <= {"pipeline": 1, "stage": 3}.get(shared, 6)


@pytest.mark.parametrize(("schedule", "virtual"), [("1f1b", 2), ("zero-bubble", 1)])
@pytest.mark.parametrize("seed", range(3))
def test_schedules_with_chunks_and_with_split_backward_passes(schedule: str, virtual: int, seed: int) -> None:
    case = pipeline(seed, schedule, stages=2, micro_batches=2, clocks=2, virtual=virtual)
    every, solver = enumerated(case, "stage-phase"), Solver(case, shared="stage-phase")
    for deadline_s in deadlines(every, solver.fastest_s):
        assert solver.least_energy(deadline_s).energy_J == pytest.approx(every.least_J(deadline_s), rel=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_no_clocks_that_were_enumerated_dominate_the_front(seed: int) -> None:
    case = pipeline(seed, _SCHEDULES[seed % 2], stages=2, micro_batches=2 + seed % 2, clocks=2)
    every = enumerated(case)
    for point in frontier(case, points=8).points:
        no_slower = every.time_s <= point.time_s * (1 + _SAME)
        assert every.energy_J[no_slower].min() >= point.energy_J * (1 - _SAME)


# ---- what may be mixed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_bound_is_reached_where_a_stage_alone_mixes_clocks(seed: int) -> None:
    """One stage, m micro-batches: T is the sum of its passes, which are slowed in the order of what a second saves
    (the continuous knapsack, Dantzig 1957)."""
    case = pipeline(seed, stages=1, micro_batches=3, clocks=6)
    case = replace(case, tables={key: convex(table) for key, table in case.tables.items()})
    solver = Solver(case)
    for longer in (1.0, 1.05, 1.3):
        deadline_s = longer * solver.fastest_s
        assert solver.least_energy(deadline_s).bound_J == pytest.approx(knapsack_J(case, deadline_s), rel=1e-7)


def convex(table: Table) -> Table:
    """A power of a power law of the clock: no corner is left out."""
    return replace(table, energy_J=table.time_s * (20 + 400 * (table.clock_Hz / 1e9) ** 3))


def knapsack_J(case: Pipeline, deadline_s: float) -> float:
    tables = [case.tables[0, kind] for kind in ("F", "B") for _ in range(case.sizes.micro_batches)]
    time_s, energy_J = sum(t.time_s[0] for t in tables), sum(t.energy_J[0] for t in tables)
    pieces = [p for t in tables for p in zip(np.diff(t.time_s), np.diff(t.energy_J), strict=True)]
    for longer_s, more_J in sorted(pieces, key=lambda piece: piece[1] / piece[0]):
        part = min(1.0, (deadline_s - time_s) / longer_s)
        if part <= 0 or more_J / longer_s + case.idle_W[0] >= 0:
            break
        time_s, energy_J = time_s + part * longer_s, energy_J + part * more_J
    return float(energy_J + case.idle_W[0] * time_s)


# ---- laws of larger ones --------------------------------------------------------------------------------------------


def large(seed: int, clocks: int) -> Pipeline:
    case = pipeline(seed, _SCHEDULES[seed % 2], stages=4, micro_batches=6, clocks=clocks)
    return replace(case, tables={key: convex(table) for key, table in case.tables.items()})


@pytest.mark.parametrize("shared", ["operation", "stage-phase", "stage"])
@pytest.mark.parametrize(("seed", "clocks"), [(0, 5), (1, 5), (2, 60), (3, 60)])
def test_a_front_falls_and_is_never_late(seed: int, clocks: int, shared: Shared) -> None:
    case = large(seed, clocks)
    found = frontier(case, points=6, shared=shared, exact=False)
    check_falls(found)
    for point in found.points:
        times = {w: np.array([time_at(case, w, point)]) for w in works_of(case)}
        assert float(played(case, times)[0]) == pytest.approx(point.time_s, rel=1e-12)
        assert point.time_s <= point.deadline_s * (1 + _SAME)
        assert point.bound_J <= point.energy_J * (1 + _SAME)
    if clocks == 60:  # nearly as many as GPUs have
        most = 1.005 if shared == "operation" else 1.02
        assert all(point.energy_J <= most * point.bound_J for point in found.points)


def check_falls(found: Frontier) -> None:
    times = [point.time_s for point in found.points]
    energies = [point.energy_J for point in found.points]
    assert len(found.points) > 2
    assert times == sorted(times)
    assert all(later < earlier for earlier, later in itertools.pairwise(energies))
    assert times[0] == pytest.approx(found.fastest_s, rel=_SAME)


def time_at(case: Pipeline, work: Work, point: Point) -> float:
    table = case.tables[work.chunk % case.sizes.stages, work.kind]
    return float(table.time_s[list(table.clock_Hz).index(point.clock_Hz[work])])


def test_a_clock_for_each_operation_needs_no_more_than_shared_ones() -> None:
    case = large(4, 60)
    bounds = [Solver(case, shared=shared, exact=False) for shared in ("operation", "stage-phase", "stage", "pipeline")]
    deadline_s = 1.1 * bounds[0].fastest_s
    energies = [solver.least_energy(deadline_s).energy_J for solver in bounds]
    assert all(fewer <= more * (1 + _SAME) for fewer, more in itertools.pairwise(energies))
    assert energies[0] < 0.99 * energies[-1]


def test_as_much_time_as_it_likes_is_the_end_of_the_front() -> None:
    solver = Solver(large(5, 60), exact=False)
    least, longer = solver.least_energy(), solver.least_energy(100 * solver.fastest_s)
    assert least.energy_J == longer.energy_J
    assert least.time_s < 10 * solver.fastest_s


def test_given_clocks_are_what_they_were_found_as() -> None:
    solver = Solver(large(6, 60), exact=False)
    point = solver.least_energy(1.05 * solver.fastest_s)
    again = solver.at(point.clock_Hz)
    assert (again.time_s, again.energy_J) == pytest.approx((point.time_s, point.energy_J), rel=1e-12)


def test_one_operation_may_have_a_table_of_its_own() -> None:
    """A pass twice as long lengthens the step by as much: it lies on the only path of one stage."""
    case = pipeline(0, stages=1, micro_batches=2, clocks=3)
    table = case.tables[0, "F"]
    slow = Table(clock_Hz=table.clock_Hz, time_s=2 * table.time_s, energy_J=table.energy_J)
    other = replace(case, tables={**case.tables, Work("F", 0, 1): slow})
    assert Solver(other).fastest_s == pytest.approx(Solver(case).fastest_s + table.time_s.min(), rel=1e-12)


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_a_deadline_that_no_clocks_meet_is_refused_with_the_fastest() -> None:
    solver = Solver(pipeline(0, stages=2, micro_batches=2, clocks=2))
    with pytest.raises(InfeasiblePlanError, match=rf"deadline of .* takes {solver.fastest_s:.6g} s"):
        solver.least_energy(0.9 * solver.fastest_s)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"waiting_W": (1.0,)}, "waiting_W: found .* 2 stages"),
        ({"idle_W": (1.0, -1.0)}, "idle_W: found"),
        ({"message_s": (0.0, math.inf)}, "message_s: found"),
        ({"tables": {}}, r"tables: there is none of .*stage 0"),
    ],
)
def test_what_a_pipeline_lacks_is_named(change: dict[str, object], message: str) -> None:
    case = pipeline(0, stages=2, micro_batches=2, clocks=2)
    with pytest.raises(InputError, match=message):
        replace(case, **change)


@pytest.mark.parametrize(
    ("time_s", "energy_J"), [([1.0], [1.0, 2.0]), ([0.0, 1.0], [1.0, 1.0]), ([1, 2], [1, math.nan])]
)
def test_bad_tables_are_refused(time_s: list[float], energy_J: list[float]) -> None:
    with pytest.raises(InputError, match="table of an operation: found"):
        Table(clock_Hz=np.array([1e9, 2e9]), time_s=np.array(time_s), energy_J=np.array(energy_J))


def test_other_mistakes_are_named() -> None:
    case = pipeline(0, stages=2, micro_batches=2, clocks=2)
    with pytest.raises(InputError, match="points: found 1; at least 2"):
        frontier(case, points=1)
    with pytest.raises(InputError, match="shared: found 'phase'; allowed: operation, stage-phase"):
        Solver(case, shared="phase")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="deadline_s: found NaN"):
        Solver(case).least_energy(math.nan)
    with pytest.raises(InputError, match=r"clock of .*: found 5 MHz; allowed: those of its table"):
        Solver(case).at(dict.fromkeys(works_of(case), 5e6))
    other = replace(case.tables[0, "B"], clock_Hz=np.array([2e9, 3e9]))
    with pytest.raises(InputError, match=r"tables: .* shares its clock with others"):
        Solver(replace(case, tables={**case.tables, (0, "B"): other}), shared="stage")
