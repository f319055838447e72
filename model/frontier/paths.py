"""Longest paths through a pipeline's operations: when each can begin, and how much comes behind it.

Axes: N operations, in the order of `Pipeline.operations`; E edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.frontier.pipeline import Pipeline, graph_of
from moemodel.model.schedule.base import Work

_Links = list[list[tuple[int, float]]]


@dataclass(frozen=True, kw_only=True)
class Paths:
    """A pipeline's graph, as arrays.

    Attributes:
        source_E, target_E, lag_s_E: edges: which operation waits for which, and how long a message takes.
        ends: operations that none waits for.
        order: of the operations, each behind those that it waits for.
        before, after: of each operation, those that it waits for and that wait for it, with the message's time.
    """

    source_E: IntArray
    target_E: IntArray
    lag_s_E: FloatArray
    ends: IntArray
    order: list[int]
    before: _Links
    after: _Links

    @classmethod
    def of(cls, pipeline: Pipeline) -> Paths:
        """Of a pipeline.

        Raises:
            MissingExtraError: networkx is not installed.
        """
        graph = graph_of(pipeline)
        import networkx as nx

        index = {work: i for i, work in enumerate(pipeline.operations)}
        lags: list[tuple[Work, Work, float]] = list(graph.edges(data="lag_s"))
        edges = [(index[a], index[b], lag_s) for a, b, lag_s in lags]
        before: _Links = [[] for _ in index]
        after: _Links = [[] for _ in index]
        for a, b, lag_s in edges:
            before[b].append((a, lag_s))
            after[a].append((b, lag_s))
        return cls(
            source_E=np.array([a for a, _, _ in edges], dtype=np.int64),
            target_E=np.array([b for _, b, _ in edges], dtype=np.int64),
            lag_s_E=np.array([lag_s for _, _, lag_s in edges], dtype=np.float64),
            ends=np.array([i for i, links in enumerate(after) if not links], dtype=np.int64),
            order=[index[work] for work in nx.topological_sort(graph)],
            before=before,
            after=after,
        )

    def heads_s(self, time_s_N: Sequence[float]) -> list[float]:
        """When each operation can begin."""
        return _longest(self.order, self.before, time_s_N)

    def tails_s(self, time_s_N: Sequence[float]) -> list[float]:
        """What comes behind the end of each operation, at least."""
        return _longest(self.order[::-1], self.after, time_s_N)

    def makespan_s(self, time_s_N: Sequence[float]) -> float:
        """From the first operation to the end of the last."""
        return self.ends_s(self.heads_s(time_s_N), time_s_N)

    def ends_s(self, heads_s_N: Sequence[float], time_s_N: Sequence[float]) -> float:
        """When the last operation ends."""
        return max(heads_s_N[int(i)] + time_s_N[int(i)] for i in self.ends)


def _longest(order: list[int], links: _Links, time_s_N: Sequence[float]) -> list[float]:
    """Longest path to each operation over its links, without its own time."""
    longest = [0.0] * len(order)
    for i in order:
        most = 0.0
        for j, lag_s in links[i]:
            path = longest[j] + time_s_N[j] + lag_s
            if path > most:
                most = path
        longest[i] = most
    return longest
