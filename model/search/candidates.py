"""Every combination of the choices of a search, as arrays, and which of them are no legal plan, by reason.

Choices are joined one after another; a rule refuses as soon as the choices that it looks at are there, so that what
can't be legal never grows. A combination counts once, for the first rule that refuses it.

A choice that is left out is everything legal within these bounds: tp and cp up to the GPUs of a node and `_DEGREE`,
micro-batches and virtual stages up to `_MICRO_BATCH` and `_VIRTUAL`, one group of shards (`replicas`); dp is what the
other degrees leave of the GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np

from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray, at_rows
from moemodel.model.core.errors import InputError
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.hardware.gpu import Gpu
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.checks import check_power_and_clock
from moemodel.model.plan.clock import clock_of
from moemodel.model.plan.dispatch import DISPATCHES, in_words, overlap_number
from moemodel.model.plan.optimizer_states import needs_shards, steps_whole_matrices
from moemodel.model.plan.recompute import RECOMPUTE, recompute_name, recompute_number
from moemodel.model.plan.rules import Columns, Rule, architecture_rules, as_counted, degree_rules
from moemodel.model.plan.skew import skew_of
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.schedule import registry as schedules
from moemodel.model.search.document import ClockRange, Search
from moemodel.model.search.problem import SearchProblem

_MICRO_BATCH = 64  # sequences; assumed to be beyond any best plan, a search may name more
_DEGREE = 1024  # of tp and cp; assumed to be beyond any best plan, a search may name more
_VIRTUAL = 8  # assumed; published plans reach 12 (bench.studies.runs, MLPerf's GPT-3), a search may name more
_CLOCKS = 10  # beside the governor's, where the search says "measured"; each is a prediction more of every plan
_MOST_ROWS = 4_000_000  # legal plans at one clock: half a gigabyte of arrays, and minutes of prediction


@dataclass(frozen=True, kw_only=True)
class Refused:
    """How many combinations one reason refused."""

    key: str
    message: str
    plans: int


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The legal plans of a search, each at every clock.

    Attributes:
        total: combinations, clocks included.
        columns: choices of each legal plan, without the clock; recompute and schedule as numbers.
        index: place of each among all legal plans.
        clocks_MHz: clocks that the GPU has; None: what the power limit allows.
        refused: combinations that are no legal plan, by the first reason.
    """

    total: int
    columns: Columns
    index: IntArray
    clocks_MHz: tuple[float | None, ...]
    refused: tuple[Refused, ...]

    def __len__(self) -> int:
        """Legal plans, clocks not counted."""
        return len(self.index)

    def take(self, rows: IntArray | BoolArray) -> Candidates:
        """Those at these rows."""
        places = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        columns = {name: at_rows(values, places) for name, values in self.columns.items()}
        return replace(self, columns=columns, index=at_rows(self.index, places))

    def batch(self, document: Search) -> PlanBatch:
        """As plans at the governor's clock."""
        columns: dict[str, IntArray] = {name: values for name, values in self.columns.items() if name != "gpus"}
        return PlanBatch.of(
            **columns,
            global_batch=document.global_batch,
            seq=document.sequence_length,
            skew=skew_of(document),
            clock_Hz=np.inf,
            power_cap_W=np.inf if document.power_cap_W is None else document.power_cap_W,
        )

    def plan(self, document: Search, row: int, clock_MHz: float | None) -> Plan:
        """The one at a row, as a user would write it."""
        choices = {name: int(values[row]) for name, values in self.columns.items()}
        return document.plan(
            **choices
            | {
                "sequence_parallel": bool(choices["sequence_parallel"]),
                "recompute": recompute_name(choices["recompute"]),
                "schedule": schedules.NAMES[choices["schedule"]],
                "etp": choices["etp"] or None,
                **in_words(choices),
                "clock_MHz": clock_MHz,
            }
        )


def candidates(problem: SearchProblem, calibration: Calibration) -> Candidates:
    """The legal plans of a search, in the order of its choices: `gpus` outermost, `micro_batch` innermost.

    Args:
        problem: the search.
        calibration: of its GPU, which says what clocks were measured.

    Raises:
        InputError: too many plans.
    """
    document, gpu = problem.document, problem.machine.gpu
    asked = clocks_MHz(document, gpu, calibration)
    refused_clocks = [clock for clock in asked if not _has_clock(document, gpu, clock)]
    clocks = tuple(clock for clock in asked if clock not in refused_clocks)
    rules = _rules(document, problem.architecture)
    axes = _axes(document, problem.architecture, rules, gpu)
    combinations = math.prod(len(values) for values in axes.values())
    refused = [Refused(key="clock", message=_not_clocks(refused_clocks, gpu), plans=combinations * len(refused_clocks))]
    columns, counts = _grow(axes, rules)
    summaries = {rule.key: rule.summary for rule in rules}
    refused += [Refused(key=key, message=summaries[key], plans=count * len(clocks)) for key, count in counts.items()]
    return Candidates(
        total=combinations * len(asked),
        columns=columns,
        index=np.arange(len(columns["gpus"])),
        clocks_MHz=clocks,
        refused=tuple(r for r in refused if r.plans),
    )


# ---- clocks ---------------------------------------------------------------------------------------------------------


def clocks_MHz(document: Search, gpu: Gpu, calibration: Calibration) -> tuple[float | None, ...]:
    """The clocks that a search asks for; None: what the power limit allows. Ranges lie on clocks that the GPU has."""
    asked = document.one_clock_MHz
    if asked is None:
        return (None,)
    if isinstance(asked, ClockRange):
        count = int((asked.highest - asked.lowest) / asked.step * (1 + 1e-9))
        return _on_steps([asked.lowest + n * asked.step for n in range(count + 1)], gpu)
    if isinstance(asked, tuple):
        return asked
    return (None, *measured_clocks_MHz(gpu, calibration))


def measured_clocks_MHz(gpu: Gpu, calibration: Calibration) -> tuple[float, ...]:
    """Ten clocks over the range that the calibration measured; none where the GPU has no known clocks."""
    if gpu.clock_min_Hz is None or gpu.clock_max_Hz is None:
        return ()
    low_Hz, high_Hz = (float(np.clip(f, gpu.clock_min_Hz, gpu.clock_max_Hz)) for f in calibration.clock_measured_Hz)
    return _on_steps((np.linspace(low_Hz, high_Hz, _CLOCKS) / 1e6).tolist(), gpu)


def clocks_Hz(clocks: Iterable[float | None]) -> FloatArray:
    """As a batch of plans has them."""
    return np.array([clock_of(clock).highest_Hz(math.inf) for clock in clocks])


def at_clocks(plans: PlanBatch, clock_Hz: FloatArray) -> PlanBatch:
    """Every plan at every clock, the clock innermost."""
    rows = np.repeat(np.arange(len(plans)), len(clock_Hz))
    return replace(plans.take(rows), clock_Hz=np.tile(clock_Hz, len(plans)))


def _on_steps(clocks: Iterable[float], gpu: Gpu) -> tuple[float, ...]:
    """Each moved to the nearest clock that can be set, once; one out of range stays, to be refused."""
    if gpu.clock_min_Hz is None or gpu.clock_max_Hz is None or not gpu.clock_step_Hz:
        return tuple(clocks)
    low, high, step = gpu.clock_min_Hz / 1e6, gpu.clock_max_Hz / 1e6, gpu.clock_step_Hz / 1e6
    last = low + math.floor((high - low) / step) * step
    return tuple(
        dict.fromkeys(
            min(low + round((clock - low) / step) * step, last) if low <= clock <= high else clock for clock in clocks
        )
    )


def _has_clock(document: Search, gpu: Gpu, clock: float | None) -> bool:
    try:
        check_power_and_clock(document.plan(clock_MHz=clock), gpu)
    except InputError:
        return False
    return True


def _not_clocks(clocks: list[float | None], gpu: Gpu) -> str:
    named = ", ".join(f"{clock:g}" for clock in clocks if clock is not None)
    if gpu.clock_min_Hz is None or gpu.clock_max_Hz is None:
        return f"clocks_MHz {named}: the clocks of {gpu.name} aren't known"
    steps = f" in steps of {gpu.clock_step_Hz / 1e6:g}" if gpu.clock_step_Hz else ""
    return f"clocks_MHz {named}: {gpu.name} has {gpu.clock_min_Hz / 1e6:g} to {gpu.clock_max_Hz / 1e6:g}{steps}"


# ---- choices --------------------------------------------------------------------------------------------------------


def _rules(document: Search, architecture: Architecture) -> list[Rule]:
    """What a combination of choices can break, in the order in which it is asked."""
    seq, skew = document.sequence_length, skew_of(document)
    shapes = architecture_rules(architecture, sequence_length=seq, skew=skew, cp_comm=document.cp_comm)
    framework = framework_of(document.backend)
    degrees = degree_rules(
        global_batch=document.global_batch,
        framework=framework,
        shards_states=needs_shards(document.optimizer, framework),
        whole_matrices=steps_whole_matrices(document.optimizer),
    )
    same = _same_plans(document, cuts_experts=framework.shards_experts)
    return [*_more_than_gpus(), *as_counted([*shapes, *degrees]), *same]


def _more_than_gpus() -> list[Rule]:
    """Degrees that take too many GPUs already, asked before their product with the next could overflow."""

    def rule(*degrees: str) -> Rule:
        return Rule(
            key="degrees",
            summary="dp x tp x pp x cp is not the number of GPUs",
            needs=frozenset({"gpus", *degrees}),
            is_violated=lambda c: math.prod(c[name] for name in degrees) > c["gpus"],
        )

    return [rule("tp"), rule("tp", "pp"), rule("tp", "pp", "cp")]


def _same_plans(document: Search, *, cuts_experts: bool) -> list[Rule]:
    """What is the same plan as another combination: without a pipeline every schedule is, and with nobody to share
    states with every ZeRO stage; tensor-parallel ranks share those of experts that each has whole. Where no rows are
    sent, so is every way of sending them. And to say what the framework does is to leave it to it."""
    rules = _same_dispatches(document)
    if len(document.schedule) > 1:
        first = schedules.number(document.schedule[0])
        rules.append(
            Rule(
                key="same_schedule",
                summary="schedules are all the same with pp 1",
                needs=frozenset({"pp", "schedule"}),
                is_violated=lambda c: (c["pp"] == 1) & (c["schedule"] != first),
            )
        )
    stages, cut = _zero_stages(document), document.search.etp
    if len(stages) > 1:
        axes = ("dp", "cp") if cuts_experts and cut is None else ("dp", "cp", "tp")
        rules.append(
            Rule(
                key="same_zero_stage",
                summary=f"ZeRO stages are all the same with {' x '.join(axes)} 1",
                needs=frozenset({*axes, "zero_stage"}),
                is_violated=lambda c: (math.prod(c[name] for name in axes) == 1) & (c["zero_stage"] != stages[0]),
            )
        )
    if cut is not None and None in cut:
        rules.append(
            Rule(
                key="same_etp",
                summary=f"etp {'tp' if cuts_experts else 1} is what {document.backend} does where etp is null",
                needs=frozenset({"tp", "etp"}),
                is_violated=lambda c: c["etp"] == (c["tp"] if cuts_experts else 1),
            )
        )
    return rules


def _same_dispatches(document: Search) -> list[Rule]:
    """Of experts that are not spread, cut or not, all ways but the first."""
    several = {name: values[0] for name, values in _dispatches(document).items() if len(values) > 1}
    return [
        Rule(
            key="same_dispatch",
            summary="ways to send rows to experts are all the same with ep 1",
            needs=frozenset({"ep", "etp", name}),
            is_violated=lambda c, name=name, first=first: (c["ep"] == 1) & (c["etp"] <= 1) & (c[name] != first),  # type: ignore[misc]
        )
        for name, first in several.items()
    ]


def _zero_stages(document: Search) -> tuple[int, ...]:
    given = document.search.zero_stage
    return (0, 1, 2, 3) if given is None else given


def _axes(document: Search, architecture: Architecture, rules: list[Rule], gpu: Gpu) -> dict[str, tuple[int, ...]]:
    """Values of each choice, outermost first; dp is 0 where it is what the other degrees leave.

    The simplest come first: of plans that cost the same, the first is shown.
    """
    given, batch = document.search, document.global_batch
    recompute = tuple(RECOMPUTE) if given.recompute is None else given.recompute
    degrees = _degrees(document, architecture, rules, document.cluster.gpus_per_node or gpu.gpus_per_node)
    return (
        degrees
        | _dispatches(document)
        | {
            "sequence_parallel": _switch(given.sequence_parallel, any(n > 1 for n in degrees["tp"])),
            "virtual_stages": given.virtual_stages or _virtual(rules, degrees["pp"]),
            "schedule": tuple(schedules.number(name) for name in document.schedule),
            "zero_stage": _zero_stages(document),
            "replicas": given.replicas or (1,),
            "recompute": tuple(recompute_number(name) for name in recompute),
            "micro_batch": given.micro_batch or tuple(n for n in range(1, _MICRO_BATCH + 1) if batch % n == 0),
        }
    )


def _degrees(document: Search, architecture: Architecture, rules: list[Rule], node: int) -> dict[str, tuple[int, ...]]:
    """Number of GPUs and degrees of parallelism; `node` is how many GPUs one has."""
    given, gpus = document.search, document.cluster.gpus
    layers, inside = len(architecture.layers), min(node, _DEGREE)
    etp = (0,) if given.etp is None else tuple(degree or 0 for degree in given.etp)
    as_the_framework = {"etp": 0} if etp == (0,) else {}  # then tp cuts experts, too
    return {
        "gpus": gpus,
        "tp": given.tp or _legal(rules, "tp", _divisors(gpus, inside), **as_the_framework),
        "pp": given.pp or _legal(rules, "pp", _divisors(gpus, layers), virtual_stages=1),
        "cp": given.cp or _legal(rules, "cp", _divisors(gpus, inside)),
        "dp": given.dp or (0,),
        "ep": given.ep or _legal(rules, "ep", range(1, min(max(gpus), _experts(architecture)) + 1)),
        "etp": etp,
    }


def _dispatches(document: Search) -> dict[str, tuple[int, ...]]:
    """How rows get to experts: what the search lists, and else what its routing says, which no bound can replace: a
    limit of nodes changes the model, and not every framework sends in every way."""
    given, said = document.search, document.routing.dispatch_choices
    names, limits, overlaps = given.dispatch, given.node_limit, given.dispatch_overlap
    return {
        "dispatch": (said["dispatch"],) if names is None else tuple(DISPATCHES.index(name) for name in names),
        "node_limit": (said["node_limit"],) if limits is None else tuple(limit or 0 for limit in limits),
        "dispatch_overlap": (
            (said["dispatch_overlap"],) if overlaps is None else tuple(overlap_number(one) for one in overlaps)
        ),
    }


def _experts(architecture: Architecture) -> int:
    """Of the layer that has most; 1 where none has any."""
    blocks = [layer.feed_forward for layer in architecture.layers]
    return max((block.experts for block in blocks if isinstance(block, Moe)), default=1)


def _legal(rules: list[Rule], name: str, values: Iterable[int], **others: int) -> tuple[int, ...]:
    """Values of one choice that go with these of others, whatever the choices not named."""
    columns = {name: np.array(values)} | {other: np.asarray(value) for other, value in others.items()}
    asked = [rule for rule in rules if name in rule.needs and rule.needs <= columns.keys()]
    refused = np.zeros(len(columns[name]), dtype=np.bool_)
    for rule in asked:
        refused |= rule.is_violated(columns)
    return tuple(columns[name][~refused].tolist())


def _virtual(rules: list[Rule], pp: tuple[int, ...]) -> tuple[int, ...]:
    """Chunks that at least one of the pipelines can cut its stages into."""
    return tuple(n for n in range(1, _VIRTUAL + 1) if n == 1 or _legal(rules, "pp", pp, virtual_stages=n))


def _divisors(sizes: Iterable[int], most: int) -> list[int]:
    """Of any of some sizes, up to a bound."""
    numbers = np.arange(1, most + 1)
    divides = np.any([size % numbers == 0 for size in sizes], axis=0)
    return [int(number) for number in numbers[divides]]


def _switch(given: tuple[bool, ...] | None, useful: bool) -> tuple[int, ...]:
    values = ((False, True) if useful else (False,)) if given is None else given
    return tuple(int(value) for value in values)


def _grow(axes: dict[str, tuple[int, ...]], rules: list[Rule]) -> tuple[dict[str, IntArray], dict[str, int]]:
    """All combinations that no rule refuses, and how many each reason refused, as combinations of all axes.

    Raises:
        InputError: too many combinations at once.
    """
    columns: dict[str, IntArray] = {}
    counts = dict.fromkeys((rule.key for rule in rules), 0)
    waiting = list(rules)
    beyond = math.prod(len(values) for values in axes.values())  # combinations that one row stands for
    for name, values in axes.items():
        columns = _join(columns, name, np.array(values, dtype=np.int64))
        beyond //= len(values)
        if name == "dp":
            columns["dp"] = _rest(columns)
        ready, waiting = _ready(waiting, columns)
        for rule in ready:
            refused = rule.is_violated(columns)
            counts[rule.key] += int(refused.sum()) * beyond
            columns = {key: column[~refused] for key, column in columns.items()}
    return columns, counts


def _ready(rules: list[Rule], columns: Columns) -> tuple[list[Rule], list[Rule]]:
    """Rules whose choices are all there, and the others."""
    there = [rule.needs <= columns.keys() for rule in rules]
    return list(compress(rules, there)), list(compress(rules, (not ready for ready in there)))


def _join(columns: Columns, name: str, values: IntArray) -> dict[str, IntArray]:
    """Every row with every value of one more choice, which becomes the innermost."""
    rows = len(next(iter(columns.values()))) if columns else 1
    if rows * len(values) > _MOST_ROWS:
        raise InputError(
            f"search: more than {_MOST_ROWS:,} plans at {name}; give fewer values of it, or of the choices before it"
        )
    joined = {key: np.repeat(column, len(values)) for key, column in columns.items()}
    return joined | {name: np.tile(values, rows)}


def _rest(columns: Columns) -> IntArray:
    """dp, and where it is open (0) what the other degrees leave; still 0 where they leave nothing."""
    left = columns["gpus"] // (columns["tp"] * columns["pp"] * columns["cp"])
    return np.where(columns["dp"] == 0, left, columns["dp"])
