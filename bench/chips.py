"""How much chips of one kind differ: what the same work takes on each, of GPUs that ran it under one power limit.

    python bench/chips.py [--json] [--profiles FOLDER] [--measured FOLDER]

Chips are compared within a kind (profiles, one chip each: products and attention that the limit held) or within a
machine (reports of `moemodel validate`: plans without a pipeline, all of whose GPUs drew the limit, and did the same).
A chip that needs more for its work sustains a lower clock f, at which P ~ E f v(f), with the calibration's v(f); so
ln E is known but for what all share. Where it stood and how warm it was is part of it.

    spread         standard deviation of ln E over chips, pooled over groups: `model.predict.chips.SPREAD`
    clock_spread   of the logarithm of the clock
    chips, groups  that were compared; `freedom` the degrees of freedom of the pooled figure
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.core.arrays import FloatArray
from moemodel.model.device.power import power_model
from moemodel.model.plan.spec import Plan
from moemodel.model.results.validation import PlanReport, read_report

_HERE = Path(__file__).parent
_PROFILES = _HERE.parent / "calibrate" / "profiles"
_MEASURED = _HERE / "measured"
_HELD_W = 670.0  # of limits of 700 W, which means stay up to 4 % below
_LOADS = ("gemm", "grouped_gemm", "attention", "attention_full")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Chips that did the same.

    Attributes:
        name: of their kind, or their machine.
        gpu: their kind.
        clock_Hz: of each, under each load. [loads, chips]
    """

    name: str
    gpu: str
    clock_Hz: FloatArray

    @property
    def log_clock(self) -> FloatArray:
        """Of each chip, less the mean of all, mean over the loads. [chips]"""
        return _apart(np.log(self.clock_Hz))

    @property
    def log_energy(self) -> FloatArray:
        """Of each chip's work, likewise. [chips]"""
        power = power_model(shipped(self.gpu))
        return -_apart(np.log(power.switching(self.clock_Hz)))


def _apart(values: FloatArray) -> FloatArray:
    return np.asarray((values - values.mean(axis=1, keepdims=True)).mean(axis=0))


def of_profiles(folder: Path) -> Iterator[Group]:
    """Profiles of one kind of GPU that were taken on chips of their own."""
    kinds: dict[str, list[dict[str, float]]] = defaultdict(list)
    for path in sorted(folder.glob("*/power.parquet")):
        manifest = json.loads((path.parent / "manifest.json").read_text())
        kinds[manifest["gpu"]].append(_held(path))
    for gpu, chips in kinds.items():
        loads = sorted(set.intersection(*(set(chip) for chip in chips)))
        if len(chips) > 1 and loads:
            clock_Hz = np.array([[chip[load] for chip in chips] for load in loads])
            yield Group(name=f"profiles of {gpu}", gpu=gpu, clock_Hz=clock_Hz)


def _held(path: Path) -> dict[str, float]:
    """Clocks of a profile's products and attention that the limit held, by load."""
    rows = pq.read_table(path).to_pylist()
    return {
        f"{row['load']} {row['direction']}": row["clock_Hz"]
        for row in rows
        if row["kind"] in _LOADS and row["duty"] == 1 and row["power_W"] > _HELD_W and row["clock_Hz"]
    }


def of_reports(folder: Path) -> Iterator[Group]:
    """Machines of several GPUs whose plans ran."""
    machines: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for path in sorted([*folder.glob("validation*/*.json"), *folder.glob("joint*/*.json")]):
        report = read_report(path)
        device = report.environment.device
        for plan in report.plans:
            machines[(f"{report.environment.gpus} x {device.uuid}", report.environment.gpu)] += _together(plan)
    for (name, gpu), loads in machines.items():
        if loads:
            yield Group(name=name, gpu=gpu, clock_Hz=np.array(loads))


def _together(plan: PlanReport) -> list[list[float]]:
    """Clocks of the GPUs of a plan that did the same under the limit, for each visit."""
    asked = Plan.model_validate(plan.plan)
    visits = [visit.rows for visit in plan.visits if len(visit.rows) == asked.cluster.gpus > 1]
    if asked.parallel.pp > 1:
        return []
    held = [rows for rows in visits if all((row["power_W"] or 0) > _HELD_W for row in rows)]
    clocks = [[row["clock_Hz"] or 0.0 for row in rows] for rows in held]
    return [clocks_Hz for clocks_Hz in clocks if all(clocks_Hz)]


def pooled(groups: Sequence[FloatArray]) -> tuple[float, int]:
    """Standard deviation about the mean of each group, and its degrees of freedom."""
    freedom = sum(len(chips) - 1 for chips in groups)
    return float(np.sqrt(sum(np.square(chips - chips.mean()).sum() for chips in groups) / freedom)), freedom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--profiles", type=Path, default=_PROFILES)
    parser.add_argument("--measured", type=Path, default=_MEASURED)
    arguments = parser.parse_args()
    groups = [*of_profiles(arguments.profiles), *of_reports(arguments.measured)]
    spread, freedom = pooled([group.log_energy for group in groups])
    figures = {
        "spread": spread,
        "clock_spread": pooled([group.log_clock for group in groups])[0],
        "chips": sum(group.clock_Hz.shape[1] for group in groups),
        "groups": len(groups),
        "freedom": freedom,
    }
    if arguments.json:
        print(json.dumps(figures))
        return
    for group in groups:
        shown = "  ".join(f"{value:+.3f}" for value in group.log_energy)
        print(f"{group.name[:40]:40s} {len(group.clock_Hz):4d} loads  {shown}")
    for name, value in figures.items():
        print(f"{name:14s} {value:.4g}")


if __name__ == "__main__":
    main()
