"""Training runs that others published, predicted by what ships, as a user would ask: every group of them.

    python bench/public_runs.py [--json] [--rows] [--only GROUP ...] [--data FOLDER] [--cases FOLDER]

Of each group:

    mape        mean of |predicted / published - 1| of the step time; a time that the source leaves open is taken for
                the nearer of its readings
    signed      mean of predicted / published - 1
    inside      share of published times within the predicted 90 % interval
    rows        runs; `timed` those whose time is both published and predicted
    refused     runs that ran, and that `moemodel predict` refuses: too large, or not to be said in a plan
    memory_mape as mape, of the allocator's peak, of `memory_rows`

Plans are read from `../shared/cases/public-runs`, other data from `../shared/data`; where both are missing there is
nothing to do, and the exit code is 0.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from studies.public.figures import Group, figures, row_line, table
from studies.public.plan_files import cases, rows
from studies.public.run import PublicRun, answer_to

_SHARED = Path(__file__).parents[2] / "shared"
_CASES = "cases"


def groups(plans: Path) -> dict[str, Callable[[], list[PublicRun]]]:
    """What there is, by name of its group."""
    found: dict[str, Callable[[], list[PublicRun]]] = {}
    if plans.is_dir():
        of_rows = rows(plans.resolve()) if (plans / "rows").is_dir() else {}
        found[_CASES] = lambda: cases(plans.resolve())
        found |= {name: (lambda runs=runs: runs) for name, runs in of_rows.items()}  # type: ignore[misc]
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object, an object a group")
    parser.add_argument("--rows", action="store_true", help="print every run as well")
    parser.add_argument("--only", nargs="+", metavar="GROUP", help="groups whose names begin so")
    parser.add_argument("--data", type=Path, default=_SHARED / "data", help="folder of published data")
    parser.add_argument(
        "--cases", type=Path, default=_SHARED / "cases" / "public-runs", help="folder of plans that ran"
    )
    options = parser.parse_args()
    there = groups(options.cases)
    if not there:
        skipped = f"skipped: neither {options.data} nor {options.cases} is there"
        print(json.dumps({"skipped": skipped}) if options.json else skipped)
        return
    chosen = [name for name in there if not options.only or name.startswith(tuple(options.only))]
    if not chosen:
        parser.error(f"--only: found {' '.join(options.only)}; allowed: {', '.join(there)}")
    found = {name: _answered(there[name]()) for name in chosen}
    if options.json:
        print(json.dumps({name: figures(group) for name, group in found.items()}))
        return
    for name, group in found.items() if options.rows else ():
        print(name, *(row_line(run, answer) for run, answer in group), sep="\n")
    print(table({name: figures(group) for name, group in found.items()}))


def _answered(runs: list[PublicRun]) -> Group:
    return [(run, answer_to(run)) for run in runs]


if __name__ == "__main__":
    main()
