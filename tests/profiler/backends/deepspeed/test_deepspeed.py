"""DeepSpeed under gloo, on one and two ranks: its layer is the definition's, its training the torch backend's."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from moemodel.profiler.backends.deepspeed.engine_run import architecture_at_hand

_SCRIPT = Path(__file__).with_name("ranks_deepspeed.py")
_ROOT = Path(__file__).parents[4]

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed: the extra deepspeed"
)

Case = dict[str, Any]


def _layer(ep: int, dtype: str = "float32", routing: Case | None = None, **block: Any) -> Case:
    return {"ep": ep, "dtype": dtype, "block": block, "routing": routing or {}}


_ONE_RANK: list[Case] = [
    _layer(1, top_k=1, routing={"normalize": False}),
    _layer(1, top_k=1, router="switch_top1"),
    _layer(1, top_k=2),
    _layer(1, top_k=4),
    _layer(1, "bfloat16", top_k=4),
    _layer(1, top_k=2, gated=False, activation="gelu"),
    _layer(1, top_k=4, capacity_factor=8.0),
    {"parallel": {}, "dtype": "float32"},
    {"parallel": {"zero_stage": 2}, "dtype": "float32", "recompute": "full"},
    {"parallel": {"zero_stage": 1}, "dtype": "float32", "switch": True},
    {"parallel": {}, "dtype": "bfloat16"},
    {"parallel": {"zero_stage": 1}, "dtype": "bfloat16"},
    {"parallel": {"zero_stage": 2}, "dtype": "bfloat16", "precision": "bf16"},
]
_TWO_RANKS: list[Case] = [
    _layer(2, top_k=2),
    _layer(2, "bfloat16", top_k=4),
    _layer(2, top_k=4, capacity_factor=8.0),
    {"parallel": {"dp": 2}, "dtype": "float32"},
    {"parallel": {"dp": 2, "zero_stage": 1}, "dtype": "float32"},
    {"parallel": {"dp": 2, "ep": 2}, "dtype": "float32"},
    {"parallel": {"dp": 2, "ep": 2, "zero_stage": 1}, "dtype": "float32", "top_k": 3},
    {"parallel": {"dp": 2, "ep": 2, "zero_stage": 2}, "dtype": "bfloat16"},
]
_FOUR_RANKS: list[Case] = [
    {"parallel": {"dp": 4, "ep": 4, "zero_stage": 1}, "dtype": "float32"},
    {"parallel": {"dp": 4, "ep": 2, "zero_stage": 2}, "dtype": "float32"},
]
_OTHER: list[Case] = [  # of these nobody but DeepSpeed says what is right
    {"parallel": {"zero_stage": 1}, "dtype": "bfloat16", "routing": {"capacity_factor": 0.5, "balance_loss": 0.01}},
    {"parallel": {}, "dtype": "bfloat16", "routing": {"router": "gshard_top2"}},
    {"parallel": {}, "dtype": "bfloat16", "routing": {"router": "noisy_topk", "top_k": 1}},
    {"parallel": {}, "dtype": "bfloat16", "routing": {"router": "switch_top1", "top_k": 1, "jitter": 0.01}},
    {"parallel": {}, "dtype": "bfloat16", "routing": {"residual": True}},
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Case]]:
    """What `ranks_deepspeed` says of each case, by the ranks of its job."""
    jobs = {1: [*_ONE_RANK, *_OTHER], 2: _TWO_RANKS, 4: _FOUR_RANKS}
    file = tmp_path_factory.mktemp("deepspeed") / "jobs.json"
    file.write_text(json.dumps(jobs), encoding="utf-8")
    process = subprocess.run(
        [sys.executable, str(_SCRIPT), str(file)],
        env=os.environ | {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=360,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    lines = (json.loads(line) for line in process.stdout.splitlines() if line.startswith("{"))
    return {ranks: [next(lines) for _ in cases] for ranks, cases in jobs.items()}


@pytest.fixture(scope="module")
def one_rank(found: dict[int, list[Case]]) -> list[Case]:
    """Of `_ONE_RANK` and `_OTHER`."""
    return found[1]


@pytest.fixture(scope="module")
def two_ranks(found: dict[int, list[Case]]) -> list[Case]:
    """Of `_TWO_RANKS`."""
    return found[2]


@pytest.fixture(scope="module")
def four_ranks(found: dict[int, list[Case]]) -> list[Case]:
    """Of `_FOUR_RANKS`."""
    return found[4]


def _check(case: Case, found: Case) -> None:
    if "block" in case:
        assert found["wrong"] == ""
        return
    # Three steps of Adam, whose first are near signs and make rounding large. In bf16 ZeRO 0's counts from one.
    allowed = 1e-5 if case["dtype"] == "float32" else 5e-4
    assert found["losses"] == pytest.approx(found["alone"], rel=allowed)
    assert found["as_marked"]
    assert found["marks"][:3] == ["start", "forward", "backward"]
    assert found["marks"][-1] == "optimizer"


@needs_deepspeed
@pytest.mark.parametrize("index", range(len(_ONE_RANK)), ids=[json.dumps(case) for case in _ONE_RANK])
def test_one_rank_computes_what_the_definition_says(one_rank: list[Case], index: int) -> None:
    _check(_ONE_RANK[index], one_rank[index])


@needs_deepspeed
@pytest.mark.parametrize("index", range(len(_TWO_RANKS)), ids=[json.dumps(case) for case in _TWO_RANKS])
def test_two_ranks_compute_what_the_definition_says(two_ranks: list[Case], index: int) -> None:
    _check(_TWO_RANKS[index], two_ranks[index])


@needs_deepspeed
@pytest.mark.parametrize("index", range(len(_FOUR_RANKS)), ids=[json.dumps(case) for case in _FOUR_RANKS])
def test_four_ranks_compute_what_the_definition_says(four_ranks: list[Case], index: int) -> None:
    _check(_FOUR_RANKS[index], four_ranks[index])


@needs_deepspeed
def test_a_capacity_drops_rows_and_a_balance_loss_is_told_apart(one_rank: list[Case]) -> None:
    found = one_rank[len(_ONE_RANK)]
    room = 4  # half of the mean would be 2; DeepSpeed's min_capacity is 4
    dropped = sum(told["dropped"] for told in found["routing"])
    assert dropped == sum(max(0, rows - room) for load in found["loads"] for rows in load) > 0
    assert len(found["routing"]) == 3
    for told in found["routing"]:
        assert sum(told["rows_E"]) == 4 * 8 * 2  # sequences x tokens x experts of a token
        assert 0 < told["entropy"] <= 1.3863  # ln 4
        assert told["layer"] == 1
    assert found["router"] == pytest.approx([0.01] * 3, rel=0.1)  # coefficient x 1 for even loads, one layer
    assert [sum(load) for load in found["loads"]] == [16] * 12


@needs_deepspeed
@pytest.mark.parametrize("index", range(1, len(_OTHER)), ids=[json.dumps(case["routing"]) for case in _OTHER[1:]])
def test_its_other_routers_train(one_rank: list[Case], index: int) -> None:
    found = one_rank[len(_ONE_RANK) + index]
    assert found["losses"][0] == pytest.approx(found["alone"][0], rel=0.01)  # ln 62, whatever the routers do
    assert len(set(found["losses"])) == 3
    assert all(told["dropped"] == 0 for told in found["routing"])


@needs_deepspeed
def test_which_optimizer_holds_the_states(one_rank: list[Case]) -> None:
    told = {json.dumps(case): found.get("optimizer") for case, found in zip(_ONE_RANK, one_rank, strict=False)}
    assert told[json.dumps(_ONE_RANK[-6])] == "AdamW"  # float32, for comparison alone
    assert told[json.dumps(_ONE_RANK[-3])] == "FP16_UnfusedOptimizer"
    assert told[json.dumps(_ONE_RANK[-2])] == told[json.dumps(_ONE_RANK[-1])] == "DeepSpeedZeroOptimizer"


def test_a_missing_framework_is_named_with_its_extra() -> None:
    code = (
        "import sys, torch; sys.modules['deepspeed'] = None\n"
        "from moemodel.profiler.backends.base import TrainingRun, builder\n"
        "from moemodel.model.architecture.hf_config import read_architecture\n"
        "run = TrainingRun(name='x', architecture=read_architecture('opt-350m'), seq=8, micro_batch=1)\n"
        "try: builder('deepspeed')(run, torch.device('cpu'))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print(torch.distributed.is_initialized())\n"
    )
    job = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    first, opened = job.stdout.splitlines()
    assert first.startswith("MissingExtraError the backend deepspeed needs deepspeed, which is not installed; install")
    assert "pip install '.[deepspeed]'" in first
    assert opened == "False"


@pytest.mark.parametrize("before", ["9.0a", None])
def test_it_compiles_for_the_gpu_at_hand_alone(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    if before is None:
        monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    else:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", before)
    with architecture_at_hand(torch.device("cuda", 0)):
        assert os.environ["TORCH_CUDA_ARCH_LIST"] == "9.0"
    assert os.environ.get("TORCH_CUDA_ARCH_LIST") == before
