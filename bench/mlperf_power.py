"""Power and energy of MLPerf Training's metered runs: what their meters read against what is predicted of their plans.

    python bench/mlperf_power.py [--json]
    python bench/mlperf_power.py --predict            write what is predicted of every system, once
    python bench/mlperf_power.py --extract CHECKOUTS  write the table anew, from training_results_v4.0 and _v4.1 there

Of each system (`SYSTEM_...`) the median run of its steady blocks (`studies.public.mlperf_logs`), errors as predicted /
measured - 1:

    step_time         wall time of a block over its steps
    node_power        of a node at the inlet of its power supplies, where IT energy counts; predicted with the host
                      power of its kind of node (model/presets/hosts.json)
    step_energy       of all nodes, for a step
    late_node_power   as node_power, had the plan taken as long as it did: what is missing spent waiting, at the power
                      of an idle GPU
    gpus_alone        of step_energy, had hosts not been counted, which is what a plan says that names none
    ..._inside        whether what was measured, of step_time and of step_energy, lies in the 90 % interval
    dc_node_power     as node_power, of what power supplies give, without what they lose

and what no plan says, as it was measured:

    supplies          what power supplies give of what they draw; Dell's: as it states
    beside_steps      energy of the whole run over that of its steps, less 1: evaluations, and hosts that start workers
    switches_W        of switches between nodes, for each GPU; SMC's: the most that they are specified to draw

Over systems:

    ..._mape, ..._signed    means; of ..._inside the share
    held_out_..._mape       without the system that the host power of its kind is from
    first_...               as predicted before any of it was compared, with 250 W of host for every GPU
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean, median
from typing import Any

from moemodel.api import predict
from moemodel.model.core.files import write_atomic
from moemodel.model.plan.spec import Plan
from moemodel.model.step.idle_power import idle_power_W
from moemodel.model.step.system import system_of
from studies.intervals import holds, interval
from studies.public.mlperf_logs import runs
from studies.public.mlperf_power import FIRST_HOST_POWER_W, GPUS_OF_NODE, logs, plans, share_a_clock
from studies.public.run import calibration_of

_MEASURED = Path(__file__).parent / "measured"
TABLE = _MEASURED / "mlperf-power.csv"
_PREDICTED = _MEASURED / "mlperf-power-predicted.json"
_HOSTS_ARE_FROM = "smc-1-lora"  # as model/presets/hosts.json says
_ERRORS = ("step_time", "node_power", "step_energy", "late_node_power")
_INSIDE = ("step_time_inside", "step_energy_inside")
_DIGITS = {"s": 3, "W": 1, "J": 0}  # of a column by its unit

Row = Mapping[str, Any]


def forecast(plan: Plan) -> dict[str, Any]:
    """What is predicted of a plan: of a step, and of a node in the mean."""
    told = predict(plan, even_if_it_does_not_fit=True)
    it_J = told.energy.it_J
    return {
        "step_time_s": told.step_time_s.value,
        "step_time_interval_s": interval(told.step_time_s),
        "gpu_power_W": told.power_W.value,
        "gpu_energy_J": told.energy.gpu_J.value,
        "host_power_W": plan.site.host_power_W,
        "it_energy_J": it_J.value,
        "it_energy_interval_J": interval(it_J),
        "node_power_W": it_J.value / told.step_time_s.value / _nodes(plan),
    }


def measured(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """The median run of every system; columns that it has not are left out."""
    by_system: dict[str, list[Row]] = {}
    for row in rows:
        by_system.setdefault(row["system"], []).append(row)
    return {name: _median(of_system) for name, of_system in by_system.items()}


def _median(rows: list[Row]) -> dict[str, float]:
    told = {key for row in rows for key, value in row.items() if key not in ("system", "run") and value}
    found = {key: median(float(row[key]) for row in rows if row[key]) for key in told}
    found["step_s"] = median(float(row["steady_s"]) / int(row["steady_steps"]) for row in rows)
    found["beside_steps"] = median(_beside_steps(row) for row in rows)
    return found


def _beside_steps(row: Row) -> float:
    """Energy of a run over that of its steps, less 1."""
    step_J = float(row["node_ac_W"]) * int(row["nodes"]) * float(row["steady_s"]) / int(row["steady_steps"])
    return float(row["run_ac_J"]) / (step_J * int(row["steps"])) - 1


def errors(told: Row, found: Mapping[str, float], idle_W: float) -> dict[str, float]:
    """Of one system.

    Args:
        told: what is predicted of it.
        found: its median run.
        idle_W: of a GPU that waits.
    """
    nodes, gpus = found["nodes"], found["nodes"] * GPUS_OF_NODE
    late_s = found["step_s"] - told["step_time_s"]
    late_J = told["gpu_energy_J"] + gpus * (late_s * idle_W + found["step_s"] * told["host_power_W"])
    step_J = found["node_ac_W"] * nodes * found["step_s"]
    return {
        "step_time": told["step_time_s"] / found["step_s"] - 1,
        "node_power": told["node_power_W"] / found["node_ac_W"] - 1,
        "step_energy": told["it_energy_J"] / step_J - 1,
        "late_node_power": late_J / step_J - 1,
        "gpus_alone": told["gpu_energy_J"] / step_J - 1,
        "step_time_inside": float(holds(told["step_time_interval_s"], found["step_s"])),
        "step_energy_inside": float(holds(told["it_energy_interval_J"], step_J)),
    } | ({"dc_node_power": told["node_power_W"] / found["node_dc_W"] - 1} if "node_dc_W" in found else {})


def unsaid(found: Mapping[str, float]) -> dict[str, float]:
    """What no plan says of a system."""
    supplies = found["node_dc_W"] / found["node_ac_W"] if "node_dc_W" in found else found["conversion"]
    told = {"supplies": supplies, "beside_steps": found["beside_steps"]}
    if "switches_W" in found:
        told["switches_W"] = found["switches_W"] / (found["nodes"] * GPUS_OF_NODE)
    return told


def means(of_systems: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Over systems."""
    found: dict[str, float] = {}
    for name in _ERRORS:
        values = {system: told[name] for system, told in of_systems.items()}
        found[f"{name}_mape"] = fmean(map(abs, values.values()))
        found[f"{name}_signed"] = fmean(values.values())
        found[f"held_out_{name}_mape"] = fmean(abs(v) for system, v in values.items() if system != _HOSTS_ARE_FROM)
    for name in _INSIDE:
        found[name] = fmean(told[name] for told in of_systems.values())
    return found


def figures() -> dict[str, float]:
    """All of them."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        found = measured(csv.DictReader(file))
    first, now = json.loads(_PREDICTED.read_text(encoding="utf-8")), plans()
    idle_W = {name: idle_power_W(system_of(plan, calibration_of(plan))) for name, plan in now.items()}
    of_now = {name: errors(forecast(plan), found[name], idle_W[name]) for name, plan in now.items()}
    of_first = {name: errors(first[name], found[name], idle_W[name]) for name in now}
    named = {f"{name}_{key}": value for name in now for key, value in (of_now[name] | unsaid(found[name])).items()}
    return means(of_now) | {f"first_{key}": value for key, value in means(of_first).items()} | named


def extracted(checkouts: Path) -> str:
    """The table, from logs of the runs."""
    rows = []
    for name, plan in plans().items():
        for run, told in runs(logs(name, checkouts), same_clock=share_a_clock(name)).items():
            size = {"nodes": _nodes(plan), "global_batch": plan.global_batch, "sequence_length": plan.sequence_length}
            rows.append({"system": name, "run": run.removeprefix("result_")} | size | told)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _shown(key, value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _shown(key: str, value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.{_DIGITS.get(key.rpartition('_')[2], 2)}f}"
    return value


def _nodes(plan: Plan) -> int:
    return plan.cluster.gpus // GPUS_OF_NODE


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object: figure -> value")
    parser.add_argument("--predict", action="store_true", help="write predictions, print and compare nothing")
    parser.add_argument("--extract", type=Path, metavar="CHECKOUTS", help="write the table anew from their logs")
    options = parser.parse_args()
    if options.extract is not None:
        write_atomic(TABLE, extracted(options.extract))
    elif options.predict:
        if _PREDICTED.exists():
            parser.error(f"{_PREDICTED} is there, and is kept as it is")
        told = {name: forecast(plan) for name, plan in plans(FIRST_HOST_POWER_W).items()}
        write_atomic(_PREDICTED, json.dumps(told, indent=1) + "\n")
    elif options.json:
        print(json.dumps(figures()))
    else:
        for name, value in figures().items():
            print(f"{name:40s} {value:9.3f}")


if __name__ == "__main__":
    main()
