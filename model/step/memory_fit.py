"""How likely it is that plans fit in a GPU's memory.

A peak errs by as much as peaks of its framework have erred (`Framework.memory_log_error`), and as the calibration says
of the device's own part. Where a framework leaves to the program what a plan does not say (how the loss is computed,
how many micro-batches a schedule gets), some programs need less than the framework's own way: the probability is that
over both. Axes: P plans.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.arrays import FloatArray
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.step.layouts import layouts_of
from moemodel.model.step.memory import Memory, MemoryModel, fullest
from moemodel.model.step.system import FUSED_LOGIT_B, System

_THRIFTY = 0.3  # assumed: share of programs that need least where a plan does not say
_ERF_IS_ONE = 6.0  # from where on the error function is 1 to the last bit of a float
_SURE = 0.95  # probability from which the programs that need less are not asked about


def peak_memory(architecture: Architecture, plans: PlanBatch, machine: System) -> Memory:
    """Peak of the fullest GPU of each plan, without pricing its time. [P]"""
    peak_B, terms_B = np.zeros(len(plans)), dict[str, FloatArray]()
    for layout in layouts_of(architecture, plans):
        rows = layout.rows
        model = MemoryModel(
            architecture,
            plans.take(rows),
            framework=machine.framework,
            precision=machine.precision,
            calibration=machine.calibration,
        )
        held = fullest(model, layout.pipeline)
        peak_B[rows] = held.peak_B
        for name, size_B in held.terms_B.items():
            terms_B.setdefault(name, np.zeros(len(plans)))[rows] = size_B
    return Memory(peak_B=peak_B, terms_B=terms_B)


def fit_probability(architecture: Architecture, plans: PlanBatch, machine: System, peak_B: FloatArray) -> FloatArray:
    """Probability that each plan fits, of which the peak is known. [P]"""
    likely = likely_below(peak_B, machine.memory_B, machine.memory_error)
    doubtful = np.flatnonzero(likely < _SURE)
    if not len(doubtful) or not (machine.framework.program_chooses or machine.framework.may_keep_norm_shards):
        return likely
    least_B = thriftiest_B(architecture, plans.take(doubtful), machine)
    thrifty = likely_below(least_B, machine.memory_B, machine.memory_error)
    likely[doubtful] += _THRIFTY * (thrifty - likely[doubtful])
    return likely


def thriftiest_B(architecture: Architecture, plans: PlanBatch, machine: System) -> FloatArray:
    """Peak under a program that computes a fused loss and runs a schedule for as few micro-batches as it takes, unless
    the plan says otherwise, and under a framework's thriftier settings. [P]
    """
    framework = machine.framework
    if framework.may_keep_norm_shards:
        framework = replace(framework, keeps_norm_shards=True, frees_late=False, short_of_memory=True)
    if not framework.program_chooses:
        return peak_memory(architecture, plans, replace(machine, framework=framework)).peak_B
    if not machine.loss_is_stated:
        framework = replace(framework, logit_B=FUSED_LOGIT_B)
    m, pp = plans.micro_batches, plans.pp
    few = np.where(m % pp == 0, pp, m)
    shorter = np.where(plans.micro_batches_per_schedule > 0, plans.micro_batches_per_schedule, few)
    thrifty = replace(plans, micro_batches_per_schedule=shorter)
    return peak_memory(architecture, thrifty, replace(machine, framework=framework)).peak_B


def likely_below(peak_B: FloatArray, memory_B: float, log_error: float) -> FloatArray:
    """Probability that a peak is below what there is, of a log-normal distribution about its prediction. [P]"""
    if math.isinf(memory_B):
        return np.ones(len(peak_B))
    if log_error == 0.0:
        return (peak_B <= memory_B).astype(np.float64)
    z = np.log(memory_B / peak_B) / (log_error * math.sqrt(2.0))
    likely = np.where(z > 0, 1.0, 0.0)
    near = np.flatnonzero(np.abs(z) < _ERF_IS_ONE)
    likely[near] = [0.5 * (1.0 + math.erf(value)) for value in z[near].tolist()]
    return likely
