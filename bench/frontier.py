"""The time and energy frontier of a pipeline, beside Perseus' solver (`lowtime`) on the same input.

    python bench/frontier.py [--json] [--cases 4x8,4x32,8x32] [--points N] [--repeats N] [--limit SECONDS]

OLMoE-1B-7B in so many stages, a GPU each, with so many micro-batches of 4 x 2,048 tokens and full recomputation under
1F1B, on the shipped calibrations of an H100 and of an A100; every pass of every micro-batch has a clock of its own
(15 MHz apart). Stages are as the model is cut: the last one holds the head, and is slower. `seconds` is for a front of
N points from the fastest step to that of least energy, from the pipeline's tables to clocks: the least of `--repeats`,
since machines have other things to do, and the worse of the two GPUs; `cpu_seconds` are those of this process.
`worst_gap` is how far a point lies above what no clocks can be below, at most.

`lowtime` (Chung et al. 2024; https://pypi.org/project/lowtime), if it can be imported, gets the same graph and tables,
less the energy of waiting as Perseus subtracts it, its time in units of `--unit-ms`, and as long as `--limit` allows
for each case (0: it is left out); it goes from the slowest step to the fastest. `lowtime_seconds` is null where it was
not done by then. Clocks that it assigned, on the way at most 12 times, are held against ours for a step exactly as long
as theirs is at their clocks: `worst_energy_ratio` is our energy over theirs, at most.

lowtime knows no messages, and there are none between stages in these tables: 1F1B has them in its passes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np

from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.frontier.frontier import Frontier, Point, Solver, frontier
from moemodel.model.frontier.pipeline import Pipeline, graph_of
from moemodel.model.frontier.plan_pipeline import pipeline_of
from moemodel.model.plan.spec import Plan
from moemodel.model.schedule.base import Work
from moemodel.model.step.system import system_of

_GPUS = ("h100-sxm-80gb", "a100-sxm-80gb")
_LOOKED_AT = 12  # of what lowtime found on its way


@dataclass(frozen=True, kw_only=True)
class Theirs:
    """What lowtime found: seconds, None if it was not done; clocks of some steps on its way."""

    seconds: float | None
    clocks: list[dict[Work, float]]


def pipeline(gpu: str, stages: int, micro_batches: int) -> Pipeline:
    """Of a case."""
    plan = Plan.model_validate(
        {
            "architecture": "olmoe-1b-7b",
            "sequence_length": 2048,
            "global_batch": 4 * micro_batches,
            "micro_batch": 4,
            "recompute": "full",
            "cluster": {"gpu": gpu, "gpus": stages},
            "parallel": {"pp": stages},
        }
    )
    return pipeline_of(plan, system_of(plan, load_calibration(None, gpu)))


# ---- lowtime --------------------------------------------------------------------------------------------------------


def lowtime(case: Pipeline, *, unit_s: float, limit_s: float) -> Theirs:
    """Its frontier of a pipeline."""
    from lowtime.solver import PhillipsDessouky

    graph, names = _their_graph(case, unit_s)
    start, found = time.perf_counter(), []
    done = True
    for _ in PhillipsDessouky(graph).run():
        found.append([graph.nodes[i]["op"].assigned_knob for i in range(len(names))])
        if time.perf_counter() - start > limit_s:
            done = False
            break
    seconds = time.perf_counter() - start
    looked_at = np.unique(np.linspace(0, len(found) - 1, min(_LOOKED_AT, len(found))).astype(int)).tolist()
    return Theirs(
        seconds=seconds if done else None,
        clocks=[dict(zip(names, found[i], strict=True)) for i in looked_at],
    )


def _their_graph(case: Pipeline, unit_s: float) -> tuple[nx.DiGraph[int], list[Work]]:
    """Nodes are numbered; the first and the last do nothing."""
    from lowtime.operation import DummyOperation, Operation

    ours = graph_of(case)
    names = list(ours)
    number = {work: i for i, work in enumerate(names)}
    specs: dict[tuple[int, str], Any] = {}
    graph: nx.DiGraph[int] = nx.DiGraph()
    for work in names:
        key = (case.stage(work), work.kind)
        specs.setdefault(key, _their_table(case, work, unit_s))
        graph.add_node(number[work], op=Operation(spec=specs[key]))
    source, sink = len(names), len(names) + 1
    graph.add_node(source, op=DummyOperation())
    graph.add_node(sink, op=DummyOperation())
    graph.add_edges_from((number[a], number[b]) for a, b in ours.edges)
    graph.add_edges_from((source, number[work]) for work in names if not ours.in_degree(work))
    graph.add_edges_from((number[work], sink) for work in names if not ours.out_degree(work))
    graph.graph.update(source_node=source, sink_node=sink)
    return graph, names


def _their_table(case: Pipeline, work: Work, unit_s: float) -> Any:
    from lowtime.cost_model import ExponentialModel
    from lowtime.operation import CandidateExecutionOptions, ExecutionOption, OperationSpec

    table, waiting_W = case.table(work), case.waiting_W[case.stage(work)]
    options = CandidateExecutionOptions(
        [
            ExecutionOption(real_time=t, unit_time=unit_s, cost=e - waiting_W * t, knob=clock_Hz)
            for clock_Hz, t, e in zip(
                table.clock_Hz.tolist(), table.time_s.tolist(), table.energy_J.tolist(), strict=True
            )
        ]
    )
    return OperationSpec(options, ExponentialModel(options))


# ---- side by side ---------------------------------------------------------------------------------------------------


def ratios(solver: Solver, theirs: Theirs) -> Iterator[float]:
    """Our energy over theirs, in as much time."""
    for clocks in theirs.clocks:
        point = solver.at(clocks)
        yield solver.least_energy(point.time_s).energy_J / point.energy_J


def run(name: str, gpu: str, options: argparse.Namespace) -> dict[str, float | None]:
    """Figures of a case on one GPU."""
    stages, micro_batches = (int(part) for part in name.split("x"))
    case = pipeline(gpu, stages, micro_batches)
    seconds, cpu_seconds, gaps = zip(*(_timed(case, options.points) for _ in range(options.repeats)), strict=True)
    figures: dict[str, float | None] = {
        "seconds": min(seconds),
        "cpu_seconds": min(cpu_seconds),
        "worst_gap": max(gaps),
    }
    if options.limit > 0 and importlib.util.find_spec("lowtime") is not None:
        theirs = lowtime(case, unit_s=options.unit_ms / 1e3, limit_s=options.limit)
        figures["lowtime_seconds"] = theirs.seconds
        figures["worst_energy_ratio"] = max(ratios(Solver(case, exact=False), theirs))
    return figures


def _timed(case: Pipeline, points: int) -> tuple[float, float, float]:
    """Seconds for a front, those of the processor, and its worst gap."""
    start, cpu_start = time.perf_counter(), time.process_time()
    found = frontier(case, points=points, exact=False)
    return time.perf_counter() - start, time.process_time() - cpu_start, _gap(found)


def _gap(found: Frontier) -> float:
    def gap(point: Point) -> float:
        return point.energy_J / point.bound_J - 1

    return max(map(gap, found.points))


def worst(figures: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Of several GPUs, figure by figure; None where one is missing."""
    return {name: _worst([of_gpu[name] for of_gpu in figures]) for name in figures[0]}


def _worst(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(max(known), 6) if len(known) == len(values) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--cases", default="4x8,4x32,8x32", help="stages x micro-batches")
    parser.add_argument("--points", type=int, default=11, help="of the front")
    parser.add_argument("--repeats", type=int, default=3, help="of ours, the fastest of which counts")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of lowtime on one case and GPU")
    parser.add_argument("--unit-ms", type=float, default=1.0, help="of lowtime's time")
    options = parser.parse_args()
    if options.limit > 0 and importlib.util.find_spec("lowtime") is None:
        print("lowtime can't be imported: pip install lowtime, to have it beside", file=sys.stderr)
    frontier(pipeline(_GPUS[0], 2, 2), points=2, exact=False)  # what is imported on first use counts for no case
    result = {name: worst([run(name, gpu, options) for gpu in _GPUS]) for name in options.cases.split(",")}
    if options.json:
        print(json.dumps(result))
        return
    for name, figures in result.items():
        print(name, ", ".join(f"{figure}: {value}" for figure, value in figures.items()))


if __name__ == "__main__":
    main()
