"""The training plan: what a user writes in `plan.yaml`, checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ModelWrapValidatorHandler, PrivateAttr, model_validator

from moemodel.model.core.documents import Strict, Switch, read_yaml
from moemodel.model.core.errors import InputError
from moemodel.model.frameworks.base import AttentionName, CapturedParts, Fp8Recipe, Framework, Precision
from moemodel.model.frameworks.framework_file import is_known_by_now, names_framework_file
from moemodel.model.frameworks.registry import FORMER_NAMES, framework_of
from moemodel.model.hardware.gpu import Gpu, GpuVariant, read_gpu
from moemodel.model.hardware.host_power import check_host, host_power_W
from moemodel.model.hardware.link import Link
from moemodel.model.plan.clock import AskedClock, Clock, ClocksSpec, asked_clock, check_clocks
from moemodel.model.plan.clock import Clock_MHz as Clock_MHz
from moemodel.model.plan.context_comm import CpComm
from moemodel.model.plan.data_loading import DataLoadingSpec
from moemodel.model.plan.failures import FailuresSpec
from moemodel.model.plan.lora import LoraSpec
from moemodel.model.plan.offload import OffloadSpec
from moemodel.model.plan.optimizer_states import OptimizerStates, check_optimizer, needs_shards, steps_whole_matrices
from moemodel.model.plan.paths import NamesFiles
from moemodel.model.plan.recompute import RecomputeName, recompute_number
from moemodel.model.plan.routing import RoutingSpec
from moemodel.model.plan.rules import check_precision, degree_rules, messages
from moemodel.model.plan.stage_layers import StageLayers
from moemodel.model.schedule import registry as schedules

if TYPE_CHECKING:
    ScheduleName = str
else:  # of those that are registered
    ScheduleName = Literal[schedules.NAMES]


def _printable(text: str) -> str:
    """Refuses what a terminal would obey instead of showing."""
    if not text.isprintable():
        raise ValueError("allowed: characters that can be printed, on one line")
    return text


# Bounds are assumed: far above what exists, and low enough for products of all of them to stay exact integers.
MOST_GPUS = 1_000_000
_MOST_SEQUENCES = 1_000_000_000
_MOST_TOKENS = 100_000_000  # of one sequence

Text = Annotated[str, AfterValidator(_printable), Field(max_length=4096)]
Count = Annotated[int, Field(gt=0, le=_MOST_SEQUENCES, strict=True)]  # strict: `true` is no 1
Parameters = Annotated[int, Field(gt=0, le=1_000_000_000_000, strict=True)]  # assumed, as above
Tokens = Annotated[int, Field(gt=0, le=_MOST_TOKENS, strict=True)]
Gpus = Annotated[int, Field(gt=0, le=MOST_GPUS, strict=True)]
MicroBatch = Annotated[int, Field(gt=0, le=1_000_000, strict=True)]
DataParallel = Gpus
ExpertParallel = Gpus
TensorParallel = Annotated[int, Field(gt=0, le=4_096, strict=True)]
Stages = Annotated[int, Field(gt=0, le=10_000, strict=True)]  # as many as the layers of an architecture may be
ContextParallel = Annotated[int, Field(gt=0, le=32_768, strict=True)]
ZeroStage = Annotated[int, Field(ge=0, le=3, strict=True)]
Rate = Annotated[float, Field(gt=0, le=1e30, strict=True)]
Power_W = Annotated[float, Field(ge=1, le=1e5, strict=True)]
TokensOfRun = Annotated[float, Field(ge=1, le=1e20, strict=True)]
Price = Annotated[float, Field(ge=0, le=1e9, strict=True)]  # in any currency


class ClusterSpec(Strict):
    """The GPUs at hand."""

    gpu: Text = Field(description="a known GPU, or the path of a GPU description")
    gpu_variant: GpuVariant | None = Field(default=None, description="in what the GPUs here differ from that")
    gpus: Gpus = 1
    gpus_per_node: Gpus | None = Field(default=None, description="default: what the GPU description says")
    internode: Text | Link = Field(
        default="infiniband-ndr",
        description="network between nodes: a known one, a link, or the path of a cluster file",
    )
    data_loading: DataLoadingSpec | None = Field(
        default=None, description="how fast sequences are read; null: no step waits for them"
    )

    def description(self) -> Gpu:
        """Of the GPUs as they are here.

        Raises:
            InputError: unknown GPU.
        """
        gpu = read_gpu(self.gpu, key="cluster.gpu")
        return gpu if self.gpu_variant is None else self.gpu_variant.of(gpu)


class ParallelSpec(Strict):
    """Degrees of parallelism; dp x tp x pp x cp is the GPU count, and experts spread over dp x cp x tp / etp."""

    dp: DataParallel = 1
    tp: TensorParallel = 1
    pp: Stages = 1
    ep: ExpertParallel = 1
    etp: TensorParallel | None = Field(
        default=None, description="expert tensor parallelism, which cuts each expert; null: as the framework does"
    )
    cp: ContextParallel = 1
    zero_stage: ZeroStage = 0
    replicas: Gpus = Field(
        default=1,
        description="groups of dp / replicas that ZeRO shards over, each for itself; gradients are summed over all",
    )
    sequence_parallel: Switch = False
    virtual_stages: Stages = 1

    @property
    def asked_etp(self) -> int:
        """Expert tensor parallelism; 0: as the framework does it."""
        return self.etp or 0


def _known_host(value: Any) -> Any:
    """The power of a kind of node, where its name is given."""
    if not isinstance(value, str):
        return value
    try:
        return host_power_W(value)
    except InputError as error:
        raise ValueError(str(error).partition("; ")[2]) from None


def check_named_host(document: Any, gpu: str) -> None:
    """Refuse a document's kind of node for other GPUs; of unknown GPUs whoever reads them says so.

    Raises:
        ValueError: what is allowed.
    """
    site = document.get("site") if isinstance(document, Mapping) else None
    host = site.get("host_power_W") if isinstance(site, Mapping) else None
    if not isinstance(host, str):
        return
    try:
        check_host(host, read_gpu(gpu).name)
    except InputError:
        return


class SiteSpec(Strict):
    """Where the run takes place."""

    region: Text = "world"
    # assumed: between the 1.1 that large operators state and the 1.58 of Uptime Institute's survey of 2023
    pue: Annotated[float, Field(ge=1.0, le=10.0, strict=True)] = 1.2
    price_per_kWh: Price | None = None
    gpu_hour_price: Price | None = None
    currency: Text = "USD"
    # beyond these bounds, assumed, a temperature is a typing error or in other degrees
    inlet_C: Annotated[float, Field(ge=-40.0, le=80.0, strict=True)] | None = Field(
        default=None, description="temperature of the air that the GPUs draw in; null: as it was at calibration"
    )
    host_power_W: Annotated[float, BeforeValidator(_known_host), Field(ge=0.0, le=1e5, strict=True)] = Field(
        default=0.0,
        description="power of the rest of a node (processors, fans, NICs, losses of power supplies), per GPU; or a "
        "kind of node that was measured, such as h100-node-air",
    )


def _known_framework(name: str) -> str:
    """The name of a framework, also where a former one is given; or the path of a file."""
    if names_framework_file(name):
        return name
    try:
        return framework_of(name).name
    except InputError as error:
        raise ValueError(str(error).partition("; ")[2]) from None


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


def check_tokens(tokens: float | None, global_batch: int, sequence_length: int) -> None:
    """Refuse a run that is shorter than a step.

    Raises:
        ValueError: what is allowed.
    """
    step = global_batch * sequence_length
    if tokens is not None and tokens < step:
        raise ValueError(
            f"tokens: found {tokens:g}; allowed: one step or more, which is {global_batch} sequences of "
            f"{sequence_length} tokens: {step:,}"
        )


EIGHT_BITS: tuple[Precision, ...] = ("fp8", "mxfp8")  # whose products are


def check_dispatch_dtype(routing: RoutingSpec, precision: Precision) -> None:
    """Refuse rows of 8 bits where products are not.

    Raises:
        ValueError: what is allowed.
    """
    if routing.dispatch_dtype is not None and precision not in EIGHT_BITS:
        raise ValueError(
            f"routing.dispatch_dtype: found {routing.dispatch_dtype} with precision {precision}; allowed: null, or "
            "precision fp8 or mxfp8"
        )


def check_parameter_dtype(asked: str | None, precision: Precision) -> None:
    """Refuse a type of weights where products take them as they are.

    Raises:
        ValueError: what is allowed.
    """
    if asked is not None and precision not in EIGHT_BITS:
        raise ValueError(
            f"parameter_dtype: found {asked} with precision {precision}; allowed: null, or precision fp8 or mxfp8"
        )


def check_fp8_recipe(asked: str | None, framework: Framework, precision: Precision) -> None:
    """Refuse a way of scaling where nothing of 8 bits is scaled, or by code that has no such kernels.

    Raises:
        ValueError: what is allowed.
    """
    if asked is None:
        return
    if precision != "fp8":
        raise ValueError(f"fp8_recipe: found {asked} with precision {precision}; allowed: null, or precision fp8")
    if framework.data_parallel != "distributed-optimizer":
        raise ValueError(
            f"fp8_recipe: found {asked} with backend {framework.name}, which has one of its own; allowed: null, or "
            "backend megatron-core or nemo"
        )


def check_transpose_cache(asked: bool | None, framework: Framework, precision: Precision) -> None:
    """Refuse to keep no casts where there are none, or of code that keeps none.

    Raises:
        ValueError: what is allowed.
    """
    if asked is not None and (precision not in EIGHT_BITS or framework.casts_weights != "step"):
        raise ValueError(
            f"transpose_cache: found {str(asked).lower()} with backend {framework.name} and precision {precision}; "
            "allowed: null, or backend megatron-core or nemo with precision fp8 or mxfp8"
        )


def check_buckets(framework: Framework, **asked: int | None) -> None:
    """Refuse buckets of parameters, and looks at gradients and weights, of code that has no such ones.

    Raises:
        ValueError: what is allowed.
    """
    if framework.fills_gradients:
        return
    for key, found in asked.items():
        if found is not None and found is not False:
            raise ValueError(
                f"{key}: found {str(found).lower()} with backend {framework.name}, which exchanges gradients in its "
                "own way; allowed: null, or a backend of Megatron"
            )


def check_muon(optimizer: OptimizerStates | None, lora: LoraSpec | None, offload: OffloadSpec | None) -> None:
    """Refuse what nothing is known of beside updates that are made orthogonal.

    Raises:
        ValueError: what is allowed.
    """
    if optimizer is None or optimizer.name != "muon":
        return
    found = ["lora"] if lora is not None else []
    found += ["offload.optimizer"] if offload is not None and offload.optimizer else []
    if found:
        raise ValueError(f"optimizer: found muon beside {' and '.join(found)}; allowed: adamw, or neither of them")


def check_all_to_all(lora: LoraSpec | None, *, tp: int, sequence_parallel: bool) -> None:
    """Refuse to order adapters' outputs over ranks that share no sequence.

    Raises:
        ValueError: what is allowed.
    """
    if lora is not None and lora != lora.on_ranks(tp=tp, sequence_parallel=sequence_parallel):
        raise ValueError(
            f"lora.all_to_all: found true with parallel.tp {tp} and sequence_parallel {str(sequence_parallel).lower()}"
            "; allowed: false, or true with tp above 1 and sequence_parallel"
        )


def check_forward_only(plan: Plan) -> None:
    """Refuse what only training has in a plan of forward passes.

    Raises:
        ValueError: each key, what was found and what is allowed.
    """
    p = plan.parallel
    found = {
        "backend": (plan.backend, "torch"),
        "parallel.zero_stage": (p.zero_stage, 0),
        "parallel.pp": (p.pp, 1),
        "recompute": (plan.recompute, "none"),
        "gradient_dtype": (plan.gradient_dtype, None),
        "cuda_graphs": (plan.cuda_graphs, None),
        "cross_entropy": (plan.cross_entropy, None),
        "loss_chunks": (plan.loss_chunks, None),
        "deterministic": (plan.deterministic, None),
        "dropout": (plan.dropout, None),
        "fp8_recipe": (plan.fp8_recipe, None),
        "activation_input_dtype": (plan.activation_input_dtype, None),
        "parameter_dtype": (plan.parameter_dtype, None),
        "optimizer": (None if plan.optimizer is None else "a block", None),
        "lora": (None if plan.lora is None else "a block", None),
        "offload": (None if plan.offload is None else "a block", None),
        "routing.balance_loss": (plan.routing.balance_loss, 0.0),
        "routing.z_loss": (plan.routing.z_loss, 0.0),
        "routing.bias_rate": (plan.routing.bias_rate, 0.0),
        "failures": (None if plan.failures is None else "a block", None),
    }
    wrong = [
        f"{key}: found {value}; allowed: {'null' if only is None else only}"
        for key, (value, only) in found.items()
        if value != only
    ]
    if wrong:
        raise ValueError(f"with mode inference, which trains nothing: {'; '.join(wrong)}")


def _names_backend(document: Any) -> bool:
    return isinstance(document, dict) and isinstance(document.get("backend"), str)


Backend = Annotated[Text, AfterValidator(_known_framework)]


class Plan(NamesFiles):
    """One training plan, as a user writes it. Sizes in sequences and tokens, clock in MHz, power in W.

    >>> import moemodel
    >>> plan = moemodel.Plan.model_validate({
    ...     "architecture": "opt-350m",
    ...     "sequence_length": 2048,
    ...     "global_batch": 64,
    ...     "cluster": {"gpu": "h100-sxm-80gb", "gpus": 8},
    ...     "parallel": {"dp": 8},
    ... })
    >>> plan.micro_batch, plan.parallel.tp, plan.backend
    (1, 1, 'torch')

    From a file it is read by `moemodel.read_plan`, whose errors name file, line and key.
    """

    name: Text = "plan"
    mode: Literal["training", "inference"] = Field(
        default="training", description="inference: forward passes alone, batch after batch; nothing is generated"
    )
    architecture: Text = Field(description="a known architecture, or the path of a Hugging Face config.json")
    layers: Stages | None = Field(default=None, description="train only that many decoder layers")
    sequence_length: Tokens
    decoder_sequence_length: Tokens | None = Field(
        default=None, description="of the decoder behind an encoder, which reads sequence_length; null: as many tokens"
    )
    global_batch: Count = Field(description="sequences in one optimizer step")
    micro_batch: MicroBatch = Field(default=1, description="sequences in one forward pass of one replica")
    precision: Precision = "bf16-mixed"
    recompute: RecomputeName = "none"
    schedule: ScheduleName = schedules.DEFAULT
    cross_entropy: Literal["plain", "fused", "compiled"] | None = Field(
        default=None,
        description="how the loss is computed: plain kernels, one by hand, or those of torch.compile that Megatron's "
        "`native` fusion is; null: as the framework does",
    )
    loss_chunks: Annotated[int, Field(gt=1, le=1_000_000, strict=True)] | None = Field(
        default=None,
        description="parts of a micro-batch's tokens that head and loss pass one after another, gradients included; "
        "null: all tokens at once",
    )
    attention: AttentionName | None = Field(
        default=None, description="kernel of attention; null: as the framework runs it on that GPU"
    )
    compile: Switch | None = Field(
        default=None,
        description="torch.compile fuses elementwise kernels of layers and loss; null: as the framework does",
    )
    cuda_graphs: Switch | CapturedParts | None = Field(
        default=None,
        description="passes are replayed as CUDA graphs, and not queued anew; attention: of each layer what comes "
        "before its feed-forward block, routers with it; router: these alone; null: all is queued",
    )
    collective_checks: Switch | None = Field(
        default=None,
        description="torch's hosts compare every collective before it begins (TORCH_DISTRIBUTED_DEBUG=DETAIL); null: "
        "they do not",
    )
    deterministic: Switch | None = Field(
        default=None, description="kernels that give the same bits every time; null: the fastest"
    )
    gradient_dtype: Literal["bf16", "fp32"] | None = Field(
        default=None, description="type that gradients are summed in; null: as the framework does"
    )
    bucket_parameters: Parameters | None = Field(
        default=None,
        description="of which gradients are exchanged together; the tensor that makes them as many is the last; null: "
        "a layer's",
    )
    gradient_checks: Switch | None = Field(
        default=None,
        description="the host looks at every bucket's gradients before they are exchanged, whether all are numbers; "
        "null: it does not",
    )
    weight_checks: Switch | None = Field(
        default=None,
        description="hosts compare hashes of all weights after every step; null: they do not",
    )
    fp8_recipe: Fp8Recipe | None = Field(
        default=None,
        description="how operands of precision fp8 are scaled: tensorwise by their current largest, delayed by that of "
        "steps before, blockwise every 128; null: as the framework does",
    )
    parameter_dtype: Literal["bf16", "fp8"] | None = Field(
        default=None,
        description="of layers' weights where products are of 8 bits: kept and gathered; null: as the framework does",
    )
    transpose_cache: Switch | None = Field(
        default=None,
        description="Megatron keeps 8-bit weights in the order of either pass; false: they are cast, or put in order, "
        "in every pass; null: it does",
    )
    activation_input_dtype: Literal["fp8"] | None = Field(
        default=None, description="type that gated activations keep their input in; null: as the framework does"
    )
    tp_comm_overlap: Switch | None = Field(
        default=None,
        description="exchanges of tensor parallelism run behind products, over buffers of their own; null: as the "
        "framework does, without these",
    )
    cp_comm: CpComm | None = Field(
        default=None,
        description="how context-parallel ranks reach keys and values: p2p, all_gather, a2a (Ulysses) or a2a-N+p2p; "
        "null: as the framework does",
    )
    multi_token: Switch | None = Field(
        default=None,
        description="whether modules of multi-token prediction are trained, as many as the model's file states; null: "
        "they are left out",
    )
    dropout: Switch | None = Field(
        default=None,
        description="of attention probabilities and of the output of every block; null: as the framework has it",
    )
    optimizer: OptimizerStates | None = Field(
        default=None, description="types of what AdamW keeps; null: as the framework does"
    )
    lora: LoraSpec | None = Field(
        default=None, description="adapters that are trained beside frozen weights; null: all weights are trained"
    )
    offload: OffloadSpec | None = Field(
        default=None, description="shares of the optimizer and of activations that the host keeps; null: none"
    )
    micro_batches_per_schedule: Count | None = Field(
        default=None, description="that a pipeline passes before the next begin; null: all of a step"
    )
    micro_batches_per_round: Count | None = Field(
        default=None,
        description="with virtual stages under 1f1b, that pass a chunk before the next one takes them; null: as many "
        "as there are stages",
    )
    stage_layers: StageLayers | None = Field(
        default=None,
        description="which layers the stages of a pipeline hold: {embedding, head} count as so many layers, {first, "
        "last} stages hold so many, or a list of all; null: as evenly as they go",
    )
    backend: Backend = Field(default="torch", description="training framework: a known one, or the path of a file")
    cluster: ClusterSpec
    parallel: ParallelSpec = ParallelSpec()
    routing: RoutingSpec = RoutingSpec()
    clock_MHz: AskedClock = Field(
        default=None,
        description="SM clock to hold at most, one or by phase (forward, backward, optimizer) and by pipeline stage "
        "(stages); null: the governor decides",
    )
    power_cap_W: Power_W | None = Field(default=None, description="per GPU; null: the GPU's own limit")
    site: SiteSpec = SiteSpec()
    tokens: TokensOfRun | None = Field(default=None, description="tokens to train on; null: no totals for the run")
    failures: FailuresSpec | None = Field(default=None, description="what interrupts the run; null: nothing does")
    _former_backend: str | None = PrivateAttr(default=None)

    @property
    def former_backend(self) -> str | None:
        """The former name of the framework that the document gave, which held the precision too; None: today's."""
        return self._former_backend

    @property
    def clock(self) -> Clock:
        """What it asks of the SM clock."""
        return asked_clock(self.clock_MHz, self.parallel.pp, trains=self.mode == "training")

    @property
    def distinct_stages(self) -> int:
        """Stages of its pipeline that hold other layers than each other: half of them where they are in pairs."""
        pp = self.parallel.pp
        return pp // 2 if pp > 1 and schedules.find(self.schedule, self.parallel.virtual_stages).pairs else pp

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one replica in a step."""
        return self.global_batch // (self.micro_batch * self.parallel.dp)

    @model_validator(mode="wrap")
    @classmethod
    def _words_of_today(cls, document: Any, validated: ModelWrapValidatorHandler[Plan]) -> Plan:
        today, former = in_todays_words(document)
        plan = validated(today)
        check_named_host(today, plan.cluster.gpu)
        if former is not None:
            plan._former_backend = former
        return plan

    @model_validator(mode="after")
    def _software(self) -> Plan:
        if not is_known_by_now(self.backend):
            return self
        check_precision(self.backend, self.precision)
        check_optimizer(self.optimizer, framework_of(self.backend), self.precision)
        check_fp8_recipe(self.fp8_recipe, framework_of(self.backend), self.precision)
        check_transpose_cache(self.transpose_cache, framework_of(self.backend), self.precision)
        check_buckets(
            framework_of(self.backend),
            bucket_parameters=self.bucket_parameters,
            gradient_checks=self.gradient_checks,
            weight_checks=self.weight_checks,
        )
        return self

    @model_validator(mode="after")
    def _rows_in_eight_bits(self) -> Plan:
        check_dispatch_dtype(self.routing, self.precision)
        check_parameter_dtype(self.parameter_dtype, self.precision)
        check_muon(self.optimizer, self.lora, self.offload)
        return self

    @model_validator(mode="after")
    def _adapters(self) -> Plan:
        check_all_to_all(self.lora, tp=self.parallel.tp, sequence_parallel=self.parallel.sequence_parallel)
        return self

    @model_validator(mode="after")
    def _buffers(self) -> Plan:
        if self.tp_comm_overlap and self.parallel.tp > 1 and not self.parallel.sequence_parallel:
            raise ValueError(
                "tp_comm_overlap: found true without parallel.sequence_parallel; allowed: false, null, or with it"
            )
        return self

    @model_validator(mode="after")
    def _whole_steps(self) -> Plan:
        check_tokens(self.tokens, self.global_batch, self.decoder_sequence_length or self.sequence_length)
        return self

    @model_validator(mode="after")
    def _forward_only(self) -> Plan:
        if self.mode == "inference":
            check_forward_only(self)
        return self

    @model_validator(mode="after")
    def _degrees(self) -> Plan:
        if not is_known_by_now(self.backend):
            return self
        framework = framework_of(self.backend)
        rules = degree_rules(
            global_batch=self.global_batch,
            framework=framework,
            shards_states=needs_shards(self.optimizer, framework),
            whole_matrices=steps_whole_matrices(self.optimizer),
            says_rounds=self.micro_batches_per_round is not None,
        )
        for message in messages(rules, self.choices):
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _clocks(self) -> Plan:
        check_clocks(self.clock_MHz, self.parallel.pp, trains=self.mode == "training")
        return self

    @model_validator(mode="after")
    def _pairs(self) -> Plan:
        if self.distinct_stages == self.parallel.pp:
            return self
        found = ["a list of stage_layers"] if isinstance(self.stage_layers, list | tuple) else []
        found += ["clock_MHz by stage or phase"] if isinstance(self.clock_MHz, ClocksSpec) else []
        if (self.micro_batches_per_schedule or 0) % 2:
            found.append("an odd number of micro_batches_per_schedule")
        if found:
            raise ValueError(f"schedule {self.schedule}: found {', '.join(found)}; allowed: none of them")
        return self

    @model_validator(mode="after")
    def _schedules(self) -> Plan:
        some, pp = self.micro_batches_per_schedule, self.parallel.pp
        if some is None:
            return self
        if pp == 1:
            raise ValueError(f"micro_batches_per_schedule: found {some} with pp 1, without a schedule; allowed: null")
        if self.micro_batches % some:
            raise ValueError(
                f"micro_batches_per_schedule: found {some}; allowed: divisors of the {self.micro_batches} "
                "micro-batches (global_batch / micro_batch / dp)"
            )
        schedule = schedules.find(self.schedule, self.parallel.virtual_stages)
        if some < schedule.least_rounds * pp:
            raise ValueError(
                f"micro_batches_per_schedule: found {some}; allowed with schedule {self.schedule} and pp {pp}: "
                f"{schedule.least_rounds * pp} or more"
            )
        if self.parallel.virtual_stages > 1 and schedule.only_virtual is None and some % pp:
            raise ValueError(
                f"micro_batches_per_schedule: found {some}; allowed with virtual_stages: multiples of pp {pp}, as an "
                "interleaved schedule needs"
            )
        return self

    @model_validator(mode="after")
    def _rounds(self) -> Plan:
        each, pp = self.micro_batches_per_round, self.parallel.pp
        if each is None:
            return self
        if self.schedule != "1f1b" or self.parallel.virtual_stages == 1:
            raise ValueError(
                f"micro_batches_per_round: found {each} with schedule {self.schedule} and virtual_stages "
                f"{self.parallel.virtual_stages}; allowed: null, or 1f1b with virtual_stages above 1"
            )
        some = self.micro_batches_per_schedule or self.micro_batches
        if not pp <= each <= some or 0 < some % each < pp:
            raise ValueError(
                f"micro_batches_per_round: found {each}; allowed: {pp} (pp) to {some} (micro-batches of a schedule), "
                f"of which none are left over, or {pp} at least"
            )
        return self

    @property
    def expert_choices(self) -> dict[str, object]:
        """What it says of how experts are cut and reached, by the names of `choices`; None: nothing."""
        routing = self.routing
        return {
            "etp": self.parallel.etp,
            "dispatch": routing.dispatch,
            "node_limit": routing.node_limit,
            "dispatch_overlap": routing.dispatch_overlap,
        }

    @property
    def choices(self) -> dict[str, int]:
        """What a search chooses, by name, but for the clock; recompute and schedule as numbers."""
        p = self.parallel
        return {
            "gpus": self.cluster.gpus,
            "tp": p.tp,
            "pp": p.pp,
            "cp": p.cp,
            "dp": p.dp,
            "ep": p.ep,
            "etp": p.asked_etp,
            **self.routing.dispatch_choices,
            "sequence_parallel": int(p.sequence_parallel),
            "virtual_stages": p.virtual_stages,
            "schedule": schedules.number(self.schedule),
            "zero_stage": p.zero_stage,
            "replicas": p.replicas,
            "recompute": recompute_number(self.recompute),
            "micro_batch": self.micro_batch,
        }


def read_plan(path: Path | str) -> Plan:
    """A checked plan from a YAML file. Files that it names are looked for beside it, then in the working directory.

    Raises:
        InputError: the file, line and key of each mistake, what was found and what is allowed.
    """
    plan = read_yaml(Path(path), Plan)
    return plan.read_in(Path(path).parent)


def plan_text(plan: Plan) -> str:
    """A plan as YAML that `read_plan` reads back to the same plan."""
    return yaml.safe_dump(plan.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True)
