"""The schedules that a plan can name.

To add one: a file with its `Schedule`, and a line in `SCHEDULES`.
"""

from __future__ import annotations

from moemodel.model.schedule.base import Schedule
from moemodel.model.schedule.dual_pipe import DualPipe
from moemodel.model.schedule.dual_pipe_v import DualPipeV
from moemodel.model.schedule.gpipe import GPipe
from moemodel.model.schedule.interleaved import Interleaved
from moemodel.model.schedule.one_f_one_b import OneFOneB
from moemodel.model.schedule.zero_bubble import ZeroBubble

_ZERO_BUBBLE = ZeroBubble()
_DUAL_PIPE_V, _DUAL_PIPE = DualPipeV(), DualPipe()
# What a plan names: the schedule with one chunk a stage, and the one with virtual stages (None: it has none). Arrays of
# plans hold the place in this table.
SCHEDULES: dict[str, tuple[Schedule, Schedule | None]] = {
    "1f1b": (OneFOneB(), Interleaved()),
    "gpipe": (GPipe(), None),
    "zero-bubble": (_ZERO_BUBBLE, _ZERO_BUBBLE),
    "dualpipe-v": (_DUAL_PIPE_V, _DUAL_PIPE_V),
    "dualpipe": (_DUAL_PIPE, _DUAL_PIPE),
}
NAMES = tuple(SCHEDULES)
DEFAULT = NAMES[0]
INTERLEAVING = tuple(name for name, (_, interleaved) in SCHEDULES.items() if interleaved is not None)


def find(name: str, virtual: int = 1) -> Schedule:
    """The schedule that a plan with so many virtual stages names.

    Raises:
        KeyError: no such schedule, or one without virtual stages.
    """
    one, interleaved = SCHEDULES[name]
    if virtual == 1:
        return one
    if interleaved is None:
        raise KeyError(f"{name} with {virtual} virtual stages")
    return interleaved


def number(name: str) -> int:
    """Of a schedule, in arrays of plans."""
    return NAMES.index(name)
