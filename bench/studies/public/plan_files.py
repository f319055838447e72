"""Published runs that lie as plan files, what was published in their first comment.

    cases    a plan a fault, each from another source
    rows     whole groups, a folder each; their comment reads `time_s=1.2, tok_s_gpu=3, memory_GB=4`

Plans with one comment that differ in what is computed again (`-none`, `-selective`, `-full` at the end of their names)
are alternatives of one run: the source does not say. What it does say of that is below.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from moemodel.model.core.errors import InputError, MoeModelError
from moemodel.model.plan.recompute import RECOMPUTE
from moemodel.model.plan.spec import Plan, read_plan
from studies.bridge_recipes import recipe
from studies.public.bridge import as_released
from studies.public.run import OfMemory, PublicRun, first_line

_UNSTATED = re.compile(r"-(none|selective|full)$")
# torchtitan's reports name "selective activation checkpointing", which is `selective_ac_option: op` by default (its
# JobConfig), and `selective` of the backend that trains so; the plans were written when none could say it
_OPERATOR_SELECTIVE = re.compile(r"-sac-as-(none|full)$")
# What the sources say of the software and boards of plans that, written when none could say so, stand for it with
# others': torchtitan's reports name the board (96 GB of HBM2e, 2.4 TB/s) and whether layers were compiled; models named
# mpt- are llm-foundry's, which trains them under FSDP; NVIDIA's submissions to MLPerf scale by what was largest in
# steps before (config_fp8.sh, FP8_AMAX_HISTORY)
_TITAN, _FOUNDRY, _EAGER, _MLPERF = "titan", "mpt-", "eager", "-mlperf"
# Names of Megatron-Bridge's runs say model and release, whose configuration says the rest (`studies.public.bridge`); a
# model of Qwen's form stands for GPT-OSS, which no plan could name when the plans were written
_BRIDGE = re.compile(r"\d\d-(\w[\w.]*)-(\d\d\.\d\d(?:\.\d\d)?)-(?:none|selective|full)")
_BRIDGE_MODELS = {
    "Qwen3_30B_a3B": "qwen3-30b-a3b",
    "Qwen3_235B_a22B": "qwen3-235b-a22b",
    "GPTOSS120B": "gpt-oss-120b",
    "DeepSeekV3": "deepseek-v3",
    "LLAMA3_8B": "llama-3-8b",
    "LLAMA3_70B": "llama-3-70b",
    "LLAMA3.1_405B": "llama-3.1-405b",
}
# Its reports name AsyncTP in these, and in all of the 405B model (benchmarks/llama3_h100_202412_torchtitan.md, tables 4
# to 6)
_ASYNC = re.compile("async|l405b")
_BOARDS = {"h100-sxm-80gb": "h100-sxm-96gb"}


def cases(folder: Path) -> list[PublicRun]:
    """Of the plans that lie in a folder itself."""
    with chdir(folder):
        return [_case(path) for path in sorted(Path().glob("*.yaml"))]


def group_names(folder: Path) -> list[str]:
    """Of the folders below `rows` that hold plans."""
    return sorted(path.name for path in (folder / "rows").glob("*") if any(path.glob("*.yaml")))


def group(folder: Path, name: str) -> list[PublicRun]:
    """The runs of one."""
    with chdir(folder / "rows"):
        return list(_group(Path(name)))


def _group(folder: Path) -> Iterator[PublicRun]:
    runs: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(folder.glob("*.yaml")):
        name = _OPERATOR_SELECTIVE.sub("-sac", path.stem)
        runs.setdefault((_UNSTATED.sub("", name), _first_line(path)), []).append(path)
    for (name, said), paths in runs.items():
        published = {key: float(value) for key, value in _PAIR.findall(said)}
        plan = _plan(paths[0])
        yield PublicRun(
            label=name if len(paths) > 1 or name.endswith("-sac") else paths[0].stem,
            plans=_alternatives(name, paths),
            time_s=_row_time(published, plan),
            memory_B=published.get("memory_GB", np.nan) * 1e9,
            of_memory="reserved",  # torchtitan's, which alone state any (its metrics.py: max_reserved)
        )


def _alternatives(name: str, paths: list[Path]) -> tuple[Plan | str, ...]:
    """Plans of one run, that first which computes least again."""
    plans = [_plan(path) for path in paths]
    if name.endswith("-sac") and isinstance(plans[0], Plan):
        return (plans[0].model_copy(update={"recompute": "selective"}),)
    if len(plans) == 1 or _release_of(paths[0]) is not None:
        return (plans[0],)
    return tuple(sorted(plans, key=lambda plan: RECOMPUTE[plan.recompute] if isinstance(plan, Plan) else -1))


def _plan(path: Path) -> Plan | str:
    """A plan whose files are named by where they are, or why it is none."""
    try:
        plan = read_plan(path)
    except MoeModelError as error:
        return first_line(error)
    named = Path(plan.architecture)
    plan = plan.model_copy(update={"architecture": str(named.resolve())}) if named.is_file() else plan
    return _as_the_source_has_it(plan, path)


_SCHEDULES = re.compile(r"the run had \d+ schedules of (\d+)")


def _as_its_comments_have_it(plan: Plan, path: Path) -> dict[str, object]:
    """What a plan's comments say of the run that no plan could say when it was written."""
    remarks = " ".join(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    said: dict[str, object] = {}
    if "DeepEP" in remarks:
        said["routing"] = plan.routing.model_copy(update={"dispatch": "deepep"})
    if "fp8 parameters are gathered" in remarks:
        said["parameter_dtype"] = "fp8"
    if schedules := _SCHEDULES.search(remarks):
        said["micro_batches_per_schedule"] = int(schedules[1])
    return said


def _as_the_source_has_it(plan: Plan, path: Path) -> Plan:
    """With the software and the board that its source names; as it stands, where that framework cannot run it."""
    named = f"{path} {plan.architecture} {_first_line(path)}".lower()
    said: dict[str, object] = {}
    if _TITAN in named:
        gpu = _BOARDS.get(plan.cluster.gpu, plan.cluster.gpu)
        board = plan.cluster.model_copy(update={"gpu": gpu})
        said = {"backend": "torchtitan", "compile": _EAGER not in path.stem, "cluster": board}
        if _ASYNC.search(path.stem):
            said["tp_comm_overlap"] = True
    elif _FOUNDRY in Path(plan.architecture).name:
        said = {"backend": "fsdp"}
    elif _MLPERF in Path(plan.architecture).stem and plan.precision == "fp8":
        said = {"fp8_recipe": "delayed"}
    said |= _as_its_comments_have_it(plan, path) | _as_its_release_has_it(plan, path)
    try:
        plain = {key: value.model_dump() if isinstance(value, BaseModel) else value for key, value in said.items()}
        return Plan.model_validate(plan.model_dump() | plain)
    except InputError:
        return plan


def _release_of(path: Path) -> tuple[str, str] | None:
    """Model and release of one of Megatron-Bridge's runs; None: it is none, or nothing more is known of it."""
    named = _BRIDGE.fullmatch(path.stem)
    return (_BRIDGE_MODELS[named[1]], named[2]) if named and named[1] in _BRIDGE_MODELS else None


def _as_its_release_has_it(plan: Plan, path: Path) -> dict[str, object]:
    """What a release's configuration says of one of Megatron-Bridge's runs."""
    named = _release_of(path)
    if named is None:
        return {}
    name, release = named
    used = recipe(name, plan.cluster.gpu, release)
    said: dict[str, object] = dict(as_released(name, plan.cluster.gpu, release, plan.precision))
    said["routing"] = plan.routing.model_copy(update=used.routing)
    if used.micro_batch is not None:
        said["micro_batch"] = used.micro_batch
    own, pp = plan.parallel, used.pp or plan.parallel.pp
    degrees = {"pp": pp, "dp": own.dp * own.pp // pp, "ep": used.ep or own.ep}
    virtual = own.virtual_stages if used.virtual_stages is None else used.virtual_stages
    said["parallel"] = own.model_copy(update=degrees | {"virtual_stages": virtual})
    return said


_PAIR = re.compile(r"(\w+)=([\d.e+-]+)")


def _first_line(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0]


def _row_time(published: dict[str, float], plan: Plan | str) -> tuple[float, ...]:
    if "time_s" in published:
        return (published["time_s"],)
    return () if isinstance(plan, str) else (_of_rate(plan, published["tok_s_gpu"]),)


def _of_rate(plan: Plan, tok_s_gpu: float) -> float:
    return plan.global_batch * plan.sequence_length / (plan.cluster.gpus * tok_s_gpu)


# ---- cases ----------------------------------------------------------------------------------------------------------

_STEP = re.compile(r"([\d.]+) s(?: if|\b)")
_RATE = re.compile(r"([\d.]+) tok/s/GPU")
_HELD = re.compile(r"\bs?, ([\d.]+) (GB|GiB)\b")
_UNIT_B = {"GB": 1e9, "GiB": 2.0**30}


def _case(path: Path) -> PublicRun:
    said = _first_line(path)
    plan = _plan(path)
    times = tuple(float(value) for value in _STEP.findall(said))
    rate = _RATE.search(said)
    if not times and rate and isinstance(plan, Plan):
        times = (_of_rate(plan, float(rate[1])),)
    held = _HELD.search(said)
    memory_B = float(held[1]) * _UNIT_B[held[2]] if held else np.nan
    of_memory: OfMemory = "device" if "gh200" in path.stem else "reserved"  # Sailor's and torchtitan's
    return PublicRun(label=path.stem, plans=(plan,), time_s=times, memory_B=memory_B, of_memory=of_memory)
