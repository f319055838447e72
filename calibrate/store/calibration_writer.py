"""Write a calibration: plain JSON, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from moemodel.model.core.errors import CalibrationError
from moemodel.model.records.calibration import Calibration


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration as JSON, replacing a file that is there only once the new one is complete.

    Raises:
        CalibrationError: the place cannot be written to.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(calibration.model_dump_json(indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CalibrationError(f"{path}: cannot be written: {error.strerror}") from None
