"""Megatron-LM's functional tests: all arguments of each, its median iteration, and what its last rank held at most.

Arguments become plans as `moemodel import megatron` makes them. Tests run on eight GPUs, those of one GB200 node on
four (tests/test_utils/recipes). Memory is that of the last rank, which writes the log (megatron/training/training.py:
`mem-max-allocated-bytes` of torch.cuda's allocator), on the last stage. Left out: runs of a release, on as many GPUs as
no recipe says, and copies of other runs' files (`_COPIES`). Second runs (`_2nd`) begin by loading a checkpoint, which
their memory holds: of them the time counts.

Tests of GPT and MoE on one GB200 node run by GitHub's workflow on a runner of a cloud (.github/workflows/cicd-main.yml,
`selected_runner_gb200`), whose storage they wait for: iterations take the same whatever layers and degrees are, differ
by 16 % from one to the next, alike in all tests as the data are, and are as short as predicted where batches lie ready
(the second). How fast it reads nobody says. The 15 of GPT with one replica tell, whose times then count no more
(`_STORAGE`); the 15 others, of more replicas or with experts, are predicted with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from moemodel.model.core.errors import InputError
from moemodel.model.plan.megatron_arguments import MegatronRun, megatron_run
from moemodel.model.plan.spec import Plan
from studies.public.models import config_file
from studies.public.run import PublicRun, first_line, plan_or_refusal

GOLDEN = "megatron-golden/cases.jsonl"
LONG_S = 0.1  # iterations from which on times are said to be right; below, they are mostly the host's
_NODE = 8
_LOADED = "_2nd"
_GPUS = {"a100": "a100-sxm-80gb", "h100": "h100-sxm-80gb", "gb200": "gb200-186gb"}
# Copies of what other runs gave, by Megatron-LM's history and never by what is predicted: files for A100 that came byte
# for byte as H100's did (commits 7418b1b8f and e3ec174fc), and stayed so; and one that is byte for byte a GPT's of
# 12 layers in four stages (3383a104c; gpt3_mr_mcore_te_tp1_pp4_vp1_dist_optimizer_overlap_grad_reduce_param_gather_
# overlap_optimizer_dgx_a100_1N8G)
_A100 = ("golden_values_dev_dgx_a100.json", "golden_values_lts_dgx_a100.json")
_COPIES = {
    *(("hybrid/hybrid_mr_mcore_te_tp1_pp4_cp1_dgx_a100_1N8G", file) for file in _A100),
    *(("hybrid/hybrid_mr_mcore_te_tp2_pp1_cp4_dgx_a100_1N8G", file) for file in _A100),
    ("hybrid/hybrid_mr_mcore_te_tp1_pp1_cp1_dgx_a100_1N8G", "golden_values_lts_dgx_a100.json"),
}

# What one of two processes takes to read a sequence there: the mean over GPT's tests with one replica of 32 sequences,
# whose iterations, of 51 to 69 ms a sequence, differ by 0.16 = variation / sqrt(32) from one to the next
_STORAGE = {"sequence_s": 2 * 0.0597, "workers": 2, "variation": 0.9}


def golden(folder: Path) -> list[PublicRun]:
    """All cases that train and say what they are."""
    with (folder / GOLDEN).open(encoding="utf-8") as lines:
        return list(_runs(map(json.loads, lines)))


def _runs(cases: Iterator[dict[str, Any]]) -> Iterator[PublicRun]:
    for case in cases:
        if "release" in case["case"] or (case["case"], case["file"]) in _COPIES:
            continue
        memory_B, time_s = case.get("max_allocated_B"), float(case["iteration_time_s"])
        plan, is_read = _plan(case)
        is_timed = time_s > LONG_S and not (isinstance(plan, Plan) and _tells_of_storage(case, plan))
        yield PublicRun(
            label=f"{case['case']} {case['gpu']} {_short(str(case['file']))}",
            plans=(plan,),
            time_s=(time_s,) if is_timed else (),
            memory_B=float(memory_B) if memory_B is not None and _is_known(case) else np.nan,
            stage=plan.parallel.pp - 1 if isinstance(plan, Plan) else None,
            is_read=is_read,
        )


def _is_known(case: Mapping[str, Any]) -> bool:
    """Whether it is known what memory was for: no checkpoint was loaded, and attention ran as the arguments say.

    Where they leave it to Transformer Engine, today's (`dev`) takes one kernel; older ones (`lts`) took one or several,
    and held half as much again for that in runs of the same arguments.
    """
    arguments, file = case["args"], str(case["file"])
    says = "--attention-backend" in arguments or arguments.get("--transformer-impl") == "local"
    return _LOADED not in file and (says or "_dev_" in file)


def _short(file: str) -> str:
    return file.removeprefix("golden_values_").removesuffix(".json")


def _plan(case: Mapping[str, Any]) -> tuple[Plan | str, bool]:
    """What a user gets of its arguments, or why there is none; and whether they could be read."""
    try:
        run = imported(case)
    except InputError as error:
        return first_line(error), False
    document = run.plan | {"architecture": _model(run), "name": str(case["case"]).replace("/", " ")}
    if _is_one_node(case):
        document["cluster"] = {**run.plan["cluster"], "data_loading": _STORAGE}
    return plan_or_refusal(document), True


def _is_one_node(case: Mapping[str, Any]) -> bool:
    """Of GB200, which has four GPUs."""
    return case["gpu"] == "gb200" and re.search("1node|1N4G", str(case["case"])) is not None


def _tells_of_storage(case: Mapping[str, Any], plan: Plan) -> bool:
    """Whether `_STORAGE` was taken from its time."""
    return _is_one_node(case) and str(case["case"]).startswith("gpt/") and plan.parallel.dp == 1


def imported(case: Mapping[str, Any]) -> MegatronRun:
    """What a case's arguments say.

    Raises:
        InputError: no plan can be of them.
    """
    arguments = case["args"]
    gpu = _GPUS[str(case["gpu"])]
    model: Literal["gpt", "bert"] = "bert" if str(case["case"]).startswith("bert/") else "gpt"  # of its program
    return megatron_run(arguments, gpu=gpu, gpus=_gpus(case), model=model)


def _gpus(case: Mapping[str, Any]) -> int:
    """By the recipe of its group: a node of eight, two of four GB200, or one of these ("1node", "1N4G")."""
    return 4 if _is_one_node(case) else _NODE


def _model(run: MegatronRun) -> str:
    name = re.sub(r"\W+", "-", json.dumps(run.config, sort_keys=True))
    return config_file(f"megatron-{abs(hash(name))}", run.config)
