"""Stands in for the worker in tests of the launcher: no torch, and what it does is in the name of each plan.

`ok`, `memory`, `crash`, `hang`, `nothing` (ends before its first visit) and `quiet` (that, and says nothing).
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from moemodel.profiler.jobs.events import EVENTS, EventWriter
from moemodel.profiler.jobs.failures import RankFailure, write_failure


def main() -> None:
    """One process of a job."""
    file = Path(sys.argv[sys.argv.index("--job") + 1])
    folder, rank = file.parent, int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
    (folder / f"{rank}.pid").write_text(str(os.getpid()), encoding="utf-8")
    job = json.loads(file.read_text(encoding="utf-8"))
    events = EventWriter(folder / EVENTS)
    for number, visit in enumerate(job["visits"]):
        name = visit["plan_yaml"].split("\n")[0].removeprefix("name: ")
        if name == "nothing":
            (folder / f"{rank}.log").write_text("no such GPU\n", encoding="utf-8")
            sys.exit(1)
        if rank == 0:
            events.write("began", visit=number)
        _live(name, folder, rank, number)
        if rank == 0:
            row = {
                "plan": name,
                "plan_yaml": os.environ.get("MASTER_ADDR"),
                "rank": 0,
                "steps": 1,
                "step_time_s": 1.0,
            }
            about = {"clock_held": None, "clock_note": None, "seconds": 1.0}
            events.write("measured", visit=number, rows=[row], **about)
    if rank == 0:
        events.write("done")


def _live(name: str, folder: Path, rank: int, number: int) -> None:
    if name == "memory":
        write_failure(folder, 1, RankFailure(visit=number, kind="crash", reason="connection closed by peer"))
        write_failure(folder, rank, RankFailure(visit=number, kind="memory", reason="does not fit"))
        sys.exit(1)
    if name == "crash":
        (folder / f"{rank}.log").write_text("begins\nillegal memory access\n", encoding="utf-8")
        os._exit(1)
    while name == "hang":
        time.sleep(0.05)


if __name__ == "__main__":
    main()
