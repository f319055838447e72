"""How unevenly routers were seen to load experts: a file that a plan's `routing.skew` names, and the priors that ship.

Skew is rows of the busiest expert over the mean of all, of one layer and one batch. It is 1 at least, and experts over
experts of a token at most, when all tokens choose the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from moemodel.model.core.documents import Strict, read_json
from moemodel.model.core.errors import InputError

State = Literal["initial", "trained"]
PRIORS = Path(__file__).parents[1] / "presets" / "routing"

_Skew = Annotated[float, Field(ge=1.0, le=1e6)]
_Count = Annotated[int, Field(gt=0, le=1_000_000_000, strict=True)]


class LoadStatistics(Strict):
    """Skews of routers of one kind.

    Attributes:
        experts, top_k: of a layer, and of a token.
        state: of the routers: in the first steps from random weights, or after training.
        skew: median.
        low, high: 5th and 95th percentile.
        count: of the skews that these are of.
        tokens: that loads were counted over, for each.
        measured: whether routers were; else from theory.
        source: what was measured, or which theory.
    """

    experts: _Count
    top_k: _Count
    state: State
    skew: _Skew
    low: _Skew
    high: _Skew
    count: _Count
    tokens: _Count
    measured: bool
    source: str

    @model_validator(mode="after")
    def _ordered(self) -> LoadStatistics:
        most = self.experts / self.top_k
        if not self.low <= self.skew <= self.high <= most * (1 + 1e-9):
            raise ValueError(
                f"low {self.low:g}, skew {self.skew:g}, high {self.high:g}; allowed: in this order, and at most "
                f"experts / top_k, {most:g}"
            )
        return self

    def scaled_to(self, experts: int, top_k: int) -> LoadStatistics:
        """For another number of experts: as large a share of what the skew could be above 1."""
        if (experts, top_k) == (self.experts, self.top_k):
            return self
        largest, own = experts / top_k - 1, self.experts / self.top_k - 1
        times = largest / own if own else 0.0
        skews = {name: 1 + (getattr(self, name) - 1) * times for name in ("skew", "low", "high")}
        return self.model_copy(update=skews | {"experts": experts, "top_k": top_k})


class RoutingStatistics(Strict):
    """A file of them.

    Attributes:
        schema_version: of the file.
        name: for a reader.
        loads: at least one.
    """

    schema_version: Literal[1] = 1
    name: str
    loads: list[LoadStatistics] = Field(min_length=1)

    def of(self, experts: int, top_k: int, state: State | None) -> LoadStatistics | None:
        """Of so many experts, or of the nearest ratio of experts to those of a token, scaled; None: of no such state.

        Args:
            experts, top_k: of a layer, and of a token.
            state: of its router; None: of either, measured ones and later ones first.
        """
        found = [loads for loads in self.loads if state in (None, loads.state)]
        if not found:
            return None

        def far(loads: LoadStatistics) -> tuple[bool, float, bool, bool]:
            other = (loads.experts, loads.top_k) != (experts, top_k)
            away = abs(math.log(loads.experts / loads.top_k) - math.log(experts / top_k))
            return other, away, not loads.measured, loads.state == "initial"

        return min(found, key=far).scaled_to(experts, top_k)


def read_routing_statistics(path: Path) -> RoutingStatistics:
    """A file of statistics.

    Raises:
        InputError: it is missing or malformed, with the place.
    """
    return read_json(path, RoutingStatistics)


@cache
def priors() -> tuple[RoutingStatistics, ...]:
    """Those that ship, by the names of their files."""
    return tuple(read_routing_statistics(path) for path in sorted(PRIORS.glob("*.json")))


def prior(experts: int, top_k: int, state: State) -> LoadStatistics:
    """What is known of routers of so many experts: measured before derived, the same number before others scaled.

    Raises:
        InputError: no file that ships knows of the state.
    """
    found: Iterator[LoadStatistics | None] = (file.of(experts, top_k, state) for file in priors())
    known = RoutingStatistics(name="priors", loads=[loads for loads in found if loads is not None])
    best = known.of(experts, top_k, state)
    if best is None:
        raise InputError(f"routing.skew: found {state}; no prior that ships knows of it")
    return best
