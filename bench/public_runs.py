"""Training runs that others published, predicted by what ships, as a user would ask: every group of them.

    python bench/public_runs.py [--json] [--rows] [--fits] [--only GROUP ...] [--data FOLDER] [--cases FOLDER]
    python bench/public_runs.py --write-docs [FILE] [--data FOLDER] [--cases FOLDER]

Of each group, zero-shot with what ships:

    mape        mean of |predicted / published - 1| of the step time; a time that the source leaves open is taken for
                the nearer of its readings
    signed      mean of predicted / published - 1
    inside      share of published times within the predicted 90 % interval
    rows        runs; `timed` those whose time is both published and predicted
    refused     runs that ran, and that `moemodel predict` refuses: too large, or not to be said in a plan; `not_read`:
                of models or programs that nobody here can make a plan of
    memory_mape as mape, of the memory that was measured (what the allocator gave out, or reserved, or all), of
                `memory_rows`
    tau         mean over sets of plans of one job of Kendall's tau of the step time
    regret      mean over these sets: how much longer than the best plan the one takes that is predicted to be the
                fastest of those not refused
    oom_balanced mean of the shares of runs that ran, and that ran out of memory, that are said to be more likely than
                not to do so

With --fits, some minutes, also

    mape_left_out, signed_left_out   as mape and signed, with a few properties of GPUs and of frameworks fitted to the
                                     other groups (`studies.public.fits`): a group is never fitted to itself

--write-record writes how the frameworks of all groups have done into FILE, `model/presets/track_record.json` unless it
is named, which widens intervals (`model.frameworks.track_record`).

--write-docs puts all of it between two marks of `docs/public-data.md`, with date and commit.

Plans are read from `../shared/cases/public-runs`, other data from `../shared/data`; without these, runs that
`bench/measured` holds are all there is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from moemodel.model.core.files import write_atomic
from moemodel.model.frameworks.track_record import PRESET
from studies.public.answers import answers
from studies.public.b200 import B200, b200
from studies.public.bridge import blackwell, bridge
from studies.public.document import write_section
from studies.public.figures import Group, constants_line, figures, row_line, table
from studies.public.fits import left_out
from studies.public.golden import GOLDEN, golden
from studies.public.mlperf import mlperf, mlperf_v4_v5
from studies.public.nanotron import NANOTRON, nanotron
from studies.public.own_runs import deepspeed, torchtitan, transformers
from studies.public.plan_files import cases, group, group_names
from studies.public.record import records
from studies.public.run import PublicRun
from studies.public.tables import SAILOR, foundry_a100, fsdp, sailor
from studies.runs import BLACKWELL, BRIDGE, FSDP, MLPERF

_SHARED = Path(__file__).parents[2] / "shared"
_CASES = "cases"
_DOCS = Path(__file__).parents[1] / "docs" / "public-data.md"


_READ: dict[str, tuple[str, Callable[[Path], list[PublicRun]]]] = {
    "foundry-bf16": (FSDP, lambda data: fsdp(data, "amp_bf16")),
    "foundry-fp8": (FSDP, lambda data: fsdp(data, "amp_fp8")),
    "bridge-dense": (BRIDGE, lambda data: bridge(data, experts=False)),
    "bridge-experts": (BRIDGE, lambda data: bridge(data, experts=True)),
    "bridge-blackwell": (BLACKWELL, blackwell),
    "mlperf": (MLPERF, mlperf),
    "gh200": (SAILOR, sailor),
    "nanotron": (NANOTRON, nanotron),
    "b200": (B200, b200),
    "golden": (GOLDEN, golden),
}
# Of `bench/measured`
_HELD: dict[str, Callable[[], list[PublicRun]]] = {
    "torchtitan-h200": torchtitan,
    "transformers-h200": transformers,
    "deepspeed-h200": deepspeed,
    "foundry-a100": partial(foundry_a100, 2023),
    "foundry-a100-40gb": partial(foundry_a100, 2022),
    "mlperf-v4-v5": mlperf_v4_v5,
}


def groups(data: Path, plans: Path) -> dict[str, Callable[[], list[PublicRun]]]:
    """What there is, by name of its group."""
    found: dict[str, Callable[[], list[PublicRun]]] = {}
    for name, (file, read) in _READ.items():
        if (data / file).exists():
            found[name] = partial(read, data)
    found |= _HELD
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
    parser.add_argument("--fits", action="store_true", help="also with constants fitted on the other groups")
    parser.add_argument(
        "--write-docs", nargs="?", type=Path, const=_DOCS, metavar="FILE", help="write the figures into a document"
    )
    parser.add_argument(
        "--write-record", nargs="?", type=Path, const=PRESET, metavar="FILE", help="write how frameworks have done"
    )
    options = parser.parse_args()
    there = groups(options.data, options.cases)
    chosen = [name for name in there if not options.only or name.startswith(tuple(options.only))]
    if not chosen:
        parser.error(f"--only: found {' '.join(options.only)}; allowed: {', '.join(there)}")
    found = {name: _answered(there[name]()) for name in chosen}
    result = {name: figures(answered) for name, answered in found.items()}
    if options.fits or options.write_docs is not None:
        fitted = left_out(found)
        result = {name: result[name] | (fitted[name].figures if name in fitted else {}) for name in result}
    if options.write_docs is not None:
        write_section(options.write_docs, result)
    if options.write_record is not None:
        write_atomic(options.write_record, records(found).model_dump_json(indent=1, exclude_none=True) + "\n")
    if options.json:
        print(json.dumps(result))
        return
    for name, answered in found.items() if options.rows else ():
        print(name, *(row_line(run, answer) for run, answer in answered), sep="\n")
    print(table(result))
    if options.fits:
        print(*(constants_line(name, fit.constants) for name, fit in fitted.items()), sep="\n")


def _answered(runs: list[PublicRun]) -> Group:
    return list(zip(runs, answers(runs), strict=True))


if __name__ == "__main__":
    main()
