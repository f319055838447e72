"""Whole calibrations: of the profile that ships, thinned so that the fit is quick, and what the command writes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moemodel.calibration.fit.calibration import calibrate_profile, held_out_errors
from moemodel.calibration.fit.operators import HeldOut
from moemodel.calibration.store.catalogue import shipped
from moemodel.calibration.store.profile_reader import read_profile, read_table
from moemodel.model.core.errors import ProfileError
from moemodel.model.device.roofline import chip_of_calibration, operator_time
from moemodel.model.device.thermal import thermal_model
from moemodel.model.hardware.gpu import read_gpu
from moemodel.model.operators.work import PASSES, SHAPE_FIELDS, Kind, Pass, Shape
from moemodel.model.records.calibration import Calibration, read_calibration
from moemodel.model.records.profile import MANIFEST, Manifest

WriteProfile = Callable[..., Path]
Fitted = tuple[Calibration, list[HeldOut]]

_OMITTED = "created", "moemodel_version"


@pytest.fixture(scope="module")
def manifest(thin_profiles: list[Path]) -> Manifest:
    """Of the first profile."""
    return read_profile(thin_profiles[0]).manifest


@pytest.fixture(scope="module")
def tables(thin_profiles: list[Path]) -> dict[str, pd.DataFrame]:
    """The operators, loads and host times of all profiles."""
    found = {}
    for name in ("operators", "power", "host"):
        parts = [read_table(folder, name) for folder in thin_profiles]
        found[name] = pd.concat([part for part in parts if len(part)], ignore_index=True)
    return found


@pytest.fixture(scope="module")
def fitted(thin_profiles: list[Path]) -> Fitted:
    return calibrate_profile(*thin_profiles)


@pytest.fixture(scope="module")
def calibration(fitted: Fitted) -> Calibration:
    return fitted[0]


def test_every_operator_of_the_profile_has_a_fit_and_an_error(fitted: Fitted, tables: dict[str, pd.DataFrame]) -> None:
    calibration, errors = fitted
    rows = tables["operators"].groupby(["kind", "direction"])
    fits = {(str(fit.kind), str(fit.direction)): fit for fit in calibration.operators}
    assert len(fits) == len(calibration.operators)
    assert set(fits) == set(rows.groups)
    assert [(e.kind, e.direction) for e in errors] == [(fit.kind, fit.direction) for fit in calibration.operators]
    for operator, samples in rows:
        kind, direction = map(str, operator)
        assert fits[kind, direction].points == len(samples[list(SHAPE_FIELDS)].drop_duplicates())


def test_the_committed_profile_has_every_operator_and_pass_in_it(committed: Path) -> None:
    rows = read_table(committed, "operators")
    assert set(rows.groupby(["kind", "direction"]).groups) == {(str(k), str(p)) for k in Kind for p in PASSES[k]}


def test_it_says_on_what_it_was_measured(calibration: Calibration, manifest: Manifest) -> None:
    assert calibration.name == calibration.gpu == manifest.gpu
    for fact in (manifest.device.name, manifest.created[:10], manifest.libraries["torch"], manifest.device.driver):
        assert str(fact) in calibration.provenance
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", calibration.created)


def test_every_number_has_a_unit_a_source_and_is_one(calibration: Calibration) -> None:
    found = list(_parameters(calibration.model_dump()))
    assert len(found) > 300
    for parameter in found:
        assert parameter["unit"]
        assert parameter["source"]
        assert math.isfinite(parameter["value"])


def _parameters(node: Any) -> list[dict[str, Any]]:
    """Every `Parameter` of a document."""
    if isinstance(node, dict):
        if {"value", "unit", "origin"} <= node.keys():
            return [node]
        return [p for child in node.values() for p in _parameters(child)]
    return [p for child in node for p in _parameters(child)] if isinstance(node, list) else []


def test_the_chip_is_that_of_the_datasheet(calibration: Calibration) -> None:
    gpu = read_gpu("h100-sxm-80gb")
    chip = chip_of_calibration(calibration)
    assert calibration.clock_range_Hz == (gpu.clock_min_Hz, gpu.clock_max_Hz)
    assert chip.clock_Hz == calibration.clock_reference_Hz == gpu.clock_max_Hz
    assert chip.bandwidth_Bps == gpu.memory_bandwidth_Bps
    peak = gpu.peaks["bf16"]
    assert chip.multiprocessors * chip.flops_per_cycle * peak.clock_Hz == pytest.approx(peak.flops_per_s, rel=1e-3)


def test_the_clocks_measured_are_those_of_the_samples(
    calibration: Calibration, tables: dict[str, pd.DataFrame]
) -> None:
    low_Hz, high_Hz = calibration.clock_measured_Hz
    clocks_Hz = tables["operators"]["clock_Hz"]
    assert clocks_Hz.min() <= low_Hz < high_Hz <= clocks_Hz.max()
    assert ((clocks_Hz >= low_Hz) & (clocks_Hz <= high_Hz)).mean() > 0.98


def test_the_context_is_what_the_driver_counted(calibration: Calibration, manifest: Manifest) -> None:
    context = calibration.memory.parameters["context"]
    assert context.value == manifest.host["context_B"]
    assert context.origin == "measured"


def test_host_times_are_those_of_the_blocks(calibration: Calibration, tables: dict[str, pd.DataFrame]) -> None:
    (lane,) = calibration.host
    assert lane.backend == "torch"
    rows = tables["host"].set_index(["block", "direction"])["host_time_s"]
    for block in ("dense_layer", "dense_layer_gated", "dense_layer_gated_qk_norm", "moe_layer", "moe_layer_qk_norm"):
        for direction in ("forward", "backward"):
            assert lane.blocks[f"{block}/{direction}"].value == pytest.approx(rows[block, direction].mean())
        assert 0 < lane.blocks[f"{block}/step"].value < 1e-3
    assert lane.blocks["moe_layer/forward"].value > lane.blocks["dense_layer_gated/forward"].value
    assert lane.blocks["head_and_loss/forward"].value == pytest.approx(rows["head_and_loss", "forward"].mean())


def test_power_stays_within_what_the_device_draws(
    calibration: Calibration, tables: dict[str, pd.DataFrame], manifest: Manifest
) -> None:
    watts = tables["power"]["power_W"].dropna()
    assert calibration.power.points == len(watts)
    idle_W = sum(calibration.power.parameters[name].value for name in ("base_W", "tree_W"))
    assert 0.8 * watts.min() < idle_W < 1.2 * watts.min()
    assert calibration.power.log_error < 0.11  # two chips, one much warmer than the other
    cap_W = manifest.device.power_limit_W
    assert cap_W is not None
    assert 0.95 < calibration.governor.parameters["sustained_share"].value <= 1.0
    clocks_Hz = tables["operators"]["clock_Hz"]
    assert clocks_Hz.min() < calibration.governor.parameters["tensor_clock"].value < clocks_Hz.max()


def test_the_two_clocks_of_a_shape_are_both_explained(
    calibration: Calibration, tables: dict[str, pd.DataFrame]
) -> None:
    """Over all operators, half of the samples lie within 5 % of what the fit says of their shape and clock."""
    chip = chip_of_calibration(calibration)
    ratios = []
    for (kind, direction), rows in tables["operators"].groupby(["kind", "direction"]):
        fit = calibration.operator(Kind(str(kind)), Pass(str(direction)))
        assert fit is not None
        for few in (
            rows.iloc[first : first + 50] for first in range(0, len(rows), 50)
        ):  # shapes are priced at all clocks
            shape = Shape(**{name: few[name].to_numpy(np.float64) for name in SHAPE_FIELDS})
            clocks, place = np.unique(few["clock_Hz"].fillna(chip.clock_Hz), return_inverse=True)
            found = operator_time(fit, chip, shape, clocks).time_s_UK[np.arange(len(few)), place]
            ratios.append(np.abs(np.log(found / few["time_s"].to_numpy())))
    assert np.median(np.concatenate(ratios)) < 0.05


# ---- the calibration that ships -------------------------------------------------------------------------------------


def test_the_calibration_that_ships_predicts_what_the_committed_profile_gives(
    calibration: Calibration, tables: dict[str, pd.DataFrame], kept_whole: list[tuple[str, str]]
) -> None:
    """To a few per cent a shape: fits stop early, and another processor's last digits lead them elsewhere."""
    samples = tables["operators"]
    ours = shipped("h100-sxm-80gb")
    chip, clocks_Hz = chip_of_calibration(ours), np.array([1.2e9, 1.6e9, 1.98e9])
    assert chip_of_calibration(calibration) == chip
    for name, direction in kept_whole:
        fit = calibration.operator(Kind(name), Pass(direction))
        assert fit is not None
        other = ours.operator(fit.kind, fit.direction)
        assert other is not None
        assert other.points == fit.points
        assert {n: pytest.approx(range_) for n, range_ in fit.measured.items()} == other.measured
        assert other.log_error == pytest.approx(fit.log_error, rel=0.25)
        assert (fit.residual is None) == (other.residual is None)
        rows = samples[(samples["kind"] == name) & (samples["direction"] == direction)]
        shape = Shape(**{n: rows[n].to_numpy(np.float64) for n in SHAPE_FIELDS})
        found, expected = (operator_time(f, chip, shape, clocks_Hz).time_s_UK for f in (fit, other))
        difference = np.abs(np.log(found / expected))
        assert np.median(difference) < 0.01, (fit.kind, fit.direction)
        assert np.quantile(difference, 0.95) < 0.04, (fit.kind, fit.direction)


@pytest.mark.parametrize("part", ["power", "governor", "thermal", "host", "memory", "network", "chip"])
def test_what_ships_beside_operators_is_what_the_committed_profile_gives(part: str, calibration: Calibration) -> None:
    """Linear fits and means: the same to the last digits on any machine. The tensor cores' clock and the gain come from
    all operators, of which the profile here has not all shapes."""
    found, expected = (_parameters(c.model_dump(mode="json")[part]) for c in (calibration, shipped("h100-sxm-80gb")))
    # the error of a gain is flat about the best: the thinned profiles' is 16 % below that of all shapes
    same = [{"governor": 0.2 if p["unit"] == "Hz/J" else 0.03}.get(part, 1e-6) for p in expected]
    for ours, ships, rel in zip(found, expected, same, strict=True):
        assert ours["value"] == pytest.approx(ships["value"], rel=rel)
    assert [(p["unit"], p["origin"], p["source"]) for p in found] == [
        (p["unit"], p["origin"], p["source"]) for p in expected
    ]


def test_what_ships_names_the_profile_that_it_is_of(calibration: Calibration) -> None:
    ours = shipped("h100-sxm-80gb")
    assert ours.provenance == calibration.provenance
    assert (ours.name, ours.gpu, ours.clock_range_Hz) == (calibration.name, calibration.gpu, calibration.clock_range_Hz)
    assert ours.power.log_error == pytest.approx(calibration.power.log_error, rel=1e-6)


# ---- parts that are missing -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sparsely_fitted(small_profile: Path) -> Fitted:
    return calibrate_profile(small_profile)


@pytest.fixture(scope="module")
def sparse(sparsely_fitted: Fitted) -> Calibration:
    return sparsely_fitted[0]


def test_errors_on_held_out_shapes_alone_are_those_of_the_fit(small_profile: Path, sparsely_fitted: Fitted) -> None:
    assert held_out_errors(small_profile) == sparsely_fitted[1]


def test_too_few_loads_give_no_power_model_and_say_so(sparse: Calibration) -> None:
    assert sparse.power.points == 0
    assert sparse.power.log_error >= 1
    for parameter in (*sparse.power.parameters.values(), *sparse.governor.parameters.values()):
        assert parameter.origin == "assumed"
        assert re.search("no power readings|as an H100 80GB HBM3", parameter.source)
    assert "tensor_clock" not in sparse.governor.parameters


def test_no_trace_gives_no_rise_and_says_so(sparse: Calibration) -> None:
    for name in ("die_C_per_W", "sink_C_per_W"):
        rise = sparse.thermal.parameters[name]
        assert (rise.value, rise.origin) == (0.0, "assumed")
    assert thermal_model(sparse).total_C_per_W == 0


def test_no_context_is_assumed(small_profile: Path, tmp_path: Path, write_profile: WriteProfile) -> None:
    folder = write_profile(tmp_path / "profile", {"operators": read_table(small_profile, "operators")})
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    del manifest["host"]["context_B"]
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    calibration, _ = calibrate_profile(folder)
    assert calibration.memory.parameters["context"].origin == "assumed"
    assert calibration.host == []


# ---- several profiles -----------------------------------------------------------------------------------------------


def test_a_profile_twice_is_that_profile(small_profile: Path, sparse: Calibration) -> None:
    """Its operators say nothing new; its loads count double, and the provenance counts the chips."""
    twice, _ = calibrate_profile(small_profile, small_profile)
    assert "2 x " in twice.provenance
    chip = chip_of_calibration(sparse)
    for one, two in zip(sparse.operators, twice.operators, strict=True):
        assert two.points == one.points
        shape = Shape(m=np.geomspace(*one.measured["m"], 20))
        times = [operator_time(fit, chip, shape, np.array([1.5e9, 1.98e9])).time_s_UK for fit in (one, two)]
        assert times[0] == pytest.approx(times[1], rel=0.02)
    assert twice.power.points == 14


def test_profiles_of_different_gpus_do_not_mix(small_profile: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in small_profile.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((other / MANIFEST).read_text(encoding="utf-8")) | {"gpu": "h200-sxm-141gb"}
    (other / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ProfileError, match=r"other: gpu: found h200-sxm-141gb; .*profile has h100-sxm-80gb"):
        calibrate_profile(small_profile, other)


def test_a_profile_that_gives_what_no_device_has_is_named(
    small_profile: Path, committed: Path, tmp_path: Path, write_profile: WriteProfile
) -> None:
    """Collectives of a byte take as long as those of a gigabyte: no bandwidth does that."""
    links = committed.parent / "4xh100-sxm-80gb-links"
    rows = read_table(links, "collectives").assign(time_s=1.0)
    folder = write_profile(tmp_path / "links", {"collectives": rows}, like=links)
    with pytest.raises(
        ProfileError, match=rf"{folder}: what was measured gives no calibration: .*efficiency_all_reduce"
    ):
        calibrate_profile(small_profile, folder)


# ---- from the command line ------------------------------------------------------------------------------------------


def test_the_same_profile_gives_the_same_file(
    small_profile: Path, tmp_path: Path, moemodel: Callable[..., Any]
) -> None:
    texts = []
    for name in ("first.json", "second.json"):
        result = moemodel("calibrate", small_profile, "-o", name)
        assert result.exit_code == 0, result.output
        assert f"wrote {name}" in result.stdout
        assert read_calibration(tmp_path / name).gpu == "h100-sxm-80gb"
        text = (tmp_path / name).read_text(encoding="utf-8")
        texts.append(re.sub(r'"created": *"[^"]*"', '"created": ""', text))
    assert texts[0] == texts[1]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["first.json", "second.json"]


def test_numbers_survive_the_file(small_profile: Path, tmp_path: Path, moemodel: Callable[..., Any]) -> None:
    assert moemodel("calibrate", small_profile, "-o", "mine.json").exit_code == 0
    read, made = read_calibration(tmp_path / "mine.json"), calibrate_profile(small_profile)[0]
    assert read.model_dump(exclude=set(_OMITTED)) == made.model_dump(exclude=set(_OMITTED))
