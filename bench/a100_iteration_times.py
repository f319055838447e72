"""The model on 1,440 published iteration times of GPT training on 2, 4 and 8 A100, each by a fit that left it out.

    python bench/a100_iteration_times.py [--json] [--shapes] [--data FOLDER] [--vtrain FOLDER]

Every GPU count, layer count, degree of data and pipeline parallelism and micro batch is left out in turn, with all its
rows, and predicted by the constants fitted to the others (`moemodel.calibration.published.vtrain`), always from the
same start. `mape` is the mean over these five factors; hidden size and tensor parallelism, which no row of the other
level comes near, stand beside it. `--shapes` also leaves out each (hidden size, tensor parallelism, micro batch).

The rows (vTrain, MIT) are not what they are said to be: that simulator's own arithmetic on 32 traced steps gives all of
them exactly. So GPU count, layers, dp and pp test little, and a shape left out is the real test. Rows of 64 to 512 A100
from the same repository behave like measurements; `--vtrain` names a checkout of it, whose `ground_truth_multi.csv` is
predicted by the constants fitted to the 1,440 rows, with full recomputation and 100 GB/s between nodes (assumed). Two
of the constants are not the hardware's: the gap of a traced kernel and the simulator's rate between stages; the
calibration that ships has others in their place, and so has this prediction.

The data are read from `../shared/data`; where they are missing there is nothing to do, and the exit code is 0.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moemodel.calibration.published.a100 import LAUNCH_S
from moemodel.calibration.published.data import ITERATIONS, Rows, read_rows
from moemodel.calibration.published.vtrain import FREE, Cluster, StepFitter, groups, predicted_s
from moemodel.model.core.arrays import FloatArray, take_rows
from moemodel.model.plan.recompute import Recompute
from studies.a100 import COUNTED, cluster_of, errors, left_out

_DATA = Path(__file__).parents[2] / "shared" / "data"
_BESIDE = ("hidden", "tp")
_NODE_BPS = 100e9  # between nodes: 800 Gbit/s a node, the default of vTrain's configuration


def table(name: str, ratios: dict[int, FloatArray]) -> str:
    """One line a level: rows, mean, median and largest error, mean signed error; percent."""
    lines = []
    for level, ratio in ratios.items():
        off = 100 * (ratio - 1)
        size = np.abs(off)
        figures = f"{size.mean():7.2f} {np.median(size):7.2f} {size.max():7.2f} {off.mean():+7.2f}"
        lines.append(f"{name:12} {level:6} {len(ratio):6} {figures}")
    return "\n".join(lines)


def several_nodes(path: Path, folder: Path, constants: dict[str, float]) -> FloatArray:
    """Predicted over measured time of the rows of 64 to 512 GPUs; none was used to fit."""
    rows = read_rows(path)
    rows = take_rows(rows, rows.layers % rows.pp == 0)
    known = cluster_of(folder)
    nic_Bps = _NODE_BPS / known.gpu.gpus_per_node
    cluster = Cluster(gpu=known.gpu, links=known.links, nic_Bps=nic_Bps)
    hardware = constants | {"gap": LAUNCH_S, "boundary": known.links.efficiency}
    return np.asarray(predicted_s(groups(rows, Recompute.FULL), cluster.machine(hardware)) / rows.time_s)


def shapes_of(rows: Rows) -> NDArray[np.int64]:
    """A number for each (hidden size, tensor parallelism, micro batch)."""
    shapes = np.stack([rows.hidden, rows.tp, rows.micro_batch], axis=1)
    number: NDArray[np.int64] = np.unique(shapes, axis=0, return_inverse=True)[1].ravel().astype(np.int64)
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--shapes", action="store_true", help="leave out single shapes as well (a few minutes more)")
    parser.add_argument("--data", type=Path, default=_DATA, help="folder of published data")
    parser.add_argument("--vtrain", type=Path, help="a checkout of VIA-Research/vTrain")
    options = parser.parse_args()
    if not (options.data / ITERATIONS).exists():
        skipped = f"skipped: {options.data / ITERATIONS} is not there"
        print(json.dumps({"skipped": skipped}) if options.json else skipped)
        return
    rows, cluster = read_rows(options.data / ITERATIONS), cluster_of(options.data)
    batches = groups(rows)
    fitter = StepFitter(time_s=lambda c: predicted_s(batches, cluster.machine(c)), measured_s=rows.time_s)
    constants = fitter.fit()
    report = ["factor        level   rows    mean  median     max  signed   (errors in percent)"]
    mape = {}
    for name in (*COUNTED, *_BESIDE):
        ratios = left_out(fitter, rows.column(name))
        mape[name] = float(errors(ratios).mean())
        report.append(table(name, ratios))
    result: dict[str, float | dict[str, float]] = {
        "mape": float(np.mean([mape[name] for name in COUNTED])),
        "rows": len(rows),
        "mape_hidden": mape["hidden"],
        "mape_tp": mape["tp"],
        "mape_fitted": float(np.abs(fitter.time_s(constants) / rows.time_s - 1).mean()),
        "mape_by_factor": {name: mape[name] for name in COUNTED},
    }
    if options.shapes:
        result["mape_shape"] = float(errors(left_out(fitter, shapes_of(rows))).mean())
    if options.vtrain:
        ratio = several_nodes(options.vtrain / "data" / "ground_truth_multi.csv", options.data, constants)
        result["mape_several_nodes"] = float(np.abs(ratio - 1).mean())
        result["median_ratio_several_nodes"] = float(np.median(ratio))
        result["rows_several_nodes"] = len(ratio)
    if options.json:
        print(json.dumps(result))
        return
    print("\n".join(report))
    print("\nconstants fitted to all rows:")
    print("\n".join(f"  {name:16} {constants[name]:10.4g} {f.unit:2} {f.meaning}" for name, f in FREE.items()))
    print("\n" + "\n".join(f"{name}: {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
