"""What a search rests on, and the values of its plans that it can constrain.

Energy is that of the GPUs and, where `site.host_power_W` is given, of their hosts: a plan that is slower keeps them on
for longer. Axes: P plans, each at one clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.core.errors import CalibrationError, InputError
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.checks import architecture_of, check_architecture, check_power_and_clock
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.prediction import Prediction
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.carbon import footprint, grid_intensity
from moemodel.model.schedule import registry as schedules
from moemodel.model.schedule.pipeline_layout import stages
from moemodel.model.search.document import Search
from moemodel.model.step.memory import Memory, MemoryModel, fullest
from moemodel.model.step.stage_cost import distinct_rows
from moemodel.model.step.system import System, system_of

_SECONDS_PER_HOUR = 3600.0  # by definition


@dataclass(frozen=True, kw_only=True)
class SearchProblem:
    """What a search rests on: its document, checked against architecture, GPU and calibration."""

    document: Search
    architecture: Architecture
    machine: System


def problem_of(document: Search, calibration: Calibration) -> SearchProblem:
    """A search with what it rests on.

    Raises:
        InputError: unknown architecture, GPU, region or network, or a power cap that the GPU doesn't have.
        InfeasiblePlanError: what no choice could mend, such as a sequence longer than the model has positions for.
        CalibrationError: the calibration is of another GPU, or knows no power.
    """
    plan = document.plan()  # on one GPU: it has no degrees that could be wrong
    architecture = architecture_of(plan)
    check_architecture(plan, architecture)
    machine = system_of(plan, calibration)
    gpu = machine.gpu
    check_power_and_clock(plan, gpu)
    if calibration.power.points == 0:
        raise CalibrationError(
            f"calibration {calibration.name} has no measured power, so there is no energy to search for; "
            "measure the GPU where its power can be read"
        )
    if document.limits.memory_share is not None and gpu.memory_B is None:
        raise InputError(f"limits.memory_share: the memory of {gpu.name} isn't known; allowed: null")
    if document.tokens is not None:
        grid_intensity(document.site.region, key="site.region")
    return SearchProblem(document=document, architecture=architecture, machine=machine)


def constraint_values(problem: SearchProblem, plans: PlanBatch, prediction: Prediction) -> dict[str, FloatArray]:
    """Of plans, all that can be limited, by the limit's name; what is of the run, if it has tokens. [P]"""
    site, tokens = problem.document.site, problem.document.tokens
    hosts_W = plans.gpus * site.host_power_W
    time_s = prediction.step_time_s
    energy_J = prediction.energy_J + hosts_W * time_s
    values = {
        "step_time_s": time_s,
        "energy_J": energy_J,
        "power_per_gpu_W": prediction.hottest_power_W,
        "cluster_power_W": plans.gpus * prediction.power_W + hosts_W,
    }
    if tokens is not None:
        steps = np.ceil(tokens / prediction.tokens)
        values |= {
            "run_hours": steps * time_s / _SECONDS_PER_HOUR,
            "run_kWh": footprint(steps * energy_J, pue=site.pue).energy_kWh,
        }
    return values


def limits_of(problem: SearchProblem) -> dict[str, float]:
    """The limits that a search sets on what a prediction gives."""
    given = problem.document.limits.model_dump(exclude={"memory_share"})
    return {name: limit for name, limit in given.items() if limit is not None}


def memory_of(problem: SearchProblem, plans: PlanBatch) -> Memory:
    """Peak memory of each plan, as `predict` gives it, without pricing its time. [P]"""
    machine = problem.machine
    peak_B, terms_B = np.zeros(len(plans)), dict[str, FloatArray]()
    for rows in _by_pipeline(plans):
        some = plans.take(rows)
        model = MemoryModel(
            problem.architecture,
            some,
            framework=machine.framework,
            precision=machine.precision,
            calibration=machine.calibration,
        )
        held = fullest(model, stages(problem.architecture, int(some.pp[0]), int(some.virtual_stages[0])))
        peak_B[rows] = held.peak_B
        for name, size_B in held.terms_B.items():
            terms_B.setdefault(name, np.zeros(len(plans)))[rows] = size_B
    return Memory(peak_B=peak_B, terms_B=terms_B)


def _by_pipeline(plans: PlanBatch) -> Iterator[IntArray]:
    """Rows of plans that share their pipeline."""
    if not len(plans):
        return
    first, pipeline = distinct_rows([plans.pp, plans.virtual_stages])
    for index in range(len(first)):
        yield np.flatnonzero(pipeline == index)


def summary(plan: Plan, *, clock: bool = True) -> str:
    """The choices of a plan on one line, with its clock or without; degrees of 1 are left out."""
    p = plan.parallel
    degrees = {"dp": p.dp, "tp": p.tp, "pp": p.pp, "ep": p.ep, "cp": p.cp, "virtual": p.virtual_stages}
    words = [f"{name} {degree}" for name, degree in degrees.items() if degree > 1]
    words += ["sp"] if p.sequence_parallel else []
    words += [f"zero {p.zero_stage}", f"micro {plan.micro_batch}"]
    words += [f"recompute {plan.recompute}"] if plan.recompute != "none" else []
    words += [plan.schedule] if plan.schedule != schedules.DEFAULT else []
    words += [f"at {plan.clock_MHz:g} MHz"] if clock and plan.clock_MHz is not None else []
    return " ".join(words)
