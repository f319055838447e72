"""The page of a search: whole and self-contained, the numbers of the search, and as a browser shows it when clicked."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from moemodel.cli.search_page import search_page
from moemodel.model.plan.dispatch import in_words
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.outcome import outcome
from moemodel.model.search.document import Search
from moemodel.model.search.result import SearchResult
from moemodel.model.search.search import search
from moemodel.model.search.survey import Survey, survey
from tests.browser import BROWSER, Page, browser
from tests.tags import Tags

Run = Callable[..., Result]

NAME = "a </script><b>name"
TYPES = {"u8": "<u1", "u16": "<u2", "i32": "<i4", "f32": "<f4"}


def document(**changes: Any) -> Search:
    """OPT-350M on 8 GPUs, pipelines among its plans."""
    given: dict[str, Any] = {
        "name": NAME,
        "architecture": "opt-350m",
        "sequence_length": 2048,
        "global_batch": 64,
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 8},
        "search": {"tp": [1, 2], "pp": [1, 4], "cp": 1, "virtual_stages": 1, "micro_batch": [1, 2, 4]},
        "clocks_MHz": [None, 1200, 1500],
        "objectives": ["step_time_s", "memory_B"],
        "limits": {"step_time_s": 0.5},
        "site": {"host_power_W": 100.0},
        "keep": 12,
    }
    return Search.model_validate(given | changes)


@pytest.fixture(scope="module")
def found(calibration: Calibration) -> tuple[SearchResult, Survey]:
    return search(document(), calibration), survey(document(), calibration)


@pytest.fixture(scope="module")
def text(found: tuple[SearchResult, Survey], calibration: Calibration) -> str:
    return search_page(*found, calibration)


def data_of(text: str) -> dict[str, Any]:
    held = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert held is not None
    read: dict[str, Any] = json.loads(held[1])
    return read


def column(packed: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(packed["base64"]), dtype=TYPES[packed["type"]])


# ---- the survey -----------------------------------------------------------------------------------------------------


def test_a_survey_has_every_feasible_plan_with_what_it_costs_alone(
    found: tuple[SearchResult, Survey], calibration: Calibration
) -> None:
    result, every = found
    assert len(every) == result.counts.feasible
    assert every.share == 1
    for row in range(0, len(every), max(len(every) // 12, 1)):
        choices = {name: int(codes[row]) for name, codes in every.choices.items()}
        clock = every.words["clock"][choices.pop("clock")]
        words = {name: every.words[name][choices[name]] for name in ("schedule", "recompute")}
        plan = document().plan(
            **choices
            | words
            | {"sequence_parallel": bool(choices["sequence_parallel"]), "etp": choices["etp"] or None}
            | in_words(choices)
            | {"clock_MHz": None if clock == "auto" else float(clock)}
        )
        alone = outcome(plan, calibration)
        assert every.values["step_time_s"][row] == pytest.approx(alone.step_time_s.value, rel=1e-9)
        assert every.values["it_energy_J"][row] == pytest.approx(alone.it_energy_J.value, rel=1e-9)
        for name, phase in alone.phases.items():
            assert every.values[f"{name}_s"][row] == pytest.approx(phase.time_s, rel=1e-9, abs=1e-12)
            assert every.values[f"{name}_J"][row] == pytest.approx(phase.energy_J, rel=1e-9, abs=1e-9)


def test_of_more_plans_some_are_taken_and_said_to_be(calibration: Calibration) -> None:
    some = survey(document(limits={}), calibration, most=60)
    assert len(some) <= 60
    assert 0 < some.share < 1
    assert f"{some.share:.2%} were drawn evenly" in some.note
    micro_batches = np.bincount(some.choices["micro_batch"])
    assert (micro_batches[[1, 2, 4]] > 0).all()  # none is passed over
    clocks = np.bincount(some.choices["clock"])
    assert (clocks == clocks[0]).all()  # each at all its clocks


# ---- the file -------------------------------------------------------------------------------------------------------


def test_it_is_whole_and_needs_nothing_else(text: str) -> None:
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert {"link", "img", "iframe", "object"}.isdisjoint(name for name, _ in tags.seen)
    assert not any({"src", "onload", "onclick"} & attributes.keys() for _, attributes in tags.seen)
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp|import\(", text)
    assert "<b>name" not in text
    assert "&lt;b&gt;name" in text
    ids = [attributes["id"] for _, attributes in tags.seen if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_it_holds_what_the_search_found(text: str, found: tuple[SearchResult, Survey]) -> None:
    result, every = found
    data = data_of(text)
    assert data["plans"] == len(every)
    for name, packed in data["values"].items():
        np.testing.assert_allclose(column(packed), every.values[name], rtol=1e-6)
    for name, packed in data["choices"].items():
        words = every.words.get(name)
        plain = [str(code) if words is None else words[code] for code in every.choices[name].tolist()]
        assert [packed["levels"][code] for code in column(packed)] == plain
    assert [one["number"] for one in data["front"]] == [entry.number for entry in result.front]
    for one, entry in zip(data["front"], result.front, strict=True):
        assert one["values"]["step_time_s"] == entry.step_time_s.value
        assert sum(one["values"][f"{name}_s"] for name in entry.phases) == pytest.approx(entry.step_time_s.value)
    for refusal in result.counts.refused:
        assert f"<td>{escape(refusal.says)}</td><td>{refusal.plans:,}</td>" in text


def test_its_timelines_end_with_the_step(text: str, found: tuple[SearchResult, Survey]) -> None:
    result, _ = found
    data = data_of(text)
    numbers = {one["number"] for one in data["timelines"]}
    assert {*result.picks.values()} <= numbers
    assert any(len(one["stages"]) == 4 for one in data["timelines"])
    for one in data["timelines"]:
        entry = result.front[one["number"] - 1]
        assert one["step_s"] == pytest.approx(entry.step_time_s.value)
        for stage in one["stages"]:
            start, end = column(stage["start_s"]), column(stage["end_s"])
            assert end[-1] == pytest.approx(one["step_s"], rel=1e-6)
            np.testing.assert_allclose(start[1:], end[:-1], rtol=1e-5)
        most = max(column(stage["memory_B"]).max() for stage in one["stages"])
        assert most == pytest.approx(entry.memory_B.value, rel=1e-6)


# ---- in a browser ---------------------------------------------------------------------------------------------------


def at(page: Page, point: int) -> tuple[float, float]:
    """Where a point of the front's canvas is in the window."""
    box = page.box("#front")
    x, y = page.evaluate(f"searchPage.pixel({point})")
    return box["x"] + x, box["y"] + y


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to open the page in")
def test_it_can_be_pointed_at_clicked_and_walked_through(
    text: str, found: tuple[SearchResult, Survey], tmp_path: Path
) -> None:
    result, every = found
    file = tmp_path / "page.html"
    file.write_text(text, encoding="utf-8")
    first, count = len(every), len(result.front)
    with browser(tmp_path / "profile") as page:
        page.size(1180, 900)
        page.scheme("light")
        page.open(file)
        # the mouse over the last plan of the front shows it, a click tells what it takes
        page.move(*at(page, first + count - 1))
        assert not page.evaluate("document.getElementById('tip').hidden")
        assert f"Plan {count} of the front" in page.evaluate("document.getElementById('tip').textContent")
        page.click(*at(page, first + count - 1))
        told = page.evaluate("document.getElementById('plan').innerText")
        assert f"Plan {count} of the front" in told
        assert "time of a step" in told
        assert "energy of a step" in told
        # a plan behind the front is beaten, and by how much is told
        beaten = int(np.argmax(every.values["step_time_s"]))
        page.click(*at(page, beaten))
        assert "of the front beats it" in page.evaluate("document.getElementById('plan').innerText")
        assert page.evaluate("searchPage.curve.length") == 3  # the same plan at its clocks, of which one may be beyond
        # keys: the first plan of the front, the second, its breakdown, and out again
        page.evaluate("document.getElementById('front').focus()")
        page.key("Escape")
        page.key("Home")
        page.key("ArrowRight")
        assert page.evaluate("searchPage.state.hover") == first + 1
        page.key("Enter")
        assert "Plan 2 of the front" in page.evaluate("document.getElementById('plan').innerText")
        assert "Plan 2 of the front" in page.evaluate("document.getElementById('live').textContent")
        page.key("Escape")
        assert page.evaluate("searchPage.state.picked") == -1
        # a filter hides what has that degree, and shows it again
        page.click_on('input[data-choice="pp"][value="4"]')
        hidden = int((every.choices["pp"] == 4).sum()) + sum(entry.plan.parallel.pp == 4 for entry in result.front)
        assert hidden > 0
        assert page.evaluate("searchPage.state.visible.reduce((a, b) => a + b, 0)") == first + count - hidden
        page.click_on('input[data-choice="pp"][value="4"]')
        assert page.evaluate("searchPage.state.visible.reduce((a, b) => a + b, 0)") == first + count
        # a row of the table, and the timeline, which zooms
        page.click_on("#table tbody tr:nth-child(1)")
        assert "Plan 1 of the front" in page.evaluate("document.getElementById('plan').innerText")
        page.evaluate("document.getElementById('timeline').focus()")
        page.key("+")
        assert page.evaluate("searchPage.view.to - searchPage.view.from") == 0.5
        page.key("Escape")
        assert page.evaluate("searchPage.view.to - searchPage.view.from") == 1
        box = page.box("#timeline")
        page.move(box["x"] + 0.2 * box["width"], box["y"] + 5)
        assert "stage 0: " in page.evaluate("document.getElementById('tip2').textContent")
        # light and dark, by the system and by the switch; nothing wider than the window
        paper = "getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(paper) == "rgb(255, 255, 255)"
        page.click_on("#theme")
        assert page.evaluate(paper) == "rgb(20, 24, 30)"
        page.click_on("#theme")
        assert page.evaluate(paper) == "rgb(255, 255, 255)"
        page.scheme("dark")
        page.size(500, 900)
        page.open(file)
        assert page.evaluate(paper) == "rgb(20, 24, 30)"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to open the page in")
def test_a_hundred_thousand_plans_are_drawn_at_once(
    found: tuple[SearchResult, Survey], calibration: Calibration, tmp_path: Path
) -> None:
    result, every = found
    copies = -(-100_000 // len(every))
    spread = np.random.default_rng(0).uniform(1, 3, copies * len(every))
    many = replace(
        every,
        choices={name: np.tile(codes, copies) for name, codes in every.choices.items()},
        values={name: np.tile(values, copies) * spread for name, values in every.values.items()},
    )
    file = tmp_path / "page.html"
    file.write_text(search_page(result, many, calibration), encoding="utf-8")
    assert file.stat().st_size < 20e6
    with browser(tmp_path / "profile") as page:
        page.size(1180, 900)
        page.open(file)
        assert page.evaluate("searchPage.data.plans") >= 100_000
        page.move(*at(page, len(many)))
        assert "Plan 1 of the front" in page.evaluate("document.getElementById('tip').textContent")
        # about 140 ms and less than 1 ms on one core without a GPU; bounds with room for a busy machine
        assert page.evaluate("searchPage.drawn_ms") < 1000
        assert page.evaluate("searchPage.ringed_ms") < 100


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to open the page in")
def test_a_front_alone_is_drawn(calibration: Calibration, tmp_path: Path) -> None:
    """Of plans of which none that was drawn keeps the limits; one GPU, no pipeline, power that nobody measured."""
    blind = calibration.model_copy(update={"power": calibration.power.model_copy(update={"points": 0})})
    asked = document(objectives=None)
    result = search(asked, blind)
    asked = document(objectives=None, limits={"step_time_s": result.front[0].step_time_s.value * 1.001})
    few = survey(asked, blind, most=3)
    assert len(few) == 0
    file = tmp_path / "page.html"
    file.write_text(search_page(search(asked, blind), few, blind), encoding="utf-8")
    with browser(tmp_path / "profile") as page:
        page.size(1180, 900)
        page.open(file)
        page.click(*at(page, 0))
        told = page.evaluate("document.getElementById('plan').innerText")
        assert "Plan 1 of the front" in told
        assert "NaN" not in page.evaluate("document.body.innerText")
        assert "energy of a step" not in told
        assert page.evaluate("document.getElementById('energies').hidden")


# ---- the command ----------------------------------------------------------------------------------------------------

SEARCH = """\
name: small
architecture: opt-350m
sequence_length: 2048
global_batch: 64
cluster: {gpu: h100-sxm-80gb, gpus: 8}
search: {tp: 1, pp: [1, 2], cp: 1, virtual_stages: 1, micro_batch: [2, 4], recompute: none}
clocks_MHz: [null, 1200]
"""


def test_the_command_writes_it(moemodel: Run, folder: Path, calibration_file: Path) -> None:
    (folder / "search.yaml").write_text(SEARCH, encoding="utf-8")

    def optimize(*options: str) -> Result:
        return moemodel("optimize", "search.yaml", *options, "--calibration", calibration_file)

    assert optimize("-o", "page.html").exit_code == 0
    assert not (folder / "moemodel-search.json").exists()
    both = optimize("-o", "result.json", "--report", "page.html")
    assert both.exit_code == 0, both.output
    assert "wrote result.json, page.html" in both.stdout
    assert data_of((folder / "page.html").read_text(encoding="utf-8"))["plans"] > 0
    (folder / "mine.html").write_text("mine")
    refused = optimize("-o", "mine.html")
    assert refused.exit_code == 2
    assert "-o mine.html: is there already and is no page" in refused.stderr
    assert (folder / "mine.html").read_text() == "mine"
    assert optimize("-o", "a.html", "--report", "b.html").exit_code == 2


def test_figures_are_written(moemodel: Run, folder: Path, calibration_file: Path) -> None:
    pytest.importorskip("matplotlib", reason="no matplotlib: figures need the extra plots")
    (folder / "search.yaml").write_text(SEARCH, encoding="utf-8")
    options = ("optimize", "search.yaml", "--figures", "figures", "--calibration", calibration_file)
    done = moemodel(*options)
    assert done.exit_code == 0, done.output
    names = sorted(path.name for path in (folder / "figures").iterdir())
    assert names == [f"{n}.{kind}" for n in ("energy-against-clock", "front", "step") for kind in ("png", "svg")]
    first = (folder / "figures" / "front.svg").read_text(encoding="utf-8")
    assert "step time, s" in first
    assert "IT energy, J" in first
    assert (folder / "figures" / "step.png").read_bytes().startswith(b"\x89PNG")
    again = moemodel(*options)
    assert again.exit_code == 2
    assert "--figures figures: is not empty" in again.stderr
