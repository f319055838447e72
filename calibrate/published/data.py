"""Measurements that others published, read from a folder of CSV files; and figures from papers, with their source.

The folder is laid out as `../shared/data` of this project (its README lists every source). Nothing of it is copied into
the project; only parameters fitted to it, and the few figures below, are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.core.errors import InputError

ITERATIONS = "a100-iteration-times/single_node.csv"
ALL_REDUCE = "a100-iteration-times/allreduce/a100"
ACTIVITY = "a100-dvfs/activity_power.csv"
STREAM = "a100-dvfs/stream_rate.csv"
FP64_GEMM = "h100-dvfs/fp64_gemm_locked.csv"

VTRAIN = "VIA-Research/vTrain (MIT; Bang et al., MICRO 2024, arXiv:2312.12391)"
DVFS = "ghazanfarttu/Optimal-GPU-frequency-using-DNN-based-models (BSD-3-Clause)"
FP64_LOCKED = "AyeshaAfzal91/GPU-Energy-Sweetspot (figures only)"

_COLUMNS = ("gpus", "global_batch", "micro_batch", "hidden", "heads", "layers", "seq", "tp", "dp", "pp", "time_ms")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Iteration times of GPT training. N rows; sizes in sequences and tokens."""

    gpus: IntArray
    global_batch: IntArray
    micro_batch: IntArray
    hidden: IntArray
    heads: IntArray
    layers: IntArray
    seq: IntArray
    tp: IntArray
    dp: IntArray
    pp: IntArray
    time_s: FloatArray

    def __len__(self) -> int:
        return int(self.time_s.size)

    def column(self, name: str) -> IntArray:
        """A column by name."""
        values: IntArray = getattr(self, name)
        return values


def read_rows(path: Path) -> Rows:
    """A table of vTrain's repository: one iteration time a row, columns in its order (a leading model size is skipped).

    Raises:
        InputError: the file is missing or has other columns.
    """
    table = _read(path).dropna()
    if len(table.columns) not in (len(_COLUMNS), len(_COLUMNS) + 1):
        raise InputError(f"{path}: found {len(table.columns)} columns; expected {', '.join(_COLUMNS)}")
    table = table.iloc[:, -len(_COLUMNS) :]
    table.columns = list(_COLUMNS)
    sizes = {name: table[name].to_numpy(np.int64) for name in _COLUMNS[:-1]}
    return Rows(**sizes, time_s=table["time_ms"].to_numpy(np.float64) * 1e-3)


@dataclass(frozen=True, kw_only=True)
class AllReduce:
    """Times of one collective. N rows."""

    ranks: FloatArray
    size_B: FloatArray
    time_s: FloatArray


_SIZES = 60  # of the 1,024 in each table, evenly in their logarithm, so that small messages weigh as much as large ones


def read_all_reduce(folder: Path) -> AllReduce:
    """NCCL all-reduces inside a node, `AR_GPUn_1M_1024M_LUT` for n ranks; in-place times.

    Raises:
        InputError: there is no such table in the folder.
    """
    parts = []
    for path in sorted(folder.glob("AR_GPU*_LUT")):
        table = _read(path)
        pick = np.unique(np.round(np.geomspace(1, len(table), _SIZES)).astype(int)) - 1
        ranks = np.full(len(pick), float(path.name.removeprefix("AR_GPU").split("_")[0]))
        rows = table.iloc[pick]
        parts.append(np.stack([ranks, rows.iloc[:, 0].to_numpy(float), rows.iloc[:, 5].to_numpy(float) * 1e-9]))
    if not parts:
        raise InputError(f"{folder}: no all-reduce tables (AR_GPU*_LUT) found")
    ranks, size_B, time_s = np.concatenate(parts, axis=1)
    return AllReduce(ranks=ranks, size_B=size_B, time_s=time_s)


@dataclass(frozen=True, kw_only=True)
class Activities:
    """Programs held at locked clocks: activity counters (shares) and power. N rows."""

    application: list[str]
    clock_Hz: FloatArray
    power_W: FloatArray
    temperature_C: FloatArray
    sm: FloatArray
    tensor: FloatArray
    dram: FloatArray
    fp64: FloatArray
    fp32: FloatArray


def read_activities(path: Path) -> Activities:
    """DCGM activity and power. A counter without a reading counts as idle.

    Raises:
        InputError: the file is missing.
    """
    table = _read(path)
    numbers = {name: table[name].fillna(0.0).to_numpy(np.float64) for name in table.columns if name != "application"}
    return Activities(
        application=[str(name) for name in table["application"]],
        clock_Hz=numbers["sm_clock"] * 1e6,
        power_W=numbers["power_usage"],
        temperature_C=numbers["gpu_temp"],
        sm=numbers["sm_active"],
        tensor=numbers["tensor_activity"],
        dram=numbers["dram_active"],
        fp64=numbers["fp64_active"],
        fp32=numbers["fp32_active"],
    )


def read_stream(path: Path) -> tuple[FloatArray, FloatArray]:
    """SM clocks, Hz, and the bandwidth that a stream benchmark reached at each, B/s.

    Raises:
        InputError: the file is missing.
    """
    table = _read(path)
    return table["dvfs"].to_numpy(np.float64) * 1e6, table["bandwidth"].to_numpy(np.float64) * 1e9


def read_fp64_gemm(path: Path) -> tuple[FloatArray, FloatArray]:
    """Locked SM clocks, Hz, and the power of an H100 in an FP64 product at each, W; rows at a power cap are left out.

    Raises:
        InputError: the file is missing.
    """
    table = _read(path)
    free = table[~table["note"].str.contains("cap")]
    return free["locked_MHz"].to_numpy(np.float64) * 1e6, free["mean_W_tail_of_run"].to_numpy(np.float64)


def _read(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise InputError(f"{path}: no such file; give the folder that holds the published data")
    return pd.read_csv(path, encoding="utf-8-sig")
