"""Which calibration a command uses: a file, a shipped one by name, or the one of the plan's GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moemodel.model.records.calibration import Calibration


def load_calibration(name_or_file: str | None, gpu: str, *, key: str = "gpu") -> Calibration:
    """The calibration asked for; None: the shipped one of a GPU, which an error calls by `key`.

    Raises:
        CalibrationError: there is none, or the file isn't one.
        InputError: unknown GPU.
    """
    from moemodel.calibration.store.catalogue import list_calibrations, shipped
    from moemodel.model.hardware.gpu import read_gpu
    from moemodel.model.records.calibration import read_calibration

    if name_or_file is None:
        return shipped(read_gpu(gpu, key=key).name)
    if name_or_file in list_calibrations():
        return shipped(name_or_file)
    path = Path(name_or_file)
    return read_calibration(path) if path.suffix == ".json" or path.exists() else shipped(name_or_file)
