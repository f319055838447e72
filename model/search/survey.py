"""Plans of a search that are within its limits, with what they take, as columns: what a page draws beside the front.

Of more plans than are wanted some are predicted, drawn evenly from all that are legal by a fixed seed (each so-many-th
would have the same choice of the innermost axis), each at every clock, so that what a clock costs can be seen of each.
Axes: P plans, each at one clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.dispatch import DISPATCHES
from moemodel.model.plan.recompute import recompute_name
from moemodel.model.predict.predict import predict
from moemodel.model.predict.prediction import Prediction
from moemodel.model.records.calibration import Calibration
from moemodel.model.schedule import registry as schedules
from moemodel.model.search.candidates import Candidates, at_clocks, candidates, clocks_Hz
from moemodel.model.search.document import Search
from moemodel.model.search.problem import SearchProblem, constraint_values, limits_of, memory_of, problem_of
from moemodel.model.search.room import room_of

MOST_PLANS = 100_000  # each at one clock, that a page is to show
_BATCH = 20_000  # predicted at once
_LEGAL_FOR_ONE = 8  # legal plans whose memory is counted for one that is predicted: assumed, most spaces fit so far
PHASES = ("forward", "backward", "optimizer", "communication", "idle")


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Plans within limits.

    Attributes:
        choices: of each plan by name, whole numbers; those with words in `words`. [P]
        words: what the numbers of a choice stand for.
        values: by name, SI units; of phases "forward_s", "forward_J", ... [P]
        share: of the legal plans, how many were looked at.
        legal: plans, each at every clock.
    """

    choices: dict[str, IntArray]
    words: dict[str, tuple[str, ...]]
    values: dict[str, FloatArray]
    share: float
    legal: int

    def __len__(self) -> int:
        """Plans, each at one clock."""
        return len(self.choices["gpus"])

    @property
    def note(self) -> str:
        """What is shown of all."""
        if self.share == 1:
            return f"All {len(self):,} plans within the limits are shown, each at each clock."
        return (
            f"Of {self.legal:,} legal plans, clocks counted, {self.share:.2%} were drawn evenly, each at all its "
            f"clocks; {len(self):,} of these fit, keep the limits, and are shown. The front is of all plans."
        )


def survey(
    document: Search,
    calibration: Calibration,
    *,
    most: int = MOST_PLANS,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Survey:
    """Plans of a search within its limits, at most so many.

    Args:
        document, calibration: see `search`.
        most: plans, clocks counted.
        progress: is told how many of how many are predicted.

    Raises:
        InputError, CalibrationError: as `search` does.
    """
    problem = problem_of(document, calibration)
    legal = candidates(problem, calibration)
    clocks = clocks_Hz(legal.clocks_MHz)
    looked = drawn(len(legal), _LEGAL_FOR_ONE * most // max(len(clocks), 1))
    fitting = looked[_fits(problem, legal.take(looked))]
    if not len(fitting):  # few fit, and none of them was drawn
        looked = np.arange(len(legal))
        fitting = looked[_fits(problem, legal)]
    taken = fitting[drawn(len(fitting), most // max(len(clocks), 1))]
    some = legal.take(taken)
    share = len(looked) / max(len(legal), 1) * len(taken) / max(len(fitting), 1)
    parts = list(_parts(problem, some, clocks, progress))
    labels = tuple("auto" if clock is None else f"{clock:g}" for clock in legal.clocks_MHz)
    return Survey(
        choices={name: np.concatenate([part[0][name] for part in parts]) for name in parts[0][0]},
        words={
            "schedule": schedules.NAMES,
            "recompute": _recompute_words(legal),
            "sequence_parallel": ("off", "on"),
            "dispatch": DISPATCHES,
            "dispatch_overlap": ("unset", "off", "on"),
            **{name: _counted(legal.columns[name]) for name in ("etp", "node_limit")},
            "clock": labels,
        },
        values={name: np.concatenate([part[1][name] for part in parts]) for name in parts[0][1]},
        share=share,
        legal=len(legal) * len(clocks),
    )


def drawn(size: int, most: int) -> IntArray:
    """At most so many of a number of plans, evenly and always the same, in order."""
    if size <= most:
        return np.arange(size)
    return np.sort(np.random.default_rng(0).choice(size, size=max(most, 1), replace=False))


def _counted(values: IntArray) -> tuple[str, ...]:
    """Numbers up to the highest of some; 0 says nothing."""
    return ("unset", *(str(number) for number in range(1, int(values.max(initial=0)) + 1)))


def _recompute_words(legal: Candidates) -> tuple[str, ...]:
    most = int(legal.columns["recompute"].max(initial=0))
    return tuple(recompute_name(number) for number in range(most + 1))


def _fits(problem: SearchProblem, legal: Candidates) -> BoolArray:
    """Which of the legal plans fit, within the risk and the share of the search."""
    kept = np.zeros(len(legal), dtype=np.bool_)
    for start in range(0, len(legal), _BATCH):
        rows = np.arange(start, min(start + _BATCH, len(legal)))
        plans = legal.take(rows).batch(problem.document)
        kept[rows] = room_of(problem, plans, memory_of(problem, plans).peak_B).kept
    return kept


Part = tuple[dict[str, IntArray], dict[str, FloatArray]]


def _parts(
    problem: SearchProblem, some: Candidates, clocks: FloatArray, progress: Callable[[int, int], None]
) -> Iterator[Part]:
    """Choices and values of those within limits, some plans at a time."""
    step = max(1, _BATCH // max(len(clocks), 1))
    for start in range(0, max(len(some), 1), step):
        progress(start * len(clocks), len(some) * len(clocks))
        rows = np.arange(start, min(start + step, len(some)))
        plans = at_clocks(some.take(rows).batch(problem.document), clocks)
        prediction = predict(problem.architecture, plans, problem.machine)
        values = _values(problem, plans, prediction)
        held = [values[name] <= limit for name, limit in limits_of(problem).items()]
        within = np.logical_and.reduce([np.ones(len(plans), dtype=np.bool_), *held])
        choices = {name: np.repeat(column[rows], len(clocks)) for name, column in some.columns.items()}
        choices["clock"] = np.tile(np.arange(len(clocks)), len(rows))
        yield (
            {name: column[within] for name, column in choices.items()},
            {name: column[within] for name, column in values.items()},
        )


def _values(problem: SearchProblem, plans: PlanBatch, prediction: Prediction) -> dict[str, FloatArray]:
    """All that can be optimized, and phase by phase. [P]"""
    p = prediction
    times = (p.forward_s, p.backward_s, p.optimizer_s, p.exposed_communication_s, p.bubble_s + p.host_wait_s)
    found = constraint_values(problem, plans, p) | {f"{n}_s": t for n, t in zip(PHASES, times, strict=True)}
    found |= {"bubble_s": p.bubble_s, "clock_Hz": p.clock_Hz, "fit_probability": p.fit_probability}
    if problem.has_power:
        energies = (p.forward_J, p.backward_J, p.optimizer_J, p.communication_J, p.idle_J)
        found |= {f"{name}_J": energy for name, energy in zip(PHASES, energies, strict=True)}
    return found
