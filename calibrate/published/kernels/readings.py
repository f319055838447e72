"""Tables of kernel readings, checked at the door: one kernel of an engine at one shape a row.

A table is a Parquet or CSV file of one of three kinds, told by its columns:

    products    gemm_dtype, m, n, k
    grouped     moe_dtype, num_tokens, hidden_size, inter_size, topk, num_experts, moe_tp_size, moe_ep_size,
                distribution (balanced, or power_law_A)
    attention   attn_dtype, batch_size, isl (rows of a sequence), num_heads, num_key_value_heads, head_dim;
                window_size where there are windows (empty or 0: none)

and in each of them latency_ms and system (a GPU's name); where known kernel_source, software, power_W and
power_limit_W. The names are those of ai-dynamo/aiconfigurator, whose readings `SOURCE` cites.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray
from moemodel.model.core.errors import InputError
from moemodel.model.hardware.gpu import Gpu, list_gpus, read_gpu

SOURCE = "ai-dynamo/aiconfigurator, commit 095f58a (Apache-2.0)"

TABLES = ("gemm.parquet", "moe.parquet", "attention_forward.parquet")  # of that source, one a kind

Family = Literal["products", "grouped", "attention"]

_SIZES: dict[Family, tuple[str, ...]] = {
    "products": ("m", "n", "k"),
    "grouped": ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size"),
    "attention": ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim"),
}
_WORDS: dict[Family, tuple[str, ...]] = {
    "products": ("gemm_dtype",),
    "grouped": ("moe_dtype", "distribution"),
    "attention": ("attn_dtype",),
}
DTYPES: dict[Family, tuple[str, ...]] = {
    "products": ("bfloat16", "fp8", "fp8_block", "nvfp4"),
    "grouped": ("bfloat16", "fp8", "fp8_block", "nvfp4", "w4a8_mxfp4_mxfp8"),
    "attention": ("bfloat16",),
}
# What is left out, as the shapes are that it is left out with: products by their weights, layers by their model and how
# it is divided, attention by its heads.
_SHAPE: dict[Family, tuple[str, ...]] = {
    "products": ("n", "k"),
    "grouped": ("hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size"),
    "attention": ("num_heads", "num_key_value_heads", "head_dim", "window_size"),
}
# The source's names of systems, where they are no alias of a description.
_SYSTEMS = {
    "a100_sxm": "a100-sxm-80gb",
    "h100_sxm": "h100-sxm-80gb",
    "h200_sxm": "h200-sxm-141gb",
    "b200_sxm": "b200-sxm-180gb",
    "b300_sxm": "b300-sxm-288gb",
    "gb200": "gb200-186gb",
    "gb300": "gb300-288gb",
}
_MOST_MS = 1e6  # assumed: a kernel that takes longer than a quarter of an hour is in another unit
_MOST_W = 1e5


@dataclass(frozen=True, kw_only=True)
class Readings:
    """Rows of one kind, one GPU, one data type and one software.

    Attributes:
        family, gpu, dtype: which; `dtype` as the source names it.
        software: and the kernel it ran, in words.
        table: the rows, with every column of the kind; `power_W` is NaN where nobody measured it.
    """

    family: Family
    gpu: str
    dtype: str
    software: str
    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.table)

    @property
    def time_s(self) -> FloatArray:
        """Of each row."""
        return self.table["latency_ms"].to_numpy(np.float64) * 1e-3

    @property
    def power_W(self) -> FloatArray:
        """Mean power while a row's kernel was repeated; NaN: not measured."""
        return self.table["power_W"].to_numpy(np.float64)

    @property
    def limit_W(self) -> float | None:
        """Power limit under which all was repeated; None: bursts, too short for it."""
        limits = self.table["power_limit_W"].dropna()
        return float(limits.median()) if len(limits) else None

    @property
    def source(self) -> str:
        """For a calibration."""
        return f"{len(self)} readings of {self.dtype} with {self.software}, {SOURCE}"

    def column(self, name: str) -> FloatArray:
        """A column of numbers."""
        return self.table[name].to_numpy(np.float64)

    def take(self, rows: BoolArray | IntArray) -> Readings:
        """Some of the rows: a mask, or places."""
        chosen = self.table[rows] if rows.dtype == bool else self.table.iloc[rows]
        return Readings(
            family=self.family,
            gpu=self.gpu,
            dtype=self.dtype,
            software=self.software,
            table=chosen.reset_index(drop=True),
        )

    def fold(self, folds: int) -> IntArray:
        """Which of so many parts the shape of each row falls into, by a hash of it."""
        key = self.table[list(_SHAPE[self.family])].astype(np.int64).astype(str).agg("|".join, axis=1).to_numpy()
        names, place = np.unique(key, return_inverse=True)
        return np.asarray([zlib.crc32(str(name).encode()) % folds for name in names], dtype=np.int64)[place]


def read_readings(paths: Sequence[Path], gpu: Gpu | None = None) -> list[Readings]:
    """All rows of some files of one GPU, or of every GPU that they name; sorted by kind, GPU, data type and software.

    Args:
        paths: of the files.
        gpu: that the rows wanted are of, a preset or a description of one's own; None: all.

    Raises:
        InputError: a file is missing, of none of the kinds, or a value is none that the kind can have: with file,
            column and row; or there is no row of the GPU.
    """
    parts = [part for path in paths for part in _of_table(_read(path), path, gpu)]
    wanted = [part for part in parts if gpu is None or part.gpu == gpu.name]
    if gpu is not None and not wanted:
        found = ", ".join(sorted({part.gpu for part in parts}))
        raise InputError(f"{', '.join(map(str, paths))}: no row of {gpu.name}; there are rows of {found}")
    return sorted(wanted, key=lambda part: (part.family, part.gpu, part.dtype, part.software))


def gpu_of(paths: Sequence[Path], name: str | None) -> Gpu:
    """The GPU that files are to be read for: the one named, or the only one that they have rows of.

    Raises:
        InputError: as `read_readings`; or none is named and they have rows of several.
    """
    if name is not None:
        return read_gpu(name, key="--gpu")
    found = sorted({part.gpu for part in read_readings(paths)})
    if len(found) > 1:
        raise InputError(f"{', '.join(map(str, paths))}: rows of {', '.join(found)}; say which with --gpu")
    return read_gpu(found[0])


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a table of kernel readings, Parquet or CSV")
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no table can be read from it: {str(error).splitlines()[0]}") from None


def _of_table(table: pd.DataFrame, path: Path, own: Gpu | None) -> list[Readings]:
    family = _family(table, path)
    if table.empty:
        raise InputError(f"{path}: no rows")
    table = _checked(table, family, path)
    gpus = {str(name): _gpu(name, table, path, own) for name in table["system"].unique()}
    dtype = _WORDS[family][0]
    return [
        Readings(family=family, gpu=gpus[str(system)], dtype=str(of), software=f"{software}: {kernel}", table=rows)
        for (system, of, software, kernel), rows in table.groupby(["system", dtype, "software", "kernel_source"])
    ]


def _family(table: pd.DataFrame, path: Path) -> Family:
    """Of which kind a table is."""
    common = ("latency_ms", "system")
    lacking = {
        family: [name for name in (*_WORDS[family], *_SIZES[family], *common) if name not in table.columns]
        for family in _SIZES
    }
    family = min(lacking, key=lambda name: len(lacking[name]))
    if lacking[family]:
        raise InputError(
            f"{path}: found columns {', '.join(map(str, table.columns))}; a table of {family} also has "
            f"{', '.join(lacking[family])}"
        )
    return family


def _checked(table: pd.DataFrame, family: Family, path: Path) -> pd.DataFrame:
    """The table with every column of its kind, each value one that can be."""
    table = table.reset_index(drop=True).copy()
    for name in _SIZES[family]:
        table[name] = _numbers(table, name, path, low=1, high=1e9, whole=True)
    table["latency_ms"] = _numbers(table, "latency_ms", path, low=1e-6, high=_MOST_MS)
    for name in ("power_W", "power_limit_W"):
        table[name] = _numbers(table, name, path, low=1.0, high=_MOST_W, empty=np.nan)
    if family == "attention":
        table["window_size"] = _numbers(table, "window_size", path, low=0, high=1e9, whole=True, empty=0.0)
    for name in ("software", "kernel_source"):
        table[name] = table[name].astype(str) if name in table.columns else "unnamed"
    _refuse(~table[_WORDS[family][0]].isin(DTYPES[family]), table, _WORDS[family][0], path, ", ".join(DTYPES[family]))
    if family == "grouped":
        _refuse(~table["distribution"].map(_is_load), table, "distribution", path, "balanced, power_law_A with A > 0")
        shared = table["num_experts"] % table["moe_ep_size"] != 0
        _refuse(shared, table, "moe_ep_size", path, "a divisor of num_experts")
        _refuse(table["topk"] > table["num_experts"], table, "topk", path, "up to num_experts")
    return table


def _numbers(
    table: pd.DataFrame,
    name: str,
    path: Path,
    *,
    low: float,
    high: float,
    whole: bool = False,
    empty: float | None = None,
) -> pd.Series:
    """A column of numbers within bounds; with `empty`, what stands for a value that is missing."""
    if name not in table.columns and empty is not None:
        return pd.Series(empty, index=table.index)
    values = pd.to_numeric(table[name], errors="coerce")
    missing = table[name].isna()
    wrong = ~values.between(low, high) | (whole & (values % 1 != 0))
    wrong &= ~missing if empty is not None else True
    _refuse(wrong, table, name, path, f"{'whole numbers' if whole else 'numbers'} from {low:g} to {high:g}")
    return values.astype(np.float64) if empty is None else values.fillna(empty).astype(np.float64)


def _refuse(wrong: pd.Series, table: pd.DataFrame, name: str, path: Path, allowed: str) -> None:
    if not wrong.any():
        return
    row = int(np.flatnonzero(wrong.to_numpy())[0])
    found = table[name].iloc[row]
    if isinstance(found, float) and found.is_integer():  # whole numbers are shown as they are written
        found = int(found)
    more = f" (and {int(wrong.sum()) - 1} rows more)" if wrong.sum() > 1 else ""
    raise InputError(f"{path}: column {name}, row {row + 1}: found {found}{more}; allowed: {allowed}")


def _is_load(name: object) -> bool:
    word = str(name)
    if word == "balanced":
        return True
    try:
        return word.startswith("power_law_") and 0 < float(word.removeprefix("power_law_")) < 10
    except ValueError:
        return False


def _gpu(system: object, table: pd.DataFrame, path: Path, own: Gpu | None) -> str:
    """The name of the description that a system's name means; `own` may be none of the presets."""
    if own is not None and str(system) in (own.name, *own.aliases):
        return own.name
    name = _SYSTEMS.get(str(system), str(system))
    try:
        return read_gpu(name).name
    except InputError:
        _refuse(table["system"] == system, table, "system", path, f"{', '.join(_SYSTEMS)}, {', '.join(list_gpus())}")
        raise
