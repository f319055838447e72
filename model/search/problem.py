"""What a search rests on, and the values of its plans that it can constrain.

Energy is that of the GPUs and, where `site.host_power_W` is given, of their hosts: a plan that is slower keeps them on
for longer. Axes: P plans, each at one clock.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.arrays import FloatArray
from moemodel.model.core.errors import CalibrationError, InputError
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.checks import architecture_of, check_architecture, check_power_and_clock
from moemodel.model.plan.clock import clock_text
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.prediction import Prediction
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.carbon import footprint, grid_intensity
from moemodel.model.results.goodput import run_time
from moemodel.model.schedule import registry as schedules
from moemodel.model.search.document import OF_MEMORY, Search
from moemodel.model.search.power import Drawn
from moemodel.model.search.quantities import (
    DEADLINE,
    DEFAULT_OBJECTIVES,
    QUANTITIES,
    ObjectiveName,
    needs_power,
)
from moemodel.model.step.idle_power import idle_power_W
from moemodel.model.step.memory import Memory
from moemodel.model.step.memory_fit import peak_memory
from moemodel.model.step.system import System, system_of

_SECONDS_PER_HOUR, _HOURS_PER_DAY = 3600.0, 24.0  # by definition


@dataclass(frozen=True, kw_only=True)
class SearchProblem:
    """What a search rests on: its document, checked against architecture, GPU and calibration.

    Attributes:
        document: of the search.
        architecture, machine: what is trained, and on what.
        objectives: one or two, names of `quantities`.
    """

    document: Search
    architecture: Architecture
    machine: System
    objectives: tuple[ObjectiveName, ...] = DEFAULT_OBJECTIVES

    @property
    def has_power(self) -> bool:
        """Whether power, and with it energy, is known."""
        return self.machine.calibration.power.points > 0


def problem_of(document: Search, calibration: Calibration) -> SearchProblem:
    """A search with what it rests on.

    Raises:
        InputError: unknown architecture, GPU, region or network, or a power cap that the GPU doesn't have.
        InfeasiblePlanError: what no choice could mend, such as a sequence longer than the model has positions for.
        CalibrationError: the calibration is of another GPU, or knows no power and an objective or a limit needs it.
    """
    plan = document.plan()  # on one GPU: it has no degrees that could be wrong
    architecture = architecture_of(plan)
    check_architecture(plan, architecture)
    machine = system_of(plan, calibration)
    gpu = machine.gpu
    check_power_and_clock(plan, gpu)
    has_power = calibration.power.points > 0
    objectives = document.optimized(has_power=has_power)
    if not has_power:
        _refuse_power(document, calibration)
    if document.limits.memory_share is not None and gpu.memory_B is None:
        raise InputError(f"limits.memory_share: the memory of {gpu.name} isn't known; allowed: null")
    grid_intensity(document.site.region, key="site.region")
    return SearchProblem(document=document, architecture=architecture, machine=machine, objectives=objectives)


def _refuse_power(document: Search, calibration: Calibration) -> None:
    """Refuse what rests on power.

    Raises:
        CalibrationError: what was asked for, why it isn't known, and what is.
    """
    unknown = [key for key, name in document.named() if needs_power(name, document.site)]
    if unknown:
        known = [name for name in QUANTITIES if not needs_power(name, document.site)]
        raise CalibrationError(
            f"{', '.join(unknown)}: calibration {calibration.name} has no measured power, so there is no energy to "
            f"search for, nor what follows from it; known are {', '.join(known)}. Or measure the GPU where its power "
            "can be read"
        )


def constraint_values(problem: SearchProblem, plans: PlanBatch, prediction: Prediction) -> dict[str, FloatArray]:
    """Of plans, all that can be optimized or limited, by its name. [P]

    What is of the run is left out where it has no tokens, what rests on power where none was measured, and the cost
    where nothing has a price.
    """
    energy_J = prediction.energy_J if problem.has_power else None
    values = rising_values(problem, plans, prediction.step_time_s, energy_J) | {"memory_B": prediction.memory_B}
    if not problem.has_power:
        return values
    return values | Drawn.of(plans, prediction, problem.machine, problem.document).powers()


def rising_values(
    problem: SearchProblem, plans: PlanBatch, time_s: FloatArray, energy_J: FloatArray | None
) -> dict[str, FloatArray]:
    """Of these values those that follow from the time of a step and the energy of its GPUs alone. [P]

    All are worse, or the same, where a step takes longer or needs more. `energy_J` is None where none was measured.
    """
    document, tokens = problem.document, (plans.global_batch * plans.seq).astype(np.float64)
    values = {
        "step_time_s": time_s,
        "tokens_per_s_per_gpu": tokens / time_s / plans.gpus,
        "gpus": plans.gpus.astype(np.float64),
    }
    if energy_J is not None:
        hosts_W = plans.gpus * document.site.host_power_W
        values |= {"gpu_energy_J": energy_J, "it_energy_J": energy_J + hosts_W * time_s}
    if document.tokens is None:
        return values
    return values | _of_run(problem, plans, values, np.ceil(document.tokens / tokens))


def _of_run(
    problem: SearchProblem, plans: PlanBatch, values: dict[str, FloatArray], steps: FloatArray
) -> dict[str, FloatArray]:
    """What can be told of a run of so many steps. [P]"""
    site = problem.document.site
    time_s, energy_J = _with_failures(problem, plans, values, steps)
    hours = time_s / _SECONDS_PER_HOUR
    run = {"run_hours": hours, "run_days": hours / _HOURS_PER_DAY, DEADLINE: hours}
    costs = [] if site.gpu_hour_price is None else [hours * plans.gpus * site.gpu_hour_price]
    if problem.has_power:
        grid = grid_intensity(site.region, key="site.region")
        meter = footprint(energy_J, pue=site.pue, intensity_kg_per_kWh=grid, price_per_kWh=site.price_per_kWh)
        run["run_kWh"] = meter.energy_kWh
        run |= {} if meter.emissions_kg is None else {"run_kgCO2e": meter.emissions_kg}
        costs += [] if meter.cost is None else [meter.cost]
    elif site.price_per_kWh is not None:
        costs = []  # a part of it isn't known
    return run | ({"run_cost": np.sum(costs, axis=0)} if costs else {})


def _with_failures(
    problem: SearchProblem, plans: PlanBatch, values: dict[str, FloatArray], steps: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Time and, NaN where no power was measured, IT energy of the run; with its failures, where the search has any."""
    step_s, step_J = values["step_time_s"], values.get("it_energy_J", np.full_like(steps, np.nan))
    failures = problem.document.failures
    if failures is None:
        return steps * step_s, steps * step_J
    run = run_time(failures, steps=steps, step_time_s=step_s, gpus=plans.gpus.astype(np.float64))
    standing_W = plans.gpus * (idle_power_W(problem.machine) + problem.document.site.host_power_W)
    return run.wall_s, steps * step_J * (run.training_s / run.useful_s) + standing_W * run.standing_s


def costs_of(problem: SearchProblem, values: dict[str, FloatArray]) -> FloatArray:
    """What plans cost in each objective: less is better, in all of them. [P, O]"""
    columns = [1 / values[name] if QUANTITIES[name].higher_is_better else values[name] for name in problem.objectives]
    return np.stack(columns, axis=1)


def limits_of(problem: SearchProblem) -> dict[str, float]:
    """The limits that a search sets on what a prediction gives."""
    given = problem.document.limits.given
    return {name: limit for name, limit in given.items() if name not in OF_MEMORY}


def memory_of(problem: SearchProblem, plans: PlanBatch) -> Memory:
    """Peak memory of each plan, as `predict` gives it, without pricing its time. [P]"""
    return peak_memory(problem.architecture, plans, problem.machine)


def summary(plan: Plan, *, clock: bool = True) -> str:
    """The choices of a plan on one line, with its clock or without; degrees of 1 are left out."""
    p = plan.parallel
    degrees = {
        "dp": p.dp,
        "tp": p.tp,
        "pp": p.pp,
        "ep": p.ep,
        "cp": p.cp,
        "virtual": p.virtual_stages,
        "replicas": p.replicas,
    }
    words = [f"{name} {degree}" for name, degree in degrees.items() if degree > 1]
    words += [] if p.etp is None else [f"etp {p.etp}"]
    words += plan.routing.dispatch_words
    words += ["sp"] if p.sequence_parallel else []
    words += [f"zero {p.zero_stage}", f"micro {plan.micro_batch}"]
    words += [f"recompute {plan.recompute}"] if plan.recompute != "none" else []
    words += [plan.schedule] if plan.schedule != schedules.DEFAULT else []
    words += [f"at {clock_text(plan.clock_MHz)} MHz"] if clock and plan.clock_MHz is not None else []
    return " ".join(words)
