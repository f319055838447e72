"""Kernels that frameworks use, over those that calibrations hold: readings of one H100, and what follows from them.

    python bench/kernel_generations.py [--json] [--readings FILE]
    python bench/kernel_generations.py --measure FILE

Without a GPU, from committed readings (torch 2.11, cuDNN 9.19, 700 W; each kernel repeated for a third of a second and
products for longer, in their second half; 2026-11-28):

    flash2, flash1      rate at one clock of FlashAttention-2 and of xformers' kernel over cuDNN's, causal, means over
                        lengths: forward and backward of heads 64 and 128 wide (`model.device.attention`)
    split_accumulation  of products of 8 bits whose sums go to float32 every 128 of depth, over those summed in tensor
                        cores alone (`model.device.precision`)
    cast_B              bytes at a copy's rate that looking for the largest element and casting in both orders take of
                        an element (`model/frameworks/torchtitan.py`)
    fused               share of a copy's rate that kernels of torch.compile reach, which move their least bytes

Each stands beside what ships. `--measure` takes readings anew, on a GPU with torch and nvidia-ml-py.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from moemodel.model.device.attention import RATES
from moemodel.model.device.precision import SPLIT_ACCUMULATION
from moemodel.model.frameworks.registry import framework_of

_READINGS = Path(__file__).parent / "measured" / "kernel-generations" / "h100.jsonl"
_PASSES, _HEADS = ("forward", "backward"), (64, 128)
_GENERATIONS = {"flash2": "flash2", "flash1": "efficient"}
_FUSED = ("swiglu", "swiglu_b", "rms", "rms_b", "rope")

Reading = dict[str, Any]


def read(path: Path) -> list[Reading]:
    """Readings of a file, one a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _per_cycle(readings: list[Reading], kernel: str, direction: str, head_dim: int) -> dict[int, float]:
    """Work a cycle of causal attention, by length."""
    return {
        r["seq"]: r["rate_TFLOPs"] / r["clock_MHz"]
        for r in readings
        if r["what"] == "attention" and r["causal"] and r["kernel"] == kernel
        if r["direction"] == direction and r["head_dim"] == head_dim
    }


def rates(readings: list[Reading], kernel: str) -> dict[str, list[float]]:
    """A kernel's rate at one clock over cuDNN's, by pass, at either head size: geometric means over lengths."""
    found: dict[str, list[float]] = {}
    for direction in _PASSES:
        for head_dim in _HEADS:
            own, best = (_per_cycle(readings, name, direction, head_dim) for name in (kernel, "cudnn"))
            logs = [math.log(own[seq] / best[seq]) for seq in best]
            found.setdefault(direction, []).append(round(math.exp(fmean(logs)), 3))
    return found


def figures(readings: list[Reading]) -> dict[str, object]:
    """What readings say, beside what ships."""
    stream = {r["kernel"]: r["rate_TBps"] for r in readings if r["what"] == "stream"}
    products: dict[str, list[float]] = {}
    for r in readings:
        if r["what"] == "product":
            products.setdefault(r["kernel"], []).append(r["rate_TFLOPs"])
    copy = stream["copy"]
    found: dict[str, object] = {
        name: rates(readings, kernel) | {"shipped": {p: list(getattr(RATES["hopper"][name], p)) for p in _PASSES}}  # type: ignore[index]
        for name, kernel in _GENERATIONS.items()
    }
    split = fmean(products["fp8_t_fast0"]) / fmean(products["fp8_t_fast1"])
    return found | {
        "split_accumulation": {"read": round(split, 3), "shipped": SPLIT_ACCUMULATION},
        "cast_B": {
            "read": round(2 * copy / stream["amax"] + 4 * copy / stream["cast_t"], 2),
            "shipped": framework_of("torchtitan").precisions["fp8"].cast_B,
        },
        "fused": {name: round(stream[name] / copy, 3) for name in _FUSED},
        "products_TFLOPs": {name: round(fmean(rate), 1) for name, rate in products.items()},
    }


# ---- on a GPU -------------------------------------------------------------------------------------------------------

_LENGTHS = ((1024, 16), (2048, 8), (4096, 4), (8192, 2), (16384, 1), (32768, 1))
_SHAPES = (
    *((8192, 28672, 8192), (8192, 8192, 28672), (16384, 28672, 4096), (16384, 4096, 14336), (8192, 8192, 8192)),
    *((16384, 7168, 7168), (16384, 28672, 7168), (16384, 7168, 28672), (16384, 6144, 4096), (4096, 28672, 4096)),
    *((8192, 14336, 8192), (8192, 2560, 8192)),
)


class _Device:
    """A GPU that repeats a kernel and says how long it took, at which clock and power."""

    def __init__(self) -> None:
        import pynvml
        import torch

        pynvml.nvmlInit()
        self.torch: Any = torch
        self._nvml, self._handle = pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)

    def sustained(self, kernel: Callable[[], object], for_s: float) -> Reading:
        """Mean time of a kernel, and mean power and clock while it ran, without the first half."""
        import time

        torch, begin, end = self.torch, *(self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(3):
            begin.record()
            kernel()
            end.record()
        torch.cuda.synchronize()
        times = max(3, min(20_000, int(for_s / max(begin.elapsed_time(end) / 1e3, 1e-5))))
        begin.record()
        for _ in range(times):
            kernel()
        end.record()
        power_W, clock_MHz = [], []
        while not end.query():
            power_W.append(self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1e3)
            clock_MHz.append(self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM))
            time.sleep(0.02)
        half = len(power_W) // 2
        return {
            "time_s": begin.elapsed_time(end) / 1e3 / times,
            "power_W": round(fmean(power_W[half:] or [math.nan])),
            "clock_MHz": round(fmean(clock_MHz[half:] or [math.nan])),
        }


def attention(device: _Device) -> list[Reading]:
    """Of torch's three kernels, 2,048 wide."""
    torch, found = device.torch, []
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels = {
        "flash2": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    core = torch.nn.functional.scaled_dot_product_attention
    for head_dim in _HEADS:
        for seq, batch in _LENGTHS:
            size = (batch, 2048 // head_dim, seq, head_dim)
            q, k, v = (torch.randn(size, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
            flops = 2 * batch * 2048 * seq**2
            for name, backend in kernels.items():
                with sdpa_kernel(backend):
                    plain = [t.detach() for t in (q, k, v)]
                    out = core(q, k, v, is_causal=True)
                    gradient = torch.randn_like(out)
                    passes: dict[str, tuple[Callable[[], object], float]] = {
                        "forward": (lambda plain=plain: core(*plain, is_causal=True), 1.0),  # type: ignore[misc]
                        "backward": (
                            lambda out=out, gradient=gradient, q=q, k=k, v=v: torch.autograd.grad(  # type: ignore[misc]
                                out, (q, k, v), gradient, retain_graph=True
                            ),
                            2.5,
                        ),
                    }
                    for direction, (kernel, times) in passes.items():
                        one = device.sustained(kernel, 0.3)
                        shape = {"direction": direction, "head_dim": head_dim, "seq": seq, "batch": batch}
                        rate = round(times * flops / one["time_s"] / 1e12, 2)
                        found.append(
                            {"what": "attention", "kernel": name, **one, **shape, "causal": True, "rate_TFLOPs": rate}
                        )
    return found


def products(device: _Device) -> list[Reading]:
    """Of 16 bits, and of 8 with either kind of sum."""
    torch, found = device.torch, []
    one = torch.ones((), device="cuda")
    for m, n, k in _SHAPES:
        a, w = (torch.randn(rows, k, device="cuda", dtype=torch.bfloat16) for rows in (m, n))
        a8, w8 = (t.to(torch.float8_e4m3fn) for t in (a, w))

        def narrow(fast: bool, a8: Any = a8, w8: Any = w8) -> object:
            return torch._scaled_mm(a8, w8.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=fast)

        kernels: dict[str, Callable[[], object]] = {
            "bf16": lambda a=a, w=w: a @ w.t(),  # type: ignore[misc]
            "fp8_t_fast1": lambda narrow=narrow: narrow(True),  # type: ignore[misc]
            "fp8_t_fast0": lambda narrow=narrow: narrow(False),  # type: ignore[misc]
        }
        for name, kernel in kernels.items():
            read_ = device.sustained(kernel, 1.2)
            rate = round(2 * m * n * k / read_["time_s"] / 1e12, 2)
            found.append({"what": "product", "kernel": name, **read_, "m": m, "n": n, "k": k, "rate_TFLOPs": rate})
    return found


def streams(device: _Device) -> list[Reading]:
    """A copy, and what torch.compile makes of elementwise chains."""
    torch = device.torch
    silu, norm = torch.nn.functional.silu, torch.nn.functional.rms_norm

    def swiglu(x: Any) -> Any:
        gate, up = x.chunk(2, -1)
        return silu(gate) * up

    def swiglu_b(gradient: Any, x: Any) -> Any:
        gate, up = x.chunk(2, -1)
        s = torch.sigmoid(gate.float())
        return torch.cat((gradient * up * s * (1 + gate * (1 - s)), gradient * silu(gate.float())), -1).to(x.dtype)

    def rope(q: Any, cos: Any, sin: Any) -> Any:
        a, b = q.chunk(2, -1)
        return q * cos + torch.cat((-b, a), -1) * sin

    def both_orders(x: Any, scale: Any) -> Any:
        y = (x.float() * scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        return y, y.t().contiguous()

    make = {"device": "cuda", "dtype": torch.bfloat16}
    x, g, one = torch.randn(16384, 28672, **make), torch.randn(16384, 14336, **make), torch.ones((), device="cuda")
    y, w = (torch.randn(*size, **make).requires_grad_() for size in ((16384, 8192), (8192,)))
    q, turn = torch.randn(4, 4096, 32, 128, **make), torch.randn(1, 4096, 1, 128, **make)
    compiled = {f.__name__: torch.compile(f, dynamic=False) for f in (swiglu, swiglu_b, rope, both_orders)}
    normed = torch.compile(lambda y, w: norm(y, (y.shape[-1],), w), dynamic=False)
    largest = torch.compile(lambda x: x.abs().max(), dynamic=False)
    out = normed(y, w)
    gradient = torch.randn_like(out)
    kernels: dict[str, tuple[Callable[[], object], float]] = {
        "copy": (x.clone, 4.0 * x.numel()),
        "swiglu": (lambda: compiled["swiglu"](x), 3.0 * x.numel()),
        "swiglu_b": (lambda: compiled["swiglu_b"](g, x), 5.0 * x.numel()),
        "amax": (lambda: largest(x), 2.0 * x.numel()),
        "cast_t": (lambda: compiled["both_orders"](x, one), 4.0 * x.numel()),
        "rms": (lambda: normed(y.detach(), w.detach()), 4.0 * y.numel()),
        "rms_b": (lambda: torch.autograd.grad(out, (y, w), gradient, retain_graph=True), 6.0 * y.numel()),
        "rope": (lambda: compiled["rope"](q, turn, turn), 4.0 * q.numel()),
    }
    found = []
    for name, (kernel, size_B) in kernels.items():
        one_ = device.sustained(kernel, 0.3)
        found.append({"what": "stream", "kernel": name, **one_, "rate_TBps": round(size_B / one_["time_s"] / 1e12, 4)})
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--readings", type=Path, default=_READINGS, help="file of readings, one a line")
    parser.add_argument("--measure", type=Path, metavar="FILE", help="take readings on this machine's first GPU")
    options = parser.parse_args()
    if options.measure:
        device = _Device()
        rows = [*attention(device), *streams(device), *products(device)]
        options.measure.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return
    found = figures(read(options.readings))
    print(json.dumps(found) if options.json else "\n".join(f"{name:20} {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
