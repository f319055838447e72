"""The tables of a profile in memory: a record a table, of arrays with one element a row.

Their fields are the columns of the rows in `records.profile`. A missing number is NaN, a missing text is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Self, TypeVar

import numpy as np
import pandas as pd

from moemodel.model.core.arrays import FloatArray, StringArray
from moemodel.model.operators.work import Shape
from moemodel.model.records.profile import (
    TABLES,
    AlternatingRow,
    CollectiveRow,
    HostRow,
    OperatorRow,
    OverlapRow,
    PowerRow,
    TableRow,
    ThermalRow,
)


@dataclass(frozen=True, kw_only=True)
class ProfileTable:
    """A table of a profile. Subclasses have a field for each column of `ROW`."""

    ROW: ClassVar[type[TableRow]]

    @classmethod
    def of(cls, frame: pd.DataFrame) -> Self:
        """From a data frame with these columns; what else it has is left out."""
        types = TABLES[cls.ROW.TABLE]
        return cls(**{f.name: _array(frame[f.name], types[f.name]) for f in fields(cls)})

    def frame(self) -> pd.DataFrame:
        """As a data frame, to group its rows."""
        return pd.DataFrame(vars(self))

    def __len__(self) -> int:
        return len(next(iter(vars(self).values())))


def _array(column: pd.Series, kind: str) -> FloatArray | StringArray:
    if kind == "string":
        return column.astype(object).where(column.notna(), "").to_numpy(dtype=np.str_)
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


_Table = TypeVar("_Table", bound=ProfileTable)


def joined(tables: Sequence[_Table]) -> _Table:
    """The rows of several tables, one after another.

    Args:
        tables: of one kind; at least one.
    """
    columns = {name: np.concatenate([vars(table)[name] for table in tables]) for name in vars(tables[0])}
    return type(tables[0])(**columns)


@dataclass(frozen=True, kw_only=True)
class MeasuredOperators(ProfileTable):
    """Operators, by `records.profile.OperatorColumns`, and what the device was like, by `DeviceState`."""

    kind: StringArray
    direction: StringArray
    dtype: StringArray
    m: FloatArray
    n: FloatArray
    k: FloatArray
    batch: FloatArray
    heads: FloatArray
    kv_heads: FloatArray
    seq: FloatArray
    head_dim: FloatArray
    experts: FloatArray
    top_k: FloatArray
    skew: FloatArray
    time_s: FloatArray
    clock_Hz: FloatArray
    clock_reported_Hz: FloatArray
    temperature_C: FloatArray
    wall_s: FloatArray

    @property
    def shape(self) -> Shape:
        """Sizes of every row's operator."""
        return Shape(
            m=self.m,
            n=self.n,
            k=self.k,
            batch=self.batch,
            heads=self.heads,
            kv_heads=self.kv_heads,
            seq=self.seq,
            head_dim=self.head_dim,
            experts=self.experts,
            top_k=self.top_k,
            skew=self.skew,
        )


@dataclass(frozen=True, kw_only=True)
class OperatorTable(MeasuredOperators):
    """See `records.profile.OperatorRow`."""

    ROW = OperatorRow

    sweep: StringArray
    calls: FloatArray
    host_time_s: FloatArray


@dataclass(frozen=True, kw_only=True)
class PowerTable(MeasuredOperators):
    """See `records.profile.PowerRow`."""

    ROW = PowerRow

    load: StringArray
    duty: FloatArray
    duration_s: FloatArray
    energy_J: FloatArray
    power_W: FloatArray
    sm_activity: FloatArray
    sm_occupancy: FloatArray
    tensor_activity: FloatArray
    fp32_activity: FloatArray
    dram_activity: FloatArray


@dataclass(frozen=True, kw_only=True)
class AlternatingTable(ProfileTable):
    """See `records.profile.AlternatingRow`."""

    ROW = AlternatingRow

    load: StringArray
    heavy_s: FloatArray
    light_s: FloatArray
    heavy_clock_Hz: FloatArray
    light_clock_Hz: FloatArray
    light_power_W: FloatArray
    duration_s: FloatArray
    power_W: FloatArray
    clock_reported_Hz: FloatArray
    temperature_C: FloatArray
    wall_s: FloatArray


@dataclass(frozen=True, kw_only=True)
class ThermalTable(ProfileTable):
    """See `records.profile.ThermalRow`."""

    ROW = ThermalRow

    load: StringArray
    elapsed_s: FloatArray
    power_W: FloatArray
    memory_temperature_C: FloatArray
    clock_Hz: FloatArray
    clock_reported_Hz: FloatArray
    temperature_C: FloatArray
    wall_s: FloatArray


@dataclass(frozen=True, kw_only=True)
class HostTable(ProfileTable):
    """See `records.profile.HostRow`."""

    ROW = HostRow

    block: StringArray
    direction: StringArray
    detail: StringArray
    host_time_s: FloatArray
    kernels: FloatArray
    wall_s: FloatArray


@dataclass(frozen=True, kw_only=True)
class CollectiveTable(ProfileTable):
    """See `records.profile.CollectiveRow`."""

    ROW = CollectiveRow

    collective: StringArray
    ranks: FloatArray
    nodes: FloatArray
    size_B: FloatArray
    skew: FloatArray
    calls: FloatArray
    time_s: FloatArray
    host_time_s: FloatArray
    clock_Hz: FloatArray
    held_time_s: FloatArray
    duration_s: FloatArray
    power_W: FloatArray
    held_clock_Hz: FloatArray
    nvlink_tx_Bps: FloatArray
    nvlink_rx_Bps: FloatArray
    temperature_C: FloatArray
    wall_s: FloatArray


@dataclass(frozen=True, kw_only=True)
class OverlapTable(ProfileTable):
    """See `records.profile.OverlapRow`."""

    ROW = OverlapRow

    computation: StringArray
    m: FloatArray
    n: FloatArray
    k: FloatArray
    collective: StringArray
    ranks: FloatArray
    nodes: FloatArray
    size_B: FloatArray
    priority: FloatArray
    calls: FloatArray
    duration_s: FloatArray
    computation_time_s: FloatArray
    collective_time_s: FloatArray
    together_computation_time_s: FloatArray
    together_collective_time_s: FloatArray
    computation_power_W: FloatArray
    collective_power_W: FloatArray
    together_power_W: FloatArray
    computation_clock_Hz: FloatArray
    collective_clock_Hz: FloatArray
    together_clock_Hz: FloatArray
    temperature_C: FloatArray
    wall_s: FloatArray
