"""What was predicted of a run before it began, out of `predicted.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moemodel.model.core.documents import load_json
from moemodel.model.core.errors import InputError
from moemodel.model.core.shown import shown

# Quantity -> where it stands in what `moemodel predict --json` prints; of one step.
_PLACES = {
    "step_time": ("step", "step_time_s"),
    "energy": ("step", "gpu_energy_J"),
    "memory": ("memory", "peak_B"),
}
PHASES = ("forward", "backward", "optimizer")
_APART = ("communication", "idle")  # phases of a prediction that a run has inside the others


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A predicted figure, and its 90 % interval where there is one."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What was predicted of one step.

    Attributes:
        values: by quantity: step time in s, energy of all GPUs in J, peak memory in B.
        phases: by name, energy of all GPUs in J, without exposed communication and idle time.
        apart_J: the energy of exposed communication and idle time.
        calibration: it rests on; None: on none, which tells memory alone.
        gpu: that it was predicted for.
    """

    values: Mapping[str, Expected]
    phases: Mapping[str, float]
    apart_J: float
    calibration: str | None
    gpu: str | None


def read_forecast(file: Path) -> Forecast:
    """What a run's folder has of it; what it does not say is left out.

    Raises:
        InputError: no JSON object, or something else than a number where one belongs.
    """
    data = load_json(file)
    if not isinstance(data, dict):
        raise InputError(f"{file}: found {shown(data)}; allowed: what `moemodel predict --json` prints")
    expected = {name: _expected(data, path, file) for name, path in _PLACES.items()}
    energies_J = {
        name: _number(data, ("phases", name, "energy_J"), file) for name in (*PHASES, "communication", "idle")
    }
    return Forecast(
        values={name: one for name, one in expected.items() if one is not None},
        phases={name: energy_J for name in PHASES if (energy_J := energies_J[name]) is not None},
        apart_J=sum(energies_J[name] or 0.0 for name in _APART),
        calibration=_text(data, "calibration", file),
        gpu=_text(data, "gpu", file),
    )


def _expected(data: Mapping[str, Any], path: tuple[str, ...], file: Path) -> Expected | None:
    value = _number(data, (*path, "value"), file)
    if value is None:
        return None
    found = _at(data, (*path, "interval"), file)
    if found is None:
        return Expected(value=value)
    if not isinstance(found, list) or len(found) != 2 or not all(_is_number(edge) for edge in found):
        raise InputError(f"{file}: {'.'.join(path)}.interval: found {shown(found)}; allowed: two numbers, or null")
    return Expected(value=value, interval=(float(found[0]), float(found[1])))


def _number(data: Mapping[str, Any], path: tuple[str, ...], file: Path) -> float | None:
    found = _at(data, path, file)
    if found is None:
        return None
    if not _is_number(found):
        raise InputError(f"{file}: {'.'.join(path)}: found {shown(found)}; allowed: a number, or null")
    return float(found)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _at(data: Any, path: tuple[str, ...], file: Path) -> Any:
    """What stands at a place; None where nothing does."""
    for depth, key in enumerate(path):
        if data is None:
            return None
        if not isinstance(data, dict):
            raise InputError(f"{file}: {'.'.join(path[:depth])}: found {shown(data)}; allowed: an object, or null")
        data = data.get(key)
    return data


def _text(data: Mapping[str, Any], key: str, file: Path) -> str | None:
    found = data.get(key)
    if found is not None and not isinstance(found, str):
        raise InputError(f"{file}: {key}: found {shown(found)}; allowed: a text, or null")
    return found
