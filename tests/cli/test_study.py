"""`moemodel study`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from moemodel.model.results.crossover import FORMS, SIZES

Run = Callable[..., Result]


def test_crossover_is_predicted(moemodel: Run) -> None:
    result = moemodel("study", "crossover")
    assert result.exit_code == 0
    assert all(f"{gpu}, predicted" in result.stdout for gpu in ("h100-sxm-80gb", "h200-sxm-141gb", "a100-pcie-80gb"))
    assert result.stdout.count("it takes less energy from") == 6
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_figures_agree_with_each_other(moemodel: Run) -> None:
    result = moemodel("study", "crossover", "--on", "h100", "--json")
    document = json.loads(result.stdout)
    assert list(document["predicted"]) == ["h100"]
    cases = document["predicted"]["h100"]["cases"]
    assert [(case["size"], case["form"]) for case in cases] == [(size, form) for size in SIZES for form in FORMS]
    joules = {(case["size"], case["form"]): case["inferences_per_J"] for case in cases}
    for case in cases:
        assert case["inferences_per_J"] == pytest.approx(case["inferences_per_s"] / case["power_W"])
        assert 0 <= case["waits_for_host"] < 1
    for form, winners in document["predicted"]["h100"]["winners"].items():
        for size, wins in winners.items():
            assert (wins == "moe") == (joules[size, form] > joules[size, "dense"])
        last = [size for size in SIZES if winners[size] == "dense"][-1]
        assert document["predicted"]["h100"]["turns_at"][form] == SIZES[SIZES.index(last) + 1]


def test_crossover_is_measured_where_one_is(moemodel: Run) -> None:
    result = moemodel("study", "crossover", "--on", "h100", "--gpu", "cpu", "--tiny", "--seconds", "0.01")
    assert result.exit_code == 0
    assert "cpu, measured" in result.stdout
    assert result.stdout.count("MoE, chosen experts") >= 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--gpu", "sim:h100"), "--gpu: found sim:h100"),
        (("--on", "nope"), "--on: found 'nope'; allowed: a100"),
        (("--repeats", "0"), "--repeats"),
    ],
)
def test_a_bad_input_is_said(moemodel: Run, arguments: tuple[str, ...], words: str) -> None:
    result = moemodel("study", "crossover", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr


def test_parallelism_says_of_each_finding_whether_it_shows(moemodel: Run, tmp_path: Path) -> None:
    result = moemodel("study", "parallelism", "-o", str(tmp_path / "out"), "--no-figures")
    assert result.exit_code == 0
    assert result.stdout.count("[shown, by") + result.stdout.count("[not shown]") == 3
    assert "Measured as the fastest at full clock: dp4-pp1-tp2-mbs1." in result.stdout
    assert max(map(len, result.stdout.splitlines()[:-1])) <= 80  # the last names the folder
    document = json.loads((tmp_path / "out" / "parallelism.json").read_text())
    assert [insight["name"] for insight in document["insights"]] == ["degrees", "clock", "joint"]
    assert all(0 <= insight["margin"] < 1 for insight in document["insights"])
    assert len(document["degrees"]) == 48
    assert [len(points) for points in document["experts"].values()] == [6, 6]
    assert (document["clocks"][0]["clocks_MHz"], document["clocks"][-1]["clocks_MHz"]) == ([240.0], [1410.0])
    assert list(document["joint"]) == [
        "dp4-pp1-tp2-mbs1",
        "dp2-pp2-tp2-mbs1",
        "dp2-pp2-tp2-mbs2",
        "dp1-pp4-tp2-mbs4",
    ]
    for point in document["joint"]["dp2-pp2-tp2-mbs2"]:
        assert point["energy_J"] == pytest.approx(8 * point["power_W"] * point["step_s"])


def test_parallelism_draws_its_figures(moemodel: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = moemodel("study", "parallelism", "-o", str(tmp_path), "--json")
    assert json.loads(result.stdout)["study"] == "parallelism"
    for name in ("degrees", "experts", "clocks", "joint"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "dp2-pp2-tp2-mbs2" in (tmp_path / "joint.svg").read_text()


def test_figures_need_a_folder(moemodel: Run) -> None:
    result = moemodel("study", "parallelism", "--figures")
    assert result.exit_code == 2
    assert "--figures: found no folder for them" in result.stderr
