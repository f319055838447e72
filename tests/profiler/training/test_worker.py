"""A job of two processes on processors, from the launcher to the rows; and what a process does by itself."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.distributed import DistNetworkError, HashStore  # type: ignore[attr-defined]

from moemodel.model.core.documents import parse_yaml
from moemodel.model.core.errors import DeviceError
from moemodel.model.plan.spec import Plan
from moemodel.profiler.clocks.clock_control import ClockControl
from moemodel.profiler.jobs.ranks import failure_of
from moemodel.profiler.jobs.rendezvous import RendezvousStore
from moemodel.profiler.training.launch import Failure, LaunchOptions, Measured, PlanVisit, launch
from moemodel.profiler.training.worker import adopt_slurm, hold_clock

_CONFIG = {
    "model_type": "olmoe",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
}
_PLAN = """name: {name}
architecture: tiny.json
sequence_length: 8
global_batch: 4
cluster: {{gpu: cpu, gpus: {gpus}}}
parallel: {parallel}
"""


@pytest.fixture
def visits(tmp_path: Path) -> list[PlanVisit]:
    """A plan of two ranks that asks for a clock, one of one rank, one that is refused, one of two stages."""
    (tmp_path / "tiny.json").write_text(json.dumps(_CONFIG))

    def visit(name: str, gpus: int, parallel: str) -> PlanVisit:
        text = _PLAN.format(name=name, gpus=gpus, parallel=parallel)
        return PlanVisit(plan=parse_yaml(text, Plan, name), plan_yaml=text, folder=tmp_path)

    plans = [("ep", 2, "{dp: 2, ep: 2}\nclock_MHz: 1200"), ("one", 1, "{}"), ("cp", 2, "{cp: 2}"), ("pp", 2, "{pp: 2}")]
    return [visit(*plan) for plan in plans]


def test_a_job_of_two_processes(visits: list[PlanVisit], tmp_path: Path) -> None:
    options = LaunchOptions(gpu="cpu", warm_s=0.0, measured_s=0.0, timeout_s=60.0)
    ep, one, cp, pp = launch(visits, folder=tmp_path, options=options)
    assert isinstance(ep, Measured)
    assert isinstance(one, Measured)
    assert isinstance(cp, Failure)
    assert isinstance(pp, Measured)
    assert [len(outcome.rows) for outcome in (ep, one, pp)] == [2, 1, 2]
    for outcome in (ep, one, pp):
        for rank, row in enumerate(outcome.rows):
            assert (row.plan, row.rank, row.steps) == (outcome.visit.plan.name, rank, 20)
            assert row.plan_yaml == outcome.visit.plan_yaml
            assert row.loss_first == pytest.approx(one.rows[0].loss_first, rel=1e-3)  # sums of bf16
            assert row.loss_last == pytest.approx(outcome.rows[0].loss_last)
    assert (ep.clock_asked_MHz, ep.clock_held) == (1200, False)
    assert ep.clock_note is not None
    assert "has no clocks that moemodel can lock" in ep.clock_note
    assert (one.clock_asked_MHz, one.clock_held, one.clock_note) == (None, None, None)
    assert cp.kind == "refused"
    assert ep.rows[0].expert_skew == pytest.approx(ep.rows[1].expert_skew)
    assert ep.rows[0].forward_time_s > 0
    assert pp.rows[0].forward_time_s is None
    assert pp.rows[0].optimizer_time_s > 0
    # The experts are shared out: 2 layers of 4 experts, 3 matrices of 16 x 16, half of them elsewhere.
    assert one.rows[0].parameters - ep.rows[0].parameters == 2 * 2 * 3 * 16 * 16
    embedding_head_norm = 2 * 64 * 16 + 16
    assert sum(row.parameters for row in pp.rows) == one.rows[0].parameters > embedding_head_norm
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == ["0"]


# --- by itself -------------------------------------------------------------------------------------------------------


def test_peers_hear_rank_0_and_meet() -> None:
    store, heard = HashStore(), dict[int, list[object]]()

    def live(rank: int) -> None:
        peers = RendezvousStore(store, rank, 3, name="test", timeout_s=20)
        said = peers.agree(10.0 + rank)
        everything = peers.gather({"rank": rank})
        peers.barrier()
        heard[rank] = [said, everything, peers.first([rank, None])]

    threads = [threading.Thread(target=live, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert heard[0] == [10.0, [{"rank": 0}, {"rank": 1}, {"rank": 2}], [0, None]]
    assert heard[1] == heard[2] == [10.0, None, [0, None]]


def test_out_of_memory_is_found_behind_what_wraps_it() -> None:
    try:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")
        except torch.OutOfMemoryError as error:
            raise RuntimeError("[Stage 1] failed to run forward") from error
    except RuntimeError as error:
        failure = failure_of(error, 3)
    assert (failure.visit, failure.kind) == (3, "memory")
    assert failure.reason == "does not fit in the GPU's memory: CUDA out of memory. Tried to allocate 2 GiB."


def test_failures_are_told_apart() -> None:
    assert failure_of(DeviceError("the loss became nan"), 0).kind == "error"
    assert failure_of(DistNetworkError("recv timed out after 5 s"), 0).kind == "timeout"
    crash = failure_of(ValueError("x" * 1000), None)
    assert (crash.kind, crash.visit, crash.reason) == ("crash", None, "ValueError: " + "x" * 300)


def test_slurm_says_who_is_who() -> None:
    environment = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}
    adopt_slurm(environment)
    assert {name: environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")} == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
    }
    torchrun = {"RANK": "0", "SLURM_PROCID": "7"}
    adopt_slurm(torchrun)
    assert torchrun == {"RANK": "0", "SLURM_PROCID": "7"}


class _Control:
    """A clock control that allows what it is told to."""

    def __init__(self, obstacle: str | None = None, missing: str | None = None, refuses: bool = False) -> None:
        self._obstacle, self._missing, self._refuses = obstacle, missing, refuses
        self.locked_Hz: float | None = None

    def obstacle(self) -> str | None:
        return self._obstacle

    def missing_privilege(self) -> str | None:
        return self._missing

    def clocks_Hz(self) -> list[float]:
        return [1.2e9, 1.215e9]

    def lock(self, clock_Hz: float) -> None:
        if self._refuses:
            raise DeviceError("the driver gives no permission")
        self.locked_Hz = clock_Hz


@pytest.mark.parametrize(
    ("control", "clocks", "reason"),
    [
        (_Control(), "auto", None),
        (_Control(), "passive", "clocks are left alone (--clocks passive)"),
        (_Control(obstacle="another process computes"), "lock", "another process computes"),
        (_Control(missing="it takes root"), "auto", "it takes root"),
        (_Control(missing="it takes root"), "lock", None),  # the driver is asked
        (_Control(refuses=True), "auto", "the driver gives no permission"),
    ],
)
def test_clocks_are_held_where_that_is_permitted(control: ClockControl, clocks: str, reason: str | None) -> None:
    assert hold_clock(control, 1215, clocks) == reason  # type: ignore[arg-type]
    assert control.locked_Hz == (1.215e9 if reason is None else None)  # type: ignore[attr-defined]


def test_a_clock_between_two_steps_is_not_held() -> None:
    control = _Control()
    reason = hold_clock(control, 1210, "auto")  # type: ignore[arg-type]
    assert reason == "1210 MHz is none of the clocks that this GPU can be set to"
    assert control.locked_Hz is None


def test_the_launcher_needs_no_torch() -> None:
    import subprocess

    code = "import sys, moemodel.profiler.training.launch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
