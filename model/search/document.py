"""What to search: what a user writes in `search.yaml`, checked.

It reads like a plan, but for the choices: under `search` each of them may be left out (everything legal, within the
bounds that `candidates` names), be a list, or be one value.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ModelWrapValidatorHandler, model_validator

from moemodel.model.core.documents import Strict, Switch, read_yaml
from moemodel.model.frameworks.base import Fp8Recipe, Precision
from moemodel.model.frameworks.framework_file import is_known_by_now
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.hardware.gpu import GpuVariant
from moemodel.model.hardware.link import Link
from moemodel.model.plan.context_comm import CpComm
from moemodel.model.plan.data_loading import DataLoadingSpec
from moemodel.model.plan.dispatch import OF_DISPATCH, DispatchName
from moemodel.model.plan.failures import FailuresSpec
from moemodel.model.plan.left_to_framework import ONE_FOR_ALL
from moemodel.model.plan.lora import LoraSpec
from moemodel.model.plan.offload import OffloadSpec
from moemodel.model.plan.optimizer_states import OptimizerStates, check_optimizer, needs_shards
from moemodel.model.plan.paths import NamesFiles
from moemodel.model.plan.recompute import RecomputeName
from moemodel.model.plan.routing import NodeLimit, RoutingSpec
from moemodel.model.plan.rules import check_precision
from moemodel.model.plan.spec import (
    MOST_GPUS,
    Backend,
    Clock_MHz,
    ContextParallel,
    Count,
    DataParallel,
    ExpertParallel,
    Gpus,
    MicroBatch,
    ParallelSpec,
    Plan,
    Power_W,
    Rate,
    ScheduleName,
    SiteSpec,
    Stages,
    TensorParallel,
    Text,
    Tokens,
    TokensOfRun,
    ZeroStage,
    check_dispatch_dtype,
    check_fp8_recipe,
    check_muon,
    check_named_host,
    check_parameter_dtype,
    check_tokens,
    in_todays_words,
)
from moemodel.model.plan.stage_layers import EndSlots
from moemodel.model.schedule import registry as schedules
from moemodel.model.search.deadline import Deadline, Moment, hours_until, in_words, names_a_date, this_minute
from moemodel.model.search.quantities import (
    DEADLINE,
    DEFAULT_OBJECTIVES,
    FORMER_NAMES,
    WITHOUT_POWER,
    GoalName,
    ObjectiveName,
    goal_objectives,
    of_run,
    unpriced,
)

T = TypeVar("T")

OF_MEMORY = ("memory_share", "memory_risk")  # limits that are asked before anything is predicted

_MOST_CLOCKS = 1000  # of a range: an H100 has 110, so more is a typing error


def _listed(value: Any) -> Any:
    """One value means a list of one."""
    return value if isinstance(value, list | tuple | dict | BaseModel) or value is None else [value]


def _once(values: tuple[T, ...]) -> tuple[T, ...]:
    """Each value once, in the order given: a value written twice is no second candidate."""
    return tuple(dict.fromkeys(values))


def _gpu_counts(value: Any) -> Any:
    """A range of numbers of GPUs, {from, to, step}, is a list of them; its step is where it begins, unless it says."""
    if not isinstance(value, dict):
        return _listed(value)
    asked = {"step": value.get("from")} | value
    numbers = [asked.get(name) for name in ("from", "to", "step")]
    whole = [n for n in numbers if isinstance(n, int) and not isinstance(n, bool) and 0 < n <= MOST_GPUS]
    if len(asked) != len(numbers) or len(whole) != len(numbers) or whole[0] > whole[1]:
        raise ValueError(f"allowed: a number, a list, or {{from, to, step}} of whole numbers up to {MOST_GPUS:,}")
    return tuple(range(whole[0], whole[1] + 1, whole[2]))


def _given(value: Any) -> Any:
    """A key with nothing but comments under it gives nothing."""
    return {} if value is None else value


def _objectives_of_today(values: Any) -> Any:
    """Listed, and by the names that they have today."""
    listed = _listed(values)
    if not isinstance(listed, list | tuple):
        return listed
    return tuple(FORMER_NAMES.get(value, value) if isinstance(value, str) else value for value in listed)


_AsList = BeforeValidator(_listed)
_Some = Field(min_length=1)
_Once = AfterValidator(_once)

# as many values as a list may have: assumed, more is no list of a person's
_Several = Field(max_length=1000)
Counts = Annotated[tuple[Gpus, ...], _AsList, _Some, _Several, _Once]
DataParallels = Annotated[tuple[DataParallel, ...], _AsList, _Some, _Several, _Once]
TensorParallels = Annotated[tuple[TensorParallel, ...], _AsList, _Some, _Several, _Once]
StageCounts = Annotated[tuple[Stages, ...], _AsList, _Some, _Several, _Once]
ExpertParallels = Annotated[tuple[ExpertParallel, ...], _AsList, _Some, _Several, _Once]
ExpertTensorParallels = Annotated[tuple[TensorParallel | None, ...], _AsList, _Some, _Several, _Once]
Dispatches = Annotated[tuple[DispatchName, ...], _AsList, _Some, _Once]
NodeLimits = Annotated[tuple[NodeLimit | None, ...], _AsList, _Some, _Several, _Once]
Overlaps = Annotated[tuple[Switch | None, ...], _AsList, _Some, _Once]
ContextParallels = Annotated[tuple[ContextParallel, ...], _AsList, _Some, _Several, _Once]
MicroBatches = Annotated[tuple[MicroBatch, ...], _AsList, _Some, _Several, _Once]
Switches = Annotated[tuple[Switch, ...], _AsList, _Some, _Once]
ZeroStages = Annotated[tuple[ZeroStage, ...], _AsList, _Some, _Once]
Recomputes = Annotated[tuple[RecomputeName, ...], _AsList, _Some, _Once]
Schedules = Annotated[tuple[ScheduleName, ...], _AsList, _Some, _Once]
ClusterGpus = Annotated[tuple[Gpus, ...], BeforeValidator(_gpu_counts), _Some, _Several, _Once]
Objectives = Annotated[
    tuple[ObjectiveName, ...], BeforeValidator(_objectives_of_today), Field(min_length=1, max_length=2), _Once
]
Share = Annotated[float, Field(gt=0, le=1, strict=True)]


class ClockRange(Strict):
    """SM clocks from one to another, both included, each moved to the nearest that the GPU has. MHz."""

    lowest: Clock_MHz = Field(alias="from")
    highest: Clock_MHz = Field(alias="to")
    step: Rate


def _listed_clocks(value: Any) -> Any:
    """One clock means a list of one."""
    if isinstance(value, bool) or value == [] or (isinstance(value, str) and value != "measured"):
        raise ValueError("allowed: a clock, a list of clocks, {from, to, step}, measured, or null")
    return value if isinstance(value, str) else _listed(value)


ClockList = Annotated[tuple[Clock_MHz | None, ...], _Several, _Once]
OneClock = Annotated[Literal["measured"] | ClockRange | ClockList | None, BeforeValidator(_listed_clocks)]


class ClocksPer(Strict):
    """One clock for the whole run first; then clocks of their own for each stage, or each stage and phase, of the plans
    on the front."""

    per: Literal["stage", "phase"]
    clocks: OneClock = Field(default="measured", description="one clock for the whole run, as clocks_MHz may be")


Clocks = Annotated[Literal["measured"] | ClocksPer | ClockRange | ClockList | None, BeforeValidator(_listed_clocks)]


class SearchCluster(Strict):
    """The GPUs at hand, as in a plan; `gpus` may be several counts to choose from, or a range {from, to, step}."""

    gpu: Text
    gpu_variant: GpuVariant | None = None
    gpus: ClusterGpus = (1,)
    gpus_per_node: Gpus | None = None
    internode: Text | Link = "infiniband-ndr"
    data_loading: DataLoadingSpec | None = None


class Ranges(Strict):
    """The choices of a plan that are searched; None: everything legal, within the bounds of `candidates`."""

    dp: DataParallels | None = None
    tp: TensorParallels | None = None
    pp: StageCounts | None = None
    ep: ExpertParallels | None = None
    etp: ExpertTensorParallels | None = Field(default=None, description="left out: as the framework does")
    dispatch: Dispatches | None = Field(default=None, description="this and the next two left out: as routing says")
    node_limit: NodeLimits | None = None
    dispatch_overlap: Overlaps | None = None
    cp: ContextParallels | None = None
    zero_stage: ZeroStages | None = None
    replicas: DataParallels | None = None
    sequence_parallel: Switches | None = None
    virtual_stages: StageCounts | None = None
    micro_batch: MicroBatches | None = None
    recompute: Recomputes | None = None


class Limits(Strict):
    """What a plan may need at most, by the predicted value; None: no limit.

    Attributes:
        step_time_s: one optimizer step; `run_hours` or `run_days` the whole run.
        it_energy_J: of one step, of GPUs and hosts (formerly `energy_J`); `gpu_energy_J` of the GPUs alone.
        run_kWh: of the whole run, at the meter; `run_kgCO2e` its emissions.
        run_cost: of the whole run, in `site.currency`: energy and GPU hours, as far as the site gives their prices.
        power_per_gpu_W: mean over the step, of the GPU that draws most.
        node_power_W: mean over the step, of the node that draws most, hosts included: no more than as many GPUs as
            a node has at the power of the GPU that draws most, and no more than the cluster.
        cluster_power_W: mean over the step, of all GPUs and hosts; without cooling.
        peak_power_per_gpu_W, peak_node_power_W, peak_cluster_power_W: the same in the phase that draws most, as if
            all GPUs were in it at once (`search.power`).
        memory_share: of a GPU's memory.
        memory_risk: probability of not fitting in memory, below which a plan is kept (`fit_probability` of what is
            found); None: 0.5. What does not fit at all (with 0.95 or more) is refused at any.
        deadline: of the whole run, from `start` on: hours, a duration ("30 days"), or a date ("2027-01-15" begins that
            day; "2027-01-15T12:00+01:00"; UTC unless it says otherwise).
        start: of the run, a date; where the deadline is one, and nothing is given, the minute that the document is
            read in.
    """

    step_time_s: Rate | None = None
    run_hours: Rate | None = None
    run_days: Rate | None = None
    it_energy_J: Rate | None = None
    gpu_energy_J: Rate | None = None
    run_kWh: Rate | None = None
    run_kgCO2e: Rate | None = None
    run_cost: Rate | None = None
    power_per_gpu_W: Rate | None = None
    node_power_W: Rate | None = None
    cluster_power_W: Rate | None = None
    peak_power_per_gpu_W: Rate | None = None
    peak_node_power_W: Rate | None = None
    peak_cluster_power_W: Rate | None = None
    memory_share: Share | None = None
    memory_risk: Annotated[float, Field(gt=0, lt=1, strict=True)] | None = None
    deadline: Deadline | None = None
    start: Moment | None = None

    @property
    def given(self) -> dict[str, float]:
        """What is limited, by name, in the unit of the name; the deadline in hours from the start."""
        values = self.model_dump(exclude_none=True, exclude={DEADLINE, "start"})
        hours = hours_until(self.deadline, self.start)
        return values if hours is None else values | {DEADLINE: hours}

    @property
    def deadline_note(self) -> str:
        """What a deadline that is a date means; "" where there is none."""
        if self.start is None or not isinstance(self.deadline, datetime):
            return ""
        hours = hours_until(self.deadline, self.start)
        return (
            f"The deadline, {in_words(self.deadline)}, is {hours:,.1f} hours after the start, {in_words(self.start)}."
        )

    @model_validator(mode="after")
    def _ends_after_it_starts(self) -> Limits:
        hours = hours_until(self.deadline, self.start)
        if hours is not None and hours <= 0:
            raise ValueError(f"deadline: found {self.deadline}, which is not after the start, {self.start}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _starts_now(cls, limits: Any) -> Any:
        if not isinstance(limits, dict) or limits.get("start") is not None or not names_a_date(limits.get(DEADLINE)):
            return limits
        return limits | {"start": this_minute()}

    @model_validator(mode="before")
    @classmethod
    def _words_of_today(cls, limits: Any) -> Any:
        former = [name for name in FORMER_NAMES if isinstance(limits, dict) and name in limits]
        for name in former:
            today = FORMER_NAMES[name]
            if today in limits:
                raise ValueError(f"{today}: stands twice, once by its former name {name}; keep one of them")
            limits = {today if key == name else key: value for key, value in limits.items()}
        return limits


class Search(NamesFiles):
    """One search, as a user writes it. Keys of the same name mean what they mean in a plan.

    >>> import moemodel
    >>> document = moemodel.Search.model_validate({
    ...     "architecture": "opt-350m",
    ...     "sequence_length": 2048,
    ...     "global_batch": 64,
    ...     "cluster": {"gpu": "h100-sxm-80gb", "gpus": [4, 8]},
    ...     "search": {"micro_batch": [1, 2, 4], "cp": 1},
    ...     "limits": {"step_time_s": 1.0},
    ... })
    >>> document.search.tp is None  # everything legal
    True

    From a file it is read by `moemodel.read_search`, whose errors name file, line and key.
    """

    name: Text = "search"
    architecture: Text
    layers: Stages | None = None
    sequence_length: Tokens
    global_batch: Count
    precision: Precision = "bf16-mixed"
    schedule: Schedules = (schedules.DEFAULT,)
    fp8_recipe: Fp8Recipe | None = None
    parameter_dtype: Literal["bf16", "fp8"] | None = None
    activation_input_dtype: Literal["fp8"] | None = None
    tp_comm_overlap: Switch | None = None
    loss_chunks: Annotated[int, Field(gt=1, le=1_000_000, strict=True)] | None = None
    cp_comm: CpComm | None = None
    multi_token: Switch | None = None
    dropout: Switch | None = None
    optimizer: OptimizerStates | None = None
    lora: LoraSpec | None = None
    offload: OffloadSpec | None = None
    stage_layers: EndSlots | None = None
    backend: Backend = "torch"
    cluster: SearchCluster
    routing: RoutingSpec = RoutingSpec()
    power_cap_W: Power_W | None = None
    site: SiteSpec = SiteSpec()
    tokens: TokensOfRun | None = None
    failures: FailuresSpec | None = None
    search: Annotated[Ranges, BeforeValidator(_given)] = Ranges()
    clocks_MHz: Clocks = Field(
        default="measured",
        description="one clock for the whole run; null: what the power limit allows; measured: that, and ten clocks "
        "over the range that the calibration measured; {per: stage} or {per: phase}: these, then clocks by stage, or "
        "by stage and phase, for plans on the front",
    )
    objectives: Objectives | None = Field(
        default=None,
        description="one or two; default: step_time_s and it_energy_J; without measured power step_time_s alone",
    )
    goal: GoalName | None = Field(
        default=None, description="what is best, in a word, instead of objectives: it and step time are the objectives"
    )
    limits: Annotated[Limits, BeforeValidator(_given)] = Limits()
    # 20: as many as a person looks through; 0.05: assumed, what a user gives up in time for less energy
    keep: Count = Field(default=20, description="plans of the front to keep, the picks always among them")
    within_of_fastest: Annotated[float, Field(ge=0, strict=True)] = Field(
        default=0.05,
        description="how much worse than the best in the first objective a pick may be, as a share: of the fastest's "
        "step time",
    )

    @model_validator(mode="wrap")
    @classmethod
    def _words_of_today(cls, document: Any, validated: ModelWrapValidatorHandler[Search]) -> Search:
        search = validated(in_todays_words(document)[0])
        check_named_host(document, search.cluster.gpu)
        return search

    @model_validator(mode="after")
    def _together(self) -> Search:
        if not is_known_by_now(self.backend):
            return self
        check_precision(self.backend, self.precision)
        check_dispatch_dtype(self.routing, self.precision)
        check_parameter_dtype(self.parameter_dtype, self.precision)
        check_muon(self.optimizer, self.lora, self.offload)
        check_optimizer(self.optimizer, framework_of(self.backend), self.precision)
        check_fp8_recipe(self.fp8_recipe, framework_of(self.backend), self.precision)
        check_tokens(self.tokens, self.global_batch, self.sequence_length)
        clocks = self.one_clock_MHz
        if isinstance(clocks, ClockRange) and clocks.highest < clocks.lowest:
            raise ValueError(
                f"clocks_MHz: from {clocks.lowest:g} to {clocks.highest:g}; allowed: `to` no lower than `from`"
            )
        if isinstance(clocks, ClockRange) and (clocks.highest - clocks.lowest) / clocks.step > _MOST_CLOCKS:
            raise ValueError(
                f"clocks_MHz.step: found {clocks.step:g}; allowed: what makes {_MOST_CLOCKS} clocks or fewer"
            )
        if self.goal is not None and self.objectives is not None:
            raise ValueError(f"goal: found {self.goal} beside objectives; keep one of them")
        for name in OF_DISPATCH:
            if getattr(self.search, name) is not None and name in self.routing.model_fields_set:
                raise ValueError(f"search.{name}: stands beside routing.{name}; keep one of them")
        for key, name in self.named():
            if of_run(name) and self.tokens is None:
                raise ValueError(f"{key}: what is of the whole run needs `tokens`: how many it trains on")
            if unpriced(name, self.site):
                raise ValueError(f"{key}: a cost needs site.price_per_kWh, site.gpu_hour_price, or both")
        return self

    @property
    def one_clock_MHz(self) -> OneClock:
        """What it asks of one clock for the whole run."""
        return self.clocks_MHz.clocks if isinstance(self.clocks_MHz, ClocksPer) else self.clocks_MHz

    @property
    def clocks_per(self) -> Literal["stage", "phase"] | None:
        """What else has clocks of its own in plans of the front; None: nothing."""
        return self.clocks_MHz.per if isinstance(self.clocks_MHz, ClocksPer) else None

    def named(self) -> list[tuple[str, str]]:
        """What it limits and optimizes by name: the key where it stands, and the quantity."""
        limited = [(f"limits.{name}", name) for name in self.limits.given]
        if self.goal is not None and self.goal != "fastest":
            return [*limited, (f"goal: {self.goal}", self.optimized(has_power=True)[0])]
        return [*limited, *((f"objectives: {name}", name) for name in self.objectives or ())]

    def optimized(self, *, has_power: bool) -> tuple[ObjectiveName, ...]:
        """The objectives: those that it names, those of its goal, or what is known of time and energy."""
        if self.objectives is not None:
            return self.objectives
        if self.goal is not None:
            return goal_objectives(self.goal, of_whole_run=self.tokens is not None, has_power=has_power)
        return DEFAULT_OBJECTIVES if has_power else WITHOUT_POWER

    def lora_in(self, parallel: ParallelSpec) -> LoraSpec | None:
        """Its adapters in a plan with these degrees, some of which leave nothing to order by an all-to-all."""
        shares = parallel.sequence_parallel
        return None if self.lora is None else self.lora.on_ranks(tp=parallel.tp, sequence_parallel=shares)

    def plan(self, **choices: Any) -> Plan:
        """The plan with these choices; what isn't given is 1, off, or left to the GPU.

        Args:
            choices: keys of a plan, those of `parallel` among them, and `gpus`.

        Raises:
            InputError: the choices don't go together.
        """
        parallel = {name: choices.pop(name) for name in _PARALLEL if name in choices}
        if needs_shards(self.optimizer, framework_of(self.backend)):
            parallel = {"zero_stage": 1} | parallel
        cluster = self.cluster.model_dump() | {"gpus": choices.pop("gpus", 1)}
        fixed = {name: getattr(self, name) for name in _FIXED} | {"lora": self.lora_in(ParallelSpec(**parallel))}
        routing = {name: choices.pop(name) for name in OF_DISPATCH if name in choices}
        nested = {"routing": self.routing.model_dump() | routing, "site": self.site.model_dump()}
        nested |= {} if self.failures is None else {"failures": self.failures.model_dump()}
        schedule = {"schedule": self.schedule[0]}
        return Plan.model_validate(
            {"name": self.name, "cluster": cluster, "parallel": parallel} | fixed | nested | schedule | choices
        )


_PARALLEL = ("dp", "tp", "pp", "ep", "etp", "cp", "zero_stage", "replicas", "sequence_parallel", "virtual_stages")
_FIXED = (
    *("architecture", "layers", "sequence_length", "global_batch", "precision", "backend"),
    *ONE_FOR_ALL,
    *("power_cap_W", "tokens"),
)


def read_search(path: Path | str) -> Search:
    """A checked search from a YAML file. Files that it names are looked for beside it, then in the working directory.

    Raises:
        InputError: the file, line and key of each mistake, what was found and what is allowed.
    """
    search = read_yaml(Path(path), Search)
    return search.read_in(Path(path).parent)
