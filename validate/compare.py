"""Predicted against measured: one comparison a training run, from rows of a profile's `iterations` table.

What the router did and how warm the die was are inputs of the prediction, read from the row: a plan can only assume the
one, and a prediction is for the steady state of a long run otherwise. Nothing else of the row reaches the prediction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moemodel.model.calibration import Calibration
from moemodel.model.documents import parse_yaml
from moemodel.model.feasibility import architecture_of
from moemodel.model.outcome import machine_of
from moemodel.model.plan import Plan, batch_of
from moemodel.model.predict import Prediction, predict

_Z90 = 1.645  # standard deviations of a normal distribution within which 90 % of it lies

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


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One quantity of one run, SI units; `spread` is the predicted standard deviation of its logarithm, or None."""

    predicted: float
    measured: float
    spread: float | None = None

    @property
    def error(self) -> float:
        """Relative error, signed."""
        return self.predicted / self.measured - 1

    @property
    def covered(self) -> bool:
        """The measurement lies in the 90 % interval; False where there is none."""
        return self.spread is not None and abs(math.log(self.predicted / self.measured)) <= _Z90 * self.spread


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One run: its name, its quantities (those that were measured), and the predicted share of waiting for the host."""

    name: str
    quantities: dict[str, Quantity]
    host_share: float


def compare(rows: Iterable[Mapping[str, Any]], calibration: Calibration) -> list[Comparison]:
    """Predict every measured run.

    Args:
        rows: of a profile's `iterations` table.
        calibration: of the GPU that they ran on.

    Raises:
        InputError: a row's plan is not one.
        CalibrationError: the calibration is of another GPU, or lacks an operator.
    """
    return [_compare(row, calibration) for row in rows]


def _compare(row: Mapping[str, Any], calibration: Calibration) -> Comparison:
    plan = parse_yaml(row["plan_yaml"], Plan, str(row["plan"]))
    batch = batch_of(plan)
    if _known(row["expert_skew"]):
        batch = replace(batch, skew=np.array([row["expert_skew"]]))
    temperature_C = float(row["temperature_C"]) if _known(row["temperature_C"]) else None
    one = predict(architecture_of(plan), batch, machine_of(plan, calibration), temperature_C=temperature_C)
    predicted, spreads = _predicted(one)
    return Comparison(
        name=str(row["plan"]),
        quantities={
            name: Quantity(predicted=predicted[name], measured=float(row[column]), spread=spreads.get(name))
            for name, column in QUANTITIES.items()
            if _known(row[column])
        },
        host_share=float(one.host_wait_s[0] / one.step_time_s[0]),
    )


def _known(value: Any) -> bool:
    return value is not None and not math.isnan(float(value))


def _predicted(one: Prediction) -> tuple[dict[str, float], dict[str, float]]:
    """Quantities of a batch of one, and their spreads; memory as the framework's allocator counts it."""
    beside_B = one.memory_terms_B["context"] + one.memory_terms_B["fragmentation"]
    values = {
        "step_time": one.step_time_s,
        "energy": one.energy_J,
        "power": one.power_W,
        "clock": one.clock_Hz,
        "memory": one.memory_B - beside_B,
        "forward": one.forward_s,
        "backward": one.backward_s,
        "optimizer": one.optimizer_s,
    }
    spreads = {"step_time": one.step_time_error, "energy": one.energy_error}
    return {name: float(v[0]) for name, v in values.items()}, {name: float(v[0]) for name, v in spreads.items()}


def mape(found: Sequence[Comparison], name: str) -> float:
    """Mean absolute relative error of a quantity over the runs that have it.

    Raises:
        ValueError: none has.
    """
    errors = [abs(run.quantities[name].error) for run in found if name in run.quantities]
    if not errors:
        raise ValueError(f"no run measured {name}")
    return float(np.mean(errors))


def coverage(found: Sequence[Comparison], name: str) -> float:
    """Share of the runs whose measurement lies in the 90 % interval.

    Raises:
        ValueError: none measured it.
    """
    held = [run.quantities[name].covered for run in found if name in run.quantities]
    if not held:
        raise ValueError(f"no run measured {name}")
    return float(np.mean(held))
