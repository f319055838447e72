"""One plan on the hardware at hand: as it can be run, or why it can't."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from moemodel.model.hardware.gpu import Gpu, read_gpu
from moemodel.model.plan.clock import AskedClock, clock_text
from moemodel.model.plan.spec import Plan, SiteSpec
from moemodel.model.results.validation import SkippedPlan
from moemodel.profiler.backends.base import BACKENDS
from moemodel.profiler.training.asked_clocks import untold_phases

_SAME_W = 1.0  # power limits that differ by less are one


def comparison_group(plan: Plan) -> Hashable:
    """What plans have in common that are alternatives to each other."""
    return plan.architecture, plan.layers, plan.sequence_length, plan.global_batch, plan.precision


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What plans are run on.

    Attributes:
        gpu: its description.
        gpus: devices at hand.
        no_locks: why clocks can't be held; None: they can.
        power_limit_W: in force; None where there is none.
        unable: what the runner says against a plan; None where it runs it.
    """

    gpu: Gpu
    gpus: int
    no_locks: str | None
    power_limit_W: float | None
    unable: Callable[[Plan], str | None]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A plan to run.

    Attributes:
        asked: as its author wrote it; its name is nobody else's.
        plan: as it is run and predicted: without a clock that can't be held here, with the power limit in force.
        roles: why it is run.
        notes: how the two differ.
    """

    asked: Plan
    plan: Plan
    roles: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """A plan that somebody wants to see run."""

    role: str
    plan: Plan
    notes: tuple[str, ...] = ()


def choice_of(request: PlanRequest, hardware: Hardware) -> Choice | SkippedPlan:
    """A plan as it can be run here, or why it can't."""
    asked = request.plan
    reason = _against(asked, hardware)
    if reason is not None:
        return SkippedPlan(name=f"{asked.name} [{request.role}]", reason=reason)
    plan, notes = asked, list(request.notes)
    if asked.clock_MHz is not None and hardware.no_locks is not None:
        plan = plan.model_copy(update={"clock_MHz": None})
        notes.append(not_held(asked.clock_MHz, hardware.no_locks))
    limit_W, usual_W = hardware.power_limit_W, hardware.gpu.power_limit_W
    if limit_W is not None and usual_W is not None and abs(limit_W - usual_W) > _SAME_W and asked.power_cap_W is None:
        plan = plan.model_copy(update={"power_cap_W": limit_W})
        notes.append(f"The power limit in force is {limit_W:g} W, not {usual_W:g} W: predicted for that.")
    return Choice(asked=asked, plan=plan, roles=(request.role,), notes=tuple(notes))


def not_held(clock_MHz: AskedClock, reason: str) -> str:
    """What to say of a plan whose clock could not be held."""
    return (
        f"It asks for {clock_text(clock_MHz)} MHz, which was not held ({reason}): run, and predicted, at the clock "
        "that the governor gives."
    )


def _against(plan: Plan, hardware: Hardware) -> str | None:
    """Why a plan can't be run here."""
    gpu = read_gpu(plan.cluster.gpu, key="cluster.gpu").name
    if gpu != hardware.gpu.name:
        return f"it is for {gpu}; here is {hardware.gpu.name}"
    if plan.cluster.gpus > hardware.gpus:
        return f"it needs {plan.cluster.gpus} GPUs; here are {hardware.gpus}"
    if hardware.no_locks is None and (untold := untold_phases(plan)) is not None:
        return untold
    if plan.backend not in BACKENDS:
        return f"backend {plan.backend} can't be run; allowed: {', '.join(BACKENDS)}"
    limit_W = hardware.power_limit_W or hardware.gpu.power_limit_W
    if plan.power_cap_W is not None and (limit_W is None or abs(plan.power_cap_W - limit_W) > _SAME_W):
        found = "unknown" if limit_W is None else f"{limit_W:g} W"
        return (
            f"it asks for a power cap of {plan.power_cap_W:g} W, and the limit in force is {found}; no limit is "
            "changed here: set it yourself, or leave power_cap_W out"
        )
    return hardware.unable(plan.model_copy(update={"power_cap_W": None}))


def what_runs(plan: Plan) -> Plan:
    """What makes one run differ from another: not its name, nor where and for how long, nor what routing it assumes."""
    routing = plan.routing.model_copy(update={"skew": "balanced"})  # which imposes nothing on a run
    return plan.model_copy(update={"name": "", "site": SiteSpec(), "tokens": None, "routing": routing})


def same(one: Choice, other: Choice) -> bool:
    """Whether two plans are one run."""
    return what_runs(one.plan) == what_runs(other.plan)


def added(choices: Sequence[Choice], found: Choice) -> list[Choice]:
    """With one more; a plan that is there already takes on its roles, and a name that is taken gets a number."""
    for place, other in enumerate(choices):
        if same(found, other):
            roles = (*other.roles, *(role for role in found.roles if role not in other.roles))
            return [*choices[:place], replace(other, roles=roles), *choices[place + 1 :]]
    renamed = {"name": _free(found.asked.name, {choice.asked.name for choice in choices})}
    asked, plan = found.asked.model_copy(update=renamed), found.plan.model_copy(update=renamed)
    return [*choices, replace(found, asked=asked, plan=plan)]


def _free(name: str, taken: Iterable[str]) -> str:
    used = set(taken)
    numbers = (f"{name}-{number}" for number in range(2, len(used) + 3))
    return name if name not in used else next(other for other in numbers if other not in used)
