"""Plans that a search finds best at the governor's clock, and controls beside them, predicted before they run.

    python bench/joint.py --choose          search, and write plans and predictions to bench/plans/joint/predicted.json
    python bench/joint.py --write FOLDER --gpu NAME --gpus N
                                            write those for so many of these GPUs, a file each, for `moemodel validate`
    python bench/joint.py [--json]          what predicted.json holds: plans, jobs

Each job is a search in bench/plans/joint: parallelism, micro-batch, recompute and schedule at once, every legal value.
Of the plans that it finds, fastest first, the five best are taken, and as controls those a tenth, three, five, seven
and nine tenths down the list of the hundred best; none of them was chosen by hand. What was measured of them
`python bench/validate.py --reports bench/measured/joint` holds against predictions: agreement over all pairs of a job,
and regret of the first choice.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from moemodel.api import search
from moemodel.model.core.files import write_atomic
from moemodel.model.search.result import Entry, SearchResult

_JOBS = Path(__file__).parent / "plans" / "joint"
_PREDICTED = _JOBS / "predicted.json"
_GPUS = ("h100-sxm-80gb", "h200-sxm-141gb")
_BEST = 5
_CONTROLS = (0.1, 0.3, 0.5, 0.7, 0.9)

Row = dict[str, Any]


def chosen(result: SearchResult) -> list[tuple[str, Entry]]:
    """The best plans and the controls, each with its role."""
    found: Sequence[Entry] = (*result.front, *result.next_best)
    places = [round(share * (len(found) - 1)) for share in _CONTROLS]
    best = [(f"best {place + 1}", found[place]) for place in range(min(_BEST, len(found)))]
    return best + [(f"control, place {place + 1}", found[place]) for place in places if place >= _BEST]


def rows(job: Path, gpu: str) -> list[Row]:
    """What is chosen of a job on a GPU, with what is predicted of it."""
    document = yaml.safe_load(job.read_text())
    document["cluster"]["gpu"] = gpu
    return [_row(f"{job.stem}-{index:02d}", role, entry) for index, (role, entry) in enumerate(_of(document), start=1)]


def _of(document: dict[str, Any]) -> list[tuple[str, Entry]]:
    return chosen(search(document))


def _row(name: str, role: str, entry: Entry) -> Row:
    predicted = {
        quantity: getattr(entry, quantity) for quantity in ("step_time_s", "gpu_energy_J", "clock_MHz", "memory_B")
    }
    return {
        "plan": entry.plan.model_copy(update={"name": name}).model_dump(exclude_defaults=True),
        "role": role,
        **{quantity: None if figure is None else figure.value for quantity, figure in predicted.items()},
    }


def choose() -> list[Row]:
    """Every job on every GPU."""
    return [row for gpu in _GPUS for job in sorted(_JOBS.glob("*.yaml")) for row in rows(job, gpu)]


def write_plans(folder: Path, gpu: str, gpus: int) -> int:
    """Those for so many of a GPU, a file each; how many."""
    folder.mkdir(parents=True)
    plans = [row["plan"] for row in json.loads(_PREDICTED.read_text())]
    here = [plan for plan in plans if plan["cluster"]["gpu"] == gpu and plan["cluster"]["gpus"] == gpus]
    for plan in here:
        (folder / f"{plan['name']}.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    return len(here)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choose", action="store_true", help="search, and write predicted.json")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write plans to a new folder")
    parser.add_argument("--gpu", default=_GPUS[0], choices=_GPUS)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if arguments.choose:
        write_atomic(_PREDICTED, json.dumps(choose(), indent=1) + "\n")
    if arguments.write:
        print(f"{write_plans(arguments.write, arguments.gpu, arguments.gpus)} plans in {arguments.write}")
        return
    plans = [row["plan"] for row in json.loads(_PREDICTED.read_text())]
    jobs = Counter(f"{plan['name'].rsplit('-', 1)[0]} on {plan['cluster']['gpu']}" for plan in plans)
    figures = {"plans": len(plans), "jobs": len(jobs)}
    print(json.dumps(figures) if arguments.json else "\n".join(f"{job:50s} {count}" for job, count in jobs.items()))


if __name__ == "__main__":
    main()
