"""Files that a plan or a search names: beside itself, or else in the working directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from pydantic import PrivateAttr

from moemodel.model.architecture.hf_config import list_architectures
from moemodel.model.core.documents import Strict, parse_data
from moemodel.model.core.files import is_path, is_there
from moemodel.model.frameworks.framework_file import names_framework_file
from moemodel.model.hardware.gpu import is_known_gpu
from moemodel.model.hardware.link import Link, links
from moemodel.model.plan.routing import SKEW_STATES, RoutingSpec

_is_known: dict[str, Callable[[str], bool]] = {
    "architecture": lambda name: name in list_architectures(),
    "gpu": is_known_gpu,
    "internode": lambda name: name in links(),
    "skew": lambda name: name in SKEW_STATES,
    "backend": lambda name: not names_framework_file(name),
}


class _Cluster(Protocol):
    @property
    def gpu(self) -> str: ...
    @property
    def internode(self) -> str | Link: ...
    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Any: ...


class NamesFiles(Strict):
    """A document that names files: a plan or a search."""

    if TYPE_CHECKING:  # fields of both, in places of their own

        @property
        def architecture(self) -> str: ...
        @property
        def backend(self) -> str: ...
        @property
        def cluster(self) -> _Cluster: ...
        @property
        def routing(self) -> RoutingSpec: ...

    _file_notes: tuple[str, ...] = PrivateAttr(default=())

    @property
    def file_notes(self) -> tuple[str, ...]:
        """What has to be said about files that it names, a sentence each."""
        return self._file_notes

    def read_in(self, folder: Path) -> Self:
        """The document with its files by their names from the working directory, and notes on them.

        Args:
            folder: that its file lies in.
        """
        moved, notes = _found_files(self, folder)
        architecture = moved.pop("architecture", self.architecture)
        skew = moved.pop("skew", self.routing.skew)
        routing = self.routing if skew == self.routing.skew else self.routing.model_copy(update={"skew": skew})
        backend = moved.pop("backend", self.backend)
        cluster = self.cluster.model_copy(update=moved)
        changed = self.model_copy(
            update={"architecture": architecture, "backend": backend, "cluster": cluster, "routing": routing}
        )
        if names_framework_file(backend):  # which could not be found before
            named = {"backend": str(Path(backend).expanduser().absolute())}
            changed = parse_data(changed.model_dump() | named, type(self), "backend")
        changed._file_notes = notes
        return changed


def _found_files(document: NamesFiles, folder: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """What a document's names of files mean from the working directory, by key; and what has to be said about them.

    Args:
        document: a plan or a search.
        folder: that its file lies in.

    Returns:
        Those that mean another path than they say; notes, a sentence each.
    """
    named = {
        "architecture": document.architecture,
        "gpu": document.cluster.gpu,
        "internode": document.cluster.internode,
        "skew": document.routing.skew,
        "backend": document.backend,
    }
    moved, notes = {}, []
    for key, name in named.items():
        if not isinstance(name, str) or _is_known[key](name) or not folder.parts:
            continue
        beside = folder / name
        if is_there(beside):
            moved[key] = str(beside)
        elif is_there(Path(name)):
            notes.append(f"{key}: {name} is not beside the file that names it, but in the working directory: taken.")
        elif is_path(name):
            moved[key] = str(beside)  # whoever reads it says that it is missing, and where it should be
    return moved, tuple(notes)


def named_from(folder: Path, key: str, name: str) -> str:
    """How a document in a folder names what is called `name` in the working directory."""
    if _is_known[key](name) or Path(name).is_absolute() or not is_there(Path(name)):
        return name
    return os.path.relpath(name, folder)
