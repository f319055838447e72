"""Times of operators: what a calibration says of its chip reaches the forms."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.device.roofline import RooflineChip, chip_of_calibration, operator_time
from moemodel.model.operators.work import Kind, Pass, Shape
from moemodel.model.records.calibration import Calibration, Parameter


def _with_lanes(lanes: float) -> Calibration:
    calibration = shipped("h100-sxm-80gb")
    chip = calibration.chip | {"simd_lanes": Parameter.datasheet(lanes, "1", "a description")}
    return Calibration.model_validate(json.loads(calibration.model_copy(update={"chip": chip}).model_dump_json()))


def test_a_calibration_without_lanes_has_those_of_an_h100() -> None:
    assert chip_of_calibration(shipped("h100-sxm-80gb")).simd_lanes == RooflineChip.simd_lanes == 128


def test_half_the_lanes_take_twice_as_long_where_lanes_bound() -> None:
    """Memory without end and no launch leave the arithmetic alone."""
    fit = next(f for f in shipped("h100-sxm-80gb").operators if (f.kind, f.direction) == (Kind.GELU, Pass.FORWARD))
    free = {"t0": 0.0, "t1": 0.0, "memory_efficiency": 1e6, "cache_efficiency": 1e6}
    parameters = {n: p.model_copy(update={"value": free.get(n, p.value)}) for n, p in fit.parameters.items()}
    bound = fit.model_copy(update={"parameters": parameters, "residual": None})
    times_s = [
        operator_time(bound, chip_of_calibration(c), Shape(m=4096, n=4096), np.array([1.5e9])).time_s_UK.item()
        for c in (_with_lanes(128), _with_lanes(64))
    ]
    assert times_s[1] == pytest.approx(2 * times_s[0], rel=1e-3)
