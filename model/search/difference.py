"""How plans of one search differ: in their choices, in time and energy with what can be told of it, phase by phase.

Errors that two plans share cancel in their difference (`distinguish`), so it has an interval of its own, which is
narrower than those of the two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from moemodel.model.core.interval import Z
from moemodel.model.plan.clock import clock_text
from moemodel.model.plan.dispatch import said
from moemodel.model.plan.spec import Plan, SiteSpec
from moemodel.model.results.outcome import Outcome
from moemodel.model.search.distinguish import difference_errors
from moemodel.model.search.result import Change, Difference
from moemodel.model.step.system import System

_JOULES_OF_HOSTS = "hosts"
_IN_TIME = ("step_time_s", "run_hours", "run_days", "tokens_per_s_per_gpu")
_IN_ENERGY = ("it_energy_J", "gpu_energy_J", "run_kWh", "run_kgCO2e")


def differences(picks: Mapping[str, int], answers: Sequence[Outcome], machine: System) -> tuple[Difference, ...]:
    """Of each pick from the fastest of a front; of a plan with several names, once.

    Args:
        picks: names, and numbers on the front.
        answers: predictions of the plans of the front, in its order.
        machine: what they run on.
    """
    fastest = min(range(len(answers)), key=lambda row: answers[row].step_time_s.value)
    errors = difference_errors(answers, machine)
    found = {}
    for name, number in picks.items():
        if number == fastest + 1 or number in found:
            continue
        a, b = answers[number - 1], answers[fastest]
        log_errors = {kind: float(errors[kind][number - 1, fastest]) for kind in errors}
        found[number] = Difference(
            pick=name,
            number=number,
            fastest=fastest + 1,
            choices=tuple(other_choices(a.plan, b.plan)),
            step_time=change(a.step_time_s.value, b.step_time_s.value, log_errors["time"]),
            it_energy=_energy_change(a, b, log_errors["energy"]),
            phases_J=_phases_J(a, b),
        )
    return tuple(found.values())


def change(value: float, other: float, log_error: float | None) -> Change:
    """By what share a figure is more than another.

    Args:
        value, other: positive figures.
        log_error: standard error of the logarithm of their ratio; None: not known.
    """
    share = value / other - 1
    if log_error is None:
        return Change(share=share, interval=None, told_apart=None)
    reach = math.exp(Z * log_error)
    low, high = value / other / reach - 1, value / other * reach - 1
    return Change(share=share, interval=(low, high), told_apart=not low <= 0 <= high)


def told_by(name: str, site: SiteSpec) -> Literal["time", "energy", "count"] | None:
    """Whose error a quantity's difference has, at one site; "count": none at all. None: more than one part's."""
    if name == "gpus":
        return "count"
    if name in _IN_TIME:
        return "time"
    if name == "run_cost" and not (site.price_per_kWh and site.gpu_hour_price):
        return "energy" if site.price_per_kWh else "time"
    return "energy" if name in _IN_ENERGY else None


def other_choices(plan: Plan, other: Plan) -> Iterator[str]:
    """What one plan chooses otherwise than another, with both choices."""
    for name, value in _choices(plan).items():
        its = _choices(other)[name]
        if value != its:
            yield f"{name.replace('_', ' ')} {value} instead of {its}"


def _choices(plan: Plan) -> dict[str, object]:
    words: dict[str, object] = {"recompute": plan.recompute, "schedule": plan.schedule}
    words["sequence_parallel"] = "on" if plan.parallel.sequence_parallel else "off"
    words |= {name: said(value) for name, value in plan.expert_choices.items()}
    clock = "auto" if plan.clock_MHz is None else f"{clock_text(plan.clock_MHz)} MHz"
    return plan.choices | words | {"clock": clock}


def _energy_change(a: Outcome, b: Outcome, log_error: float) -> Change | None:
    mine_J, its_J = a.it_energy_J.value, b.it_energy_J.value
    return None if math.isnan(mine_J) else change(mine_J, its_J, log_error)


def _phases_J(a: Outcome, b: Outcome) -> dict[str, float]:
    if math.isnan(a.gpu_energy_J.value):
        return {}
    hosts_J = (a.it_energy_J.value - a.gpu_energy_J.value) - (b.it_energy_J.value - b.gpu_energy_J.value)
    phases = {name: phase.energy_J - b.phases[name].energy_J for name, phase in a.phases.items()}
    return phases | ({_JOULES_OF_HOSTS: hosts_J} if a.plan.site.host_power_W else {})
