"""A point to measure: an operator, which pass of it, and its sizes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from moemodel.model.operators.work import PASSES, SHAPE_FIELDS, Kind, Pass, Shape, Work, work
from moemodel.model.records.profile import OperatorColumns

DTYPE = "bf16"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The fields of `model.operators.work.Shape` as plain numbers."""

    m: int = 1
    n: int = 1
    k: int = 1
    batch: int = 1
    heads: int = 1
    kv_heads: int = 1
    seq: int = 1
    head_dim: int = 1
    experts: int = 1
    top_k: int = 1
    skew: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Point:
    """One operator pass at one shape."""

    kind: Kind
    direction: Pass
    sizes: Sizes

    def operator(self) -> OperatorColumns:
        """The columns of a profile's row that name the operator."""
        return OperatorColumns(kind=str(self.kind), direction=str(self.direction), dtype=DTYPE, **asdict(self.sizes))

    def work(self) -> Work:
        """The least work of one call."""
        return work(self.kind, self.direction, Shape(**{name: getattr(self.sizes, name) for name in SHAPE_FIELDS}))

    def __str__(self) -> str:
        default = Sizes()
        sizes = (f"{f}={getattr(self.sizes, f)}" for f in SHAPE_FIELDS if getattr(self.sizes, f) != getattr(default, f))
        return f"{self.kind} {self.direction} {' '.join(sizes)}"


def passes(kind: Kind, sizes: Sizes) -> list[Point]:
    """A point for every pass of an operator."""
    return [Point(kind=kind, direction=direction, sizes=sizes) for direction in PASSES[kind]]
