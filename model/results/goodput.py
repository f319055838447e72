"""How long a run takes that fails now and then, and writes checkpoints: expected times.

Failures come as a Poisson process, at any time: while it trains, writes a checkpoint or restarts. All that was done
since the last checkpoint is lost. Of a stretch of training that ends in a checkpoint, all in seconds:

    T = M e^(R/M) (e^((tau + delta)/M) - 1)                            expected time, with all failures
      = M e^(delta/M) (e^(tau/M) - 1)                                  training, what is lost and repeated included
      + M (e^(delta/M) - 1)                                            writing checkpoints, lost ones included
      + M (e^((tau + delta)/M) - 1) (e^(R/M) - 1)                      restarts, failed ones included

    M  mean time between failures of the job: that of a GPU over the number of GPUs
    tau  training between two checkpoints      delta  writing one      R  restarting after a failure

    tau_opt = sqrt(2 delta M) (1 + sqrt(delta/(2M))/3 + (delta/(2M))/9) - delta    for delta < 2M, else M

J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future Generation Computer
Systems 22 (2006) 303-312, doi:10.1016/j.future.2004.11.016; the first term of tau_opt is Young's (Communications of the
ACM 17, 1974). The three parts follow from the same process: an attempt lasts min(t, tau + delta), t exponential with
mean M, and there are e^((tau + delta)/M) of them.

Left out: failures that come in bursts, spare GPUs that run out, slow GPUs, queueing for machines, and the start of the
run. A checkpoint comes after a whole number of steps, and one at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from moemodel.model.core.arrays import FloatArray
from moemodel.model.plan.failures import FailuresSpec

# Of e^(time/M): a job that needs e^50 attempts never ends, and its figures are to stay numbers.
_MOST_EXPONENT = 50.0


@dataclass(frozen=True, kw_only=True)
class RunTime:
    """Expected times of whole runs, s. [P]

    Attributes:
        interval_s: training between two checkpoints, a whole number of steps.
        useful_s: the steps of the run, each once: the time without failures and checkpoints.
        training_s: with what is lost and repeated.
        checkpoints_s, restarts_s: in which it stands still.
        failures: number expected.
    """

    interval_s: FloatArray
    useful_s: FloatArray
    training_s: FloatArray
    checkpoints_s: FloatArray
    restarts_s: FloatArray
    failures: FloatArray

    @property
    def standing_s(self) -> FloatArray:
        """Checkpoints and restarts."""
        return self.checkpoints_s + self.restarts_s

    @property
    def wall_s(self) -> FloatArray:
        """From the first step to the last checkpoint."""
        return self.training_s + self.standing_s

    @property
    def goodput(self) -> FloatArray:
        """Share of the time that makes progress."""
        return self.useful_s / self.wall_s

    def first(self) -> dict[str, float]:
        """Of a batch of one, by name."""
        return {f.name: float(getattr(self, f.name)[0]) for f in fields(self)}


def optimal_interval_s(checkpoint_s: FloatArray, mtbf_s: FloatArray) -> FloatArray:
    """tau_opt: training between two checkpoints that makes a run shortest, by Daly's formula. [P]"""
    half = np.minimum(checkpoint_s / (2 * mtbf_s), 1.0)
    higher_s = np.sqrt(2 * checkpoint_s * mtbf_s) * (1 + np.sqrt(half) / 3 + half / 9) - checkpoint_s
    return np.where(checkpoint_s < 2 * mtbf_s, higher_s, mtbf_s)


def run_time(failures: FailuresSpec, *, steps: FloatArray, step_time_s: FloatArray, gpus: FloatArray) -> RunTime:
    """Expected times of runs of so many steps, each on so many GPUs. [P]"""
    mtbf_s = failures.mtbf_hours_per_gpu * 3600.0 / gpus
    between = np.clip(np.round(_interval_s(failures, mtbf_s) / step_time_s), 1.0, steps)
    whole = np.floor(steps / between)
    rest = steps - whole * between
    long = _stretch(failures, between * step_time_s, mtbf_s)
    short = _stretch(failures, rest * step_time_s, mtbf_s)
    parts = [whole * a + (rest > 0) * b for a, b in zip(long, short, strict=True)]
    training_s, checkpoints_s, restarts_s = parts
    return RunTime(
        interval_s=between * step_time_s,
        useful_s=steps * step_time_s,
        training_s=training_s,
        checkpoints_s=checkpoints_s,
        restarts_s=restarts_s,
        failures=(training_s + checkpoints_s + restarts_s) / mtbf_s,
    )


def _interval_s(failures: FailuresSpec, mtbf_s: FloatArray) -> FloatArray:
    if failures.checkpoint_interval_s is not None:
        return np.full_like(mtbf_s, failures.checkpoint_interval_s)
    return optimal_interval_s(np.full_like(mtbf_s, failures.checkpoint_s), mtbf_s)


def _stretch(failures: FailuresSpec, training_s: FloatArray, mtbf_s: FloatArray) -> tuple[FloatArray, ...]:
    """Expected training, checkpoints and restarts of a stretch of training that ends in a checkpoint. [P]"""
    tau, delta, restart = (
        np.minimum(time_s / mtbf_s, _MOST_EXPONENT)
        for time_s in (training_s, np.asarray(failures.checkpoint_s), np.asarray(failures.restart_s))
    )
    together = np.minimum(tau + delta, _MOST_EXPONENT)
    return (
        mtbf_s * np.exp(delta) * np.expm1(tau),
        mtbf_s * np.expm1(delta),
        mtbf_s * np.expm1(together) * np.expm1(restart),
    )
