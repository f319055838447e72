"""Run by the tests beside it: DeepSpeed in forked processes under gloo; prints one JSON object a case on rank 0.

The first argument is the file of jobs, by their ranks, which follow one another: what they import takes longer than
their cases. Of each case: what went wrong in its layer against the definition (an empty text:
nothing), or losses of a model in training beside those of the torch backend on one device.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}

import deepspeed.moe.layer  # before the forks: it takes longer than the cases
import deepspeed.runtime.zero.muon.muon_optimizer  # which its ZeRO imports when it is first used  # noqa: F401
import torch
import torch.distributed as dist
from torch import nn

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture, Attention, Layer, Mlp, Moe
from moemodel.model.plan.routing import RoutingSpec, routed_architecture
from moemodel.model.plan.spec import ParallelSpec
from moemodel.profiler.backends.base import LayerRouting, TrainingRun
from moemodel.profiler.backends.deepspeed.engine_run import join
from moemodel.profiler.backends.deepspeed.parallel_trainer import build
from moemodel.profiler.backends.expert_parallel import ExpertShare
from moemodel.profiler.backends.torch_native.process_groups import Groups
from moemodel.profiler.backends.torch_native.rank_mesh import RankMesh
from moemodel.profiler.backends.torch_native.trainer import Trainer
from tests.profiler.backends.golden import assert_like_plain

_CPU = torch.device("cpu")
_STEPS = 3
_HEADS = Attention(heads=4, kv_heads=4, head_dim=4)


def architecture(experts: int, top_k: int) -> Architecture:
    """Two layers, of which the second has experts."""
    dense = Layer(attentions=(_HEADS,), feed_forward=Mlp(width=32, activation="silu", gated=True), norm="rms")
    block = Moe(experts=experts, top_k=top_k, width=16, activation="silu", gated=True)
    layers = (dense, replace(dense, feed_forward=block))
    return Architecture(name="tiny", hidden=16, vocab=62, embedding_width=16, tied=False, decoder=layers)


def switch() -> Architecture:
    """An encoder and a decoder of two layers, each of which has experts in its second; room for all rows."""
    whole = read_architecture("switch-base-128")
    return replace(
        whole,
        hidden=16,
        embedding_width=16,
        vocab=512,
        encoder=tuple(_small(layer) for layer in whole.encoder[:2]),
        decoder=tuple(_small(layer) for layer in whole.decoder[:2]),
    )


def _small(layer: Layer) -> Layer:
    block = layer.feed_forward
    attentions = tuple(replace(a, heads=2, kv_heads=2, head_dim=8) for a in layer.attentions)
    if isinstance(block, Moe):
        block = replace(block, experts=4, width=32, capacity_factor=4.0)
    return replace(layer, attentions=attentions, feed_forward=replace(block, width=32))


# ---- layers -----------------------------------------------------------------------------------------------------


def layer_error(case: dict[str, Any]) -> dict[str, str]:
    """What is wrong with a layer; with ep above 1 all ranks see the same tokens."""
    from moemodel.profiler.backends.deepspeed.mixture import DeepSpeedMixture

    place = RankMesh.of(ParallelSpec(dp=case["ep"], ep=case["ep"]), dist.get_rank())
    share = ExpertShare(ep=place.mesh.ep, ep_rank=place.at.ep, ep_group=Groups(place).own("ep"))

    def made(block: Moe, hidden: int, routing: RoutingSpec) -> nn.Module:
        layer = DeepSpeedMixture(block, replace(block, experts=block.experts // share.ep), hidden, share, routing)
        layer.layer.set_deepspeed_parallelism()
        return layer

    block = Moe(**{"experts": 8, "width": 16, "activation": "silu", "gated": True, **case["block"]})
    try:
        assert_like_plain(made, block, RoutingSpec(**case.get("routing", {})), getattr(torch, case["dtype"]), "cpu", 32)
    except AssertionError as error:
        return {"wrong": str(error)}
    return {"wrong": ""}


# ---- models in training -----------------------------------------------------------------------------------------


def trained(case: dict[str, Any]) -> dict[str, Any]:
    """Losses of a run and of the torch backend's on one device, and what its routers did."""
    routing = RoutingSpec(**case.get("routing", {}))
    parallel = ParallelSpec(**case["parallel"])
    plain = switch() if case.get("switch") else architecture(4, case.get("top_k", 2))
    run = TrainingRun(
        name="tiny",
        architecture=routed_architecture(plain, routing),
        seq=32 if case.get("switch") else 8,
        micro_batch=1,
        micro_batches=4 // parallel.dp,
        dtype=case["dtype"],
        precision=case.get("precision", "bf16-mixed"),
        recompute=case.get("recompute", "none"),
        lr=3e-3,
        parallel=parallel,
        routing=routing,
    )
    return _losses(run) | {"alone": _alone(replace(run, architecture=plain, routing=RoutingSpec()))}


def _losses(run: TrainingRun) -> dict[str, Any]:
    found = build(run, _CPU)
    assert found is not None
    marks: list[str] = []
    losses, router = [], []
    told: list[dict[str, Any]] = []
    found.record_entropies(True)
    for _ in range(_STEPS):
        found.step(marks.append)
        losses.append(found.loss())
        step = found.statistics()
        router.append(0.0 if step.router_loss is None else float(step.router_loss))
        told += [_told(record) for record in step.routing]
    loads = [load.tolist() for load in found.expert_loads()]
    facts = {"losses": losses, "router": router, "routing": told, "loads": loads, "marks": marks[: found.marks]}
    kept = {"optimizer": type(found._engine.optimizer).__name__, "as_marked": len(marks) == _STEPS * found.marks}  # type: ignore[attr-defined]
    found.close()
    return facts | kept


def _told(record: LayerRouting) -> dict[str, Any]:
    return {
        "layer": record.layer,
        "rows_E": record.rows_E.tolist(),
        "dropped": int(record.dropped),
        "entropy": float(record.entropy),
    }


def _alone(run: TrainingRun) -> list[float]:
    whole = replace(run, micro_batch=1, micro_batches=4, parallel=ParallelSpec(), recompute="none")
    trainer = Trainer(whole, _CPU)
    losses = []
    for _ in range(_STEPS):
        trainer.step()
        losses.append(trainer.loss())
    return losses


# ---- processes --------------------------------------------------------------------------------------------------


def run_rank(rank: int, ranks: int, store: Path, cases: list[dict[str, Any]]) -> None:
    """All cases, as one of the ranks; the first prints."""
    torch.set_num_threads(1)
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=store.as_uri(), rank=rank, world_size=ranks, timeout=timeout)
    join(_CPU)
    for case in cases:
        found = layer_error(case) if "block" in case else trained(case)
        gathered: list[Any] = [None] * ranks
        dist.all_gather_object(gathered, found)
        if rank == 0:
            wrong = [one["wrong"] for one in gathered if one.get("wrong")]
            print(json.dumps(found | ({"wrong": wrong[0]} if wrong else {})), flush=True)


def main() -> None:
    """All jobs of the file; ends with 1 once a rank of one has failed."""
    jobs_file = Path(sys.argv[1])
    for ranks, cases in json.loads(jobs_file.read_text(encoding="utf-8")).items():
        store = jobs_file.with_name(f"store-{ranks}").resolve()
        if failed := _run_job(partial(run_rank, ranks=int(ranks), store=store, cases=cases), int(ranks)):
            sys.exit(failed)


def _run_job(start: Callable[[int], None], ranks: int) -> int:
    """A job of so many forks; the largest exit code."""
    children = []
    for rank in range(ranks):
        child = os.fork()
        if not child:
            failed = 0
            try:
                start(rank)
            except BaseException:  # noqa: BLE001  # the others must not wait for this one
                traceback.print_exc()
                failed = 1
            sys.stdout.flush()
            os._exit(failed)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    main()
