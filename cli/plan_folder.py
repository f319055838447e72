"""Folders of plans that commands write, for `moemodel predict`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from moemodel.model.core.files import TEMPORARY_SUFFIX, umask, write_atomic

if TYPE_CHECKING:
    from moemodel.model.plan.spec import Plan


def check_empty(folder: Path, option: str) -> None:
    """Refuse a folder in which what is of another search would lie between the new."""
    from moemodel.model.core.errors import InputError

    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{option} {folder}: is not empty; name a new folder")


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
def plans_written(folder: Path | None, plans: Mapping[str, Plan]) -> Iterator[None]:
    """A folder of plans, whole or not at all: it takes its name when all is written, and what is inside is done.

    Args:
        folder: that is new, or empty; None: nothing is written.
        plans: by the names of their files.
    """
    from moemodel.model.plan.spec import plan_text

    if folder is None:
        yield
        return
    made: Path | None = None
    try:
        with _errors_of(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=TEMPORARY_SUFFIX))
            for name, plan in plans.items():
                write_atomic(made / f"{name}.yaml", plan_text(_named_from(folder, plan)))
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
