"""The training plan: what a user writes in `plan.yaml`, checked, and the same as arrays over many plans."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, ModelWrapValidatorHandler, PrivateAttr, model_validator

from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.core.documents import Strict, read_yaml
from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.frameworks.base import Precision
from moemodel.model.frameworks.registry import FORMER_NAMES, framework_of, frameworks_with
from moemodel.model.hardware.link import Link
from moemodel.model.schedule import registry as schedules
from moemodel.model.schedule.base import Sizes
from moemodel.model.schedule.batch import PlanSchedules

RecomputeName = Literal["none", "selective", "full"]
if TYPE_CHECKING:
    ScheduleName = str
else:  # of those that are registered
    ScheduleName = Literal[schedules.NAMES]


class Recompute(IntEnum):
    """What the backward pass computes again instead of keeping it (Korthikanti et al. 2022, section 5)."""

    NONE = 0
    SELECTIVE = 1  # the attention core
    FULL = 2  # every layer from its input


RECOMPUTE: dict[str, Recompute] = {name.name.lower(): name for name in Recompute}


def _printable(text: str) -> str:
    """Refuses what a terminal would obey instead of showing."""
    if not text.isprintable():
        raise ValueError("allowed: characters that can be printed, on one line")
    return text


Text = Annotated[str, AfterValidator(_printable)]
Count = Annotated[int, Field(gt=0, strict=True)]  # strict: `true` is no 1
Rate = Annotated[float, Field(gt=0, strict=True)]


class ClusterSpec(Strict):
    """The GPUs at hand."""

    gpu: Text = Field(description="a known GPU, or the path of a GPU description")
    gpus: Count = 1
    gpus_per_node: Count | None = Field(default=None, description="default: what the GPU description says")
    internode: Text | Link = Field(
        default="infiniband-ndr",
        description="network between nodes: a known one, a link, or the path of a cluster file",
    )


class ParallelSpec(Strict):
    """Degrees of parallelism; dp x tp x pp x cp is the GPU count, and experts spread over dp x cp."""

    dp: Count = 1
    tp: Count = 1
    pp: Count = 1
    ep: Count = 1
    cp: Count = 1
    zero_stage: Annotated[int, Field(ge=0, le=3, strict=True)] = 0
    sequence_parallel: bool = False
    virtual_stages: Count = 1


class RoutingSpec(Strict):
    """How evenly the router loads the experts."""

    skew: Literal["balanced"] | Annotated[float, Field(ge=1.0, strict=True)] = Field(
        default="balanced", description="rows of the busiest expert over the mean"
    )


class SiteSpec(Strict):
    """Where the run takes place."""

    region: Text = "world"
    pue: Annotated[float, Field(ge=1.0, strict=True)] = 1.2
    price_per_kWh: Annotated[float, Field(ge=0.0, strict=True)] | None = None
    gpu_hour_price: Annotated[float, Field(ge=0.0, strict=True)] | None = None
    currency: Text = "USD"
    inlet_C: Annotated[float, Field(ge=-40.0, le=80.0, strict=True)] | None = Field(
        default=None, description="temperature of the air that the GPUs draw in; null: as it was at calibration"
    )
    host_power_W: Annotated[float, Field(ge=0.0, strict=True)] = Field(
        default=0.0, description="power of the rest of a node (processors, fans, NICs), per GPU"
    )


def _known_framework(name: str) -> str:
    """The name of a framework, also where a former one is given."""
    try:
        return framework_of(name).name
    except InputError as error:
        raise ValueError(str(error).partition("; ")[2]) from None


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


def in_todays_words(document: Any) -> tuple[Any, str | None]:
    """A document whose backend has a former name, which held a precision too, as it is written today; and that name.

    Raises:
        ValueError: it asks for another precision than that name held.
    """
    former = FORMER_NAMES.get(document["backend"]) if _names_backend(document) else None
    if former is None:
        return document, None
    named, precision = document["backend"], document.get("precision", former.precision)
    if precision != former.precision:
        raise ValueError(
            f"precision: found {precision} with backend {named}; allowed: {former.precision}; {named} is now written "
            f"backend: {former.framework}, precision: {former.precision}"
        )
    return document | {"backend": former.framework, "precision": precision}, named


def _names_backend(document: Any) -> bool:
    return isinstance(document, dict) and isinstance(document.get("backend"), str)


Backend = Annotated[Text, AfterValidator(_known_framework)]


class Plan(Strict):
    """One training plan, as a user writes it."""

    name: Text = "plan"
    architecture: Text = Field(description="a known architecture, or the path of a Hugging Face config.json")
    layers: Count | None = Field(default=None, description="train only that many decoder layers")
    sequence_length: Count
    global_batch: Count = Field(description="sequences in one optimizer step")
    micro_batch: Count = Field(default=1, description="sequences in one forward pass of one replica")
    precision: Precision = "bf16-mixed"
    recompute: RecomputeName = "none"
    schedule: ScheduleName = schedules.DEFAULT
    backend: Backend = Field(default="torch", description="training framework")
    cluster: ClusterSpec
    parallel: ParallelSpec = ParallelSpec()
    routing: RoutingSpec = RoutingSpec()
    clock_MHz: Rate | None = Field(default=None, description="SM clock to hold; null: the governor decides")
    power_cap_W: Rate | None = Field(default=None, description="per GPU; null: the GPU's own limit")
    site: SiteSpec = SiteSpec()
    tokens: Rate | None = Field(default=None, description="tokens to train on; null: no totals for the run")
    _former_backend: str | None = PrivateAttr(default=None)

    @property
    def former_backend(self) -> str | None:
        """The former name of the framework that the document gave, which held the precision too; None: today's."""
        return self._former_backend

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one replica in a step."""
        return self.global_batch // (self.micro_batch * self.parallel.dp)

    @model_validator(mode="wrap")
    @classmethod
    def _words_of_today(cls, document: Any, validated: ModelWrapValidatorHandler[Plan]) -> Plan:
        today, former = in_todays_words(document)
        plan = validated(today)
        if former is not None:
            plan._former_backend = former
        return plan

    @model_validator(mode="after")
    def _software(self) -> Plan:
        check_precision(self.backend, self.precision)
        return self

    @model_validator(mode="after")
    def _degrees(self) -> Plan:
        p, gpus = self.parallel, self.cluster.gpus
        product = p.dp * p.tp * p.pp * p.cp
        if product != gpus:
            raise ValueError(
                f"parallel: dp {p.dp} x tp {p.tp} x pp {p.pp} x cp {p.cp} = {product}, but cluster.gpus is {gpus}; "
                "their product must be the GPU count"
            )
        over, ranks = (
            ("dp x cp", p.dp * p.cp)
            if framework_of(self.backend).shards_experts
            else ("dp x cp x tp", p.dp * p.cp * p.tp)
        )
        if ranks % p.ep:
            raise ValueError(f"parallel.ep {p.ep} must divide {over} = {ranks}: experts spread over those GPUs")
        if self.global_batch % (self.micro_batch * p.dp):
            raise ValueError(
                f"global_batch {self.global_batch} must be a multiple of micro_batch x dp = {self.micro_batch * p.dp}"
            )
        if p.virtual_stages > 1 and p.pp == 1:
            raise ValueError(f"parallel.virtual_stages {p.virtual_stages} needs pp > 1; pp is 1")
        if p.virtual_stages > 1 and self.micro_batches % p.pp:
            raise ValueError(
                f"parallel.virtual_stages {p.virtual_stages}: {self.micro_batches} micro-batches (global_batch / "
                f"micro_batch / dp) are no multiple of pp {p.pp}, as an interleaved schedule needs"
            )
        if p.sequence_parallel and p.tp == 1:
            raise ValueError("parallel.sequence_parallel needs tp > 1; tp is 1")
        if p.virtual_stages > 1 and self.schedule not in schedules.INTERLEAVING:
            raise ValueError(
                f"parallel.virtual_stages {p.virtual_stages}: found schedule {self.schedule}; "
                f"allowed: {', '.join(schedules.INTERLEAVING)}"
            )
        highest = schedules.find(self.schedule, p.virtual_stages).highest_zero_stage
        allowed = " or ".join(str(stage) for stage in range(highest + 1))
        if p.zero_stage > highest and p.pp > 1:
            raise ValueError(
                f"parallel.zero_stage {p.zero_stage} with pp {p.pp}: gradients cannot stay sharded across the "
                f"micro-batches of a pipeline; use zero_stage {allowed}, or pp 1"
            )
        return self


def read_plan(path: Path) -> Plan:
    """A checked plan from a YAML file.

    Raises:
        InputError: the file, line and key of each mistake, what was found and what is allowed.
    """
    return read_yaml(path, Plan)


def plan_text(plan: Plan) -> str:
    """A plan as YAML that `read_plan` reads back to the same plan."""
    return yaml.safe_dump(plan.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True)


@dataclass(frozen=True, kw_only=True)
class PlanBatch:
    """Plans of one architecture on one cluster, as arrays of length P (or scalars that broadcast).

    Units: batches and sequence in sequences and tokens; clock in Hz and cap in W, NaN where the GPU decides.
    """

    dp: IntArray
    tp: IntArray
    pp: IntArray
    ep: IntArray
    cp: IntArray
    zero_stage: IntArray
    sequence_parallel: IntArray
    virtual_stages: IntArray
    micro_batch: IntArray
    global_batch: IntArray
    seq: IntArray
    recompute: IntArray
    schedule: IntArray
    skew: FloatArray
    clock_Hz: FloatArray
    power_cap_W: FloatArray

    @classmethod
    def of(cls, **columns: Any) -> PlanBatch:
        """Broadcast columns (numbers or arrays) to one length P."""
        kinds = {f.name: np.float64 if f.name in _FLOATS else np.int64 for f in fields(cls)}
        arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(columns[n], dtype=t)) for n, t in kinds.items()))
        return cls(**dict(zip(kinds, (np.ascontiguousarray(a) for a in arrays), strict=True)))

    def __len__(self) -> int:
        return int(self.dp.size)

    @property
    def micro_batches(self) -> IntArray:
        """Micro-batches of one replica in a step."""
        return self.global_batch // (self.micro_batch * self.dp)

    @property
    def gpus(self) -> IntArray:
        return self.dp * self.tp * self.pp * self.cp

    @cached_property
    def schedules(self) -> PlanSchedules:
        """What follows from the schedules of the plans."""
        sizes = Sizes(stages=self.pp, virtual=self.virtual_stages, micro_batches=self.micro_batches)
        return PlanSchedules(self.schedule, sizes)

    def take(self, rows: IntArray | NDArray[np.bool_]) -> PlanBatch:
        """The plans at these rows."""
        return PlanBatch(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


_FLOATS = {"skew", "clock_Hz", "power_cap_W"}


def batch_of(plan: Plan) -> PlanBatch:
    """A batch of one."""
    p = plan.parallel
    return PlanBatch.of(
        dp=p.dp,
        tp=p.tp,
        pp=p.pp,
        ep=p.ep,
        cp=p.cp,
        zero_stage=p.zero_stage,
        sequence_parallel=int(p.sequence_parallel),
        virtual_stages=p.virtual_stages,
        micro_batch=plan.micro_batch,
        global_batch=plan.global_batch,
        seq=plan.sequence_length,
        recompute=RECOMPUTE[plan.recompute],
        schedule=schedules.number(plan.schedule),
        skew=1.0 if plan.routing.skew == "balanced" else plan.routing.skew,
        clock_Hz=np.nan if plan.clock_MHz is None else plan.clock_MHz * 1e6,
        power_cap_W=np.nan if plan.power_cap_W is None else plan.power_cap_W,
    )


def _divides(name: str, value: int, what: str, size: int) -> str | None:
    return None if size % value == 0 else f"{name} {value} does not divide {what} {size}; allowed: divisors of {size}"


def _too_many_chunks(parallel: ParallelSpec, layers: int) -> str | None:
    """Every chunk of a pipeline holds a layer; they need not hold equally many."""
    chunks = parallel.pp * parallel.virtual_stages
    if chunks <= layers:
        return None
    return f"parallel.pp x virtual_stages {chunks} is more than the {layers} layers; allowed: at most {layers}"


def _splits_keys(tp: int, kv_heads: int) -> str | None:
    """Key/value heads are shared out, or each copied to as many ranks."""
    if kv_heads % tp == 0 or tp % kv_heads == 0:
        return None
    return f"parallel.tp {tp} and the key/value heads {kv_heads}: one must divide the other"


def _too_skewed(plan: Plan, moe: Moe) -> str | None:
    """A token passes an expert at most once: the busiest holds at most all tokens, experts / top_k times the mean."""
    skew, most = plan.routing.skew, moe.experts / moe.top_k
    if skew == "balanced" or skew <= most:
        return None
    return f"routing.skew {skew}: top {moe.top_k} of {moe.experts} experts; allowed: at most {most:g}"


def check_architecture(plan: Plan, architecture: Architecture) -> None:
    """Refuse a plan whose degrees do not divide the architecture, or cut it into more chunks than it has layers.

    Raises:
        InfeasiblePlanError: every such degree, and what is allowed.
    """
    p = plan.parallel
    found = [_too_many_chunks(p, len(architecture.layers))]
    for layer in dict.fromkeys(architecture.layers):
        for attention in layer.attentions:
            found.append(_divides("parallel.tp", p.tp, "the attention heads", attention.heads))
            if attention.latent is None:
                found.append(_splits_keys(p.tp, attention.kv_heads))
        feed_forward = layer.feed_forward
        if isinstance(feed_forward, Moe):
            found.append(_divides("parallel.ep", p.ep, "the experts", feed_forward.experts))
            found.append(_too_skewed(plan, feed_forward))
        found.append(_divides("parallel.tp", p.tp, "the feed-forward width", feed_forward.width))
    if p.cp > 1 and plan.sequence_length % (2 * p.cp):
        found.append(
            f"parallel.cp {p.cp}: twice cp, {2 * p.cp}, does not divide sequence_length {plan.sequence_length}, and "
            "every GPU takes two pieces of a sequence; change cp or sequence_length"
        )
    if p.ep > 1 and not any(isinstance(layer.feed_forward, Moe) for layer in architecture.layers):
        found.append(f"parallel.ep {p.ep}: {architecture.name} has no experts; use ep 1")
    if p.sequence_parallel and plan.sequence_length % p.tp:
        found.append(_divides("parallel.tp", p.tp, "sequence_length (sequence_parallel)", plan.sequence_length))
    positions = min(architecture.learned_positions, architecture.max_seq or architecture.learned_positions)
    if positions and plan.sequence_length > positions:
        found.append(
            f"sequence_length {plan.sequence_length}: {architecture.name} has {positions} "
            "learned positions; allowed: at most that"
        )
    mistakes = [message for message in dict.fromkeys(found) if message]
    if mistakes:
        raise InfeasiblePlanError(f"{plan.name}: " + "; ".join(mistakes))
