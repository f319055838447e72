"""Many plans of one architecture on one cluster, as arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray, at_rows
from moemodel.model.plan.clock import CHANGE_S, PHASES, ByStage
from moemodel.model.plan.dispatch import DispatchChoices
from moemodel.model.plan.skew import skew_of
from moemodel.model.plan.spec import Plan
from moemodel.model.schedule import registry as schedules
from moemodel.model.schedule.base import Sizes
from moemodel.model.schedule.batch import PlanSchedules, pairs

# Likewise: no plan has clocks by stage and phase. Axes: plans, stages, phases (`clock.PHASES`).
_ONE_CLOCK = np.zeros((0, 0, len(PHASES)))
_NOT_SAID = np.zeros(0, dtype=np.int64)  # what a batch that does not say has in place of a column
# and what it means: expert tensor parallelism as the framework does it, all micro-batches of a step at once
_UNLESS_SAID = {
    "etp": 0,
    "replicas": 1,
    "micro_batches_per_schedule": 0,
    "micro_batches_per_round": 0,
    "decoder_seq": 0,
    **DispatchChoices().numbers,
}


@dataclass(frozen=True, kw_only=True)
class PlanBatch:
    """Plans of one architecture on one cluster, as arrays of length P (or scalars that broadcast).

    A pipeline whose ranks hold the same stages in pairs (`dualpipe`) is here twice the replicas of half as many stages.
    `etp`: expert tensor parallelism; 0: as the framework does it. `dispatch`, `node_limit`, `dispatch_overlap`: how
    rows get to experts, as numbers (`plan.dispatch`); those of a plan that says nothing where they are left out.
    `replicas`: groups that ZeRO shards over, each for itself; 1 where it is left out.
    `micro_batches_per_schedule`: that a pipeline passes before the next begin; 0: all of a step, as for all plans
    where it is left out. `micro_batches_per_round`: that pass a chunk before the next one takes them, under interleaved
    1F1B; 0: as many as there are stages. `decoder_seq`: tokens of a sequence of the decoder behind an encoder, where
    these are not `seq`; 0: they are.
    `clock_limits_Hz`: clocks that may be set at most by stage and phase, [P, S, 3] for pipelines of up to S stages,
    NaN of the others' and of plans with one clock for all; S is 0 where it is left out. `clock_change_s`: until a
    clock that is set within a step stands.
    Units: batches and sequence in sequences and tokens; the clock that may be set at most in Hz and the cap in
    W, infinite where the GPU decides.
    """

    dp: IntArray
    tp: IntArray
    pp: IntArray
    ep: IntArray
    cp: IntArray
    zero_stage: IntArray
    sequence_parallel: IntArray
    virtual_stages: IntArray
    micro_batch: IntArray
    global_batch: IntArray
    seq: IntArray
    recompute: IntArray
    schedule: IntArray
    skew: FloatArray
    clock_Hz: FloatArray
    power_cap_W: FloatArray
    etp: IntArray = field(default_factory=lambda: _NOT_SAID)
    dispatch: IntArray = field(default_factory=lambda: _NOT_SAID)
    node_limit: IntArray = field(default_factory=lambda: _NOT_SAID)
    dispatch_overlap: IntArray = field(default_factory=lambda: _NOT_SAID)
    micro_batches_per_schedule: IntArray = field(default_factory=lambda: _NOT_SAID)
    micro_batches_per_round: IntArray = field(default_factory=lambda: _NOT_SAID)
    decoder_seq: IntArray = field(default_factory=lambda: _NOT_SAID)
    replicas: IntArray = field(default_factory=lambda: _NOT_SAID)
    clock_limits_Hz: FloatArray = field(default_factory=lambda: _ONE_CLOCK)
    clock_change_s: FloatArray = field(default_factory=lambda: _ONE_CLOCK)

    @classmethod
    def of(cls, **columns: Any) -> PlanBatch:
        """Broadcast columns (numbers or arrays) to one length P; `clock_limits_Hz` is of all [S, 3], or [P, S, 3]."""
        limits_Hz = columns.pop("clock_limits_Hz", _ONE_CLOCK)
        kinds = {name: np.float64 if name in _FLOATS else np.int64 for name in _COLUMNS}
        columns = _in_halves({**_UNLESS_SAID, "clock_change_s": CHANGE_S} | columns)
        arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(columns[n], dtype=t)) for n, t in kinds.items()))
        found = dict(zip(kinds, (np.ascontiguousarray(a) for a in arrays), strict=True))
        return cls(**found, clock_limits_Hz=_of_each(limits_Hz, len(arrays[0])))

    def __post_init__(self) -> None:
        for name, usual in _UNLESS_SAID.items():
            some = getattr(self, name)
            if some is _NOT_SAID:
                object.__setattr__(self, name, np.full_like(self.dp, usual))
            elif len(some) != len(self.dp):
                raise ValueError(f"{name}: found {len(some)} values; there are {len(self.dp)} plans")
        if self.clock_change_s is _ONE_CLOCK:
            object.__setattr__(self, "clock_change_s", np.full(len(self.dp), CHANGE_S))
        if len(self.clock_limits_Hz) != len(self.dp):
            object.__setattr__(self, "clock_limits_Hz", _of_each(self.clock_limits_Hz, len(self.dp)))

    def __len__(self) -> int:
        return int(self.dp.size)

    @property
    def predicted_seq(self) -> IntArray:
        """Tokens of a sequence that a head predicts, [P]."""
        return np.where(self.decoder_seq > 0, self.decoder_seq, self.seq)

    @property
    def asked_etp(self) -> IntArray:
        """Expert tensor parallelism; 0: as the framework does it. [P]"""
        return self.etp

    @property
    def micro_batches(self) -> IntArray:
        """Micro-batches of one replica in a step."""
        return self.global_batch // (self.micro_batch * self.dp)

    @property
    def scheduled(self) -> IntArray:
        """Micro-batches that one run of a pipeline's schedule passes, [P]."""
        return np.where(self.micro_batches_per_schedule > 0, self.micro_batches_per_schedule, self.micro_batches)

    @property
    def rounds(self) -> IntArray:
        """Runs of a pipeline's schedule, one after another, that make a step, [P]."""
        return self.micro_batches // self.scheduled

    @property
    def gpus(self) -> IntArray:
        """GPUs of a plan, [P]."""
        return self.dp * self.tp * self.pp * self.cp

    @cached_property
    def schedules(self) -> PlanSchedules:
        """What follows from the schedules of the plans."""
        sizes = Sizes(
            stages=self.pp,
            virtual=self.virtual_stages,
            micro_batches=self.scheduled,
            round=self.micro_batches_per_round,
        )
        return PlanSchedules(self.schedule, sizes, rounds=self.rounds)

    def pipeline(self, row: int) -> tuple[int, int, bool]:
        """Stages of one plan, their chunks, and whether they fold (`pipeline_layout.stages`)."""
        return int(self.pp[row]), int(self.virtual_stages[row]), bool(self.schedules.folds[row])

    @property
    def pipeline_columns(self) -> list[IntArray]:
        """What tells apart plans whose stages hold other layers, [P] each."""
        return [self.pp, self.virtual_stages, self.schedules.folds.astype(np.int64)]

    def take(self, rows: IntArray | NDArray[np.bool_]) -> PlanBatch:
        """The plans at these rows; of a single plan's first row itself, since plans are not changed in place."""
        if len(self) == len(rows) == 1 and rows.dtype != np.bool_:
            return self
        return PlanBatch(**{f.name: at_rows(getattr(self, f.name), rows) for f in fields(self)})

    def with_limits_Hz(self, limits_Hz: FloatArray) -> PlanBatch:
        """The same plans with clocks by stage and phase, [S, 3] or [P, S, 3]."""
        limits_Hz = _of_each(limits_Hz, len(self))
        return replace(self, clock_limits_Hz=limits_Hz, clock_Hz=limits_Hz.max(axis=(1, 2)))

    @property
    def has_clocks_by_stage(self) -> BoolArray:
        """Which plans have clocks by stage and phase, [P]."""
        if not self.clock_limits_Hz.shape[1]:
            return np.zeros(len(self), dtype=np.bool_)
        return ~np.isnan(self.clock_limits_Hz[:, 0, 0])

    @property
    def changes_clock_within_a_step(self) -> BoolArray:
        """Which plans have clocks that differ between the phases of a stage, [P]."""
        limits_Hz = self.clock_limits_Hz
        differ = (limits_Hz != limits_Hz[..., :1]) & ~np.isnan(limits_Hz)
        return np.asarray(differ.any(axis=(1, 2)))


def _in_halves(columns: dict[str, Any]) -> dict[str, Any]:
    """Pipelines whose ranks hold the same stages in pairs, as twice the replicas of half as many stages, folded, each
    on half of the micro-batches (`schedule.dual_pipe`)."""
    schedule, pp = np.atleast_1d(columns["schedule"]), np.atleast_1d(columns["pp"])
    paired = pairs(schedule) & (pp > 1)
    if not paired.any():
        return columns
    some = np.atleast_1d(columns["micro_batches_per_schedule"])
    return columns | {
        "dp": np.where(paired, 2, 1) * columns["dp"],
        "pp": np.where(paired, pp // 2, pp),
        "schedule": np.where(paired, schedules.number(_IN_HALVES), schedule),
        "micro_batches_per_schedule": np.where(paired, some // 2, some),
    }


_IN_HALVES = "dualpipe-v"
_FLOATS = {"skew", "clock_Hz", "power_cap_W", "clock_change_s"}
_COLUMNS = tuple(f.name for f in fields(PlanBatch) if f.name != "clock_limits_Hz")


def _of_each(limits_Hz: FloatArray, plans: int) -> FloatArray:
    """Clocks by stage and phase of each plan, where they are given for all, each, or not at all."""
    limits_Hz = np.asarray(limits_Hz, dtype=np.float64)
    if not limits_Hz.size:
        return np.zeros((plans, 0, len(PHASES)))
    return np.ascontiguousarray(np.broadcast_to(limits_Hz, (plans, *limits_Hz.shape[-2:])))


def batch_of(plan: Plan) -> PlanBatch:
    """A batch of one."""
    choices = {name: value for name, value in plan.choices.items() if name != "gpus"}
    clock = plan.clock
    return PlanBatch.of(
        **choices,
        global_batch=plan.global_batch,
        seq=plan.sequence_length,
        decoder_seq=0 if plan.decoder_sequence_length == plan.sequence_length else plan.decoder_sequence_length or 0,
        micro_batches_per_schedule=plan.micro_batches_per_schedule or 0,
        micro_batches_per_round=plan.micro_batches_per_round or 0,
        skew=skew_of(plan),
        clock_Hz=clock.highest_Hz(math.inf),
        clock_limits_Hz=np.array(clock.limits_Hz) if isinstance(clock, ByStage) else _ONE_CLOCK,
        clock_change_s=clock.change_s if isinstance(clock, ByStage) else CHANGE_S,
        power_cap_W=math.inf if plan.power_cap_W is None else plan.power_cap_W,
    )


def joined(plans: Sequence[Plan]) -> PlanBatch:
    """A batch of some plans, at least one."""
    return concatenated([batch_of(plan) for plan in plans])


def concatenated(batches: Sequence[PlanBatch]) -> PlanBatch:
    """One batch of several, at least one, in their order."""
    columns = {name: np.concatenate([getattr(batch, name) for batch in batches]) for name in _COLUMNS}
    most = max(batch.clock_limits_Hz.shape[1] for batch in batches)
    limits_Hz = [
        np.pad(b.clock_limits_Hz, ((0, 0), (0, most - b.clock_limits_Hz.shape[1]), (0, 0)), constant_values=np.nan)
        for b in batches
    ]
    return PlanBatch(**columns, clock_limits_Hz=np.concatenate(limits_Hz))
