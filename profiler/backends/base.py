"""The narrow interface between what measures a training run and the framework that runs it.

A backend is a module with a function `build` of the type `Builder`: one rank's part of a run. `BACKENDS` names the
module of each backend that a plan may ask for; it is imported in the process that runs the plan and nowhere else, so
frameworks that cannot live in one process never meet. What measures (`profiler.training`) knows of `Run` alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.errors import InputError
from moemodel.model.frameworks.base import Precision
from moemodel.model.plan.recompute import RecomputeName
from moemodel.model.plan.spec import ParallelSpec, ScheduleName

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Mark = Callable[[str], None]  # told the phase that ends: "start", "forward", "backward", "pipeline", "optimizer"


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What is trained, and how.

    Attributes:
        name: of the plan.
        architecture: decoder-only.
        seq: tokens of a sequence.
        micro_batch: sequences in one forward pass.
        micro_batches: forward and backward passes of a replica in one optimizer step; their gradients accumulate.
        precision: recipe of the optimizer; the model is bf16 in both, unless `dtype` says otherwise.
        recompute: see `backends.torch_model`.
        parallel: degrees of parallelism.
        schedule: of the pipeline, if there is one.
        dtype: name of the type of parameters and activations.
        lr: learning rate.
        steps: measured, at least.
        warmup: steps before them, at least.
        seed: of weights and data.
        plan_yaml: the plan as its author wrote it.
    """

    name: str
    architecture: Architecture
    seq: int
    micro_batch: int
    micro_batches: int = 1
    precision: Precision = "bf16-mixed"
    recompute: RecomputeName = "none"
    parallel: ParallelSpec = field(default_factory=ParallelSpec)
    schedule: ScheduleName = "1f1b"
    dtype: str = "bfloat16"
    lr: float = 1e-4  # low: a few hundred steps should leave the experts' load about as it was measured first
    steps: int = 20
    warmup: int = 5
    seed: int = 0
    plan_yaml: str = ""


class Run(Protocol):
    """One rank's part of a model in training. Every method is called by all ranks of the plan, in the same order."""

    @property
    def device(self) -> torch.device: ...
    @property
    def marks(self) -> int:
        """How often a step calls `mark`."""
        ...

    @property
    def parameters(self) -> int:
        """Parameters of this rank's share of the model, before ZeRO shards them."""
        ...

    def step(self, mark: Mark) -> None:
        """Queue one step on the device, telling `mark` the phase that ends."""
        ...

    def loss(self) -> float:
        """Mean loss of the last step over the global batch; waits for the device."""
        ...

    def wait(self) -> None:
        """Until the device has done all that was queued."""
        ...

    def expert_loads(self) -> Sequence[Tensor]:
        """Rows of each expert [E] from the whole micro-batch of all replicas, one tensor a layer here and pass."""
        ...

    def clear_expert_loads(self) -> None:
        """Forget the loads counted so far."""
        ...

    def close(self) -> None:
        """Give back the memory that it holds."""
        ...


# All processes of a job call it; None for one that the plan does not need.
Builder = Callable[[TrainingRun, "torch.device"], Run | None]

BACKENDS: dict[str, str] = {"torch": "moemodel.profiler.backends.torch_native.parallel_trainer"}


def builder(backend: str) -> Builder:
    """What builds a backend's runs, in this process.

    Raises:
        InputError: plans of this backend are predicted, not run.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend: found {backend!r}; allowed for plans that are run: {', '.join(BACKENDS)}")
    return cast(Builder, importlib.import_module(BACKENDS[backend]).build)
