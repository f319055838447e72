"""Devices that obey the model with known parameters, and the profiles that would be measured on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from moemodel.calibration.fit.operators import Observations, observations
from moemodel.calibration.store.profile_reader import read_table
from moemodel.calibration.store.profile_tables import OperatorTable
from moemodel.cli import main
from moemodel.model.device.roofline import RooflineChip, parts, time_at
from moemodel.model.operators.work import SHAPE_FIELDS, Kind, Pass, Shape
from moemodel.model.records.profile import MANIFEST, TABLES
from moemodel.profiler.store.profile_writer import arrow_schema

COMMITTED = Path(__file__).parents[2] / "calibrate" / "profiles" / "h100-sxm-80gb-second"
WHOLE = [  # operators and passes that `thin_profiles` keeps
    ("gemm", "forward"),
    ("grouped_gemm", "forward"),
    ("attention", "backward"),
    ("cross_entropy", "backward"),
    ("permute", "forward"),
    ("rms_norm", "forward"),
    ("adamw_mixed", "step"),
]


@pytest.fixture(scope="session")
def chip() -> RooflineChip:
    """An H100."""
    return RooflineChip(
        multiprocessors=132, flops_per_cycle=4096, bandwidth_Bps=3.35e12, l2_B=52428800, clock_Hz=1.98e9
    )


@pytest.fixture(scope="session")
def committed() -> Path:
    """The profile of an H100 that ships."""
    return COMMITTED


Measure = Callable[..., pd.DataFrame]


@pytest.fixture(scope="session")
def measure(chip: RooflineChip) -> Measure:
    """The `operators` table of a device that obeys the model: each shape at each clock, a few samples a point."""

    def run(
        kind: Kind,
        direction: Pass,
        parameters: Mapping[str, float],
        shape: Shape,
        clocks_Hz: Sequence[float],
        *,
        noise: float = 0.0,
        samples: int = 3,
        seed: int = 0,
    ) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        compute_s, memory_s = parts(kind, direction, dict(parameters), chip, shape)
        columns = {n: np.broadcast_to(v, compute_s.shape) for n, v in shape.arrays().items()}
        tables = []
        for clock_Hz in np.repeat(clocks_Hz, samples):
            slowdown = np.asarray(chip.clock_Hz / clock_Hz)
            time_s = time_at(dict(parameters), compute_s, memory_s, slowdown)
            time_s = time_s * np.exp(noise * rng.standard_normal(time_s.shape))
            tables.append(
                pd.DataFrame(columns).assign(time_s=time_s, clock_Hz=clock_Hz, sweep=f"at {clock_Hz / 1e6:g}")
            )
        table = pd.concat(tables, ignore_index=True)
        fixed: dict[str, Any] = {
            "kind": str(kind),
            "direction": str(direction),
            "dtype": "bf16",
            "calls": 1,
            "host_time_s": 5e-6,
        }
        table = table.assign(**fixed, clock_reported_Hz=table["clock_Hz"], temperature_C=50.0, wall_s=0.0)
        return table[list(TABLES["operators"])]

    return run


@pytest.fixture(scope="session")
def observed() -> Callable[[pd.DataFrame], Observations]:
    """The observations of a table that holds one operator."""

    def one(table: pd.DataFrame) -> Observations:
        (data,) = observations(OperatorTable.of(table))
        return data

    return one


WriteProfile = Callable[..., Path]


@pytest.fixture(scope="session")
def write_profile() -> WriteProfile:
    """Writes a profile with the manifest of a committed one and the tables given; an unfinished one's go into parts."""

    def write(folder: Path, tables: Mapping[str, pd.DataFrame], *, parts: int = 0, like: Path = COMMITTED) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).write_text((like / MANIFEST).read_text(encoding="utf-8"), encoding="utf-8")
        for name, table in tables.items():
            rows = pa.Table.from_pandas(table[list(TABLES[name])], schema=arrow_schema(name), preserve_index=False)
            if not parts:
                pq.write_table(rows, folder / f"{name}.parquet")
                continue
            (folder / name).mkdir()
            step = -(-len(table) // parts)
            for index in range(parts):
                pq.write_table(rows.slice(index * step, step), folder / name / f"part-{index:04d}.parquet")
        return folder

    return write


def thinned(table: pd.DataFrame, shapes: int) -> pd.DataFrame:
    """The first few shapes of every operator and pass."""
    operator = ["kind", "direction"]
    points = table[[*operator, *SHAPE_FIELDS]].drop_duplicates()
    kept = points[points.groupby(operator).cumcount() < shapes]
    return table.merge(kept, how="inner")


@pytest.fixture(scope="session")
def kept_whole() -> list[tuple[str, str]]:
    """Operators and passes that `thin_profiles` keeps as they are."""
    return WHOLE


@pytest.fixture(scope="session")
def thin_profiles(tmp_path_factory: pytest.TempPathFactory, write_profile: WriteProfile) -> list[Path]:
    """The committed profiles with an operator of each form as it is and one shape of the others: quick to fit.

    `bench/accuracy.py`, which the tests run, fits all shapes of all operators."""
    folder = tmp_path_factory.mktemp("thin")
    copies = []
    others = sorted(source for source in COMMITTED.parent.glob("*h100-sxm-80gb-*") if source != COMMITTED)
    for source in (COMMITTED, *others):
        tables = {name: read_table(source, name) for name in TABLES}
        rows = tables["operators"]
        if rows.empty:  # of the links alone
            copies.append(source)
            continue
        whole = pd.MultiIndex.from_frame(rows[["kind", "direction"]]).isin(WHOLE)
        tables["operators"] = pd.concat([rows[whole], thinned(rows[~whole], 1)], ignore_index=True)
        copies.append(write_profile(folder / source.name, tables, like=source))
    return copies


@pytest.fixture(scope="session")
def small_profile(tmp_path_factory: pytest.TempPathFactory, write_profile: WriteProfile) -> Path:
    """Two operators of the committed profile and too few loads for a power model: fitted in no time."""
    operators = thinned(read_table(COMMITTED, "operators"), 3)
    few = {
        "operators": operators[operators["kind"].isin([Kind.COPY, Kind.ADAMW])],
        "power": read_table(COMMITTED, "power").head(7),
        "host": read_table(COMMITTED, "host"),
    }
    return write_profile(tmp_path_factory.mktemp("small") / "profile", few)


@pytest.fixture
def moemodel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `moemodel ...` in an empty folder; what it does not catch is the test's."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any) -> Result:
        return CliRunner().invoke(main, [str(a) for a in arguments], prog_name="moemodel", catch_exceptions=False)

    return run
