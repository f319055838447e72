"""What routing costs in a step: the gating's share of it, and what uneven loads take beside even ones.

One more prediction of the same plan, with loads as even or as uneven as the plan's are not. It also says how far the
intervals of a forecast must reach that knows nothing of its routers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moemodel.model.architecture.spec import Architecture
from moemodel.model.plan.batch import PlanBatch, batch_of
from moemodel.model.plan.skew import SkewForecast, experts_of, forecast, seen_from_random_weights
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import PricedPlans
from moemodel.model.predict.prediction import Prediction
from moemodel.model.results.estimate import finite
from moemodel.model.step.microbatch_comm import Communication
from moemodel.model.step.system import System


@dataclass(frozen=True, kw_only=True)
class RoutedStep:
    """A step with loads of one skew.

    Attributes:
        skew: rows of the busiest expert over the mean.
        step_time_s: of it.
        all_to_all_s: of it, of the mean GPU, hidden or not.
        gpu_energy_J: of all GPUs.
        memory_B: peak of the fullest one.
    """

    skew: float
    step_time_s: float
    all_to_all_s: float
    gpu_energy_J: float
    memory_B: float

    def to_json(self) -> dict[str, Any]:
        """Units in the names."""
        return {name: finite(value) for name, value in vars(self).items()}


@dataclass(frozen=True, kw_only=True)
class RoutingCost:
    """What routing costs a plan with experts.

    Attributes:
        gating_s: of a step, device time of the mean GPU in routers, and in moving rows to experts and back.
        gating_share: of the step.
        balanced, uneven: the step with even loads, and with those that are predicted for or, of a plan of even ones,
            those of routers from random weights.
        skew: that is predicted for, and how far it may go.
        time_reach, energy_reach, memory_reach: what a plan of that skew takes, over what is predicted.
    """

    gating_s: float
    gating_share: float
    balanced: RoutedStep
    uneven: RoutedStep
    skew: SkewForecast
    time_reach: float
    energy_reach: float
    memory_reach: float

    def to_json(self) -> dict[str, Any]:
        """Units in the names."""
        return {
            "gating_s": finite(self.gating_s),
            "gating_share": finite(self.gating_share),
            "skew": self.skew.value,
            "skew_may_reach": self.skew.high,
            "skew_measured": self.skew.measured,
            "balanced": self.balanced.to_json(),
            "uneven": self.uneven.to_json(),
        }


def routing_cost(plan: Plan, architecture: Architecture, machine: System, prediction: Prediction) -> RoutingCost | None:
    """Of a plan that was predicted; None: its model has no experts.

    Raises:
        InputError: a file of statistics that can't be read.
    """
    if not experts_of(architecture):
        return None
    skew, batch = forecast(plan.routing, architecture), batch_of(plan)
    given = _routed(architecture, machine, batch, prediction)
    even = skew.value == 1
    other_skew = max(skew.high, seen_from_random_weights(architecture).value if skew.high == 1 else 1) if even else 1.0
    other_batch = replace(batch, skew=np.array([other_skew]))
    other = _routed(
        architecture,
        machine,
        other_batch,
        PricedPlans(architecture, other_batch, machine).predict(machine.inlet_C)[0],
    )
    balanced, uneven = (given, other) if even else (other, given)
    reach = {
        name: _reach(getattr(balanced, name), getattr(uneven, name), uneven.skew, skew)
        for name in ("step_time_s", "gpu_energy_J", "memory_B")
    }
    return RoutingCost(
        gating_s=float(prediction.gating_s[0]),
        gating_share=float(prediction.gating_s[0] / prediction.step_time_s[0]),
        balanced=balanced,
        uneven=uneven,
        skew=skew,
        time_reach=reach["step_time_s"],
        energy_reach=reach["gpu_energy_J"],
        memory_reach=reach["memory_B"],
    )


def _reach(balanced: float, uneven: float, uneven_skew: float, skew: SkewForecast) -> float:
    """A figure at the skew that may be reached over that at the predicted one; by its logarithm, linear in the skew
    between even loads and uneven ones. Not below 1."""
    if skew.high == skew.value or uneven_skew == 1 or not (balanced > 0 and uneven > 0):
        return 1.0
    per_skew = math.log(uneven / balanced) / (uneven_skew - 1)
    return max(math.exp(per_skew * (skew.high - skew.value)), 1.0)


def _routed(architecture: Architecture, machine: System, batch: PlanBatch, found: Prediction) -> RoutedStep:
    power = machine.calibration.power.points > 0
    return RoutedStep(
        skew=float(batch.skew[0]),
        step_time_s=float(found.step_time_s[0]),
        all_to_all_s=all_to_all_time_s(architecture, machine, batch),
        gpu_energy_J=float(found.energy_J[0]) if power else math.nan,
        memory_B=float(found.memory_B[0]),
    )


def all_to_all_time_s(architecture: Architecture, machine: System, batch: PlanBatch) -> float:
    """Of all micro-batches of a step, on the mean stage."""
    comm = Communication(architecture, batch, machine.network, framework=machine.framework, precision=machine.precision)
    layers = dict.fromkeys(architecture.layers)
    counts = {layer: architecture.layers.count(layer) for layer in layers}
    passes = [(count, *comm.layer(layer, axis="ep")) for layer, count in counts.items()]
    whole_s = sum(count * float(there.whole_s[0] + back.whole_s[0]) for count, there, back in passes)
    return float(batch.micro_batches[0] / batch.pp[0]) * whole_s
