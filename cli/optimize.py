"""`moemodel optimize`: the best plans of a search, and what they gain."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moemodel import api
from moemodel.cli.output import console, echo, echo_json_text
from moemodel.cli.search_progress import SearchProgress
from moemodel.cli.search_report import report
from moemodel.model.core.files import TEMPORARY_SUFFIX, umask, write_atomic

if TYPE_CHECKING:
    from moemodel.model.plan.spec import Plan
    from moemodel.model.search.result import Entry


_FIRST = b'{\n "schema_version":'  # how a result begins


@click.command("optimize", short_help="The best plans and clocks of a search, within its limits.")
@click.argument("search", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path(api.SEARCH_RESULT),
    show_default=True,
    help="File for the result; that of an earlier search is replaced.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what the file holds, instead of tables.")
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
    search: Path,
    output: Path,
    as_json: bool,
    top: int | None,
    write_plans: Path | None,
    explained: Path | None,
    calibration: str | None,
) -> None:
    """Predict every legal plan of SEARCH, a YAML file, and give the front of its objectives within its limits.

    Objectives are step time and the energy of GPUs and hosts, unless the search names others. `moemodel init --search`
    writes a search with comments.
    """
    if explained is not None:
        _explain(search, explained, calibration, as_json=as_json)
        return
    _check_output(output)
    if write_plans is not None:
        _check_empty(write_plans)
    with SearchProgress() as progress:
        result = api.search(search, calibration, progress=progress)
    with _plans_written(write_plans, result.front):
        write_atomic(output, result.to_json())
    if as_json:
        echo_json_text(result.to_json())
        return
    out = console()
    for part in report(result, top):
        out.print(part)
    plans = "" if write_plans is None else f"; plans: {write_plans}"
    out.print(f"wrote {output}{plans}", soft_wrap=True)


def _explain(search: Path, plan: Path, calibration: str | None, *, as_json: bool) -> None:
    """Print why a plan is not what a search proposes."""
    from moemodel.model.search.explain import in_words

    with SearchProgress() as progress:
        found = api.explain(search, plan, calibration, progress=progress)
    if as_json:
        echo_json_text(found.to_json())
    else:
        echo(in_words(found))


def _check_output(output: Path) -> None:
    """Refuse, before the search, a place that can't be written, and a file that no search has written."""
    from moemodel.model.core.errors import InputError

    if not output.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(output))
    if output.exists() and not _is_result(output):
        raise InputError(f"-o {output}: is there already and is no result of a search; name another file")


def _is_result(path: Path) -> bool:
    """Whether a file is what this command writes, of whatever version."""
    try:
        with path.open("rb") as file:
            return path.is_file() and file.read(len(_FIRST)) == _FIRST
    except OSError:
        return False


def _check_empty(folder: Path) -> None:
    """Refuse a folder in which plans of another search would lie between the new ones."""
    from moemodel.model.core.errors import InputError

    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"--write-plans {folder}: is not empty; name a new folder")


def _named_from(folder: Path, plan: Plan) -> Plan:
    """A plan as it is written in a folder: files that it names are named from there on."""
    from moemodel.model.plan.paths import named_from

    cluster = plan.cluster
    files = {"gpu": named_from(folder, "gpu", cluster.gpu)}
    if isinstance(cluster.internode, str):
        files["internode"] = named_from(folder, "internode", cluster.internode)
    architecture = named_from(folder, "architecture", plan.architecture)
    return plan.model_copy(update={"architecture": architecture, "cluster": cluster.model_copy(update=files)})


@contextmanager
def _plans_written(folder: Path | None, entries: Iterable[Entry]) -> Iterator[None]:
    """A folder of plans, whole or not at all: it takes its name when all is written, and what is inside is done."""
    from moemodel.model.plan.spec import plan_text

    if folder is None:
        yield
        return
    made: Path | None = None
    try:
        with _errors_of(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=TEMPORARY_SUFFIX))
            for entry in entries:
                write_atomic(made / f"plan-{entry.number:02d}.yaml", plan_text(_named_from(folder, entry.plan)))
            made.chmod(0o777 & ~umask())
        yield
        with _errors_of(folder):
            made.replace(folder)  # an empty one gives way
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _errors_of(folder: Path) -> Iterator[None]:
    """What the system says of a temporary folder is about the one that was asked for."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None
