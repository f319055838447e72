"""Calibrations at the door: every parameter that the model reads has to be there, under its name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import list_calibrations
from moemodel.model.core.errors import CalibrationError
from moemodel.model.device.operator_cost import tensor_limit
from moemodel.model.device.power import PowerModel
from moemodel.model.device.roofline import FEATURES, RooflineChip, form_of
from moemodel.model.device.thermal import ThermalModel
from moemodel.model.network.collectives import Collective
from moemodel.model.operators.work import Kind
from moemodel.model.records.calibration import read_calibration
from moemodel.model.records.parameter_names import CHIP, NETWORK, POWER, THERMAL, operator_features, operator_names

SHIPPED = Path(__file__).parents[3] / "calibrate" / "shipped"
OPTIONAL = {"t1", "alignment", "log_error", *CHIP.optional, *NETWORK.optional}


@cache
def _document(name: str) -> dict[str, Any]:
    """A shipped calibration with one operator of each form, and without residuals, so that it is read in no time."""
    document: dict[str, Any] = json.loads((SHIPPED / f"{name}.json").read_text(encoding="utf-8"))
    forms = {form_of(Kind(fit["kind"])): fit | {"residual": None} for fit in document["operators"]}
    return document | {"operators": list(forms.values())}


def _places() -> Iterator[tuple[str, ...]]:
    """Calibration, path of a part's parameters, and one of their names."""
    for name in list_calibrations():
        document = _document(name)
        parts = {f"operators.{i}.parameters": fit["parameters"] for i, fit in enumerate(document["operators"])}
        parts |= {
            f"{part}.parameters": document[part]["parameters"]
            for part in ("power", "governor", "thermal", "network", "memory")
        }
        for place, parameters in (parts | {"chip": document["chip"]}).items():
            yield from ((name, place, parameter) for parameter in parameters)


def _at(document: Any, place: str) -> dict[str, Any]:
    for key in place.split("."):
        document = document[int(key) if key.isdecimal() else key]
    return document  # type: ignore[no-any-return]


def _refusal(document: dict[str, Any], folder: Path) -> str:
    path = folder / "bad.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(CalibrationError) as caught:
        read_calibration(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message) < 1000
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize(("name", "place", "parameter"), list(_places()))
def test_a_missing_parameter_is_named(name: str, place: str, parameter: str, tmp_path: Path) -> None:
    document = deepcopy(_document(name))
    del _at(document, place)[parameter]
    if parameter in OPTIONAL:
        (tmp_path / "good.json").write_text(json.dumps(document), encoding="utf-8")
        read_calibration(tmp_path / "good.json")
        return
    message = _refusal(document, tmp_path)
    assert message.startswith(f"{place}: ")
    assert f"missing: {parameter} (required: " in message


def test_a_fast_limit_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    """Of its two parameters a lone one is refused (the tests above); a calibration without either is complete."""
    document = deepcopy(_document("h100-sxm-80gb"))
    for name in ("tensor_clock", "tensor_sharpness"):
        del document["governor"]["parameters"][name]
    (tmp_path / "good.json").write_text(json.dumps(document), encoding="utf-8")
    limit = tensor_limit(read_calibration(tmp_path / "good.json"))
    assert limit.true_clock_Hz(np.array([1.98e9]), np.array([[1.0]])).item() == 1.98e9


@pytest.mark.parametrize("place", ["operators.0.parameters", "power.parameters", "network.parameters", "chip"])
def test_an_unknown_parameter_is_named(place: str, tmp_path: Path) -> None:
    document = deepcopy(_document("a100-sxm-80gb"))
    parameters = _at(document, place)
    parameters["kneee_Hz"] = next(iter(parameters.values()))
    assert "unknown: kneee_Hz (required: " in _refusal(document, tmp_path)


def test_what_is_divided_by_is_above_zero(tmp_path: Path) -> None:
    document = deepcopy(_document("a100-sxm-80gb"))
    document["chip"]["bandwidth_Bps"]["value"] = 0
    assert _refusal(document, tmp_path).startswith("chip: not above 0: bandwidth_Bps (required: ")


def test_a_range_has_the_features_of_its_operator(tmp_path: Path) -> None:
    document = deepcopy(_document("h100-sxm-80gb"))
    fit = next(fit for fit in document["operators"] if fit["kind"] == "gemm")
    del fit["measured"]["batch"]
    assert "measured: found m, n, k; allowed: m, n, k, batch" in _refusal(document, tmp_path)


@pytest.mark.parametrize("kind", Kind)
def test_operators_have_the_names_of_their_form(kind: Kind) -> None:
    assert operator_features(kind) == FEATURES[form_of(kind)]
    names = operator_names(kind)
    assert set(names.positive) <= {*names.required, *names.optional}


def test_parts_have_the_names_that_their_consumers_read() -> None:
    assert {*CHIP.required, *CHIP.optional, "clock_Hz"} == {f.name for f in fields(RooflineChip)}
    others = {"clock_reference_Hz", "link_W", "kinds", "thermal_C_per_W", "inlet_C"}
    assert {*POWER.required, *POWER.optional} | others == {f.name for f in fields(PowerModel)}
    assert {name.replace("_time", "_s") for name in THERMAL.required} == {f.name for f in fields(ThermalModel)}
    assert {name for name in NETWORK.required if name.startswith("efficiency_")} == {
        f"efficiency_{collective}" for collective in Collective
    }


@pytest.mark.parametrize(
    ("place", "name", "value", "words"),
    [
        (
            "power.parameters",
            "cache_J_per_B",
            -3.0,
            "out of range: cache_J_per_B is -3, allowed 0 to",
        ),
        ("power.parameters", "base_W", -10_700.0, "power.parameters: out of range: base_W is -10700, allowed 0 to"),
        ("network.parameters", "start_latency", -3.0, "network.parameters: out of range: start_latency is -3, allowed"),
        ("network.parameters", "overlap", 1.5, "network.parameters: out of range: overlap is 1.5, allowed 0 to 1"),
        ("operators.0.parameters", "t0", -1e-6, "out of range: t0 is -1e-06, allowed 0 to 1000"),
        ("host.0.blocks", "kernel", -1.0, "host.0.blocks: kernel is -1, allowed 0 to"),
        ("thermal.parameters", "sink_C_per_W", 2.5, "a die that warms up without end; allowed: less of them"),
        ("power.parameters", "leak_reference_C", 200.0, " W at the inlet's temperature; allowed: 0 or more"),
        (
            "power.parameters",
            "base_W",
            True,
            "base_W.value: found True; input should be a valid number",
        ),
        (
            "power.parameters",
            "base_W",
            "64",
            "base_W.value: found '64'; input should be a valid number",
        ),
    ],
)
def test_what_no_gpu_has(place: str, name: str, value: object, words: str, tmp_path: Path) -> None:
    document = deepcopy(_document("h100-sxm-80gb"))
    if place.startswith("host"):
        _at(document, place)[name] = dict(next(iter(_at(document, place).values())))
    _at(document, place)[name]["value"] = value
    assert words in _refusal(document, tmp_path)


def test_a_range_is_from_the_lowest_on(tmp_path: Path) -> None:
    document = deepcopy(_document("h100-sxm-80gb"))
    document["clock_range_Hz"].reverse()
    assert "clock_range_Hz: found 1.98e+09 to 3.45e+08; allowed: from the lowest" in _refusal(document, tmp_path)
    document = deepcopy(_document("h100-sxm-80gb"))
    del document["clock_measured_Hz"][1]
    assert _refusal(document, tmp_path) == "the key 'clock_measured_Hz.1' is missing"
