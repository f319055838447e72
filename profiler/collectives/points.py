"""What is measured of the links: which collectives, sizes and groups, and for how long.

A group of `ranks` is the first so many ranks of the job; the others wait meanwhile. Sizes count the full tensor, as
`model.network.collectives` does: what each rank has before a reduce-scatter or an all-to-all, and after an all-gather.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moemodel.model.network.collectives import Collective
from moemodel.model.records.profile import EXCHANGE, IDLE_LINKS

_ALIGN_B = 16  # of every rank's part, for the widest loads
_KIB, _MIB = 1 << 10, 1 << 20
# Sizes between steps of four; closest between 1 and 16 MiB, where libraries change their protocol.
_BETWEEN_B = (*(3 << i for i in (12, 16, 19, 21, 23, 25, 27)), 2 * _MIB, 8 * _MIB)

_FIRST = (Collective.ALL_GATHER, Collective.REDUCE_SCATTER)  # FSDP2 gives their streams priority
GROUPED = (Collective.ALL_REDUCE, Collective.REDUCE_SCATTER, Collective.ALL_GATHER, Collective.ALL_TO_ALL)


@dataclass(frozen=True, kw_only=True)
class LinkPoint:
    """A collective of `size_B` bytes over the first `ranks` ranks.

    Attributes:
        collective: a `model.network.collectives.Collective`; `EXCHANGE`: every rank sends to the next and receives from
            the one before at once; `IDLE_LINKS`: nothing, for the power that it draws.
        ranks: of the group.
        size_B: of the full tensor.
        skew: of an all-to-all: bytes to the busiest rank over the mean.
        held: hold it for a while too, for its power.
    """

    collective: str
    ranks: int
    size_B: int
    skew: float = 1.0
    held: bool = False

    def __str__(self) -> str:
        skewed = f", skew {self.skew:g}" if self.skew != 1 else ""
        return f"{self.collective} of {self.size_B:,} B over {self.ranks} ranks{skewed}"


@dataclass(frozen=True, kw_only=True)
class OverlapPoint:
    """A collective beside a computation.

    Attributes:
        computation: "gemm" of m x n x k, or "add" of m elements.
        collective, ranks, size_B: as of a `LinkPoint`.
        priority: of the collective's stream: -1 before others, as FSDP2 runs its own; 0 as DDP does.
    """

    computation: str
    m: int
    n: int
    k: int
    collective: str
    ranks: int
    size_B: int
    priority: int

    def __str__(self) -> str:
        shape = f"{self.m}x{self.n}x{self.k}" if self.computation == "gemm" else f"{self.m:,}"
        return f"{self.collective} of {self.size_B:,} B over {self.ranks} ranks beside {self.computation} {shape}"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured, and for how long.

    Attributes:
        sizes_B: of every collective.
        skewed_B, skews: of skewed all-to-alls.
        held_B: sizes at which power is measured.
        overlap_B: sizes of the collectives beside every computation.
        small_overlap_B: beside the first computation alone, last.
        computations: (name, m, n, k).
        stretches, stretch_s, calls_most: a point is the median of so many stretches, each about so long.
        settle_s, window_s: of a load that is held; ten ticks of NVML's counter are a second.
        seconds: for all of it; what is left then is left out.
        timeout_s: of one collective.
        stall_s: without any news, the processes are given up.
    """

    sizes_B: tuple[int, ...]
    skewed_B: tuple[int, ...]
    skews: tuple[float, ...]
    held_B: tuple[int, ...]
    overlap_B: tuple[int, ...]
    small_overlap_B: tuple[int, ...]
    computations: tuple[tuple[str, int, int, int], ...]
    stretches: int
    stretch_s: float
    calls_most: int
    settle_s: float
    window_s: float
    seconds: float
    timeout_s: float
    stall_s: float


def scale_for(*, cpu: bool, ranks: int) -> Scale:
    """1 KiB to 1 GiB within 75 s on two GPUs and 120 s on four; on processors, a second of small ones."""
    if cpu:
        return Scale(
            sizes_B=(_KIB, 12 * _KIB, 64 * _KIB, _MIB),
            skewed_B=(64 * _KIB,),
            skews=(1.5,),
            held_B=(64 * _KIB,),
            overlap_B=(_MIB,),
            small_overlap_B=(),
            computations=(("gemm", 256, 256, 256), ("add", 1 << 16, 0, 0)),
            stretches=3,
            stretch_s=2e-3,
            calls_most=16,
            settle_s=0.02,  # processors have no counter: only the same code is run
            window_s=0.06,
            seconds=60.0,
            timeout_s=60.0,
            stall_s=90.0,
        )
    return Scale(
        sizes_B=(*(_KIB << 2 * i for i in range(11)), *_BETWEEN_B),
        skewed_B=tuple(_KIB << i for i in (6, 8, 10, 12, 14, 16, 18)),
        skews=(1.25, 1.6),  # two, for the slope; on two ranks the busiest can have no more than twice the mean
        held_B=(_KIB, _MIB, 16 * _MIB, 256 * _MIB),
        overlap_B=(128 * _MIB,),
        small_overlap_B=(16 * _MIB,),
        # assumed typical: a small product, a sum bound by memory, and a product that reaches the power cap
        computations=(
            ("gemm", 4096, 8192, 2048),
            ("add", 1 << 27, 0, 0),
            ("gemm", 8192, 8192, 8192),
        ),
        stretches=5,
        stretch_s=0.01,
        calls_most=64,
        settle_s=0.15,  # a tick of NVML's counter and a half, then five ticks
        window_s=0.55,
        seconds=75.0 if ranks <= 2 else 120.0,  # assumed: what a user waits for beside the 280 s of one GPU
        timeout_s=60.0,  # the largest takes milliseconds; NCCL's own ten minutes are too long to find out
        stall_s=90.0,  # longer than a collective's, so that the error is the collective's own
    )


def group_sizes(ranks: int) -> list[int]:
    """2, 4, 8, … and all the ranks of a job."""
    powers = [1 << i for i in range(1, ranks.bit_length()) if 1 << i < ranks]
    return [*powers, ranks]


def link_points(ranks: int, scale: Scale) -> list[LinkPoint]:
    """Everything that is measured of collectives by themselves, in order: small groups first."""
    points = [LinkPoint(collective=IDLE_LINKS, ranks=ranks, size_B=0, held=True)]
    for group in group_sizes(ranks):
        names = [*GROUPED, EXCHANGE, *([Collective.SEND_RECV] if group == 2 else [])]
        for name in names:
            points += [_point(name, group, size_B, held=size_B in scale.held_B) for size_B in sorted(scale.sizes_B)]
        for skew in scale.skews:
            points += [_point(Collective.ALL_TO_ALL, group, size_B, skew=skew) for size_B in sorted(scale.skewed_B)]
    return points


def overlap_points(ranks: int, scale: Scale) -> list[OverlapPoint]:
    """Every computation beside every collective, over all ranks."""
    sizes = [(computation, size_B) for computation in scale.computations for size_B in scale.overlap_B]
    sizes += [(scale.computations[0], size_B) for size_B in scale.small_overlap_B]
    return [
        OverlapPoint(
            computation=name,
            m=m,
            n=n,
            k=k,
            collective=str(collective),
            ranks=ranks,
            size_B=divisible_B(size_B, ranks),
            priority=-1 if collective in _FIRST else 0,
        )
        for (name, m, n, k), size_B in sizes
        for collective in (*GROUPED, EXCHANGE)
    ]


def _point(name: str, group: int, size_B: int, *, skew: float = 1.0, held: bool = False) -> LinkPoint:
    return LinkPoint(collective=str(name), ranks=group, size_B=divisible_B(size_B, group), skew=skew, held=held)


def divisible_B(size_B: int, ranks: int) -> int:
    """The size, made to divide among the ranks in aligned parts."""
    unit_B = _ALIGN_B * ranks
    return max(unit_B, size_B // unit_B * unit_B)


def split_elements(elements: int, ranks: int, skew: float) -> list[int]:
    """Elements that every rank sends to each: rank 0 gets `skew` times the mean, the others share the rest evenly."""
    part = _ALIGN_B // 2
    busiest = int(elements * skew / ranks) // part * part
    others = (elements - busiest) // (ranks - 1) // part * part
    return [busiest, *([others] * (ranks - 1))]


def longest(points: Sequence[LinkPoint | OverlapPoint]) -> int:
    """Bytes of the largest tensor among points."""
    return max((math.ceil(p.size_B * getattr(p, "skew", 1.0)) for p in points), default=0)
