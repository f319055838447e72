"""Which operators are timed at which shapes.

Real transformers and their tensor-parallel shards, plus shapes drawn at random so that what is fitted to them holds
between the real ones. Points come in an order in which any beginning is balanced over kinds and sizes: a budget that
runs out leaves a usable profile.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle

from moemodel.model.operators.work import GEMM_PASSES, Kind, Pass
from moemodel.profiler.microbench.points import Point, Sizes, passes

# Products of real layers, (n, k) of y[m, n] = x[m, k] w[n, k]^T: projections and feed-forward layers of OPT-350M,
# OLMoE, Qwen3, Llama-3, Mixtral, GPT-3, DeepSeek-V3, whole or as a tensor-parallel shard; heads; routers.
_LAYERS = (
    (512, 512), (1024, 512), (768, 768), (2304, 768), (3072, 768), (768, 3072),
    (1024, 1024), (3072, 1024), (4096, 1024), (1024, 4096), (512, 1024), (1600, 1600), (6400, 1600),
    (2048, 2048), (512, 2048), (256, 2048), (8192, 2048), (2048, 8192), (4096, 2048), (2048, 4096), (1024, 2048),
    (5632, 2048), (2048, 5632), (6144, 2048), (2048, 6144), (2560, 2560), (10240, 2560), (2560, 10240),
    (4096, 4096), (1024, 4096), (512, 4096), (6144, 4096), (14336, 4096), (4096, 14336), (11008, 4096),
    (4096, 11008), (28672, 4096), (7168, 4096), (4096, 7168), (3584, 4096), (5120, 5120), (13824, 5120),
    (8192, 8192), (1024, 8192), (2048, 8192), (28672, 8192), (8192, 28672), (7168, 8192), (8192, 7168),
    (7168, 2048), (2112, 7168), (1536, 7168), (448, 832), (960, 2624), (3520, 1216), (4672, 3008),
)  # fmt: skip
# (vocabulary, width) of heads: Llama 2 (32000), GPT-2's padded (50304), Llama 3 (128256), Qwen (the others).
_HEADS = ((32000, 2048), (32000, 4096), (50304, 1024), (50304, 2048), (128256, 4096), (151936, 2048), (152064, 3584))
# Products whose rows do not begin at 16 bytes, (m, n, k): GPT-2's and others' vocabularies as published, unpadded.
_ODD = (
    (2048, 50257, 768), (8192, 50257, 1024), (4096, 50257, 2048), (2048, 50257, 12288), (4096, 50258, 2048),
    (4096, 50260, 2048), (4096, 32001, 4096), (8192, 30522, 1024), (4096, 4097, 2048), (4096, 4098, 2048),
    (8192, 4100, 4096), (2048, 2047, 4096),
)  # fmt: skip
_ROUTERS = ((8, 4096), (64, 2048), (128, 2048), (128, 768), (32, 1024))  # (experts, width)
_TOKENS = (512, 1024, 1536, 2048, 4096, 6144, 8192, 12288, 16384, 32768)  # of a micro-batch, on one rank
_FLOPS_MOST = 9e12  # 15 ms on an H100
_RANDOM_SHARE = 0.25  # assumed: enough that what is fitted holds between real layers

# (n, k) of experts' products: OLMoE, Qwen3-MoE, Switch, Mixtral, DeepSeek; width 2F where gate and up are one.
_EXPERTS = (
    (2048, 2048), (2048, 1024), (1024, 2048), (1536, 2048), (2048, 768), (768, 2048), (3072, 768), (768, 3072),
    (28672, 4096), (4096, 14336), (4096, 7168), (2816, 2048), (1408, 2048), (1024, 1024), (2048, 4096), (512, 2048),
)  # fmt: skip
_GROUPED_FLOPS_MOST = 6e12  # 10 ms on an H100, at the same rate
_GROUPED_WEIGHT_MOST = 1 << 30  # elements: 2 GiB of bf16, and as much of gradients

_STREAM_ROUNDS = 2  # widths at each size
_ROW_ROUNDS = 5  # the same for operators whose kernel depends on the width
# Widths of models (and of one head), of experts, of feed-forward layers: of the models above.
_WIDTHS = (128, 768, 1024, 1600, 2048, 3072, 4096, 5120, 8192)
_EXPERT_WIDE = (256, 512, 768, 1024, 1408, 2048, 4096, 14336)
_WIDE = (1024, 2048, 3072, 5632, 8192, 11008, 14336, 28672)
_STREAM_ELEMENTS = tuple(1 << e for e in (19, 21, 22, 23, 24, 25, 26, 27, 28, 29))  # 1 MB to 1 GB of bf16


def gpu_grid(seed: int) -> list[Point]:
    """About 900 points for a data-centre GPU of 40 GB or more."""
    draw = random.Random(seed)
    groups = [
        _gemms(draw),
        _grouped(draw),
        _attentions(draw),
        *_streams(draw),
        _embeddings(draw),
        _cross_entropies(draw),
        _routers(draw),
        _permutations(draw),
        _optimizers(),
    ]
    return balanced((point for group in groups for point in group), seed)


def balanced(points: Iterable[Point], seed: int) -> list[Point]:
    """The points in an order in which each operator pass is spread evenly over the whole length.

    Within a pass the order is random; point i of n of a pass goes to place (i + jitter) / n.
    """
    draw = random.Random(seed)
    groups: dict[tuple[Kind, Pass], list[Point]] = defaultdict(list)
    for point in dict.fromkeys(points):
        groups[point.kind, point.direction].append(point)
    placed: list[tuple[float, Point]] = []
    for group in groups.values():
        draw.shuffle(group)
        placed += [((i + draw.random()) / len(group), point) for i, point in enumerate(group)]
    return [point for _, point in sorted(placed, key=lambda pair: pair[0])]


def _all_passes(kind: Kind, sizes: Iterable[Sizes]) -> list[Point]:
    return [point for s in sizes for point in passes(kind, s)]


# --- products --------------------------------------------------------------------------------------------------------


def _gemms(draw: random.Random) -> list[Point]:
    real = [(n, k) for n, k in _LAYERS for _ in range(2)] + list(_HEADS) + list(_ROUTERS)
    sizes = [Sizes(m=_tokens(draw, n, k), n=n, k=k) for n, k in real]
    # The m of one (n, k) next to each other show the effect of m alone.
    sizes += [Sizes(m=m, n=4096, k=4096) for m in _TOKENS[::2]] + [Sizes(m=m, n=2048, k=1024) for m in _TOKENS[::2]]
    sizes += [Sizes(m=m, n=n, k=k) for m, n, k in _ODD]
    count = round(_RANDOM_SHARE / (1 - _RANDOM_SHARE) * len(set(sizes)))
    sizes += [_random_gemm(draw) for _ in range(count)]
    return _all_passes(Kind.GEMM, sizes)


def _tokens(draw: random.Random, n: int, k: int) -> int:
    """Tokens that keep the product below the longest wanted."""
    fitting = [m for m in _TOKENS if 2 * m * n * k <= _FLOPS_MOST]
    return draw.choice(fitting or [_TOKENS[0]])


def _random_gemm(draw: random.Random) -> Sizes:
    while True:
        m, n, k = _log_multiple(draw, 256, 32768), _log_multiple(draw, 128, 32768), _log_multiple(draw, 128, 16384)
        if 2e9 <= 2 * m * n * k <= _FLOPS_MOST / 2:  # from some microseconds of an H100 on
            return Sizes(m=m, n=n, k=k)


def _log_multiple(draw: random.Random, low: int, high: int, of: int = 64) -> int:  # as widths of models are
    """A multiple of `of`, uniform in its logarithm."""
    return max(1, round(math.exp(draw.uniform(math.log(low), math.log(high))) / of)) * of


def _grouped(draw: random.Random) -> list[Point]:
    sizes: list[Sizes] = []
    skews = cycle((1.0, 2.0, 4.0, 1.0, 1.5))  # assumed: what routers do, balanced in two of five
    for n, k in _EXPERTS * 3:
        fitting = [e for e in (4, 8, 16, 32, 64, 128) if e * n * k <= _GROUPED_WEIGHT_MOST]
        experts = draw.choice(fitting)
        rows = [m for m in _expert_rows() if 2 * m * n * k <= _GROUPED_FLOPS_MOST]
        sizes.append(Sizes(m=draw.choice(rows), n=n, k=k, experts=experts, skew=min(next(skews), experts / 2)))
    return _all_passes(Kind.GROUPED_GEMM, sizes)


def _expert_rows() -> tuple[int, ...]:
    return (2048, 4096, 8192, 16384, 24576, 32768, 65536, 131072, 262144)


# --- attention -------------------------------------------------------------------------------------------------------

# (query, key-value) heads of models, or of a tensor-parallel shard.
_HEAD_COUNTS = ((8, 8), (12, 12), (16, 16), (32, 8), (32, 4), (16, 2), (64, 8), (32, 32), (16, 8), (24, 8))
_ATTENTION_TOKENS = (2048, 32768)  # fewest and most of a call: from half filled SMs to what a micro-batch has
_ATTENTION_FLOPS_MOST = 4e12  # of a backward pass without a mask: 10 ms at 400 TFLOP/s


def _attentions(draw: random.Random) -> list[Point]:
    causal = list(_attention_sizes(draw, 48))
    full = list(_attention_sizes(draw, 18))
    return _all_passes(Kind.ATTENTION, causal) + _all_passes(Kind.ATTENTION_FULL, full)


def _attention_sizes(draw: random.Random, count: int) -> Iterator[Sizes]:
    lengths, dims = cycle((512, 1024, 2048, 4096, 8192, 1536, 3072)), cycle((64, 128, 128, 96, 64))
    while count:
        heads, kv_heads = draw.choice(_HEAD_COUNTS)
        s = Sizes(
            batch=draw.choice((1, 2, 4, 8, 16)),
            heads=heads,
            kv_heads=kv_heads,
            seq=next(lengths),
            head_dim=next(dims),
        )
        low, high = _ATTENTION_TOKENS
        flops = 10 * s.batch * s.heads * s.seq**2 * s.head_dim
        if low <= s.batch * s.seq <= high and flops <= _ATTENTION_FLOPS_MOST:
            count -= 1
            yield s


# --- streams ---------------------------------------------------------------------------------------------------------


def _streams(draw: random.Random) -> list[list[Point]]:
    by_width = {
        Kind.RMS_NORM: _WIDTHS,
        Kind.LAYER_NORM: _WIDTHS,
        Kind.GELU: _WIDE,
        Kind.RELU: _WIDE,
        Kind.SWIGLU: _WIDE,
        Kind.SWIGLU_PACKED: _EXPERT_WIDE,
        Kind.RESIDUAL_ADD: _WIDTHS,
        Kind.BIAS: (*_WIDTHS, 12288),
    }
    groups = [
        _all_passes(kind, _stream_sizes(draw, widths, _ROW_ROUNDS if kind in _BY_ROW else _STREAM_ROUNDS))
        for kind, widths in by_width.items()
    ]
    groups.append(_all_passes(Kind.ROTARY, _rotary_sizes(draw)))
    for kind in (Kind.ACCUMULATE, Kind.COPY):
        groups.append(_all_passes(kind, [Sizes(m=elements) for elements in _STREAM_ELEMENTS]))
    return groups


_BY_ROW = (Kind.RMS_NORM, Kind.LAYER_NORM, Kind.BIAS)


def _stream_sizes(draw: random.Random, widths: Sequence[int], rounds: int) -> list[Sizes]:
    """Widths dealt out like cards, so that every one occurs and none clings to a size."""
    deck: list[int] = []
    sizes: list[Sizes] = []
    for elements in _STREAM_ELEMENTS * rounds:
        deck = deck or draw.sample(widths, len(widths))
        n = deck.pop()
        sizes.append(Sizes(m=max(64, elements // n // 64 * 64), n=n))
    return sizes


def _rotary_sizes(draw: random.Random) -> list[Sizes]:
    sizes: list[Sizes] = []
    for elements in _STREAM_ELEMENTS[1:]:
        heads, kv_heads = draw.choice(_HEAD_COUNTS)
        head_dim, seq = draw.choice((64, 128)), draw.choice((512, 1024, 2048, 4096))
        sizes.append(
            rotary_sizes(max(1, elements // ((heads + kv_heads) * head_dim * seq)), seq, heads, kv_heads, head_dim)
        )
    return sizes


def rotary_sizes(batch: int, seq: int, heads: int, kv_heads: int, head_dim: int) -> Sizes:
    """Tokens are m (batch stays 1, as work is counted in m x n x batch)."""
    return Sizes(
        m=batch * seq, n=(heads + kv_heads) * head_dim, heads=heads, kv_heads=kv_heads, seq=seq, head_dim=head_dim
    )


def _embeddings(draw: random.Random) -> list[Point]:
    tables = ((32000, 4096), (50304, 1024), (50304, 2048), (128256, 4096), (151936, 2048), (50272, 512), (32128, 768))
    tokens = _TOKENS[2:]
    sizes = [Sizes(m=m, n=n, k=k) for k, n in tables for m in draw.sample(tokens, 5)]
    return _all_passes(Kind.EMBEDDING, [*sizes, *(Sizes(m=m, n=1024, k=2048) for m in (4096, 16384))])


def _cross_entropies(draw: random.Random) -> list[Point]:
    del draw
    # 16 bytes an element at the peak of the backward pass
    sizes = (
        (1024, 32000), (4096, 32000), (32768, 32000), (2048, 50304), (8192, 50304), (16384, 50304),
        (4096, 128256), (8192, 128256), (2048, 151936), (8192, 151936),
    )  # fmt: skip
    return _all_passes(Kind.CROSS_ENTROPY, [Sizes(m=m, n=n) for m, n in sizes])


# --- experts ---------------------------------------------------------------------------------------------------------

# (experts, chosen) of Mixtral (8, 2), OLMoE (64, 8), Qwen3 (128, 8), Switch-Base-128 (128, 1), and between them.
_ROUTINGS = ((8, 2), (16, 4), (32, 1), (64, 8), (64, 2), (128, 8), (128, 1), (64, 6))


def _routers(draw: random.Random) -> list[Point]:
    tokens = (1024, 2048, 4096, 8192, 16384, 32768)
    sizes = [
        Sizes(m=m, experts=e, top_k=k)
        for i, (e, k) in enumerate(_ROUTINGS)
        for m in draw.sample(tokens, 4 if i % 2 else 3)
    ]
    return _all_passes(Kind.ROUTER, sizes)


def _permutations(draw: random.Random) -> list[Point]:
    points: list[Point] = []
    for experts, top_k in (*_ROUTINGS, (64, 8), (128, 8), (8, 2), (8, 2), (16, 4), (8, 1)) * 3:
        n, m = draw.choice((768, 1024, 2048, 4096)), draw.choice((1024, 2048, 4096, 8192, 16384, 32768))
        while m * n * top_k > 1 << 29:  # elements: rows of 1 GiB
            m //= 2
        for kind in (Kind.PERMUTE, Kind.UNPERMUTE):
            points += passes(kind, Sizes(m=m, n=n, experts=experts, top_k=top_k))
    return points


def _optimizers() -> list[Point]:
    counts = (1_000_000, 10_000_000, 50_000_000, 200_000_000, 400_000_000, 1_000_000_000)
    kinds = (Kind.ADAMW, Kind.ADAMW_MIXED, Kind.GRAD_NORM)
    return [point for kind in kinds for m in counts for point in passes(kind, Sizes(m=m))]


# --- small -----------------------------------------------------------------------------------------------------------


def cpu_grid(seed: int) -> list[Point]:
    """Every operator and pass at two or three tiny shapes: enough to try the whole chain without a GPU."""
    products = [Sizes(m=m, n=n, k=k) for m, n, k in ((64, 128, 128), (256, 256, 128), (512, 256, 256), (128, 512, 384))]
    groups = [
        _all_passes(Kind.GEMM, products),
        _all_passes(Kind.GROUPED_GEMM, [Sizes(m=256, n=64, k=128, experts=4, skew=skew) for skew in (1.0, 2.0)]),
        *(_all_passes(kind, _small_attention()) for kind in (Kind.ATTENTION, Kind.ATTENTION_FULL)),
        *(_all_passes(kind, [Sizes(m=m, n=256) for m in (64, 512)]) for kind in _SMALL_STREAMS),
        _all_passes(Kind.ROTARY, [rotary_sizes(b, 64, 4, 2, 32) for b in (1, 4)]),
        _all_passes(Kind.EMBEDDING, [Sizes(m=m, n=128, k=1000) for m in (64, 256)]),
        _all_passes(Kind.CROSS_ENTROPY, [Sizes(m=m, n=1000) for m in (64, 256)]),
        _all_passes(Kind.ROUTER, [Sizes(m=m, experts=8, top_k=2) for m in (64, 512)]),
        *(
            _all_passes(kind, [Sizes(m=m, n=128, experts=8, top_k=2) for m in (64, 512)])
            for kind in (Kind.PERMUTE, Kind.UNPERMUTE)
        ),
        *(
            _all_passes(kind, [Sizes(m=m) for m in (10_000, 200_000)])
            for kind in (Kind.ADAMW, Kind.ADAMW_MIXED, Kind.GRAD_NORM, Kind.ACCUMULATE, Kind.COPY)
        ),
    ]
    return balanced((point for group in groups for point in group), seed)


_SMALL_STREAMS = (
    Kind.RMS_NORM, Kind.LAYER_NORM, Kind.GELU, Kind.RELU, Kind.SWIGLU, Kind.SWIGLU_PACKED, Kind.RESIDUAL_ADD,
    Kind.BIAS,
)  # fmt: skip


def _small_attention() -> list[Sizes]:
    return [
        Sizes(batch=2, heads=4, kv_heads=2, seq=64, head_dim=32),
        Sizes(batch=1, heads=4, kv_heads=4, seq=128, head_dim=32),
    ]


# --- the passive sweep -----------------------------------------------------------------------------------------------


def gpu_sweep() -> list[Point]:
    """Ten operators that between them are bound by every unit."""
    attention = Sizes(batch=8, heads=16, kv_heads=16, seq=4096, head_dim=128)
    return [
        Point(kind=Kind.GEMM, direction=Pass.FORWARD, sizes=Sizes(m=4096, n=4096, k=4096)),
        Point(kind=Kind.ATTENTION, direction=Pass.FORWARD, sizes=attention),
        Point(kind=Kind.GELU, direction=Pass.FORWARD, sizes=Sizes(m=16384, n=8192)),
        Point(kind=Kind.ATTENTION, direction=Pass.BACKWARD, sizes=attention),
        Point(kind=Kind.GROUPED_GEMM, direction=Pass.FORWARD, sizes=Sizes(m=65536, n=1024, k=2048, experts=64)),
        Point(kind=Kind.RMS_NORM, direction=Pass.FORWARD, sizes=Sizes(m=16384, n=4096)),
        Point(kind=Kind.GEMM, direction=Pass.BACKWARD_WEIGHT, sizes=Sizes(m=8192, n=4096, k=4096)),
        Point(kind=Kind.SWIGLU, direction=Pass.BACKWARD, sizes=Sizes(m=16384, n=8192)),
        Point(kind=Kind.CROSS_ENTROPY, direction=Pass.FORWARD, sizes=Sizes(m=8192, n=50304)),
        Point(kind=Kind.RESIDUAL_ADD, direction=Pass.FORWARD, sizes=Sizes(m=16384, n=4096)),
    ]


def cpu_sweep() -> list[Point]:
    """Two of them, tiny."""
    return [
        Point(kind=Kind.GEMM, direction=GEMM_PASSES[0], sizes=Sizes(m=256, n=256, k=128)),
        Point(kind=Kind.GELU, direction=Pass.FORWARD, sizes=Sizes(m=512, n=256)),
    ]
