"""Strategies of choosing clocks: each keeps what it promises, and plans predicted alone give the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import moemodel
from moemodel.calibration.store.catalogue import shipped
from moemodel.model.core.errors import InputError
from moemodel.model.frontier.frontier import Solver
from moemodel.model.frontier.pipeline import Kind, Pipeline, Table
from moemodel.model.plan.spec import Plan
from moemodel.model.schedule.base import Sizes, Work
from moemodel.model.schedule.registry import find
from moemodel.model.strategies.passes import GraphStrategies, envelope_clocks
from moemodel.model.strategies.strategies import NAMES, Strategies, strategies

_LATE = 1e-9


def plan(**changes: Any) -> Plan:
    return Plan.model_validate(
        {
            "name": "job",
            "architecture": "olmoe-1b-7b",
            "layers": 4,
            "sequence_length": 2048,
            "global_batch": 16,
            "micro_batch": 4,
            "cluster": {"gpu": "h100-sxm-80gb", "gpus": 2},
            "parallel": {"pp": 2},
        }
        | changes
    )


def found(asked: Plan, longer: float) -> Strategies:
    return strategies(asked, shipped(asked.cluster.gpu), longer=longer, even_if_it_does_not_fit=True)


@pytest.fixture(scope="module")
def tables() -> dict[float, Strategies]:
    return {longer: found(plan(), longer) for longer in (0.0, 0.05)}


@pytest.mark.parametrize("longer", [0.0, 0.05])
def test_strategies_stand_in_order_and_save(longer: float, tables: dict[float, Strategies]) -> None:
    rows = {row.name: row for row in tables[longer].rows}
    assert tuple(rows) == NAMES
    assert (rows["max-clock"].time.value, rows["max-clock"].energy.value) == (0.0, 0.0)
    for name in ("one-clock", "power-limit", "joint"):
        assert rows[name].time.value <= longer + _LATE
        assert rows[name].energy.value <= 0.0
    assert rows["joint"].energy.value <= rows["one-clock"].energy.value
    assert rows["perseus"].energy.value < 0
    if longer:
        assert rows["one-clock"].energy.value < -0.05


@pytest.mark.parametrize("longer", [0.0, 0.05])
def test_every_plan_predicted_alone_gives_the_same_numbers(longer: float, tables: dict[float, Strategies]) -> None:
    for row in tables[longer].rows:
        if row.plan is not None:
            alone = moemodel.predict(row.plan, even_if_it_does_not_fit=True)
            assert alone.step_time_s.value == pytest.approx(row.answer.step_time_s.value, rel=1e-9)
            assert alone.it_energy_J.value == pytest.approx(row.answer.it_energy_J.value, rel=1e-9)


def test_intervals_of_differences_hold_them_and_are_narrower_than_those_of_either(
    tables: dict[float, Strategies],
) -> None:
    for row in tables[0.05].rows[1:]:
        energy = row.answer.it_energy_J
        assert row.energy.low <= row.energy.value <= row.energy.high
        assert energy.high is not None
        assert row.energy.high - row.energy.low < (energy.high - (energy.low or 0.0)) / energy.value


def test_no_one_clock_of_the_gpu_is_better(tables: dict[float, Strategies]) -> None:
    """Those that are not far off, one prediction at a time."""
    rows = {row.name: row for row in tables[0.05].rows}
    deadline_s = 1.05 * rows["max-clock"].answer.step_time_s.value
    answers = [
        moemodel.predict(plan(clock_MHz=float(clock)), even_if_it_does_not_fit=True) for clock in range(1590, 1786, 15)
    ]
    least_J = min(a.it_energy_J.value for a in answers if a.step_time_s.value <= deadline_s)
    assert rows["one-clock"].answer.it_energy_J.value == pytest.approx(least_J, rel=1e-9)


def test_the_plans_own_clock_does_not_count(tables: dict[float, Strategies]) -> None:
    again = found(plan(clock_MHz=1200.0), 0.05)
    for row, same in zip(again.rows, tables[0.05].rows, strict=True):
        assert row.answer.it_energy_J.value == same.answer.it_energy_J.value


def test_one_stage_has_no_bubbles_to_slow_passes_in() -> None:
    rows = {row.name: row for row in found(plan(parallel={}, cluster={"gpu": "h100-sxm-80gb", "gpus": 1}), 0.0).rows}
    assert rows["envpipe"].energy.value == pytest.approx(0.0, abs=1e-9)


def test_what_was_never_measured_is_said(tables: dict[float, Strategies]) -> None:
    assert "never measured on a real card" in tables[0.0].notes[0]
    assert any(note.startswith("perseus has clocks by pass") for note in tables[0.0].notes)


@pytest.mark.parametrize("longer", [-0.01, 11.0])
def test_a_share_beyond_sense_is_refused(longer: float) -> None:
    with pytest.raises(InputError, match=r"longer: found .*; allowed: 0 to 10"):
        found(plan(), longer)


def test_a_plan_of_inference_is_refused() -> None:
    with pytest.raises(InputError, match="mode: found inference"):
        found(plan(mode="inference", parallel={}, cluster={"gpu": "h100-sxm-80gb", "gpus": 1}), 0.0)


# ---- on the graph ---------------------------------------------------------------------------------------------------


def unbalanced(slower: float) -> Pipeline:
    """Two stages, the second slower by a factor; energy falls with the square of the clock."""
    tables: dict[tuple[int, Kind] | Work, Table] = {}
    clock_Hz = np.arange(1000.0, 2001.0, 20.0) * 1e6
    kinds: list[Kind] = ["F", "B"]
    for stage, factor in ((0, 1.0), (1, slower)):
        for kind in kinds:
            time_s = 0.05 * factor * 2e9 / clock_Hz
            tables[stage, kind] = Table(
                clock_Hz=clock_Hz, time_s=time_s, energy_J=20.0 * factor * (clock_Hz / 2e9) ** 2
            )
    return Pipeline(
        schedule=find("1f1b"),
        sizes=Sizes(stages=2, virtual=1, micro_batches=4),
        tables=tables,
        waiting_W=(0.0, 0.0),
        idle_W=(0.0, 0.0),
        message_s=(0.0, 0.0),
    )


def test_an_envelope_is_never_longer_and_keeps_the_slow_stage_at_the_highest_clock() -> None:
    case = unbalanced(1.6)
    clocks = envelope_clocks(case)
    assert {hz for work, hz in clocks.items() if work.chunk == 1} == {2e9}
    assert min(hz for work, hz in clocks.items() if work.chunk == 0) < 1.6e9
    envpipe, perseus = (GraphStrategies(case, 0.0).envpipe(), GraphStrategies(case, 0.0).perseus(0.0))
    for passes in (envpipe, perseus):
        assert passes.longer_s == pytest.approx(0.0, abs=1e-9)
    assert perseus.more_J <= envpipe.more_J < 0


def test_changing_a_clock_lengthens_a_pass_by_what_it_does_at_the_one_before() -> None:
    """One stage, F at 2 GHz and B at 1 GHz by turns, in two micro-batches: F B F B. A B begins at 2 GHz, for 10 ms of
    the 50 ms that it would take there: 0.2 of it in 10 ms, the rest in 80 ms. The second F begins at 1 GHz."""
    case = unbalanced(1.0)
    one = Pipeline(
        schedule=case.schedule,
        sizes=Sizes(stages=1, virtual=1, micro_batches=2),
        tables={key: table for key, table in case.tables.items() if isinstance(key, tuple) and key[0] == 0},
        waiting_W=(0.0,),
        idle_W=(0.0,),
        message_s=(0.0,),
    )
    clocks = {work: 2e9 if work.kind == "F" else 1e9 for work in one.operations}
    solver = Solver(one)
    assert solver.at(clocks).time_s == pytest.approx(2 * (0.05 + 0.1))
    late_F = 0.1 * 0.1 + 0.9 * 0.05  # 10 ms of the 100 ms that it takes at 1 GHz
    late_B = 0.2 * 0.05 + 0.8 * 0.1
    assert solver.at(clocks, change_s=0.01).time_s == pytest.approx(0.05 + late_B + late_F + late_B)
