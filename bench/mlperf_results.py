"""Step times of language models in the logs of MLPerf Training's results, as a table.

    python bench/mlperf_results.py CLONE ... > bench/measured/mlperf-v4-v5.csv

A clone is one of mlcommons/training_results_v4.0 and the like; its name tells the round, and no work tree is needed.
A line of the table is of a result file: step times over all points of `tracked_stats`; where these count none, the
throughput; where they count nothing of training, `block_step_time`: of each block between two evaluations, its length
over its steps. Of NVIDIA's GPUs alone; systems whose power was measured (names with "power") are left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from studies.public.mllog import Event, events, spans, steps_of

BENCHMARKS = ("gpt3", "llama31_405b", "llama2_70b_lora")
COLUMNS: tuple[str, ...] = (
    *("round", "submitter", "system", "nodes", "acc_per_node", "accelerator", "benchmark", "result_file"),
    *("gbs", "grad_accum", "seq", "n_stats", "stat_key", "median", "p10", "p90", "run_minutes"),
)
_THROUGHPUT = "throughput"
_OF_TRAINING = ("train_step_time", "train_step_timing in s", _THROUGHPUT)
_WHOLE_RUN = ("run_start", "run_stop")
_RESULT = re.compile(r"(?P<submitter>[^/]+)/results/(?P<system>[^/]+)/(?P<benchmark>[^/]+)/(?P<file>result_[^/]*\.txt)")
_BLOCK_STEP = "block_step_time"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clones", nargs="+", type=Path, metavar="CLONE", help="git repositories of results")
    table = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    table.writeheader()
    seen: set[tuple[str, int]] = set()
    for clone in parser.parse_args().clones:
        table.writerows(rows(clone, seen))


def rows(clone: Path, seen: set[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """Of one round, but for runs of rounds before that were handed in again: of a system's name and begin `seen`."""
    found = re.search(r"v\d+\.\d+", clone.resolve().name)
    names = _git(clone, "ls-tree", "-r", "--name-only", "HEAD").splitlines()
    systems = {name.lower(): name for name in names if "/systems/" in name and name.endswith(".json")}
    for name in names:
        result = _RESULT.fullmatch(name)
        if result is None or result["benchmark"] not in BENCHMARKS or "power" in name.lower():
            continue
        file = systems.get(f"{result['submitter']}/systems/{result['system']}.json".lower())
        system = json.loads(_git(clone, "show", f"HEAD:{file}")) if file else {}
        if "NVIDIA" not in str(system.get("accelerator_model_name", "")).upper():
            continue
        try:
            log = _git(clone, "show", f"HEAD:{name}")
        except subprocess.CalledProcessError:
            print(f"{name}: not in this clone", file=sys.stderr)
            continue
        said = list(events(log))
        run = (f"{result['submitter']} {result['system']}", _first_ms(said, _WHOLE_RUN[0]))
        if run not in seen:
            seen.add(run)
            yield from of_events(said, {"round": found[0] if found else "", **_of_system(system), **_of_name(result)})


def of_events(log: list[Event], known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of one result file."""
    said = {event["key"]: event["value"] for event in log}
    start_ms, stop_ms = (_first_ms(log, key) for key in _WHOLE_RUN)
    gbs = int(said["global_batch_size"])
    common = known | {
        "gbs": gbs,
        "grad_accum": int(said["gradient_accumulation_steps"]),
        "seq": said.get("max_sequence_length"),
        "run_minutes": round((stop_ms - start_ms) / 60_000, 3) if stop_ms else None,
    }
    stats = _tracked(log) or {_BLOCK_STEP: _of_blocks(log, gbs, said.get("max_sequence_length"))}
    for key, values in stats.items():
        p10, median, p90 = (round(float(each), 5) for each in np.percentile(values, (10, 50, 90)))
        statistic = {"stat_key": key.removesuffix(" in s"), "n_stats": len(values)}
        yield common | statistic | {"median": median, "p10": p10, "p90": p90}


def _tracked(log: list[Event]) -> dict[str, list[float]]:
    points = [event["value"] for event in log if event["key"] == "tracked_stats"]
    found = {key: [float(point[key]) for point in points if key in point] for key in _OF_TRAINING}
    found = {key: values for key, values in found.items() if values}
    return found if set(found) <= {_THROUGHPUT} else {key: found[key] for key in found if key != _THROUGHPUT}


def _of_blocks(log: list[Event], gbs: int, seq: int | None) -> list[float]:
    """Step times of blocks in which anything was trained."""
    blocks = list(spans(log, "block"))
    return [block.length_s / steps for block, steps in zip(blocks, steps_of(blocks, gbs, seq), strict=True) if steps]


def _first_ms(log: list[Event], key: str) -> int:
    """0: there is none."""
    return next((int(event["time_ms"]) for event in log if event["key"] == key), 0)


def _of_system(system: dict[str, Any]) -> dict[str, Any]:
    return {
        "nodes": int(system["number_of_nodes"]),
        "acc_per_node": int(system["accelerators_per_node"]),
        "accelerator": system["accelerator_model_name"],
    }


def _of_name(result: re.Match[str]) -> dict[str, Any]:
    of_file = result.groupdict()
    return {"result_file": of_file.pop("file"), **of_file}


def _git(clone: Path, *command: str) -> str:
    run = subprocess.run(["git", "-C", str(clone), *command], capture_output=True, check=True)
    return run.stdout.decode(errors="replace")


if __name__ == "__main__":
    main()
