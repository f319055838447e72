"""The meter in other people's loops: callbacks for the Trainers of Hugging Face and Lightning.

    trainer = Trainer(..., callbacks=[hugging_face_callback(Meter(folder="energy"))])
    trainer = lightning.Trainer(..., callbacks=[lightning_callback(Meter(folder="energy"))])

Neither library is imported before its callback is made. The callback starts the meter when training begins and stops it
when training ends; the summary is the meter's own (`callback.meter.summary()`).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from moemodel.model.core.errors import InputError
from moemodel.profiler.meter.energy_meter import Meter


def hugging_face_callback(meter: Meter | None = None, *, split: bool = True) -> Any:
    """A `transformers.TrainerCallback`. A step is an optimizer step, with all of its micro-batches.

    Phases: "forward" is the model's own forward pass, "backward" from its end to the next forward pass or the optimizer
    (the loss and gradient clipping are in it), "optimizer".

    Args:
        meter: to use; default: a new one without files.
        split: False for one phase "forward and backward", without hooks on the model: for models under `torch.compile`.

    Raises:
        InputError: transformers is not installed.
    """
    base = _import("transformers", "huggingface").TrainerCallback
    return type("MeterCallback", (_HuggingFaceEvents, base), {})(meter or Meter(), split)


def lightning_callback(meter: Meter | None = None) -> Any:
    """A Lightning `Callback`. A step is a training batch: with accumulation, only some contain an optimizer step.

    Phases: "forward" (all before the backward pass), "backward", "optimizer" (from gradient clipping on). They need
    automatic optimisation; under manual optimisation with several backward passes a batch, "forward" is the first part.

    Args:
        meter: to use; default: a new one without files.

    Raises:
        InputError: lightning is not installed.
    """
    try:
        base = _import("lightning.pytorch", "lightning").Callback
    except InputError:
        base = _import("pytorch_lightning", "lightning").Callback
    return type("MeterCallback", (_LightningEvents, base), {})(meter or Meter())


def _import(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"{module} cannot be imported ({error}), and its callback needs it; pip install 'moemodel[{extra}]'"
        ) from error


class _Phases:
    """The phase that is open, and the step around it, for callers that only know what begins."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._in_step = False
        self._phase: str | None = None

    def begin_step(self, phase: str | None = None) -> None:
        self.end_step()
        self._in_step = True
        self.meter.begin_step()
        if phase is not None:
            self.enter(phase)

    def enter(self, phase: str | None) -> None:
        """End the phase that is open and begin another, or none."""
        if not self._in_step:
            return
        if self._phase is not None:
            self.meter.end_phase()
        self._phase = phase
        if phase is not None:
            self.meter.begin_phase(phase)

    def end_step(self) -> None:
        if self._in_step:
            self.enter(None)
            self._in_step = False
            self.meter.end_step()


class _HuggingFaceEvents:
    """Events of `transformers.TrainerCallback`; everything comes as keywords after the first three."""

    def __init__(self, meter: Meter, split: bool) -> None:
        self.meter = meter
        self._split = split
        self._phases = _Phases(meter)
        self._hooks: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        del args, state, control
        model = kwargs.get("model")
        if self._split and model is not None:
            self._hooks = [
                model.register_forward_pre_hook(self._hook("forward")),
                model.register_forward_hook(self._hook("backward")),
            ]
        self.meter.start()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        del args, state, control, kwargs
        self._phases.begin_step(None if self._hooks else "forward and backward")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        del args, state, control, kwargs
        self._phases.enter("optimizer")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        del args, state, control, kwargs
        self._phases.enter(None)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        del args, state, control, kwargs
        self._phases.end_step()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        del args, state, control, kwargs
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._phases.end_step()
        self.meter.stop()

    def _hook(self, phase: str) -> Callable[..., None]:
        def enter(module: Any, *_: Any) -> None:
            if module.training and not torch.compiler.is_compiling():
                self._phases.enter(phase)

        return enter


class _LightningEvents:
    """Hooks of a Lightning `Callback`: (trainer, module, ...)."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter
        self._phases = _Phases(meter)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        del trainer, pl_module
        self.meter.start()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        del trainer, pl_module, batch, batch_idx
        self._phases.begin_step("forward")

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        del trainer, pl_module, loss
        self._phases.enter("backward")

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        del trainer, pl_module
        self._phases.enter(None)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        del trainer, pl_module, optimizer
        self._phases.enter("optimizer")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        del trainer, pl_module, outputs, batch, batch_idx
        self._phases.end_step()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        del trainer, pl_module
        self._phases.end_step()
        self.meter.stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        del trainer, pl_module, exception
        self.meter.stop()
