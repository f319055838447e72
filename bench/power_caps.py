"""Time and power under power caps, fitted to half of the caps and tested on the others.

    python bench/power_caps.py [--json] [--data FOLDER]

    a100    2 codes at 5 locked clocks under 7 caps, A100 80 GB PCIe (giordano/gpu-power-frequency-benchmarks)
    v100    training epochs of 5 networks by batch size and optimizer under 7 caps (zeus, NSDI'23)
    a40     the same, 9 caps

Every other cap of a program, in order, gives the parameters of the GPU and of its programs (`studies.power_caps`), and
time and mean power under the caps between are predicted; then the other way round. So each row is predicted once, by a
fit that has not seen it. Of the A100, a program's clocks share its parameters. Below its cap, a program draws its own.

`time_mape` and `power_mape` are means over the three tables of means over rows. `inside` and `outside` tell caps
between caps of the fit from those above or below all of them. `lines` is no model: straight lines between the caps of
the fit of the same program and clock, level beyond them.

The data are read from `../shared/data`; where they are missing there is nothing to do, and the exit code is 0.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray, take_rows
from studies.power_caps import CapModel, CapRows, fit_caps

_DATA = Path(__file__).parents[2] / "shared" / "data"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A file of runs, and the range of the GPU's SM clock (TechPowerUp's GPU database: boost; lowest of nvidia-smi)."""

    file: str
    read: Callable[[Path], tuple[CapRows, IntArray]]
    lowest_Hz: float
    reference_Hz: float


def locked(path: Path) -> tuple[CapRows, IntArray]:
    """Runs at locked clocks under caps; and a number for each code and clock."""
    table = pd.read_csv(path)
    time_s = table["time_s"].to_numpy(np.float64)
    rows = CapRows(
        code_N=_numbers(table, ["code"]),
        cap_W=table["cap_W"].to_numpy(np.float64),
        clock_Hz=table["clock_MHz"].to_numpy(np.float64) * 1e6,
        time_s=time_s,
        power_W=table["energy_Wh"].to_numpy(np.float64) * 3600 / time_s,
    )
    return rows, _numbers(table, ["code", "clock_MHz"])


def _numbers(table: pd.DataFrame, columns: list[str]) -> IntArray:
    """A number for each combination of values."""
    return np.asarray(table.groupby(columns).ngroup().to_numpy(), dtype=np.int64)


def epochs(path: Path) -> tuple[CapRows, IntArray]:
    """Training epochs under caps, no clock locked; and a number for each program."""
    table = pd.read_csv(path)
    code = _numbers(table, ["dataset", "network", "batch_size", "optimizer"])
    rows = CapRows(
        code_N=code,
        cap_W=table["power_limit"].to_numpy(np.float64),
        clock_Hz=np.full(len(table), np.inf),
        time_s=table["time_per_epoch"].to_numpy(np.float64),
        power_W=table["average_power"].to_numpy(np.float64),
    )
    return rows, code


TABLES = {
    "a100": Table(file="power-caps/a100_pcie_clock_and_cap.csv", read=locked, lowest_Hz=210e6, reference_Hz=1410e6),
    "v100": Table(file="power-caps/v100_training_epochs.csv", read=epochs, lowest_Hz=135e6, reference_Hz=1380e6),
    "a40": Table(file="power-caps/a40_training_epochs.csv", read=epochs, lowest_Hz=210e6, reference_Hz=1740e6),
}


def order(rows: CapRows, series_N: IntArray) -> IntArray:
    """Place of each row's cap among those of its series, from 0."""
    place = np.empty(len(series_N), dtype=np.int64)
    for series in np.unique(series_N):
        own = series_N == series
        place[own] = np.searchsorted(np.unique(rows.cap_W[own]), rows.cap_W[own])
    return place


def lines(rows: CapRows, series_N: IntArray, seen: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Time and power on straight lines between the rows seen of each series."""
    time_s, power_W = np.empty(len(seen)), np.empty(len(seen))
    for series in np.unique(series_N):
        own = series_N == series
        known = np.flatnonzero(own & seen)
        known = known[np.argsort(rows.cap_W[known])]
        for out, values in ((time_s, rows.time_s), (power_W, rows.power_W)):
            out[own] = np.interp(rows.cap_W[own], rows.cap_W[known], values[known])
    return time_s, power_W


def outside(rows: CapRows, series_N: IntArray, seen: BoolArray) -> BoolArray:
    """Rows under caps beyond those seen of their series."""
    out = np.zeros(len(seen), dtype=bool)
    for series in np.unique(series_N):
        own, known = series_N == series, rows.cap_W[(series_N == series) & seen]
        out[own] = (rows.cap_W[own] < known.min()) | (rows.cap_W[own] > known.max())
    return out


def tested(table: Table, folder: Path) -> tuple[pd.DataFrame, list[CapModel]]:
    """Every row with its cap and its relative errors, predicted by the half of the caps that it isn't in; both fits."""
    rows, series_N = table.read(folder / table.file)
    place, codes = order(rows, series_N), int(rows.code_N.max()) + 1
    parts, models = [], []
    for half in (0, 1):
        seen = place % 2 == half
        model = fit_caps(take_rows(rows, seen), codes, table.lowest_Hz, table.reference_Hz)
        found, straight = model.predict(rows), lines(rows, series_N, seen)
        columns = {"cap_W": rows.cap_W, "outside": outside(rows, series_N, seen)}
        for name, (time_s, power_W) in (("", found), ("_lines", straight)):
            columns[f"time{name}"] = np.abs(time_s / rows.time_s - 1)
            columns[f"power{name}"] = np.abs(power_W / rows.power_W - 1)
        parts.append(pd.DataFrame(columns)[~seen])
        models.append(model)
    return pd.concat(parts), models


def figures(found: dict[str, pd.DataFrame]) -> dict[str, float]:
    """What `--json` prints."""
    out: dict[str, float] = {}
    tables = list(found.values())
    for what in ("time", "power"):
        out[f"{what}_mape"] = _mean([rows[what] for rows in tables])
        out[f"{what}_mape_inside"] = _mean([rows.loc[~rows["outside"], what] for rows in tables])
        out[f"{what}_mape_outside"] = _mean([rows.loc[rows["outside"], what] for rows in tables])
        out[f"{what}_mape_lines"] = _mean([rows[f"{what}_lines"] for rows in tables])
        out |= {f"{what}_mape_{name}": _mean([rows[what]]) for name, rows in found.items()}
    out["rows"] = float(sum(len(rows) for rows in tables))
    return out


def _mean(errors: list[pd.Series]) -> float:
    """Mean over tables of means over rows."""
    return float(np.mean([rows.to_numpy(np.float64).mean() for rows in errors]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--data", type=Path, default=_DATA, help="folder of published data")
    options = parser.parse_args()
    missing = [str(options.data / table.file) for table in TABLES.values() if not (options.data / table.file).exists()]
    if missing:
        skipped = f"skipped: {', '.join(missing)} not there"
        print(json.dumps({"skipped": skipped}) if options.json else skipped)
        return
    done = {name: tested(table, options.data) for name, table in TABLES.items()}
    result = figures({name: rows for name, (rows, _) in done.items()})
    if options.json:
        print(json.dumps(result))
        return
    for name, (rows, models) in done.items():
        print(f"{name}: mean relative error by cap, percent")
        by_cap = rows.drop(columns="outside").groupby("cap_W").mean() * 100
        print(by_cap.round(1).T.to_string())
        for model in models:
            print("  " + ", ".join(f"{key} {value:.3g}" for key, value in model.parameters.items()))
        print()
    print("\n".join(f"{name}: {value:.4g}" for name, value in result.items()))


if __name__ == "__main__":
    main()
