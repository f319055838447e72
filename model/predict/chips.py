"""Chips of one kind differ, and those of a job wait for each other at every step: the straggler sets the pace.

At the power limit a chip that needs more energy for the same work sustains a lower clock. Over chips the logarithm of
what work takes is taken as normal, with the standard deviation SPREAD; a calibration is of the mean chip. The largest
of N has the mean SPREAD e_N, with Blom's e_N = Phi^-1((N - 3/8) / (N + 1/4)) (Statistical Estimates and Transformed
Beta-Variables, 1958; 4.5 % above the true mean for N = 2, 1 % for N = 8).

The others wait for it, at their own clocks and in kernels that spin: they draw the limit as it does. Two H200 that
trained one model drew 691 and 690 W at 1394 and 1443 MHz (`bench/measured/joint-one-queue`).

Axes: P plans.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from statistics import NormalDist

import numpy as np

from moemodel.model.core.arrays import FloatArray, distinct_rows
from moemodel.model.device.operator_cost import shares
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.predict.phases import ByPhase, ClockedCost, DeviceCosts

# Of the logarithm of dynamic energy: twenty H100s and H200s in eight groups, 12 degrees of freedom, measured for
# this project (bench/chips.py). Sinha et al. (SC 2022, arXiv 2208.11035) saw the same work take 8 % longer between the
# ends of the range over V100s and others.
SPREAD = 0.034


def straggler_factors(plans: PlanBatch) -> FloatArray:
    """What work takes on the straggler of a stage, over what it takes on the mean one, [P]."""
    chips = plans.gpus // plans.pp
    first, place = distinct_rows([chips])
    return np.array([straggler_factor(int(count)) for count in chips[first]])[place]


def straggler_factor(count: int) -> float:
    """The same of so many chips."""
    return float(np.exp(SPREAD * expected_largest(count)))


def expected_largest(count: int) -> float:
    """e_N: mean of the largest of so many numbers drawn from a standard normal distribution, 0 of one."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))


def on_straggler(device: DeviceCosts, factor_P: FloatArray) -> DeviceCosts:
    """What a stage does on that chip, [P, K]."""
    return device.map(partial(_taking, factor_P=factor_P))


def on_mean_chip(device: DeviceCosts, unheld_J: ByPhase[FloatArray], factor_P: FloatArray) -> DeviceCosts:
    """What a stage does on its mean chip, [P, 1], which keeps the pace of the straggler and, where the limit holds
    this one back, draws as much: it works at a clock of its own and waits. Its work takes no more than at the clock
    that is asked for.

    Args:
        device: at the clocks that are set on the straggler.
        unheld_J: dynamic energy at those that are asked for, [P, 1].
        factor_P: see `straggler_factors`.
    """
    return device.join(unheld_J, partial(_as_much, factor_P=factor_P))


def _as_much(cost: ClockedCost, unheld_J: FloatArray, factor_P: FloatArray) -> ClockedCost:
    """A phase of that chip."""
    more_P = shares(unheld_J, cost.energy_J)[:, 0]
    return _taking(cost, np.clip(more_P, 1.0, factor_P))


def _taking(cost: ClockedCost, factor_P: FloatArray) -> ClockedCost:
    """The same work for more energy."""
    return replace(cost, energy_J=cost.energy_J * factor_P[:, None])
