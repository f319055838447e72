"""The environment of processes that are started: they find the modules that this one found, no others. No torch here.

Python puts the working directory, or the folder of a script, before all else. What lies there is data (a plan, a
config.json, somebody's notes), not code: a `yaml.py` there must not be run by a process that nobody sees.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import moemodel

_PATH = "PYTHONPATH"


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for processes that run modules of this package by `python -P -m`.

    Args:
        environment: of this process. What its PYTHONPATH names stays, be it the working directory.
    """
    path = os.pathsep.join(module_path(sys.path, environment))
    return {**environment, _PATH: path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}


def module_path(path: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Where modules are looked for, without the working directory, unless PYTHONPATH asks for that by name.

    Where this package itself lies in the working directory (a checkout that is not installed), that comes last, and so
    hides no other module.

    Args:
        path: of this process, as `sys.path`.
        environment: of this process.
    """
    asked = {_real(entry) for entry in environment.get(_PATH, "").split(os.pathsep) if entry}
    here = _real("")
    kept = [entry for entry in path if entry and (_real(entry) != here or here in asked)]
    package = str(Path(moemodel.__file__).resolve().parents[1])
    last = [] if any(_real(entry) == _real(package) for entry in kept) else [package]
    return list(dict.fromkeys([*kept, *last]))


def _real(entry: str) -> str:
    return os.path.realpath(entry or os.curdir)
