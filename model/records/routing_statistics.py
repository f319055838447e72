"""How unevenly routers were seen to load experts: a file that a plan's `routing.skew` names, and the priors that ship.

Skew is rows of the busiest expert over the mean of all, of one layer and one batch. It is 1 at least, and experts over
experts of a token at most, when all tokens choose the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from moemodel.model.core.documents import Strict, read_json
from moemodel.model.core.errors import InputError

State = Literal["initial", "trained"]
STATES: tuple[State, ...] = ("initial", "trained")
Balancing = Literal["none", "loss", "bias"]
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
        balancing: what made the routers load experts evenly: nothing, a loss, or biases; None: not known, or all one.
        hidden: width of the models, where they were measured.
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
    balancing: Balancing | None = None
    hidden: _Count | None = None

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

    def of(
        self, experts: int, top_k: int, state: State | None, balancing: Balancing | None = None
    ) -> LoadStatistics | None:
        """Of so many experts, or of the nearest ratio of experts to those of a token, scaled; None: of no such state.

        Args:
            experts, top_k: of a layer, and of a token.
            state: of its router; None: of either, measured ones and later ones first.
            balancing: of its router; None: whichever.
        """
        found = [loads for loads in self.loads if state in (None, loads.state)]
        if not found:
            return None
        return min(found, key=_distance(experts, top_k, balancing)).scaled_to(experts, top_k)


def _distance(experts: int, top_k: int, balancing: Balancing | None) -> Callable[[LoadStatistics], tuple[float, ...]]:
    """How far statistics are from what is asked for, what matters most first.

    Whether a rule balances comes before the size, which changes less; of ratios alike the nearest number of experts; of
    one size measured ones, those of wider models (which plans are of), of the rule itself, of later steps.
    """

    def distance(loads: LoadStatistics) -> tuple[float, ...]:
        return (
            _balanced_otherwise(loads, balancing),
            (loads.experts, loads.top_k) != (experts, top_k),
            round(abs(math.log(loads.experts * top_k / (loads.top_k * experts))), 9),
            abs(math.log(loads.experts / experts)),
            not loads.measured,
            -(loads.hidden or 0),
            balancing is not None and loads.balancing != balancing,
            loads.state == "initial",
        )

    return distance


def _balanced_otherwise(loads: LoadStatistics, balancing: Balancing | None) -> bool:
    """Whether a rule balances the one and none the other, and has had the time to."""
    known = balancing is not None and loads.balancing is not None and loads.state != "initial"
    return known and (balancing == "none") != (loads.balancing == "none")


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


def prior(experts: int, top_k: int, state: State, balancing: Balancing | None = None) -> LoadStatistics:
    """What is known of routers of so many experts: balanced alike before otherwise, the same number before others
    scaled, measured before derived. Of trained routers that no rule balances, even chance is the least.

    Raises:
        InputError: no file that ships knows of the state.
    """
    best = _all_priors().of(experts, top_k, state, balancing)
    if best is None:
        raise InputError(f"routing.skew: found {state}; no prior that ships knows of it")
    return _at_least_by_chance(best) if state == "trained" and best.balancing == "none" else best


def seen(experts: int, top_k: int, state: State, balancing: Balancing | None = None) -> list[LoadStatistics]:
    """All that is known of them: the prior, and behind it what was measured elsewhere of the nearest, balanced alike.

    Raises:
        InputError: as `prior`.
    """
    best = prior(experts, top_k, state, balancing)
    found = (file.of(experts, top_k, state, balancing) for file in priors())
    others = [loads for loads in found if loads is not None and loads.measured and loads.source != best.source]
    return [best, *(loads for loads in others if not _balanced_otherwise(loads, balancing))]


@cache
def _all_priors() -> RoutingStatistics:
    return RoutingStatistics(name="priors", loads=[loads for file in priors() for loads in file.loads])


def _at_least_by_chance(loads: LoadStatistics) -> LoadStatistics:
    """Not below what is derived of as many experts."""
    theory = [one for one in _all_priors().loads if not one.measured and one.state == loads.state]
    if not theory:
        return loads
    least = RoutingStatistics(name="theory", loads=theory).of(loads.experts, loads.top_k, loads.state)
    assert least is not None  # it is of this state
    return loads.model_copy(
        update={name: max(getattr(loads, name), getattr(least, name)) for name in ("low", "skew", "high")}
    )
