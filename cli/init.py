"""`moemodel init`: write a commented plan that predicts as it stands."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import click

from moemodel.model.core.files import write_atomic

if TYPE_CHECKING:
    from moemodel.model.plan.spec import Plan

_COMMENTS = 36  # column
_TEMPLATE = Path(__file__).parent / "templates" / "plan.yaml"


@click.command("init")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), default=Path("plan.yaml"))
@click.option("--architecture", default="olmoe-1b-7b", show_default=True, help="A known one, or a config.json.")
@click.option("--gpu", default="h100-sxm-80gb", show_default=True, help="A known GPU, or a GPU description.")
@click.option("--gpus", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--calibration", metavar="NAME|FILE", help="To check that the plan fits.  [default: of the GPU]")
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
def init_command(output: Path, architecture: str, gpu: str, gpus: int, calibration: str | None, force: bool) -> None:
    """Write a commented plan that fits in memory. It is a start, not an optimum."""
    from moemodel.calibration.store.catalogue import load_calibration
    from moemodel.model.core.errors import InputError
    from moemodel.model.search.baseline import baseline_plan

    plan = baseline_plan(architecture, gpu, gpus, load_calibration(calibration, gpu, key="--gpu"))
    try:
        write_atomic(output, _document(plan), overwrite=force)
    except FileExistsError:
        raise InputError(
            f"{output}: is there already; choose another name with -o, or overwrite with --force"
        ) from None
    click.echo(f"wrote {output}; next: moemodel predict {output}")


def _document(plan: Plan) -> str:
    """The template with a plan's values in it."""
    from moemodel.model.hardware.link import links

    p = plan.parallel
    text = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=plan.name,
        architecture=plan.architecture,
        sequence_length=plan.sequence_length,
        global_batch=plan.global_batch,
        micro_batch=plan.micro_batch,
        recompute=plan.recompute,
        gpu=plan.cluster.gpu,
        gpus=plan.cluster.gpus,
        internodes=" | ".join(name for name in sorted(links()) if name != plan.cluster.internode),
        dp=p.dp,
        tp=p.tp,
        pp=p.pp,
        ep=p.ep,
        zero_stage=p.zero_stage,
        sequence_parallel="true" if p.sequence_parallel else "false",
        tokens="null" if plan.tokens is None else f"{plan.tokens:.3g}",
    )
    return "".join(f"{_aligned(line)}\n" for line in text.splitlines())


def _aligned(line: str) -> str:
    """A line with its comment, if it has one behind a key, in the column of the others."""
    key, mark, comment = line.partition(" # ")
    return f"{key.rstrip():<{_COMMENTS}}# {comment.strip()}" if mark and key.strip() else line
