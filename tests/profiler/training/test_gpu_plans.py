"""What only two GPUs can show: plans over NCCL lose what one GPU loses, and leave no memory behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from moemodel.model.core.documents import parse_yaml
from moemodel.model.plan.spec import Plan
from moemodel.profiler.training.launch import LaunchOptions, Measured, PlanVisit, launch, measure_host

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NO TWO GPUS HERE: plans over NCCL are not tested"),
]

_CONFIG = {"model_type": "olmoe", "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 128} | {
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
}
_PLAN = """name: {name}
architecture: tiny.json
sequence_length: 256
global_batch: 16
micro_batch: 4
cluster: {{gpu: {gpu}, gpus: {gpus}}}
parallel: {parallel}
"""
_PARALLEL = {
    "first": "{dp: 2}",
    "one": "{}",
    "zero1": "{dp: 2, zero_stage: 1}",
    "zero3": "{dp: 2, zero_stage: 3}",
    "tp": "{tp: 2}",
    "sp": "{tp: 2, sequence_parallel: true}",
    "ep": "{dp: 2, ep: 2}",
    "pp": "{pp: 2}",
    "interleaved": "{pp: 2, virtual_stages: 2}",
    "bubble": "{pp: 2}\nschedule: zero-bubble",
    "last": "{dp: 2}",
}


def _visit(name: str, gpu: str, folder: Path) -> PlanVisit:
    gpus = 1 if name == "one" else 2
    text = _PLAN.format(name=name, gpu=json.dumps(gpu), gpus=gpus, parallel=_PARALLEL[name])
    return PlanVisit(plan=parse_yaml(text, Plan, name), plan_yaml=text, folder=folder)


def test_plans_lose_what_one_gpu_loses_and_leave_nothing(tmp_path: Path) -> None:
    gpu = torch.cuda.get_device_name(0)
    (tmp_path / "tiny.json").write_text(json.dumps(_CONFIG))
    visits = [_visit(name, gpu, tmp_path) for name in _PARALLEL]
    options = LaunchOptions(gpu=gpu, warm_s=0.0, measured_s=0.5, timeout_s=120.0)
    outcomes = list(launch(visits, folder=tmp_path, options=options))
    rows = {o.visit.plan.name: o.rows for o in outcomes if isinstance(o, Measured)}
    assert rows.keys() == _PARALLEL.keys(), outcomes
    for ranks in rows.values():
        assert ranks[0].loss_first == pytest.approx(rows["one"][0].loss_first, rel=2e-3)  # bf16
    peaks_B = [[row.peak_allocated_B for row in rows[name]] for name in ("first", "last")]
    assert peaks_B[0] == pytest.approx(peaks_B[1], rel=0.01)


def test_the_hosts_time_of_parallel_parts_is_positive(tmp_path: Path) -> None:
    options = LaunchOptions(gpu=torch.cuda.get_device_name(0), timeout_s=200.0)
    rows = measure_host(folder=tmp_path, options=options, repeats=10)
    found = {(row.block, row.direction): row.host_time_s for row in rows}
    for block in ("fsdp_unit", "tensor_collective", "tensor_collective_rows"):
        assert 0 < found[block, "forward"] < 5e-3
        assert 0 < found[block, "backward"] < 5e-3
