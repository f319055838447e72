"""Training runs that others published, predicted by what ships, as a user would ask: every group of them.

    python bench/public_runs.py [--json] [--rows] [--only GROUP ...] [--data FOLDER] [--cases FOLDER]

Of each group:

    mape        mean of |predicted / published - 1| of the step time; a time that the source leaves open is taken for
                the nearer of its readings
    signed      mean of predicted / published - 1
    inside      share of published times within the predicted 90 % interval
    rows        runs; `timed` those whose time is both published and predicted
    refused     runs that ran, and that `moemodel predict` refuses: too large, or not to be said in a plan
    memory_mape as mape, of the memory that was measured (what the allocator gave out, or reserved, or all), of
                `memory_rows`
    tau         mean over sets of plans of one job of Kendall's tau of the step time
    regret      mean over these sets: how much longer than the best plan the one takes that is predicted to be the
                fastest of those not refused
    oom_balanced mean of the shares of runs that ran, and that ran out of memory, that are said to be more likely than
                not to do so

Plans are read from `../shared/cases/public-runs`, other data from `../shared/data`; where both are missing there is
nothing to do, and the exit code is 0.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from studies.public.answers import answers
from studies.public.b200 import B200, b200
from studies.public.figures import Group, figures, row_line, table
from studies.public.golden import GOLDEN, golden
from studies.public.nanotron import NANOTRON, nanotron
from studies.public.plan_files import cases, group, group_names
from studies.public.run import PublicRun
from studies.public.tables import blackwell_runs, bridge_runs, fsdp, mlperf_runs
from studies.runs import BLACKWELL, BRIDGE, FSDP, MLPERF

_SHARED = Path(__file__).parents[2] / "shared"
_CASES = "cases"


_READ: dict[str, tuple[str, Callable[[Path], list[PublicRun]]]] = {
    "foundry-bf16": (FSDP, lambda data: fsdp(data, "amp_bf16")),
    "foundry-fp8": (FSDP, lambda data: fsdp(data, "amp_fp8")),
    "bridge-dense": (BRIDGE, lambda data: bridge_runs(data, experts=False)),
    "bridge-experts": (BRIDGE, lambda data: bridge_runs(data, experts=True)),
    "bridge-blackwell": (BLACKWELL, blackwell_runs),
    "mlperf": (MLPERF, mlperf_runs),
    "nanotron": (NANOTRON, nanotron),
    "b200": (B200, b200),
    "golden": (GOLDEN, golden),
}


def groups(data: Path, plans: Path) -> dict[str, Callable[[], list[PublicRun]]]:
    """What there is, by name of its group."""
    found: dict[str, Callable[[], list[PublicRun]]] = {}
    for name, (file, read) in _READ.items():
        if (data / file).is_file():
            found[name] = partial(read, data)
    if plans.is_dir():
        found[_CASES] = partial(cases, plans.resolve())
        found |= {name: partial(group, plans.resolve(), name) for name in group_names(plans)}
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
    there = groups(options.data, options.cases)
    if not there:
        skipped = f"skipped: neither {options.data} nor {options.cases} is there"
        print(json.dumps({"skipped": skipped}) if options.json else skipped)
        return
    chosen = [name for name in there if not options.only or name.startswith(tuple(options.only))]
    if not chosen:
        parser.error(f"--only: found {' '.join(options.only)}; allowed: {', '.join(there)}")
    found = {name: _answered(there[name]()) for name in chosen}
    if options.json:
        print(json.dumps({name: figures(answered) for name, answered in found.items()}))
        return
    for name, answered in found.items() if options.rows else ():
        print(name, *(row_line(run, answer) for run, answer in answered), sep="\n")
    print(table({name: figures(answered) for name, answered in found.items()}))


def _answered(runs: list[PublicRun]) -> Group:
    return list(zip(runs, answers(runs), strict=True))


if __name__ == "__main__":
    main()
