"""What warmer air at the GPUs' inlet costs: leakage rises, and under a power cap the clock pays for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moemodel.model.device.thermal import thermal_model
from moemodel.model.predict.predict import PricedPlans
from moemodel.model.predict.prediction import Prediction
from moemodel.model.step.system import System

WARMER_C = 10.0  # about the width of the range that ASHRAE TC 9.9 recommends for inlet air, 18 to 27 C


@dataclass(frozen=True, kw_only=True)
class InletSensitivity:
    """What warmer air would cost.

    Attributes:
        by_C: how much warmer.
        inlet_C: than what.
        time_share, energy_share: longer step and more energy of the GPUs, as shares.
        temperature_C: of the hottest die then.
    """

    by_C: float
    inlet_C: float
    time_share: float
    energy_share: float
    temperature_C: float


def predict_with_sensitivity(
    priced: PricedPlans, machine: System
) -> tuple[Prediction, Sequence[InletSensitivity | None]]:
    """A prediction, and what `WARMER_C` more would cost each plan; None where temperature is not modelled.

    Args:
        priced: the plans.
        machine: what they run on, with its air.
    """
    calibration = machine.calibration
    thermal = thermal_model(calibration)
    if thermal.total_C_per_W == 0 or calibration.power.points == 0:
        here = priced.predict(machine.inlet_C)[0]
        return here, [None] * len(here.step_time_s)
    inlet_C = thermal.inlet_C if machine.inlet_C is None else machine.inlet_C
    here, there = priced.predict(inlet_C, inlet_C + WARMER_C)
    longer, more = there.step_time_s / here.step_time_s - 1, there.energy_J / here.energy_J - 1
    return here, [
        InletSensitivity(
            by_C=WARMER_C, inlet_C=inlet_C, time_share=time_share, energy_share=energy_share, temperature_C=die_C
        )
        for time_share, energy_share, die_C in zip(
            longer.tolist(), more.tolist(), there.temperature_C.tolist(), strict=True
        )
    ]
