"""The calibrations that ship: each is of a GPU that is described, whole, and prices every architecture."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import PARTLY_DERIVED, derived_from, list_calibrations, shipped
from moemodel.model.architecture.hf_config import list_architectures, read_architecture
from moemodel.model.architecture.spec import Moe
from moemodel.model.core.errors import CalibrationError
from moemodel.model.hardware.gpu import list_gpus, read_gpu
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.step.system import system_of

by_name = pytest.mark.parametrize("name", list_calibrations())


def test_the_promised_ones_are_there() -> None:
    assert {"h100-sxm-80gb", "a100-sxm-40gb", "a100-sxm-80gb"} <= set(list_calibrations())


def test_nothing_is_derived_from_what_is_derived_itself() -> None:
    assert set(PARTLY_DERIVED) == {name for name in list_calibrations() if shipped(name).derived_from}
    base = derived_from(read_gpu("rtx-pro-6000"))
    assert base is not None
    assert base.name not in PARTLY_DERIVED


def test_one_that_is_not_there() -> None:
    with pytest.raises(CalibrationError, match=r"gh200.*h100-sxm-80gb.*moemodel calibrate"):
        shipped("gh200-96gb")


def _numbers(node: Any) -> Iterator[float]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    for child in children:
        yield from _numbers(child)
    if isinstance(node, float):
        yield node


@by_name
def test_it_is_of_a_gpu_that_is_described(name: str) -> None:
    calibration = shipped(name)
    assert calibration.name == calibration.gpu == name
    assert calibration.gpu in list_gpus()
    gpu = read_gpu(name)
    low_Hz, high_Hz = calibration.clock_range_Hz
    assert (low_Hz, high_Hz) == (gpu.clock_min_Hz, gpu.clock_max_Hz)
    assert low_Hz <= calibration.clock_measured_Hz[0] <= calibration.clock_measured_Hz[1] <= 1.01 * high_Hz


@by_name
def test_every_number_is_one(name: str) -> None:
    numbers = list(_numbers(shipped(name).model_dump()))
    assert len(numbers) > 100
    assert all(map(math.isfinite, numbers))


@by_name
def test_it_is_plain_json(name: str) -> None:
    """What is written and read again is the same, down to the last digit."""
    calibration = shipped(name)
    assert type(calibration).model_validate(json.loads(calibration.model_dump_json())) == calibration


@by_name
@pytest.mark.parametrize("architecture", list_architectures())
def test_it_prices_every_architecture(name: str, architecture: str, batch: Callable[..., PlanBatch]) -> None:
    """One GPU, two with tensor parallelism, and two that share the experts: an operator that is missing would raise."""
    model = read_architecture(architecture)
    plan = Plan.model_validate(
        {
            "architecture": architecture,
            "sequence_length": 512,
            "global_batch": 8,
            "cluster": {"gpu": name, "gpus": 2},
            "parallel": {"dp": 2},
        }
    )
    experts = any(isinstance(layer.feed_forward, Moe) for layer in model.layers)
    degrees = {"dp": [1, 1, 2][: 2 + experts], "tp": [1, 2, 1][: 2 + experts], "ep": [1, 1, 2][: 2 + experts]}
    prediction = predict(model, batch(seq=512, global_batch=8, **degrees), system_of(plan, shipped(name)))
    for field in fields(prediction):
        values = getattr(prediction, field.name)
        for column in values.values() if isinstance(values, dict) else [values]:
            assert np.isfinite(column).all(), field.name
    assert (prediction.step_time_s > 0).all()
    assert (prediction.forward_s > 0).all()
    assert prediction.forward_s[1] < prediction.forward_s[0]  # half the work a GPU
    assert (prediction.mfu < 0.75).all()
    idle_W = shipped(name).power.parameters["base_W"].value
    assert (prediction.power_W > 0.7 * idle_W).all()
