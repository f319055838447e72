"""Tables of kernel readings at the door: what is read, and what is said of what isn't."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moemodel.calibration.published.kernels.readings import gpu_of, read_readings
from moemodel.model.core.errors import InputError
from moemodel.model.hardware.gpu import read_gpu

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A file of products of two rows, with some columns otherwise; None: without the column."""

    def written(name: str = "table.csv", **columns: Any) -> Path:
        values: dict[str, Any] = {
            "gemm_dtype": "bfloat16",
            "m": [128, 257],
            "n": [4096, 512],
            "k": [1024, 2048],
            "latency_ms": [0.02, 0.01],
            "system": "h200_sxm",
        }
        table = pd.DataFrame({key: value for key, value in (values | columns).items() if value is not None})
        path = tmp_path / name
        table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False)
        return path

    return written


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_reads_units_and_what_may_be_missing(write: Write, name: str) -> None:
    (table,) = read_readings([write(name)])
    assert (table.family, table.gpu, table.dtype) == ("products", "h200-sxm-141gb", "bfloat16")
    np.testing.assert_allclose(table.time_s, [2e-5, 1e-5])
    assert np.isnan(table.power_W).all()
    assert table.limit_W is None


def test_divides_by_software_and_dtype(write: Write) -> None:
    tables = read_readings([write(gemm_dtype=["bfloat16", "fp8"], software="x 1", power_W=[400.0, None])])
    assert [(table.dtype, len(table)) for table in tables] == [("bfloat16", 1), ("fp8", 1)]
    assert "x 1" in tables[0].source


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"m": [128, -3]}, r"column m, row 2: found -3; allowed: whole numbers from 1 to"),
        ({"n": [128.5, 64]}, r"column n, row 1: found 128\.5; allowed: whole numbers"),
        ({"latency_ms": [0.1, "fast"]}, r"column latency_ms, row 2: found fast; allowed: numbers from"),
        ({"latency_ms": [0.0, 0.0]}, r"column latency_ms, row 1: found 0 \(and 1 rows more\)"),
        ({"gemm_dtype": ["bfloat16", "int3"]}, r"column gemm_dtype, row 2: found int3; allowed: bfloat16, fp8"),
        ({"system": ["h200_sxm", "tpu"]}, r"column system, row 2: found tpu; allowed: a100_sxm"),
        ({"power_W": [400.0, 1e7]}, r"column power_W, row 2: found 10000000; allowed: numbers from 1 to"),
        ({"k": None}, r"a table of products also has k$"),
    ],
)
def test_names_row_and_column(write: Write, columns: dict[str, Any], message: str) -> None:
    path = write(**columns)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: .*{message}"):
        read_readings([path])


def test_layers_whose_experts_are_not_shared_out_evenly(tmp_path: Path) -> None:
    path = tmp_path / "moe.csv"
    row = {"num_tokens": 512, "hidden_size": 64, "inter_size": 32, "topk": 2, "num_experts": 8, "moe_tp_size": 1}
    row |= {"moe_ep_size": 3, "moe_dtype": "bfloat16", "distribution": "balanced", "latency_ms": 1, "system": "gb200"}
    pd.DataFrame([row]).to_csv(path, index=False)
    with pytest.raises(InputError, match="column moe_ep_size, row 1: found 3; allowed: a divisor of num_experts"):
        read_readings([path])


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_readings([tmp_path / "none.csv"])
    (tmp_path / "not.parquet").write_text("text")
    with pytest.raises(InputError, match=r"not\.parquet: no table can be read from it"):
        read_readings([tmp_path / "not.parquet"])


def test_rows_of_several_gpus_need_a_name(write: Write) -> None:
    path = write(system=["h200_sxm", "gb200"])
    with pytest.raises(InputError, match="rows of gb200-186gb, h200-sxm-141gb; say which with --gpu"):
        gpu_of([path], None)
    assert [table.gpu for table in read_readings([path], gpu_of([path], "gb200"))] == ["gb200-186gb"]
    with pytest.raises(InputError, match="no row of h100-sxm-80gb; there are rows of"):
        read_readings([path], read_gpu("h100-sxm-80gb"))


def test_a_shape_lies_in_one_fold_whatever_else_a_row_has(write: Write) -> None:
    (table,) = read_readings([write(m=[1, 64], n=[512, 512], k=[256, 256])])
    assert len(set(table.fold(5).tolist())) == 1
