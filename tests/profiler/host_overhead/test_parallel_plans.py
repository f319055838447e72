"""The host's time of parallel parts, from runs whose times are known: the differences give back what was put in."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moemodel.model.architecture.spec import Moe
from moemodel.model.core.errors import InputError
from moemodel.model.layers.parameters import parameters
from moemodel.profiler.backends.base import PhaseCallback, TrainingRun
from moemodel.profiler.host_overhead import parallel_plans as host

_ENDS, _LAYER, _UNIT, _QUIET, _REDUCE = 50.0, 7.0, 3.0, 1.0, 2.0
_HOOKS, _COLLECTIVE, _ROWS, _EXCHANGE, _PASS = 0.5, 1.5, 1.25, 4.0, 6.0


class _Clock:
    """Seconds that pass where a run says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def time(self) -> float:
        return 0.0


class _Run:
    """A run whose passes take so long: ends, and for each layer what its plan adds."""

    def __init__(self, run: TrainingRun, clock: _Clock) -> None:
        self._run, self._clock = run, clock

    def step(self, mark: PhaseCallback) -> None:
        mark("start")
        run, p = self._run, self._run.parallel
        if p.pp > 1:
            half = (2 * _ENDS + 3 * _LAYER * len(run.architecture.decoder)) / 2
            self._clock.now_s += 11.0 + run.micro_batches * (half + 2 * _PASS)
            mark("pipeline")
            mark("optimizer")
            return
        for i in range(run.micro_batches):
            last = i == run.micro_batches - 1
            self._pass(_LAYER + self._forward(first=i == 0), "forward", mark)
            self._pass(2 * _LAYER + self._backward(last), "backward", mark)
        self._pass(_LAYER / 2 + (0.25 if p.zero_stage else 0.0), "optimizer", mark)

    def _forward(self, *, first: bool) -> float:
        p = self._run.parallel
        fsdp = 0.0 if p.zero_stage == 0 else (_UNIT if p.zero_stage == 3 or first else _QUIET)
        return fsdp + self._between()

    def _backward(self, last: bool) -> float:
        p = self._run.parallel
        fsdp = {0: 0.0, 1: _REDUCE if last else _QUIET, 2: _REDUCE, 3: _UNIT + _REDUCE}[p.zero_stage]
        return fsdp + (_HOOKS if p.dp > 1 and p.zero_stage == 0 else 0.0) + self._between()

    def _between(self) -> float:
        p, sparse = self._run.parallel, isinstance(self._run.architecture.decoder[0].feed_forward, Moe)
        if p.tp > 1:
            return 4 * _ROWS if p.sequence_parallel else 2 * _COLLECTIVE
        return 2 * _EXCHANGE if p.ep > 1 and sparse else 0.0

    def _pass(self, layer_s: float, name: str, mark: PhaseCallback) -> None:
        self._clock.now_s += _ENDS + layer_s * len(self._run.architecture.decoder)
        mark(name)

    def wait(self) -> None: ...

    def close(self) -> None: ...


class _Peers:
    """Two ranks that say the same."""

    rank, size = 0, 2

    def agree(self, value: float) -> float:
        return value

    def gather(self, value: Any) -> list[Any]:
        return [value, value]

    def barrier(self) -> None: ...


def test_differences_give_back_what_each_part_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock()
    monkeypatch.setattr(host, "time", clock)
    monkeypatch.setattr(host._Host, "_build", lambda _, run: _Run(run, clock))
    rows = host.measure(torch.device("cpu"), _Peers(), 3)
    found = {(row.block, row.direction): row.host_time_s for row in rows}
    assert found == pytest.approx(
        {
            ("fsdp_unit", "forward"): _UNIT,
            ("fsdp_unit", "backward"): _UNIT + _REDUCE,
            ("fsdp_unit", "step"): 0.25,
            ("fsdp_unit_kept", "backward"): _REDUCE,
            ("fsdp_unit_quiet", "forward"): _QUIET,
            ("fsdp_unit_quiet", "backward"): _QUIET,
            ("ddp_bucket", "backward"): _HOOKS,
            ("tensor_collective", "forward"): _COLLECTIVE,
            ("tensor_collective", "backward"): _COLLECTIVE,
            ("tensor_collective_rows", "forward"): _ROWS,
            ("tensor_collective_rows", "backward"): _ROWS,
            ("expert_exchange", "forward"): _EXCHANGE,
            ("expert_exchange", "backward"): _EXCHANGE,
            ("pipeline_pass", "forward"): _PASS,
            ("pipeline_pass", "backward"): _PASS,
        }
    )


def test_a_bucket_is_filled_by_a_layer() -> None:
    run = host._wide(host.tiny_run(host._DENSE, "bf16-mixed", 2))
    small = parameters(run.architecture).total
    large = parameters(host._wide(host.tiny_run(host._DENSE, "bf16-mixed", 3)).architecture).total
    assert 25.0 <= 2 * (large - small) / 2**20 < 25.5  # MiB of bf16; DDP closes a bucket at 25


def test_one_rank_will_not_do() -> None:
    class Alone(_Peers):
        size = 1

    with pytest.raises(InputError, match="found 1 processes; allowed: 2"):
        host.measure(torch.device("cpu"), Alone(), 3)
