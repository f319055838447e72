"""How long the host needs to queue a layer of the real training model, whatever the device does.

Layers and not operators, since much of the host's time belongs to none: module calls, views, dictionary look-ups,
autograd nodes, the engine's queue, gradient accumulation. Summing operators timed alone, each through its own loop,
leaves these out or counts loop and dispatch twice. So models of n and of 2n layers are timed, at sizes where the device
is never the bottleneck, each pass on an idle device; their difference over n is one layer, and what is left of the
smaller model is the rest: embedding, final norm, head and loss, and the start of the autograd engine.

Rows of the table `host`, each for one kind of layer in `KINDS` (its options are the row's detail):

| block                     | direction         | one row is                                             |
| ------------------------- | ----------------- | ------------------------------------------------------ |
| dense_layer               | forward, backward | a layer with biases, a plain dense block and no rotary |
| dense_layer_gated         | forward, backward | a layer with a gated dense block and rotary            |
| dense_layer_gated_qk_norm | forward, backward | the same with norms of queries and keys                |
| moe_layer                 | forward, backward | a layer with dropless gated experts and rotary         |
| moe_layer_qk_norm         | forward, backward | the same with norms of queries and keys                |
| head_and_loss             | forward, backward | all that is no layer; not for the MoE kinds            |
| optimizer_layer           | step              | a layer's tensors: clipping, update, dropping gradients |
| optimizer_tensor          | step              | one tensor: the same; for each precision               |
| step                      | step              | the optimizer's step without its tensors; for each precision |

What parallel plans add to these, two ranks measure together (`parallel_plans`).

A differenced time can come out negative where the host is noisy; it is reported as it is. Kernels are counted after all
timing, by torch's profiler, whose tracer may slow later launches of the process: run this section last, or with
`count_kernels=False`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

import torch

from moemodel.model.architecture.spec import Architecture, Attention, Layer, Mlp, Moe
from moemodel.model.frameworks.base import Precision
from moemodel.model.records.profile import HostRow
from moemodel.profiler.backends.base import TrainingRun
from moemodel.profiler.backends.torch_native.trainer import Trainer
from moemodel.profiler.devices.base import Device
from moemodel.profiler.devices.memory import free_memory

Passes = dict[str, float]  # forward, backward, step -> seconds, or kernels

_HIDDEN, _SEQ, _VOCAB = 128, 32, 512  # so small that the device is always done before the host
_LAYERS = 4  # and twice as many: a backward pass of eight layers stays below the launch queue's thousand
_REPEATS = 30  # steps of each: enough of either speed of a host that alternates between two
_TRIMMED = 0.1  # of the samples at each end
_SETTLE = 3  # first steps, not taken: kernels load, optimizers make their state


@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """A combination of architecture options that sets what the host has to do."""

    block: str
    detail: str
    layer: Layer


# Small as `_HIDDEN`; 64 experts of which 8 are chosen, as in OLMoE.
_BIASED = Attention(heads=2, kv_heads=2, head_dim=64, bias_qkv=True, bias_out=True, rotary=False)
_GELU = Mlp(width=2 * _HIDDEN, activation="gelu", gated=False, bias=True)
_SWIGLU = Mlp(width=2 * _HIDDEN, activation="silu", gated=True)
_EXPERTS = Moe(experts=64, top_k=8, width=64, activation="silu", gated=True)


def _llama(qk_norm: Literal["none", "full"], feed_forward: Mlp | Moe) -> Layer:
    attentions = (Attention(heads=2, kv_heads=2, head_dim=64, qk_norm=qk_norm),)
    return Layer(attentions=attentions, feed_forward=feed_forward, norm="rms")


KINDS: tuple[LayerKind, ...] = (
    LayerKind(
        block="dense_layer",
        detail="layer_norm biases gelu learned_positions",
        layer=Layer(attentions=(_BIASED,), feed_forward=_GELU, norm="layer", norm_bias=True),
    ),
    LayerKind(block="dense_layer_gated", detail="rms_norm rotary swiglu", layer=_llama("none", _SWIGLU)),
    LayerKind(
        block="dense_layer_gated_qk_norm", detail="rms_norm qk_norm rotary swiglu", layer=_llama("full", _SWIGLU)
    ),
    LayerKind(block="moe_layer", detail="rms_norm rotary swiglu_experts", layer=_llama("none", _EXPERTS)),
    LayerKind(
        block="moe_layer_qk_norm", detail="rms_norm qk_norm rotary swiglu_experts", layer=_llama("full", _EXPERTS)
    ),
)
_OPTIMIZER_KIND = KINDS[1]  # on whose tensors the optimizer is timed in each precision: only their number matters


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Trainers of models with n and 2n layers of one kind."""

    kind: LayerKind
    precision: Precision
    small: Trainer
    large: Trainer

    @property
    def trainers(self) -> tuple[Trainer, Trainer]:
        return self.small, self.large


def measure(device: Device, *, repeats: int = _REPEATS, count_kernels: bool = True) -> list[HostRow]:
    """Host time of every block: rows of the table `host`.

    Args:
        device: where the tiny models run.
        repeats: timed steps of each model; trimmed means are taken.
        count_kernels: count kernel launches too, on a GPU.
    """
    pairs = [_pair(kind, "bf16-mixed", device.torch_device) for kind in KINDS]
    pairs.append(_pair(_OPTIMIZER_KIND, "bf16", device.torch_device))
    rows = [row for pair in pairs for row in _rows(pair, *_times_s(pair, repeats))]
    if count_kernels and device.torch_device.type == "cuda":
        _launches(pairs[0].small, lambda: None)  # the tracer's own start
        counts = [row for pair in pairs for row in _rows(pair, *map(_kernels, pair.trainers))]
        rows = [replace(row, kernels=count.host_time_s) for row, count in zip(rows, counts, strict=True)]
    pairs.clear()
    free_memory(device.torch_device)
    return rows


def _pair(kind: LayerKind, precision: Precision, device: torch.device) -> _Pair:
    small, large = (Trainer(tiny_run(kind, precision, layers), device) for layers in (_LAYERS, 2 * _LAYERS))
    return _Pair(kind=kind, precision=precision, small=small, large=large)


def tiny_run(kind: LayerKind, precision: Precision, layers: int) -> TrainingRun:
    """A model of so many layers of one kind, one short sequence a step."""
    rotary = kind.layer.attentions[0].rotary
    architecture = Architecture(
        name=f"{layers} x {kind.detail}",
        hidden=_HIDDEN,
        vocab=_VOCAB,
        embedding_width=_HIDDEN,
        tied=False,
        decoder=(kind.layer,) * layers,
        learned_positions=0 if rotary else _SEQ,
    )
    return TrainingRun(name=architecture.name, architecture=architecture, seq=_SEQ, micro_batch=1, precision=precision)


# --- timing ----------------------------------------------------------------------------------------------------------


def _times_s(pair: _Pair, repeats: int) -> tuple[Passes, Passes]:
    """Host time of each pass of both models, taken in turns so that a drift of the host's speed cancels.

    Trimmed means: the host of a virtual machine was seen to alternate between two speeds, of which a median shows one.
    """
    samples: tuple[list[Passes], list[Passes]] = ([], [])
    for _ in range(_SETTLE + repeats):
        for taken, trainer in zip(samples, pair.trainers, strict=True):
            taken.append(_step_s(trainer))
    small, large = (_means(taken[_SETTLE:]) for taken in samples)
    return small, large


def _means(samples: list[Passes]) -> Passes:
    return {name: trimmed_mean([sample[name] for sample in samples]) for name in samples[0]}


def trimmed_mean(values: list[float]) -> float:
    """Mean without the largest and smallest tenth."""
    cut = int(_TRIMMED * len(values))
    return fmean(sorted(values)[cut : len(values) - cut])


def _step_s(trainer: Trainer) -> Passes:
    """Host time of each pass of one step, each on an idle device."""
    forward_s, loss = _host_s(trainer, trainer.forward)
    backward_s, _ = _host_s(trainer, lambda: trainer.backward(loss))
    step_s, _ = _host_s(trainer, trainer.update)
    return {"forward": forward_s, "backward": backward_s, "step": step_s}


def _host_s(trainer: Trainer, work: Callable[[], Any]) -> tuple[float, Any]:
    trainer.wait()
    begin_s = time.perf_counter()
    result = work()
    return time.perf_counter() - begin_s, result


# --- kernels ---------------------------------------------------------------------------------------------------------


def _kernels(trainer: Trainer) -> Passes:
    """Device activities (kernels, copies, fills) of each pass of one step."""
    forward, loss = _launches(trainer, trainer.forward)
    backward, _ = _launches(trainer, lambda: trainer.backward(loss))
    step, _ = _launches(trainer, trainer.update)
    return {"forward": forward, "backward": backward, "step": step}


def _launches(trainer: Trainer, work: Callable[[], Any]) -> tuple[float, Any]:
    trainer.wait()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as trace:
        result = work()
        trainer.wait()
    # An optimizer annotates its step; the annotation shows up as a device event too.
    names = [e.name for e in trace.events() or () if e.device_type.name == "CUDA"]
    return float(sum(not name.startswith("Optimizer.") for name in names)), result


# --- rows ------------------------------------------------------------------------------------------------------------


def _rows(pair: _Pair, small: Passes, large: Passes) -> list[HostRow]:
    """One layer is the difference of the two models over n; the rest is the smaller one without its layers."""
    kind = pair.kind
    rows = [] if kind is not _OPTIMIZER_KIND else _optimizer_rows(pair, small, large)
    if pair.precision == "bf16":
        return rows
    for direction in ("forward", "backward"):
        layer = (large[direction] - small[direction]) / _LAYERS
        rows.append(_row(kind.block, direction, kind.detail, layer))
        if not isinstance(kind.layer.feed_forward, Moe):
            rows.append(_row("head_and_loss", direction, kind.detail, small[direction] - _LAYERS * layer))
    return [*rows, _row("optimizer_layer", "step", kind.detail, (large["step"] - small["step"]) / _LAYERS)]


def _optimizer_rows(pair: _Pair, small: Passes, large: Passes) -> list[HostRow]:
    tensors_small, tensors_large = (len(list(trainer.model.parameters())) for trainer in pair.trainers)
    tensor = (large["step"] - small["step"]) / (tensors_large - tensors_small)
    return [
        _row("optimizer_tensor", "step", pair.precision, tensor),
        _row("step", "step", pair.precision, small["step"] - tensors_small * tensor),
    ]


def _row(block: str, direction: str, detail: str, value: float) -> HostRow:
    return HostRow(block=block, direction=direction, detail=detail, host_time_s=value, wall_s=time.time())
