"""Chips that differ: the straggler of a stage sets the pace, and the others draw the limit too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.predict import chips
from moemodel.model.predict.predict import predict
from moemodel.model.step.system import System

Batch = Callable[..., PlanBatch]


@pytest.mark.parametrize("count", [1, 2, 3, 8, 64, 4096])
def test_the_largest_of_so_many_is_that_of_numbers_that_were_drawn(count: int) -> None:
    random = np.random.default_rng(0)
    drawn = [random.standard_normal(count).max() for _ in range(2000)]
    assert chips.expected_largest(count) == pytest.approx(np.mean(drawn), abs=0.05)


def test_replicas_slow_each_other_down_where_the_limit_holds_them(
    batch: Batch, machine: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = read_architecture("olmoe-1b-7b")
    replicas = [1, 2, 8, 64, 512]
    plans = batch(dp=replicas, micro_batch=4, global_batch=[64 * n for n in replicas], power_cap_W=[450.0] * 5)
    found = predict(model, plans, machine).clock_Hz
    most = chips.straggler_factor(512)
    monkeypatch.setattr(chips, "SPREAD", 0.0)
    slowed = found / predict(model, plans, machine).clock_Hz
    assert slowed[0] == pytest.approx(1.0, rel=1e-9)
    assert (np.diff(slowed) < 0).all()
    # energy of switching rises with the clock at least as the clock: what it takes more is no more of the clock
    assert slowed[-1] > 1 / most


def test_all_chips_draw_the_limit_that_holds_the_straggler(batch: Batch, machine: System) -> None:
    model = read_architecture("olmoe-1b-7b")
    plans = batch(dp=[1, 256], micro_batch=4, global_batch=[4, 1024], power_cap_W=[450.0] * 2)
    alone, many = predict(model, plans, machine).power_W
    assert many == pytest.approx(alone, rel=0.02)
    assert many <= 450.0 * 1.001


def test_a_clock_that_no_limit_holds_is_the_same_on_any_chip(
    batch: Batch, machine: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = read_architecture("olmoe-1b-7b")
    plans = batch(dp=[1, 64], global_batch=[1, 64], clock_Hz=[9e8, 9e8])
    found = predict(model, plans, machine)
    monkeypatch.setattr(chips, "SPREAD", 0.0)
    alike = predict(model, plans, machine)
    for name in ("step_time_s", "energy_J", "power_W", "clock_Hz"):
        np.testing.assert_allclose(getattr(found, name), getattr(alike, name), rtol=1e-9)
