"""A load that is no training step: operators in turn, with a pause after each round, held for any time.

It goes through the same prices, limits and temperatures as a step does (`operator_cost`, `dvfs`, `thermal`), so what
can be measured in a minute says how good these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moemodel.model.device.dvfs import PowerSegment, at_clock, steady_state_clocks, time_at_clock
from moemodel.model.device.operator_cost import OperatorCostModel, PhaseCost
from moemodel.model.device.power import power_model
from moemodel.model.device.roofline import chip_of_calibration
from moemodel.model.device.thermal import thermal_model
from moemodel.model.operators.calls import Call, Phase
from moemodel.model.operators.work import Kind, Pass, Shape
from moemodel.model.records.calibration import Calibration

_CLOCKS = 13  # of the range, at which parts are priced; 49 move mixtures of bench/held_out_loads.py by 0.7 % at most
_SHORTEST_S = 1e-9  # of a pause of no length, to divide by
_ROUNDS = 4  # of power and temperature, which change each other by a per cent


@dataclass(frozen=True, kw_only=True)
class Part:
    """Calls of one operator, back to back."""

    kind: Kind
    direction: Pass
    shape: Shape
    calls: int


@dataclass(frozen=True, kw_only=True)
class SustainedLoad:
    """What a load does.

    Attributes:
        round_s: parts and pause.
        clock_Hz: true clock while its operators run, time-weighted.
        power_W: mean.
        temperature_C: of the die.
    """

    round_s: float
    clock_Hz: float
    power_W: float
    temperature_C: float


def sustained_load(
    parts: Sequence[Part],
    calibration: Calibration,
    *,
    power_limit_W: float,
    time_s: float,
    pause_s: float = 0.0,
    start_C: float | None = None,
) -> SustainedLoad:
    """What a load does some time after it began on an idle GPU.

    Args:
        parts: of a round, in order.
        calibration: of the GPU.
        power_limit_W: its power cap.
        time_s: since the load began.
        pause_s: without work, at the end of every round.
        start_C: temperature when it began; None: that of a GPU that has long been idle.

    Raises:
        CalibrationError: the calibration lacks an operator.
    """
    power, thermal = power_model(calibration), thermal_model(calibration)
    clocks = np.linspace(*calibration.clock_range_Hz, _CLOCKS)
    pricer = OperatorCostModel(calibration, chip_of_calibration(calibration), power, clocks)
    phase_costs = [_priced(pricer, part) for part in parts]
    times = [*(lane.time_s_UK for lane in phase_costs), np.full((1, _CLOCKS), pause_s)]
    works = [*(lane.energy_J_UK for lane in phase_costs), np.zeros((1, _CLOCKS))]
    true_Hz = [*(lane.cycles_UK / lane.time_s_UK for lane in phase_costs), clocks[None, :]]
    energies = [
        work_J + power.clocked_W(clock_Hz) * time for work_J, clock_Hz, time in zip(works, true_Hz, times, strict=True)
    ]
    names = calibration.governor.parameters
    limit_W = np.array([names["sustained_share"].value * power_limit_W])
    idle_W = float(power.steady(power.clocked_W(clocks[-1:]))[0][0])
    temperature_C = thermal.inlet_C if start_C is None else start_C
    for _ in range(_ROUNDS):
        cycle = [
            PowerSegment(
                time_s_UK=time, power_W_UK=power.total_W(energy / np.maximum(time, _SHORTEST_S), temperature_C)
            )
            for time, energy in zip(times, energies, strict=True)
        ]
        set_Hz = steady_state_clocks(
            cycle,
            clocks,
            limit_W_P=limit_W,
            highest_Hz_P=clocks[-1:],
            gain_Hz_per_J=names["gain"].value,
        )
        lasting = [float(time_at_clock(time, clocks, at)[0]) for time, at in zip(times, set_Hz, strict=True)]
        round_s = sum(lasting)
        spent = [float(at_clock(energy, clocks, at)[0]) for energy, at in zip(energies, set_Hz, strict=True)]
        dynamic_W = sum(spent) / round_s
        found_C, found_W = thermal.after(
            np.array([time_s]),
            power.base_W + dynamic_W,
            before_W=idle_W,
            start_C=start_C,
            slope_W_per_C=power.leak_W_per_C + power.rise_per_C * dynamic_W,
            reference_C=power.leak_reference_C,
        )
        temperature_C = float(found_C[0])
    cycles = sum(
        float(time_at_clock(lane.cycles_UK / clocks, clocks, at)[0] * at[0])
        for lane, at in zip(phase_costs, set_Hz, strict=False)
    )
    return SustainedLoad(
        round_s=round_s,
        clock_Hz=cycles / (round_s - pause_s),
        power_W=float(found_W[0]),
        temperature_C=temperature_C,
    )


def _priced(pricer: OperatorCostModel, part: Part) -> PhaseCost:
    call = Call(
        kind=part.kind,
        direction=part.direction,
        shape=part.shape,
        phase=Phase.FORWARD,
        count=np.array([float(part.calls)]),
    )
    return pricer.phase_costs([call], 1)[Phase.FORWARD]
