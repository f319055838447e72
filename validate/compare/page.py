"""A comparison as one HTML page: figures and tables, nothing loaded from elsewhere, no script.

It is made of the parts of a validation's page. All text from plans and machines is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape

from moemodel.model.plan.spec import plan_text
from moemodel.validation.compare.cells import FACTORS, SETTINGS, Cell
from moemodel.validation.compare.comparison import Check, Comparison
from moemodel.validation.compare.css import STYLE
from moemodel.validation.compare.differences import Difference
from moemodel.validation.compare.figures import (
    MOST_CURVES,
    Curve,
    curves,
    curves_of,
    expectation,
    experts_of,
    in_plane,
    phases,
    plane,
    series_class,
    spans,
)
from moemodel.validation.compare.findings import findings
from moemodel.validation.compare.quantities import ALL, COMPARED, OF_ROUTERS, OF_STEP, PHASES
from moemodel.validation.compare.welch import Spread
from moemodel.validation.report.marks import WIDE, Frame
from moemodel.validation.report.parts import document, figure, table, tiles_of
from moemodel.validation.report.units import Unit, number, percent

_MOST_ROWS = 200  # of a table in the page; files hold all
_MOST_FINDINGS = 12
_MEASURED = '<span class="key m"></span>measured: mean and standard deviation over repeats, and single runs'
_PREDICTED = ' &nbsp; <span class="key p"></span>predicted before the run, with its 90 % interval'
_ROWS = replace(WIDE, left=300.0)  # labels are of a framework, a model and a batch
_LOAD = Unit(label="rows over the mean", short="load", symbol="", scale=1.0)


def html_page(comparison: Comparison) -> str:
    """The whole page."""
    title = f"Comparison of {_count(comparison.done, 'training run')}"
    sections = [(name, text) for name, text in _sections(comparison) if text]
    body = [
        '<a class="skip" href="#findings">To what was found</a>\n',
        f'<h1>{escape(title)}</h1>\n<p class="soft">{"<br>".join(map(escape, _about(comparison)))}</p>\n',
        _findings(comparison),
        tiles_of(_tiles(comparison)),
        _contents([name for name, _ in sections]),
        *(f'<section id="{_anchor(name)}">\n{text}</section>\n' for name, text in sections),
    ]
    return document(title, body, STYLE)


def _sections(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Name and HTML; what there is nothing of is empty."""
    cells = comparison.cells
    if not cells:
        yield "Ended otherwise", _ended(comparison)
    yield "Energy", _of_quantity(cells, "energy", "Energy")
    yield "Duration", _of_quantity(cells, "duration", "Duration")
    yield "Emissions", _of_quantity(cells, "emissions", "Emissions")
    yield "Loss", _of_quantity(cells, "loss", "Task loss") + _curves(cells, "loss", "Task loss over samples")
    yield "Energy against loss", _plane(cells)
    yield "Phases", _phases(cells)
    yield "Memory", _of_quantity(cells, "memory", "Peak memory")
    yield "Steps", _of_steps(cells)
    yield "Routing", _routing(cells)
    yield "Differences", _differences(comparison.differences)
    yield "Predicted beside measured", _checks(comparison.checks)
    if cells:
        yield "Ended otherwise", _ended(comparison)
    yield "Cells", _cells(cells)
    yield "Notes", f"<h2>Notes</h2>\n<ul>{''.join(f'<li>{escape(note)}</li>' for note in comparison.notes)}</ul>\n"


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _contents(names: Iterable[str]) -> str:
    items = "".join(f'<li><a href="#{_anchor(name)}">{escape(name)}</a></li>' for name in names)
    return f'<nav aria-label="Contents"><ul>{items}</ul></nav>\n'


def _count(number_of: int, name: str) -> str:
    return f"{number_of} {name}{'' if number_of == 1 else 's'}"


def _figure(title: str, draw: Callable[[Frame], str], caption: str) -> str:
    """A figure with room for the names of cells."""
    return figure(title, draw, caption, _ROWS)


def _about(comparison: Comparison) -> Iterator[str]:
    cells = comparison.cells
    if comparison.samples is not None:
        yield f"at {comparison.samples:,} samples each (GPUs x batch x iterations), {_count(len(cells), 'cell')}"
    gpus = sorted({f"{cell.settings['cluster.gpus']} x {cell.runs[0].run.manifest.gpu}" for cell in cells})
    if gpus:
        yield "; ".join(gpus)
    data = sorted({str(cell.settings.get("data.source")) for cell in cells})
    if cells:
        yield f"data: {', '.join(data)}"
    yield f"from {', '.join(str(folder) for folder in comparison.folders)}"


def _findings(comparison: Comparison) -> str:
    found = list(findings(comparison))
    told = sum(one.level == "good" for one in found)
    if not comparison.cells:
        level, text = "poor", "Nothing to compare: no run is done."
    elif not found:
        level, text = "open", "Nothing to hold against each other: no two cells differ in one thing alone."
    else:
        level = "good" if told else "open"
        text = f"{told} of {_count(len(found), 'comparison')} told apart from the spread over repeats."
    sign = {"good": "✓", "open": "?", "poor": "✗"}[level]
    items = "".join(f'<li class="{one.level}">{escape(one.text)}</li>' for one in found[:_MOST_FINDINGS])
    if len(found) > _MOST_FINDINGS:
        items += f"<li>{len(found) - _MOST_FINDINGS} more are in the table of differences.</li>"
    return (
        f'<section id="findings" class="verdict {level}"><p><b><span aria-hidden="true">{sign}</span> '
        f"{escape(text)}</b></p>{f'<ul>{items}</ul>' if items else ''}</section>\n"
    )


def _tiles(comparison: Comparison) -> Iterator[tuple[str, str]]:
    yield str(comparison.done), f"runs compared, of {comparison.done + len(comparison.ended)}"
    if comparison.samples is not None:
        yield f"{comparison.samples:,}", "samples of each"
    if comparison.ended:
        kinds = sorted({one.status for one in comparison.ended})
        yield str(len(comparison.ended)), f"ended otherwise: {', '.join(kinds)}"
    for name, label in (("step_time", "step time"), ("energy", "energy"), ("memory", "peak memory")):
        errors = [abs(check.error) for check in comparison.checks if check.quantity == name]
        if errors:
            yield percent(sum(errors) / len(errors)), f"{label}: mean error of what was predicted"
    inside = [check.inside for check in comparison.checks if check.inside is not None]
    if inside:
        yield f"{sum(inside)} of {len(inside)}", "measurements inside the predicted 90 % interval"


# ---- figures with their tables --------------------------------------------------------------------------------------


def _of_quantity(cells: Sequence[Cell], name: str, title: str) -> str:
    key = _MEASURED + (_PREDICTED if any(expectation(cell, name) is not None for cell in cells) else "")
    drawn = _figure(title, lambda frame: spans(cells, name, frame), key)
    return drawn + _spreads(cells, {name: ALL[name]}) if drawn else ""


def _of_steps(cells: Sequence[Cell]) -> str:
    found = _side_by_side(cells, OF_STEP, "of a step")
    return f"<h2>Steps</h2>\n{found}" if found else ""


def _side_by_side(cells: Sequence[Cell], units: Mapping[str, Unit], caption: str) -> str:
    """Quantities beside each other, each with its deviation over repeats."""
    known = [name for name in units if any(cell.spread(name) for cell in cells)]
    heads = [head for name in known for head in (f"{units[name].label}, {units[name].symbol}".removesuffix(", "), "±")]
    rows = []
    for cell in cells:
        found = [(cell.spread(name), units[name]) for name in known]
        texts = [text for spread, unit in found for text in (("", "") if spread is None else _spread(spread, unit)[:2])]
        if any(texts):
            rows.append((cell.label, *texts))
    return table(f"{caption}; ± over repeats", ("cell", *heads), rows) if rows else ""


def _spreads(cells: Sequence[Cell], units: dict[str, Unit]) -> str:
    """A table of each quantity that a cell measured."""
    heads = ("cell", "mean", "± over repeats", "90 % interval of the mean", "runs")
    tables = []
    for name, unit in units.items():
        rows = [(cell.label, *_spread(found, unit)) for cell in cells if (found := cell.spread(name)) is not None]
        if rows:
            tables.append(table(f"{unit.label}, {unit.symbol}".removesuffix(", "), heads, rows))
    return "".join(tables)


def _spread(found: Spread, unit: Unit) -> tuple[str, ...]:
    interval = "" if found.interval is None else " to ".join(number(edge * unit.scale) for edge in found.interval)
    std = "" if found.std is None else number(found.std * unit.scale)
    return number(found.mean * unit.scale), std, interval, str(found.runs)


def _curves(cells: Sequence[Cell], name: str, title: str) -> str:
    found = curves_of(cells, name)
    if name == "dropped" and all(float(one.y.max()) == 0 for one in found):
        return ""
    said = f" A router that knows no preference has {_most_entropy(cells)} nats." if name == "entropy" else ""
    return _drawn(title, lambda frame: curves(found, ALL[name], "samples", frame), found, said)


def _most_entropy(cells: Sequence[Cell]) -> str:
    """log E, of each model that is compared."""
    routings = [run.run.routing for cell in cells for run in cell.runs if run.run.routing is not None]
    return " or ".join(sorted({number(routing.most_entropy) for routing in routings}))


def _drawn(title: str, draw: Callable[[Frame], str], found: Sequence[Curve], said: str = "") -> str:
    """Curves, with a list of their colours."""
    keys = _keys([(series_class(index), one.label) for index, one in enumerate(found)])
    more = f" No more than {MOST_CURVES} are drawn; steps.csv has all." if len(found) == MOST_CURVES else ""
    return _figure(title, draw, f"means over repeats.{said}{more}{keys}")


def _routing(cells: Sequence[Cell]) -> str:
    loads = experts_of(cells)
    titles = {"skew": "Load skew over samples", "dropped": "Dropped share over samples", "entropy": "Router entropy"}
    parts = [
        _drawn("Tokens per expert, the busiest first", lambda f: curves(loads, _LOAD, "experts", f), loads),
        *(_curves(cells, name, title) for name, title in titles.items()),
        _side_by_side(cells, OF_ROUTERS, "of routers, over all compared steps"),
    ]
    return "".join(parts)


def _plane(cells: Sequence[Cell]) -> str:
    keys = _keys([(series_class(index), cell.label) for index, cell in enumerate(in_plane(cells))])
    return _figure(
        "Energy against loss", lambda frame: plane(cells, frame), f"means and standard deviations over repeats{keys}"
    )


def _keys(named: Iterable[tuple[str, str]]) -> str:
    """Colours, and what has them."""
    items = "".join(f'<li><span class="key {colour}"></span>{escape(label)}</li>' for colour, label in named)
    return f'<ul class="keys">{items}</ul>'


def _phases(cells: Sequence[Cell]) -> str:
    names = [name for name in PHASES if any(name in cell.runs[0].phases for cell in cells)]
    keys = " &nbsp; ".join(f'<span class="key {name}"></span>{escape(PHASES[name])}' for name in names)
    caption = f"{keys}; the thin bar is what was predicted, with communication and waiting at its end"
    drawn = _figure("Energy by phase", lambda frame: phases(cells, frame), caption)
    rows = [
        (cell.label, PHASES.get(name, name), *_spread(found, COMPARED["energy"]), _share(cell, found))
        for cell in cells
        for name in cell.runs[0].phases
        if (found := cell.phase(name)) is not None
    ]
    heads = ("cell", "phase", "mean", "± over repeats", "90 % interval of the mean", "runs", "share")
    if not rows:
        return ""
    heading = "" if drawn else "<h2>Energy by phase</h2>\n"
    return f"{heading}{drawn}{table('energy by phase, J', heads, rows, text=(1,))}"


def _share(cell: Cell, found: Spread) -> str:
    energy = cell.spread("energy")
    return "" if energy is None or not energy.mean else percent(found.mean / energy.mean)


# ---- tables ---------------------------------------------------------------------------------------------------------


def _differences(found: Sequence[Difference]) -> str:
    heads = ("quantity", "of", "against", "difference", "90 % interval", "verdict", "runs")
    parts = []
    for factor in (*FACTORS.values(), SETTINGS):
        rows = [
            (COMPARED[one.quantity].label, one.b, one.a, percent(one.share, signed=True), *_told(one))
            for one in sorted(found, key=lambda one: list(COMPARED).index(one.quantity))
            if one.factor == factor
        ]
        if rows:
            more = "" if len(rows) <= _MOST_ROWS else f"; {_MOST_ROWS} of {len(rows):,}, differences.csv has all"
            parts.append(table(f"by {factor}, where all else is the same{more}", heads, rows[:_MOST_ROWS], text=(1, 2)))
    return f"<h2>Differences</h2>\n{''.join(parts)}" if parts else ""


def _told(one: Difference) -> tuple[str, str, str]:
    interval = "" if one.interval is None else " to ".join(percent(edge, signed=True) for edge in one.interval)
    verdict = f"{one.verdict}{' (few repeats)' if one.few and one.interval is not None else ''}"
    return interval, verdict, f"{one.of_b.runs}, {one.of_a.runs}"


def _checks(checks: Sequence[Check]) -> str:
    heads = ("cell", "of a step", "predicted", "90 % interval", "measured", "± over repeats", "error")
    rows = [_check(check) for check in checks]
    return f"<h2>Predicted beside measured</h2>\n{table('before the runs', heads, rows, text=(1,))}" if rows else ""


def _check(check: Check) -> tuple[str, ...]:
    unit = {"step_time": OF_STEP["step_time"], "memory": COMPARED["memory"]}.get(check.quantity, OF_STEP["step_energy"])
    label = {"energy": "energy", "step_time": "time", "memory": "peak memory"}.get(check.quantity)
    edges, std = check.predicted.interval, check.measured.std
    return (
        check.cell,
        f"{label or f'energy, {PHASES[check.quantity]}'}, {unit.symbol}",
        number(check.predicted.value * unit.scale),
        "" if edges is None else " to ".join(number(edge * unit.scale) for edge in edges),
        number(check.measured.mean * unit.scale),
        "" if std is None else number(std * unit.scale),
        percent(check.error, signed=True),
    )


def _ended(comparison: Comparison) -> str:
    rows = [
        (
            one.label,
            one.status,
            one.reason,
            one.largest_term or "",
            "" if one.predicted_B is None else number(one.predicted_B * 1e-9),
            one.name,
        )
        for one in comparison.ended
    ]
    heads = ("cell", "how", "why", "largest part of its memory", "predicted peak, GB", "run")
    return f"<h2>Ended otherwise</h2>\n{table('results too', heads, rows, text=(1, 2, 3, 5))}" if rows else ""


def _cells(cells: Iterable[Cell]) -> str:
    parts = []
    for cell in cells:
        runs = "".join(f"<li>{escape(str(one.run.place))}</li>" for one in cell.runs)
        versions = ", ".join(f"{name} {said}" for name, said in cell.runs[0].run.manifest.versions.items())
        parts.append(
            f'<details><summary>{escape(cell.label)}</summary><p class="soft">{escape(versions)}</p><ul>{runs}</ul>'
            f"<pre>{escape(plan_text(cell.runs[0].run.plan))}</pre></details>\n"
        )
    return f"<h2>The cells</h2>\n{''.join(parts)}" if parts else ""
