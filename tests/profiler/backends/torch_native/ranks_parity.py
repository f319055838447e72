"""Run by test_parity: every plan in four processes against the whole model on one device, gradient by gradient.

The four are forks of one that has imported everything, which takes longer than all cases. Prints one JSON object a
plan on rank 0: largest relative errors of losses, gradient norms and gradients (of the first step, and of those after
an update).
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import traceback
import weakref
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moemodel.model.architecture.spec import Architecture, Attention, Layer, Mlp, Moe
from moemodel.model.plan.routing import RoutingSpec
from moemodel.model.plan.spec import ParallelSpec
from moemodel.profiler.backends.base import TrainingRun
from moemodel.profiler.backends.torch_native.bias_balance import move_biases
from moemodel.profiler.backends.torch_native.optimizer import clip_gradients
from moemodel.profiler.backends.torch_native.parallel_trainer import ParallelTrainer, build
from moemodel.profiler.backends.torch_native.sharding import held, shard_spec, whole_names
from moemodel.profiler.backends.torch_native.trainer import Trainer

_RANKS = 4
_STEPS = 2  # from the first weights, and after an update
_CPU = torch.device("cpu")


def _architecture(block: Mlp | Moe, attention: Attention, *, norm: Any = "rms", **options: Any) -> Architecture:
    layer = Layer(attentions=(attention,), feed_forward=block, norm=norm, norm_bias=norm == "layer")
    settings: dict[str, Any] = {"hidden": 16, "vocab": 62, "embedding_width": 16, "tied": False}
    return Architecture(name="tiny", decoder=(layer,) * 4, **{**settings, **options})


def _switch(experts: Moe) -> Architecture:
    own = Attention(heads=4, kv_heads=4, head_dim=4, rotary=False, relative_buckets=8)
    dense = Mlp(width=32, activation="relu", gated=False)

    def layer(index: int, *, decoder: bool) -> Layer:
        mine = replace(own, causal=decoder, relative_buckets=0 if index else 8)
        cross = (replace(own, causal=False, cross=True, relative_buckets=0),) if decoder else ()
        return Layer(attentions=(mine, *cross), feed_forward=experts if index % 2 else dense, norm="rms")

    return Architecture(
        name="tiny",
        hidden=16,
        vocab=62,
        embedding_width=16,
        tied=True,
        encoder=tuple(layer(i, decoder=False) for i in range(2)),
        decoder=tuple(layer(i, decoder=True) for i in range(2)),
    )


_HEADS = Attention(heads=4, kv_heads=4, head_dim=4)
_EXPERTS = Moe(experts=4, top_k=2, width=16, activation="silu", gated=True)
ARCHITECTURES = {
    "llama": _architecture(Mlp(width=32, activation="silu", gated=True), replace(_HEADS, kv_heads=2)),
    "opt": _architecture(
        Mlp(width=32, activation="relu", gated=False, bias=True),
        replace(_HEADS, rotary=False, bias_qkv=True, bias_out=True),
        norm="layer",
        tied=True,
        embedding_width=8,
        learned_positions=8,
    ),
    "olmoe": _architecture(_EXPERTS, replace(_HEADS, qk_norm="full")),
    "switch-base": _switch(
        Moe(experts=4, top_k=1, width=16, activation="relu", gated=False, router="switch_top1", capacity_factor=2.0)
    ),
    "sigmoid": _architecture(replace(_EXPERTS, router="sigmoid_topk"), _HEADS),
    "switch": _architecture(replace(_EXPERTS, router="switch_top1", top_k=1, capacity_factor=2.0), _HEADS),
    "shared": _architecture(
        replace(_EXPERTS, gated=False, activation="gelu", shared_width=8, shared_gate=True),
        replace(_HEADS, qk_norm="per_head"),
    ),
}


def run_of(case: dict[str, Any]) -> TrainingRun:
    """A case's run: four sequences of eight tokens a step."""
    parallel = ParallelSpec(**case["parallel"])
    micro_batch = case.get("micro_batch", 1)
    return TrainingRun(
        name=case["architecture"],
        architecture=ARCHITECTURES[case["architecture"]],
        seq=8,
        micro_batch=micro_batch,
        micro_batches=4 // (micro_batch * parallel.dp),
        dtype="float32",
        lr=3e-3,
        recompute=case.get("recompute", "none"),
        schedule=case.get("schedule", "1f1b"),
        precision=case.get("precision", "bf16-mixed"),
        parallel=parallel,
        routing=RoutingSpec(**case.get("routing", {})),
    )


class Reference:
    """What one device makes of the same steps."""

    def __init__(self, run: TrainingRun) -> None:
        whole = replace(run, micro_batch=1, micro_batches=4, parallel=ParallelSpec(), recompute="none")
        trainer = Trainer(whole, _CPU)
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.router_losses: list[float] = []
        self.gradients: list[dict[str, Tensor]] = []
        for _ in range(_STEPS):
            losses = []
            for _ in range(4):
                loss = trainer.forward()
                trainer.backward(loss)
                losses.append(float(loss))
            self.losses.append(sum(losses) / 4)
            self.router_losses.append(float(trainer.statistics().router_loss or 0))
            self.gradients.append(
                {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
            )
            self.norms.append(float(clip_gradients(trainer.model)))
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
            move_biases([trainer.model], None)


def errors(run: TrainingRun, reference: Reference) -> dict[str, float] | None:
    """Largest relative errors of this rank, and how many models outlive the run; None where it has no part."""
    trainer = build(run, _CPU)
    if trainer is None:
        return None
    assert isinstance(trainer, ParallelTrainer)
    models = [weakref.ref(model) for model in trainer._models]
    worst = _errors(trainer, reference)
    trainer.close()
    del trainer
    gc.collect()
    return worst | {"leaked": float(sum(model() is not None for model in models))}


def _errors(trainer: ParallelTrainer, reference: Reference) -> dict[str, float]:
    worst = {"loss": 0.0, "router_loss": 0.0, "norm": 0.0, "gradient": 0.0, "gradient_later": 0.0}
    clip = trainer._gradients.clip
    step = 0

    def checked() -> Tensor:
        name = "gradient_later" if step else "gradient"
        worst[name] = max(worst[name], _gradient_error(trainer, reference.gradients[step]))
        norm = clip()
        worst["norm"] = max(worst["norm"], abs(float(norm) / reference.norms[step] - 1))
        return norm

    trainer._gradients.clip = checked  # type: ignore[method-assign]
    for step in range(_STEPS):  # which `checked` reads
        trainer.step(lambda _: None)
        worst["loss"] = max(worst["loss"], abs(trainer.loss() / reference.losses[step] - 1))
        worst["router_loss"] = max(worst["router_loss"], abs(_router_loss(trainer) - reference.router_losses[step]))
    return worst


def _router_loss(trainer: ParallelTrainer) -> float:
    """Of all layers, mean over replicas; each tensor-parallel rank has its replica's."""
    total = trainer.statistics().router_loss
    total = torch.zeros(()) if total is None else total
    dist.all_reduce(total, group=trainer._groups.own("world"))
    return float(total) / (trainer._place.mesh.dp * trainer._place.mesh.tp)


def _gradient_error(trainer: ParallelTrainer, reference: dict[str, Tensor]) -> float:
    """Of the parameter that is worst: norm of the deviation over the norm that it should have.

    Against norms of a thousandth of the largest at least: softmax leaves keys' biases with rounding alone.
    """
    worst = 0.0
    largest = max(float(gradient.norm()) for gradient in reference.values())
    scales = {id(t.parameter): t.scale for t in trainer._gradients._trained}
    for model in trainer._models:
        for name, parameter in whole_names(model):
            assert parameter.grad is not None, name
            found = getattr(parameter.grad, "full_tensor", lambda p=parameter: p.grad)() * scales[id(parameter)]
            whole = reference[name]
            expected = held(whole, shard_spec(name, model.architecture), trainer._place)
            error = float((found - expected).norm()) / max(float(expected.norm()), 1e-3 * largest)
            worst = max(worst, error)
    return worst


def run_rank(rank: int, store: Path, cases: list[dict[str, Any]]) -> None:
    """All cases, as one of the four; the first prints."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=store.as_uri(), rank=rank, world_size=_RANKS, timeout=timedelta(seconds=60)
    )
    references: dict[tuple[str, ...], Reference] = {}
    for case in cases:
        run = run_of(case)
        key = (case["architecture"], run.precision, run.routing.model_dump_json())
        if key not in references:  # by one rank for all
            shared = [Reference(run) if rank == 0 else None]
            dist.broadcast_object_list(shared)
            assert shared[0] is not None
            references[key] = shared[0]
        mine = errors(run, references[key])
        gathered: list[Any] = [None] * _RANKS
        dist.all_gather_object(gathered, mine)
        if rank == 0:
            ranks = [rank for rank in gathered if rank is not None]
            print(json.dumps({name: max(rank[name] for rank in ranks) for name in ranks[0]}), flush=True)


def fork_rank(rank: int, store: Path, cases: list[dict[str, Any]]) -> int:
    """Start one of the four; its process id. It ends without a word to what the fork left it of the first process."""
    child = os.fork()
    if child:
        return child
    failed = 0
    try:
        run_rank(rank, store, cases)
    except BaseException:  # noqa: BLE001  # the others must not wait for this one
        traceback.print_exc()
        failed = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(failed)


def main() -> None:
    """All cases of the file named on the command line; ends with 1 as soon as a rank does."""
    cases_file = Path(sys.argv[1])
    cases = json.loads(cases_file.read_text(encoding="utf-8"))
    store = cases_file.with_name("store").resolve()
    gc.freeze()  # what was imported: each case collects garbage, and there is none in it
    running = {fork_rank(rank, store, cases) for rank in range(_RANKS)}
    while running:
        child, status = os.wait()
        running.discard(child)
        if status:
            for other in running:
                os.kill(other, signal.SIGKILL)
            sys.exit(1)


if __name__ == "__main__":
    main()
