"""Typed tables: the columns that the schema has, missing readings marked, rows of several put together."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pandas as pd
import pytest

from moemodel.calibration.store.profile_tables import (
    AlternatingTable,
    CollectiveTable,
    HostTable,
    OperatorTable,
    OverlapTable,
    PowerTable,
    ProfileTable,
    ThermalTable,
    joined,
)
from moemodel.model.records.profile import TABLES

EVERY = (AlternatingTable, CollectiveTable, HostTable, OperatorTable, OverlapTable, PowerTable, ThermalTable)


@pytest.mark.parametrize("table", EVERY)
def test_a_table_has_the_columns_of_its_rows(table: type[ProfileTable]) -> None:
    schema = TABLES[table.ROW.TABLE]
    assert sorted(f.name for f in fields(table)) == sorted(schema)
    for f in fields(table):
        assert f.type == ("StringArray" if schema[f.name] == "string" else "FloatArray"), f.name


@pytest.mark.parametrize("table", EVERY)
def test_a_section_that_was_not_measured_has_no_rows(table: type[ProfileTable]) -> None:
    empty = table.of(pd.DataFrame(columns=list(TABLES[table.ROW.TABLE])))
    assert len(empty) == 0
    assert len(joined([empty, empty])) == 0


def _host(*rows: dict[str, object]) -> HostTable:
    return HostTable.of(pd.DataFrame(rows, columns=list(TABLES["host"])))


def test_what_is_missing_is_nan_or_empty() -> None:
    table = _host({"block": "step", "host_time_s": 2e-3, "kernels": None}, {"detail": "gated", "kernels": 7})
    assert (table.block.tolist(), table.detail.tolist()) == (["step", ""], ["", "gated"])
    assert np.isnan(table.kernels[0])
    assert table.kernels[1] == 7.0
    assert np.isnan(table.wall_s).all()


def test_tables_are_put_together_in_their_order() -> None:
    both = joined([_host({"block": "a", "host_time_s": 1.0}), _host({"block": "longer", "host_time_s": 2.0})])
    assert both.block.tolist() == ["a", "longer"]
    assert both.host_time_s.tolist() == [1.0, 2.0]
    assert both.frame()["block"].tolist() == ["a", "longer"]
