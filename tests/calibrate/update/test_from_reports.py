"""Refitting by validations: known factors come back, what doesn't help isn't kept, and all says where it is from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from moemodel.calibration.update.from_reports import FEWEST, Update, kind_of, runs_of_reports, update
from moemodel.calibration.update.scale_factors import ScaleFactor, memory_knobs, power_knobs, time_knobs
from moemodel.model.core.errors import CalibrationError, InputError
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.measured import QUANTITIES, predict_as_run
from moemodel.model.results.validation import Report, Visit, row_of
from tests.reports import plan_report, whole_report

PlanOf = Callable[..., Plan]
Reported = Callable[..., Report]


def _plans(plan_of: PlanOf) -> list[Plan]:
    two: dict[str, Any] = {"cluster": {"gpus": 2}, "micro_batch": 4}
    moe: dict[str, Any] = {"architecture": "olmoe-1b-7b", "layers": 2, "global_batch": 4, "cluster": {"gpus": 2}}
    return [
        plan_of(name="one", micro_batch=4),
        plan_of(name="small", micro_batch=1, sequence_length=128),
        plan_of(name="dp", **two, parallel={"dp": 2}),
        plan_of(name="zero", **two, parallel={"dp": 2, "zero_stage": 3}),
        plan_of(name="tp", **two, parallel={"tp": 2}),
        plan_of(name="pp", **two, parallel={"pp": 2}),
        plan_of(name="ep", **moe, parallel={"dp": 2, "ep": 2}),
    ]


@pytest.fixture(scope="module")
def reported(plan_of: PlanOf) -> Reported:
    """A report on plans that measured what a calibration predicts, times something."""

    def make(truth: Calibration, factors: dict[str, float] | None = None, plans: list[Plan] | None = None) -> Report:
        found = []
        for plan in _plans(plan_of) if plans is None else plans:
            values = predict_as_run(plan, truth).values
            factor = (factors or {}).get(plan.name, 1.0)
            row = {column: values[name] for name, column in QUANTITIES.items() if name in values}
            row |= {"step_time_s": factor * row["step_time_s"], "energy_J": factor * row["energy_J"], "rank": 0}
            visit = Visit(repeat=0, clock_held=None, seconds=1.0, rows=(row_of(row),))
            found.append(plan_report(plan, visit))
        return whole_report(*found)

    return make


def _knob(calibration: Calibration, name: str) -> ScaleFactor:
    knobs = [*time_knobs(calibration), *power_knobs(calibration), *memory_knobs(calibration)]
    return next(knob for knob in knobs if knob.name == name)


def _factors(found: Update) -> dict[str, float]:
    return {one.name: one.factor for part in found.parts for one in part.moved}


# ---- the factors ----------------------------------------------------------------------------------------------------


def test_kernels_take_so_many_times_as_long(calibration: Calibration) -> None:
    slower = _knob(calibration, "kernels").change(calibration, 1.3)
    for before, after in zip(calibration.operators, slower.operators, strict=True):
        p, q = ({n: x.value for n, x in fit.parameters.items()} for fit in (before, after))
        assert q["t0"] == pytest.approx(1.3 * p["t0"])
        assert q["memory_efficiency"] == pytest.approx(p["memory_efficiency"] / 1.3)
        assert q["p"] == p["p"]


def test_a_plan_that_only_computes_takes_so_many_times_as_long(calibration: Calibration, plan_of: PlanOf) -> None:
    """At a clock that is given, and with a host in no hurry."""
    plan = plan_of(micro_batch=8, clock_MHz=1200.0)
    slower = _knob(calibration, "kernels").change(calibration, 1.3)
    before, after = (predict_as_run(plan, c).values["step_time"] for c in (calibration, slower))
    assert after == pytest.approx(1.3 * before, rel=2e-3)


def test_links_are_no_faster_than_the_wire(calibration: Calibration) -> None:
    knob = _knob(calibration, "links")
    fastest = knob.change(calibration, knob.highest).network.parameters
    assert max(p.value for name, p in fastest.items() if name.startswith("efficiency_")) == pytest.approx(1.0)
    overlap = _knob(calibration, "overlap")
    assert overlap.change(calibration, overlap.highest).network.parameters["overlap"].value == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["kernels", "host", "links", "start", "overlap", "dynamic", "link_power", "workspace"])
def test_every_factor_changes_something_and_leaves_one_alone(name: str, calibration: Calibration) -> None:
    knob = _knob(calibration, name)
    assert knob.change(calibration, 1.0) == calibration
    assert knob.change(calibration, 0.9) != calibration
    assert knob.spread > 0


# ---- the fit --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slower(calibration: Calibration, reported: Reported) -> Update:
    """Kernels took 15 % longer and 15 % less energy than was calibrated."""
    truth = _knob(calibration, "dynamic").change(_knob(calibration, "kernels").change(calibration, 1.15), 0.85)
    return update(calibration, [reported(truth)], "r.json")


def test_factors_come_back(slower: Update) -> None:
    """As far as their priors let them; plans left out gain nearly as much as those that were fitted."""
    moved = {one.name: one for one in slower.parts[0].moved}
    assert np.log(moved["kernels"].factor) == pytest.approx(np.log(1.15), rel=0.25)
    assert np.log(moved["dynamic"].factor) == pytest.approx(np.log(0.85), rel=0.25)
    assert slower.parts[0].helps
    assert "time and power" in slower.kept
    for errors in slower.parts[0].errors.values():
        assert errors.plans == 7
        assert errors.fitted < 0.5 * errors.before
        assert errors.left_out < 0.5 * errors.before
    assert all(moved[name].error < moved[name].error_before for name in ("kernels", "dynamic"))


def test_memory_is_fitted_by_itself(calibration: Calibration, reported: Reported, plan_of: PlanOf) -> None:
    """A workspace whose size was only assumed may move far."""
    p = calibration.memory.parameters
    assumed = p | {"workspace": p["workspace"].model_copy(update={"error": None})}
    start = calibration.model_copy(update={"memory": calibration.memory.model_copy(update={"parameters": assumed})})
    truth = _knob(start, "workspace").change(start, 4.0)
    plans = [plan_of(name=f"p{n}", sequence_length=128, micro_batch=n) for n in (1, 2, 4)]
    found = update(start, [reported(truth, plans=plans)], "r.json")
    assert found.kept == ("memory",)
    assert 2 < _factors(found)["workspace"] <= 4.1
    errors = found.parts[1].errors["memory"]
    assert errors.left_out < 0.5 * errors.before
    assert found.calibration.operators == calibration.operators
    assert found.calibration.memory.parameters["workspace"].origin == "fitted"


def test_where_nothing_is_wrong_nothing_moves_or_is_kept(calibration: Calibration, reported: Reported) -> None:
    found = update(calibration, [reported(calibration)], "r.json")
    assert _factors(found) == pytest.approx(dict.fromkeys(_factors(found), 1.0), abs=1e-6)
    assert found.kept == ()
    assert found.calibration == calibration


def test_a_single_plan_that_is_off_does_not_move_all(calibration: Calibration, reported: Reported) -> None:
    """One measurement at half the speed, and the fit of the others stays within a few per cent."""
    found = update(calibration, [reported(calibration, {"one": 2.0})], "r.json")
    assert abs(np.log(_factors(found)["kernels"])) < 0.03


def test_what_no_plan_depends_on_stays(calibration: Calibration, reported: Reported, plan_of: PlanOf) -> None:
    alone = [plan_of(name=f"p{size}", micro_batch=size) for size in (2, 4, 8)]
    truth = _knob(calibration, "kernels").change(calibration, 1.2)
    found = update(calibration, [reported(truth, plans=alone)], "r.json")
    assert {"links", "start", "overlap", "link_power"}.isdisjoint(_factors(found))
    assert found.calibration.network == calibration.network
    assert found.left_out == "3 plans, each left out by itself"


# ---- what is kept ---------------------------------------------------------------------------------------------------


def test_what_is_fitted_says_so(slower: Update, calibration: Calibration) -> None:
    before, after = (c.power.parameters["flop_J"] for c in (calibration, slower.calibration))
    assert after.origin == "fitted"
    assert after.source.startswith(f"{before.source}; times ")
    assert after.source.endswith("by r.json: 7 plans on 2 x NVIDIA H100 80GB HBM3, 2026-11-22T05:00:00+00:00")
    assert after.error is not None
    assert slower.calibration.power.parameters["base_W"] == calibration.power.parameters["base_W"]
    assert "Updated (time and power" in slower.calibration.provenance
    assert slower.left_out == "6 kinds of plans, each left out as a whole"


def test_it_is_a_calibration_that_reads_back(slower: Update) -> None:
    assert Calibration.model_validate_json(slower.calibration.model_dump_json()) == slower.calibration


def test_what_does_not_help_plans_left_out_is_not_kept_unless_forced(
    calibration: Calibration, reported: Reported, plan_of: PlanOf
) -> None:
    """Every plan is off in a way of its own: what is learnt of two is wrong for the third."""
    plans = [plan_of(name=f"p{size}", micro_batch=size) for size in (2, 4, 8)]
    report = reported(calibration, {"p2": 1.4, "p4": 0.7, "p8": 1.0}, plans)
    found = update(calibration, [report], "r.json")
    part = next(part for part in found.parts if part.name == "time and power")
    assert not part.helps
    assert "time and power" not in found.kept
    assert found.calibration.operators == calibration.operators
    forced = update(calibration, [report], "r.json", force=True)
    assert "time and power" in forced.kept
    assert forced.calibration.operators != calibration.operators


# ---- what it refuses ------------------------------------------------------------------------------------------------


def test_too_few_plans(calibration: Calibration, reported: Reported, plan_of: PlanOf) -> None:
    plans = [plan_of(name=f"p{size}", micro_batch=size) for size in (2, 4)]
    with pytest.raises(InputError) as caught:
        update(calibration, [reported(calibration, plans=plans)], "r.json")
    assert str(caught.value) == (
        f"the reports hold 2 plans that were measured; needed: at least {FEWEST}, so that some can be left out of the "
        "fit"
    )


def test_two_reports_count_together(calibration: Calibration, reported: Reported, plan_of: PlanOf) -> None:
    plans = [plan_of(name=f"p{size}", micro_batch=size) for size in (2, 4)]
    report = reported(calibration, plans=plans)
    later = report.model_copy(update={"created": "2026-11-22T06:00:00+00:00"})
    assert len(runs_of_reports([report, later])) == 4
    assert update(calibration, [report, later], "r.json").plans == 4


def test_a_report_counts_once(slower: Update, calibration: Calibration, reported: Reported) -> None:
    """Given twice, or to a calibration that rests on it already."""
    report = reported(calibration)
    with pytest.raises(InputError, match="is given twice; give each once"):
        update(calibration, [report, report], "r.json")
    with pytest.raises(InputError, match=r"is in calibration .* already; update the one before it"):
        update(slower.calibration, [report], "r.json")


def test_another_gpu(calibration: Calibration, reported: Reported) -> None:
    other = calibration.model_copy(update={"gpu": "a100-sxm-80gb", "name": "other"})
    with pytest.raises(CalibrationError) as caught:
        update(other, [reported(calibration)], "r.json")
    assert str(caught.value) == (
        "the report of 2026-11-22T05:00:00+00:00 is of h100-sxm-80gb, but calibration other is of a100-sxm-80gb; "
        "give a calibration of that GPU with --calibration"
    )


@pytest.mark.parametrize(
    ("parallel", "changes", "kind"),
    [
        ({}, {}, "one GPU"),
        ({"dp": 2}, {}, "dp"),
        ({"dp": 2, "zero_stage": 3}, {}, "zero 3"),
        ({"tp": 2, "sequence_parallel": True}, {}, "tp with sp"),
        ({"pp": 2}, {"schedule": "zero-bubble"}, "pp zero-bubble"),
        ({"pp": 2, "virtual_stages": 2}, {}, "pp interleaved"),
        ({"dp": 2, "tp": 2}, {}, "dp, tp"),
    ],
)
def test_kinds_of_plans(parallel: dict[str, Any], changes: dict[str, Any], kind: str, plan_of: PlanOf) -> None:
    gpus = 1
    for name in ("dp", "tp", "pp"):
        gpus *= parallel.get(name, 1)
    assert kind_of(plan_of(cluster={"gpus": gpus}, parallel=parallel, **changes)) == kind
