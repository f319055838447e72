"""How far off the answers to a group of published runs are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import kendalltau

from moemodel.model.core.arrays import FloatArray
from studies.intervals import holds, interval
from studies.public.run import Answer, PublicRun

Group = Sequence[tuple[PublicRun, Answer]]
_UNKNOWN = "-"


def nearest_s(run: PublicRun, answer: Answer) -> float | None:
    """The published time that a prediction is held against; None: one of both is not known."""
    if answer.time is None or not run.time_s:
        return None
    predicted_s = answer.time.value
    return min(run.time_s, key=lambda time_s: abs(np.log(predicted_s / time_s)))


def figures(group: Group) -> dict[str, float]:
    """What `--json` prints of a group."""
    found = {"rows": float(len(group))}
    found |= _of_time(group) | _of_memory(group) | _of_verdicts(group) | _of_jobs(group)
    read = [(run, answer) for run, answer in group if run.is_read]
    found["refused"] = float(sum(run.ran is True and answer.refused for run, answer in read))
    found["not_read"] = float(len(group) - len(read))
    return found


def _of_time(group: Group) -> dict[str, float]:
    pairs = [
        (answer.time, published_s)
        for run, answer in group
        if answer.time is not None and (published_s := nearest_s(run, answer)) is not None
    ]
    if not pairs:
        return {}
    off = np.array([time.value / published_s - 1 for time, published_s in pairs])
    inside = [holds(interval(time), published_s) for time, published_s in pairs]
    return {
        "mape": float(np.abs(off).mean()),
        "signed": float(off.mean()),
        "inside": float(np.mean(inside)),
        "timed": float(len(pairs)),
    }


def _of_memory(group: Group) -> dict[str, float]:
    off = np.array([answer.memory_B / run.memory_B - 1 for run, answer in group])
    off = off[np.isfinite(off)]
    if not len(off):
        return {}
    return {
        "memory_mape": float(np.abs(off).mean()),
        "memory_signed": float(off.mean()),
        "memory_rows": float(len(off)),
    }


def _of_verdicts(group: Group) -> dict[str, float]:
    """Of groups some of whose runs ran out of memory."""
    right = {ran: [_said_to_fit(a) is ran for run, a in group if run.ran is ran] for ran in (True, False)}
    if not all(right.values()):
        return {}
    return {
        "oom_balanced": float(np.mean([np.mean(each) for each in right.values()])),
        "oom_rows": float(len(right[False])),
        "oom_said": float(sum(right[False])),
    }


def _said_to_fit(answer: Answer) -> bool:
    """Whether it is more likely than not to fit."""
    return answer.fit_probability >= _EVEN


_EVEN = 0.5
_FEWEST = 3  # plans of a job whose order says anything


def _of_jobs(group: Group) -> dict[str, float]:
    """Of groups in which several plans of one job were measured."""
    jobs: dict[str, list[tuple[PublicRun, Answer]]] = {}
    for run, answer in group:
        if run.job:
            jobs.setdefault(run.job, []).append((run, answer))
    sets = [job for plans in jobs.values() if len(job := [plan for plan in plans if _is_timed(plan)]) >= _FEWEST]
    if not sets:
        return {}
    order = [tau(np.array([r.time_s[0] for r, _ in job]), np.array([_time_s(a) for _, a in job])) for job in sets]
    return {
        "tau": float(np.mean(order)),
        "regret": float(np.mean([regret(job) for job in sets])),
        "regret_worst": float(np.max([regret(job) for job in sets])),
        "jobs": float(len(sets)),
        "first_choice_oom": float(np.mean([_first_choice_fails(plans) for plans in jobs.values()])),
    }


def _is_timed(plan: tuple[PublicRun, Answer]) -> bool:
    return bool(plan[0].time_s) and plan[1].time is not None


def _time_s(answer: Answer) -> float:
    return np.inf if answer.time is None else answer.time.value


def tau(measured: FloatArray, predicted: FloatArray) -> float:
    """Kendall's rank correlation (tau-b): of pairs, those in the right order less those in the wrong one."""
    return float(kendalltau(measured, predicted).statistic)


def regret(job: Sequence[tuple[PublicRun, Answer]]) -> float:
    """How much longer a step of the plan takes that is predicted to be the fastest of those not refused, than of the
    fastest that was measured."""
    chosen = min(job, key=lambda plan: (plan[1].refused, _time_s(plan[1])))
    return chosen[0].time_s[0] / min(run.time_s[0] for run, _ in job) - 1


def _first_choice_fails(plans: Sequence[tuple[PublicRun, Answer]]) -> bool:
    """Whether the plan predicted to be the fastest of those said to fit ran out of memory."""
    chosen = min(plans, key=lambda plan: (not _said_to_fit(plan[1]), _time_s(plan[1])))
    return chosen[0].ran is False


def row_line(run: PublicRun, answer: Answer) -> str:
    """A run in a line: published and predicted time, its interval, memory, verdict."""
    published_s = nearest_s(run, answer)
    cells = [f"  {run.label[:60]:60}"]
    if published_s is not None and answer.time is not None:
        t = answer.time
        interval = "" if t.low is None or t.high is None else f" [{t.low:.4g}, {t.high:.4g}]"
        cells.append(f"{published_s:9.4g} s {t.value:9.4g} s {t.value / published_s - 1:+7.1%}{interval}")
    if np.isfinite(run.memory_B + answer.memory_B):
        off = answer.memory_B / run.memory_B - 1
        cells.append(f"{run.memory_B / 1e9:6.1f} GB {answer.memory_B / 1e9:6.1f} GB {off:+7.1%}")
    if answer.plan is not None and len(run.plans) > 1:
        cells.append(f"as recompute {answer.plan.recompute}")
    if answer.verdict not in (None, "fits"):
        cells.append(str(answer.verdict))
    if answer.reason:
        cells.append(answer.reason)
    return "  ".join(cells)


def constants_line(name: str, constants: Mapping[str, float]) -> str:
    """What was fitted without a group, in a line."""
    return f"{name:28}" + ", ".join(f"{constant} {value:.2f}" for constant, value in constants.items())


_SHARES: tuple[str, ...] = ("mape", "signed", "inside", "memory_mape", "memory_signed", "oom_balanced", "regret")
_SHARES += ("mape_left_out", "signed_left_out")
_COLUMNS: tuple[str, ...] = (
    *(
        "rows",
        "timed",
        "mape",
        "signed",
        "inside",
        "mape_left_out",
        "refused",
        "not_read",
        "memory_mape",
        "memory_rows",
    ),
    *("tau", "regret", "oom_balanced"),
)


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Groups in lines, figures in columns that any of them has."""
    columns = [column for column in _COLUMNS if any(column in figures for figures in found.values())]
    lines = [f"{'group':28}" + "".join(f"{column:>14}" for column in columns)]
    lines += [
        f"{name[:28]:28}" + "".join(f"{cell(column, figures.get(column)):>14}" for column in columns)
        for name, figures in found.items()
    ]
    return "\n".join(lines)


def cell(column: str, value: float | None, missing: str = _UNKNOWN) -> str:
    """A figure as a table shows it."""
    if value is None:
        return missing
    if column in _SHARES:
        return f"{value:+.1%}" if column.startswith("signed") else f"{value:.1%}"
    return f"{value:.2f}" if column == "tau" else f"{value:.0f}"
