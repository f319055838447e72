"""A folder with a plan and its model, made of Megatron-LM's arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moemodel.model.core.errors import InputError
from moemodel.model.core.files import write_atomic
from moemodel.model.core.shown import shown
from moemodel.model.plan.megatron_arguments import Model, megatron_run
from moemodel.model.plan.spec import Plan, plan_text, read_plan

PLAN, MODEL = "plan.yaml", "config.json"


@dataclass(frozen=True, kw_only=True)
class MegatronImport:
    """What became of arguments.

    Attributes:
        plan: as it was written and read again.
        path: of its file.
        left_out: arguments that no plan can say, and what is taken in their place, a sentence each.
        unknown: arguments that nobody here knows.
    """

    plan: Plan
    path: Path
    left_out: tuple[str, ...]
    unknown: tuple[str, ...]


def import_run(
    arguments: Mapping[str, Any],
    folder: Path,
    *,
    gpu: str,
    gpus: int,
    vocab: int | None,
    model: Model | None,
    overwrite: bool,
) -> MegatronImport:
    """Write the plan and the model of a run into a folder.

    Raises:
        InputError: see `megatron_run`; or files of these names are there.
    """
    run = megatron_run(arguments, gpu=gpu, gpus=gpus, vocab=vocab, model=model)
    plan = Plan.model_validate({"name": folder.resolve().name, "architecture": MODEL, **run.plan})
    unknown = tuple(name if name.isprintable() else shown(name) for name in run.unknown)
    remarks = [*run.left_out, *(f"--{name}: not known here, left out" for name in unknown)]
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / MODEL, json.dumps(run.config, indent=1) + "\n", overwrite=overwrite)
    _write(folder / PLAN, "".join(f"# {remark}\n" for remark in remarks) + plan_text(plan), overwrite=overwrite)
    return MegatronImport(plan=read_plan(folder / PLAN), path=folder / PLAN, left_out=run.left_out, unknown=unknown)


def _write(path: Path, text: str, *, overwrite: bool) -> None:
    try:
        write_atomic(path, text, overwrite=overwrite)
    except FileExistsError:
        raise InputError(f"{path}: is there already; allowed: a folder without it, or to overwrite it") from None
