"""MLPerf Training 4.0, 4.1 and 5.0, predicted before any error was looked at, against what was logged.

    python bench/mlperf_forecast.py --predict          write bench/measured/mlperf-v4-v5-predicted.json, once
    python bench/mlperf_forecast.py [--json] [--rows]  errors of those predictions, and of today's

Results and settings: `bench/measured/README.md`. NVIDIA's own runs may be looked at to mend the model; those of all
others may not. `--json` prints an object a set of runs: all, NVIDIA's (`seen`), the others' (`unseen`), and those by
benchmark, GPU, round and submitter; each with `before` and `today`:

    mape      mean of |predicted / measured - 1| of the step time
    signed    mean of predicted / measured - 1
    inside    share of measured times within the predicted 90 % interval
    runs      that were predicted; `refused` those that `moemodel predict` refuses
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moemodel.model.core.files import write_atomic
from moemodel.model.plan.spec import Plan
from studies.intervals import holds, interval
from studies.public.answers import answers
from studies.public.mlperf import mlperf_v4_v5
from studies.public.run import Answer, PublicRun

_PREDICTED = Path(__file__).parent / "measured" / "mlperf-v4-v5-predicted.json"
_SEEN_OF = "NVIDIA"

Forecast = dict[str, Any]


def forecast(answer: Answer) -> Forecast:
    """What is kept of an answer."""
    if answer.time is None:
        return {"reason": answer.reason}
    time = answer.time
    return {"step_time_s": time.value, "interval_s": interval(time), "verdict": answer.verdict}


def figures(pairs: list[tuple[float, Forecast]]) -> dict[str, float]:
    """Errors of some runs: measured times, and predictions."""
    timed = [(measured_s, said) for measured_s, said in pairs if "step_time_s" in said]
    off = np.array([said["step_time_s"] / measured_s - 1 for measured_s, said in timed])
    inside = [holds(said["interval_s"], measured_s) for measured_s, said in timed]
    refused = len(pairs) - len(timed) + sum(said["verdict"] == "does not fit" for _, said in timed)
    if not len(off):
        return {"runs": 0, "refused": refused}
    return {
        "mape": float(np.abs(off).mean()),
        "signed": float(off.mean()),
        "inside": float(np.mean(inside)),
        "runs": len(timed),
        "refused": refused,
    }


def sets(run: PublicRun) -> Iterator[str]:
    """Names of the sets that a run is in."""
    training_round, benchmark, submitter, *_ = run.label.split()
    yield "all"
    yield "seen" if submitter == _SEEN_OF else "unseen"
    plan = run.plans[0]
    gpu = plan.cluster.gpu if isinstance(plan, Plan) else "none"
    yield from (f"{benchmark} {gpu}", training_round, submitter)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predict", action="store_true", help="predict, print and compare nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rows", action="store_true", help="print runs that may be looked at as well")
    options = parser.parse_args()
    runs = [run for run in mlperf_v4_v5() if run.is_read]
    today = {run.label: forecast(answer) for run, answer in zip(runs, answers(runs), strict=True)}
    if options.predict:
        if _PREDICTED.exists():
            parser.error(f"{_PREDICTED} is there, and is kept as it is")
        write_atomic(_PREDICTED, json.dumps(today, indent=1) + "\n")
        return
    before: dict[str, Forecast] = json.loads(_PREDICTED.read_text(encoding="utf-8"))
    names = dict.fromkeys(name for run in runs for name in sets(run))
    found = {
        name: {
            when: figures([(run.time_s[0], said[run.label]) for run in runs if name in sets(run)])
            for when, said in (("before", before), ("today", today))
        }
        for name in names
    }
    if options.json:
        print(json.dumps(found))
        return
    for name, of_set in found.items():
        print(f"{name:36}" + "".join(_cells(when, of_set[when]) for when in of_set))
    if options.rows:
        for run in runs:
            if "seen" in sets(run):
                print(_row(run, before[run.label], today[run.label]))


def _cells(when: str, said: dict[str, float]) -> str:
    if "mape" not in said:
        return f"  {when}: {said['refused']} refused"
    refused = f", {said['refused']} refused" if said["refused"] else ""
    errors = f"{said['mape']:6.1%} {said['signed']:+7.1%} {said['inside']:6.1%} inside"
    return f"  {when} {errors} of {said['runs']:3}{refused}"


def _row(run: PublicRun, *forecasts: Forecast) -> str:
    measured_s = run.time_s[0]
    off = [said["step_time_s"] / measured_s - 1 if "step_time_s" in said else np.nan for said in forecasts]
    return f"  {run.label:76} {measured_s:8.4g} s" + "".join(f" {each:+7.1%}" for each in off)


if __name__ == "__main__":
    main()
