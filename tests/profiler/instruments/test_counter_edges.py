"""Edges of energy counters: from readings of a known counter, and how few readings they take."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moemodel.profiler.instruments.counter_edges import CounterEdges, regular_times
from moemodel.profiler.instruments.counter_reading import CounterWatch, Edge, EdgeDetector, EdgeFinder

# --- what an edge is -------------------------------------------------------------------------------------------------


def test_an_edge_lies_halfway_between_two_readings_of_a_counter_that_ticks() -> None:
    """Readings take 2 ms; they are at their middles."""
    detector = EdgeDetector()
    readings = [(0.0, 5.0), (0.01, 5.0), (0.02, 35.0), (0.03, 35.0)]
    edges = [detector.observe(at_s, at_s + 0.002, energy_J) for at_s, energy_J in readings]
    assert [edge for edge in edges if edge] == [Edge(pytest.approx(0.016), pytest.approx(0.01), 35.0)]
    assert detector.ticks
    assert detector.last == (pytest.approx(0.031), 35.0)


def test_of_a_counter_that_changes_at_every_reading_the_reading_is_the_edge() -> None:
    detector = EdgeDetector()
    edges = [detector.observe(i * 0.1, i * 0.1 + 0.002, 30.0 * i) for i in range(10)]
    assert edges[0] is None
    assert [edge.time_s for edge in edges[1:4] if edge] == pytest.approx([0.051, 0.151, 0.251])  # not known yet
    assert [edge.time_s for edge in edges[4:] if edge] == pytest.approx([i * 0.1 + 0.001 for i in range(4, 10)])
    assert {round(edge.width_s, 9) for edge in edges[4:] if edge} == {0.003}
    assert not detector.ticks
    detector.observe(1.0, 1.002, 270.0)  # one reading without a change
    assert detector.ticks


def test_a_reading_that_fails_is_no_change_and_hides_none() -> None:
    detector = EdgeDetector()
    readings = [5.0, None, 5.0, None, 9.0]
    edges = [detector.observe(float(i), float(i), energy_J) for i, energy_J in enumerate(readings)]
    assert edges == [None, None, None, None, Edge(3.0, 2.0, 9.0)]


def test_a_counter_that_runs_backwards_is_told() -> None:
    detector = EdgeDetector()
    for at_s, energy_J in enumerate([100.0, 130.0, 10.0, 40.0]):
        detector.observe(float(at_s), float(at_s), energy_J)
    assert detector.resets_s == [1.5]  # the time of its edge, so that a window that has the one has the other


@pytest.mark.parametrize("edges", [[], [Edge(1.0, 0.005, 30.0), Edge(1.1, 0.004, 60.0)]])
def test_edges_become_columns(edges: list[Edge]) -> None:
    columns = CounterEdges.from_edges(edges)
    assert [Edge(*row) for row in zip(columns.time_s, columns.width_s, columns.energy_J, strict=True)] == edges


def test_regular_edges_are_sharpened_and_irregular_ones_kept() -> None:
    rng = np.random.default_rng(0)
    true_s = 5 + 0.1 * np.arange(400)
    width_s = np.full(400, 0.005)
    seen_s = true_s + rng.uniform(-0.0025, 0.0025, 400)
    assert np.abs(regular_times(seen_s, width_s) - true_s).max() < 5e-4
    ragged_s = np.cumsum(rng.uniform(0.08, 0.12, 400))
    assert np.abs(regular_times(ragged_s, width_s) - ragged_s).max() < 0.02
    assert regular_times(seen_s[:3], width_s[:3]) == pytest.approx(seen_s[:3])


# --- when it is read ----------------------------------------------------------------------------------------------


def _watched(energy_J: Callable[[float], float], seconds: float) -> tuple[EdgeFinder, int]:
    """A finder that was read whenever it wished, and how often."""
    now_s, readings = 0.0, 0

    def read() -> float:
        return energy_J(now_s)

    device: Any = SimpleNamespace(energy_J=read, power_W=lambda: 250.0)
    finder = EdgeFinder(device, lambda: now_s)
    while now_s < seconds:
        now_s = max(now_s + 1e-4, finder.due_s)
        finder.read()
        readings += 1
    return finder, readings


def test_ticks_are_found_with_few_readings() -> None:
    finder, readings = _watched(lambda t: 300 * math.floor((t + 0.017) / 0.1), 20.0)
    assert readings < 20 * 50  # polling every 5 ms would be 4000
    assert len(finder.edges) == pytest.approx(200, abs=2)
    late = list(finder.edges)[20:]
    assert max(edge.width_s for edge in late) < 0.006
    assert all(abs((edge.time_s + 0.017) % 0.1 - 0.05) > 0.045 for edge in late)
    assert len(finder.powers) == 20
    assert finder.read_s == pytest.approx(20.0, abs=0.1)


def test_a_counter_without_ticks_is_read_ten_times_a_second() -> None:
    finder, readings = _watched(lambda t: 300 * t, 20.0)
    assert readings == pytest.approx(205, abs=10)
    assert max(edge.width_s for edge in finder.edges) < 0.01


def test_a_counter_that_changes_its_rhythm_is_found_again() -> None:
    finder, _ = _watched(lambda t: math.floor(t / 0.1) if t < 10 else 100 + math.floor((t - 10) / 0.13), 30.0)
    widths_s = [edge.width_s for edge in finder.edges if edge.time_s > 20]
    assert len(widths_s) == pytest.approx(77, abs=4)
    assert sorted(widths_s)[len(widths_s) // 2] < 0.006


def test_an_error_ends_the_watch_and_is_kept() -> None:
    read = threading.Event()

    def fail() -> None:
        read.set()
        raise RuntimeError("the GPU is lost")

    watch = CounterWatch([SimpleNamespace(due_s=0.0, read=fail)])
    watch.start()
    assert read.wait(10)
    watch.stop()
    assert str(watch.error) == "the GPU is lost"
