"""Plans that this project trained with other people's programs on one H200 or two.

    torchtitan    torchtitan 0.2.2 (`bench/torchtitan.py`)
    transformers  Hugging Face's Trainer (`bench/hugging_face.py`), those chosen when it had been described
    deepspeed     DeepSpeed's ZeRO on dense models of this project's (`moemodel validate`)

Left out: runs that constants were traced in (of torchtitan `model/frameworks/torchtitan.py` and
`model/step/autocast.py`; of transformers all of its first set), and those sharded over a mesh of one GPU, which
torchtitan makes of no configuration by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from moemodel.model.plan.spec import read_plan
from studies.public.run import PublicRun

_BENCH = Path(__file__).parents[2]
_TORCHTITAN = ("torchtitan", "torchtitan-unseen", "torchtitan-two-gpus", "torchtitan-cp")
_TRACED = (
    "qwen3-30b-a3b-5l-4k",
    "qwen3-4b-12l-2k",
    "deepseek-16b-5l-4k-full",
    "qwen3-30b-a3b-10l-4k-dp2",
    "qwen3-30b-a3b-10l-4k-dp2-ep2",
)


def torchtitan() -> list[PublicRun]:
    """All runs of it that nothing was taken from."""
    return [run for name in _TORCHTITAN for run in _runs(name) if run.label not in _TRACED]


def transformers() -> list[PublicRun]:
    """Those that were predicted before they ran, and nothing was mended by."""
    return list(_runs("transformers-unseen"))


def deepspeed() -> list[PublicRun]:
    """Of one report of `moemodel validate`."""
    (report,) = (_BENCH / "measured" / "deepspeed").glob("*.json")
    found = json.loads(report.read_text(encoding="utf-8"))["plans"]
    return [
        PublicRun(
            label=plan["name"],
            plans=(read_plan(_BENCH / "plans" / "deepspeed" / f"{plan['name']}.yaml"),),
            time_s=(float(plan["quantities"]["step_time"]["measured"]["mean"]),),
            memory_B=float(plan["quantities"]["memory"]["measured"]["mean"]),
        )
        for plan in found
    ]


def _runs(name: str) -> Iterator[PublicRun]:
    """Of a set of plans, those with readings of their own."""
    for file in sorted((_BENCH / "measured" / name).glob("*.json")):
        plan = read_plan(_BENCH / "plans" / name / f"{file.stem}.yaml")
        if plan.parallel.zero_stage and plan.cluster.gpus == 1:
            continue
        read = json.loads(file.read_text(encoding="utf-8"))
        yield PublicRun(
            label=file.stem,
            plans=(plan,),
            time_s=(float(read["step_time_s"]),),
            memory_B=float(read["reserved_B"]),
            of_memory="reserved",
        )
