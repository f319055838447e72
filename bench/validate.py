"""Plans on several GPUs, predicted against measured: over the committed reports of `moemodel validate`.

    python bench/validate.py [--json] [--plans] [--calibration FILE] [--reports FOLDER]

Every plan is predicted anew, by the shipped calibration of its GPU and from the measured rows of the report (die
temperature and expert load are inputs), so that the figures follow the model:

    step_time_mape, energy_mape, power_mape, memory_mape    means over all plans of |predicted/measured - 1|
    step_time_worst                                         the largest
    step_time_coverage_90, energy_coverage_90               share of measurements in the 90 % interval
    kendall_tau     tau-b over all pairs of plans of one report that train the same model on the same batch
    kendall_tau_told_apart    the same over pairs that differ by more than two standard errors of the measurements
    regret          mean over those groups of what the plan predicted best took over the best measured
    plans, runs     plans that were measured, runs of them; `failed` those that were not

Agreement and regret are those of forecasts, which know neither temperature nor load, and the worse of time and energy.
Without reports there is nothing to do, and the exit code is 0.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.records.calibration import read_calibration
from moemodel.model.results.validation import PlanReport, Report, read_report
from moemodel.validation.report.build import RANKED, errors_of, ranked
from moemodel.validation.report.ranking import Ranked, kendall, regrets
from studies.comparison import predicted_again

_REPORTS = Path(__file__).parent / "measured" / "validation"
_QUANTITIES = ("step_time", "energy", "power", "memory")
_COVERED = ("step_time", "energy")

Figures = dict[str, float | None]


def figures(reports: Sequence[Report]) -> Figures:
    """What `--json` prints; errors as fractions, null where nothing was measured."""
    plans = [plan for report in reports for plan in report.plans]
    errors = {name: errors_of(plans, name) for name in _QUANTITIES}
    time = errors["step_time"]
    return {
        **{f"{name}_mape": None if found is None else found.mape for name, found in errors.items()},
        "step_time_worst": None if time is None else time.worst,
        **{f"{name}_coverage_90": found.covered if (found := errors[name]) else None for name in _COVERED},
        **_agreement([_apart(reports, name) for name in RANKED]),
        "plans": float(sum(bool(plan.visits) for plan in plans)),
        "runs": float(sum(len(plan.visits) for plan in plans)),
        "failed": float(sum(bool(plan.failures) for plan in plans)),
        "reports": float(len(reports)),
    }


def _apart(reports: Sequence[Report], name: str) -> list[Ranked]:
    """All plans as a quantity ranks them; those of different reports, run on different days, are no alternatives."""
    return [
        replace(plan, group=(index, plan.group))
        for index, report in enumerate(reports)
        for plan in ranked(report.plans, name)
    ]


def _agreement(by_quantity: Sequence[Sequence[Ranked]]) -> Figures:
    """The worse of the quantities' rank agreement and regret."""
    taus = [tau for plans in by_quantity if (tau := kendall(plans)[0]) is not None]
    surely = [tau for plans in by_quantity if (tau := kendall(plans, told_apart=True)[0]) is not None]
    shares = [found for plans in by_quantity if (found := [regret.share for regret in regrets(plans)])]
    return {
        "kendall_tau": min(taus, default=None),
        "kendall_tau_told_apart": min(surely, default=None),
        "regret": max(map(fmean, shares), default=None),
        "regret_worst": max((share for found in shares for share in found), default=None),
        "pairs": float(max((kendall(plans)[1] for plans in by_quantity), default=0)),
    }


def _line(plan: PlanReport) -> str:
    errors = (plan.quantities[name].error if name in plan.quantities else None for name in _QUANTITIES)
    cells = "".join("          " if error is None else f"{error:+10.1%}" for error in errors)
    return f"{plan.name[:40]:40s}{cells}  {len(plan.visits)} runs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--plans", action="store_true", help="print the errors of every plan too")
    parser.add_argument("--calibration", type=Path, help="instead of the shipped ones")
    parser.add_argument("--reports", type=Path, default=_REPORTS, help="folder with reports, *.json")
    arguments = parser.parse_args()
    paths = sorted(arguments.reports.glob("*.json"))
    if not paths:
        skipped = f"skipped: there is no report in {arguments.reports}"
        print(json.dumps({"skipped": skipped}) if arguments.json else skipped)
        return
    own = read_calibration(arguments.calibration) if arguments.calibration else None
    reports = [predicted_again(r, own or shipped(r.environment.gpu)) for r in map(read_report, paths)]
    result = figures(reports)
    if arguments.json:
        print(json.dumps(result))
        return
    if arguments.plans:
        print(f"{'plan':40s}" + "".join(f"{name:>10s}" for name in _QUANTITIES))
        for path, report in zip(paths, reports, strict=True):
            print(f"{path.stem}: {report.environment.gpus} x {report.environment.device.name}, {report.created}")
            for plan in report.plans:
                print(_line(plan))
    for name, value in result.items():
        print(f"{name:24s} {'-' if value is None else f'{value:.4g}'}")


if __name__ == "__main__":
    main()
