"""What a profile is: a folder with `manifest.json` and Parquet tables. The profiler writes it, `calibrate` reads it.

Only the schema lives here. Every column carries its unit; a missing reading is null, never 0 or -1.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from moemodel.model.operators.work import SHAPE_FIELDS

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MERGED_PARTS = b"moemodel.merged_parts"  # metadata of a table's file: names of the parts that are in it, as JSON

# The operator measured: kind, pass, precision and shape (see `operators`).
_OPERATOR: dict[str, str] = {
    "kind": "string",
    "direction": "string",
    "dtype": "string",
    **{name: ("float64" if name == "skew" else "int64") for name in SHAPE_FIELDS},
}
_STATE: dict[str, str] = {
    "clock_Hz": "float64",  # true SM clock, from the cycle counter; null where it cannot be read
    "clock_reported_Hz": "float64",  # what the driver says; null where there is none
    "temperature_C": "float64",
    "wall_s": "float64",  # Unix time at the end of the row's measurement
}

# What runs while the GPU heats up and cools down in section `heat`: column `load` of table `thermal`.
HEAVY = "heat: heavy load"
LIGHT = "heat: memory-bound load"
IDLE = "heat: idle"

# What section `collectives` measures beside the collectives of `network.Collective`: column `collective`.
EXCHANGE = "exchange"  # every rank sends to the next and receives from the one before, at once
IDLE_LINKS = "idle"

TABLES: dict[str, dict[str, str]] = {
    # One row a sample: `calls` back-to-back calls, device time and host (enqueue) time of one call.
    "operators": {
        **_OPERATOR,
        "sweep": "string",  # "solo" (the operator alone), or the heavy:operator mix or locked clock it ran under
        "calls": "int64",
        "time_s": "float64",
        "host_time_s": "float64",
        **_STATE,
    },
    # One row a load held for at least a second: mean power from the energy counter, activity from GPM.
    "power": {
        **_OPERATOR,
        "load": "string",  # a name a person can read
        "duty": "float64",  # share of the wall time in which the load ran
        "time_s": "float64",  # of one call
        "duration_s": "float64",  # of the window whose energy was counted
        "energy_J": "float64",
        "power_W": "float64",
        "sm_activity": "float64",
        "sm_occupancy": "float64",
        "tensor_activity": "float64",
        "fp32_activity": "float64",
        "dram_activity": "float64",
        **_STATE,
    },
    # A heavy load and a memory-bound one in turns: one row a length of turn, means over the turns.
    "alternating": {
        "load": "string",
        "heavy_s": "float64",  # length of a turn
        "light_s": "float64",
        "heavy_clock_Hz": "float64",  # true SM clock in it
        "light_clock_Hz": "float64",
        "light_power_W": "float64",  # of the memory-bound load by itself
        "duration_s": "float64",  # of the window whose energy was counted
        "power_W": "float64",
        "clock_reported_Hz": "float64",
        "temperature_C": "float64",
        "wall_s": "float64",
    },
    # Heating and cooling: one row a reading.
    "thermal": {
        "load": "string",
        "elapsed_s": "float64",
        "power_W": "float64",
        "memory_temperature_C": "float64",
        **_STATE,
    },
    # The host lane: time the host needs to queue a block of the real training model at sizes where the device never is
    # the bottleneck. One row a block and direction.
    "host": {
        "block": "string",  # "dense_layer", "moe_layer", "head_and_loss", "optimizer_tensor", "step", ...
        "direction": "string",
        "detail": "string",  # the architecture options it ran with, for a reader
        "host_time_s": "float64",
        "kernels": "float64",  # launches in the block; null where they cannot be counted
        "wall_s": "float64",
    },
    # One row a collective, group and size: back-to-back calls that were queued before the devices began.
    "collectives": {
        "collective": "string",
        "ranks": "int64",  # of the group: the first so many of the job; the others waited
        "nodes": "int64",  # that these ranks lie on
        "size_B": "int64",  # of the full tensor, as `network` counts
        "skew": "float64",  # of an all-to-all: bytes to the busiest rank over the mean
        "calls": "int64",
        "time_s": "float64",  # device time of one call, the longest over the ranks: the last one is waited for
        "host_time_s": "float64",  # to queue one; mean over the ranks, as is everything below
        "clock_Hz": "float64",
        # The same collective held for a while, at a few sizes: how fast it then goes (a small one as fast as the host
        # queues it), what each GPU draws and what goes over its NVLinks in each direction.
        "held_time_s": "float64",
        "duration_s": "float64",
        "power_W": "float64",
        "held_clock_Hz": "float64",
        "nvlink_tx_Bps": "float64",
        "nvlink_rx_Bps": "float64",
        "temperature_C": "float64",  # of the first rank's GPU
        "wall_s": "float64",
    },
    # One row a collective beside a computation, both going on all the while; times are of one call.
    "overlap": {
        "computation": "string",  # "gemm" of m x n x k, "add" of m elements; bf16
        "m": "int64",
        "n": "int64",
        "k": "int64",
        "collective": "string",
        "ranks": "int64",
        "nodes": "int64",
        "size_B": "int64",
        "priority": "int64",  # of the collective's stream: -1 before others, 0 as all
        "calls": "int64",  # of the collective, in the window
        "duration_s": "float64",
        "computation_time_s": "float64",  # alone
        "collective_time_s": "float64",  # alone
        "together_computation_time_s": "float64",
        "together_collective_time_s": "float64",
        "computation_power_W": "float64",  # alone, of a GPU
        "collective_power_W": "float64",
        "together_power_W": "float64",
        "computation_clock_Hz": "float64",
        "collective_clock_Hz": "float64",
        "together_clock_Hz": "float64",
        "temperature_C": "float64",
        "wall_s": "float64",
    },
    # One row a training run: means over its measured steps.
    "iterations": {
        "plan": "string",  # name of the plan; the plan itself is stored beside it as YAML text
        "plan_yaml": "string",
        "rank": "int64",
        "steps": "int64",
        "step_time_s": "float64",
        "step_time_std_s": "float64",
        "forward_time_s": "float64",
        "backward_time_s": "float64",
        "optimizer_time_s": "float64",
        "host_time_s": "float64",  # until the last launch of a step was queued
        "energy_J": "float64",  # of one step
        "power_W": "float64",
        "forward_clock_Hz": "float64",
        "backward_clock_Hz": "float64",
        "optimizer_clock_Hz": "float64",
        "peak_allocated_B": "int64",  # of the framework's allocator
        "peak_reserved_B": "int64",
        "device_used_B": "int64",  # as the driver sees it: context and all
        "parameters": "int64",
        "loss_first": "float64",
        "loss_last": "float64",
        "expert_skew": "float64",  # busiest expert over the mean, mean over layers and steps; null without experts
        **_STATE,
    },
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DeviceInfo(_Strict):
    """The device as it was found."""

    name: str
    vendor: Literal["nvidia", "cpu", "simulated"]
    uuid: str | None = None
    memory_B: int
    multiprocessors: int | None = None
    power_limit_W: float | None = None
    power_limit_range_W: tuple[float, float] | None = None
    clock_max_Hz: float | None = None
    clock_min_Hz: float | None = None
    memory_clock_max_Hz: float | None = None
    slowdown_temperature_C: float | None = None
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

    index: int
    name: str
    uuid: str
    nvlinks: int
    nvlink_version: int | None = None
    nvlink_Bps: float | None = None
    nvlink_to: Literal["switch", "gpu", "other"] | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    pcie_Bps: float | None = None


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
    host: dict[str, Any] = Field(default_factory=dict, description="processor model, cores, memory, system")
    seed: int
    sections: dict[str, float] = Field(default_factory=dict, description="section finished -> seconds it took")
    topology: Topology | None = Field(default=None, description="of the GPUs that section `collectives` measured")
