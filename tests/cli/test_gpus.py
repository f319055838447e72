"""`moemodel gpus`."""

from __future__ import annotations

import json
from collections.abc import Callable

from click.testing import Result

from moemodel.calibration.store.catalogue import list_calibrations
from moemodel.model.hardware.gpu import list_gpus

Run = Callable[..., Result]


def test_gpus(moemodel: Run) -> None:
    result = moemodel("gpus")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in list_gpus())
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_every_value_of_a_gpu_has_its_source(moemodel: Run) -> None:
    result = moemodel("gpus", "h100")
    assert result.exit_code == 0
    assert "peaks.bf16 flops_per_s" in result.stdout
    assert "Tensor Core GPU Architecture" in result.stdout


def test_tiles_are_said_as_sizes(moemodel: Run) -> None:
    assert "256x256, 256x192, 256x128" in moemodel("gpus", "b200").stdout
    tiles = json.loads(moemodel("gpus", "b200", "--json").stdout)[0]["tiles"]
    assert tiles[0] == [256, 256]


def test_a_gpu_without_bf16_shows_its_fp16(moemodel: Run) -> None:
    row = next(line for line in moemodel("gpus").stdout.splitlines() if line.startswith("v100-sxm-32gb  "))
    assert "125" in row.split()


def test_a_range_of_clocks_that_nobody_knows_is_one_question_mark(moemodel: Run) -> None:
    lines = moemodel("gpus").stdout.splitlines()
    assert not any("?-?" in line for line in lines)
    assert next(line for line in lines if line.startswith("cpu ")).split().count("?") >= 1
    assert "345-1980" in next(line for line in lines if line.startswith("h100-sxm-80gb "))


def test_gpus_for_machines(moemodel: Run) -> None:
    gpus = {gpu["name"]: gpu for gpu in json.loads(moemodel("gpus", "--json").stdout)}
    assert sorted(gpus) == list(list_gpus())
    assert gpus["h100-sxm-80gb"]["peaks"]["bf16"]["flops_per_s"] == 989.4e12
    assert gpus["cpu"]["memory_B"] is None


def test_what_can_be_done_on_each(moemodel: Run) -> None:
    standings = {gpu["name"]: gpu["standing"] for gpu in json.loads(moemodel("gpus", "--json").stdout)}
    assert standings["h100-sxm-80gb"] == "measured"
    assert standings["a100-sxm-80gb"] == "fitted"
    assert {name for name, standing in standings.items() if standing == "derived"} == {
        name for name in list_gpus() if name not in list_calibrations() and name != "cpu"
    }
    assert standings["cpu"] == "needs a profile"
    listed = " ".join(moemodel("gpus").stdout.split())
    assert "What can be done" in listed
    assert "needs a profile Memory, whether a plan fits, FLOPs, bytes and volumes of communication." in listed
    assert "How wrong deriving has been: An H200 derived from an H100" in listed
    assert "derived: All is predicted, by a calibration taken over" in " ".join(moemodel("gpus", "v100").stdout.split())


def test_unknown_names_are_guessed_at(moemodel: Run) -> None:
    result = moemodel("gpus", "h100-sxm-80")
    assert result.exit_code == 2
    assert "did you mean" in result.stderr
