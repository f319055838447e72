"""How unevenly a plan's routers load its experts, as a number: given, seen in others, or taken to be even."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import cast

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.core.documents import parse_data, read_text
from moemodel.model.core.errors import InputError
from moemodel.model.core.json_text import json_data
from moemodel.model.plan.paths import NamesFiles
from moemodel.model.plan.routing import RoutingSpec, balancing_of, routed_architecture
from moemodel.model.records.routing_statistics import (
    STATES,
    Balancing,
    LoadStatistics,
    RoutingStatistics,
    State,
    read_routing_statistics,
    seen,
)
from moemodel.model.records.run import RoutingRecord


@dataclass(frozen=True, kw_only=True)
class SkewForecast:
    """Rows of the busiest expert over the mean, the mean over a model's layers with experts.

    Attributes:
        value: that is predicted for.
        high: that it may well reach: 95th percentile of what was seen, the largest where more than one was, from random
            weights and after training where the plan says nothing; `value` where the plan states it.
        sources: of what was seen, each once.
        measured: whether all of it was.
    """

    value: float
    high: float
    sources: tuple[str, ...] = ()
    measured: bool = True


def skew_of(document: NamesFiles) -> float:
    """That a plan or a search is predicted for.

    Raises:
        InputError: unknown architecture, or a file of statistics that is missing, malformed or of nothing.
    """
    skew = document.routing.skew
    if skew is None or isinstance(skew, float) or skew == "balanced":
        return skew if isinstance(skew, float) else 1.0
    architecture = routed_architecture(read_architecture(document.architecture), document.routing)
    return forecast(document.routing, architecture).value


def forecast(routing: RoutingSpec, architecture: Architecture) -> SkewForecast:
    """The same of an architecture with the plan's routers, and how far it may be off.

    Raises:
        InputError: as `skew_of`.
    """
    blocks, skew = experts_of(architecture), routing.skew
    if not blocks or skew == "balanced" or isinstance(skew, float):
        value = skew if isinstance(skew, float) else 1.0
        return SkewForecast(value=value, high=value)
    balancing = balancing_of(routing)
    if skew is None:
        known = {kind: _ever_seen(*kind, balancing) for kind in {(moe.experts, moe.top_k) for moe in blocks}}
        return replace(_together([known[moe.experts, moe.top_k] for moe in blocks]), value=1.0)
    if skew in ("initial", "trained"):
        return _together([seen(moe.experts, moe.top_k, cast(State, skew), balancing) for moe in blocks])
    return _together([[_in_file(Path(skew), moe, balancing)] for moe in blocks])


def seen_from_random_weights(architecture: Architecture) -> SkewForecast:
    """What routers did from random weights."""
    return _together([seen(moe.experts, moe.top_k, "initial") for moe in experts_of(architecture)])


def experts_of(architecture: Architecture) -> list[Moe]:
    """Blocks of experts, a layer each."""
    return [layer.feed_forward for layer in architecture.layers if isinstance(layer.feed_forward, Moe)]


def _ever_seen(experts: int, top_k: int, balancing: Balancing) -> list[LoadStatistics]:
    """From random weights and after training; what is derived only where nothing was measured."""
    known = [loads for state in STATES for loads in seen(experts, top_k, state, balancing)]
    return [loads for loads in known if loads.measured] or known


def _together(blocks: list[list[LoadStatistics]]) -> SkewForecast:
    """Of blocks, of each what is predicted for, and behind it what else was seen."""
    loads = [one for block in blocks for one in block]
    return SkewForecast(
        value=fmean(block[0].skew for block in blocks),
        high=fmean(max(one.high for one in block) for block in blocks),
        sources=tuple(dict.fromkeys(one.source for one in loads)),
        measured=all(one.measured for one in loads),
    )


def _in_file(path: Path, moe: Moe, balancing: Balancing) -> LoadStatistics:
    """Of a block, by a file of statistics or by the records of a run.

    Raises:
        InputError: with the place.
    """
    file = _of_records(path, moe.top_k) if path.suffix == ".jsonl" else read_routing_statistics(path)
    found = file.of(moe.experts, moe.top_k, None, balancing)
    assert found is not None  # a file has loads of one state or the other
    return found


def _of_records(path: Path, top_k: int) -> RoutingStatistics:
    """The skews of all layers and steps of a run's `routing-rankN.jsonl`, whose tokens get so many experts.

    Raises:
        InputError: with the place.
    """
    lines = enumerate(read_text(path).splitlines(), start=1)
    records = [
        parse_data(json_data(line, f"{path}:{number}"), RoutingRecord, f"{path}:{number}")
        for number, line in lines
        if line.strip()
    ]
    loads_E = [record.rows_E for record in records if sum(record.rows_E)]
    experts = {len(rows_E) for rows_E in loads_E}
    if len(experts) != 1:
        raise InputError(f"{path}: found loads of {sorted(experts)} experts; allowed: of one number of them")
    skews = sorted(max(rows_E) / fmean(rows_E) for rows_E in loads_E)
    low, middle, high = (skews[round(share * (len(skews) - 1))] for share in (0.05, 0.5, 0.95))
    loads = LoadStatistics(
        experts=experts.pop(),
        top_k=top_k,
        state="trained",
        skew=middle,
        low=low,
        high=high,
        count=len(skews),
        tokens=max(sum(loads_E[0]) // top_k, 1),
        measured=True,
        source=f"{path.name}, layer by layer and step by step",
    )
    return RoutingStatistics(name=path.name, loads=[loads])
