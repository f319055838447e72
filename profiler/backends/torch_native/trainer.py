"""A whole model in training on one device."""

from __future__ import annotations

import torch
from torch import Tensor

from moemodel.profiler.backends.base import PhaseCallback, StepStatistics, TrainingRun
from moemodel.profiler.backends.torch_native.batches import Batches
from moemodel.profiler.backends.torch_native.bias_balance import move_biases
from moemodel.profiler.backends.torch_native.layer import Making
from moemodel.profiler.backends.torch_native.mixture import Mixture, MixtureFactory
from moemodel.profiler.backends.torch_native.model import DecoderModel, build_model
from moemodel.profiler.backends.torch_native.optimizer import build_optimizer, clip_gradients
from moemodel.profiler.backends.torch_native.run_routing import seed_routers, step_statistics


def _ignore(_: str) -> None:
    return None


class Trainer:
    """A whole model in training on one device: data, gradients, optimizer. A `Run`.

    Args:
        run: what is trained.
        device: that it is on.
        mixture: makes its Mixture-of-Experts blocks.
    """

    def __init__(self, run: TrainingRun, device: torch.device, mixture: MixtureFactory = Mixture) -> None:
        self.device, self._micro_batches = device, run.micro_batches
        self.marks = 2 * run.micro_batches + 2
        dtype: torch.dtype = getattr(torch, run.dtype)
        self.model: DecoderModel = build_model(
            run.architecture, device=device, dtype=dtype, making=Making.of(run, mixture), seed=run.seed
        )
        self.parameters = sum(p.numel() for p in self.model.parameters())
        seed_routers(run, 0)
        self.optimizer = build_optimizer(self.model, run.precision, lr=run.lr)
        self._batches = Batches(run, device)
        self._queue: list[tuple[Tensor, Tensor]] = []  # micro-batches of the step, the last first
        self._losses: list[Tensor] = []

    def step(self, mark: PhaseCallback = _ignore) -> None:
        """Queue one step, calling `mark` with the phase that ends."""
        mark("start")
        self._losses = []
        for _ in range(self._micro_batches):
            loss = self.forward()
            mark("forward")
            self.backward(loss)
            mark("backward")
            self._losses.append(loss.detach())
        self.update()
        mark("optimizer")

    def loss(self) -> float:
        """Mean loss of the last step."""
        return float(torch.stack(self._losses).double().mean())

    def forward(self) -> Tensor:
        """Queue the forward pass of one micro-batch."""
        if not self._queue:
            self._queue = list(zip(*(part.unbind() for part in self._batches.step()), strict=True))[::-1]
        loss: Tensor = self.model(*self._queue.pop())
        return loss

    def backward(self, loss: Tensor) -> None:
        """Queue its backward pass; gradients add up to those of the mean loss."""
        share = loss / self._micro_batches if self._micro_batches > 1 else loss
        torch.autograd.backward(share)

    def update(self) -> None:
        """Queue clipping, the optimizer's step, and drop the gradients."""
        clip_gradients(self.model)
        self.optimizer.step()
        self.optimizer.zero_grad()
        move_biases([self.model], None)

    def wait(self) -> None:
        """Until the device has done all that was queued."""
        wait(self.device)

    def statistics(self) -> StepStatistics:
        """See `Run`."""
        return step_statistics([self.model], _mean(self._losses), self._micro_batches)

    def record_entropies(self, wanted: bool) -> None:
        """See `Run`."""
        self.model.record_entropies(wanted)

    def expert_loads(self) -> list[Tensor]:
        """See `Run`."""
        return self.model.expert_loads()

    def clear_expert_loads(self) -> None:
        """See `Run`."""
        self.model.clear_expert_loads()

    def close(self) -> None:
        """Nothing is left to give back once nobody holds it."""


def _mean(losses: list[Tensor]) -> Tensor | None:
    return torch.stack(losses).mean() if losses else None


def wait(device: torch.device) -> None:
    """Until a device has done all that was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
