"""What routing costs in a step: the gating's share of it, and what uneven loads take beside even ones.

One more prediction of the same plan, with loads as even or as uneven as the plan's are not. It also says how far the
intervals of a forecast must reach that knows nothing of its routers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.arrays import FloatArray
from moemodel.model.plan.batch import PlanBatch, joined
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


def routing_costs(
    plans: Sequence[Plan], architecture: Architecture, machine: System, prediction: Prediction
) -> list[RoutingCost | None]:
    """Of plans of one architecture on one machine that were predicted together; None: the model has no experts.

    Raises:
        InputError: a file of statistics that can't be read.
    """
    if not experts_of(architecture):
        return [None] * len(plans)
    batch, skews = joined(plans), [forecast(plan.routing, architecture) for plan in plans]
    other_batch = replace(batch, skew=np.array([_other_skew(skew, architecture) for skew in skews]))
    other = PricedPlans(architecture, other_batch, machine).predict(machine.inlet_C)[0]
    given_steps = _routed(architecture, machine, batch, prediction)
    other_steps = _routed(architecture, machine, other_batch, other)
    gating_s, step_s = prediction.gating_s.tolist(), prediction.step_time_s.tolist()
    return [_cost(*of_plan) for of_plan in zip(skews, given_steps, other_steps, gating_s, step_s, strict=True)]


def _other_skew(skew: SkewForecast, architecture: Architecture) -> float:
    """Even loads beside uneven ones, and beside even ones those that may be or, if these are even too, of routers from
    random weights."""
    if skew.value != 1:
        return 1.0
    return max(skew.high, seen_from_random_weights(architecture).value if skew.high == 1 else 1)


def _cost(skew: SkewForecast, given: RoutedStep, other: RoutedStep, gating_s: float, step_s: float) -> RoutingCost:
    """Of a plan, with the step as it is predicted, and with loads as even or uneven as those are not."""
    balanced, uneven = (given, other) if skew.value == 1 else (other, given)
    reach = {
        name: _reach(getattr(balanced, name), getattr(uneven, name), uneven.skew, skew)
        for name in ("step_time_s", "gpu_energy_J", "memory_B")
    }
    return RoutingCost(
        gating_s=gating_s,
        gating_share=gating_s / step_s,
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


def _routed(architecture: Architecture, machine: System, batch: PlanBatch, found: Prediction) -> Iterator[RoutedStep]:
    energy_J = found.energy_J if machine.calibration.power.points else np.full(len(batch), np.nan)
    all_to_all_s = all_to_all_times_s(architecture, machine, batch)
    columns = (batch.skew, found.step_time_s, all_to_all_s, energy_J, found.memory_B)
    for skew, step_s, exchange_s, of_step_J, peak_B in zip(*(column.tolist() for column in columns), strict=True):
        yield RoutedStep(
            skew=skew, step_time_s=step_s, all_to_all_s=exchange_s, gpu_energy_J=of_step_J, memory_B=peak_B
        )


def all_to_all_times_s(architecture: Architecture, machine: System, batch: PlanBatch) -> FloatArray:
    """Of all micro-batches of a step, on the mean stage. [P]"""
    comm = Communication(architecture, batch, machine.network, framework=machine.framework, precision=machine.precision)
    whole_s = np.zeros(len(batch))
    for layer, count in Counter(architecture.layers).items():
        there, back = comm.layer(layer, axis="ep")
        whole_s += count * (there.whole_s + back.whole_s)
    return np.asarray(batch.micro_batches / batch.pp * whole_s)
