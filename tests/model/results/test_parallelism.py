"""The parallelism study: where curves cross and what findings mean, by points made by hand; what is predicted of it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.parallelism import (
    A100,
    JOINT,
    MEASURED_FASTEST,
    Degrees,
    Point,
    degrees_of,
    joint_sweep,
    slack_order,
    variants,
)
from moemodel.model.results.parallelism_insights import (
    clock_insight,
    crossing,
    degrees_insight,
    fastest_text,
    joint_insight,
    slower_but_less,
)


def point(name: str, step_s: float, energy_J: float, clock: float = 1410.0, *, fits: bool = True) -> Point:
    return Point(name=name, clocks_MHz=(clock,), step_s=step_s, energy_J=energy_J, power_W=energy_J / step_s, fits=fits)


def line(name: str, begin: tuple[float, float], end: tuple[float, float]) -> list[Point]:
    return [point(name, *begin), point(name, *end)]


def test_two_lines_cross_where_they_do() -> None:
    """100 - 10 (t - 10) and 95 - 5 (t - 10) from 10 to 14 s: at t = 11, where both are 90."""
    steep, flat = line("a", (10, 100), (14, 60)), line("b", (10, 95), (14, 75))
    found = crossing(steep, flat)
    assert found is not None
    assert found.crosses_s == pytest.approx((11.0,), abs=0.01)
    assert found.below_from_s == pytest.approx(11.0, abs=0.01)
    assert (found.least_ratio, found.at_s) == pytest.approx((60 / 75, 14.0))
    back = crossing(flat, steep)
    assert back is not None
    assert back.below_from_s is None
    assert back.least_ratio == pytest.approx(0.95)


def test_lines_without_a_time_in_common_do_not_cross() -> None:
    assert crossing(line("a", (1, 5), (2, 4)), line("b", (3, 5), (4, 4))) is None


def test_a_line_below_all_along_lies_below_from_the_begin() -> None:
    found = crossing(line("a", (2, 5), (4, 4)), line("b", (1, 9), (5, 8)))
    assert found is not None
    assert (found.crosses_s, found.below_from_s) == ((), 2.0)


def test_waiting_longer_takes_no_more_energy() -> None:
    """A setting that takes longer and more is not what a plan would take at that time."""
    worse = [point("a", 1, 10), point("a", 2, 6), point("a", 4, 8)]
    found = crossing(worse, line("b", (1, 7), (4, 7)))
    assert found is not None
    assert found.least_ratio == pytest.approx(6 / 7)
    assert found.below_from_s == pytest.approx(1.75, abs=0.01)  # 10 - 4 (t - 1) = 7


def test_plans_of_which_slower_ones_take_more_show_nothing() -> None:
    alike = [point("a", 1, 10), point("b", 2, 20), point("c", 3, 30)]
    assert slower_but_less(alike) == (None, None, 0.0)
    shown = degrees_insight({"job": alike})
    assert (shown.holds, shown.margin) == (False, 0.0)
    assert "the fastest plan, a, takes least energy." in shown.text[0]


def test_a_plan_that_does_not_fit_shows_nothing() -> None:
    found = [point("a", 1, 10), point("b", 2, 20), point("c", 3, 5, fits=False)]
    assert not degrees_insight({"job": found}).holds
    shown = degrees_insight({"job": [*found, point("d", 4, 15)]})
    assert shown.margin == pytest.approx(0.25)
    assert "d takes 25.0% less than b, which is 100.0% faster" in shown.text[0]


def test_a_clock_inside_the_range_is_shown_and_one_at_its_end_is_not() -> None:
    bowl = [point("", 9, 25, 300), point("", 6, 10, 600), point("", 5, 12, 900), point("", 4, 20, 1200)]
    shown = clock_insight(bowl)
    assert shown.holds
    assert shown.margin == pytest.approx(0.5)
    assert shown.figures == {"least_energy_MHz": 600, "longer": pytest.approx(0.5), "as_much_as_at_full_clock_MHz": 400}
    falling = clock_insight(bowl[1:])
    assert not falling.holds
    assert falling.margin == pytest.approx(0.5)


def test_a_pipeline_that_is_faster_anyway_is_no_finding() -> None:
    flat, pipe = Degrees(dp=2, pp=1, tp=1, micro_batch=1), Degrees(dp=1, pp=2, tp=1, micro_batch=1)
    curves = {flat.name: line(flat.name, (10, 100), (12, 90)), pipe.name: line(pipe.name, (9, 80), (12, 60))}
    shown = joint_insight(curves, (flat, pipe))
    assert not shown.holds
    assert shown.text == (f"No pipeline plan is slower at full clock than {flat.name}.",)


def test_a_slower_pipeline_that_saves_is_shown() -> None:
    flat, pipe = Degrees(dp=2, pp=1, tp=1, micro_batch=1), Degrees(dp=1, pp=2, tp=1, micro_batch=1)
    curves = {flat.name: line(flat.name, (10, 100), (14, 90)), pipe.name: line(pipe.name, (11, 105), (15, 65))}
    shown = joint_insight(curves, (flat, pipe))
    assert shown.holds
    assert shown.margin == pytest.approx(0.35)
    assert shown.figures["margin_at_equal_time"] == pytest.approx(1 - 75 / 90)


def test_degrees_make_up_the_gpus_and_tensor_parallelism_stays_in_a_node() -> None:
    found = degrees_of(32, 4)
    assert len(found) == len({degrees.name for degrees in found}) == 3 * 4 * 4
    assert all(degrees.dp * degrees.tp * degrees.pp == 32 and degrees.tp <= 4 for degrees in found)


# ---- predicted ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def a100() -> Calibration:
    return load_calibration(None, A100, key="gpu")


def test_the_order_at_full_clock_is_as_measured_and_what_turns_it_is_said(a100: Calibration) -> None:
    found = variants(a100)
    assert found[0].points[0].name == MEASURED_FASTEST
    text = fastest_text(found)
    assert sum("(as measured)" in line for line in text) == 3
    assert sum("(not as measured)" in line for line in text) == 1


def test_the_stage_with_the_head_is_slowed_last_and_slowing_never_speeds_up(a100: Calibration) -> None:
    """Only the last stage has the head's product: the others wait for it."""
    deep = JOINT[-1]
    assert slack_order(deep, a100)[-1] == deep.pp - 1
    sweep = joint_sweep(deep, a100)
    assert sweep[0].clocks_MHz == (1410.0,) * 4
    assert sweep[-1].clocks_MHz == (510.0,) * 4
    assert all(after.step_s >= before.step_s * (1 - 1e-9) for before, after in pairwise(sweep))
