"""Runs that differ in nothing but their seed are repeats of one cell; cells are called by that in which they differ."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moemodel.model.core.errors import InputError
from moemodel.model.hardware.gpu import read_gpu
from moemodel.validation.compare.equal import Measured
from moemodel.validation.compare.folders import Run
from moemodel.validation.compare.welch import Spread, spread

# What cells are told apart by, first of all; everything else is a setting.
FACTORS = {"backend": "framework", "model": "model", "global_batch": "batch"}
SETTINGS = "settings"
_OF_MODEL = ("model", "architecture", "layers")  # keys that all say which model it is
_APART = ("name", "architecture", "layers", "tokens")  # of a plan: said otherwise, or nothing that is run differently


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Repeats of one thing.

    Attributes:
        label: what tells it from the others that are compared.
        settings: by key, all that was asked for.
        runs: that are done, at equal samples.
    """

    label: str
    settings: Mapping[str, Hashable]
    runs: tuple[Measured, ...]

    def spread(self, quantity: str) -> Spread | None:
        """Of a quantity over the repeats that have it."""
        return spread([run.values[quantity] for run in self.runs if quantity in run.values])

    def phase(self, name: str) -> Spread | None:
        """Of a phase's energy, in J, over the repeats whose meter can tell it."""
        found = [run.phases[name].energy_J for run in self.runs if name in run.phases]
        return spread([energy_J for energy_J in found if energy_J is not None])


def settings_of(run: Run) -> dict[str, Hashable]:
    """All that was asked for of a run but its seed, by key."""
    manifest = run.manifest
    plan = _flat({key: value for key, value in run.plan.model_dump(mode="json").items() if key not in _APART})
    first: dict[str, Hashable] = {"backend": plan.pop("backend"), "model": run.model}
    first["global_batch"] = plan.pop("global_batch")
    return {
        **first,
        "architecture": run.plan.architecture,
        "layers": run.plan.layers,
        **plan,
        "learning_rate": manifest.learning_rate,
        **{f"data.{key}": value for key, value in _flat(manifest.data).items()},
        "warmup_steps": manifest.warmup_steps,
        "gpu": gpu_name(manifest.gpu),
    }


def gpu_name(name: str) -> str:
    """A GPU as its description calls it, whether a driver or a user named it; another name as it is."""
    try:
        return read_gpu(name).name
    except InputError:
        return name


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Hashable]:
    """Keys with their path, and values that can be compared."""
    found: dict[str, Hashable] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list) else value
    return found


def factor_of(key: str) -> str:
    """What a key is of: framework, model, batch, or settings."""
    return FACTORS.get("model" if key in _OF_MODEL else key, SETTINGS)


def order_of(settings: Mapping[str, Hashable], names: Sequence[str]) -> tuple[tuple[bool, float, str], ...]:
    """What cells are sorted by: frameworks of the same model, batch and settings stand beside each other."""
    keys = [name for name in names if name != "backend"] + ["backend"]
    return tuple(_sortable(settings.get(name)) for name in keys)


def _sortable(value: Hashable) -> tuple[bool, float, str]:
    number = isinstance(value, int | float)
    return not number, float(value) if isinstance(value, int | float) else 0.0, "" if number else str(value)


def key_of(settings: Mapping[str, Hashable]) -> Hashable:
    """The same of the same settings."""
    return tuple(sorted((name, repr(value)) for name, value in settings.items()))


def differing(all_settings: Sequence[Mapping[str, Hashable]]) -> list[str]:
    """Keys in which not all are the same, in their order."""
    names = list(dict.fromkeys(name for settings in all_settings for name in settings))
    return [name for name in names if len({repr(settings.get(name)) for settings in all_settings}) > 1]


def telling(all_settings: Sequence[Mapping[str, Hashable]]) -> tuple[list[str], list[str]]:
    """Keys that tell apart what those before them do not, and keys that differ only together with these."""
    told: list[str] = []
    others: list[str] = []
    for name in differing(all_settings):
        more = len({_values(settings, [*told, name]) for settings in all_settings})
        (told if more > len({_values(settings, told) for settings in all_settings}) else others).append(name)
    return told, [name for name in others if name != "architecture"]


def _values(settings: Mapping[str, Hashable], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(repr(settings.get(name)) for name in names)


def label_of(settings: Mapping[str, Hashable], names: Sequence[str]) -> str:
    """What a cell is called: its framework, and in what it differs from others."""
    said = [str(settings["backend"])]
    said += [_said(name, settings.get(name)) for name in names if name != "backend"]
    return ", ".join(part for part in said if part)


def _said(name: str, value: Hashable) -> str:
    if name in ("model", "gpu", "architecture"):
        return str(value)
    short = {"global_batch": "batch", "learning_rate": "rate"}.get(name, name.rpartition(".")[2].replace("_", " "))
    if name == "layers":
        return "all layers" if value is None else f"{value} layers"
    if value is None:
        return f"default {short}"
    if isinstance(value, bool):
        return short if value else f"no {short}"
    return f"{short} {value:g}" if isinstance(value, float) else f"{short} {value}"
