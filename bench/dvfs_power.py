"""The power model on 12 programs at 61 locked SM clocks of an A100, fitted to half of them and tested on the others.

    python bench/dvfs_power.py [--json] [--splits N] [--data FOLDER] [--others FILE]

Six programs give all parameters (`moemodel.calibration.published.activity_power`), the other six are predicted; then
the other way round, for each of the 462 ways to part them (`--splits`: fewer, drawn at random, always the same). Errors
are means over rows, programs and splits. What is known of a program under test, from little to much:

    top clock     counters read at the top clock alone, carried to the others by the model; temperature from the model
    counters      counters and temperature read at each clock
    + reading     either, and its power at the top clock (not counted), which sets the level of its dynamic power

`power_mape` is `counters`: nothing of the program's power is known. `power_mape_one_reading` is what a calibration has
of every operator. `power_mape_fitted` is all programs fitted with levels at 1: what these counters leave open at best.

Clock of least energy: argmin over clocks of P t, measured P and t against predicted P and the run time, measured too
(`best_clock_...`: the test is of power) or predicted (`..._predicted_time`). Counters say nothing of time without work
on the SMs and overstate work that comes and goes: the source filled zeros with the reading before. A program counts by
its median error over splits. `energy_lost` is what running at the predicted clock costs over the measured best.

Temperature moves together with power in these readings, so leakage is held, not fitted (`published.activity_power`).

`--others` names a table of more programs on the same machine (`GA100-dvfs-accel-dcgm.csv` of the source's repository);
those that are not among the 12 are predicted by a fit to all 12.

The H100's calibration, which was measured by its power limit moving the clock, is carried below the clocks that it saw:
FP64 products at locked clocks of another H100. Steady rows below the calibration's range count; the level of dynamic
power (FP64 is not in the calibration) is from the highest of them, which doesn't count. Rows
marked as unsteady or drifting or at the cap are left out.

The data are read from `../shared/data`; where they are missing there is nothing to do, and the exit code is 0.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from moemodel.calibration.fit.power import Loads
from moemodel.calibration.published.a100 import fit_stream, loads_of_activities
from moemodel.calibration.published.activity_power import ActivityPower, fit_activities
from moemodel.calibration.published.data import ACTIVITY, FP64_GEMM, STREAM, read_activities, read_stream
from moemodel.calibration.store.catalogue import shipped
from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray
from moemodel.model.device.power import PowerModel, power_model
from moemodel.model.hardware.gpu import Gpu, read_gpu
from moemodel.model.operators.work import Kind, Pass, Work
from studies.programs import Bandwidth, projected, with_steady_temperature

_DATA = Path(__file__).parents[2] / "shared" / "data"
_GPU, _H100 = "a100-sxm-80gb", "h100-sxm-80gb"
_NEAR_HZ = 75e6
_CLOCKS = {  # names of figures, and what they are of
    "": "counters, measured time",
    "_predicted_time": "top clock, predicted time",
    "_one_reading": "counters + reading, measured time",
    "_one_reading_predicted_time": "top clock + reading, predicted time",
}
_NO_SPREAD = 1e-3  # levels held at 1


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The programs' readings. N rows; `top_N` is the row of the same program at its highest clock."""

    loads: Loads
    run_s: FloatArray
    top_N: IntArray
    carried: Loads  # counters of the top clock carried to each row's clock
    carried_s: FloatArray

    @property
    def codes(self) -> list[str]:
        return sorted(set(self.loads.keys))

    def of(self, codes: set[str]) -> BoolArray:
        """Rows of these programs."""
        return np.array([key in codes for key in self.loads.keys])


def read_runs(path: Path, stream_path: Path, gpu: Gpu) -> Runs:
    """A table of counters, in which run times stand as well, and what a stream benchmark says of the same GPU."""
    loads = loads_of_activities(read_activities(path), gpu)
    run_s = pd.read_csv(path, encoding="utf-8-sig")["run_time"].to_numpy(np.float64)
    keys = np.array(loads.keys)
    clock = np.where(keys[:, None] == keys[None, :], loads.clock_Hz[None, :], 0.0)
    top_N: IntArray = clock.argmax(axis=1).astype(np.int64)
    stream = fit_stream(*read_stream(stream_path), gpu)
    memory_Bps = stream.memory * (gpu.memory_bandwidth_Bps or 0.0)
    bandwidth = Bandwidth(memory_Bps=memory_Bps, issue_Bps=stream.issue_Bps, p=stream.p)
    carried, relative = projected(loads, top_N, bandwidth)
    return Runs(loads=loads, run_s=run_s, top_N=top_N, carried=carried, carried_s=relative * run_s[top_N])


def rows_of(loads: Loads, rows: BoolArray) -> Loads:
    """The rows picked."""
    arrays = {name: values[rows] for name, values in vars(loads).items() if isinstance(values, np.ndarray)}
    names, keys = ([text[index] for index in np.flatnonzero(rows)] for text in (loads.names, loads.keys))
    return Loads(names=names, keys=keys, **arrays)


def halves(codes: list[str], splits: int) -> Iterator[set[str]]:
    """Halves of the programs, each followed by the other half: of all partitions, so many drawn at random."""
    partitions = [{codes[0], *others} for others in combinations(codes[1:], len(codes) // 2 - 1)]
    count = min(splits, len(partitions))
    for index in np.random.default_rng(0).permutation(len(partitions))[:count]:
        yield partitions[index]
        yield set(codes) - partitions[index]


def predictions(power: ActivityPower, runs: Runs) -> dict[str, FloatArray]:
    """Power of all rows, W, by what is known of their program."""
    level = power.level(runs.loads)[runs.top_N]
    cool, warm = (with_steady_temperature(runs.carried, power, by) for by in (1.0, level))
    return {
        "top clock": power.power_W(cool),
        "counters": power.power_W(runs.loads),
        "top clock + reading": power.power_W(warm, level),
        "counters + reading": power.power_W(runs.loads, level),
    }


@dataclass(frozen=True, kw_only=True)
class Tested:
    """One program under test in one split: errors by what was known of it."""

    code: str
    power_error: dict[str, float]  # mean relative
    clock_error_Hz: dict[str, float]
    energy_lost: dict[str, float]


def errors_of(code: str, found: dict[str, FloatArray], runs: Runs) -> Tested:
    """Errors of a program, each with measured and with predicted run time."""
    rows = runs.of({code})
    measured_W, clock_Hz, run_s = runs.loads.power_W[rows], runs.loads.clock_Hz[rows], runs.run_s[rows]
    counted = clock_Hz < clock_Hz.max()
    energy_J = measured_W * run_s
    power_error, clock_error_Hz, lost = {}, {}, {}
    for name, all_W in found.items():
        power_W = all_W[rows]
        seen = counted if "reading" in name else np.ones(len(power_W), dtype=bool)
        power_error[name] = float(np.abs(power_W / measured_W - 1)[seen].mean())
        for time, time_s in (("measured", run_s), ("predicted", runs.carried_s[rows])):
            best = int((power_W * time_s).argmin())
            clock_error_Hz[f"{name}, {time} time"] = float(abs(clock_Hz[best] - clock_Hz[energy_J.argmin()]))
            lost[f"{name}, {time} time"] = float(energy_J[best] / energy_J.min() - 1)
    return Tested(code=code, power_error=power_error, clock_error_Hz=clock_error_Hz, energy_lost=lost)


def h100_shape(path: Path) -> pd.DataFrame:
    """Measured and predicted power of the steady rows below the clocks that the H100's calibration measured."""
    table, calibration = pd.read_csv(path, encoding="utf-8-sig"), shipped(_H100)
    below = table["locked_MHz"] * 1e6 < calibration.clock_measured_Hz[0]
    steady = table[below & table["note"].str.startswith("steady")].sort_values("locked_MHz")
    clock_Hz, measured_W = steady["locked_MHz"].to_numpy(np.float64) * 1e6, steady["mean_W_tail_of_run"].to_numpy(float)
    model = power_model(calibration)
    chip = {name: calibration.chip[name].value for name in ("flops_per_cycle", "multiprocessors")}
    flops = chip["flops_per_cycle"] * chip["multiprocessors"] * clock_Hz
    second = Work(flops=flops, vector_ops=np.zeros(1), bytes_B=np.zeros(1))
    each = model.dynamic_J(Kind.GEMM, Pass.FORWARD, second, clock_Hz, np.ones((len(clock_Hz), len(clock_Hz))))
    dynamic_W = np.diagonal(each)
    return pd.DataFrame(
        {
            "clock_Hz": clock_Hz,
            "measured_W": measured_W,
            "predicted_W": _level_set(model, model.clocked_W(clock_Hz), dynamic_W, measured_W[-1]),
        }
    )


def _level_set(model: PowerModel, tree_W: FloatArray, dynamic_W: FloatArray, last_W: float) -> FloatArray:
    """Steady power, with the level of dynamic power such that the last row draws what it drew."""
    last_C = model.inlet_C + model.thermal_C_per_W * last_W
    idle_W = model.total_W(tree_W[-1], last_C)
    level = (last_W - idle_W) / (model.total_W(tree_W[-1] + dynamic_W[-1], last_C) - idle_W)
    return np.asarray(model.steady(tree_W + level * dynamic_W)[0])


def summary(tested: list[Tested], field: str) -> pd.DataFrame:
    """Programs against what was known of them: mean over splits, of clocks the median."""
    values = pd.DataFrame([{"code": t.code, **getattr(t, field)} for t in tested]).groupby("code")
    return values.median() if field == "clock_error_Hz" else values.mean()


def figures(tested: list[Tested], fitted: float, shape: pd.DataFrame) -> dict[str, float]:
    """What `--json` prints."""
    power, clock_Hz, lost = (summary(tested, field) for field in ("power_error", "clock_error_Hz", "energy_lost"))
    shape_off = (shape["predicted_W"] / shape["measured_W"] - 1).abs().iloc[:-1]
    out = {
        "power_mape": power["counters"].mean(),
        "power_median_of_codes": power["counters"].median(),
        "power_mape_top_clock": power["top clock"].mean(),
        "power_mape_one_reading": power["counters + reading"].mean(),
        "power_mape_one_reading_top_clock": power["top clock + reading"].mean(),
        "power_mape_fitted": fitted,
        "h100_shape_mape": shape_off.mean(),
        "codes": len(power),
    }
    for name, column in _CLOCKS.items():
        out[f"best_clock_median_error{name}_Hz"] = clock_Hz[column].median()
        out[f"best_clock_near{name}"] = (clock_Hz[column] <= _NEAR_HZ).mean()
        out[f"energy_lost{name}"] = lost[column].mean()
    return {name: float(value) for name, value in out.items()}


def other_figures(tested: list[Tested]) -> dict[str, float]:
    """The same figures of programs that were in no fit."""
    power, clock_Hz = summary(tested, "power_error"), summary(tested, "clock_error_Hz")["counters, measured time"]
    return {
        "others": float(len(power)),
        "others_power_mape": float(power["counters"].mean()),
        "others_power_mape_one_reading": float(power["counters + reading"].mean()),
        "others_best_clock_median_error_Hz": float(clock_Hz.median()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--splits", type=int, default=462, help="ways to part the programs (default: all)")
    parser.add_argument("--others", type=Path, help="more programs of the same machine")
    parser.add_argument("--data", type=Path, default=_DATA, help="folder of published data")
    options = parser.parse_args()
    missing = [str(options.data / name) for name in (ACTIVITY, STREAM, FP64_GEMM) if not (options.data / name).exists()]
    if missing:
        skipped = f"skipped: {', '.join(missing)} not there"
        print(json.dumps({"skipped": skipped}) if options.json else skipped)
        return
    gpu = read_gpu(_GPU)
    stream_path = options.data / STREAM
    runs = read_runs(options.data / ACTIVITY, stream_path, gpu)
    reference_Hz = gpu.peak("bf16").clock_Hz
    tested, knees = [], []
    for half in halves(runs.codes, options.splits):
        power = fit_activities(rows_of(runs.loads, runs.of(half)), reference_Hz)
        found = predictions(power, runs)
        knees.append(power.model.knee_Hz)
        tested += [errors_of(code, found, runs) for code in set(runs.codes) - half]
    everything = fit_activities(runs.loads, reference_Hz)
    level_free = fit_activities(runs.loads, reference_Hz, level_spread=_NO_SPREAD)
    fitted = float(np.abs(level_free.power_W(runs.loads) / runs.loads.power_W - 1).mean())
    shape = h100_shape(options.data / FP64_GEMM)
    result = figures(tested, fitted, shape)
    if options.others:
        more = read_runs(options.others, stream_path, gpu)
        found = predictions(everything, more)
        beside = [errors_of(code, found, more) for code in more.codes if code not in runs.codes]
        result |= other_figures(beside)
    if options.json:
        print(json.dumps(result))
        return
    print("power, mean relative error by what is known of the program under test, percent")
    print((100 * summary(tested, "power_error")).round(1).to_string())
    print("\nclock of least energy, MHz off")
    print((summary(tested, "clock_error_Hz") / 1e6)[list(_CLOCKS.values())].round(0).to_string())
    print(f"\nall programs fitted: tree_W {everything.model.tree_W:.1f}")
    print("\n".join(f"  {name} {value:.4g}" for name, value in vars(everything.model).items() if name != "kinds"))
    print("  levels " + ", ".join(f"{code} {value:.2f}" for code, value in everything.levels.items()))
    print(f"  knee over splits {np.mean(knees) / 1e6:.0f} +- {np.std(knees) / 1e6:.0f} MHz")
    print("\nFP64 product on an H100, below the clocks of its calibration:")
    print(shape.round(1).to_string(index=False))
    print("\n" + "\n".join(f"{name}: {value:.4g}" for name, value in result.items()))


if __name__ == "__main__":
    main()
