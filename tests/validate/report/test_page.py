"""The page: whole, self-contained, and nothing of a plan in it that a browser would obey."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.validation import Report, SkippedPlan
from moemodel.validation.records.session import ValidationSpec
from moemodel.validation.report.figures import axis, errors, plane, spans, ticks
from moemodel.validation.report.page import html_page
from moemodel.validation.report.units import number, percent
from moemodel.validation.run import Options, validate

_VOID = {"meta", "br"}


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


class _Tags(HTMLParser):
    """Checks that tags are closed in order, and collects them."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_it_is_whole_and_needs_nothing_else(report: Report) -> None:
    text = html_page(report)
    tags = _Tags()
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


def test_every_figure_is_well_formed_and_labelled(report: Report) -> None:
    drawn = [spans(report.plans, "step_time"), spans(report.plans, "memory"), plane(report.plans), errors(report)]
    for svg in drawn:
        root = ElementTree.fromstring(svg)
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"]
        assert all(title.text for title in root.iter("title"))
        for mark in root.iter("circle"):
            assert 0 <= float(mark.attrib["cx"]) <= 760
    rows = ElementTree.fromstring(drawn[0])
    kinds = [mark.attrib["class"] for mark in rows.iter("circle")]
    assert kinds.count("measured") == 3
    assert kinds.count("predicted") == 4  # the one that failed too


def test_without_measurements_there_is_a_page_all_the_same(report: Report) -> None:
    plans = tuple(plan.model_copy(update={"quantities": {}, "visits": ()}) for plan in report.plans)
    text = html_page(report.model_copy(update={"plans": plans, "errors": {}, "ranking": {}}))
    assert "<svg" not in text
    assert "crashed" in text


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
