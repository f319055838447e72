"""How long a validation takes: at first by the predicted step times, then by what its runs have taken."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean, median

from moemodel.profiler.backends.base import TrainingRun

_START_S = 15.0  # assumed: of a job, to start its processes and connect them; a warm disk takes half of it
_BUILD_S = 1.0  # assumed: of a run, to build its model
_OTHER_STEPS = 6  # of a run: the first one, and five for the host's time (`profiler.training.measure`)


def run_s(step_time_s: float, *, warm_s: float, seconds: float) -> float:
    """How long one run takes: what is warmed up and measured are seconds, and some steps at least.

    Args:
        step_time_s: of the plan.
        warm_s, seconds: asked for, before and while it is measured.
    """
    chunk_s = TrainingRun.warmup * step_time_s
    warm_up_s = chunk_s * max(1, math.ceil(warm_s / chunk_s))
    return _BUILD_S + warm_up_s + max(seconds, TrainingRun.steps * step_time_s) + _OTHER_STEPS * step_time_s


def remaining_s(
    left: Iterable[str], *, predicted_s: Mapping[str, float], taken: Iterable[tuple[str, float]], starts: bool
) -> float:
    """How long the runs that are left take.

    Args:
        left: plan of each.
        predicted_s: of a run of each plan, by its prediction (`run_s`).
        taken: plan and duration of runs that were made, s. Where a plan was not run yet, its prediction is off by as
            much as those of the others were.
        starts: a job has still to start.
    """
    made: dict[str, list[float]] = {}
    for plan, took_s in taken:
        made.setdefault(plan, []).append(took_s)
    off = median(fmean(times_s) / predicted_s[plan] for plan, times_s in made.items()) if made else 1.0
    return starts * _START_S + sum(fmean(made[plan]) if plan in made else off * predicted_s[plan] for plan in left)


def in_words(seconds: float) -> str:
    """As a person says it: "about 40 s", "about 13 min", "about 2.5 h"."""
    if seconds < 90:
        return f"about {max(5 * round(seconds / 5), 1):.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"
