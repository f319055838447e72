"""The page: whole, self-contained, and nothing of a plan in it that a browser would obey."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.validation import Report, SkippedPlan
from moemodel.validation.records.session import ValidationSpec
from moemodel.validation.report.figures import errors, phases, plane, spans
from moemodel.validation.report.marks import NARROW, WIDE, Frame, Places, axis, errors_axis, ticks
from moemodel.validation.report.page import html_page
from moemodel.validation.report.units import UNITS, number, percent
from moemodel.validation.run import Options, validate
from tests.tags import Tags


@pytest.fixture
def report(
    ask: Callable[..., ValidationSpec],
    plan_of: Callable[..., Plan],
    fake: Any,
    calibration: Calibration,
    tmp_path: Path,
) -> Report:
    """Of four plans, one with a name out of hell, one that fails."""
    plans = [
        plan_of(name='<script>alert("x")</script>', micro_batch=4),
        plan_of(name="dp", micro_batch=4, cluster={"gpus": 2}, parallel={"dp": 2}),
        plan_of(name="a name that is much too long for the side of a figure", micro_batch=2),
        plan_of(name="fails", micro_batch=8),
    ]
    fake.failing = {"fails": "crash"}
    spec = ask(*plans).model_copy(update={"set_aside": (SkippedPlan(name="big", reason="it needs 8 < 9 GPUs"),)})
    return validate(spec, tmp_path / "v", calibration, Options(), gpu="h100", launch=fake).report


def test_it_is_whole_and_needs_nothing_else(report: Report) -> None:
    text = html_page(report)
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    names = {name for name, _ in tags.seen}
    assert {"table", "svg", "figure", "details", "style"} <= names
    assert {"script", "img", "link", "iframe", "object"}.isdisjoint(names)
    assert not any({"src", "href", "onload", "onclick"} & attributes.keys() for _, attributes in tags.seen)
    assert not re.search(r"https?:|url\(|@import", text)


def test_what_plans_and_machines_say_is_text(report: Report) -> None:
    text = html_page(report)
    assert "<script>" not in text
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;" in text
    assert "it did &lt;that&gt;" in text
    assert "it needs 8 &lt; 9 GPUs" in text


def test_it_says_what_was_found(report: Report) -> None:
    text = html_page(report)
    for expected in ("crashed", "Set aside", "jobs/0", "Kendall", "regret", "global_batch: 16", "GPUs", "forecast"):
        assert expected in text, expected
    assert "nan" not in text.lower().replace("finance", "")
    assert "Unfinished" not in text
    assert "Unfinished" in html_page(report.model_copy(update={"complete": False}))


def test_it_begins_with_a_verdict(report: Report) -> None:
    text = html_page(report)
    assert 0 < text.index('<section class="verdict') < text.index('class="tiles"') < text.index("<figure>")
    assert re.search(r"Step time: (as good as|worse than) it says: \d of 3 measurements inside the 90 % interval", text)


def test_where_all_failed_that_comes_first(report: Report) -> None:
    failed = tuple(plan for plan in report.plans if plan.failures)
    text = html_page(report.model_copy(update={"plans": failed, "errors": {}, "ranking": {}}))
    assert "Nothing to judge: 1 of 1 plans failed." in text
    assert text.index("<h2>Failed</h2>") < text.index("<figure>")
    assert text.count("<h2>Failed</h2>") == 1


@pytest.mark.parametrize("frame", [WIDE, NARROW])
def test_every_figure_is_well_formed_and_labelled(report: Report, frame: Frame) -> None:
    drawn = [
        spans(report.plans, "step_time", frame),
        spans(report.plans, "memory", frame),
        plane(report.plans, frame),
        errors(report, frame),
        phases(report.plans, frame),
    ]
    for svg in drawn:
        root = ElementTree.fromstring(svg)
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"]
        assert all(title.text for title in root.iter("title"))
        for mark in root.iter("circle"):
            assert 0 <= float(mark.attrib["cx"]) <= frame.width
        for text in root.iter("text"):
            assert 0 <= float(text.attrib["x"]) <= frame.width
    rows = ElementTree.fromstring(drawn[0])
    kinds = [mark.attrib["class"] for mark in rows.iter("circle")]
    assert kinds.count("measured") == 3
    assert kinds.count("predicted") == 4  # the one that failed too


def test_without_measurements_there_is_a_page_all_the_same(report: Report) -> None:
    plans = tuple(plan.model_copy(update={"quantities": {}, "visits": ()}) for plan in report.plans)
    text = html_page(report.model_copy(update={"plans": plans, "errors": {}, "ranking": {}}))
    assert "<svg" not in text
    assert "crashed" in text


def test_bars_of_phases_add_up(report: Report) -> None:
    """Those measured of a plan follow one another, and are together as long as its phases on the axis."""
    root = ElementTree.fromstring(phases(report.plans))
    rows = [mark for mark in root.iter("rect") if mark.attrib["class"].endswith("measured")]
    assert rows
    for first, second, third in zip(*[iter(rows)] * 3, strict=True):
        for before, after in ((first, second), (second, third)):
            end = float(before.attrib["x"]) + float(before.attrib["width"])
            assert end == pytest.approx(float(after.attrib["x"]), abs=0.2)


def test_errors_of_any_size_stay_in_the_figure(report: Report) -> None:
    """And the band of the mean error ends where nothing can be: at 100 % too little."""
    wild = {name: found.model_copy(update={"mape": 7.67}) for name, found in report.errors.items()}
    for frame in (WIDE, NARROW):
        root = ElementTree.fromstring(errors(report.model_copy(update={"errors": wild}), frame))
        bands = [mark for mark in root.iter("line") if mark.attrib["class"] == "band"]
        assert len(bands) == len([name for name in report.errors if name in UNITS])
        for band in bands:
            assert frame.start <= float(band.attrib["x1"]) < float(band.attrib["x2"]) <= frame.width


@pytest.mark.parametrize("errors", [[0.01, -0.02], [-0.5, 0.9], [7.67, -0.4], [-0.999], [0.0], [99.0, -0.9999]])
def test_an_axis_of_errors_holds_them_in_order(errors: list[float]) -> None:
    made = errors_axis(errors, 100.0, 300.0)
    places = [made.place(error) for error in sorted([*errors, 0.0])]
    assert places == sorted(places)
    assert places[-1] <= 300
    assert 0.0 in made.ticks
    assert all(100 <= made.place(tick) <= 300 for tick in made.ticks)


def test_texts_beside_dots_do_not_overprint() -> None:
    """Ten dots at one place have room for four names, one on each side; lines are kept off, too."""
    places = Places(width=760.0)
    places.take(300, 200, 7)
    found = [places.beside(300, 200, f"plan-{index}") for index in range(10)]
    assert sum(bool(text) for text in found) == 4
    across = Places(width=760.0)
    across.take_line(0, 200, 760, 200)
    assert 'y="190.0"' in across.beside(300, 200, "plan")
    assert Places(width=100.0).beside(50, 20, "a name that is wider than the figure") == ""


@pytest.mark.parametrize(("low", "high", "expected"), [(0, 6, 7), (0.9, 5.2, 5), (-10, 10, 5), (100, 101, 6)])
def test_ticks_are_round_and_inside(low: float, high: float, expected: int) -> None:
    found = ticks(low, high)
    assert len(found) == expected
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)


def test_an_axis_holds_its_values_in_order() -> None:
    for values in ([1.0, 2.0, 3.0], [1.0, 10.0, 1000.0], [5.0, 5.0], [-3.0, 4.0], [0.0]):
        made = axis(values, 100.0, 200.0)
        places = [made.place(value) for value in sorted(values)]
        assert places == sorted(places)
        assert 100 <= places[0] <= places[-1] <= 200
        assert all(99.9 <= made.place(tick) <= 200.1 for tick in made.ticks)


def test_a_wide_axis_is_logarithmic() -> None:
    made = axis([1.0, 10.0, 100.0], 0.0, 1.0)
    assert made.place(10.0) - made.place(1.0) == pytest.approx(made.place(100.0) - made.place(10.0))
    assert {1.0, 10.0, 100.0} <= set(made.ticks)


def test_numbers() -> None:
    assert [number(value) for value in (0.12344, 12.346, 999.94, 1234.5, -0.5)] == [
        *("0.1234", "12.35", "999.9", "1,234", "-0.5")
    ]
    assert percent(None) == ""
    assert percent(0.123) == "12.3%"
    assert percent(-0.123, signed=True) == "-12.3%"
