"""The heavy load: a large product that drives a GPU into its power cap, so that the governor holds its clock low.

Measured on an H100 80GB HBM3 under its 700 W cap: 8192^3 in FP8 settles at a true 1285 MHz, in bf16 at 1378 MHz.
"""

from __future__ import annotations

import torch

from moemodel.model.operators.work import Kind, Pass
from moemodel.profiler.microbench.cases import Call, Case
from moemodel.profiler.microbench.operands import DTYPE
from moemodel.profiler.microbench.points import Point, Sizes
from moemodel.profiler.microbench.stream_timer import Stream

_GPU_SIZE = 8192  # reaches the power cap of an H100, see above
_CPU_SIZE = 256  # no processor has to be driven anywhere: only the same code is run


class BackgroundLoad:
    """A heavy product and how long it takes.

    Args:
        name: what it is, for a reader.
        case: its call.
        stream: where it runs.

    Attributes:
        name: what it is, for a reader.
        time_s: of one call, about.
    """

    def __init__(self, name: str, case: Case, stream: Stream) -> None:
        self.name = name
        self.case = case
        self.case.run(2)
        stream.synchronize()
        self.time_s = stream.read([stream.queue(self.case, 4)])[0].time_s

    def run(self, calls: int) -> None:
        """Queue it."""
        self.case.run(calls)

    def calls_for(self, seconds: float, at_most: int) -> int:
        """How many calls last about that long; at least one."""
        return max(1, min(at_most, round(seconds / self.time_s)))


def background_load(device: torch.device, stream: Stream) -> BackgroundLoad:
    """The heavy load of a torch device."""
    name, call = _heavy_call(device)
    size = _GPU_SIZE if device.type == "cuda" else _CPU_SIZE
    point = Point(kind=Kind.GEMM, direction=Pass.FORWARD, sizes=Sizes(m=size, n=size, k=size))
    return BackgroundLoad(name, Case(point, (call,)), stream)


def _heavy_call(device: torch.device) -> tuple[str, Call]:
    if device.type != "cuda":
        a = torch.randn(_CPU_SIZE, _CPU_SIZE)
        return f"float32 {_CPU_SIZE}^3", lambda: a @ a
    a = torch.randn(_GPU_SIZE, _GPU_SIZE, device=device, dtype=DTYPE)
    b = torch.randn_like(a)
    try:
        eight = _fp8_call(a, b)
        eight()
        torch.cuda.synchronize()
    except (RuntimeError, NotImplementedError, AttributeError, ValueError):  # this GPU or torch has no FP8 products
        out = torch.empty_like(a)
        return f"bf16 {_GPU_SIZE}^3", lambda: torch.mm(a, b, out=out)
    return f"fp8 {_GPU_SIZE}^3", eight


def _fp8_call(a: torch.Tensor, b: torch.Tensor) -> Call:
    one = torch.ones((), device=a.device)
    x, y = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
    return lambda: torch._scaled_mm(x, y, scale_a=one, scale_b=one, out_dtype=DTYPE)
