"""Which loads are held for power, the telling ones first: a budget may end the list early."""

from __future__ import annotations

from moemodel.model.operators.work import Kind, Pass
from moemodel.profiler.microbench.grid import rotary_sizes
from moemodel.profiler.microbench.points import Point, Sizes
from moemodel.profiler.sections.power import Load

_GEMM = Point(kind=Kind.GEMM, direction=Pass.FORWARD, sizes=Sizes(m=8192, n=8192, k=8192))  # reaches an H100's cap
_FLASH = Sizes(batch=8, heads=16, kv_heads=16, seq=4096, head_dim=128)  # OLMoE's heads, eight sequences
_TOKENS = 16384  # rows: tensors of 67 MB and more, beyond the 50 MB of an H100's cache


def gpu_loads() -> list[Load]:
    """About fifty."""
    attention = Point(kind=Kind.ATTENTION, direction=Pass.FORWARD, sizes=_FLASH)
    return [
        Load(name="idle", point=None, settle_s=2.0),
        Load(name="gemm 8192", point=_GEMM),
        Load(name="idle after work", point=None, settle_s=0.15),  # a tick and a half: the die is still warm
        # shares of the time that the first readings of this project had: held by the slow limit, and not
        *(Load(name=f"gemm 8192, {duty:.0%}", point=_GEMM, duty=duty) for duty in (0.85, 0.7, 0.5, 0.3)),
        _load(Kind.COPY, Pass.FORWARD, Sizes(m=1 << 28)),
        *_both(Kind.ATTENTION, _FLASH),
        *(Load(name=f"attention 4096, {duty:.0%}", point=attention, duty=duty) for duty in (0.6, 0.3)),
        *_grouped(),
        *_gemms(),
        *_both(Kind.SWIGLU, Sizes(m=_TOKENS, n=8192)),
        *_both(Kind.SWIGLU_PACKED, Sizes(m=8 * _TOKENS, n=1024)),
        *_both(Kind.RMS_NORM, Sizes(m=_TOKENS, n=4096)),
        _load(Kind.ADAMW_MIXED, Pass.STEP, Sizes(m=400_000_000)),
        *_both(Kind.CROSS_ENTROPY, Sizes(m=8192, n=50304)),
        _load(Kind.GELU, Pass.FORWARD, Sizes(m=64, n=64), "host-bound gelu 64x64"),
        *_both(Kind.PERMUTE, Sizes(m=_TOKENS, n=2048, experts=64, top_k=8)),
        *_both(Kind.UNPERMUTE, Sizes(m=_TOKENS, n=2048, experts=64, top_k=8)),
        *_both(Kind.GELU, Sizes(m=_TOKENS, n=8192)),
        *_both(Kind.ROTARY, rotary_sizes(8, 2048, 32, 8, 128)),
        _load(Kind.RESIDUAL_ADD, Pass.FORWARD, Sizes(m=_TOKENS, n=4096)),
        *_both(Kind.ROUTER, Sizes(m=32768, experts=128, top_k=8)),
        _load(Kind.ADAMW, Pass.STEP, Sizes(m=400_000_000)),
        _load(Kind.GRAD_NORM, Pass.STEP, Sizes(m=400_000_000)),
        _load(Kind.ACCUMULATE, Pass.BACKWARD, Sizes(m=200_000_000)),
        *_both(Kind.LAYER_NORM, Sizes(m=_TOKENS, n=4096)),
        _load(Kind.BIAS, Pass.BACKWARD, Sizes(m=_TOKENS, n=8192)),
        _load(Kind.EMBEDDING, Pass.BACKWARD, Sizes(m=_TOKENS, n=4096, k=50304)),
        _load(Kind.RELU, Pass.FORWARD, Sizes(m=_TOKENS, n=8192)),
        _load(Kind.ATTENTION_FULL, Pass.FORWARD, _FLASH),
    ]


def _grouped() -> list[Load]:
    even = Sizes(m=65536, n=1024, k=2048, experts=64)
    skewed = Sizes(m=65536, n=1024, k=2048, experts=64, skew=4.0)
    return [
        *(_load(Kind.GROUPED_GEMM, direction, even) for direction in (Pass.FORWARD, Pass.BACKWARD_WEIGHT)),
        _load(Kind.GROUPED_GEMM, Pass.FORWARD, skewed, "grouped_gemm forward skew 4"),
    ]


def _gemms() -> list[Load]:
    return [
        _load(Kind.GEMM, Pass.FORWARD, Sizes(m=4096, n=4096, k=4096)),
        _load(Kind.GEMM, Pass.BACKWARD_INPUT, Sizes(m=8192, n=14336, k=4096)),
        _load(Kind.GEMM, Pass.BACKWARD_WEIGHT, Sizes(m=8192, n=4096, k=14336)),
        _load(Kind.GEMM, Pass.FORWARD, Sizes(m=_TOKENS, n=2048, k=2048)),
        _load(Kind.GEMM, Pass.FORWARD, Sizes(m=4096, n=512, k=1024)),
        _load(Kind.GEMM, Pass.FORWARD, Sizes(m=512, n=8192, k=8192)),
        _load(Kind.GEMM, Pass.FORWARD, Sizes(m=4096, n=50304, k=2048)),
    ]


def cpu_loads() -> list[Load]:
    """Enough to try the chain."""
    gemm = Point(kind=Kind.GEMM, direction=Pass.FORWARD, sizes=Sizes(m=256, n=256, k=128))
    return [
        Load(name="idle", point=None, settle_s=0.05),
        Load(name="gemm", point=gemm),
        Load(name="gemm, 50%", point=gemm, duty=0.5),
        _load(Kind.COPY, Pass.FORWARD, Sizes(m=1 << 20)),
    ]


def _load(kind: Kind, direction: Pass, sizes: Sizes, name: str | None = None) -> Load:
    point = Point(kind=kind, direction=direction, sizes=sizes)
    return Load(name=name or str(point), point=point)


def _both(kind: Kind, sizes: Sizes) -> list[Load]:
    return [_load(kind, direction, sizes) for direction in (Pass.FORWARD, Pass.BACKWARD)]
