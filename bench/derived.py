"""Calibrations taken over to a GPU whose truth is known, against it: products of published kernel readings.

    python bench/derived.py [--json] [--data FOLDER]

Every pair is derived anew from the shipped calibration of the first, whatever ships for the second. Per pair:

    time_mape         mean of |derived/measured - 1| over all readings of 16-bit products
    time_bias         mean of log(derived/measured)
    inside            share of the readings within the 90 % interval
    rows              readings
    long_time_mape, long_rows   of those from 50 us on, where launches matter less

    replay_s          what a launch was shorter by than a training loop's, which is taken off the derived times

Readings are loops of kernels of an inference engine (`kernels/gemm.parquet`): those whose power was taken run long
enough to be held by the power limit, and are priced at the clock that it leaves; the others, at the highest clock.
Nobody filled their weights, and zeros hardly draw power (`published.kernels.operands`): energies of readings are those
of random operands times the factor of the median reading (`operands`).
They replay captured CUDA graphs of several kernels each (the source's collector/helper.py), so that one kernel follows
the other sooner than the host of a training loop queues them. By how much is the same for all GPUs, and taken from one
whose calibration was measured: the median over its short products of what its own calibration is slower by.

    GPU caps    shape of time and power against the power limit: training epochs of networks that draw more than 0.75 of
                the highest limit, their median over that at the highest, against OPT-350M's steps likewise; without
                the highest limit itself: time_mape, power_mape, rows (limits)

The readings are read from `../shared/data`; where they are missing there is nothing to do, and the exit code is 0.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from moemodel.calibration.derive.transfer import derive_calibration
from moemodel.calibration.published.kernels.operands import operands_energy
from moemodel.calibration.store.catalogue import load_calibration, shipped
from moemodel.model.core.arrays import FloatArray
from moemodel.model.core.interval import Z
from moemodel.model.device.dvfs import crossing, time_at_clock
from moemodel.model.device.operator_cost import OperatorCostModel
from moemodel.model.device.power import power_model
from moemodel.model.device.roofline import chip_of_calibration
from moemodel.model.hardware.gpu import read_gpu
from moemodel.model.operators.calls import Call, Phase
from moemodel.model.operators.work import Kind, Pass, Shape
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.outcome import outcome

_DATA = Path(__file__).parents[2] / "shared" / "data"
_PAIRS = {  # GPU of the readings, as they name it -> GPU, and that which its calibration is taken over from
    "h200_sxm": ("h200-sxm-141gb", "h100-sxm-80gb"),
    "a100_sxm": ("a100-sxm-80gb", "h100-sxm-80gb"),
    "h100_sxm": ("h100-sxm-80gb", "a100-sxm-80gb"),
    "b200_sxm": ("b200-sxm-180gb", "h100-sxm-80gb"),
    "gb200": ("gb200-186gb", "h100-sxm-80gb"),
    "b300_sxm": ("b300-sxm-288gb", "h100-sxm-80gb"),
    "gb300": ("gb300-288gb", "h100-sxm-80gb"),
}
_MEASURED = {"h100_sxm": "h100-sxm-80gb", "h200_sxm": "h200-sxm-141gb"}  # by this project
_LONG_S, _SHORT_S = 50e-6, 20e-6
_LEAST_S = 5e-7  # of a product, whatever is taken off; assumed
_CAPS = {"v100_training_epochs.csv": "v100-pcie-32gb", "a40_training_epochs.csv": "a40-48gb"}
_HEAVY = 0.75  # of the highest limit: what draws less is not held by most of the limits
_LOAD = {"architecture": "opt-350m", "sequence_length": 2048, "global_batch": 4, "micro_batch": 4}
_CLOCKS = 9
_AT_ONCE = 2048


def products(
    calibration: Calibration, table: pd.DataFrame, limit_W: float | None, operands: float = 1.0
) -> tuple[FloatArray, FloatArray]:
    """Seconds of products, and standard deviations of their logarithm, [U] each.

    Args:
        calibration: that prices them.
        table: columns m, n, k, a row each.
        limit_W: at which they are repeated for ever; None: in a burst, at the highest clock.
        operands: on their energy, by what is multiplied; 1: random numbers.
    """
    m, n, k = (table[name].to_numpy(dtype=np.float64) for name in ("m", "n", "k"))
    power, clock_Hz_K = power_model(calibration), np.linspace(*calibration.clock_range_Hz, _CLOCKS)
    pricer = OperatorCostModel(calibration, chip_of_calibration(calibration), power, clock_Hz_K)
    call = Call(
        kind=Kind.GEMM, direction=Pass.FORWARD, shape=Shape(m=m, n=n, k=k), phase=Phase.FORWARD, count=np.ones(len(m))
    )
    cost = pricer.phase_costs([call], len(m))[Phase.FORWARD]
    spread = next(iter(cost.spread_s.values())) / cost.time_s_UK[:, -1]
    if limit_W is None:
        return cost.time_s_UK[:, -1], spread
    dynamic_W = operands * cost.energy_J_UK / cost.time_s_UK + power.clocked_W(cost.cycles_UK / cost.time_s_UK)
    steady_W = np.maximum.accumulate(power.steady(dynamic_W)[0], axis=1)
    held_W = calibration.governor.parameters["sustained_share"].value * limit_W
    settled_Hz = crossing(steady_W, clock_Hz_K, np.full(len(m), held_W))
    return time_at_clock(cost.time_s_UK, clock_Hz_K, settled_Hz), spread


def limit_of(table: pd.DataFrame, calibration: Calibration) -> float | None:
    """The power limit that holds a table's readings; None where they are bursts."""
    sustained = bool(table["power_W"].notna().any())
    return read_gpu(calibration.gpu).power_limit_W if sustained else None


def predicted(table: pd.DataFrame, calibration: Calibration, operands: float) -> tuple[FloatArray, FloatArray]:
    """Seconds of a table's products under the conditions that they were taken in, and their spread as `products`."""
    limit_W = limit_of(table, calibration)
    parts = [
        products(calibration, table.iloc[first : first + _AT_ONCE], limit_W, operands)
        for first in range(0, len(table), _AT_ONCE)
    ]
    time_s, spread = (np.concatenate(column) for column in zip(*parts, strict=True))
    return time_s, spread


def replay_saving_s(table: pd.DataFrame, gpu: str) -> float:
    """By what launches of a GPU's short products were shorter than its own calibration, a measured one, has them."""
    short = table[table["latency_ms"] < _SHORT_S * 1e3]
    time_s, _ = predicted(short, shipped(gpu), 1.0)  # so short that no limit holds them
    return float(np.median(time_s - short["latency_ms"].to_numpy(dtype=np.float64) * 1e-3))


def derived_against_readings(table: pd.DataFrame, gpu: str, base: str, replay_s: float) -> dict[str, float]:
    """Figures of one pair."""
    calibration = derive_calibration(shipped(base), read_gpu(base), read_gpu(gpu))
    limit_W = limit_of(table, calibration)
    operands = 1.0 if limit_W is None else operands_energy(calibration, table, limit_W)
    time_s, spread = predicted(table, calibration, operands)
    time_s = np.maximum(time_s - replay_s, _LEAST_S)
    measured_s = table["latency_ms"].to_numpy(dtype=np.float64) * 1e-3
    off, error = np.log(time_s / measured_s), np.abs(time_s / measured_s - 1)
    inside = np.abs(off) <= Z * np.hypot(spread, calibration.composition_error.value)
    long = measured_s >= _LONG_S
    return {
        "time_mape": float(error.mean()),
        "time_bias": float(off.mean()),
        "time_log_error": float(np.sqrt(np.mean(off**2))),
        "inside": float(inside.mean()),
        "rows": float(len(off)),
        "operands": operands,
        "long_time_mape": float(error[long].mean()),
        "long_time_bias": float(off[long].mean()),
        "long_inside": float(inside[long].mean()),
        "long_rows": float(long.sum()),
        "replay_s": replay_s,
    }


def caps_against_epochs(table: pd.DataFrame, gpu: str) -> dict[str, float]:
    """Figures of one GPU under power limits."""
    calibration, top_W = load_calibration(None, gpu), float(table["power_limit"].max())
    networks = ["dataset", "network", "batch_size", "optimizer"]
    time_s = table.pivot_table(index=networks, columns="power_limit", values="time_per_epoch")
    power_W = table.pivot_table(index=networks, columns="power_limit", values="average_power")
    heavy = power_W[top_W] > _HEAVY * top_W
    measured = time_s[heavy].div(time_s.loc[heavy, top_W], axis=0).median(), power_W[heavy].median()
    found = {
        cap_W: outcome(Plan.model_validate(_LOAD | {"power_cap_W": cap_W, "cluster": {"gpu": gpu}}), calibration)
        for cap_W in map(float, sorted(table["power_limit"].unique()))
    }
    slower = [found[cap].step_time_s.value / found[top_W].step_time_s.value / measured[0][cap] for cap in found]
    draw = [found[cap].power_W.value / measured[1][cap] for cap in found]
    return {
        "time_mape": float(np.mean(np.abs(np.array(slower[:-1]) - 1))),
        "power_mape": float(np.mean(np.abs(np.array(draw[:-1]) - 1))),
        "rows": float(len(found) - 1),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Derived calibrations against published readings.")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--data", type=Path, default=_DATA, help="folder of published data")
    options = parser.parse_args()
    path = options.data / "kernels" / "gemm.parquet"
    if not path.is_file():
        print(json.dumps({"skipped": f"{path} is not there"}) if options.json else f"skipped: {path} is not there")
        return
    table = pd.read_parquet(path)
    table = table[table["gemm_dtype"] == "bfloat16"]
    saved_s = {system: replay_saving_s(table[table["system"] == system], gpu) for system, gpu in _MEASURED.items()}
    found = {}
    for system, (gpu, base) in _PAIRS.items():
        other = next(known for known in saved_s if known != system)  # never from the GPU that is judged
        own = table[table["system"] == system]
        found[f"{gpu} from {base}"] = derived_against_readings(own, gpu, base, saved_s[other])
    for name, gpu in _CAPS.items():
        found[f"{gpu} caps"] = caps_against_epochs(pd.read_csv(options.data / "power-caps" / name), gpu)
    if options.json:
        print(json.dumps(found))
        return
    for name, figures in found.items():
        print(name, ", ".join(f"{figure} {value:.3g}" for figure, value in figures.items()))


if __name__ == "__main__":
    main()
