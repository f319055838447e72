"""`moemodel import`: plans of other programs' argument files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from moemodel.cli.output import bullets, console
from moemodel.model.plan.spec import MOST_GPUS


@click.group("import", short_help="Make a plan of another program's arguments.")
def import_command() -> None:
    """Make a plan of another program's arguments."""


@import_command.command("megatron", short_help="Make a plan of Megatron-LM's arguments.")
@click.argument("arguments", type=click.Path(path_type=Path))
@click.option("--gpu", default="h100-sxm-80gb", show_default=True, help="A known GPU, or a GPU description.")
@click.option("--gpus", type=click.IntRange(min=1, max=MOST_GPUS), default=8, show_default=True, help="How many.")
@click.option("--vocab-size", type=click.IntRange(min=1), help="Words of the tokenizer, where ARGUMENTS don't say.")
@click.option(
    "--model", type=click.Choice(["gpt", "bert", "t5"]), help="What is trained; default: by the script, or gpt."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write into."
)
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
def import_megatron_command(
    arguments: Path,
    gpu: str,
    gpus: int,
    vocab_size: int | None,
    model: Literal["gpt", "bert", "t5"] | None,
    output: Path,
    force: bool,
) -> None:
    """Make a plan and a model of ARGUMENTS: a launch script, a text with --name value, or YAML or JSON of them.

    Nothing in the file is run. Arguments that no plan can say are named, with what is taken in their place.
    """
    from moemodel import api

    found = api.import_megatron(
        arguments, gpu=gpu, gpus=gpus, vocab=vocab_size, model=model, folder=output, overwrite=force
    )
    out = console()
    if found.left_out:
        out.print("No plan can say:", bullets(list(found.left_out)), "")
    if found.unknown:
        out.print("Not known here, left out:", bullets([f"--{name}" for name in found.unknown]), "")
    out.print(f"wrote {found.path}; next: moemodel predict {found.path}", soft_wrap=True, markup=False)
