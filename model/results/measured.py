"""A measured run of a plan, and the prediction to hold against it.

What the router did and how warm the dies were are inputs of that prediction: a plan can only assume the one, and a
prediction is for the steady state of a long run otherwise. Nothing else of a measurement reaches it.

Ranks of one run measure the same steps; as one run they are

    step time          of the slowest rank, and its deviation
    energy             of all GPUs together
    memory             of the fullest GPU
    everything else    the mean over the ranks that measured it
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.predict.prediction import Prediction
from moemodel.model.records.calibration import Calibration
from moemodel.model.step.system import system_of

Row = Mapping[str, Any]

# quantity -> the column that holds it as measured
QUANTITIES: dict[str, str] = {
    "step_time": "step_time_s",
    "energy": "energy_J",
    "power": "power_W",
    "clock": "clock_Hz",
    "memory": "peak_allocated_B",
    "forward": "forward_time_s",
    "backward": "backward_time_s",
    "optimizer": "optimizer_time_s",
}
_SLOWEST = ("step_time_s", "step_time_std_s", "steps")
_SUMMED = ("energy_J",)
_FULLEST = ("peak_allocated_B", "peak_reserved_B", "device_used_B")
BESIDE_THE_ALLOCATOR = ("context", "fragmentation")  # terms of memory that its count leaves out


def known(value: Any) -> bool:
    """Whether a reading is there: a number, neither null nor NaN."""
    return value is not None and not isinstance(value, str) and not math.isnan(float(value))


# ---- measured -------------------------------------------------------------------------------------------------------


def reduce_ranks(rows: Sequence[Row]) -> dict[str, Any]:
    """One run, from the rows of its ranks."""
    if len(rows) == 1:
        return dict(rows[0])
    slowest = max(rows, key=lambda row: row["step_time_s"] if known(row["step_time_s"]) else -math.inf)
    return {name: _one(name, [row.get(name) for row in rows], slowest[name]) for name in slowest}


def _one(name: str, values: Sequence[Any], of_slowest: Any) -> Any:
    there = [value for value in values if known(value)]
    if name in _SLOWEST or not there:
        return of_slowest
    if name in _SUMMED:
        return sum(there) if len(there) == len(values) else None
    return max(there) if name in _FULLEST else fmean(there)


def mean_of(runs: Sequence[Row]) -> dict[str, float | None]:
    """Mean of every numeric column over the runs of a plan that have it."""
    columns = {name: [run[name] for run in runs if known(run.get(name))] for name in runs[0]}
    return {name: fmean(values) if values else None for name, values in columns.items()}


# ---- predicted ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PredictedQuantities:
    """The figures of a prediction that can be measured, by the names of `QUANTITIES`, SI units.

    Attributes:
        values: without those that the calibration doesn't know (power and energy of a device without readings).
        spreads: predicted standard deviation of their logarithms, where it is known.
        host_share: share of the step that waits for the host.
        phase_energy_J: of all GPUs: "forward", "backward", "optimizer", from one mark to the next as a meter attributes
            it, so with what of them the device waits for the host; and "idle", which is of none. Empty where the
            calibration doesn't know powers.
    """

    values: dict[str, float]
    spreads: dict[str, float]
    host_share: float
    phase_energy_J: dict[str, float]


def predict_as_run(plan: Plan, calibration: Calibration, row: Row | None = None) -> PredictedQuantities:
    """What a run of a plan should have measured.

    Args:
        plan: as it ran.
        calibration: of the GPU that it ran on.
        row: the run, of which `expert_skew` and `temperature_C` are read; None: the forecast, for the plan's own skew
            and the steady state.

    Raises:
        InputError: unknown architecture or GPU.
        CalibrationError: the calibration is of another GPU, or lacks an operator.
    """
    row = row or {}
    batch = batch_of(plan)
    skew, temperature_C = row.get("expert_skew"), row.get("temperature_C")
    if known(skew):
        batch = replace(batch, skew=np.array([skew], dtype=np.float64))
    machine = system_of(plan, calibration)
    one = predict(
        architecture_of(plan),
        batch,
        machine,
        temperature_C=float(temperature_C) if temperature_C is not None and known(temperature_C) else None,
    )
    figures, errors = _figures(one), _errors(one, calibration)
    has_clock = machine.gpu.clock_max_Hz is not None
    unknown = [*([] if calibration.power.points else ["energy", "power"]), *([] if has_clock else ["clock"])]
    values = {name: value for name, value in figures.items() if name not in unknown}
    spreads = {name: error for name, error in errors.items() if name in values}
    waiting_J = one.forward_idle_J + one.backward_idle_J + one.optimizer_idle_J
    parts = {
        "forward": one.forward_J + one.forward_idle_J,
        "backward": one.backward_J + one.backward_idle_J,
        "optimizer": one.optimizer_J + one.optimizer_idle_J,
        "idle": one.idle_J - waiting_J,
    }
    return PredictedQuantities(
        values=values,
        spreads=spreads,
        host_share=float(one.host_wait_s[0] / one.step_time_s[0]),
        phase_energy_J={name: float(J[0]) for name, J in parts.items()} if calibration.power.points else {},
    )


def _figures(one: Prediction) -> dict[str, float]:
    """Quantities of a batch of one; memory as the framework's allocator counts it."""
    beside_B = sum(one.memory_terms_B[name] for name in BESIDE_THE_ALLOCATOR)
    columns = {
        "step_time": one.step_time_s,
        "energy": one.energy_J,
        "power": one.power_W,
        "clock": one.clock_Hz,
        "memory": one.memory_B - beside_B,
        "forward": one.forward_s,
        "backward": one.backward_s,
        "optimizer": one.optimizer_s,
    }
    return {name: float(column[0]) for name, column in columns.items()}


def _errors(one: Prediction, calibration: Calibration) -> dict[str, float]:
    """Predicted standard deviations of their logarithms, where they are known."""
    memory = calibration.memory.parameters.get("log_error")
    return {
        "step_time": float(one.step_time_error[0]),
        "energy": float(one.energy_error[0]),
        "power": calibration.power.log_error,
        "clock": calibration.governor.log_error,
    } | ({} if memory is None else {"memory": memory.value})
