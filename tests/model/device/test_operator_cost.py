"""What calls cost: work of the mean rank, where shapes are those of the busiest."""

from __future__ import annotations

import numpy as np
import pytest

from moemodel.model.core.arrays import FloatArray
from moemodel.model.device.operator_cost import OperatorCostModel, PhaseCost
from moemodel.model.device.power import power_model
from moemodel.model.device.roofline import chip_of_calibration
from moemodel.model.operators.calls import Call, Phase
from moemodel.model.operators.work import Kind, Pass, Shape
from moemodel.model.records.calibration import Calibration


def cost(calibration: Calibration, load_balance: FloatArray | float) -> PhaseCost:
    """Of one product, at two clocks."""
    size = np.array([4096.0])
    call = Call(
        kind=Kind.GEMM,
        direction=Pass.FORWARD,
        shape=Shape(m=size, n=size, k=size),
        phase=Phase.FORWARD,
        count=np.ones(1),
        load_balance=load_balance,
    )
    clocks_Hz = np.array([1200e6, 1600e6])
    model = OperatorCostModel(calibration, chip_of_calibration(calibration), power_model(calibration), clocks_Hz)
    return model.phase_costs([call], 1)[Phase.FORWARD]


def test_a_share_is_one_whether_a_number_or_an_array(calibration: Calibration) -> None:
    """A call takes as long as on the busiest rank; half the work takes half the energy."""
    even, number, array = (cost(calibration, share) for share in (1.0, 0.5, np.array([0.5])))
    assert number.energy_J_UK == pytest.approx(array.energy_J_UK)
    assert number.time_s_UK == pytest.approx(even.time_s_UK)
    assert number.energy_J_UK == pytest.approx(even.energy_J_UK / 2)
