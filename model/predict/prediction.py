"""What is predicted of each plan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moemodel.model.core.arrays import FloatArray
from moemodel.model.predict.stage_clocks import StageFigures


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What each plan costs. All arrays are [P]; per step unless they say otherwise.

    Attributes:
        step_time_s: one optimizer step.
        step_time_error: relative standard error of it; likewise `energy_error`.
        forward_s, backward_s, optimizer_s: device time of the mean GPU.
        exposed_communication_s: communication that nothing hides.
        bubble_s: idle in the pipeline.
        host_wait_s: idle because the host had not queued work yet.
        hidden_communication_s: communication behind computation.
        gating_s: of forward and backward passes, device time of routers and of what moves rows to experts and back.
        clock_Hz: true SM clock while kernels run, time-weighted over the mean GPU.
        forward_clock_Hz, backward_clock_Hz, optimizer_clock_Hz: the same by phase.
        power_W: mean of one GPU over the step; `hottest_power_W` of the one that draws most.
        temperature_C: of the die in the steady state of a long run.
        energy_J: of all GPUs.
        forward_J, backward_J, optimizer_J, communication_J, idle_J: its parts, all GPUs.
        forward_idle_J, backward_idle_J, optimizer_idle_J: of the last, while a phase waits for the host; nothing where
            the device doesn't, and in pipelines, where it is not told apart.
        flops: model FLOPs of the step (3 x forward, no recomputation), all GPUs.
        mfu: model FLOPs over what the GPUs' peak could have done.
        memory_B: peak of the fullest GPU; `memory_terms_B` its terms.
        memory_error: relative standard error of it.
        fits: it fits in memory, by the predicted peak; `fit_probability` how likely it does.
        outside: share of device time in shapes outside what was measured.
        tokens: of the step.
    """

    step_time_s: FloatArray
    step_time_error: FloatArray
    energy_error: FloatArray
    forward_s: FloatArray
    backward_s: FloatArray
    optimizer_s: FloatArray
    exposed_communication_s: FloatArray
    bubble_s: FloatArray
    host_wait_s: FloatArray
    hidden_communication_s: FloatArray
    gating_s: FloatArray
    clock_Hz: FloatArray
    forward_clock_Hz: FloatArray
    backward_clock_Hz: FloatArray
    optimizer_clock_Hz: FloatArray
    power_W: FloatArray
    hottest_power_W: FloatArray
    temperature_C: FloatArray
    energy_J: FloatArray
    forward_J: FloatArray
    backward_J: FloatArray
    optimizer_J: FloatArray
    communication_J: FloatArray
    idle_J: FloatArray
    forward_idle_J: FloatArray
    backward_idle_J: FloatArray
    optimizer_idle_J: FloatArray
    flops: FloatArray
    mfu: FloatArray
    memory_B: FloatArray
    memory_terms_B: dict[str, FloatArray]
    memory_error: FloatArray
    fits: NDArray[np.bool_]
    fit_probability: FloatArray
    outside: FloatArray
    tokens: FloatArray


@dataclass(frozen=True, kw_only=True)
class PredictionByStage(Prediction):
    """Of plans among which some have clocks by stage and phase.

    Attributes:
        by_stage: what is predicted of their stages.
    """

    by_stage: StageFigures


def stage_figures(prediction: Prediction) -> StageFigures | None:
    """What is predicted of each stage, where plans have clocks by stage and phase."""
    return prediction.by_stage if isinstance(prediction, PredictionByStage) else None
