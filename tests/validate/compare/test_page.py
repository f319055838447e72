"""The page of a comparison: whole, self-contained, and as a browser shows it; and the folder that it lies in."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from moemodel.model.core.errors import InputError, MissingExtraError
from moemodel.validation.compare.comparison import Comparison, compare_folders
from moemodel.validation.compare.figures import curves, curves_of, experts_of, phases, plane, spans
from moemodel.validation.compare.page import html_page
from moemodel.validation.compare.quantities import ALL
from moemodel.validation.compare.write import can_draw, check_folder, write_comparison
from moemodel.validation.report.marks import NARROW, WIDE, Frame
from tests.run_folders import MadeRun, write_matrix, write_run
from tests.tags import Tags

_BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
_LOOK = """<script>addEventListener("load", () => {
  const of = (name) => getComputedStyle(document.body)[name];
  const wide = [...document.querySelectorAll("body *")].filter(
    (e) => !e.closest(".scroll, pre, .skip, svg") && e.getBoundingClientRect().right > innerWidth + 1);
  const scrolled = [...document.querySelectorAll(".scroll")].filter((e) => e.tabIndex < 0);
  const shown = [...document.querySelectorAll("svg")].filter((e) => e.getBoundingClientRect().width > 0);
  const outside = shown.flatMap((s) => [...s.querySelectorAll("text, circle, rect, polyline")].filter((e) => {
    const a = e.getBoundingClientRect(), b = s.getBoundingClientRect();
    return a.left < b.left - 2 || a.right > b.right + 2 || a.top < b.top - 2 || a.bottom > b.bottom + 2; }));
  const lost = [...document.querySelectorAll("a")].filter((a) => !document.querySelector(a.getAttribute("href")));
  document.title = JSON.stringify({paper: of("backgroundColor"), ink: of("color"), wide: wide.length,
    scrolled: scrolled.length, figures: shown.length, outside: outside.map((e) => e.outerHTML.slice(0, 90)),
    page: document.documentElement.scrollWidth <= innerWidth,
    anchors: lost.length});
});</script>"""


def test_it_is_whole_and_needs_nothing_else(comparison: Comparison) -> None:
    text = html_page(comparison)
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    names = {name for name, _ in tags.seen}
    assert {"table", "svg", "figure", "details", "style", "nav"} <= names
    assert {"script", "img", "link", "iframe", "object"}.isdisjoint(names)
    assert all((attributes.get("href") or "#").startswith("#") for _, attributes in tags.seen)
    assert not any({"src", "onload", "onclick"} & attributes.keys() for _, attributes in tags.seen)
    assert not re.search(r"https?:|url\(|@import", text)
    ids = [attributes["id"] for _, attributes in tags.seen if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_what_runs_say_is_text(comparison: Comparison) -> None:
    assert "no &lt;learned&gt; positions beyond 2,048" in html_page(comparison)
    assert "<learned>" not in html_page(comparison)


def test_it_says_what_was_found(comparison: Comparison) -> None:
    text = html_page(comparison)
    for expected in (
        "at 320 samples each",
        "4 of 8 comparisons told apart from the spread over repeats.",
        "Energy of the GPUs (olmoe-1b-7b, batch 8): the least is 1,599 J, megatron-core; 20.1%",
        "none, it is inside the spread",
        "out of memory",
        "activations",
        "rank 0 ended with signal 11",
        "it was cut short, or is still running",
        "Welch&#x27;s interval of the difference of means at 90%",
        "Few repeats (two)",
        "by framework, where all else is the same",
        "Predicted beside measured",
        "Tokens per expert, the busiest first",
    ):
        assert expected in text, expected
    assert "nan" not in re.sub(r"<style>.*</style>", "", text, flags=re.DOTALL).lower()
    assert "Dropped share over samples" not in text  # nothing was


def test_where_none_is_done_what_ended_them_comes_first(tmp_path: Path) -> None:
    text = html_page(compare_folders([write_run(tmp_path / "one", MadeRun(status="refused", reason="it is <so>"))]))
    assert "Nothing to compare: no run is done." in text
    assert "it is &lt;so&gt;" in text
    assert "<svg" not in text


@pytest.mark.parametrize("frame", [WIDE, NARROW])
def test_every_figure_is_well_formed_and_inside_its_frame(tmp_path: Path, frame: Frame) -> None:
    runs = [
        MadeRun(backend=b, repeat=i, dropped=0.02 * i, slower=1 + 0.1 * i)
        for b in ("torch", "deepspeed")
        for i in (0, 1)
    ]
    cells = compare_folders([write_matrix(tmp_path / "m", runs)]).cells
    drawn = [
        *(spans(cells, name, frame) for name in ALL),
        phases(cells, frame),
        plane(cells, frame),
        *(curves(curves_of(cells, n), ALL[n], "samples", frame) for n in ("loss", "skew", "dropped", "entropy")),
        curves(experts_of(cells), ALL["skew"], "experts", frame),
    ]
    for svg in drawn:
        root = ElementTree.fromstring(svg)
        assert root.attrib["role"] == "img"
        assert all(title.text for title in root.iter("title"))
        marks = [float(mark.attrib["cx"]) for mark in root.iter("circle")]
        marks += [float(at.split(",")[0]) for c in root.iter("polyline") for at in c.attrib["points"].split()]
        assert all(0 <= x <= frame.width for x in marks)
    energy = ElementTree.fromstring(drawn[0])
    kinds = [mark.attrib["class"] for mark in energy.iter("circle")]
    assert (kinds.count("measured"), kinds.count("single"), kinds.count("predicted")) == (2, 4, 2)
    series = [mark.attrib["class"] for mark in ElementTree.fromstring(drawn[-1]).iter("polyline")]
    assert series == ["s0", "s1"]


def test_bars_of_phases_are_as_long_as_their_energies(comparison: Comparison) -> None:
    cell = comparison.cells[0]
    root = ElementTree.fromstring(phases([cell], WIDE))
    bars = [mark for mark in root.iter("rect") if mark.attrib["class"].endswith("measured")]
    widths = [float(mark.attrib["width"]) for mark in bars]
    energies_J = [cell.phase(name).mean for name in ("forward", "backward", "optimizer", "rest")]  # type: ignore[union-attr]
    assert [w / sum(widths) for w in widths] == pytest.approx([e / sum(energies_J) for e in energies_J], abs=2e-3)


@pytest.mark.skipif(_BROWSER is None, reason="no Chromium to open the page in")
@pytest.mark.parametrize(("scheme", "paper"), [("1", "rgb(255, 255, 255)"), ("0", "rgb(20, 24, 30)")])
@pytest.mark.parametrize("width", [1180, 500])
def test_a_browser_shows_it(comparison: Comparison, tmp_path: Path, scheme: str, paper: str, width: int) -> None:
    """Light and dark, wide and narrow: nothing runs out of the window or of its figure, and all can be reached."""
    page = tmp_path / "page.html"
    page.write_text(html_page(comparison).replace("</body>", f"{_LOOK}</body>"), encoding="utf-8")
    assert _BROWSER is not None
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    looks = [f"--window-size={width},900", f"--blink-settings=preferredColorScheme={scheme}", "--dump-dom"]
    done = subprocess.run([_BROWSER, *options, *looks, page.as_uri()], check=True, capture_output=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", done.stdout.decode())
    assert title is not None
    found = json.loads(title[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    assert found.pop("figures") == 11
    assert found.pop("ink") != found.pop("paper") == paper
    assert found == {"wide": 0, "scrolled": 0, "outside": [], "page": True, "anchors": 0}


# ---- its folder -----------------------------------------------------------------------------------------------------


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_tables_hold_what_was_found(comparison: Comparison, tmp_path: Path) -> None:
    names = write_comparison(comparison, tmp_path / "out", figures=False)
    assert sorted(names) == sorted(file.name for file in (tmp_path / "out").iterdir())
    runs = _rows(tmp_path / "out" / "runs.csv")
    assert len(runs) == 32
    cells = {(row["cell"], row["quantity"]): row for row in _rows(tmp_path / "out" / "cells.csv")}
    own = [float(row["energy_J"]) for row in runs if row["cell"] == "torch, olmoe-1b-7b, batch 8"]
    assert float(cells["torch, olmoe-1b-7b, batch 8", "energy_J"]["mean"]) == pytest.approx(sum(own) / 3)
    steps = [row for row in _rows(tmp_path / "out" / "steps.csv") if row["folder"] == runs[0]["folder"]]
    assert sum(float(row["energy_J"]) for row in steps) == pytest.approx(float(runs[0]["energy_J"]))
    assert steps[-1]["samples"] == "320"
    experts = [row for row in _rows(tmp_path / "out" / "experts.csv") if row["folder"] == runs[0]["folder"]]
    assert sum(int(row["rows"]) for row in experts) == 320 * 256 * 8 * 2  # samples, tokens, experts of a token, layers
    assert {row["verdict"] for row in _rows(tmp_path / "out" / "differences.csv")} == {"less", "more", "none"}
    assert [row["status"] for row in _rows(tmp_path / "out" / "ended.csv")] == [
        *("out of memory", "refused", "failed", "cut short")
    ]
    assert len(_rows(tmp_path / "out" / "predicted.csv")) == 11 * 6
    assert {row["phase"] for row in _rows(tmp_path / "out" / "phases.csv")} == {
        "forward",
        "backward",
        "optimizer",
        "rest",
    }


def test_a_folder_of_other_things_is_left_alone(comparison: Comparison, matrix: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for folder, found in ((tmp_path, "other things"), (matrix, r"matrix\.json"), (tmp_path / "notes.txt", "a file")):
        with pytest.raises(InputError, match=rf"found {found}.*; allowed: a"):
            check_folder(folder)
    write_comparison(comparison, tmp_path / "out", figures=False)
    check_folder(tmp_path / "out")
    check_folder(tmp_path / "new")


def test_without_matplotlib_nothing_is_written(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"needs matplotlib, which is not installed; install the extra plots"):
        write_comparison(comparison, tmp_path / "out", figures=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not can_draw(), reason="matplotlib is not installed")
def test_figures_are_drawn_and_the_same_again(tmp_path: Path) -> None:
    runs = [MadeRun(backend=b, repeat=i, samples=64, dropped=0.01) for b in ("torch", "deepspeed") for i in (0, 1)]
    found = compare_folders([write_matrix(tmp_path / "m", runs)])
    for name in ("one", "two"):
        write_comparison(found, tmp_path / name, figures=True)
    drawn = sorted(file.name for file in (tmp_path / "one" / "figures").iterdir())
    names = ["duration", "emissions", "energy", "energy-against-loss", "energy-by-phase", "loss", "memory"]
    names += [f"{name}-over-samples" for name in ("dropped", "entropy", "loss", "skew")] + ["tokens-per-expert"]
    assert drawn == sorted(f"{name}.{kind}" for name in names for kind in ("png", "svg"))
    for name in drawn:
        content = (tmp_path / "one" / "figures" / name).read_bytes()
        assert content == (tmp_path / "two" / "figures" / name).read_bytes()
        if name.endswith("svg"):
            texts = "".join(ElementTree.fromstring(content).itertext())
            assert "deepspeed" in texts or "forward pass" in texts
        else:
            assert content.startswith(b"\x89PNG")
