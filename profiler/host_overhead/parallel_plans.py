"""The host's time of what parallel plans add to each layer, bucket and pass; two ranks measure it together.

The method of `single_gpu`: models of n and of 2n layers at sizes where the device is never the bottleneck; here
the difference of both over n, less the same of a model on one device, is what the wrapper adds to a layer. Times are
the host's between the marks of a step that begins on an idle device, means of both ranks. One rank will not do: FSDP
leaves its collectives out where there is nobody to talk to.

Rows of table `host`:

| block                  | direction         | one row is                                                          |
| ---------------------- | ----------------- | ------------------------------------------------------------------- |
| fsdp_unit              | forward, backward | a unit of FSDP2 whose pass gathers, and in backward reduces (ZeRO 3) |
| fsdp_unit_kept         | backward          | one whose backward pass only reduces (ZeRO 2)                       |
| fsdp_unit_quiet        | forward, backward | one in a micro-batch that exchanges nothing (ZeRO 1, not the last)  |
| fsdp_unit              | step              | sharded tensors of a layer, more than whole ones                    |
| ddp_bucket             | backward          | a layer that fills a bucket of DDP: its tensors' hooks, all-reduce  |
| tensor_collective      | forward, backward | an all-reduce of tensor parallelism                                 |
| tensor_collective_rows | forward, backward | an all-gather or reduce-scatter of sequence parallelism             |
| expert_exchange        | forward, backward | an all-to-all of an MoE layer; forward, counts and the host's wait  |
| pipeline_pass          | forward, backward | half of what a schedule adds to both passes of a micro-batch        |

A differenced time can come out negative where the host is noisy; it is reported as it is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

import torch

from moemodel.model.architecture.spec import Mlp
from moemodel.model.core.errors import InputError
from moemodel.model.plan.spec import ParallelSpec
from moemodel.model.records.profile import HostRow
from moemodel.profiler.backends.base import Run, TrainingRun
from moemodel.profiler.backends.torch_native.parallel_trainer import build
from moemodel.profiler.backends.torch_native.trainer import Trainer
from moemodel.profiler.devices.memory import free_memory
from moemodel.profiler.host_overhead.single_gpu import KINDS, LayerKind, tiny_run, trimmed_mean
from moemodel.profiler.jobs.rendezvous import RankBarrier

Times = list[float]  # host time before each mark of a step but the first, s

_LAYERS = 4  # and twice as many
_SETTLE = 3  # first steps, not taken: NCCL connects, optimizers make their state
_MICRO_BATCHES = 4  # of the shorter pipeline; the longer one has twice as many
_RANKS = 2  # assumed: what a call costs the host doesn't depend on how many take part
_DENSE = next(kind for kind in KINDS if kind.block == "dense_layer_gated")
_SPARSE = next(kind for kind in KINDS if kind.block == "moe_layer")
_COLLECTIVES = 2.0  # of tensor parallelism in a layer's pass: one a block, behind it or before it
_ROW_COLLECTIVES = 4.0  # of sequence parallelism: one before and one behind each block
_EXCHANGES = 2.0  # rows to the experts and back
_BUCKET_HIDDEN, _BUCKET_WIDTH = 1024, 2944  # 4 x 1024² + 3 x 1024 x 2944 parameters: 25.25 MiB, a bucket of DDP


def measure(device: torch.device, peers: RankBarrier, repeats: int) -> list[HostRow]:
    """Host time of every block; both ranks of a job of two call it. Rows on rank 0, none on the other.

    Args:
        device: of this rank.
        peers: the two ranks.
        repeats: timed steps of each model.

    Raises:
        InputError: there are more or fewer ranks.
    """
    if peers.size != _RANKS:
        raise InputError(f"the host's time of parallel parts: found {peers.size} processes; allowed: {_RANKS}")
    host = _Host(device, peers, repeats)
    rows = [row for block in (host.fsdp, host.ddp, host.tensor, host.experts, host.pipeline) for row in block()]
    return rows if peers.rank == 0 else []


class _Host:
    """One rank's part of the measurement."""

    def __init__(self, device: torch.device, peers: RankBarrier, repeats: int) -> None:
        self._device, self._peers, self._repeats = device, peers, repeats

    def fsdp(self) -> list[HostRow]:
        """Units of FSDP2, under each stage of ZeRO what only it shows."""
        # Marks of a step of one micro-batch: forward, backward, optimizer; of two: the first two twice.
        plain = self._layer(_DENSE, ParallelSpec())
        twice = self._layer(_DENSE, ParallelSpec(), micro_batches=2)
        third = self._layer(_DENSE, ParallelSpec(dp=2, zero_stage=3))
        second = self._layer(_DENSE, ParallelSpec(dp=2, zero_stage=2))
        first = self._layer(_DENSE, ParallelSpec(dp=2, zero_stage=1), micro_batches=2)
        return [
            _row("fsdp_unit", "forward", "zero 3", third[0] - plain[0]),
            _row("fsdp_unit", "backward", "zero 3", third[1] - plain[1]),
            _row("fsdp_unit", "step", "zero 3", third[2] - plain[2]),
            _row("fsdp_unit_kept", "backward", "zero 2", second[1] - plain[1]),
            _row("fsdp_unit_quiet", "forward", "zero 1, second micro-batch of two", first[2] - twice[2]),
            _row("fsdp_unit_quiet", "backward", "zero 1, first micro-batch of two", first[1] - twice[1]),
        ]

    def ddp(self) -> list[HostRow]:
        """A bucket of DDP."""
        plain = self._layer(_DENSE, ParallelSpec(), wide=True)
        wrapped = self._layer(_DENSE, ParallelSpec(dp=2), wide=True)
        return [_row("ddp_bucket", "backward", "layers of one bucket", wrapped[1] - plain[1])]

    def tensor(self) -> list[HostRow]:
        """Collectives of tensor parallelism, and of sequence parallelism."""
        plain = self._layer(_DENSE, ParallelSpec())
        whole = self._layer(_DENSE, ParallelSpec(tp=2))
        rows = self._layer(_DENSE, ParallelSpec(tp=2, sequence_parallel=True))
        return [
            *_both("tensor_collective", "all-reduce", whole, plain, _COLLECTIVES),
            *_both("tensor_collective_rows", "all-gather, reduce-scatter", rows, plain, _ROW_COLLECTIVES),
        ]

    def experts(self) -> list[HostRow]:
        """All-to-alls of experts that two ranks share out, beside DDP's hooks for the rest."""
        alone = self._layer(_SPARSE, ParallelSpec(dp=2))
        shared = self._layer(_SPARSE, ParallelSpec(dp=2, ep=2))
        return _both("expert_exchange", "all-to-all", shared, alone, _EXCHANGES)

    def pipeline(self) -> list[HostRow]:
        """What a schedule adds to a micro-batch: the mean stage has half of the layers and half of both ends."""
        run = tiny_run(_DENSE, "bf16-mixed", _LAYERS)
        staged = replace(run, parallel=ParallelSpec(pp=2))
        numbers = (_MICRO_BATCHES, 2 * _MICRO_BATCHES)
        short, long = self._times_s([replace(staged, micro_batches=m) for m in numbers])
        (whole,) = self._times_s([run])
        added = (long[0] - short[0]) / _MICRO_BATCHES - (whole[0] + whole[1]) / 2
        return [_row("pipeline_pass", direction, "1f1b", added / 2) for direction in ("forward", "backward")]

    def _layer(self, kind: LayerKind, parallel: ParallelSpec, *, micro_batches: int = 1, wide: bool = False) -> Times:
        """Host time of one layer before each mark of a step."""
        runs = [tiny_run(kind, "bf16-mixed", layers) for layers in (_LAYERS, 2 * _LAYERS)]
        runs = [replace(run, parallel=parallel, micro_batches=micro_batches) for run in runs]
        if wide and self._device.type == "cuda":  # a processor would take long over layers that size
            runs = [_wide(run) for run in runs]
        small, large = self._times_s(runs)
        return [(b - a) / _LAYERS for a, b in zip(small, large, strict=True)]

    def _times_s(self, runs: Sequence[TrainingRun]) -> list[Times]:
        """Host time before each mark, of each run; in turns, so that a drift of the host's speed cancels."""
        trainers = [self._build(run) for run in runs]
        samples: list[list[Times]] = [[] for _ in runs]
        for i in range(_SETTLE + self._repeats):
            for trainer, taken in zip(trainers, samples, strict=True):
                times_s = self._step_s(trainer)
                if i >= _SETTLE:
                    taken.append(times_s)
        for trainer in trainers:
            trainer.close()
        trainers.clear()
        free_memory(self._device)
        own = [[trimmed_mean(list(mark)) for mark in zip(*taken, strict=True)] for taken in samples]
        return self._means(own)

    def _build(self, run: TrainingRun) -> Run:
        """This rank's part of a run; a plan of one rank is built by both, each for itself."""
        if run.parallel == ParallelSpec():
            return Trainer(run, self._device)
        trainer = build(run, self._device)
        assert trainer is not None  # both ranks are in every plan here
        return trainer

    def _step_s(self, trainer: Run) -> Times:
        """Host time between the marks of a step that both begin together on idle devices."""
        marks_s: list[float] = []
        trainer.wait()
        self._peers.barrier()
        trainer.step(lambda _: marks_s.append(time.perf_counter()))
        trainer.wait()
        return [b - a for a, b in pairwise(marks_s)]

    def _means(self, own: list[Times]) -> list[Times]:
        """Means over both ranks on rank 0; on the other, its own, which nobody reads."""
        ranks = self._peers.gather(own)
        if ranks is None:
            return own
        return [[fmean(times) for times in zip(*runs, strict=True)] for runs in zip(*ranks, strict=True)]


def _wide(run: TrainingRun) -> TrainingRun:
    """The same with layers that fill a bucket of DDP."""
    hidden = _BUCKET_HIDDEN
    layer = run.architecture.decoder[0]
    attentions = tuple(replace(a, heads=hidden // a.head_dim, kv_heads=hidden // a.head_dim) for a in layer.attentions)
    assert isinstance(layer.feed_forward, Mlp)
    layer = replace(layer, attentions=attentions, feed_forward=replace(layer.feed_forward, width=_BUCKET_WIDTH))
    decoder = (layer,) * len(run.architecture.decoder)
    return replace(run, architecture=replace(run.architecture, hidden=hidden, embedding_width=hidden, decoder=decoder))


def _both(block: str, detail: str, wrapped: Times, plain: Times, number: float) -> list[HostRow]:
    """Forward and backward of one of so many exchanges of a layer."""
    added = zip(("forward", "backward"), wrapped, plain, strict=False)  # the optimizer's time is not theirs
    return [_row(block, direction, detail, (a - b) / number) for direction, a, b in added]


def _row(block: str, direction: str, detail: str, host_time_s: float) -> HostRow:
    return HostRow(block=block, direction=direction, detail=detail, host_time_s=host_time_s, wall_s=time.time())
