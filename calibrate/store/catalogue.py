"""The calibrations that ship: one JSON file each in `shipped/`, named like the GPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from moemodel.model.core.errors import CalibrationError, InputError
from moemodel.model.core.suggest import unknown
from moemodel.model.hardware.gpu import list_gpus
from moemodel.model.records.calibration import Calibration, read_calibration

_SHIPPED = Path(__file__).parents[1] / "shipped"


def list_calibrations() -> tuple[str, ...]:
    """Names of the calibrations that ship, sorted."""
    return tuple(sorted(path.stem for path in _SHIPPED.glob("*.json")))


@cache
def shipped(name: str) -> Calibration:
    """A calibration that ships.

    Raises:
        CalibrationError: there is none of that name; the message lists those there are, and how to make one.
    """
    if name in list_gpus() and name not in list_calibrations():
        raise CalibrationError(
            f"there is no calibration of {name}; those that ship: {', '.join(list_calibrations())}. Make one: run "
            "`moemodel profile` on that GPU, then `moemodel calibrate`, and name its file with --calibration"
        )
    if name not in list_calibrations():
        error: InputError = unknown(
            "calibration", name, list_calibrations(), or_else="the file that `moemodel calibrate` wrote"
        )
        raise CalibrationError(f"{error}. `moemodel profile` and `moemodel calibrate` make one of your own GPU")
    return read_calibration(_SHIPPED / f"{name}.json")
