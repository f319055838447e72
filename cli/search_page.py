"""The page of a search: one HTML file with all its data, its style and its script; nothing is loaded from elsewhere.

Numbers of many plans are columns of 4-byte floats (seven digits) in base64, choices are codes of a byte or two; the
page draws them on canvases. All text from plans is escaped, in HTML and in the JSON that the page holds.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moemodel.cli.search_report import runs, unit_of, words_of
from moemodel.model.core.errors import MoeModelError

if TYPE_CHECKING:
    from moemodel.model.records.calibration import Calibration
    from moemodel.model.results.iteration import Iteration
    from moemodel.model.search.result import Entry, SearchResult
    from moemodel.model.search.survey import Survey

_MOST_TIMELINES = 6
_MOST_SLICES = 60_000  # of one plan; a megabyte of the page
_ALWAYS = (
    *("step_time_s", "it_energy_J", "gpu_energy_J", "memory_B", "power_per_gpu_W", "tokens_per_s_per_gpu"),
    *("run_days", "run_cost", "run_kgCO2e", "clock_Hz"),
)
_PHASES = ("forward", "backward", "optimizer", "communication", "idle")
_CHOICE_NAMES = {
    "gpus": "GPUs",
    "virtual_stages": "virtual stages",
    "zero_stage": "zero",
    "replicas": "replicas",
    "micro_batch": "micro-batch",
    "sequence_parallel": "sequence parallel",
    "node_limit": "nodes of a token",
    "dispatch_overlap": "rows behind computation",
    "clock": "MHz",
}


def search_page(
    result: SearchResult,
    found: Survey,
    calibration: Calibration,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> str:
    """The whole page.

    Args:
        result: of the search.
        found: plans that are shown beside the front.
        calibration: that both rest on.
        progress: is told how many of how many plans are laid out in time.
    """
    timelines, left_out = _timelines(result, calibration, progress)
    data = _data(result, found, timelines)
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    templates = files("moemodel.cli") / "templates"
    style = (templates / "search-page.css").read_text(encoding="utf-8")
    script = (templates / "search-page.js").read_text(encoding="utf-8")
    title = f"{result.search.name}: plans of {result.search.architecture}"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{style}</style>\n</head>\n<body>\n{''.join(_body(result, found, left_out))}"
        f'<script type="application/json" id="data">{text}</script>\n<script>{script}</script>\n</body>\n</html>\n'
    )


# ---- what it says ---------------------------------------------------------------------------------------------------


def _body(result: SearchResult, found: Survey, left_out: str) -> Iterator[str]:
    yield '<a class="skip" href="#front">To the front</a>\n'
    yield (
        f"<header><div><h1>{escape(result.search.name)}</h1>{_about(result)}</div>"
        '<button id="theme" type="button" aria-pressed="false">Light or dark</button></header>\n'
    )
    objectives = " and ".join(words_of(name) for name in result.objectives)
    yield f"<h2>The front of {escape(objectives)}</h2>\n"
    yield (
        '<p class="soft">Point at a plan to see it, click it for its breakdown. With the keyboard: left and right '
        "along the front, up and down through all plans, Enter for the breakdown, Escape to leave it. "
        f"{escape(found.note)}</p>\n"
    )
    yield (
        '<div class="tools"><label>across <select id="x"></select></label><label>up <select id="y"></select></label>'
        '<span class="soft" id="left"></span></div>\n<div id="filters"></div>\n'
        '<div class="two"><figure class="plot"><canvas id="front" tabindex="0" role="application" '
        f'aria-label="Plans, {escape(objectives, quote=True)}; arrow keys walk through them"></canvas>'
        '<div class="tip" id="tip" hidden></div></figure><div class="panel" id="plan"></div></div>\n'
        '<div id="live" class="soft" aria-live="polite"></div>\n'
    )
    yield _table(result)
    yield (
        '<section id="energies"><h2>Energy against clock</h2>\n<figure class="plot"><canvas id="clock" role="img" '
        'aria-label="IT energy of a step against the SM clock"></canvas><figcaption>All plans, and the one that is '
        "chosen (or the first of the front) at each of its clocks, joined.</figcaption></figure></section>\n"
    )
    yield _timeline_section(left_out)
    yield _refusals(result)
    notes = "".join(f"<li>{escape(note)}</li>" for note in result.notes)
    yield f"<h2>Notes</h2>\n<ul>{notes}</ul>\n"


def _about(result: SearchResult) -> str:
    s, counts = result.search, result.counts
    gpus = ", ".join(str(count) for count in s.cluster.gpus)
    lines = (
        f"{s.architecture} on {gpus} x {result.calibration.gpu}, {s.precision}, {s.backend}; {s.global_batch} "
        f"sequences of {s.sequence_length} tokens a step",
        f"{counts.combinations:,} combinations, {counts.feasible:,} feasible, {counts.front:,} on the front, "
        f"{len(result.front)} of them kept. All of it is predicted by moemodel {result.moemodel_version}.",
    )
    return f'<p class="soft">{"<br>".join(map(escape, lines))}</p>'


def _timeline_section(left_out: str) -> str:
    keys = "".join(
        f'<span class="key" style="background:var(--{kind})"></span>{kind} &nbsp; '
        for kind in ("forward", "backward", "communication", "optimizer", "waiting")
    )
    return (
        '<section id="when"><h2>One step in time, stage by stage</h2>\n<div class="tools"><label>plan '
        '<select id="which"></select></label><button type="button" id="in">closer</button>'
        '<button type="button" id="out">farther</button></div>\n'
        '<p class="soft" id="clocks"></p>\n<figure class="plot"><canvas id="timeline" tabindex="0" role="application" '
        'aria-label="Timeline of the pipeline; plus and minus zoom, arrows move, Escape shows all"></canvas>'
        f'<div class="tip" id="tip2" hidden></div><figcaption>{keys}waiting is the bubble, or the host. Shift and '
        f"wheel zoom. {escape(left_out)}</figcaption></figure>\n"
        '<figure><canvas id="memory" role="img" aria-label="Memory of a GPU of each stage over the step"></canvas>'
        "<figcaption>Memory of a GPU of each stage over the same time, and what there is of it: all that is no "
        "activation is drawn as at the peak.</figcaption></figure></section>\n"
    )


def _table(result: SearchResult) -> str:
    from moemodel.model.search.problem import summary
    from moemodel.model.search.result import figure_of

    names = list(dict.fromkeys(("step_time_s", *result.objectives)))
    heads = "".join(f'<th scope="col">{escape(words_of(name))}</th>' for name in names)
    rows = []
    for row, entry in enumerate(result.front):
        picks = _picks(result, entry)
        cells = []
        for name in names:
            figure = figure_of(entry, name)
            cells.append(f"<td>{'' if figure is None else escape(_short(figure.value, unit_of(result, name)))}</td>")
        alike = runs(tuple(n for n in entry.not_distinguishable_from if n <= len(result.front)))
        called = f" ({', '.join(picks)})" if picks else ""
        text = f"{entry.number}. {entry.plan.cluster.gpus} GPUs {summary(entry.plan)}{called}"
        rows.append(
            f'<tr data-row="{row}" tabindex="0"{" class=pick" if picks else ""}><td>{escape(text)}</td>'
            f"{''.join(cells)}<td>{escape(alike)}</td></tr>\n"
        )
    return (
        '<div class="scroll"><table id="table"><caption>The front, as far as it is kept; alike: neither time nor '
        f'energy tells which is better</caption><thead><tr><th scope="col">plan</th>{heads}<th scope="col">alike</th>'
        f"</tr></thead>\n<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def _refusals(result: SearchResult) -> str:
    refused = sorted(result.counts.refused, key=lambda one: -one.plans)
    most = max((one.plans for one in refused), default=1)
    rows = "".join(
        f'<tr><td>{escape(one.says)}</td><td>{one.plans:,}</td><td class="share">'
        f'<i style="width:{max(100 * one.plans / most, 0.5):.1f}%"></i></td></tr>\n'
        for one in refused
    )
    return (
        '<h2>Refused, by the first reason</h2>\n<div class="scroll"><table id="refused"><thead><tr>'
        '<th scope="col">reason</th><th scope="col">combinations</th><th></th></tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>\n"
    )


def _short(value: float, unit: str) -> str:
    from moemodel.cli.output import digits, prefixed

    factor, shown = prefixed(value, unit) if unit in ("s", "J", "B", "W", "Hz") else (1.0, unit)
    return f"{digits(value * factor)} {shown}".strip()


def _picks(result: SearchResult, entry: Entry) -> list[str]:
    return [name.replace("_", " ") for name, number in result.picks.items() if number == entry.number]


# ---- what it holds --------------------------------------------------------------------------------------------------


def _data(result: SearchResult, found: Survey, timelines: list[dict[str, Any]]) -> dict[str, Any]:
    from moemodel.model.results.iteration import KINDS
    from moemodel.model.search.quantities import QUANTITIES

    asked = (*result.objectives, *result.search.limits.given)
    told = [name for name in dict.fromkeys((*asked, *_ALWAYS)) if name in found.values and name != "deadline"]
    columns = [*told, *(f"{name}_{unit}" for name in _PHASES for unit in "sJ" if f"{name}_{unit}" in found.values)]
    second = next((name for name in ("it_energy_J", "memory_B") if name != result.objectives[0]), "memory_B")
    axes = result.objectives if len(result.objectives) > 1 else (*result.objectives, second)
    second_axis = axes[1] if axes[1] in told else "memory_B"
    return {
        "plans": len(found),
        "choices": {name: _coded(codes, found.words.get(name)) for name, codes in found.choices.items()},
        "values": {name: _packed(found.values[name].astype(np.float32)) for name in columns},
        "names": _CHOICE_NAMES,
        "labels": {name: "SM clock" if name == "clock_Hz" else words_of(name) for name in told},
        "units": {name: unit_of(result, name) for name in told},
        "told": told,
        "objectives": list(result.objectives),
        "higher": [name for name in result.objectives if QUANTITIES[name].higher_is_better],
        "axes": [axes[0], second_axis],
        "front": [_of_front(result, entry, columns) for entry in result.front],
        "kinds": list(KINDS),
        "timelines": timelines,
    }


def _coded(codes: NDArray[np.int64], words: Sequence[str] | None) -> dict[str, Any]:
    """A choice: its levels as text, and of each plan which it is."""
    levels, index = np.unique(codes, return_inverse=True)
    texts = [str(level) if words is None else words[level] for level in levels.tolist()]
    small = len(levels) <= np.iinfo(np.uint8).max
    return _packed(index.astype(np.uint8 if small else np.uint16)) | {"levels": texts}


_TYPES = {"uint8": "u8", "uint16": "u16", "int32": "i32", "float32": "f32"}


def _packed(values: NDArray[Any]) -> dict[str, Any]:
    """A column as the page reads it: little-endian, base64."""
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return {"type": _TYPES[values.dtype.name], "base64": base64.b64encode(little.tobytes()).decode("ascii")}


def _of_front(result: SearchResult, entry: Entry, columns: Sequence[str]) -> dict[str, Any]:
    values: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for name in columns:
        figure = _figure_of(entry, name)
        if figure is None:
            continue
        values[name] = figure[0]
        if figure[1] is not None:
            intervals[name] = figure[1]
    return {
        "number": entry.number,
        "picks": _picks(result, entry),
        "choices": _choices(entry),
        "values": values,
        "intervals": intervals,
        "plan_yaml": entry.plan_yaml,
    }


def _figure_of(entry: Entry, name: str) -> tuple[float, tuple[float, float] | None] | None:
    """A column's value of a plan of the front, with its interval."""
    from moemodel.model.search.quantities import QUANTITIES
    from moemodel.model.search.result import figure_of

    if name == "clock_Hz":
        clock = entry.clock_MHz
        return None if clock is None else (clock.value * 1e6, None)
    phase, _, unit = name.rpartition("_")
    if phase in entry.phases:
        value = entry.phases[phase].time_s if unit == "s" else entry.phases[phase].energy_J
        return None if value is None else (value, None)
    known = next((each for each in QUANTITIES if each == name), None)
    figure = None if known is None else figure_of(entry, known)  # type: ignore[arg-type]
    return None if figure is None else (figure.value, figure.interval)


def _choices(entry: Entry) -> dict[str, str]:
    from moemodel.model.plan.clock import clock_text

    plan = entry.plan
    found: dict[str, str] = {name: str(value) for name, value in plan.choices.items()}
    clock = clock_text(plan.clock_MHz)
    words = {"recompute": plan.recompute, "schedule": plan.schedule, "clock": clock}
    return found | words | {"sequence_parallel": "on" if plan.parallel.sequence_parallel else "off"}


def _timelines(
    result: SearchResult, calibration: Calibration, progress: Callable[[int, int], None]
) -> tuple[list[dict[str, Any]], str]:
    """Steps of plans with a name, then of others of the front, laid out; and what is said of those that aren't."""
    from moemodel.model.results.iteration import iteration
    from moemodel.model.search.problem import summary
    from moemodel.model.step.system import system_of

    named = list(dict.fromkeys(result.picks.values()))
    numbers = [*named, *(entry.number for entry in result.front if entry.number not in named)][:_MOST_TIMELINES]
    found: list[dict[str, Any]] = []
    large = []
    for done, number in enumerate(numbers):
        progress(done, len(numbers))
        entry = result.front[number - 1]
        try:
            laid_out = iteration(entry.plan, calibration)
        except MoeModelError:
            large.append(number)
            continue
        if sum(len(line.slices) for line in laid_out.stages) > _MOST_SLICES:
            large.append(number)
            continue
        memory_B = system_of(entry.plan, calibration).memory_B
        found.append(
            {"number": number, "title": f"{number}. {summary(entry.plan)}"}
            | {"memory_available_B": memory_B if math.isfinite(memory_B) else None}
            | _laid_out(laid_out)
        )
    said = f"Too many passes to draw: plans {runs(tuple(sorted(large)))}." if large else ""
    return found, said


def _laid_out(one: Iteration) -> dict[str, Any]:
    from moemodel.model.results.iteration import KINDS

    stages = []
    for line in one.stages:
        columns: dict[str, NDArray[Any]] = {
            "kind": np.array([KINDS.index(part.kind) for part in line.slices], dtype=np.uint8),
            "micro_batch": np.array([part.micro_batch for part in line.slices], dtype=np.int32),
            "start_s": np.array([part.start_s for part in line.slices], dtype=np.float32),
            "end_s": np.array([part.end_s for part in line.slices], dtype=np.float32),
            "power_W": np.nan_to_num(np.array([part.power_W for part in line.slices], dtype=np.float32)),
            "memory_s": np.array(line.memory_s, dtype=np.float32),
            "memory_B": np.array(line.memory_B, dtype=np.float32),
        }
        clocks = dict(zip(("forward", "backward", "optimizer"), line.clock_MHz, strict=True))
        told = {name: clock if math.isfinite(clock) else None for name, clock in clocks.items()}
        stages.append(
            {"stage": line.stage, "gpus": line.gpus, "clock_MHz": told}
            | {name: _packed(column) for name, column in columns.items()}
        )
    return {"step_s": one.step_s, "note": one.note, "stages": stages, "clocks": _clocks(one)}


def _clocks(one: Iteration) -> str:
    """Clocks that the stages keep, in words."""
    names = ("forward", "backward", "optimizer")
    groups: dict[tuple[int, ...], list[int]] = {}
    for line in one.stages:
        known = tuple(round(clock) if math.isfinite(clock) else 0 for clock in line.clock_MHz)
        groups.setdefault(known, []).append(line.stage)
    said = []
    for known, members in groups.items():
        of = "" if len(groups) == 1 else f"stages {runs(tuple(members))}: "
        said.append(of + ", ".join(f"{name} {clock} MHz" for name, clock in zip(names, known, strict=True) if clock))
    return f"Clocks: {'; '.join(said)}." if any(said) else ""
