"""What `moemodel optimize` prints of a search: the front, plan by plan, and what it rests on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moemodel.cli.output import bullets, digits, prefixed, table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from moemodel.model.search.quantities import ObjectiveName
    from moemodel.model.search.result import Change, Difference, Entry, Figure, SearchResult

_BEHIND = 3  # plans behind the front that are shown beside one of two objectives
_WIDTH = 80  # characters, of all that is printed
_HOURS = 48.0  # a run of less is told in hours


def report(result: SearchResult, top: int | None) -> list[RenderableType]:
    """All of it, part by part.

    Args:
        result: what a search found.
        top: plans of the front to show at most; None: all that were kept.
    """
    parts: list[RenderableType] = [_heading(result), "", *_front(result, top), "", _picks(result)]
    if result.references:
        parts += ["", *(_reference(result, entry) for entry in result.references)]
    if result.differences:
        parts += ["", *_against_the_fastest(result)]
    if energies := _energies(result):
        parts += ["", energies]
    if result.counts.refused:
        parts += ["", _refused(result)]
    return [*parts, "", *_notes(result)]


def _heading(result: SearchResult) -> str:
    s, counts = result.search, result.counts
    gpus = ", ".join(str(count) for count in s.cluster.gpus)
    cut = "" if s.layers is None else f", {s.layers} layers"
    outdone = f"{counts.outdone:,} beaten by their bounds, " if counts.outdone else ""
    return (
        f"{s.name}\n{s.architecture}{cut} on {gpus} x {result.calibration.gpu}, {s.precision}, {s.backend}\n"
        f"{s.global_batch} sequences of {s.sequence_length} tokens a step; "
        f"objectives: {', '.join(words_of(name) for name in result.objectives)}\n"
        f"{counts.combinations:,} combinations, {outdone}{counts.predicted:,} predicted, {counts.feasible:,} feasible, "
        f"{counts.front:,} on the front"
    )


# ---- columns --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Column:
    """One figure of every plan; blank where it isn't known."""

    head: str
    text: Callable[[Entry], str]


def _columns(result: SearchResult, listed: set[int]) -> list[_Column]:
    """What is shown of each plan: the objectives, and what a user pays, in units that suit the first.

    Of plans that are alike, those that are listed.
    """
    first = result.front[0]
    shown = [_scaled("time", "s", lambda e: e.step_time_s, first)]
    if result.references:
        shown.append(_Column(head="+-%", text=lambda e: _change(e.time_vs_reference)))
    if first.it_energy_J is not None:
        shown.append(_scaled("GPU\nenergy", "J", lambda e: e.gpu_energy_J, first))
        shown.append(_scaled("IT\nenergy", "J", lambda e: e.it_energy_J, first))
        if result.references:
            shown.append(_Column(head="+-%", text=lambda e: _change(e.it_energy_vs_reference)))
    if first.run is not None:
        shown += _of_run(result, first)
    if "memory_B" in result.objectives:
        shown.append(_Column(head="memory\nGB", text=lambda e: _figure(e.memory_B.value / 1e9)))
    if "tokens_per_s_per_gpu" in result.objectives or first.it_energy_J is None:
        shown.append(_Column(head="tokens/s\na GPU", text=lambda e: _figure(e.tokens_per_s_per_gpu.value)))
    if first.power_per_gpu_W is not None:
        shown.append(_Column(head="W a\nGPU", text=lambda e: _rounded(e.power_per_gpu_W)))
        shown += [_power_column(name) for name in _ASKED_POWERS if name in _asked(result)]
    if first.clock_MHz is not None:
        shown.append(_Column(head="MHz", text=_clock))
    return [*shown, _Column(head="alike", text=lambda e: _alike(e, listed))]


_ASKED_POWERS: dict[ObjectiveName, str] = {  # shown where a search optimizes or limits them
    "node_power_W": "kW a\nnode",
    "cluster_power_W": "kW\nall",
    "peak_power_per_gpu_W": "peak kW\na GPU",
    "peak_node_power_W": "peak kW\na node",
    "peak_cluster_power_W": "peak kW\nall",
}


def _asked(result: SearchResult) -> set[str]:
    return {*result.objectives, *result.search.limits.given}


def _power_column(name: ObjectiveName) -> _Column:
    from moemodel.model.search.result import figure_of

    return _Column(head=_ASKED_POWERS[name], text=lambda entry: _times(figure_of(entry, name), 1e-3))


def _alike(entry: Entry, listed: set[int]) -> str:
    return runs(tuple(number for number in entry.not_distinguishable_from if number in listed))


def _scaled(name: str, unit: str, of: Callable[[Entry], Figure | None], first: Entry) -> _Column:
    """A figure in the unit that suits the first plan's."""
    figure = of(first)
    factor, shown = prefixed(0.0 if figure is None else figure.value, unit)
    return _Column(head=f"{name}\n{shown}", text=lambda e: _times(of(e), factor))


def _of_run(result: SearchResult, first: Entry) -> list[_Column]:
    """Days, cost and emissions of the whole run."""
    run = first.run
    if run is None:
        return []
    hours = run.hours.value < _HOURS
    days = _Column(head="hours" if hours else "days", text=lambda e: _run(e, "hours", 1 if hours else 1 / 24))
    shown = [days]
    if run.cost is not None:
        factor, unit = prefixed(run.cost.value, result.search.site.currency) if run.cost.value >= 1 else (1.0, "")
        unit = unit or result.search.site.currency
        shown.append(_Column(head=f"cost\n{unit}", text=lambda e: _run(e, "cost", factor)))
    if run.emissions_kgCO2e is not None:
        tons = run.emissions_kgCO2e.value >= 1000
        scale = 1e-3 if tons else 1.0
        head = f"CO2e\n{'t' if tons else 'kg'}"
        shown.append(_Column(head=head, text=lambda e: _run(e, "emissions_kgCO2e", scale)))
    return shown


def _run(entry: Entry, name: str, factor: float) -> str:
    return "" if entry.run is None else _times(getattr(entry.run, name), factor)


def _times(figure: Figure | None, factor: float) -> str:
    return "" if figure is None else _figure(figure.value * factor)


def _figure(value: float) -> str:
    """Four digits: neighbours on the front differ in the last ones."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _rounded(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.value:.0f}"


def _change(share: float | None) -> str:
    return "" if share is None else f"{share * 100:+.1f}"


def _clock(entry: Entry) -> str:
    from moemodel.model.plan.clock import ClocksSpec, clock_text

    asked = entry.plan.clock_MHz
    if not isinstance(asked, ClocksSpec):
        return clock_text(asked)
    clocks = [clock for stage in asked.of_stages(entry.plan.parallel.pp) for clock in stage.values()]
    return f"{min(clocks):g}-{max(clocks):g}"


# ---- the front ------------------------------------------------------------------------------------------------------


def _front(result: SearchResult, top: int | None) -> list[RenderableType]:
    """Every plan of the front on a line, and its figures below: at its first and its last clock on the front.

    Then the best behind it.
    """
    from moemodel.model.search.pareto import thin

    plans = _by_plan(result.front)
    named = set(result.picks.values())
    picked = [row for row, plan in enumerate(plans) if any(entry.number in named for entry in plan)]
    shown = [plans[row] for row in thin(len(plans), top or len(plans), picked)]
    next_best = result.next_best if len(result.objectives) == 1 else result.next_best[:_BEHIND]
    next_best = next_best[: max(top - 1, 0)] if top and len(result.objectives) == 1 else next_best
    listed = [*shown, *([entry] for entry in next_best)]
    columns = _columns(result, {entry.number for plan in listed for entry in plan})
    head, body = _lines(result, columns, listed)
    size = sum(1 + len(_ends(plan)) for plan in shown)
    parts: list[RenderableType] = [*map(_dim, head), *body[:size]]
    if next_best:
        ahead = "it" if len(shown) == 1 else "them"
        parts += ["", _dim(f"Behind {ahead}, by {words_of(result.objectives[0])}"), *body[size:]]
    return parts


def _dim(line: str) -> RenderableType:
    from rich.text import Text

    return Text(line, style="dim")


def _by_plan(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Entries that differ in nothing but clock, together; in the order of the first of each."""
    from moemodel.model.search.distinguish import choices_of

    plans: dict[str, list[Entry]] = {}
    for entry in entries:
        plans.setdefault(choices_of(entry.plan), []).append(entry)
    return list(plans.values())


def _ends(plan: Sequence[Entry]) -> list[Entry]:
    return [plan[0]] if len(plan) == 1 else [plan[0], plan[-1]]


def _lines(
    result: SearchResult, columns: Sequence[_Column], plans: Sequence[Sequence[Entry]]
) -> tuple[list[str], list[str]]:
    """Lines of heads; then for each plan its choices and its figures, in columns that are as wide as they need."""
    split = [column.head.split("\n") for column in columns]
    rows_of_heads = max(map(len, split))
    heads = list(zip(*([""] * (rows_of_heads - len(part)) + part for part in split), strict=True))
    figures = [[[column.text(entry) for column in columns] for entry in _ends(plan)] for plan in plans]
    cells = [*heads, *(row for plan in figures for row in plan)]
    numbers = [str(entry.number) for plan in plans for entry in _ends(plan)]
    first = max(map(len, numbers))
    widths = [max(len(row[n]) for row in cells) for n in range(len(columns))]
    gap = 2 if first + sum(widths) + 2 * len(widths) <= _WIDTH else 1

    def line(number: str, row: Sequence[str]) -> str:
        padded = (f"{text:>{width}}" for text, width in zip(row, widths, strict=True))
        return (" " * gap).join([f"{number:<{first}}", *padded]).rstrip()

    above = [*(line("", head) for head in heads[:-1]), line("#", heads[-1])]
    out = []
    for plan, rows in zip(plans, figures, strict=True):
        out.append(_choices(result, plan))
        out += [line(str(entry.number), row) for entry, row in zip(_ends(plan), rows, strict=True)]
    return above, out


def _choices(result: SearchResult, plan: Sequence[Entry]) -> str:
    """Of one plan: what it is, and the clocks that it has on the front."""
    from moemodel.model.search.problem import summary

    gpus = f"{plan[0].plan.cluster.gpus} GPUs " if len(result.search.cluster.gpus) > 1 else ""
    numbers = runs(tuple(entry.number for entry in plan))
    clocks = f": {numbers}, {_clock(plan[0])} to {_clock(plan[-1])} MHz" if len(plan) > 1 else ""
    return f"{gpus}{summary(plan[0].plan, clock=False)}{clocks}"


def runs(numbers: tuple[int, ...]) -> str:
    """Numbers in short: 1-3,5."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return ",".join("-".join(map(str, run)) for run in found)


# ---- picks and references -------------------------------------------------------------------------------------------


def _picks(result: SearchResult) -> Table:
    """The plans with a name, with the intervals of what was optimized."""
    shown: tuple[ObjectiveName, ...] = tuple(dict.fromkeys(("step_time_s", *result.objectives)))
    made = table("Pick", "#", *(f"{words_of(name)}, 90 % interval" for name in shown), numbers=("#",))
    for key, number in result.picks.items():
        entry = result.front[number - 1]
        made.add_row(_pick(key, result), str(number), *(_objective(result, entry, name) for name in shown))
    return made


def _pick(key: str, result: SearchResult) -> str:
    words = key.replace("_", " ")
    return f"{words} {result.search.within_of_fastest:.0%}" if key.endswith("_within") else words


_WORDS = {
    "step_time_s": "step time",
    "gpu_energy_J": "GPU energy",
    "it_energy_J": "IT energy",
    "memory_B": "memory",
    "tokens_per_s_per_gpu": "tokens/s per GPU",
    "power_per_gpu_W": "power of the hottest GPU",
    "node_power_W": "power of the fullest node",
    "cluster_power_W": "power of the cluster",
    "peak_power_per_gpu_W": "peak power of a GPU",
    "peak_node_power_W": "peak power of a node",
    "peak_cluster_power_W": "peak power of the cluster",
    "gpus": "GPUs",
    "run_hours": "hours",
    "run_days": "days",
    "run_kWh": "energy at the meter",
    "run_kgCO2e": "emissions",
    "run_cost": "cost",
}


def words_of(name: str) -> str:
    """A quantity as people call it."""
    return _WORDS.get(name, name)


_UNITS = {
    "tokens_per_s_per_gpu": "tokens/s",
    "gpus": "",
    "run_hours": "h",
    "run_days": "days",
    "run_kgCO2e": "kg",
}


def unit_of(result: SearchResult, name: str) -> str:
    """Of a quantity: where the table has none, what its name ends in."""
    if name == "run_cost":
        return result.search.site.currency
    return _UNITS.get(name, name.rpartition("_")[2])


_SCALED = ("step_time_s", "gpu_energy_J", "it_energy_J", "memory_B")  # with a prefix before the unit


def _objective(result: SearchResult, entry: Entry, name: ObjectiveName) -> str:
    """A figure that can be optimized, with its interval."""
    from moemodel.model.search.result import figure_of

    figure = figure_of(entry, name)
    if figure is None:
        return ""
    return _interval(figure, unit_of(result, name), scale=name in _SCALED)


def _interval(figure: Figure, unit: str, *, scale: bool = True) -> str:
    factor, shown = prefixed(figure.value, unit) if scale else (1.0, unit)
    value = f"{digits(figure.value * factor)} {shown}".rstrip()
    if figure.interval is None:
        return value
    low, high = figure.interval
    return f"{value}, {digits(low * factor)} to {digits(high * factor)}"


def _reference(result: SearchResult, entry: Entry) -> str:
    from moemodel.model.search.problem import summary

    plan = entry.plan
    several = len(result.search.cluster.gpus) > 1
    energy = "" if entry.it_energy_J is None else f"; {_interval(entry.it_energy_J, 'J')}"
    outside = f" (not among the choices: {', '.join(entry.outside)})" if entry.outside else ""
    on = f"on {plan.cluster.gpus} GPUs" if several else "a first plan without a search, within the limits"
    return f"+-% is against the reference, {on}: {summary(plan)}{outside}: {_interval(entry.step_time_s, 's')}{energy}"


# ---- against the fastest, and where the energy goes -----------------------------------------------------------------


def _against_the_fastest(result: SearchResult) -> list[RenderableType]:
    """What each pick does otherwise, and what that is worth."""
    lines: list[RenderableType] = [_dim(f"Against the fastest of the front, #{result.differences[0].fastest}")]
    for one in result.differences:
        names = [_pick(name, result) for name, number in result.picks.items() if number == one.number]
        lines.append(f"#{one.number} {', '.join(names)}: {', '.join(one.choices)}: {_worth(one)}")
    return lines


def _worth(one: Difference) -> str:
    parts = [f"time {_changed(one.step_time)}"]
    parts += [] if one.it_energy is None else [f"IT energy {_changed(one.it_energy)}"]
    if one.phases_J:
        name = max(one.phases_J, key=lambda phase: abs(one.phases_J[phase]))
        factor, unit = prefixed(one.phases_J[name], "J")
        parts.append(f"most of it in {name}, {one.phases_J[name] * factor:+.3g} {unit} a step")
    return "; ".join(parts)


def _changed(found: Change) -> str:
    if found.interval is None:
        return f"{found.share:+.1%}"
    low, high = found.interval
    return f"{found.share:+.1%} ({low:+.1%} to {high:+.1%}{'' if found.told_apart else ', not told apart'})"


_MOST_COLUMNS = 3  # of plans whose energy is shown phase by phase


def _energies(result: SearchResult) -> Table | None:
    """Energy of a step by phase: of the first plan, of the fastest, and of the best in the second objective."""
    fastest = min(result.front, key=lambda entry: entry.step_time_s.value)
    shown = list(dict.fromkeys((1, fastest.number, len(result.front))))[:_MOST_COLUMNS]
    entries = [result.front[number - 1] for number in shown]
    if any(entry.it_energy_J is None or not entry.phases for entry in entries):
        return None
    heads = [f"#{entry.number}" for entry in entries]
    made = table("Energy of a step goes to", *heads, numbers=tuple(heads))
    rows = [_energy_rows(entry) for entry in entries]
    factor, unit = prefixed(max(rows[0].values()), "J")
    for name in rows[0]:
        if any(row[name] > 0 for row in rows):
            cells = (f"{digits(row[name] * factor)} {unit}, {row[name] / sum(row.values()):.0%}" for row in rows)
            made.add_row(name, *cells)
    return made


def _energy_rows(entry: Entry) -> dict[str, float]:
    """Energy of each phase on all GPUs, and of hosts; what adds up to IT energy."""
    phases = {name: phase.energy_J or 0.0 for name, phase in entry.phases.items()}
    it_J = 0.0 if entry.it_energy_J is None else entry.it_energy_J.value
    gpu_J = it_J if entry.gpu_energy_J is None else entry.gpu_energy_J.value
    return phases | {"hosts": it_J - gpu_J}


# ---- what was left out, and what to know ----------------------------------------------------------------------------


def _refused(result: SearchResult) -> Table:
    made = table("Refused, by the first reason", "plans", numbers=("plans",))
    for refusal in result.counts.refused:
        made.add_row(refusal.says, f"{refusal.plans:,}")
    return made


def _notes(result: SearchResult) -> list[RenderableType]:
    from rich.text import Text

    return [Text("Notes", style="bold"), bullets(result.notes)]
