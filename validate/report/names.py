"""What plans are called in a figure, where their whole names do not fit or do not tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from moemodel.model.core.errors import InputError
from moemodel.model.plan.clock import clock_text
from moemodel.model.plan.spec import Plan
from moemodel.model.results.validation import PlanReport
from moemodel.model.schedule import registry as schedules

_ALIKE = 0.5  # of the shortest name that all share: beyond it the names do not say what the plans are
_ARCHITECTURE = 16  # characters of one's name beside a plan's degrees
_BREAKS = "-_ ./"  # at which a name may be cut


def shortened(text: str, most: int) -> str:
    """A text of so many characters at most: its beginning and its end, which tell plans apart."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def labels(plans: Sequence[PlanReport], most: int) -> dict[str, str]:
    """What to call each plan, in so many characters at most: by its name; where all names are alike, by what is its own
    of it, and by as many of its degrees as there is room for."""
    names = [plan.name for plan in plans]
    if not alike(names):
        return {name: shortened(name, most) for name in names}
    shared = _shared(names)
    degrees = differing([plan_or_none(plan) for plan in plans])
    return {name: _fitted(name[len(shared) :], own, most) for name, own in zip(names, degrees, strict=True)}


def _fitted(own: str, degrees: Sequence[str], most: int) -> str:
    """A plan's own part of its name, and the first of its degrees."""
    label = shortened(own, most)
    for count, degree in enumerate(degrees):
        last = count == len(degrees) - 1
        longer = f"{label}{': ' if label and not count else ' ' if label else ''}{degree}"
        if len(longer) + (0 if last else 2) > most:
            return f"{label} …" if count else label
        label = longer
    return label


def alike(names: Sequence[str]) -> bool:
    """Whether names share the better part of themselves."""
    return len(names) > 1 and len(_shared(names)) > _ALIKE * min(map(len, names))


def _shared(names: Sequence[str]) -> str:
    """The beginning that all names share, up to the last place at which a name may be cut."""
    length = next((i for i, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), None)
    shared = min(names, key=len) if length is None else names[0][:length]
    return shared[: max((shared.rfind(mark) for mark in _BREAKS), default=-1) + 1]


def plan_or_none(plan: PlanReport) -> Plan | None:
    """The plan as it ran; None where it cannot be read any more (an architecture that lay elsewhere)."""
    try:
        return plan.plan
    except InputError:
        return None


def differing(plans: Sequence[Plan | None]) -> list[list[str]]:
    """Of each plan, the settings in which not all are the same, as in dp2, ep2, mb4."""
    found = [{} if plan is None else _settings(plan) for plan in plans]
    names = list(dict.fromkeys(name for settings in found for name in settings))
    differ = [name for name in names if len({settings.get(name, "") for settings in found}) > 1]
    return [[settings[name] for name in differ if settings.get(name)] for settings in found]


def _settings(plan: Plan) -> dict[str, str]:
    """What a plan sets, each as a reader would write it, those first that plans are told apart by; what is as usual is
    empty."""
    parallel = plan.parallel
    return {
        "architecture": shortened(PurePath(plan.architecture).stem, _ARCHITECTURE),
        "gpus": f"{plan.cluster.gpus}GPUs",
        **{name: _unless(1, name, getattr(parallel, name)) for name in ("dp", "tp", "pp", "cp", "ep")},
        "etp": "" if parallel.etp is None else f"etp{parallel.etp}",
        "dispatch": "" if plan.routing.dispatch == "alltoall" else plan.routing.dispatch,
        "node_limit": "" if plan.routing.node_limit is None else f"nodes{plan.routing.node_limit}",
        "dispatch_overlap": "behind" if plan.routing.dispatch_overlap else "",
        "zero_stage": _unless(0, "zero", parallel.zero_stage),
        "replicas": _unless(1, "replicas", parallel.replicas),
        "micro_batch": f"mb{plan.micro_batch}",
        "virtual_stages": _unless(1, "v", parallel.virtual_stages),
        "sequence_parallel": "sp" if parallel.sequence_parallel else "",
        "schedule": "" if plan.schedule == schedules.DEFAULT else str(plan.schedule),
        "recompute": "" if plan.recompute == "none" else plan.recompute,
        "clock_MHz": "" if plan.clock_MHz is None else f"{clock_text(plan.clock_MHz)}MHz",
        "power_cap_W": "" if plan.power_cap_W is None else f"{plan.power_cap_W:g}W",
        "precision": plan.precision,
        "backend": plan.backend,
        "global_batch": f"batch{plan.global_batch}",
        "sequence_length": f"seq{plan.sequence_length}",
    }


def _unless(usual: int, name: str, value: int) -> str:
    return "" if value == usual else f"{name}{value}"
