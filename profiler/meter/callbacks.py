"""The meter in other people's loops: callbacks for the Trainers of Hugging Face and Lightning.

    trainer = Trainer(..., callbacks=[hugging_face_callback(Meter(folder="energy"))])
    trainer = lightning.Trainer(..., callbacks=[lightning_callback(Meter(folder="energy"))])

Neither library is imported before its callback is made. The callback starts the meter when training begins and stops it
when training ends; the summary is the meter's own (`callback.meter.summary()`).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch

from moemodel.model.core.errors import InputError
from moemodel.model.core.extras import how_to_install
from moemodel.profiler.meter.batches import sizes_of
from moemodel.profiler.meter.energy_meter import Meter


def hugging_face_callback(meter: Meter | None = None, *, split: bool = True) -> Any:
    """A `transformers.TrainerCallback`. A step is an optimizer step, with all of its micro-batches, which are counted.

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
    """A Lightning `Callback`. A step is an optimizer step, with all of its micro-batches (under accumulation batches).

    Phases: "forward" (all before the backward pass), "backward", "optimizer" (from gradient clipping on), and
    "validation" where one falls between the micro-batches of a step. They need automatic optimisation; under manual
    optimisation with several backward passes a batch, "forward" is the first part, and a step is the batch in which an
    optimizer stepped, be it once or, of several optimizers, more often. Batches after the last optimizer step count for
    no step.

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
            f"{module} cannot be imported ({error}), and its callback needs it; {how_to_install(extra)}"
        ) from error


class _Phases:
    """The phase that is open, and the step around it, for callers that only know what begins."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.in_step = False
        self._phase: str | None = None

    def begin_step(self, phase: str | None = None) -> None:
        """Begin a step; one that is open ends."""
        self.end_step()
        self.in_step = True
        self.meter.begin_step()
        if phase is not None:
            self.enter(phase)

    def enter(self, phase: str | None) -> None:
        """End the phase that is open and begin another, or none."""
        if not self.in_step:
            return
        if self._phase is not None:
            self.meter.end_phase()
        self._phase = phase
        if phase is not None:
            self.meter.begin_phase(phase)

    def end_step(self) -> None:
        """End the step, if one is open."""
        if self.in_step:
            self.enter(None)
            self.in_step = False
            self.meter.end_step()

    def leave(self) -> None:
        """Forget the step: the meter drops what is open when it stops."""
        self.in_step, self._phase = False, None


class _HuggingFaceEvents:
    """Events of `transformers.TrainerCallback`; everything comes as keywords after the first three."""

    def __init__(self, meter: Meter, split: bool) -> None:
        self.meter = meter
        self._split = split
        self._phases = _Phases(meter)
        self._hooks: list[Any] = []
        self._sizes: tuple[int | None, int | None] = (None, None)  # samples and tokens of the micro-batch
        self._partial = False  # whether its loss is only a part of the step's

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        del args, state, control
        model = kwargs.get("model")
        if self._split and model is not None:
            self._hooks = [
                model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
                model.register_forward_hook(self._after_forward),
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

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        del args, state, control, kwargs
        if not self._hooks:
            self.meter.add_batch()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_substep_end(args, state, control, **kwargs)
        self._phases.end_step()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        del args, state, control, kwargs
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._phases.end_step()
        self.meter.stop()

    def _before_forward(self, module: Any, arguments: Any, named: Any) -> None:
        if module.training and not torch.compiler.is_compiling():
            self._phases.enter("forward")
            self._sizes = sizes_of(named or arguments)
            # With it transformers divides the loss by the tokens of all micro-batches and processes: that is no mean.
            self._partial = (named or {}).get("num_items_in_batch") is not None

    def _after_forward(self, module: Any, arguments: Any, output: Any) -> None:
        del arguments
        if module.training and not torch.compiler.is_compiling() and self._phases.in_step:
            self._phases.enter("backward")
            loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
            samples, tokens = self._sizes
            self.meter.add_batch(samples=samples, tokens=tokens, loss=None if self._partial else loss)


class _LightningEvents:
    """Hooks of a Lightning `Callback`: (trainer, module, ...)."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter
        self._phases = _Phases(meter)
        self._stepped = False  # whether an optimizer stepped in this batch
        self._sizes: tuple[int | None, int | None] = (None, None)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        del trainer, pl_module
        self.meter.start()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        del trainer, pl_module, batch_idx
        if self._phases.in_step:  # another micro-batch of a step that has had no optimizer yet
            self._phases.enter("forward")
        else:
            self._phases.begin_step("forward")
        self._stepped = False
        self._sizes = sizes_of(batch)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        del trainer, pl_module, loss
        self._phases.enter("backward")

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        del trainer, pl_module
        self._phases.enter(None)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        del trainer, pl_module, optimizer
        self._stepped = True
        self._phases.enter("optimizer")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        del trainer, pl_module, batch, batch_idx
        self._phases.enter(None)
        if self._phases.in_step:
            samples, tokens = self._sizes
            loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
            self.meter.add_batch(samples=samples, tokens=tokens, loss=loss if _is_number(loss) else None)
        if self._stepped:
            self._phases.end_step()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        del trainer, pl_module
        self._phases.enter("validation")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        del trainer, pl_module
        self._phases.enter(None)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        del trainer, pl_module
        self._phases.leave()  # micro-batches without an optimizer are no step
        self.meter.stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        del trainer, pl_module, exception
        self.meter.stop()


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) or (isinstance(value, torch.Tensor) and value.numel() == 1)
