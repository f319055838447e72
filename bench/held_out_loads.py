"""Sustained clock, power and temperature of loads that were never fitted, against what the calibration says.

    python bench/held_out_loads.py [--json] [--gpu NAME] [--data FILE] [--calibration FILE]
    python bench/held_out_loads.py --measure FILE [--gpu h100] [--shorter SHARE]

Loads are mixtures of operators in turn, some with a pause after each round, in shapes that no section of a profile
holds. Each is held for up to a minute after the GPU rested; the first command compares what was measured so with
`model.load`, which knows the calibration, the power cap and the temperature at the load's beginning.

    clock_mape, power_mape, round_time_mape     means over loads, of the last seconds of each
    temperature_mean_error_C, _worst_error_C    after a load's whole length
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.device.sustained_load import Part, SustainedLoad, sustained_load
from moemodel.model.hardware.gpu import read_gpu
from moemodel.model.operators.work import SHAPE_FIELDS, Kind, Pass, Shape
from moemodel.model.records.calibration import Calibration, read_calibration

_ROOT = Path(__file__).resolve().parent.parent
_REST_S = 8.0
_LAST_S = 5.0  # of a load, that are read


def _part(kind: Kind, direction: Pass, calls: int, **sizes: float) -> dict[str, Any]:
    shape = {name: sizes.get(name, 1) for name in SHAPE_FIELDS}
    return {"kind": str(kind), "direction": str(direction), "calls": calls, "shape": shape}


_F, _B, _S = Pass.FORWARD, Pass.BACKWARD, Pass.STEP
LOADS: tuple[dict[str, Any], ...] = (
    {
        "name": "dense block",
        "seconds": 60.0,
        "pause_s": 0.0,
        "parts": [
            _part(Kind.GEMM, _F, 3, m=12288, n=5120, k=5120),
            _part(Kind.ATTENTION, _F, 2, batch=6, heads=20, kv_heads=20, seq=2048, head_dim=128),
            _part(Kind.GELU, _F, 1, m=12288, n=20480),
            _part(Kind.RMS_NORM, _F, 2, m=12288, n=5120),
        ],
    },
    {
        "name": "experts, three quarters of the time",
        "seconds": 60.0,
        "pause_s": 0.004,
        "parts": [
            _part(Kind.GROUPED_GEMM, _F, 8, m=40960, n=1536, k=3072, experts=40),
            _part(Kind.SWIGLU, _F, 4, m=40960, n=768),
            _part(Kind.PERMUTE, _F, 2, m=8192, n=3072, experts=40, top_k=5),
        ],
    },
    {
        "name": "passes and a long optimizer",
        "seconds": 60.0,
        "pause_s": 0.0,
        "parts": [
            _part(Kind.GEMM, Pass.BACKWARD_WEIGHT, 96, m=10240, n=5120, k=4096),
            _part(Kind.ADAMW_MIXED, _S, 32, m=300_000_000),
        ],
    },
    {
        "name": "attention, a third of the time",
        "seconds": 25.0,
        "pause_s": 0.06,
        "parts": [_part(Kind.ATTENTION, _B, 12, batch=6, heads=20, kv_heads=20, seq=3072, head_dim=128)],
    },
    {
        "name": "memory-bound",
        "seconds": 40.0,
        "pause_s": 0.0,
        "parts": [
            _part(Kind.RESIDUAL_ADD, _F, 4, m=24576, n=5120),
            _part(Kind.LAYER_NORM, _B, 4, m=24576, n=5120),
            _part(Kind.CROSS_ENTROPY, _F, 1, m=6144, n=64000),
        ],
    },
    {
        "name": "products, half of the time",
        "seconds": 25.0,
        "pause_s": 0.012,
        "parts": [_part(Kind.GEMM, _F, 8, m=6144, n=6144, k=6144)],
    },
)


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(gpu: str, file: Path, shorter: float = 1.0) -> None:
    """Hold every load on the GPU that is here, and write what was seen."""
    from moemodel.profiler.microbench.budget import budget_for
    from moemodel.profiler.microbench.harness import Harness
    from moemodel.profiler.platforms.registry import open_named, platform_of

    device, name = open_named(gpu)
    platform = platform_of(device)
    budget = budget_for(device.torch_device)
    rows = []
    with platform.sampler() as sampler:
        bench = Harness(device, budget, 0, sampler, platform.instruments(budget, 0))
        for load in LOADS:
            rows.append(_held(bench, load, load["seconds"] * shorter))
            print(json.dumps({k: v for k, v in rows[-1].items() if k != "parts"}), flush=True)
    info = device.info.model_dump(mode="json", exclude={"uuid"})
    found = {"gpu": name, "device": info, "loads": rows}
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    device.close()


def _held(bench: Any, load: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Rest, then rounds until the time is up."""
    from moemodel.profiler.microbench.points import Point, Sizes

    cases = []
    for part in load["parts"]:
        point = Point(kind=Kind(part["kind"]), direction=Pass(part["direction"]), sizes=Sizes(**part["shape"]))
        case = bench.build(point)
        cases.append((case, bench.warm_up(case), part["calls"]))
    bench.stream.synchronize()
    bench.timer.sleep(_REST_S)
    start_C = bench.device.temperature_C()
    begun_s, samples = bench.timer.now_s(), []
    queued: deque[Any] = deque()
    turns = cycle(range(len(cases)))
    round_s, rounds, last_s = [], 0, bench.timer.now_s()
    while bench.timer.now_s() < begun_s + seconds:
        index = next(turns)
        case, _, calls = cases[index]
        region = bench.stream.queue(case, calls)
        queued.append(region)
        late = bench.timer.now_s() > begun_s + seconds - _LAST_S
        if late:
            samples.append(region)
        if load["pause_s"] and index == len(cases) - 1:
            bench.stream.wait(queued[-1])
            queued.clear()
            bench.timer.pause(load["pause_s"])
        while len(queued) > 2 * len(cases):
            bench.stream.wait(queued.popleft())
        if index == len(cases) - 1:
            now_s = bench.timer.now_s()
            if late:
                round_s.append(now_s - last_s)
            last_s, rounds = now_s, rounds + 1
    end_s, end_C = bench.timer.now_s(), bench.device.temperature_C()
    window = bench.sampler.window(end_s - _LAST_S, end_s)
    read = bench.stream.read(samples)
    busy_s = sum(s.time_s * s.calls for s in read if s.clock_Hz)
    return {
        **load,
        "seconds": end_s - begun_s,
        "start_C": start_C,
        "end_C": end_C,
        "round_s": median(round_s),
        "clock_Hz": sum(s.time_s * s.calls * s.clock_Hz for s in read if s.clock_Hz) / busy_s,
        "clock_reported_Hz": bench.device.reported_clock_Hz(),
        "power_W": None if window is None else window.power_W,
    }


# --- comparing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """A load as predicted and as measured."""

    name: str
    predicted: SustainedLoad
    measured: dict[str, Any]

    def error(self, quantity: str) -> float:
        return float(getattr(self.predicted, quantity) / self.measured[quantity] - 1)

    @property
    def error_C(self) -> float:
        return float(self.predicted.temperature_C - self.measured["end_C"])


def compare(data: dict[str, Any], calibration: Calibration) -> list[Row]:
    """Predict every load of a file that `measure` wrote."""
    cap_W = float(data["device"]["power_limit_W"] or read_gpu(data["gpu"]).power_limit_W or np.inf)
    return [
        Row(name=load["name"], measured=load, predicted=_predicted(load, calibration, cap_W)) for load in data["loads"]
    ]


def _predicted(load: dict[str, Any], calibration: Calibration, cap_W: float) -> SustainedLoad:
    parts = [
        Part(
            kind=Kind(part["kind"]),
            direction=Pass(part["direction"]),
            shape=Shape(**{name: np.array([float(size)]) for name, size in part["shape"].items()}),
            calls=part["calls"],
        )
        for part in load["parts"]
    ]
    return sustained_load(
        parts,
        calibration,
        power_limit_W=cap_W,
        time_s=load["seconds"],
        pause_s=load["pause_s"],
        start_C=load["start_C"],
    )


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """What `--json` prints; errors as fractions, temperatures in degrees."""

    def mape(quantity: str) -> float:
        return float(np.mean([abs(row.error(quantity)) for row in rows]))

    return {
        "clock_mape": mape("clock_Hz"),
        "power_mape": mape("power_W"),
        "round_time_mape": mape("round_s"),
        "temperature_mean_error_C": float(np.mean([abs(row.error_C) for row in rows])),
        "temperature_worst_error_C": max(abs(row.error_C) for row in rows),
        "loads": float(len(rows)),
    }


def _table(rows: Sequence[Row]) -> str:
    lines = [f"{'load':36} {'clock, MHz':>22} {'power, W':>20} {'die, C':>14} {'round, ms':>20}"]
    for row in rows:
        p, m = row.predicted, row.measured
        lines.append(
            f"{row.name:36} {p.clock_Hz / 1e6:6.0f} {m['clock_Hz'] / 1e6:6.0f} {row.error('clock_Hz'):+8.1%} "
            f"{p.power_W:5.0f} {m['power_W']:5.0f} {row.error('power_W'):+8.1%} "
            f"{p.temperature_C:5.0f} {m['end_C']:3.0f} {row.error_C:+4.0f} "
            f"{p.round_s * 1e3:6.2f} {m['round_s'] * 1e3:6.2f} {row.error('round_s'):+6.1%}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--gpu", default="h100-sxm-80gb")
    parser.add_argument("--data", type=Path, help="what --measure wrote; default: what the project ships")
    parser.add_argument("--calibration", type=Path, help="default: the one that ships")
    parser.add_argument("--measure", type=Path, metavar="FILE", help="hold the loads on the GPU here")
    parser.add_argument("--shorter", type=float, default=1.0, help="share of each load's time")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.gpu, arguments.measure, arguments.shorter)
        return
    file = arguments.data or _ROOT / "bench" / "measured" / f"{arguments.gpu}-loads.json"
    calibration = read_calibration(arguments.calibration) if arguments.calibration else shipped(arguments.gpu)
    rows = compare(json.loads(file.read_text(encoding="utf-8")), calibration)
    print(json.dumps(figures(rows)) if arguments.json else _table(rows))


if __name__ == "__main__":
    main()
