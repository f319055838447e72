"""What the parallelism study found, held against its prediction: does it show, by how much, where do curves cross?

The three findings as this project knows them, in its words, not in the paper's:

    degrees   parallelism decides energy as well as time, and not alike: a plan that takes longer may take less energy
    clock     between the lowest and the highest clock lies one of least energy, which costs little time
    joint     so both are to be chosen together: a pipeline plan that is slower at full clock takes less energy, at a
              lower clock, than the fastest data-parallel plan, since bubbles and communication leave slack

Margins are relative. Nothing here is a measurement: a margin below what the model is known to be off shows nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from moemodel.model.core.arrays import FloatArray
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.parallelism import (
    A100,
    FULL_CLOCK_MHZ,
    GH200,
    JOINT,
    MEASURED_FASTEST,
    OPT_GH200,
    Degrees,
    Point,
    Variant,
    joint_sweep,
    olmoe,
    over_clocks,
    over_degrees,
    over_experts,
    variants,
)

LENGTHS = (2048, 4096)  # of OLMoE's sequences
_SAMPLES = 2001  # of a time axis on which two curves are compared


@dataclass(frozen=True, kw_only=True)
class Insight:
    """One finding, and what the prediction says of it.

    Attributes:
        name: degrees, clock, joint.
        statement: what was found.
        holds: the prediction shows it.
        margin: by how much, as a fraction of energy.
        text: how, where, and with what curves cross.
        figures: behind it.
    """

    name: str
    statement: str
    holds: bool
    margin: float
    text: tuple[str, ...]
    figures: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Where a curve of energy against time gets under another.

    Attributes:
        below_from_s: first time from which on it lies below, to the end of what both reach; None: nowhere to its end.
        crosses_s: every time at which they cross.
        least_ratio: energy of the one over the other's at equal time, where it is least; `at_s` is there.
    """

    below_from_s: float | None
    crosses_s: tuple[float, ...]
    least_ratio: float
    at_s: float


@dataclass(frozen=True, kw_only=True)
class Study:
    """All that is predicted of the study.

    Attributes:
        degrees, experts, clocks, joint: by job, length, clock and plan.
        variants: the joint plans at full clock on other assumptions.
        insights: the three.
    """

    degrees: Sequence[Point]
    experts: Mapping[int, Sequence[Point]]
    clocks: Sequence[Point]
    joint: Mapping[str, Sequence[Point]]
    variants: Sequence[Variant]
    insights: tuple[Insight, ...]


def predicted_study(calibrations: Mapping[str, Calibration]) -> Study:
    """Everything, by calibrations of the GPUs that are named in `parallelism.GPUS`.

    Raises:
        CalibrationError: one lacks an operator.
    """
    gh200, a100 = calibrations[GH200], calibrations[A100]
    degrees = over_degrees(gh200)
    experts = {length: over_experts(length, gh200) for length in LENGTHS}
    clocks = over_clocks(a100)
    joint = {plan.name: joint_sweep(plan, a100) for plan in JOINT}
    jobs = {OPT_GH200.name: degrees} | {olmoe(length).name: experts[length] for length in LENGTHS}
    return Study(
        degrees=degrees,
        experts=experts,
        clocks=clocks,
        joint=joint,
        variants=variants(a100),
        insights=(degrees_insight(jobs), clock_insight(clocks), joint_insight(joint)),
    )


# ---- degrees --------------------------------------------------------------------------------------------------------


def degrees_insight(jobs: Mapping[str, Sequence[Point]]) -> Insight:
    """Whether a slower plan takes less energy than a faster one, of the plans of any job that fit into memory."""
    texts, figures, margin = [], {}, 0.0
    for job, every in jobs.items():
        found = sorted((point for point in every if point.fits), key=lambda point: point.step_s)
        fastest, least = found[0], min(found, key=lambda point: point.energy_J)
        fast, slow, saved = slower_but_less(found)
        margin = max(margin, saved)
        figures[job] = {
            "fastest": fastest.name,
            "least_energy": least.name,
            "least_energy_saves": 1 - least.energy_J / fastest.energy_J,
            "slower_plan_saves": saved,
            "slower_plan": slow and slow.name,
            "than": fast and fast.name,
        }
        texts.append(_of_job(job, fastest, least, fast, slow, saved))
    return Insight(
        name="degrees",
        statement="Parallelism decides energy as well as time, and not alike: a slower plan may take less energy.",
        holds=margin > 0,
        margin=margin,
        text=tuple(texts),
        figures=figures,
    )


def slower_but_less(found: Sequence[Point]) -> tuple[Point | None, Point | None, float]:
    """Of plans in rising order of time the faster, the slower, and what the slower saves, where that is most."""
    best: tuple[Point | None, Point | None, float] = (None, None, 0.0)
    for index, slow in enumerate(found):
        for fast in found[:index]:
            saved = 1 - slow.energy_J / fast.energy_J
            if saved > best[2] and slow.step_s > fast.step_s:
                best = (fast, slow, saved)
    return best


def _of_job(job: str, fastest: Point, least: Point, fast: Point | None, slow: Point | None, saved: float) -> str:
    if least is fastest:
        said = f"{job}: the fastest plan, {fastest.name}, takes least energy"
    else:
        said = f"{job}: {least.name} takes {1 - least.energy_J / fastest.energy_J:.1%} less energy than the fastest, "
        said += f"{fastest.name}, in {least.step_s / fastest.step_s - 1:.1%} more time"
    if fast is None or slow is None or (fast is fastest and slow is least):
        return f"{said}."
    more = slow.step_s / fast.step_s - 1
    return f"{said}; {slow.name} takes {saved:.1%} less than {fast.name}, which is {more:.1%} faster."


# ---- clock ----------------------------------------------------------------------------------------------------------


def clock_insight(sweep: Sequence[Point]) -> Insight:
    """Whether energy has its least inside the range of clocks, of points in rising order of clock."""
    least, full = min(sweep, key=lambda point: point.energy_J), sweep[-1]
    inside = least is not sweep[0] and least is not full
    saved, longer = 1 - least.energy_J / full.energy_J, least.step_s / full.step_s - 1
    crosses = _clock_of_equal_energy(sweep)
    text = [
        f"Least energy at {_clock(least):g} MHz: {saved:.1%} less than at {_clock(full):g}, in {longer:.1%} more time.",
        f"Mean power {least.power_W:.0f} W there, {full.power_W:.0f} W at full clock, {sweep[0].power_W:.0f} W at "
        f"{_clock(sweep[0]):g} MHz, which takes {sweep[0].step_s / full.step_s:.2f} times as long.",
        f"A step takes as much energy as at full clock at {crosses:.0f} MHz."
        if crosses is not None
        else f"Down to {_clock(sweep[0]):g} MHz no clock takes more energy than full clock.",
    ]
    return Insight(
        name="clock",
        statement="A clock between lowest and highest takes least energy, and costs little time.",
        holds=inside and saved > 0,
        margin=saved,
        text=tuple(text),
        figures={
            "least_energy_MHz": _clock(least),
            "longer": longer,
            "as_much_as_at_full_clock_MHz": crosses,
        },
    )


def _clock(point: Point) -> float:
    return FULL_CLOCK_MHZ if point.clocks_MHz is None else point.clocks_MHz[0]


def _clock_of_equal_energy(sweep: Sequence[Point]) -> float | None:
    """The highest clock below that of least energy at which a step takes what it takes at full clock."""
    full_J = sweep[-1].energy_J
    for below, above in reversed(list(pairwise(sweep))):
        if above.energy_J < full_J <= below.energy_J:
            share = (full_J - above.energy_J) / (below.energy_J - above.energy_J)
            return _clock(above) + share * (_clock(below) - _clock(above))
    return None


# ---- joint ----------------------------------------------------------------------------------------------------------


def joint_insight(joint: Mapping[str, Sequence[Point]], plans: Sequence[Degrees] = JOINT) -> Insight:
    """Whether a pipeline plan, slower at full clock, takes less energy at lower clocks than the fastest one without.

    Args:
        joint: of each plan the points of its sweep, the first at full clock.
        plans: them, at least one without a pipeline.
    """
    flat = min((joint[plan.name] for plan in plans if plan.pp == 1), key=lambda points: points[0].step_s)
    slower = [joint[p.name] for p in plans if p.pp > 1 and joint[p.name][0].step_s > flat[0].step_s]
    crossings = {points[0].name: crossing(points, flat) for points in slower}
    least = min((point for points in slower for point in points), key=lambda point: point.energy_J, default=None)
    margin = 0.0 if least is None else 1 - least.energy_J / flat[0].energy_J
    crossed = [one for one in crossings.values() if one is not None]
    return Insight(
        name="joint",
        statement="A pipeline plan that is slower at full clock takes less energy, at lower clocks, than the fastest "
        "data-parallel plan.",
        holds=margin > 0,
        margin=margin,
        text=tuple(_joint_text(flat, slower, least, crossings)),
        figures={
            "data_parallel": flat[0].name,
            "least_energy": least and least.name,
            "margin_at_equal_time": max((1 - one.least_ratio for one in crossed), default=None),
            "crossings": {name: one and asdict(one) for name, one in crossings.items()},
        },
    )


def crossing(points: Sequence[Point], other: Sequence[Point]) -> Crossing | None:
    """Of two plans' sweeps: at equal time, each by what takes least energy in no more time; None: no time in common."""
    begin = max(points[0].step_s, other[0].step_s)
    end = min(max(p.step_s for p in points), max(p.step_s for p in other))
    if end <= begin:
        return None
    time_s = np.linspace(begin, end, _SAMPLES)
    ratio = _least_J(points, time_s) / _least_J(other, time_s)
    turns = [float(time_s[i]) for i in range(1, _SAMPLES) if (ratio[i] < 1) != (ratio[i - 1] < 1)]
    best = int(np.argmin(ratio))
    last = begin if not turns else turns[-1]
    return Crossing(
        below_from_s=float(last) if ratio[-1] < 1 else None,
        crosses_s=tuple(turns),
        least_ratio=float(ratio[best]),
        at_s=float(time_s[best]),
    )


def _least_J(points: Sequence[Point], time_s: FloatArray) -> FloatArray:
    """Least energy within a time, linear between points that are on the front of a sweep."""
    ordered = sorted(points, key=lambda point: (point.step_s, point.energy_J))
    energy_J = np.minimum.accumulate([point.energy_J for point in ordered])
    return np.interp(time_s, [point.step_s for point in ordered], energy_J)


def _joint_text(
    flat: Sequence[Point], slower: Sequence[Sequence[Point]], least: Point | None, crossings: Mapping[str, Any]
) -> list[str]:
    if least is None:
        return [f"No pipeline plan is slower at full clock than {flat[0].name}."]
    said = [
        f"{least.name} at {_clocks(least)} MHz takes {1 - least.energy_J / flat[0].energy_J:.1%} less than "
        f"{flat[0].name} at full clock, in {least.step_s / flat[0].step_s - 1:.1%} more time."
    ]
    for points in slower:
        said.append(_crossing_text(points[0].name, flat[0].name, crossings[points[0].name]))
    return said


def _crossing_text(name: str, other: str, found: Crossing | None) -> str:
    if found is None:
        return f"{name} and {other}, slowed too, have no step time in common."
    if not found.crosses_s and found.below_from_s is None:
        return f"At equal time {name} always takes more than {other}, slowed too: {found.least_ratio - 1:.1%} at least."
    where = ", ".join(f"{time_s:.2f}" for time_s in found.crosses_s) or "none"
    return (
        f"At equal time {name} takes up to {1 - found.least_ratio:.1%} less than {other}, slowed too "
        f"(at {found.at_s:.2f} s); the curves cross at: {where} s."
    )


def _clocks(point: Point) -> str:
    clocks = point.clocks_MHz or (FULL_CLOCK_MHZ,)
    return f"{clocks[0]:g}" if len(set(clocks)) == 1 else ",".join(f"{clock:g}" for clock in clocks)


# ---- at full clock --------------------------------------------------------------------------------------------------


def fastest_text(found: Sequence[Variant]) -> list[str]:
    """Which of the joint plans is the fastest at full clock, on each assumption, beside what was measured."""
    said = [f"Measured as the fastest at full clock: {MEASURED_FASTEST}."]
    for variant in found:
        first, second = variant.points[:2]
        right = "as measured" if first.name == MEASURED_FASTEST else "not as measured"
        ahead = second.step_s / first.step_s - 1
        said.append(f"{variant.name}: {first.name}, {ahead:.1%} before {second.name} ({right}).")
    return [*said, *_reasons(found)]


def _reasons(found: Sequence[Variant]) -> list[str]:
    """What decides it, from the parts of the steps."""
    by_name = {point.name: point for point in found[0].points}
    flat, pipe = by_name[MEASURED_FASTEST], by_name["dp2-pp2-tp2-mbs2"]
    work_s = [p.step_s - p.communication_s - p.bubble_s - p.host_s for p in (flat, pipe)]
    even = 1 / (1024 // (2 * 2) + 1)  # (pp - 1) / (m + pp - 1), of equal stages
    return [
        f"In float32 with a plain softmax, memory traffic of the scores bounds a layer: micro-batches of 2 save "
        f"{1 - work_s[1] / work_s[0]:.1%} of the kernels' time. The bubble takes {pipe.bubble_s / pipe.step_s:.1%} of "
        f"the step: {even:.1%} to fill and drain the pipeline, the rest since stages wait for the last, which has as "
        f"many layers as the others (partition_method type:transformer) and the head over 50,272 words besides. With "
        f"16-bit products and FlashAttention larger micro-batches save more than that: there the prediction turns the "
        f"order round, so the study's own order speaks for float32.",
        "Messages between nodes block the stream that computes: the slower the network, the further data parallelism, "
        "which sends once a step, is ahead. The host binds none of these plans in float32.",
    ]


# ---- as documents ---------------------------------------------------------------------------------------------------


def study_json(study: Study) -> dict[str, Any]:
    """All points, variants and insights."""
    return {
        "study": "parallelism",
        "measured_fastest_at_full_clock": MEASURED_FASTEST,
        "insights": [asdict(insight) for insight in study.insights],
        "fastest_at_full_clock": {variant.name: variant.points[0].name for variant in study.variants},
        "degrees": [asdict(point) for point in study.degrees],
        "experts": {str(length): [asdict(point) for point in found] for length, found in study.experts.items()},
        "clocks": [asdict(point) for point in study.clocks],
        "joint": {name: [asdict(point) for point in found] for name, found in study.joint.items()},
        "variants": {variant.name: [asdict(point) for point in variant.points] for variant in study.variants},
    }
