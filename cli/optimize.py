"""`moemodel optimize`: the best plans of a search, and what they gain."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moemodel import api
from moemodel.cli.output import begins_with, console, echo, echo_json_text
from moemodel.cli.plan_folder import check_empty, plans_written
from moemodel.cli.search_progress import SearchProgress
from moemodel.cli.search_report import report
from moemodel.model.core.files import write_atomic

if TYPE_CHECKING:
    from moemodel.model.search.result import SearchResult


_FIRST = b'{\n "schema_version":'  # how a result begins
_FIRST_OF_PAGE = b"<!doctype html>\n"
_PAGES = (".html", ".htm")


@click.command("optimize", short_help="The best plans and clocks of a search, within its limits.")
@click.argument("searches", metavar="SEARCH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="File for the result; that of an earlier search is replaced. Of several searches a folder, in which each has "
    f"a file of its own name.  [default: {api.SEARCH_RESULT}, of several the working directory]",
)
@click.option(
    "--jobs", type=click.IntRange(min=1), metavar="N", help="Run so many of several searches at once.  [default: 1]"
)
@click.option(
    "--joblib-backend",
    "backend",
    metavar="NAME",
    help="Where they run, by joblib's name: loky (processes of this machine), dask (the cluster that "
    "DASK_SCHEDULER_ADDRESS names, or workers on this machine), ray.  [default: joblib's]",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print what the file holds, instead of tables; of several, a list."
)
@click.option(
    "--top", type=click.IntRange(min=1), help="Print so many plans of the front, clocks not counted.  [default: all]"
)
@click.option(
    "--write-plans",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the plans of the front to a new folder, for `moemodel predict`.",
)
@click.option(
    "--report",
    "page",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.html",
    help="Write a page to look at, too: front, breakdowns, timeline, refusals. `-o FILE.html` writes it alone.",
)
@click.option(
    "--figures",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write figures for papers, PNG and SVG, to a new folder; needs the extra plots.",
)
@click.option(
    "--explain",
    "explained",
    type=click.Path(path_type=Path),
    metavar="PLAN",
    help="Say why this plan is refused, or which plan beats it and by how much, and write no result.",
)
@click.option(
    "--calibration",
    metavar="NAME|FILE",
    help="A shipped calibration, or a file that `moemodel calibrate` wrote.  [default: of the search's GPU]",
)
def optimize_command(
    searches: tuple[Path, ...],
    output: Path | None,
    jobs: int | None,
    backend: str | None,
    as_json: bool,
    top: int | None,
    write_plans: Path | None,
    page: Path | None,
    figures: Path | None,
    explained: Path | None,
    calibration: str | None,
) -> None:
    """Predict every legal plan of SEARCH, a YAML file, and give the front of its objectives within its limits.

    Objectives are step time and the energy of GPUs and hosts, unless the search names others. `moemodel init --search`
    writes a search with comments.
    """
    if len(searches) > 1:
        alone = {"--explain": explained, "--write-plans": write_plans, "--report": page, "--figures": figures}
        _refuse(alone, "goes with one SEARCH alone")
        _optimize_many(searches, output, calibration, jobs=jobs, backend=backend, as_json=as_json, top=top)
        return
    _refuse({"--jobs": jobs, "--joblib-backend": backend}, "goes with several searches: SEARCH SEARCH...")
    search, output = searches[0], output or Path(api.SEARCH_RESULT)
    if explained is not None:
        _explain(search, explained, calibration, as_json=as_json)
        return
    stored, page = _places(output, page)
    for option, folder in (("--write-plans", write_plans), ("--figures", figures)):
        if folder is not None:
            check_empty(folder, option)
    with SearchProgress() as progress:
        result = api.search(search, calibration, progress=progress)
        text, drawn = "", dict[str, bytes]()
        if page is not None or figures is not None:
            text, drawn = _looks(result, calibration, progress, page=page is not None, figures=figures is not None)
    with plans_written(write_plans, {f"plan-{entry.number:02d}": entry.plan for entry in result.front}):
        if stored is not None:
            write_atomic(stored, result.to_json())
        if page is not None:
            write_atomic(page, text)
        if figures is not None:
            figures.mkdir(parents=True, exist_ok=True)
            for name, content in drawn.items():
                write_atomic(figures / name, content)
    if as_json:
        echo_json_text(result.to_json())
        return
    out = console()
    for part in report(result, top):
        out.print(part)
    plans = "" if write_plans is None else f"; plans: {write_plans}"
    written = ", ".join(str(path) for path in (stored, page, figures) if path is not None)
    out.print(f"wrote {written}{plans}", soft_wrap=True)


def _refuse(given: Mapping[str, object], why: str) -> None:
    """Refuse options, by their names, where they are given.

    Raises:
        click.UsageError: with the reason.
    """
    for option, value in given.items():
        if value is not None:
            raise click.UsageError(f"{option} {why}")


def _optimize_many(
    searches: Sequence[Path],
    folder: Path | None,
    calibration: str | None,
    *,
    jobs: int | None,
    backend: str | None,
    as_json: bool,
    top: int | None,
) -> None:
    """Several searches: a file and a report for each; at the end an error, if nothing was feasible in some."""
    from moemodel.model.core.errors import InfeasiblePlanError

    outputs = _outputs_of_many(searches, folder or Path())
    found = api.search_many(searches, calibration, jobs=jobs or (None if backend else 1), backend=backend)
    out = console()
    failed, texts = [], []
    for search, output, result in zip(searches, outputs, found, strict=True):
        if isinstance(result, InfeasiblePlanError):
            failed.append(f"{search}: {result}")
            continue
        texts.append(result.to_json())
        write_atomic(output, texts[-1])
        if not as_json:
            for part in report(result, top):
                out.print(part)
            out.print(f"wrote {output}\n", soft_wrap=True)
    if as_json:
        echo_json_text(f"[{','.join(texts)}]")
    if failed:
        raise InfeasiblePlanError("\n".join(failed))


def _outputs_of_many(searches: Sequence[Path], folder: Path) -> list[Path]:
    """A file for the result of each search, by its name."""
    from moemodel.model.core.errors import InputError

    if folder.exists() and not folder.is_dir():
        raise InputError(f"-o {folder}: is a file; of several searches, name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    outputs = [folder / f"{search.stem}-{api.SEARCH_RESULT}" for search in searches]
    twice = sorted({output.name for output in outputs if outputs.count(output) > 1})
    if twice:
        raise InputError(f"SEARCH: two would write {twice[0]}; give the files names of their own")
    for output in outputs:
        _check_output(output, _FIRST, "result of a search", "-o")
    return outputs


def _explain(search: Path, plan: Path, calibration: str | None, *, as_json: bool) -> None:
    """Print why a plan is not what a search proposes."""
    from moemodel.model.search.explain import in_words

    with SearchProgress() as progress:
        found = api.explain(search, plan, calibration, progress=progress)
    if as_json:
        echo_json_text(found.to_json())
    else:
        echo(in_words(found))


def _places(output: Path, page: Path | None) -> tuple[Path | None, Path | None]:
    """Where the result goes, and where the page; checked before the search."""
    from moemodel.model.core.errors import InputError

    is_page = output.suffix.lower() in _PAGES
    if is_page and page is not None:
        raise InputError(f"-o {output}: is a page, and --report {page} another; give one of them")
    if is_page:
        _check_output(output, _FIRST_OF_PAGE, "page", "-o")
        return None, output
    _check_output(output)
    if page is not None:
        _check_output(page, _FIRST_OF_PAGE, "page", "--report")
    return output, page


def _looks(
    result: SearchResult, calibration: str | None, progress: SearchProgress, *, page: bool, figures: bool
) -> tuple[str, dict[str, bytes]]:
    """The page of a result, and figures by their files' names, as far as they are asked for."""
    from functools import partial

    from moemodel.calibration.store.catalogue import load_calibration
    from moemodel.cli.search_figures import search_figures
    from moemodel.cli.search_page import search_page
    from moemodel.model.results.iteration import iteration
    from moemodel.model.search.survey import survey

    loaded = load_calibration(calibration, result.search.cluster.gpu, key="cluster.gpu")
    found = survey(result.search, loaded, progress=partial(progress, "survey"))
    text = search_page(result, found, loaded, partial(progress, "timelines")) if page else ""
    drawn = dict(search_figures(result, found, iteration(result.front[0].plan, loaded))) if figures else {}
    return text, drawn


def _check_output(output: Path, first: bytes = _FIRST, what: str = "result of a search", option: str = "-o") -> None:
    """Refuse, before the search, a place that can't be written, and a file that this command has not written."""
    from moemodel.model.core.errors import InputError

    if not output.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(output))
    if output.exists() and not begins_with(output, first):
        raise InputError(f"{option} {output}: is there already and is no {what}; name another file")
