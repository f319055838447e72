"""`moemodel run`: train what a document asks for, run by run."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import click

from moemodel import api
from moemodel.cli.output import Finite, console, digits, echo, echo_json, table

if TYPE_CHECKING:
    from rich.progress import Progress as RichBar
    from rich.progress import TaskID

    from moemodel.model.records.run import RunResult
    from moemodel.model.results.outcome import Outcome
    from moemodel.profiler.runs.execute import MatrixResult, Progress

_FAILED = 3  # exit code: some run failed


@click.command("run", short_help="Train models under their frameworks, and keep what each run did.")
@click.argument("document", type=click.Path(path_type=Path, dir_okay=False), metavar="RUN.yaml")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="Folder.  [default: the document's name]"
)
@click.option("--gpu", help="The GPU that is here, such as h100, or cpu, in the plans' place.")
@click.option(
    "--calibration",
    metavar="NAME|FILE",
    help="Of the predictions beside the runs.  [default: the one that ships for each plan's GPU]",
)
@click.option(
    "--launcher",
    type=click.Choice(["local", "slurm", "submitit"]),
    default="local",
    show_default=True,
    help="What starts the processes: this one, on this machine; srun, inside a Slurm allocation; or Slurm, which is "
    "handed a job a run.",
)
@click.option("--slurm", multiple=True, metavar="KEY=VALUE", help="Of submitit's jobs, such as partition=gpu, time=30.")
@click.option(
    "--timeout",
    type=Finite(min=1),
    default=240.0,
    show_default=True,
    help="Seconds without progress after which a run is ended.",
)
@click.option("--only", multiple=True, metavar="NAME", help="Only this run of the matrix; several times for several.")
@click.option("--predict", "predict_only", is_flag=True, help="Print what is predicted of every run, and run none.")
@click.option("--json", "as_json", is_flag=True, help="Print the results, instead of a table.")
def run_command(
    document: Path,
    output: Path | None,
    gpu: str | None,
    calibration: str | None,
    launcher: Literal["local", "slurm", "submitit"],
    slurm: tuple[str, ...],
    timeout: float,
    only: tuple[str, ...],
    predict_only: bool,
    as_json: bool,
) -> None:
    """Train what RUN.yaml asks for, run by run; what is done already is left as it is.

    Each run has a folder: what was asked, what was predicted before it began, its steps, losses, routing and energy. No
    setting of a GPU is changed. Exit code 3: some run failed; out of memory is a result.
    """
    if predict_only:
        _print_predicted(api.predict_runs(document, gpu=gpu, calibration=calibration), as_json=as_json)
        return
    if launcher == "submitit":
        _submit(document, output, slurm, only, _passed_on(gpu, calibration, timeout))
        return
    if slurm:
        raise click.UsageError("--slurm is for --launcher submitit")
    with _Shown() as shown:
        result = api.run(
            document,
            output,
            gpu=gpu,
            calibration=calibration,
            launcher=launcher,
            timeout_s=timeout,
            only=only,
            progress=shown,
        )
    if as_json:
        echo_json({name: json.loads(one.model_dump_json()) for name, one in result.results.items()})
    else:
        _print(result)
    if result.failed:
        raise click.exceptions.Exit(_FAILED)


def _print_predicted(answers: Mapping[str, Outcome], *, as_json: bool) -> None:
    if as_json:
        echo_json({name: answer.to_json() for name, answer in answers.items()})
        return
    heads = ("step ms", "energy J", "GB")
    made = table("Run", "", *heads, numbers=heads)
    for name, one in answers.items():
        figures = (one.step_time_s.value * 1e3, one.energy.gpu_J.value, one.memory_B.value * 1e-9)
        made.add_row(name, one.verdict, *(digits(value) if math.isfinite(value) else "" for value in figures))
    console().print(made)


def _passed_on(gpu: str | None, calibration: str | None, timeout: float) -> list[str]:
    """Options for the command in a job."""
    given = {"--gpu": gpu, "--calibration": calibration, "--timeout": f"{timeout:g}"}
    return [word for option, value in given.items() if value is not None for word in (option, value)]


def _submit(
    document: Path, output: Path | None, slurm: tuple[str, ...], only: tuple[str, ...], arguments: list[str]
) -> None:
    from moemodel.profiler.runs.document import read_run
    from moemodel.profiler.runs.submit import submit_matrix

    wrong = [pair for pair in slurm if "=" not in pair]
    if wrong:
        raise click.UsageError(f"--slurm {wrong[0]}: allowed: KEY=VALUE, such as partition=gpu")
    parameters = {key: value for key, _, value in (pair.partition("=") for pair in slurm)}
    folder = output or Path(read_run(document).name)
    found = submit_matrix(document, folder, arguments=arguments, parameters=parameters, only=only)
    for one in found:
        echo(f"{one.name}: job {one.job}")
    echo(f"{folder}: {len(found)} submitted; run the same command again to submit what failed")


class _Shown:
    """How far a matrix is, on standard error: a line a run, and on a terminal a bar."""

    def __init__(self) -> None:
        self._bar: RichBar | None = None
        self._task: TaskID | None = None
        self._told = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, now: Progress) -> None:
        """What happens now."""
        place = f"{now.cell.name}, run {now.number} of {now.cells}"
        if now.result is not None:
            done = "done before" if now.skipped and now.result.status == "done" else now.result.status
            reason = f": {now.result.reason}" if now.result.reason else ""
            echo(f"{place}: {done}{reason}", err=True)
        elif self._told != now.cell.name:
            self._told = now.cell.name
            echo(f"{place}: started", err=True)
        if sys.stderr.isatty():
            self._show(now)

    def _show(self, now: Progress) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self._bar is None:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=None)
            self._bar.start()
        assert self._task is not None
        of = now.cell.steps
        done = (now.number - 1) * of + (of if now.result is not None else now.steps)
        self._bar.update(self._task, completed=done, total=now.cells * of, description=now.cell.name)


def _print(result: MatrixResult) -> None:
    heads = ("step ms", "+-", "energy J", "GB", "loss")
    made = table("Run", "", *heads, numbers=heads)
    for name, one in result.results.items():
        made.add_row(name, one.status, *_cells(one))
    out = console()
    out.print(made)
    for name, one in result.results.items():
        if one.reason:
            largest = f"; the largest part of its memory is {one.largest_term}" if one.largest_term else ""
            out.print(f"{name}: {one.reason}{largest}", soft_wrap=True)
    out.print(f"{result.folder}: compare them by `moemodel compare {result.folder}`", soft_wrap=True)


def _cells(one: RunResult) -> tuple[str, ...]:
    if one.status != "done":
        return ("",) * 5
    step = None if one.step_time_s is None else one.step_time_s * 1e3
    spread = None if not one.step_time_s or one.step_time_std_s is None else one.step_time_std_s / one.step_time_s
    peaks_B = [rank.peak_allocated_B for rank in one.ranks if rank.peak_allocated_B is not None]
    return (
        "" if step is None else digits(step),
        "" if spread is None else f"{spread:.1%}",
        "" if one.energy_J is None else digits(one.energy_J),
        digits(max(peaks_B) * 1e-9) if peaks_B else "",
        "" if one.task_loss_last is None else f"{one.task_loss_last:.3f}",
    )
