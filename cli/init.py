"""`moemodel init`: write a commented plan that predicts as it stands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import click

from moemodel.cli.output import echo
from moemodel.model.core.files import write_atomic
from moemodel.model.plan.spec import MOST_GPUS

if TYPE_CHECKING:
    from moemodel.model.plan.spec import Plan

_COMMENTS = 36  # column
_TEMPLATE = Path(__file__).parent / "templates" / "plan.yaml"


@click.command("init")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), default=Path("plan.yaml"))
@click.option("--architecture", default="olmoe-1b-7b", show_default=True, help="A known one, or a config.json.")
@click.option("--gpu", default="h100-sxm-80gb", show_default=True, help="A known GPU, or a GPU description.")
@click.option("--gpus", type=click.IntRange(min=1, max=MOST_GPUS), default=8, show_default=True)
@click.option("--calibration", metavar="NAME|FILE", help="To check that the plan fits.  [default: of the GPU]")
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
def init_command(output: Path, architecture: str, gpu: str, gpus: int, calibration: str | None, force: bool) -> None:
    """Write a commented plan that fits in memory. It is a start, not an optimum."""
    from moemodel.calibration.store.catalogue import load_calibration
    from moemodel.model.core.errors import InputError
    from moemodel.model.search.baseline import baseline_plan

    plan = baseline_plan(architecture, gpu, gpus, load_calibration(calibration, gpu, key="--gpu"))
    try:
        write_atomic(output, _document(plan, gpu, output.parent), overwrite=force)
    except FileExistsError:
        raise InputError(
            f"{output}: is there already; choose another name with -o, or overwrite with --force"
        ) from None
    echo(f"wrote {output}; next: moemodel predict {output}")


def _document(plan: Plan, gpu: str, folder: Path) -> str:
    """The template with a plan's values in it; files are named from the plan's folder on."""
    from moemodel.model.hardware.gpu import is_known_gpu
    from moemodel.model.hardware.link import links
    from moemodel.model.plan.paths import named_from

    p = plan.parallel
    values: dict[str, object] = {
        "name": _scalar(plan.name),
        "architecture": _scalar(named_from(folder, "architecture", plan.architecture)),
        "sequence_length": plan.sequence_length,
        "global_batch": plan.global_batch,
        "micro_batch": plan.micro_batch,
        "recompute": plan.recompute,
        "gpu": _scalar(plan.cluster.gpu if is_known_gpu(gpu) else named_from(folder, "gpu", gpu)),
        "gpus": plan.cluster.gpus,
        "internodes": " | ".join(name for name in sorted(links()) if name != plan.cluster.internode),
        "dp": p.dp,
        "tp": p.tp,
        "pp": p.pp,
        "ep": p.ep,
        "zero_stage": p.zero_stage,
        "sequence_parallel": "true" if p.sequence_parallel else "false",
        "tokens": "null" if plan.tokens is None else f"{plan.tokens:.3g}",
    }
    lines = (_aligned(line, values) for line in _TEMPLATE.read_text(encoding="utf-8").splitlines())
    return "".join(f"{line}\n" for line in lines)


def _scalar(text: str) -> str:
    """A name as YAML has it: in quotes where it would be read as something else."""
    import yaml

    return yaml.safe_dump(text, allow_unicode=True, width=10_000).removesuffix("...\n").strip()


def _aligned(line: str, values: Mapping[str, object]) -> str:
    """A line of the template with its values; a comment behind a key stands in the column of the others."""
    key, mark, comment = (Template(part).substitute(values) for part in line.partition(" # "))
    return f"{key.rstrip():<{_COMMENTS - 1}} # {comment.strip()}" if mark and key.strip() else f"{key}{mark}{comment}"
