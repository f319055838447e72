"""The published iteration times of A100: the machine they are of, and what is left out of a fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moemodel.calibration.published.data import ALL_REDUCE, read_all_reduce
from moemodel.calibration.published.vtrain import Cluster, StepFitter, fit_links
from moemodel.model.core.arrays import FloatArray
from moemodel.model.hardware.gpu import read_gpu

COUNTED = ("gpus", "layers", "dp", "pp", "micro_batch")  # factors whose every level is left out in turn
_GPU = "a100-sxm-80gb"


def cluster_of(folder: Path) -> Cluster:
    """The machine of the rows, its links fitted to the all-reduce tables alone."""
    gpu = read_gpu(_GPU)
    return Cluster(gpu=gpu, links=fit_links(read_all_reduce(folder / ALL_REDUCE), gpu.nvlink_Bps or 1.0))


def left_out(fitter: StepFitter, levels: NDArray[np.int64]) -> dict[int, FloatArray]:
    """For each level, predicted time over measured time of its rows, by a fit that left them out."""
    ratios = {}
    for level in np.unique(levels):
        rows = levels == level
        constants = fitter.fit(~rows)
        ratios[int(level)] = (fitter.time_s(constants) / fitter.measured_s)[rows]
    return ratios


def errors(ratios: dict[int, FloatArray]) -> FloatArray:
    """Absolute relative errors of all rows of a factor."""
    return np.asarray(np.abs(np.concatenate(list(ratios.values())) - 1))
