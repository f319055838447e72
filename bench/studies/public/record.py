"""How answers to public runs have done, by framework and kind of model, as `model/presets/track_record.json` has it.

A run is inside its interval where its logarithm is off by no more than Z errors: those of the calibration, the host and
links, which the interval has anyway, and the framework's. That is as small as leaves nine in ten of the runs inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from moemodel.model.core.interval import INTERVAL, Z
from moemodel.model.frameworks.track_record import FrameworkRecord, TrackRecord, TrackRecords
from moemodel.model.plan.checks import architecture_of
from moemodel.model.step.system import system_of
from studies.public.answers import alike
from studies.public.document import SAID
from studies.public.figures import Group, nearest_s
from studies.public.run import Answer, calibration_of

_FEWEST = 20
# Groups whose runs stand in others too
AGAIN = ("cases", "g5-foundry-h100", "mem-bridge")


@dataclass(frozen=True, kw_only=True)
class _Missed:
    """Of one run: log(predicted / measured), the square of what its interval has beside the framework's error."""

    log: float
    others: float
    framework: str
    experts: bool
    group: str


def records(found: Mapping[str, Group]) -> TrackRecords:
    """Of all frameworks whose runs there are, in order of their names.

    Args:
        found: groups, with answers.
    """
    missed = [one for name, group in found.items() if name not in AGAIN for one in _missed(name, group)]
    names = sorted({one.framework for one in missed})
    frameworks = {name: _framework([one for one in missed if one.framework == name]) for name in names}
    return TrackRecords(written_by="python bench/public_runs.py --write-record", frameworks=frameworks)


def _framework(missed: list[_Missed]) -> FrameworkRecord:
    """Of either kind of models; all runs together where one has too few for the tenth that lies outside to be two."""
    sparse, dense = ([one for one in missed if one.experts is experts] for experts in (True, False))
    if min(len(sparse), len(dense)) < _FEWEST:
        together = _record(missed)
        return FrameworkRecord(dense=together if dense else None, experts=together if sparse else None)
    return FrameworkRecord(dense=_record(dense), experts=_record(sparse))


def _record(missed: list[_Missed]) -> TrackRecord | None:
    if not missed:
        return None
    logs = np.array([one.log for one in missed])
    left = np.square(logs / Z) - np.array([one.others for one in missed])
    return TrackRecord(
        runs=len(logs),
        mean_log=round(float(logs.mean()), 4),
        within_log=round(float(np.quantile(np.abs(logs), INTERVAL, method="higher")), 4),
        log_error=round(float(np.sqrt(max(np.quantile(left, INTERVAL, method="higher"), 0.0))), 4),
        sources=tuple(SAID.get(name, name) for name in dict.fromkeys(one.group for one in missed)),
    )


def _missed(name: str, group: Group) -> Iterator[_Missed]:
    known: dict[str, tuple[bool, float]] = {}
    for run, answer in group:
        published_s = nearest_s(run, answer)
        if published_s is None or answer.plan is None or answer.time is None:
            continue
        shared = alike(answer.plan)
        if shared not in known:
            experts = architecture_of(answer.plan).has_experts
            machine = system_of(answer.plan, calibration_of(answer.plan))
            known[shared] = experts, machine.framework_error(experts=experts)
        experts, error = known[shared]
        log = float(np.log(answer.time.value / published_s))
        others = _reach(answer, log) ** 2 - error**2
        yield _Missed(log=log, others=others, framework=answer.plan.backend, experts=experts, group=name)


def _reach(answer: Answer, log: float) -> float:
    """Standard error of an interval to the side on which the measurement lies."""
    time = answer.time
    assert time is not None
    end = time.low if log > 0 else time.high
    return abs(float(np.log((end or time.value) / time.value))) / Z
