"""A predicted iteration as Chrome's trace event format has it, which Perfetto (ui.perfetto.dev) opens.

A process for each stage of the pipeline, with a track of what it does and counters of power and memory of one of its
GPUs; times in microseconds (Trace Event Format, Google, section "Complete Events" and "Counter Events").
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from moemodel.model.results.iteration import Iteration, StageLine

_MICROSECONDS = 1e6
_COLOURS = {  # names that the format reserves
    "forward": "thread_state_running",
    "backward": "rail_animation",
    "communication": "rail_load",
    "optimizer": "good",
    "waiting": "grey",
}


def trace_text(laid_out: Iteration) -> str:
    """The file."""
    plan = laid_out.plan
    about = {
        "plan": plan.name,
        "architecture": plan.architecture,
        "predicted": "by moemodel; nothing here was measured",
        "step_time_s": laid_out.step_s,
        "note": laid_out.note,
    }
    events = [event for line in laid_out.stages for event in _events(line)]
    document = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}
    return json.dumps(document, separators=(",", ":"), allow_nan=False) + "\n"


def _events(line: StageLine) -> Iterator[dict[str, Any]]:
    pid = line.stage
    gpus = f"{line.gpus} GPU{'s' if line.gpus > 1 else ''}"
    yield _named("process_name", pid, f"stage {line.stage}, {gpus}")
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}}
    yield _named("thread_name", pid, "one GPU")
    for one in line.slices:
        yield {
            "ph": "X",
            "name": one.name,
            "cat": one.kind,
            "cname": _COLOURS[one.kind],
            "pid": pid,
            "tid": 0,
            "ts": one.start_s * _MICROSECONDS,
            "dur": (one.end_s - one.start_s) * _MICROSECONDS,
            "args": {"power_W": one.power_W}
            | ({} if one.micro_batch < 0 else {"micro_batch": one.micro_batch, "chunk": one.chunk}),
        }
        yield _counter(pid, "power", one.start_s, {"W": one.power_W})
    for at_s, size_B in zip(line.memory_s, line.memory_B, strict=True):
        yield _counter(pid, "memory", at_s, {"GB": size_B * 1e-9})


def _named(what: str, pid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": 0, "args": {"name": name}}


def _counter(pid: int, name: str, at_s: float, values: dict[str, float]) -> dict[str, Any]:
    return {"ph": "C", "name": name, "pid": pid, "ts": at_s * _MICROSECONDS, "args": values}
