"""torchtitan 0.2.2 on one H200 or two, as this project ran it (`bench/torchtitan.py`).

Left out: runs that constants of `model/frameworks/torchtitan.py` and `model/step/autocast.py` were traced in, and those
sharded over a mesh of one GPU, which torchtitan makes of no configuration by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from moemodel.model.plan.spec import read_plan
from studies.public.run import PublicRun

_BENCH = Path(__file__).parents[2]
_SETS = ("torchtitan", "torchtitan-unseen", "torchtitan-two-gpus")
_TRACED = (
    "qwen3-30b-a3b-5l-4k",
    "qwen3-4b-12l-2k",
    "deepseek-16b-5l-4k-full",
    "qwen3-30b-a3b-10l-4k-dp2",
    "qwen3-30b-a3b-10l-4k-dp2-ep2",
)


def torchtitan() -> list[PublicRun]:
    """All runs that nothing was taken from."""
    return [run for name in _SETS for run in _runs(_BENCH / "plans" / name, _BENCH / "measured" / name)]


def _runs(plans: Path, measured: Path) -> Iterator[PublicRun]:
    for file in sorted(measured.glob("*.json")):
        plan = read_plan(plans / f"{file.stem}.yaml")
        if file.stem in _TRACED or (plan.parallel.zero_stage and plan.cluster.gpus == 1):
            continue
        read = json.loads(file.read_text(encoding="utf-8"))
        yield PublicRun(
            label=file.stem,
            plans=(plan,),
            time_s=(float(read["step_time_s"]),),
            memory_B=float(read["reserved_B"]),
            of_memory="reserved",
        )
