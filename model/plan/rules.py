"""What makes a plan legal: each rule said once, for one plan with words that name the fix, for a search as a count.

A rule looks at choices by their names: those of one plan, or of many combinations, some of whose choices may not be
there yet. What it compares them with (architecture, batch, framework) it is given as values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from moemodel.model.architecture.spec import Architecture, Attention, Layer, Moe, StateSpace
from moemodel.model.core.arrays import BoolArray, IntArray
from moemodel.model.frameworks.base import Framework, Precision
from moemodel.model.frameworks.registry import framework_of, frameworks_with
from moemodel.model.plan.context_comm import A2A, all_to_all_ranks, inner_ranks
from moemodel.model.plan.dispatch import ALL_TO_ALL, AS_THE_FRAMEWORK
from moemodel.model.plan.mesh import ParallelMesh
from moemodel.model.schedule import registry as schedules
from moemodel.model.schedule.batch import can_interleave, goes_in_rounds, lacks_chunks, least_micro_batches, pairs
from moemodel.model.schedule.pipeline_layout import counted_layers

Choices = Mapping[str, int]
Columns = Mapping[str, IntArray]  # many of them, each choice an array of one length, or a scalar

# Keys of rules, in the order in which a search asks them: a combination counts for the first that refuses it.
_ORDER = (
    *("heads", "kv_heads", "context_heads", "width", "expert_width", "layers", "context", "context_ranks"),
    *("experts", "no_experts", "sequence_shards"),
    *("degrees", "expert_ranks", "asked_expert_ranks"),
    *(
        "sequence_parallel",
        "virtual_stages",
        "schedule",
        "batch",
        "interleaving",
        "optimizer",
        "replicas",
        "mixed_precision",
    ),
    *("chunks_of_schedule", "filled_schedule", "paired_stages"),
)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Why a search counts a combination of choices out.

    Attributes:
        key: of the reason, for programs; rules about one reason (of several layers) share it.
        summary: the reason in words.
        needs: choices that it looks at; none where no choice could mend it.
        is_violated: which of some combinations it refuses.
    """

    key: str
    summary: str
    needs: frozenset[str]
    is_violated: Callable[[Columns], BoolArray]


@dataclass(frozen=True, kw_only=True)
class PlanRule(Rule):
    """What a plan has to be.

    Attributes:
        message: what is wrong with one plan that it refuses, and what is allowed.
    """

    message: Callable[[Choices], str]


def messages(rules: Iterable[PlanRule], choices: Choices) -> Iterator[str]:
    """What is wrong with one plan, in the order of the rules; later rules are not asked before it is wanted."""
    columns = {name: np.asarray(value, dtype=np.int64) for name, value in choices.items()}
    return (rule.message(choices) for rule in rules if rule.is_violated(columns))


def as_counted(rules: Iterable[PlanRule]) -> list[PlanRule]:
    """Those of some rules that choices can mend, in the order in which a search asks them."""
    return sorted((rule for rule in rules if rule.needs), key=lambda rule: _ORDER.index(rule.key))


def check_precision(backend: str, precision: Precision) -> None:
    """Refuse a precision that a framework is not known to train in.

    Raises:
        ValueError: what is allowed, and which frameworks have that precision.
    """
    known = framework_of(backend).precisions
    if precision in known:
        return
    others = ", ".join(frameworks_with(precision))
    raise ValueError(
        f"precision: found {precision} with backend {backend}; allowed: {', '.join(known)}; "
        f"{precision} goes with backend {others}"
    )


# ---- degrees that go together ---------------------------------------------------------------------------------------


def degree_rules(
    *,
    global_batch: int,
    framework: Framework,
    shards_states: bool = False,
    whole_matrices: bool = False,
    says_rounds: bool = False,
) -> list[PlanRule]:
    """Rules about the choices of a plan alone, in the order in which a plan is told of the first that it breaks.

    Args:
        global_batch: sequences in one step.
        framework: that trains it.
        shards_states: it keeps what its optimizer does in types that it has of sharded states alone.
        whole_matrices: its optimizer updates whole matrices.
        says_rounds: it says how many micro-batches pass a chunk before the next, which is checked where it is read.
    """
    return [
        *([_whole_matrices()] if whole_matrices else []),
        *([_sharded_states(framework.name)] if shards_states else []),
        _product_of_degrees(),
        _expert_ranks(framework.shards_experts),
        _asked_expert_ranks(),
        _replicas(framework),
        *_degrees_of(framework),
        _micro_batches(global_batch),
        _virtual_stages_of_a_pipeline(),
        *([] if says_rounds else [_interleaved_micro_batches(global_batch)]),
        _sequence_parallel_of_tp(),
        _interleaving_schedule(),
        _chunks_of_a_schedule(),
        _filled_schedule(global_batch),
        _paired_stages(global_batch),
    ]


def _sharded_states(backend: str) -> PlanRule:
    return PlanRule(
        key="optimizer",
        summary="optimizer needs zero_stage 1 or more",
        needs=_needs("zero_stage"),
        is_violated=lambda c: c["zero_stage"] < 1,
        message=lambda c: (
            f"optimizer: found types of states with zero_stage {c['zero_stage']} and backend {backend}; allowed: null, "
            "or zero_stage 1 and more"
        ),
    )


def _whole_matrices() -> PlanRule:
    return PlanRule(
        key="optimizer",
        summary="optimizer muon needs zero_stage 0 or 1",
        needs=_needs("zero_stage"),
        is_violated=lambda c: c["zero_stage"] > 1,
        message=lambda c: (
            f"optimizer: found muon with zero_stage {c['zero_stage']}, which cuts its matrices; allowed: adamw, or "
            "zero_stage 0 or 1"
        ),
    )


def _needs(names: str) -> frozenset[str]:
    return frozenset(names.split())


def _mesh(columns: Columns, *, shards_experts: bool = True) -> ParallelMesh[IntArray]:
    """The mesh of some choices; experts are not spread where ep is not chosen yet."""
    names = ("dp", "tp", "pp", "cp")
    one = np.ones_like(columns["tp"])
    others = {name: columns.get(name, one) for name in ("ep", "replicas")}
    asked = columns.get("etp", np.zeros_like(one))
    degrees = _Degrees(**{name: columns[name] for name in names}, **others, asked_etp=asked)
    return ParallelMesh.of(degrees, shards_experts=shards_experts)


class _Degrees(NamedTuple):
    dp: IntArray
    tp: IntArray
    pp: IntArray
    cp: IntArray
    ep: IntArray
    asked_etp: IntArray
    replicas: IntArray


def _product_of_degrees() -> PlanRule:
    def message(c: Choices) -> str:
        product = c["dp"] * c["tp"] * c["pp"] * c["cp"]
        return (
            f"parallel: dp {c['dp']} x tp {c['tp']} x pp {c['pp']} x cp {c['cp']} = {product}, but cluster.gpus is "
            f"{c['gpus']}; their product must be the GPU count"
        )

    return PlanRule(
        key="degrees",
        summary="dp x tp x pp x cp is not the number of GPUs",
        needs=_needs("gpus dp tp pp cp"),
        is_violated=lambda c: _mesh(c).world_size != c["gpus"],
        message=message,
    )


def _expert_ranks(shards_experts: bool) -> PlanRule:
    """Where tensor parallelism cuts no expert, experts spread over its ranks too."""
    axes = ("dp", "cp") if shards_experts else ("dp", "cp", "tp")
    over = " x ".join(axes)

    def message(c: Choices) -> str:
        ranks = math.prod(c[name] for name in axes)
        return f"parallel.ep {c['ep']} must divide {over} = {ranks}: experts spread over those GPUs"

    return PlanRule(
        key="expert_ranks",
        summary=f"ep does not divide {over}",
        needs=_needs("dp tp pp cp ep etp"),
        is_violated=lambda c: (
            (c["etp"] == 0) & (_mesh(c, shards_experts=shards_experts).max_ep % np.asarray(c["ep"]) != 0)
        ),
        message=message,
    )


def _asked_expert_ranks() -> PlanRule:
    """Experts lie on a mesh of their own within a stage (Megatron Core: etp x ep x edp x pp is the number of ranks)."""

    def message(c: Choices) -> str:
        ranks = c["dp"] * c["cp"] * c["tp"]
        return (
            f"parallel.etp {c['etp']} x ep {c['ep']} must divide dp x cp x tp = {ranks}: experts are cut and spread "
            "over those GPUs"
        )

    return PlanRule(
        key="asked_expert_ranks",
        summary="etp x ep does not divide dp x cp x tp",
        needs=_needs("dp tp pp cp ep etp"),
        is_violated=lambda c: (
            (c["etp"] > 0) & (_mesh(c).stage_size % np.maximum(np.asarray(c["etp"]) * c["ep"], 1) != 0)
        ),
        message=message,
    )


def _replicas(framework: Framework) -> PlanRule:
    """Groups that ZeRO shards over, each for itself."""

    def uneven(c: Columns) -> BoolArray:
        copies = _mesh(c, shards_experts=framework.shards_experts).max_ep // c["ep"]
        return np.asarray((c["dp"] % c["replicas"] != 0) | (copies % c["replicas"] != 0))

    def message(c: Choices) -> str:
        found = f"parallel.replicas: found {c['replicas']}"
        if not framework.replicates_shards:
            return f"{found} with backend {framework.name}, which shards over all data-parallel ranks; allowed: 1"
        if c["zero_stage"] < 1:
            return f"{found} with zero_stage 0, which shards nothing; allowed: 1, or zero_stage 1 and more"
        return f"{found} with dp {c['dp']}; allowed: divisors of it, and of the ranks that hold the same experts"

    return PlanRule(
        key="replicas",
        summary="replicas do not share out what ZeRO shards",
        needs=_needs("replicas dp tp pp cp ep etp zero_stage"),
        is_violated=lambda c: (
            (c["replicas"] > 1) & (uneven(c) | (c["zero_stage"] < 1) | (not framework.replicates_shards))
        ),
        message=message,
    )


def _degrees_of(framework: Framework) -> Iterator[PlanRule]:
    """What a framework's degrees are bound to."""
    if framework.data_parallel_only:
        yield _data_parallel_alone(framework.name)
    elif framework.float32_shards:
        yield _mixed_precision(framework.name)


def _data_parallel_alone(backend: str) -> PlanRule:
    return PlanRule(
        key="data_parallel",
        summary=f"{backend} trains the whole model on every GPU",
        needs=_needs("tp pp cp ep"),
        is_violated=lambda c: np.asarray(c["tp"] * c["pp"] * c["cp"] * c["ep"] > 1),
        message=lambda c: (
            f"parallel: found tp {c['tp']}, pp {c['pp']}, cp {c['cp']}, ep {c['ep']} with backend {backend}, which "
            "trains the whole model on every GPU; allowed: 1 each, and dp with any zero_stage"
        ),
    )


def _mixed_precision(backend: str) -> PlanRule:
    """FSDP casts float32 parameters, and autocast where nothing cuts the model; else torchtitan multiplies in float32
    (distributed/utils.py, maybe_enable_amp)."""

    def is_cut_alone(c: Columns) -> BoolArray:
        sharded = (c["zero_stage"] >= 1) & (c["dp"] * c["cp"] > 1)
        return np.asarray((c["tp"] * c["pp"] * c["cp"] > 1) & ~sharded)

    return PlanRule(
        key="mixed_precision",
        summary="tp, pp and cp need ZeRO over several ranks, without which products are float32",
        needs=_needs("zero_stage dp tp pp cp"),
        is_violated=is_cut_alone,
        message=lambda c: (
            f"parallel: found tp {c['tp']}, pp {c['pp']}, cp {c['cp']} with zero_stage {c['zero_stage']} and dp "
            f"{c['dp']}, where backend {backend} trains in float32, which no plan of it says; allowed: zero_stage 3 "
            "with dp x cp above 1"
        ),
    )


def _micro_batches(global_batch: int) -> PlanRule:
    return PlanRule(
        key="batch",
        summary=f"micro_batch x dp does not divide global_batch ({global_batch})",
        needs=_needs("dp micro_batch"),
        is_violated=lambda c: global_batch % (c["micro_batch"] * c["dp"]) != 0,
        message=lambda c: (
            f"global_batch {global_batch} must be a multiple of micro_batch x dp = {c['micro_batch'] * c['dp']}"
        ),
    )


def _virtual_stages_of_a_pipeline() -> PlanRule:
    return PlanRule(
        key="virtual_stages",
        summary="virtual_stages need pp > 1",
        needs=_needs("pp virtual_stages"),
        is_violated=lambda c: (c["virtual_stages"] > 1) & (c["pp"] == 1),
        message=lambda c: f"parallel.virtual_stages {c['virtual_stages']} needs pp > 1; pp is 1",
    )


def _interleaved_micro_batches(global_batch: int) -> PlanRule:
    """Interleaved 1F1B passes micro-batches on in rounds of pp (Narayanan et al. 2021, section 2.2)."""

    def message(c: Choices) -> str:
        micro_batches = global_batch // (c["micro_batch"] * c["dp"])
        return (
            f"parallel.virtual_stages {c['virtual_stages']}: {micro_batches} micro-batches (global_batch / "
            f"micro_batch / dp) are no multiple of pp {c['pp']}, as an interleaved schedule needs"
        )

    return PlanRule(
        key="interleaving",
        summary="virtual_stages: the micro-batches are no multiple of pp",
        needs=_needs("virtual_stages dp micro_batch pp schedule"),
        is_violated=lambda c: (
            (c["virtual_stages"] > 1)
            & goes_in_rounds(c["schedule"])
            & ((global_batch // (c["micro_batch"] * c["dp"])) % c["pp"] != 0)
        ),
        message=message,
    )


def _sequence_parallel_of_tp() -> PlanRule:
    return PlanRule(
        key="sequence_parallel",
        summary="sequence_parallel needs tp > 1",
        needs=_needs("tp sequence_parallel"),
        is_violated=lambda c: (c["sequence_parallel"] > 0) & (c["tp"] == 1),
        message=lambda _: "parallel.sequence_parallel needs tp > 1; tp is 1",
    )


def _interleaving_schedule() -> PlanRule:
    return PlanRule(
        key="schedule",
        summary=f"virtual_stages need schedule {' or '.join(schedules.INTERLEAVING)}",
        needs=_needs("virtual_stages schedule"),
        is_violated=lambda c: (c["virtual_stages"] > 1) & ~can_interleave(c["schedule"]),
        message=lambda c: (
            f"parallel.virtual_stages {c['virtual_stages']}: found schedule {schedules.NAMES[c['schedule']]}; "
            f"allowed: {', '.join(schedules.INTERLEAVING)}"
        ),
    )


def _chunks_of_a_schedule() -> PlanRule:
    """A schedule may be for one number of chunks alone."""

    def message(c: Choices) -> str:
        schedule = schedules.find(schedules.NAMES[c["schedule"]])
        return (
            f"schedule {schedule.name}: found parallel.virtual_stages {c['virtual_stages']} with pp {c['pp']}; "
            f"allowed: {schedule.only_virtual}"
        )

    return PlanRule(
        key="chunks_of_schedule",
        summary="the schedule is for another number of virtual_stages",
        needs=_needs("pp virtual_stages schedule"),
        is_violated=lambda c: (c["pp"] > 1) & lacks_chunks(c["schedule"], c["virtual_stages"]),
        message=message,
    )


def _filled_schedule(global_batch: int) -> PlanRule:
    """A schedule may need so many micro-batches."""

    def message(c: Choices) -> str:
        schedule = schedules.find(schedules.NAMES[c["schedule"]])
        return (
            f"schedule {schedule.name}: found {global_batch // (c['micro_batch'] * c['dp'])} micro-batches "
            f"(global_batch / micro_batch / dp) with pp {c['pp']}; allowed: {schedule.least_rounds * c['pp']} or more"
        )

    return PlanRule(
        key="filled_schedule",
        summary="the schedule needs more micro-batches",
        needs=_needs("pp dp micro_batch schedule"),
        is_violated=lambda c: (
            (c["pp"] > 1) & (global_batch // (c["micro_batch"] * c["dp"]) < least_micro_batches(c["schedule"], c["pp"]))
        ),
        message=message,
    )


def _paired_stages(global_batch: int) -> PlanRule:
    """Where ranks hold the same stages in pairs, half of the micro-batches go either way."""

    def micro_batches(c: Columns) -> IntArray:
        return np.asarray(global_batch // (c["micro_batch"] * c["dp"]))

    def message(c: Choices) -> str:
        many = global_batch // (c["micro_batch"] * c["dp"])
        return (
            f"schedule {schedules.NAMES[c['schedule']]}: found pp {c['pp']} and {many} micro-batches (global_batch / "
            "micro_batch / dp); allowed: even numbers of both"
        )

    return PlanRule(
        key="paired_stages",
        summary="the schedule needs even pp and micro-batches",
        needs=_needs("pp dp micro_batch schedule"),
        is_violated=lambda c: (
            (c["pp"] > 1) & pairs(np.asarray(c["schedule"])) & ((c["pp"] % 2 != 0) | (micro_batches(c) % 2 != 0))
        ),
        message=message,
    )


# ---- degrees and the architecture -----------------------------------------------------------------------------------


def architecture_rules(
    architecture: Architecture, *, sequence_length: int, skew: float, cp_comm: str | None = None
) -> list[PlanRule]:
    """Rules about the choices of a plan and what it trains, in the order in which a plan is told of them.

    Args:
        architecture: with as many layers as the plan trains.
        sequence_length: tokens.
        skew: rows of the busiest expert over the mean.
        cp_comm: how context-parallel ranks reach keys and values (`plan.context_comm`).
    """
    layers = list(dict.fromkeys(architecture.layers))
    experts = [layer.feed_forward.experts for layer in layers if isinstance(layer.feed_forward, Moe)]
    return [
        _chunks(counted_layers(architecture)),
        *(rule for layer in layers for rule in _layer_rules(layer, layers, experts, skew)),
        *_exchanged_heads(layers, cp_comm),
        _context_shards(sequence_length),
        *([] if experts else [_no_experts(architecture.name)]),
        *([] if experts else [_nothing_to_dispatch(architecture.name)]),
        _sequence_shards(sequence_length),
        *_positions(architecture, sequence_length),
    ]


def _layer_rules(layer: Layer, layers: list[Layer], experts: list[int], skew: float) -> Iterator[PlanRule]:
    """What one layer asks for; `layers` are all that differ, `experts` how many those have."""
    attentions = [attention for each in layers for attention in each.attentions]
    for attention in layer.attentions:
        yield _divides("heads", "tp", "the attention heads", attention.heads, [a.heads for a in attentions])
        if attention.latent is None:
            yield _shares_keys(attention, attentions)
    if layer.state_space is not None:
        yield from _state_space_rules(layer.state_space)
    feed_forward = layer.feed_forward
    if feed_forward is None:
        return
    widths = [each.feed_forward.width for each in layers if each.feed_forward is not None]
    if isinstance(feed_forward, Moe):
        yield _divides("experts", "ep", "the experts", feed_forward.experts, experts)
        yield _skewed(feed_forward, skew)
        yield _expert_width(feed_forward.width, widths)
    by_tp = _divides("width", "tp", "the feed-forward width", feed_forward.width, widths)
    yield _unless_cut_otherwise(by_tp, isinstance(feed_forward, Moe)) if experts else by_tp


def _state_space_rules(state_space: StateSpace) -> Iterator[PlanRule]:
    """Tensor parallelism cuts its groups and heads, context parallelism heads (Megatron-LM, ssm/mamba_mixer.py)."""
    heads, groups = state_space.heads, state_space.groups
    yield _divides("groups", "tp", "the groups of a state space", groups, [groups])
    yield PlanRule(
        key="state_space_heads",
        summary=f"tp cp does not divide the heads of a state space ({heads})",
        needs=_needs("tp cp"),
        is_violated=lambda c: heads % (c["tp"] * c["cp"]) != 0,
        message=lambda c: (
            f"parallel.cp: found {c['cp']} beside tp {c['tp']}; allowed: products that divide the {heads} heads of a "
            "state space, which cp cuts"
        ),
    )


def _sizes(sizes: Iterable[int]) -> str:
    return ", ".join(str(size) for size in sorted(set(sizes)))


def _divides(key: str, degree: str, what: str, size: int, sizes: list[int]) -> PlanRule:
    """A degree divides a size; `sizes` are all such of the architecture."""
    return PlanRule(
        key=key,
        summary=f"{degree} does not divide {what} ({_sizes(sizes)})",
        needs=_needs(degree),
        is_violated=lambda c: size % c[degree] != 0,
        message=lambda c: _not_divided(degree, c, what, size),
    )


def _expert_width(width: int, widths: list[int]) -> PlanRule:
    """Where a plan says by how much experts are cut."""
    return PlanRule(
        key="expert_width",
        summary=f"etp does not divide the feed-forward width ({_sizes(widths)})",
        needs=_needs("etp"),
        is_violated=lambda c: (c["etp"] > 0) & (width % np.maximum(c["etp"], 1) != 0),
        message=lambda c: _not_divided("etp", c, "the width of an expert", width),
    )


def _unless_cut_otherwise(rule: PlanRule, of_experts: bool) -> PlanRule:
    """A rule about tp and a width in a model with experts, whose width is no matter of tp where a plan says etp."""

    def is_violated(c: Columns) -> BoolArray:
        refused = np.asarray(rule.is_violated(c))
        return np.asarray(refused & (c["etp"] == 0)) if of_experts else refused

    return replace(rule, needs=rule.needs | {"etp"}, is_violated=is_violated)


def _not_divided(degree: str, choices: Choices, what: str, size: int) -> str:
    return f"parallel.{degree} {choices[degree]} does not divide {what} {size}; allowed: divisors of {size}"


def _exchanged_heads(layers: Sequence[Layer], cp_comm: str | None) -> Iterator[PlanRule]:
    """Heads that all-to-alls share out over context-parallel ranks, beside those of tensor parallelism."""
    inner = inner_ranks(cp_comm)
    if inner is not None:
        yield _inner_ranks(inner)
    if cp_comm is None or (inner is None and cp_comm != A2A):
        return
    for heads in sorted({heads for layer in layers for one in layer.attentions for heads in _head_counts(one)}):
        yield _shared_heads(heads, cp_comm)


def _head_counts(attention: Attention) -> tuple[int, ...]:
    """Of queries, and of keys and values, which those that are projected up from a latent have as many of."""
    return (attention.heads,) if attention.latent is not None else (attention.heads, attention.kv_heads)


def _inner_ranks(inner: int) -> PlanRule:
    return PlanRule(
        key="context_ranks",
        summary=f"cp is no multiple of the {inner} ranks of cp_comm's all-to-alls",
        needs=_needs("cp"),
        is_violated=lambda c: (c["cp"] > 1) & (c["cp"] % inner != 0),
        message=lambda c: (
            f"cp_comm: found all-to-alls among {inner} ranks with parallel.cp {c['cp']}; allowed: its divisors"
        ),
    )


def _shared_heads(heads: int, cp_comm: str) -> PlanRule:
    """Of one kind; where tensor-parallel ranks are more than the heads, each holds one."""

    def of_a_rank(c: Columns) -> IntArray:
        return np.asarray(np.maximum(heads // np.asarray(c["tp"]), 1))

    def message(c: Choices) -> str:
        mine = max(heads // c["tp"], 1)
        return (
            f"cp_comm: found {cp_comm} with parallel.cp {c['cp']} and tp {c['tp']}, which shares {heads} heads out; "
            f"allowed: all-to-alls among a divisor of the {mine} heads of a rank, or p2p or all_gather"
        )

    return PlanRule(
        key="context_heads",
        summary=f"cp_comm {cp_comm}: its ranks do not divide the heads of a tensor-parallel rank ({heads} in all)",
        needs=_needs("tp cp"),
        is_violated=lambda c: of_a_rank(c) % all_to_all_ranks(cp_comm, np.asarray(c["cp"])) != 0,
        message=message,
    )


class _HasKeyHeads(Protocol):
    """What has heads for keys, of its own or for groups of queries."""

    @property
    def kv_heads(self) -> int: ...
    @property
    def latent(self) -> object | None: ...


def _shares_keys(attention: _HasKeyHeads, attentions: Sequence[_HasKeyHeads]) -> PlanRule:
    """Key/value heads are shared out, or each copied to as many ranks."""
    heads = attention.kv_heads
    sizes = _sizes(a.kv_heads for a in attentions if a.latent is None)
    return PlanRule(
        key="kv_heads",
        summary=f"neither of tp and the key/value heads ({sizes}) divides the other",
        needs=_needs("tp"),
        is_violated=lambda c: (heads % c["tp"] != 0) & (c["tp"] % heads != 0),
        message=lambda c: f"parallel.tp {c['tp']} and the key/value heads {heads}: one must divide the other",
    )


def _skewed(moe: Moe, skew: float) -> PlanRule:
    """A token passes an expert at most once: the busiest holds at most all tokens, experts / top_k times the mean."""
    most = moe.experts / moe.top_k
    return _given(
        "skew",
        "routing.skew is more than experts / top_k",
        skew > most,
        f"routing.skew {skew}: top {moe.top_k} of {moe.experts} experts; allowed: at most {most:g}",
    )


def _given(key: str, summary: str, violated: bool, message: str) -> PlanRule:
    """A rule about what is given, not chosen."""
    return PlanRule(
        key=key,
        summary=summary,
        needs=frozenset(),
        is_violated=lambda _: np.asarray(violated),
        message=lambda _: message,
    )


def _chunks(layers: int) -> PlanRule:
    """Every chunk of a pipeline holds a layer; they need not hold equally many."""
    return PlanRule(
        key="layers",
        summary=f"pp x virtual_stages is more than the layers ({layers})",
        needs=_needs("pp virtual_stages"),
        is_violated=lambda c: c["pp"] * c["virtual_stages"] > layers,
        message=lambda c: (
            f"parallel.pp x virtual_stages {c['pp'] * c['virtual_stages']} is more than the {layers} layers; "
            f"allowed: at most {layers}"
        ),
    )


def _context_shards(sequence_length: int) -> PlanRule:
    """Causal attention loads context ranks evenly where each takes a piece from either end of a sequence."""
    return PlanRule(
        key="context",
        summary=f"twice cp does not divide the sequence length ({sequence_length})",
        needs=_needs("cp"),
        is_violated=lambda c: (c["cp"] > 1) & (sequence_length % (2 * c["cp"]) != 0),
        message=lambda c: (
            f"parallel.cp {c['cp']}: twice cp, {2 * c['cp']}, does not divide sequence_length {sequence_length}, and "
            "every GPU takes two pieces of a sequence; change cp or sequence_length"
        ),
    )


def _no_experts(name: str) -> PlanRule:
    return PlanRule(
        key="experts",
        summary="ep does not divide the experts (none)",
        needs=_needs("ep"),
        is_violated=lambda c: c["ep"] > 1,
        message=lambda c: f"parallel.ep {c['ep']}: {name} has no experts; use ep 1",
    )


def _nothing_to_dispatch(name: str) -> PlanRule:
    """What says how experts are cut and reached, of a model that has none."""
    unsaid = {
        "etp": ("parallel", 0),
        "dispatch": ("routing", ALL_TO_ALL),
        "node_limit": ("routing", 0),
        "dispatch_overlap": ("routing", AS_THE_FRAMEWORK),
    }

    def message(c: Choices) -> str:
        found = [f"{group}.{key}" for key, (group, usual) in unsaid.items() if c[key] != usual]
        return f"{', '.join(found)}: {name} has no experts; leave it out"

    return PlanRule(
        key="no_experts",
        summary="etp, dispatch and node limits need experts",
        needs=frozenset(unsaid),
        is_violated=lambda c: np.logical_or.reduce(
            np.broadcast_arrays(*(np.asarray(c[key]) != usual for key, (_, usual) in unsaid.items()))
        ),
        message=message,
    )


def _sequence_shards(sequence_length: int) -> PlanRule:
    return PlanRule(
        key="sequence_shards",
        summary=f"sequence_parallel: tp does not divide the sequence length ({sequence_length})",
        needs=_needs("tp sequence_parallel"),
        is_violated=lambda c: (c["sequence_parallel"] > 0) & (sequence_length % c["tp"] != 0),
        message=lambda c: _not_divided("tp", c, "sequence_length (sequence_parallel)", sequence_length),
    )


def _positions(architecture: Architecture, sequence_length: int) -> Iterator[PlanRule]:
    """Learned positions end somewhere."""
    positions = min(architecture.learned_positions, architecture.max_seq or architecture.learned_positions)
    if positions:
        yield _given(
            "positions",
            "sequence_length is more than the learned positions",
            sequence_length > positions,
            f"sequence_length {sequence_length}: {architecture.name} has {positions} "
            "learned positions; allowed: at most that",
        )
