"""What a profile is: a folder with `manifest.json` and Parquet tables. The profiler writes it, `calibrate` reads it.

Only the schema lives here: a dataclass a table, whose fields are its columns. Every column carries its unit; a missing
reading is null, never 0 or -1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, get_args, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from moemodel.model.operators.work import SHAPE_FIELDS

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MERGED_PARTS = b"moemodel.merged_parts"  # metadata of a table's file: names of the parts that are in it, as JSON

# What runs while the GPU heats up and cools down in section `heat`: column `load` of table `thermal`.
HEAVY = "heat: heavy load"
LIGHT = "heat: memory-bound load"
IDLE = "heat: idle"

# What section `collectives` measures beside the collectives of `network.collectives.Collective`: column `collective`.
EXCHANGE = "exchange"  # every rank sends to the next and receives from the one before, at once
IDLE_LINKS = "idle"

Value = str | int | float | None
_TYPES: dict[type, str] = {str: "string", int: "int64", float: "float64"}


class Columns:
    """Columns of a table that belong together. Subclasses are dataclasses of strings, numbers and other `Columns`."""

    def columns(self) -> dict[str, Value]:
        """Every column and its value, in the order of the table; those of a part that is None are null."""
        return dict(_flat(type(self), self))


class TableRow(Columns):
    """A row of a table of a profile.

    Attributes:
        TABLE: name of the table.
        KEY: columns that make two rows repetitions of the same point: one that is there is not measured again.
    """

    TABLE: ClassVar[str]
    KEY: ClassVar[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class OperatorColumns(Columns):
    """The operator measured: kind, pass, precision and shape (see `operators.work`)."""

    kind: str
    direction: str
    dtype: str
    m: int
    n: int
    k: int
    batch: int
    heads: int
    kv_heads: int
    seq: int
    head_dim: int
    experts: int
    top_k: int
    skew: float


@dataclass(frozen=True, kw_only=True)
class DeviceState(Columns):
    """What the device was like.

    Attributes:
        clock_Hz: true SM clock, from the cycle counter; null where it cannot be read.
        clock_reported_Hz: what the driver says; null where there is none.
        temperature_C: of the die.
        wall_s: Unix time at the end of the row's measurement.
    """

    clock_Hz: float | None = None
    clock_reported_Hz: float | None = None
    temperature_C: float | None = None
    wall_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class OperatorRow(TableRow):
    """One sample: `calls` back-to-back calls, device time and host (enqueue) time of one call.

    Attributes:
        sweep: "solo" (the operator alone), or the heavy:operator mix or locked clock it ran under.
    """

    TABLE = "operators"
    KEY = ("kind", "direction", *SHAPE_FIELDS, "sweep")

    operator: OperatorColumns
    sweep: str
    calls: int
    time_s: float
    host_time_s: float | None = None
    state: DeviceState = DeviceState()


@dataclass(frozen=True, kw_only=True)
class PowerRow(TableRow):
    """One load held for at least a second: mean power from the energy counter, activity from GPM.

    Attributes:
        operator: None for idle.
        load: a name a person can read.
        duty: share of the wall time in which the load ran.
        time_s: of one call.
        duration_s: of the window whose energy was counted.
    """

    TABLE = "power"
    KEY = ("load",)

    operator: OperatorColumns | None = None
    load: str
    duty: float | None = None
    time_s: float | None = None
    duration_s: float | None = None
    energy_J: float | None = None
    power_W: float | None = None
    sm_activity: float | None = None
    sm_occupancy: float | None = None
    tensor_activity: float | None = None
    fp32_activity: float | None = None
    dram_activity: float | None = None
    state: DeviceState = DeviceState()


@dataclass(frozen=True, kw_only=True)
class AlternatingRow(TableRow):
    """A heavy load and a memory-bound one in turns of one length; means over the turns.

    Attributes:
        heavy_s, light_s: length of a turn.
        heavy_clock_Hz, light_clock_Hz: true SM clock in it.
        light_power_W: of the memory-bound load by itself.
        duration_s: of the window whose energy was counted.
        clock_reported_Hz, temperature_C, wall_s: see `DeviceState`.
    """

    TABLE = "alternating"
    KEY = ("load",)

    load: str
    heavy_s: float | None = None
    light_s: float | None = None
    heavy_clock_Hz: float | None = None
    light_clock_Hz: float | None = None
    light_power_W: float | None = None
    duration_s: float | None = None
    power_W: float | None = None
    clock_reported_Hz: float | None = None
    temperature_C: float | None = None
    wall_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class ThermalRow(TableRow):
    """One reading while the device heats up and cools down."""

    TABLE = "thermal"
    KEY = ("load",)

    load: str
    elapsed_s: float | None = None
    power_W: float | None = None
    memory_temperature_C: float | None = None
    state: DeviceState = DeviceState()


@dataclass(frozen=True, kw_only=True)
class HostRow(TableRow):
    """Time the host needs to queue a block of the real training model, at sizes where the device never is the
    bottleneck; one row a block and direction.

    Attributes:
        block: "dense_layer", "moe_layer", "head_and_loss", "optimizer_tensor", "step", ...
        detail: the architecture options it ran with, for a reader.
        kernels: launches in the block; null where they cannot be counted.
    """

    TABLE = "host"
    KEY = ("block", "direction", "detail")

    block: str
    direction: str
    detail: str
    host_time_s: float
    kernels: float | None = None
    wall_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class CollectiveRow(TableRow):
    """A collective of one group and size: back-to-back calls that were queued before the devices began.

    Attributes:
        ranks: of the group: the first so many of the job; the others waited.
        nodes: that these ranks lie on.
        size_B: of the full tensor, as `network.collectives` counts.
        skew: of an all-to-all: bytes to the busiest rank over the mean.
        time_s: device time of one call, the longest over the ranks: the last one is waited for.
        host_time_s: to queue one; mean over the ranks, as is everything below.
        held_time_s, duration_s, power_W, held_clock_Hz, nvlink_tx_Bps, nvlink_rx_Bps: the same collective held for a
            while, at a few sizes: how fast it then goes (a small one as fast as the host queues it), what each GPU
            draws and what goes over its NVLinks in each direction.
        temperature_C: of the first rank's GPU.
    """

    TABLE = "collectives"
    KEY = ("collective", "ranks", "nodes", "size_B", "skew")

    collective: str
    ranks: int
    nodes: int | None = None
    size_B: int
    skew: float
    calls: int | None = None
    time_s: float | None = None
    host_time_s: float | None = None
    clock_Hz: float | None = None
    held_time_s: float | None = None
    duration_s: float | None = None
    power_W: float | None = None
    held_clock_Hz: float | None = None
    nvlink_tx_Bps: float | None = None
    nvlink_rx_Bps: float | None = None
    temperature_C: float | None = None
    wall_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class OverlapRow(TableRow):
    """A collective beside a computation, both going on all the while; times are of one call.

    Attributes:
        computation: "gemm" of m x n x k, "add" of m elements; bf16.
        priority: of the collective's stream: -1 before others, 0 as all.
        calls: of the collective, in the window.
        computation_time_s, collective_time_s: alone, as are power (of a GPU) and clock of these names.
    """

    TABLE = "overlap"
    KEY = ("computation", "m", "n", "k", "collective", "ranks", "nodes", "size_B", "priority")

    computation: str
    m: int
    n: int
    k: int
    collective: str
    ranks: int
    nodes: int | None = None
    size_B: int
    priority: int
    calls: int | None = None
    duration_s: float | None = None
    computation_time_s: float | None = None
    collective_time_s: float | None = None
    together_computation_time_s: float | None = None
    together_collective_time_s: float | None = None
    computation_power_W: float | None = None
    collective_power_W: float | None = None
    together_power_W: float | None = None
    computation_clock_Hz: float | None = None
    collective_clock_Hz: float | None = None
    together_clock_Hz: float | None = None
    temperature_C: float | None = None
    wall_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class IterationRow(TableRow):
    """One rank of a training run: means over its measured steps.

    Attributes:
        plan: its name; the plan itself is stored beside it as YAML text.
        host_time_s: until the last launch of a step was queued.
        energy_J: of one step.
        peak_allocated_B, peak_reserved_B: of the framework's allocator.
        device_used_B: as the driver sees it: context and all.
        expert_skew: busiest expert over the mean, mean over layers and steps; null without experts.
        clock_Hz, clock_reported_Hz, temperature_C, wall_s: see `DeviceState`.
    """

    TABLE = "iterations"
    KEY = ("plan", "rank")

    plan: str
    plan_yaml: str | None = None
    rank: int
    steps: int
    step_time_s: float
    step_time_std_s: float | None = None
    forward_time_s: float | None = None
    backward_time_s: float | None = None
    optimizer_time_s: float | None = None
    host_time_s: float | None = None
    energy_J: float | None = None
    power_W: float | None = None
    forward_clock_Hz: float | None = None
    backward_clock_Hz: float | None = None
    optimizer_clock_Hz: float | None = None
    peak_allocated_B: int | None = None
    peak_reserved_B: int | None = None
    device_used_B: int | None = None
    parameters: int | None = None
    loss_first: float | None = None
    loss_last: float | None = None
    expert_skew: float | None = None
    clock_Hz: float | None = None
    clock_reported_Hz: float | None = None
    temperature_C: float | None = None
    wall_s: float | None = None


def _parts(columns: type[Columns]) -> Iterator[tuple[str, type]]:
    """Every field and its type without None."""
    hints = get_type_hints(columns)
    for field in fields(columns):  # type: ignore[arg-type]  # every subclass is a dataclass
        kinds = [kind for kind in (get_args(hints[field.name]) or (hints[field.name],)) if kind is not NoneType]
        yield field.name, kinds[0]


def _schema(columns: type[Columns]) -> Iterator[tuple[str, str]]:
    """Every column of a table and its type there."""
    for name, kind in _parts(columns):
        if issubclass(kind, Columns):
            yield from _schema(kind)
        else:
            yield name, _TYPES[kind]


def _required(columns: type[Columns]) -> Iterator[str]:
    """Every column that has a value in each row: neither it nor the part that it is in may be None."""
    hints = get_type_hints(columns)
    for name, kind in _parts(columns):
        if NoneType in get_args(hints[name]):
            continue
        if issubclass(kind, Columns):
            yield from _required(kind)
        else:
            yield name


def _flat(columns: type[Columns], value: Columns | None) -> Iterator[tuple[str, Value]]:
    for name, part in _PARTS[columns]:
        found = None if value is None else getattr(value, name)
        if part is not None:
            yield from _flat(part, found)
        else:
            yield name, found


ROWS: tuple[type[TableRow], ...] = (
    OperatorRow,
    PowerRow,
    AlternatingRow,
    ThermalRow,
    HostRow,
    CollectiveRow,
    OverlapRow,
    IterationRow,
)
TABLES: dict[str, dict[str, str]] = {row.TABLE: dict(_schema(row)) for row in ROWS}  # table -> column -> its type
REQUIRED: dict[str, frozenset[str]] = {row.TABLE: frozenset(_required(row)) for row in ROWS}  # columns never null
# Of each group of columns: its fields, and where one is a group itself, which.
_PARTS: dict[type[Columns], list[tuple[str, type[Columns] | None]]] = {
    columns: [(name, kind if issubclass(kind, Columns) else None) for name, kind in _parts(columns)]
    for columns in (OperatorColumns, DeviceState, *ROWS)
}


_MOST_W = 1e5  # of one device: far beyond any
_MOST_B = 1e15  # of a device's memory
_LEAST_HZ = 1e6  # of a clock's maximum


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DeviceInfo(_Strict):
    """The device as it was found."""

    name: str
    vendor: Literal["nvidia", "cpu", "simulated"]
    uuid: str | None = None
    memory_B: int = Field(ge=0)
    multiprocessors: int | None = Field(default=None, gt=0)
    power_limit_W: float | None = Field(default=None, gt=0, le=_MOST_W)
    power_limit_range_W: tuple[float, float] | None = None
    clock_max_Hz: float | None = Field(default=None, gt=_LEAST_HZ)
    clock_min_Hz: float | None = Field(default=None, gt=0)
    memory_clock_max_Hz: float | None = Field(default=None, gt=0)
    slowdown_temperature_C: float | None = Field(default=None, gt=0)
    driver: str | None = None
    power_source: Literal["nvml", "rapl", "guess"] | None = Field(
        default=None,
        description="of energy and power; a guess is no measurement; null: none, or from before it was noted",
    )


class TopologyGpu(_Strict):
    """How one GPU is connected; null: the driver does not say.

    `nvlinks` counts the links that are up; `nvlink_version` is NVML's number of it (6: NVLink 4); `nvlink_Bps` is the
    line rate of all of them together, one direction; `nvlink_to` is what is at their other ends.
    """

    index: int = Field(ge=0)
    name: str
    uuid: str
    nvlinks: int = Field(ge=0)
    nvlink_version: int | None = None
    nvlink_Bps: float | None = Field(default=None, gt=0)
    nvlink_to: Literal["switch", "gpu", "other"] | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    pcie_Bps: float | None = Field(default=None, gt=0)


class TopologyPair(_Strict):
    """What lies between two GPUs: whether they reach each other over NVLink, and where their PCIe ways meet."""

    a: int
    b: int
    nvlink: bool | None = None
    ancestor: Literal["internal", "single", "multiple", "hostbridge", "node", "system"] | None = None


class Topology(_Strict):
    """How the GPUs of a machine are connected, as its driver says."""

    gpus: list[TopologyGpu]
    pairs: list[TopologyPair]

    @model_validator(mode="after")
    def _numbered(self) -> Topology:
        found = [gpu.index for gpu in self.gpus]
        if found != list(range(len(found))):
            raise ValueError(f"gpus: found indices {found[:9]}; they must count from 0")
        for pair in self.pairs:
            if not (0 <= pair.a < pair.b < len(found)):
                raise ValueError(
                    f"pairs: found {pair.a} and {pair.b}; two of the {len(found)} GPUs, rising, are expected"
                )
        return self


def _host(found: dict[str, Any]) -> dict[str, Any]:
    context_B = found.get("context_B")
    number = isinstance(context_B, int | float) and not isinstance(context_B, bool)
    if context_B is not None and not (number and 0 <= context_B <= _MOST_B):
        raise ValueError(f"context_B: found {repr(context_B)[:60]}; a number from 0 on is expected")
    return found


class Manifest(_Strict):
    """What was asked, on what, with what; written first, and completed as sections end."""

    schema_version: int = SCHEMA_VERSION
    created: str = Field(description="ISO 8601, UTC")
    moemodel_version: str
    gpu: str = Field(description="the GPU description asked for, such as h100-sxm-80gb")
    device: DeviceInfo
    clocks: Literal["passive", "lock", "as-is"]
    dtype: str
    libraries: dict[str, str]
    host: Annotated[dict[str, Any], AfterValidator(_host)] = Field(
        default_factory=dict, description="processor model, cores, memory, system"
    )
    seed: int
    sections: dict[str, float] = Field(default_factory=dict, description="section finished -> seconds it took")
    topology: Topology | None = Field(default=None, description="of the GPUs that section `collectives` measured")
