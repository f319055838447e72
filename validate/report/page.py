"""A report as one HTML page: figures and tables, nothing loaded from elsewhere, no script.

Figures are drawn by hand as SVG, so that neither a plotting library has to be installed nor megabytes of one lie in
every page. All text from plans and machines is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape

from moemodel.model.results.validation import Measured, PlanReport, Predicted, QuantityReport, Ranking, Report
from moemodel.validation.report.figures import errors, phases, plane, spans
from moemodel.validation.report.marks import Frame
from moemodel.validation.report.names import alike, differing, plan_or_none
from moemodel.validation.report.parts import document, figure, table, tiles_of
from moemodel.validation.report.units import PHASES, UNITS, Unit, number, percent
from moemodel.validation.report.verdict import judge, verdict


def html_page(report: Report) -> str:
    """The whole page."""
    title = f"Validation: {report.search or 'plans'} on {report.environment.device.name}"
    body = [
        _heading(report, title),
        _verdict(report),
        _tiles(report),
        "" if report.errors else _failures(report.plans),  # there is little else to see
        _figures(report),
        *_tables(report),
        _failures(report.plans) if report.errors else "",
        _set_aside(report),
        _plans(report.plans),
        _notes(report),
    ]
    return document(title, [part for part in body if part])


def _heading(report: Report, title: str) -> str:
    environment = report.environment
    device = environment.device
    driver = f", driver {device.driver}" if device.driver else ""
    torch = environment.libraries.get("torch")
    lines = [
        f"{_count(report.plans, 'plan')}, {_count(range(report.repeats), 'round')} in shuffled order, "
        f"{report.seconds:g} s measured of each run; {report.created}",
        f"{environment.gpus} x {device.name}{driver}{f', torch {torch}' if torch else ''}; clocks: "
        f"{environment.clocks}; seed {report.seed}",
        f"predicted by calibration {report.calibration.name} ({report.calibration.sha256[:12]}), moemodel "
        f"{report.moemodel_version}",
    ]
    unfinished = "" if report.complete else '<p class="bad">Unfinished: not all runs were made.</p>'
    return f'<h1>{escape(title)}</h1>\n<p class="soft">{"<br>".join(map(escape, lines))}</p>\n{unfinished}'


def _count(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


_SIGNS = {"good": "✓", "poor": "✗", "open": "?"}


def _verdict(report: Report) -> str:
    """What may be relied on, and on what that rests: a line for each quantity, and for the choice of a plan."""
    found = verdict(report)
    lines = [judged for name in UNITS if (judged := judge(report.plans, name)) is not None]
    items = "".join(f'<li class="{each.level}">{escape(each.text)}</li>' for each in lines)
    for name, ranking in report.ranking.items():
        if ranking.regret is not None:
            items += f"<li>{escape(_chosen(UNITS[name].label, ranking))}</li>"
    return (
        f'<section class="verdict {found.level}"><p><b><span aria-hidden="true">{_SIGNS[found.level]}</span> '
        f"{escape(found.text)}</b></p>{f'<ul>{items}</ul>' if items else ''}</section>\n"
    )


def _chosen(label: str, ranking: Ranking) -> str:
    if ranking.chosen == ranking.best:
        return f"The plan predicted best in {label} was the best measured."
    return f"The plan predicted best in {label} took {percent(ranking.regret)} more than the best measured."


def _tiles(report: Report) -> str:
    tiles = [
        (
            percent(report.errors[name].mape),
            f"{unit.label}: mean error; worst {percent(report.errors[name].worst)}",
        )
        for name, unit in UNITS.items()
        if name in report.errors
    ]
    for name, ranking in report.ranking.items():
        tiles += _ranking_tiles(UNITS[name].label, ranking)
    if report.failed:
        tiles.append((str(len(report.failed)), "plans that failed"))
    return tiles_of(tiles)


def _ranking_tiles(label: str, ranking: Ranking) -> list[tuple[str, str]]:
    tiles = []
    if ranking.tau is not None:
        tiles.append((f"{ranking.tau:.2f}", f"Kendall's tau of {label}, {ranking.pairs} pairs"))
    if ranking.regret is not None:
        said = "the plan predicted best was best" if ranking.chosen == ranking.best else f"{ranking.best} was best"
        tiles.append((percent(ranking.regret), f"regret in {label}: {said}"))
    return tiles


def _figures(report: Report) -> str:
    key = (
        '<span class="key m"></span>measured, mean and standard deviation over rounds &nbsp; '
        '<span class="key p"></span>predicted, with its 90 % interval'
    )
    plans = report.plans
    of_phases = " &nbsp; ".join(f'<span class="key {name}"></span>{unit.label}' for name, unit in PHASES.items())
    draw: list[tuple[str, Callable[[Frame], str], str]] = [
        ("Step time", lambda frame: spans(plans, "step_time", frame), key),
        ("Energy", lambda frame: spans(plans, "energy", frame), key),
        (
            "Energy against time",
            lambda frame: plane(plans, frame),
            f"{key}; what is predicted and what was measured are joined; the table below has the plans that have no "
            "room for their names",
        ),
        ("Phases", lambda frame: phases(plans, frame), f"{of_phases}; predicted above, measured below"),
        (
            "Peak memory",
            lambda frame: spans(plans, "memory", frame),
            f"{key}; of the fullest GPU, as the allocator counts it",
        ),
        ("Errors", lambda frame: errors(report, frame), "one ring a plan; the band is the mean absolute error"),
        ("Errors of the phases", lambda frame: errors(report, frame, PHASES), "the same of the parts of a step"),
    ]
    return "".join(figure(title, by_frame, caption) for title, by_frame, caption in draw)


# ---- tables ---------------------------------------------------------------------------------------------------------


def _tables(report: Report) -> Iterable[str]:
    yield "<h2>The numbers</h2>\n"
    units = UNITS | PHASES
    heads = ("plan", "predicted", "90 % interval", "measured", "± over rounds", "runs", "error", "forecast")
    if alike([plan.name for plan in report.plans]):
        degrees = differing([plan_or_none(plan) for plan in report.plans])
        settings = [(plan.name, ", ".join(own)) for plan, own in zip(report.plans, degrees, strict=True)]
        yield table("in what the plans differ", ("plan", "settings"), settings, text=(1,))
    for name, unit in units.items():
        rows = [
            (plan.name, *_cells(plan.quantities[name], unit))
            for plan in report.plans
            if name in plan.quantities and plan.quantities[name].measured is not None
        ]
        if rows:
            yield table(f"{unit.label}, {unit.symbol}", heads, rows)
    rows = [
        (
            units[name].label,
            percent(found.mape),
            f"{percent(found.worst)} ({found.worst_plan})",
            percent(found.forecast_mape),
            percent(found.covered),
            str(found.plans),
        )
        for name, found in report.errors.items()
        if name in units
    ]
    yield table("all plans", ("quantity", "mean error", "worst", "of forecasts", "in the interval", "plans"), rows)


def _cells(quantity: QuantityReport, unit: Unit) -> tuple[str, ...]:
    measured = quantity.measured
    spread = "" if quantity.error_std is None else f" ± {percent(quantity.error_std)}"
    return (
        _value(quantity.predicted, unit),
        _interval(quantity.predicted, unit),
        _mean(measured, unit),
        "" if measured is None or measured.std is None else number(measured.std * unit.scale),
        "" if measured is None else str(measured.n),
        percent(quantity.error, signed=True) + spread,
        _value(quantity.forecast, unit),
    )


def _value(predicted: Predicted | None, unit: Unit) -> str:
    return "" if predicted is None else number(predicted.value * unit.scale)


def _interval(predicted: Predicted | None, unit: Unit) -> str:
    if predicted is None or predicted.interval is None:
        return ""
    return " to ".join(number(edge * unit.scale) for edge in predicted.interval)


def _mean(measured: Measured | None, unit: Unit) -> str:
    return "" if measured is None else number(measured.mean * unit.scale)


def _failures(plans: Iterable[PlanReport]) -> str:
    rows = [
        (plan.name, str(failed.repeat + 1), failed.kind, failed.reason, failed.log or "")
        for plan in plans
        for failed in plan.failures
    ]
    heads = ("plan", "round", "what", "why", "log")
    return f"<h2>Failed</h2>\n{table('these were not run again', heads, rows, text=(2, 3, 4))}" if rows else ""


def _set_aside(report: Report) -> str:
    rows = [(plan.name, plan.reason) for plan in report.set_aside]
    return f"<h2>Set aside</h2>\n{table('not run', ('plan', 'why'), rows, text=(1,))}" if rows else ""


def _plans(plans: Iterable[PlanReport]) -> str:
    parts = []
    for plan in plans:
        state = [f"die {plan.temperature_C:.0f} C"] if plan.temperature_C is not None else []
        state += [f"busiest expert {plan.expert_skew:.2f} times the mean"] if plan.expert_skew is not None else []
        notes = "".join(f"<li>{escape(note)}</li>" for note in plan.notes)
        parts.append(
            f"<details><summary>{escape(plan.name)}: {escape(', '.join(plan.roles))}</summary>"
            f'<p class="soft">{escape("; ".join(state))}</p>{f"<ul>{notes}</ul>" if notes else ""}'
            f"<pre>{escape(plan.plan_yaml)}</pre></details>\n"
        )
    return "<h2>The plans</h2>\n" + "".join(parts)


def _notes(report: Report) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return f"<h2>Notes</h2>\n<ul>{items}</ul>\n"
