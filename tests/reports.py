"""Validation reports for tests: one plan's, a whole one's, and the machine that they say they are of."""

from __future__ import annotations

from typing import Any

from moemodel.model.plan.spec import Plan, plan_text
from moemodel.model.records.calibration import CalibrationRef
from moemodel.model.records.profile import DeviceInfo
from moemodel.model.results.validation import SCHEMA_VERSION, Environment, PlanReport, Report, Visit

DEVICE = DeviceInfo(name="NVIDIA H100 80GB HBM3", vendor="nvidia", memory_B=80 << 30, driver="580")


def environment_of(**changes: Any) -> Environment:
    """Two H100 without held clocks, with some of that changed."""
    plain: dict[str, Any] = {"gpu": "h100-sxm-80gb", "device": DEVICE, "gpus": 2, "launcher": "local"}
    return Environment(**plain | {"clocks": "passive", "libraries": {}, "host": {}} | changes)


def plan_report(plan: Plan, *visits: Visit, **changes: Any) -> PlanReport:
    """On a plan that ran as it was asked for."""
    plain: dict[str, Any] = {
        "name": plan.name,
        "roles": (),
        "asked_yaml": plan_text(plan),
        "plan_yaml": plan_text(plan),
    }
    found: dict[str, Any] = {"quantities": {}, "temperature_C": None, "expert_skew": None, "visits": visits}
    return PlanReport(**plain | {"notes": (), "failures": ()} | found | changes)


def whole_report(*plans: PlanReport, environment: Environment | None = None) -> Report:
    """Of one round, without errors and ranking."""
    return Report(
        schema_version=SCHEMA_VERSION,
        moemodel_version="0.1.0",
        created="2026-11-22T05:00:00+00:00",
        search=None,
        repeats=1,
        seconds=3.0,
        seed=0,
        complete=True,
        environment=environment or environment_of(),
        calibration=CalibrationRef(name="test", gpu="h100-sxm-80gb", sha256="0" * 64),
        plans=plans,
        set_aside=(),
        errors={},
        ranking={},
        notes=(),
    )
