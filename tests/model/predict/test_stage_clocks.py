"""Clocks by stage and phase in a prediction: against one clock for all, the longest path, and the governor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.arrays import FloatArray
from moemodel.model.plan.batch import PlanBatch, concatenated
from moemodel.model.predict.predict import predict
from moemodel.model.predict.prediction import Prediction, stage_figures
from moemodel.model.step.system import System

Batch = Callable[..., PlanBatch]
ANY = np.inf
FIGURES = ("step_time_s", "energy_J", "forward_s", "backward_s", "optimizer_s", "bubble_s", "idle_J", "power_W")
SHAPE: dict[str, Any] = {"dp": 1, "pp": 4, "micro_batch": 2, "global_batch": 32}


@pytest.fixture(scope="module")
def opt() -> Architecture:
    return read_architecture("opt-350m")


def clocked(batch: Batch, limits_MHz: Any, **columns: Any) -> PlanBatch:
    """Plans with these clocks by stage and phase, [S, 3] or [P, S, 3]."""
    limits_Hz = np.asarray(limits_MHz, dtype=np.float64) * 1e6
    shape = SHAPE | columns
    return batch(**shape, clock_Hz=limits_Hz.max(axis=(-1, -2)), clock_limits_Hz=limits_Hz)


def stages(*clocks_MHz: float) -> list[list[float]]:
    return [[clock] * 3 for clock in clocks_MHz]


def figures(prediction: Prediction, row: int = 0) -> FloatArray:
    return np.array([getattr(prediction, name)[row] for name in FIGURES])


@pytest.mark.parametrize("clock_MHz", [600.0, 1200.0, 1350.0])
@pytest.mark.parametrize("schedule", [0, 1, 2])
def test_the_same_clock_for_all_is_one_clock(
    clock_MHz: float, schedule: int, opt: Architecture, batch: Batch, machine: System
) -> None:
    """Where no limit holds it: two ways to the same numbers, but for where bisections end."""
    one = predict(opt, batch(**SHAPE, clock_Hz=clock_MHz * 1e6, schedule=schedule, power_cap_W=1e5), machine)
    split = predict(opt, clocked(batch, stages(*[clock_MHz] * 4), schedule=schedule, power_cap_W=1e5), machine)
    assert figures(split) == pytest.approx(figures(one), rel=1e-5)


def test_a_bound_above_what_the_governor_gives_changes_little(opt: Architecture, batch: Batch, machine: System) -> None:
    """The same ceiling found on another grid, with the phases' own clocks in the clock tree."""
    one = predict(opt, batch(**SHAPE, power_cap_W=300.0), machine)
    split = predict(opt, clocked(batch, stages(ANY, ANY, ANY, ANY), power_cap_W=300.0), machine)
    assert figures(split) == pytest.approx(figures(one), rel=2e-3)


def test_many_plans_are_one_plan_many_times(opt: Architecture, batch: Batch, machine: System) -> None:
    rng = np.random.default_rng(0)
    limits = rng.choice([600.0, 900.0, 1200.0, 1500.0, ANY], size=(12, 4, 3))
    limits[3] = limits[3, :1]  # some with stages alike
    caps = rng.choice([250.0, 400.0, 1e5], size=12)
    together = predict(opt, concatenated([clocked(batch, limits, power_cap_W=caps), batch(**SHAPE)]), machine)
    for row in range(12):
        alone = predict(opt, clocked(batch, limits[row], power_cap_W=caps[row]), machine)
        assert figures(together, row) == pytest.approx(figures(alone), rel=1e-9)
    plain = predict(opt, batch(**SHAPE), machine)
    assert figures(together, 12) == pytest.approx(figures(plain), rel=1e-12)
    assert np.isnan(stage_figures(together).set_Hz[12]).all()
    assert stage_figures(plain) is None


def test_parts_add_up(opt: Architecture, batch: Batch, machine: System) -> None:
    found = predict(opt, clocked(batch, [[900, 1200, 600], [1500] * 3, [ANY] * 3, [1200, ANY, 900]]), machine)
    times = ("forward_s", "backward_s", "optimizer_s", "exposed_communication_s", "bubble_s", "host_wait_s")
    energies = ("forward_J", "backward_J", "optimizer_J", "communication_J", "idle_J")
    assert sum(getattr(found, name) for name in times) == pytest.approx(found.step_time_s, rel=1e-9)
    assert sum(getattr(found, name) for name in energies) == pytest.approx(found.energy_J, rel=1e-9)


def test_energy_of_the_stages_is_that_of_the_job(opt: Architecture, batch: Batch, machine: System) -> None:
    found = predict(opt, clocked(batch, stages(900, 1200, 1500, 1800)), machine)
    figures_ = stage_figures(found)
    assert figures_.power_W[0].mean() == pytest.approx(found.power_W[0], rel=1e-9)
    assert figures_.power_W[0].max() == pytest.approx(found.hottest_power_W[0], rel=1e-9)
    assert (np.diff(figures_.set_Hz[0, :, 0]) > 0).all()


def test_slowing_a_stage_that_waits_saves_energy_at_nearly_no_time(
    opt: Architecture, batch: Batch, machine: System
) -> None:
    """The last stage holds the head and is the slowest: the others wait for it, whatever their clock."""
    fast = predict(opt, clocked(batch, stages(1800, 1800, 1800, 1800), micro_batch=1, global_batch=256), machine)
    slow = predict(opt, clocked(batch, stages(1500, 1500, 1500, 1800), micro_batch=1, global_batch=256), machine)
    all_slow = predict(opt, clocked(batch, stages(1500, 1500, 1500, 1500), micro_batch=1, global_batch=256), machine)
    assert slow.energy_J[0] < 0.95 * fast.energy_J[0]
    assert slow.step_time_s[0] < 1.02 * fast.step_time_s[0] < 0.96 * all_slow.step_time_s[0]


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("phase", range(3))
def test_a_lower_bound_is_never_faster(
    stage: int, phase: int, opt: Architecture, batch: Batch, machine: System
) -> None:
    limits = np.tile(np.full((4, 3), 1500.0), (6, 1, 1))
    limits[:, stage, phase] = [1500, 1350, 1200, 900, 600, 300]
    found = predict(opt, clocked(batch, limits, power_cap_W=1e5), machine)
    assert (np.diff(found.step_time_s) >= -1e-12).all()


def test_no_clock_above_what_the_cap_sustains_is_granted(opt: Architecture, batch: Batch, machine: System) -> None:
    cap_W = 300.0
    governed = predict(opt, batch(**SHAPE, power_cap_W=cap_W), machine)
    asked = predict(opt, clocked(batch, stages(600, 600, 600, 1950), power_cap_W=cap_W), machine)
    stand = stage_figures(asked)
    assert stand.set_Hz[0, :3] == pytest.approx(600e6, rel=1e-3)
    assert (stand.set_Hz[0, 3] < 1900e6).all()
    assert asked.hottest_power_W[0] <= 1.02 * cap_W
    assert stand.power_W[0, 3] == pytest.approx(governed.hottest_power_W[0], rel=0.02)


def test_a_phase_below_the_ceiling_leaves_power_to_the_others(opt: Architecture, batch: Batch, machine: System) -> None:
    """The cap holds mean power: with slow forward passes, backward passes get more clock than the governor's."""
    cap_W = 300.0
    governed = predict(opt, clocked(batch, np.full((4, 3), ANY), power_cap_W=cap_W), machine)
    slow_forward = predict(opt, clocked(batch, [[600, ANY, ANY]] * 4, power_cap_W=cap_W), machine)
    last = (0, 3, 1)
    assert stage_figures(slow_forward).set_Hz[last] > 1.01 * stage_figures(governed).set_Hz[last]


def test_memory_does_not_know_the_clock(opt: Architecture, batch: Batch, machine: System) -> None:
    plain = predict(opt, batch(**SHAPE), machine)
    split = predict(opt, clocked(batch, stages(600, 900, 1200, 1500)), machine)
    assert split.memory_B.tolist() == plain.memory_B.tolist()
    assert split.flops.tolist() == plain.flops.tolist()


# ---- changes within a step ------------------------------------------------------------------------------------------

BY_PHASE = [[900, 1500, 1200]] * 4


def test_changes_that_take_no_time_are_exact(opt: Architecture, batch: Batch, machine: System) -> None:
    """Each phase then takes what it takes at its clock in a plan with that clock alone."""
    free = {"power_cap_W": 1e5, "clock_change_s": 0.0}
    found = predict(opt, clocked(batch, BY_PHASE, **free), machine)
    for phase, clock_MHz in (("forward", 900), ("backward", 1500), ("optimizer", 1200)):
        alone = predict(opt, batch(**SHAPE, clock_Hz=clock_MHz * 1e6, power_cap_W=1e5), machine)
        name = f"{phase}_s"
        assert getattr(found, name)[0] == pytest.approx(getattr(alone, name)[0], rel=1e-4)


def test_a_change_longer_than_every_pass_swaps_the_clocks(opt: Architecture, batch: Batch, machine: System) -> None:
    """One stage: forward and backward passes in turn, each at the clock of the one before."""
    shape = {"pp": 1, "micro_batch": 1, "global_batch": 1024, "power_cap_W": 1e5}
    found = predict(opt, clocked(batch, [[900, 1500, 1500]], clock_change_s=10.0, **shape), machine)
    swapped = predict(opt, clocked(batch, [[1500, 900, 900]], clock_change_s=0.0, **shape), machine)
    assert found.forward_s[0] == pytest.approx(swapped.forward_s[0], rel=1e-3)
    assert found.backward_s[0] == pytest.approx(swapped.backward_s[0], rel=1e-3)


def test_what_a_change_costs_is_what_runs_at_the_clock_before(opt: Architecture, batch: Batch, machine: System) -> None:
    """Two passes of one micro-batch, long against the change: each keeps the clock of the one before for so long."""
    shape = {"pp": 1, "micro_batch": 16, "global_batch": 16, "power_cap_W": 1e5}
    limits = [[900, 1500, 1500]]
    change_s = 1e-3
    none = predict(opt, clocked(batch, limits, clock_change_s=0.0, **shape), machine)
    some = predict(opt, clocked(batch, limits, clock_change_s=change_s, **shape), machine)
    slow, fast = (predict(opt, clocked(batch, stages(c), **shape), machine).forward_s[0] for c in (900, 1500))
    assert none.forward_s[0] == pytest.approx(slow, rel=1e-4)
    assert some.forward_s[0] == pytest.approx(change_s + (1 - change_s / fast) * slow, rel=1e-4)


def test_the_cost_of_a_change_shrinks_with_the_pass(opt: Architecture, batch: Batch, machine: System) -> None:
    def missed(micro_batch: int) -> float:
        shape = {"pp": 1, "micro_batch": micro_batch, "global_batch": 256, "power_cap_W": 1e5}
        some, none = (
            predict(opt, clocked(batch, [[900, 1500, 1500]], clock_change_s=s, **shape), machine).forward_s[0]
            for s in (4.5e-3, 0.0)
        )
        return float(none / some - 1)

    assert missed(1) > 2 * missed(4) > 4 * missed(16) > 0


def test_gpipe_changes_its_clock_less_often(opt: Architecture, batch: Batch, machine: System) -> None:
    """Once forward, once backward, whatever the micro-batches; 1F1B's last stage before every pass."""

    def forward_Hz(schedule: int) -> float:
        plan = clocked(batch, BY_PHASE, micro_batch=1, global_batch=64, schedule=schedule, power_cap_W=1e5)
        return float(stage_figures(predict(opt, plan, machine)).clock_Hz[0, 3, 0])

    assert forward_Hz(1) == pytest.approx(900e6, rel=0.1)
    assert forward_Hz(0) > 1.2 * forward_Hz(1)


def test_phases_with_the_same_bound_change_no_clock(opt: Architecture, batch: Batch, machine: System) -> None:
    slow, fast = (
        predict(opt, clocked(batch, stages(900, 1500, 900, 1500), clock_change_s=s), machine) for s in (0.0, 1.0)
    )
    assert figures(slow).tolist() == figures(fast).tolist()
