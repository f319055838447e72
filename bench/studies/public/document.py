"""The figures of public runs as a section of a document, between two marks."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from moemodel.model.core.errors import InputError
from moemodel.model.core.files import write_atomic
from studies.public.figures import cell

_BEGIN, _END = "<!-- public_runs: begin -->", "<!-- public_runs: end -->"

# What each group is; a group that is not named here is a folder of plans
SAID: dict[str, str] = {
    "foundry-bf16": "llm-foundry, dense GPTs under FSDP, 8 to 512 H100, bf16",
    "foundry-fp8": "the same in fp8",
    "foundry-a100": "llm-foundry, dense GPTs under FSDP, 8 A100 80GB, bf16, up to 65,536 tokens",
    "foundry-a100-40gb": "the same of 2022 on 8 to 128 A100 40GB, and 70 B on 32 and 64 A100 80GB",
    "bridge-dense": "Megatron-Bridge, dense, 8 to 1,024 H100",
    "bridge-experts": "Megatron-Bridge, experts, 8 to 1,024 H100",
    "bridge-blackwell": "Megatron-Bridge on B200, B300, GB200 and GB300",
    "mlperf": "MLPerf Training 3.1 and 5.1, H100 and H200, fp8",
    "mlperf-v4-v5": "MLPerf Training 4.0, 4.1 and 5.0, H100, H200, B200, GB200 and L40S, fp8",
    "gh200": "Sailor, OPT-350M, 4 to 128 GH200; memory as nvidia-smi has it",
    "nanotron": "Nanotron, two models, 8 to 512 H100; memory reserved",
    "b200": "Megatron-LM on eight B200 (SimuMax), every stage's memory",
    "golden": "Megatron-LM's functional tests; times above 100 ms",
    "cases": "single runs, each of another source",
    "g1-selene-megatron-v2": "Megatron-LM 2.x, 22 B to 1 T on 8 to 512 A100 (Korthikanti et al. 2022)",
    "g4-torchtitan": "torchtitan's reports; memory reserved",
    "torchtitan-h200": "torchtitan 0.2.2 on one H200 or two, run for this project; memory reserved",
    "transformers-h200": "Hugging Face's Trainer on one H200, run for this project; memory reserved",
    "deepspeed-h200": "DeepSpeed's ZeRO on one H200, dense models, run for this project",
    "g5-foundry-h100": "llm-foundry, 30 B and 70 B",
    "g6-vtrain-megatron-v2": "Megatron-LM 2.x on 64 to 512 A100 (vTrain)",
    "g8-megatron-llama-fp8": "Megatron-LM's Llama table, fp8",
    "mem-bridge": "Megatron-Bridge's runs, recomputation left open",
}
_COLUMNS: dict[str, str] = {
    "rows": "runs",
    "timed": "timed",
    "mape": "error",
    "signed": "mean",
    "inside": "inside",
    "mape_left_out": "fitted elsewhere",
    "refused": "refused",
    "memory_mape": "memory",
}


def section(found: Mapping[str, Mapping[str, float]], commit: str) -> str:
    """Tables of all groups."""
    heads = " | ".join(_COLUMNS.values())
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit}. Times zero-shot: mean of |predicted / published - 1|, mean of",
        "the ratio less 1, share of published times inside the 90 % interval, and the first again with properties of",
        "GPUs and of frameworks fitted on the other groups (`--fits`); runs that ran and are refused; mean",
        "error of memory.",
        "",
        f"| group | {heads} |",
        "| --- |" + " --: |" * len(_COLUMNS),
    ]
    for name, figures in found.items():
        cells = " | ".join(cell(column, figures.get(column), missing="") for column in _COLUMNS)
        lines.append(f"| {SAID.get(name, name)} | {cells} |")
    for name, figures in found.items():
        lines += _of_jobs(SAID.get(name, name), figures)
    return "\n".join(lines)


def _of_jobs(said: str, figures: Mapping[str, float]) -> list[str]:
    lines = []
    if "tau" in figures:
        lines += [
            "",
            f"{said}: over {figures['jobs']:.0f} sets of plans of one job, Kendall's tau is {figures['tau']:.2f} in",
            f"the mean; the first choice takes {figures['regret']:.1%} longer than the best (worst set "
            f"{figures['regret_worst']:.0%}), and runs",
            f"out of memory in {figures['first_choice_oom']:.0%} of the sets.",
        ]
    if "oom_balanced" in figures:
        lines += [
            f"Verdicts on memory are right for {figures['oom_balanced']:.1%} (the mean of those that ran and of the",
            f"{figures['oom_rows']:.0f} that ran out).",
        ]
    return lines


def write_section(path: Path, found: Mapping[str, Mapping[str, float]]) -> None:
    """Put the figures between a document's marks.

    Raises:
        InputError: it has no such marks.
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise InputError(f"{path}: found no {_BEGIN} and {_END}; allowed: a document with both")
    write_atomic(path, f"{before}{_BEGIN}\n{section(found, _commit(path.parent))}\n{_END}{after}")


def _commit(folder: Path) -> str:
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
