"""The benchmark against kernel readings, as its users run it; its aims where the published data are at hand."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

DATA = Path(__file__).parents[3] / "shared" / "data"
Started = Callable[..., subprocess.CompletedProcess[str]]
AIMS = {"products": 0.05, "attention": 0.07}  # median error of shapes left out


def test_without_data_it_says_so(tmp_path: Path, run_bench: Started) -> None:
    done = run_bench("kernels.py", "--json", "--data", tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["skipped"].startswith(f"skipped: {tmp_path / 'kernels'} lacks gemm.parquet")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the published data are not at {DATA}")
def test_holds_its_aims_on_an_a100(rerun_bench: Started) -> None:
    done = rerun_bench("kernels.py", "--json", "--gpu", "a100", "--data", DATA)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name.split()[1] for name in found} == {"products", "grouped", "attention"}
    for family, aim in AIMS.items():
        figures = found[f"a100-sxm-80gb {family}"]
        assert 0 < figures["time_median"] <= aim, family
        assert figures["rows"] > 200
