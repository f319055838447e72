"""`moemodel init`: write a commented plan that predicts as it stands, or a commented search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
_TEMPLATES = Path(__file__).parent / "templates"
# A first search has some of each choice, so that it takes seconds; tp stays within a node.
_DEGREES = (1, 2, 4, 8)
_MICRO_BATCHES = (1, 2, 4, 8)


@click.command("init", short_help="Write a commented plan, or a commented search.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write.  [default: plan.yaml; search.yaml with --search]",
)
@click.option("--search", is_flag=True, help="Write a search for `moemodel optimize` instead of a plan.")
@click.option("--architecture", default="olmoe-1b-7b", show_default=True, help="A known one, or a config.json.")
@click.option("--gpu", default="h100-sxm-80gb", show_default=True, help="A known GPU, or a GPU description.")
@click.option(
    "--gpus", type=click.IntRange(min=1, max=MOST_GPUS), default=8, show_default=True, help="How many of them to use."
)
@click.option("--calibration", metavar="NAME|FILE", help="To check that the plan fits.  [default: of the GPU]")
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
def init_command(
    output: Path | None,
    search: bool,
    architecture: str,
    gpu: str,
    gpus: int,
    calibration: str | None,
    force: bool,
) -> None:
    """Write a commented plan that fits in memory, or a commented search. A plan is a start, not an optimum."""
    from moemodel.calibration.store.catalogue import calibration_or_stand_in, derived_from, list_calibrations
    from moemodel.model.core.errors import InputError
    from moemodel.model.hardware.gpu import read_gpu
    from moemodel.model.search.baseline import baseline_plan

    name = read_gpu(gpu, key="--gpu").name
    described = read_gpu(gpu, key="--gpu")
    has_none = calibration is None and described.name not in list_calibrations()
    derived = derived_from(described) if has_none else None
    missing = has_none and derived is None
    plan = baseline_plan(architecture, gpu, gpus, calibration_or_stand_in(calibration, gpu, key="--gpu"))
    path = output or Path("search.yaml" if search else "plan.yaml")
    values = _values(plan, gpu, path.parent) | (_choices(plan) if search else {})
    try:
        write_atomic(path, _document("search.yaml" if search else "plan.yaml", values), overwrite=force)
    except FileExistsError:
        raise InputError(f"{path}: is there already; choose another name with -o, or overwrite with --force") from None
    command = "optimize" if search else "predict"
    if missing:
        known = "memory, FLOPs, bytes and volumes of communication"
        without = "" if search else f"moemodel predict {path} gives {known} without one. "
        echo(
            f"wrote {path}\nNo calibration of {name} ships, and times and energies need one. {without}"
            "On a machine with that GPU:\n"
            f"    moemodel profile --gpu {name} -o my-profile\n    moemodel calibrate my-profile -o mine.json\n"
            f"    moemodel {command} {path} --calibration mine.json"
        )
        return
    given = "" if calibration is None else f" --calibration {calibration}"
    echo(f"wrote {path}; next: moemodel {command} {path}{given}")
    if derived is not None:
        echo(
            f"No calibration of {name} ships: times and energies are derived from {derived.name}'s, with intervals as "
            "wide as that has proved wrong. `moemodel profile` on that GPU and `moemodel calibrate` make one of its own"
        )


def _values(plan: Plan, gpu: str, folder: Path) -> dict[str, object]:
    """What a template asks for; files are named from the document's folder on."""
    from moemodel.model.hardware.gpu import is_known_gpu
    from moemodel.model.hardware.link import links
    from moemodel.model.plan.paths import named_from

    p = plan.parallel
    return {
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


def _choices(plan: Plan) -> dict[str, object]:
    """Lists of a search's choices, what the plan chose always among them."""
    p, gpus = plan.parallel, plan.cluster.gpus
    degrees = [degree for degree in _DEGREES if gpus % degree == 0]
    batches = [size for size in _MICRO_BATCHES if plan.global_batch % size == 0]
    return {
        "tps": _list(degrees, p.tp),
        "pps": _list(degrees, p.pp),
        "micro_batches": _list(batches, plan.micro_batch),
        "half": max(gpus // 2, 1),
    }


def _list(values: Iterable[int], always: int) -> str:
    return f"[{', '.join(str(value) for value in sorted({*values, always}))}]"


def _document(template: str, values: Mapping[str, object]) -> str:
    """A template with values in it."""
    lines = (_TEMPLATES / template).read_text(encoding="utf-8").splitlines()
    return "".join(f"{_aligned(line, values)}\n" for line in lines)


def _scalar(text: str) -> str:
    """A name as YAML has it: in quotes where it would be read as something else."""
    import yaml

    return yaml.safe_dump(text, allow_unicode=True, width=10_000).removesuffix("...\n").strip()


def _aligned(line: str, values: Mapping[str, object]) -> str:
    """A line of the template with its values; a comment behind a key stands in the column of the others."""
    key, mark, comment = (Template(part).substitute(values) for part in line.partition(" # "))
    return f"{key.rstrip():<{_COMMENTS - 1}} # {comment.strip()}" if mark and key.strip() else f"{key}{mark}{comment}"
