"""Times and power of public kernel readings, on shapes that were left out of the fit.

    python bench/kernels.py [--json] [--fold N] [--gpu NAME ...] [--data FOLDER]

Of every GPU with readings and each kind (products, grouped, attention) four fifths of the shapes are fitted as
`moemodel calibrate --readings` fits them, and the others predicted. A shape is left out whole: products by n and k,
fused layers of experts by model and how it is divided, attention by its heads. Data types and kernels are fitted each
by itself.
`time_median` is over all rows left out; `power_mape` over those with power and of at least 50 us, at the time that was
predicted, of energies fitted to the shapes that were seen. `power_repeats`: how far readings of the same work, within
2 % of its FLOPs, bytes and time, are from their median: the least error that a model of power by work can have. Half of
a reading is what ran before its kernel (`published.kernels.power`). `flop_pJ`: energy of a FLOP that was fitted, of one
data type.

The data are read from `../shared/data`; where they are missing there is nothing to do, and the exit code is 0.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moemodel.calibration.published.kernels.fitted import (
    FEWEST,
    FOLDS,
    FittedKernels,
    conditions_of,
    fit_kernels,
    split_by_kernel,
    timed,
)
from moemodel.calibration.published.kernels.overlay import base_of
from moemodel.calibration.published.kernels.power import (
    SHORTEST_S,
    Drawn,
    FittedPower,
    fit_power,
    repeats_error,
)
from moemodel.calibration.published.kernels.readings import TABLES, Family, Readings, read_readings
from moemodel.model.core.arrays import BoolArray, FloatArray
from moemodel.model.hardware.gpu import read_gpu
from moemodel.model.records.calibration import Calibration

_DATA = Path(__file__).parents[2] / "shared" / "data"


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Rows of one table that were predicted.

    Attributes:
        family, gpu, dtype, software: which.
        time: predicted over measured, less one.
        power: the same of rows that count; empty without.
        flop_J: energy of a FLOP that was fitted to power; NaN without.
        repeats: error of readings of the same work against each other, and of how many.
    """

    family: Family
    gpu: str
    dtype: str
    software: str
    time: FloatArray
    power: FloatArray
    flop_J: float
    repeats: tuple[float, int]


def left_out(tables: list[Readings], base: Calibration, fold: int) -> Iterator[LeftOut]:
    """Every table of a GPU, predicted where it was not fitted."""
    gpu = read_gpu(base.gpu)
    for table in (part for whole in tables for part in split_by_kernel(whole)):
        of = table.fold(FOLDS)
        seen, unseen = table.take(of != fold), table.take(of == fold)
        if len(seen) < FEWEST or not len(unseen):
            continue
        conditions = conditions_of(table, base, gpu)
        inner = of[of != fold] == (fold - 1) % FOLDS
        fit = fit_kernels(timed(seen, conditions.chip), seen.time_s, inner, conditions)
        kernels = timed(unseen, conditions.chip)
        time_s = fit.time_s(kernels)
        power = _power(seen, inner, fit)
        yield LeftOut(
            family=table.family,
            gpu=table.gpu,
            dtype=table.dtype,
            software=table.software,
            time=time_s / unseen.time_s - 1,
            power=np.zeros(0) if power is None else _power_errors(unseen, fit.drawn(kernels, time_s), power),
            flop_J=float("nan") if power is None else power.flop_J,
            repeats=_repeats(table, fit),
        )


def _power(seen: Readings, inner: BoolArray, fit: FittedKernels) -> FittedPower | None:
    """Energies fitted to the readings that count; None: there are too few."""
    counted = _counted(seen)
    if seen.limit_W is None or counted.sum() < FEWEST:
        return None
    known = fit.drawn(timed(seen, fit.conditions.chip), seen.time_s).take(counted)
    return fit_power(known, seen.power_W[counted], inner[counted], fit.conditions, seen.limit_W)


def _power_errors(unseen: Readings, kernels: Drawn, power: FittedPower) -> FloatArray:
    """Errors of readings that count, at predicted times."""
    counted = _counted(unseen)
    return np.asarray(power.read_W(kernels.take(counted)) / unseen.power_W[counted] - 1)


def _repeats(table: Readings, fit: FittedKernels) -> tuple[float, int]:
    """Error of the readings that count, of the same work against each other."""
    counted = _counted(table)
    if not counted.any():
        return float("nan"), 0
    drawn = fit.drawn(timed(table, fit.conditions.chip), table.time_s).take(counted)
    return repeats_error(drawn, table.power_W[counted])


def _counted(table: Readings) -> BoolArray:
    return np.asarray((table.time_s >= SHORTEST_S) & np.isfinite(table.power_W))


def figures(parts: list[LeftOut]) -> dict[str, object]:
    """Of all rows of one GPU and kind."""
    time = np.abs(np.concatenate([part.time for part in parts]))
    power = np.abs(np.concatenate([part.power for part in parts]))
    found: dict[str, object] = {
        "time_median": round(float(np.median(time)), 4),
        "time_mape": round(float(time.mean()), 4),
        "rows": len(time),
    }
    if len(power):
        found |= {
            "power_mape": round(float(power.mean()), 4),
            "power_median": round(float(np.median(power)), 4),
            "power_rows": len(power),
        }
    if len(parts) == 1 and np.isfinite(parts[0].flop_J):
        found["flop_pJ"] = round(parts[0].flop_J * 1e12, 3)
    repeated = [part.repeats for part in parts if part.repeats[1]]
    if repeated:
        error, rows = np.array(repeated).T
        found |= {"power_repeats": round(float(np.average(error, weights=rows)), 4), "repeats": int(rows.sum())}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--fold", type=int, choices=range(FOLDS), default=0, help="which fifth of the shapes to leave out"
    )
    parser.add_argument("--gpu", nargs="+", metavar="NAME", help="these GPUs alone")
    parser.add_argument("--data", type=Path, default=_DATA, help="folder of published data")
    options = parser.parse_args()
    paths = [options.data / "kernels" / name for name in TABLES]
    if not all(path.is_file() for path in paths):
        skipped = f"skipped: {options.data / 'kernels'} lacks {', '.join(TABLES)}"
        print(json.dumps({"skipped": skipped}) if options.json else skipped)
        return
    wanted = None if options.gpu is None else {read_gpu(name).name for name in options.gpu}
    tables = [table for table in read_readings(paths) if wanted is None or table.gpu in wanted]
    results: dict[str, dict[str, object]] = {}
    for gpu in dict.fromkeys(table.gpu for table in tables):
        base = base_of(read_gpu(gpu))
        parts = list(left_out([table for table in tables if table.gpu == gpu], base, options.fold))
        for family in dict.fromkeys(part.family for part in parts):
            own = [part for part in parts if part.family == family]
            by_dtype = {
                dtype: figures([part for part in own if part.dtype == dtype])
                for dtype in dict.fromkeys(part.dtype for part in own)
            }
            results[f"{gpu} {family}"] = figures(own) | {"by_dtype": by_dtype}
            if not options.json:
                _print(f"{gpu} {family}", figures(own), by_dtype)
    if options.json:
        print(json.dumps(results))


def _print(name: str, whole: dict[str, object], by_dtype: dict[str, dict[str, object]]) -> None:
    for label, found in ((name, whole), *((f"  {dtype}", found) for dtype, found in by_dtype.items())):
        power = f"  power {found['power_median']:6.1%} {found['power_mape']:6.1%}" if "power_mape" in found else ""
        if "power_repeats" in found:
            power += f"  {found['flop_pJ']:6.3f} pJ" if "flop_pJ" in found else " " * 11
            power += f"  same work {found['power_repeats']:6.1%} of {found['repeats']}"
        print(
            f"{label:32} {found['rows']:6}  time {found['time_median']:6.1%} {found['time_mape']:6.1%}{power}",
            flush=True,
        )


if __name__ == "__main__":
    main()
