"""Memory of published runs: how far off it is predicted, and which of those that ran are refused.

    python bench/memory.py [--json] [--rows] [--data FOLDER] [--plans FOLDER]

    allocator     mean of |predicted / measured - 1| of the allocator's peak; of log(measured / predicted) the mean
                  (bias), the root mean square (error), which frameworks take as their `memory_log_error`, and the
                  standard deviation (spread), which is taken of nanotron, whose runs tell what was reserved alone
    verdicts      of the runs that ran, and of those that ran out of memory: how many are said to fit, maybe to fit, or
                  not to fit
    refused       published runs that ran, and that `moemodel predict` refuses: Megatron-Bridge's on H100 as their
                  configurations have them, and the plans of a folder. Plans of one run that differ in `recompute`
                  (`-none`, `-selective`, `-full` in their names: the source does not say) count as one, refused where
                  all are

Data are read from `../shared/data`, plans from `--plans`; where the data are missing there is nothing to do, and the
exit code is 0.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.core.errors import CalibrationError, InfeasiblePlanError, InputError
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.spec import read_plan
from moemodel.model.predict.predict import predict
from moemodel.model.results.feasibility import Verdict, verdict_of
from moemodel.model.results.outcome import outcome
from moemodel.model.step.memory_fit import likely_below
from studies.memory_runs import MemoryRow, PredictedMemory, b200, golden, nanotron, predicted
from studies.runs import PLAN_DEFAULTS, bridge, machine

_SHARED = Path(__file__).parents[2] / "shared"
_H100_B = float(85_520_809_984)  # of an H100 with 80 GB (its driver)
_UNSTATED = re.compile("-(none|selective|full|as-none|as-full)$")

SETS: dict[str, Callable[[Path], Iterator[MemoryRow]]] = {"b200": b200, "golden": golden, "nanotron": nanotron}


@dataclass(frozen=True, kw_only=True)
class Found:
    """One set: its rows, and what is predicted of each."""

    rows: Sequence[MemoryRow]
    memory: Sequence[PredictedMemory]

    @property
    def logs(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Logarithms of measured over predicted, of rows that measured memory."""
        pairs = zip(self.rows, self.memory, strict=True)
        return np.array(
            [np.log(row.measured_B / memory.allocated_B) for row, memory in pairs if row.measured_B > 0 and row.ran]
        )

    def verdicts(self, *, ran: bool) -> Counter[Verdict]:
        """Of the runs that ran, or that ran out of memory, on an H100."""
        return Counter(
            verdict_of(
                float(likely_below(np.array([memory.peak_B]), _H100_B, row.framework.memory_log_error or 0.0)[0])
            )
            for row, memory in zip(self.rows, self.memory, strict=True)
            if row.ran is ran
        )


def bridge_verdicts(folder: Path) -> dict[str, Verdict]:
    """Of Megatron-Bridge's runs on H100."""
    found: dict[str, Verdict] = {}
    for study in (bridge(folder, experts=False), bridge(folder, experts=True)):
        machines = {name: machine(software, {}, limited=True) for name, software in study.software.items()}
        for number, row in enumerate(study.rows):
            plans = PlanBatch.of(**PLAN_DEFAULTS | dict(row.plan))
            prediction = predict(row.architecture, plans, machines[row.software])
            found[f"{row.label} ({number})"] = verdict_of(float(prediction.fit_probability[0]))
    return found


def plan_verdicts(folder: Path) -> dict[str, str]:
    """Of the plans of a folder, by run: the best of those of one run; a refusal for another reason is that."""
    best: dict[str, str] = {}
    order = ("fits", "may not fit", "does not fit")
    for path in [*sorted(folder.glob("*.yaml")), *sorted(folder.glob("rows/*/*.yaml"))]:
        run = str(path.relative_to(folder).with_suffix(""))
        name = _UNSTATED.sub("", run)
        with chdir(folder if path.parent == folder else folder / "rows"):
            verdict = _verdict(path)
        ranked = order.index(verdict) if verdict in order else len(order)
        now = best.get(name)
        if now is None or ranked < (order.index(now) if now in order else len(order)):
            best[name] = verdict
    return best


def _verdict(path: Path) -> str:
    try:
        plan = read_plan(path)
        return outcome(plan, load_calibration(None, plan.cluster.gpu), even_if_it_does_not_fit=True).verdict
    except (InputError, InfeasiblePlanError, CalibrationError) as error:
        return f"no answer: {str(error).splitlines()[0]}"


def figures(sets: dict[str, Found], runs: dict[str, dict[str, str]]) -> dict[str, float]:
    """What `--json` prints."""
    result: dict[str, float] = {}
    for name, found in sets.items():
        logs = found.logs
        result |= {
            f"{name}_rows": float(len(logs)),
            f"{name}_memory_mape": float(np.abs(np.expm1(-logs)).mean()),
            f"{name}_memory_log_bias": float(logs.mean()),
            f"{name}_memory_log_error": float(np.sqrt((logs**2).mean())),
            f"{name}_memory_log_spread": float(logs.std()),
        }
        for ran, word in ((True, "ran"), (False, "ran_out")):
            verdicts = found.verdicts(ran=ran)
            if sum(verdicts.values()) and name == "nanotron":
                result |= {f"{name}_{word}_{v.replace(' ', '_')}": float(n) for v, n in sorted(verdicts.items())}
    for name, said in runs.items():
        counted = Counter("no answer" if v.startswith("no answer") else v for v in said.values())
        result |= {f"{name}_runs": float(len(said)), f"{name}_refused": float(counted["does not fit"])}
        result |= {
            f"{name}_may_not_fit": float(counted["may not fit"]),
            f"{name}_no_answer": float(counted["no answer"]),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rows", action="store_true", help="print every row and every run that is not said to fit")
    parser.add_argument("--data", type=Path, default=_SHARED / "data", help="folder of published data")
    parser.add_argument("--plans", type=Path, default=_SHARED / "cases" / "public-runs", help="of runs that ran")
    options = parser.parse_args()
    if not options.data.is_dir():
        skipped = f"skipped: {options.data} is not there"
        print(json.dumps({"skipped": skipped}) if options.json else skipped)
        return
    sets = {}
    for name, read in SETS.items():
        rows = list(read(options.data))
        sets[name] = Found(rows=rows, memory=[predicted(row) for row in rows])
    runs: dict[str, dict[str, str]] = {"bridge": dict(bridge_verdicts(options.data))}
    if options.plans.is_dir():
        runs["plans"] = plan_verdicts(options.plans.resolve())
    result = figures(sets, runs)
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:32s} {value:.4g}")
    if not options.rows:
        return
    for found in sets.values():
        for row, memory in zip(found.rows, found.memory, strict=True):
            print(f"{row.label[:90]:90s} {memory.allocated_B / 1e9:8.2f} {row.measured_B / 1e9:8.2f} GB")
    for verdicts in runs.values():
        print("\n".join(f"{run}: {verdict}" for run, verdict in verdicts.items() if verdict != "fits"))


if __name__ == "__main__":
    main()
