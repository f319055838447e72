"""Which plans of one search can't be told apart: by what is not common to them.

A prediction's error has parts. Those that two plans on one calibration share cancel in their difference, so that it is
known far better than either (`docs/accuracy.md`: on two H100 nearly all plans took 2 to 6 % longer than predicted, and
their order was right). With c the share of a step that is exposed communication, h that waits for the host, f
the clock:

    part                                     common to plans       variance of log(t_a / t_b)
    the host's time, e_h                     all                   (h_a - h_b)^2 e_h^2
    links' efficiency, e_n                   all                   (c_a - c_b)^2 e_n^2
    operators, d                             the smaller of two    |d_a^2 - d_b^2|   (large outside what was measured)
    composition, e_c (what adding up         a part, where the     2 (k e_c)^2       (0 between clocks of one plan)
      operators leaves out)                  degrees are the same
    sustained clock, e_g, of the plan        -                     ((1 - c - h) e_g)^2 where one of two clocks is
      whose clock the governor chooses                             left to the governor; between clocks of one plan

Of energy the same, with another k, without the last, and with the power model's slope in the clock,
(s log(f_a / f_b))^2, between clocks of one plan. The error of power at one clock (10 % of an H100) is common.

k is what pairs of plans of one model on the same GPUs, less than 5 % bound by the host, came out at in
`bench/measured/validation*` (two H100, 45 plans): root mean squares of the differences of log(measured / predicted) are
1.7 % in time and 1.9 % in energy of 25 pairs of the same degrees, 4.3 % and 2.6 % of 55 pairs of others, beside
5.4 % and 15.1 % that independent errors would make. s is the worst that clocks of a simulated GPU came out at (4.6 %
from 420 to 1980 MHz, `docs/architecture.md`); no real one's are at hand.

Axes: F plans.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moemodel.model.core.arrays import BoolArray, FloatArray
from moemodel.model.core.interval import Z
from moemodel.model.plan.spec import Plan
from moemodel.model.results.outcome import Outcome
from moemodel.model.step.system import System

_SAME_DEGREES = {"time": 0.4, "energy": 0.45}  # of the composition error: 1.7 % and 1.9 %, over the root of 2, of 3 %
_OTHER_DEGREES = {"time": 1.0, "energy": 0.6}  # 4.3 % and 2.6 %, likewise
_POWER_SLOPE = 0.03  # 4.6 % over log(1980 / 420)


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What the errors of some plans are made of, [F]; keys of what they have in common."""

    device: FloatArray
    communication: FloatArray
    host: FloatArray
    log_clock: FloatArray
    governed: BoolArray
    degrees: NDArray[np.int64]
    choices: NDArray[np.int64]


def difference_errors(answers: Sequence[Outcome], machine: System) -> dict[str, FloatArray]:
    """Standard errors of log(a / b) of each pair of plans on one calibration, in time and in energy, [F, F].

    Args:
        answers: predictions of the plans.
        machine: what they run on.
    """
    parts = _parts(answers, machine)

    def apart(values: FloatArray) -> FloatArray:
        return np.asarray(values[:, None] - values[None, :])

    shared = np.square(apart(parts.host) * machine.host_error)
    shared += np.square(apart(parts.communication) * machine.network_error)
    shared += np.abs(apart(np.square(parts.device)))
    same_degrees = parts.degrees[:, None] == parts.degrees[None, :]
    same_plan = parts.choices[:, None] == parts.choices[None, :]
    busy = np.minimum(1 - parts.communication - parts.host, 1.0)
    chosen = (parts.governed[:, None] != parts.governed[None, :]) * np.maximum(busy[:, None], busy[None, :])
    between_clocks = {
        "time": np.square(chosen * machine.calibration.governor.log_error),
        "energy": np.square(apart(parts.log_clock) * _POWER_SLOPE),
    }
    errors = {}
    for name, clocks in between_clocks.items():
        k = np.where(same_degrees, _SAME_DEGREES[name], _OTHER_DEGREES[name])
        own = np.where(same_plan, clocks, 2 * np.square(k * machine.composition_error))
        errors[name] = np.sqrt(shared + own)
    return errors


def alike(answers: Sequence[Outcome], machine: System) -> BoolArray:
    """Pairs of plans of which neither time nor energy tells which is better, in nine of ten cases, [F, F].

    Energy is IT energy; where power was not measured, time alone decides.

    Args:
        answers: predictions of the plans.
        machine: what they run on.
    """
    errors = difference_errors(answers, machine)
    time_s = np.array([answer.step_time_s.value for answer in answers])
    energy_J = np.array([answer.it_energy_J.value for answer in answers])

    def within(values: FloatArray, error: FloatArray) -> BoolArray:
        return np.asarray(np.abs(np.log(values[:, None] / values[None, :])) <= Z * error)

    in_energy = np.isnan(energy_J)[:, None] | within(energy_J, errors["energy"])
    return np.asarray(within(time_s, errors["time"]) & in_energy & ~np.eye(len(answers), dtype=np.bool_))


def _parts(answers: Sequence[Outcome], machine: System) -> _Parts:
    step = [answer.step_time_s for answer in answers]
    total = np.array([math.log((one.high or one.value) / one.value) / Z for one in step])
    host = np.array([answer.share(answer.host_wait_s) for answer in answers])
    communication = np.array([answer.share(answer.exposed_communication_s.value) for answer in answers])
    others = np.square(host * machine.host_error) + np.square(communication * machine.network_error)
    sparse = np.array([answer.active_parameters < answer.parameters for answer in answers])
    others += np.square(np.where(sparse, *(machine.framework_error(experts=experts) for experts in (True, False))))
    plans = [answer.plan for answer in answers]
    clock_Hz = np.array([answer.clock_Hz.value for answer in answers])
    return _Parts(
        device=np.sqrt(np.maximum(np.square(total) - others - machine.composition_error**2, 0.0)),
        communication=communication,
        host=host,
        log_clock=np.log(np.where(np.isnan(clock_Hz), 1.0, clock_Hz)),
        governed=np.array([plan.clock_MHz is None for plan in plans], dtype=np.bool_),
        degrees=_numbered([_degrees(plan) for plan in plans]),
        choices=_numbered([(_degrees(plan), choices_of(plan)) for plan in plans]),
    )


def _degrees(plan: Plan) -> tuple[int, ...]:
    p = plan.parallel
    return (plan.cluster.gpus, p.dp, p.tp, p.pp, p.ep, p.cp)


def choices_of(plan: Plan) -> str:
    """All of a plan but its name and its clock: what rows of a table that differ in nothing but clock share."""
    return plan.model_dump_json(exclude={"name", "clock_MHz"})


def _numbered(keys: Sequence[object]) -> NDArray[np.int64]:
    """The same number for the same key."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
