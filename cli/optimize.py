"""`moemodel optimize`: the best plans of a search, and what they gain."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moemodel import api
from moemodel.cli.output import console, digits, echo_json_text, prefixed, table
from moemodel.model.core.files import write_atomic

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from moemodel.model.search.result import Entry, Figure, SearchResult

_PICKS = {  # in the order that they are shown in
    "fastest": "fastest",
    "least_energy_within": "least energy within {:.0%}",
    "knee": "knee",
    "least_energy": "least energy",
}


@click.command("optimize")
@click.argument("search", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path(api.SEARCH_RESULT),
    show_default=True,
    help="File for the result; what is there is replaced.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what the file holds, instead of tables.")
@click.option("--top", type=click.IntRange(min=1), help="Print so many plans of the front.  [default: all kept]")
@click.option(
    "--write-plans",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the plans of the front to a new folder, for `moemodel predict`.",
)
@click.option("--calibration", metavar="NAME|FILE", help="A shipped one, or a file.  [default: of the search's GPU]")
def optimize_command(
    search: Path, output: Path, as_json: bool, top: int | None, write_plans: Path | None, calibration: str | None
) -> None:
    """Predict every legal plan of SEARCH, a YAML file, and give the front of time and energy within its limits."""
    if write_plans is not None:
        _check_empty(write_plans)
    result = api.search(search, calibration)
    write_atomic(output, result.to_json())
    if write_plans is not None:
        _write_plans(write_plans, result.front)
    if as_json:
        echo_json_text(result.to_json())
        return
    out = console()
    for part in _report(result, top):
        out.print(part)
    plans = "" if write_plans is None else f"; plans: {write_plans}"
    out.print(f"wrote {output}{plans}", soft_wrap=True)


def _check_empty(folder: Path) -> None:
    """Refuse a folder in which plans of another search would lie between the new ones."""
    from moemodel.model.core.errors import InputError

    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"--write-plans {folder}: is not empty; name a new folder")


def _write_plans(folder: Path, entries: Iterable[Entry]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        write_atomic(folder / f"plan-{entry.number:02d}.yaml", entry.plan_yaml, overwrite=False)


def _report(result: SearchResult, top: int | None) -> list[RenderableType]:
    parts: list[RenderableType] = [_heading(result), "", _front(result, top), "", _picks(result)]
    if result.reference is not None:
        parts += ["", _reference(result.reference)]
    if result.counts.refused:
        parts += ["", _refused(result)]
    return [*parts, "", *_notes(result)]


def _heading(result: SearchResult) -> str:
    s, counts = result.search, result.counts
    gpus = ", ".join(str(count) for count in s.cluster.gpus)
    return (
        f"{s.name}\n{s.architecture} on {gpus} x {result.calibration.gpu}, {s.precision}, {s.backend}\n"
        f"{s.global_batch} sequences of {s.sequence_length} tokens a step\n"
        f"{counts.combinations:,} combinations, {counts.predicted:,} predicted, {counts.feasible:,} feasible, "
        f"{counts.front:,} on the front"
    )


def _front(result: SearchResult, top: int | None) -> Table:
    """The front, fastest first; shares are against the reference."""
    from moemodel.model.search.pareto import thin
    from moemodel.model.search.problem import summary

    entries = result.front
    shown = [entries[i] for i in thin(len(entries), top or len(entries), (n - 1 for n in result.picks.values()))]
    seconds, time_unit = prefixed(entries[0].step_time_s.value, "s")
    joules, energy_unit = prefixed(entries[0].energy_J.value, "J")
    numbers = ("#", f"time {time_unit}", "+-%", f"energy {energy_unit}", "W", "alike", "MHz")
    columns = ("#", f"time {time_unit}", "+-%", f"energy {energy_unit}", "+-%", "W", "alike", "MHz", "plan")
    made = table(*columns, numbers=numbers)
    several = len(result.search.cluster.gpus) > 1
    for entry in shown:
        made.add_row(
            str(entry.number),
            _figure(entry.step_time_s.value * seconds),
            _change(entry.time_vs_reference),
            _figure(entry.energy_J.value * joules),
            _change(entry.energy_vs_reference),
            f"{entry.power_per_gpu_W.value:.0f}",
            _runs(entry.not_distinguishable_from),
            "auto" if entry.plan.clock_MHz is None else f"{entry.plan.clock_MHz:g}",
            several * f"{entry.plan.cluster.gpus} GPUs " + summary(entry.plan, clock=False),
        )
    return made


def _figure(value: float) -> str:
    """Four digits: neighbours on the front differ in the last ones."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _change(share: float | None) -> str:
    return "" if share is None else f"{share * 100:+.1f}"


def _runs(numbers: tuple[int, ...]) -> str:
    """Numbers in short: 1-3,5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def _picks(result: SearchResult) -> Table:
    """The plans with a name, with their intervals."""
    made = table("Pick", "#", "step time, 90 % interval", "energy, 90 % interval", numbers=("#",))
    for key, words in _PICKS.items():
        entry = result.front[result.picks[key] - 1]
        made.add_row(
            words.format(result.search.within_of_fastest),
            str(entry.number),
            _interval(entry.step_time_s, "s"),
            _interval(entry.energy_J, "J"),
        )
    return made


def _interval(figure: Figure, unit: str) -> str:
    factor, shown = prefixed(figure.value, unit)
    value = f"{digits(figure.value * factor)} {shown}"
    if figure.interval is None:
        return value
    low, high = figure.interval
    return f"{value}, {digits(low * factor)} to {digits(high * factor)}"


def _reference(entry: Entry) -> str:
    from moemodel.model.search.problem import summary

    missed = f"; it misses {', '.join(entry.misses)}" if entry.misses else ""
    plan = entry.plan
    return (
        f"+-% is against the reference, a first plan without a search: {plan.cluster.gpus} GPUs, {summary(plan)}: "
        f"{_interval(entry.step_time_s, 's')}; {_interval(entry.energy_J, 'J')}{missed}"
    )


def _refused(result: SearchResult) -> Table:
    made = table("Refused, by the first reason", "plans", numbers=("plans",))
    for refusal in result.counts.refused:
        made.add_row(refusal.says, f"{refusal.plans:,}")
    return made


def _notes(result: SearchResult) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    bullets = Table.grid(padding=(0, 1))
    for note in result.notes:
        bullets.add_row("-", note)
    return [Text("Notes", style="bold"), bullets]
