"""What a training run leaves in its folder, and in what form.

    RUN/manifest.json             `RunManifest`: what was asked for, on what, with which versions; written first
    RUN/predicted.json            what `moemodel predict --json` said of its plan before it began; not in every folder
    RUN/steps-rankN.jsonl         `StepRecord`, a line a measured step
    RUN/routing-rankN.jsonl       `RoutingRecord`, a line a layer and measured step, of this rank's tokens
    RUN/rankN.json                `RankResult`: the sums of one rank
    RUN/energy/                   the meter's own files
    RUN/codecarbon/rankN/         CodeCarbon's own files
    RUN/result.json               `RunResult`: how it ended; written last, so a folder without it is of a run cut short

A matrix of runs is a folder with `matrix.json` (the document as it was read) and a folder a run, named by its cell.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from moemodel.model.core.documents import Strict

MANIFEST, PREDICTED, RESULT, MATRIX = "manifest.json", "predicted.json", "result.json", "matrix.json"
SCHEMA = 1


def steps_file(rank: int) -> str:
    """Of `StepRecord`s."""
    return f"steps-rank{rank}.jsonl"


def routing_file(rank: int) -> str:
    """Of `RoutingRecord`s."""
    return f"routing-rank{rank}.jsonl"


def rank_file(rank: int) -> str:
    """Of a `RankResult`."""
    return f"rank{rank}.json"


# No count is below nothing, or beyond what a float64 holds exactly.
_Count = Annotated[int, Field(ge=0, le=2**53)]

Status = Literal["done", "out of memory", "refused", "failed"]


class MatrixRecord(Strict):
    """A matrix of runs: its name, and the document that asked for it, as it was read."""

    schema_version: Literal[1] = 1
    name: str
    document: dict[str, Any]


class RunManifest(Strict):
    """What was asked for, and of what it was run.

    Attributes:
        schema_version: of this folder.
        name: of the cell; the folder has it too.
        cell: the values that tell it from the others of its matrix, by the key they have there.
        plan_yaml: the plan that was run.
        samples: sequences that are trained on in the measured steps, of all ranks; GPUs x batch x iterations.
        steps, warmup_steps: measured, and before them.
        learning_rate: of the optimizer.
        data: what the sequences are made of, for a reader.
        seed: of weights and data.
        repeat: which of the runs of this cell.
        gpu: of rank 0, as its driver names it.
        versions: of the software, by distribution.
        started: ISO 8601, UTC.
    """

    schema_version: Literal[1] = 1
    name: str
    cell: dict[str, Any]
    plan_yaml: str
    samples: _Count
    steps: _Count
    warmup_steps: _Count
    learning_rate: float
    data: dict[str, Any]
    seed: int
    repeat: int = 0
    gpu: str
    versions: dict[str, str]
    started: str


class StepRecord(Strict):
    """One optimizer step on one rank. None: not measured there.

    Attributes:
        step: counted from the first measured one, 0.
        time_s, forward_s, backward_s, optimizer_s: of the device; of phases, the sum over micro-batches.
        energy_J: of this rank's GPU; smoothed over the counter's tick where a step is shorter.
        clock_Hz: true, from the cycle counter.
        temperature_C: of the die when the step had been queued.
        allocated_B, reserved_B: peaks of torch's allocator since training began.
        task_loss: mean over this rank's tokens, without what routers add; None on a rank that computes none.
        router_loss: what they add: their losses summed over layers, times their coefficients.
    """

    step: _Count
    time_s: float | None = None
    forward_s: float | None = None
    backward_s: float | None = None
    optimizer_s: float | None = None
    energy_J: float | None = None
    clock_Hz: float | None = None
    temperature_C: float | None = None
    allocated_B: int | None = None
    reserved_B: int | None = None
    task_loss: float | None = None
    router_loss: float | None = None


class RoutingRecord(Strict):
    """What one layer's router did in one step.

    Attributes:
        step: as in `StepRecord`.
        layer: of the model, an encoder's first.
        rows_E: (token, expert) pairs that each expert was chosen for, before any were dropped.
        dropped: pairs that found no room.
        entropy: mean over tokens of the entropy of the router's probabilities, nats; None: not recorded in this step.
    """

    step: _Count
    layer: _Count
    rows_E: list[_Count]
    dropped: _Count
    entropy: float | None


class PhaseEnergy(Strict):
    """One phase of a run on one rank: its time, and what the meter attributes to it (None: it cannot tell)."""

    time_s: float
    energy_J: float | None
    energy_standard_error_J: float | None = None


class RankResult(Strict):
    """One rank's share of a run.

    Attributes:
        rank: of the run.
        duration_s: of the measured steps.
        energy_J: of its GPU in them.
        emissions_kg: CO2-equivalent that CodeCarbon states for its session; None without it.
        power_W, clock_Hz, temperature_C: means over them.
        peak_allocated_B, peak_reserved_B: of torch's allocator.
        parameters: of the rank's share of the model.
        phases: by name, over all measured steps.
        notes: of the meter.
    """

    rank: _Count
    duration_s: float | None
    energy_J: float | None
    emissions_kg: float | None = None
    power_W: float | None
    clock_Hz: float | None
    temperature_C: float | None
    peak_allocated_B: int | None
    peak_reserved_B: int | None
    parameters: _Count
    phases: dict[str, PhaseEnergy] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)


class RunResult(Strict):
    """How a run ended.

    Attributes:
        status: "out of memory" is a result too.
        reason: why it was not done; None for one that was.
        largest_term: of the predicted memory, for one that ran out of it.
        steps, samples: that were measured.
        duration_s: of these steps, on the slowest rank.
        step_time_s, step_time_std_s: mean over steps, and deviation of one.
        energy_J: of all GPUs in these steps; None where one has no sensor.
        emissions_kg: CO2-equivalent that CodeCarbon states for the session; None without it.
        task_loss_first, task_loss_last: of the first measured step, and the mean of the last tenth.
        ranks: one by one.
    """

    status: Status
    reason: str | None = None
    largest_term: str | None = None
    steps: _Count = 0
    samples: _Count = 0
    duration_s: float | None = None
    step_time_s: float | None = None
    step_time_std_s: float | None = None
    energy_J: float | None = None
    emissions_kg: float | None = None
    task_loss_first: float | None = None
    task_loss_last: float | None = None
    ranks: list[RankResult] = Field(default_factory=list)
