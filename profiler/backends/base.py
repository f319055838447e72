"""The narrow interface between what measures a training run and the framework that runs it.

A framework that runs is a folder here and a line in `BACKENDS`. In the folder are two modules:

- `supported_plans`, which loads no framework: `check_runs(plan, architecture)`.
- `parallel_trainer`: `build`, a `Builder` (one rank's part of a run), and `release_comm_buffers(device)`. It is
  imported in the process that runs a plan and nowhere else, so frameworks that cannot live in one process never meet.

What measures (`profiler.training`) knows of `Run` alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from moemodel.model.architecture.hf_config import list_architectures, read_architecture
from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.errors import InputError
from moemodel.model.frameworks.base import Precision
from moemodel.model.plan.recompute import RecomputeName
from moemodel.model.plan.routing import RoutingSpec, routed_architecture
from moemodel.model.plan.spec import ParallelSpec, Plan, ScheduleName

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from moemodel.profiler.data.spec import DataSpec

# Told the phase that ends: "start", "forward", "backward", "pipeline", "optimizer".
PhaseCallback = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What is trained, and how.

    Attributes:
        name: of the plan.
        architecture: which its backend runs.
        seq: tokens of a sequence.
        micro_batch: sequences in one forward pass.
        micro_batches: forward and backward passes of a replica in one optimizer step; their gradients accumulate.
        precision: recipe of the optimizer; the model is bf16 in both, unless `dtype` says otherwise.
        recompute: see `torch_native.model`.
        parallel: degrees of parallelism.
        schedule: of the pipeline, if there is one.
        routing: how routers choose experts, and what is added to the loss; its `skew` imposes nothing.
        data: what sequences are made of, as a document of `profiler.data`; None: made-up tokens.
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
    routing: RoutingSpec = field(default_factory=RoutingSpec)
    data: DataSpec | None = None
    dtype: str = "bfloat16"
    lr: float = 1e-4  # low: a few hundred steps should leave the experts' load about as it was measured first
    steps: int = 20  # at least; as many more as fill the time that is measured
    warmup: int = 5  # not measured: kernels load, the allocator's cache and the optimizer's state come to be
    seed: int = 0
    plan_yaml: str = ""

    @classmethod
    def of(
        cls,
        plan: Plan,
        architecture: Architecture,
        *,
        name: str,
        plan_yaml: str,
        seed: int = 0,
        data: DataSpec | None = None,
        learning_rate: float = 1e-4,
    ) -> TrainingRun:
        """The run that a plan asks for.

        Args:
            plan: which its backend runs (`check_runs`).
            architecture: of the plan (`architecture_in`).
            name: of the run.
            plan_yaml: the plan as its author wrote it.
            seed: of weights and data.
            data: what sequences are made of; None: made-up tokens.
            learning_rate: of the optimizer.
        """
        return cls(
            name=name,
            architecture=architecture,
            seq=plan.sequence_length,
            micro_batch=plan.micro_batch,
            micro_batches=plan.micro_batches,
            precision=plan.precision,
            recompute=plan.recompute,
            parallel=plan.parallel,
            schedule=plan.schedule,
            routing=plan.routing,
            data=data,
            lr=learning_rate,
            seed=seed,
            plan_yaml=plan_yaml,
        )


@dataclass(frozen=True, kw_only=True)
class LayerRouting:
    """What one router did in one step on this rank. Tensors are left on the device: nothing has waited for them.

    Attributes:
        layer: number of the layer; an encoder's are counted first.
        rows_E: (token, expert) pairs that each expert was chosen for, before any were dropped, [E].
        dropped: of these, pairs that found no room, [].
        entropy: mean over tokens of the entropy of the router's probabilities, nats, []; nan: not recorded.
    """

    layer: int
    rows_E: Tensor
    dropped: Tensor
    entropy: Tensor


@dataclass(frozen=True, kw_only=True)
class StepStatistics:
    """What came of one step on this rank. Tensors are left on the device: nothing has waited for them.

    Attributes:
        task_loss: mean over this rank's tokens, without what routers add, []; None on a rank that computes none.
        router_loss: what they add: their losses summed over layers, times their coefficients, []; None: nothing.
        routing: of its routers.
    """

    task_loss: Tensor | None
    router_loss: Tensor | None
    routing: tuple[LayerRouting, ...]


class Run(Protocol):
    """One rank's part of a model in training. Every method is called by all ranks of the plan, in the same order."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    @property
    def marks(self) -> int:
        """How often a step calls `mark`."""
        ...

    @property
    def parameters(self) -> int:
        """Parameters of this rank's share of the model, before ZeRO shards them."""
        ...

    def step(self, mark: PhaseCallback) -> None:
        """Queue one step on the device, telling `mark` the phase that ends."""
        ...

    def loss(self) -> float:
        """Mean loss of the last step over the global batch, the task's alone; waits for the device."""
        ...

    def statistics(self) -> StepStatistics:
        """Losses and routing of the last step, on this rank alone; waits for nothing."""
        ...

    def record_entropies(self, wanted: bool) -> None:
        """Whether routers record entropies in the steps to come, which takes them a kernel or two."""
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

# Framework, by the name that a plan's `backend` gives it -> the folder that runs it.
BACKENDS: dict[str, str] = {
    "torch": "moemodel.profiler.backends.torch_native",
    "deepspeed": "moemodel.profiler.backends.deepspeed",
    "fastmoe": "moemodel.profiler.backends.fastmoe",
    "megatron-core": "moemodel.profiler.backends.megatron_core",
    "megatron-core-local": "moemodel.profiler.backends.megatron_core",
    "megatron-deepspeed": "moemodel.profiler.backends.megatron_deepspeed",
}


def architecture_in(plan: Plan, folder: Path) -> Architecture:
    """A plan's architecture, with its routers and cut to its `layers`; a path in the plan is relative to its folder.

    Raises:
        InputError: unknown architecture, or more layers than it has.
    """
    name = plan.architecture
    architecture = read_architecture(name if name in list_architectures() else folder / name)
    architecture = routed_architecture(architecture, plan.routing)
    if plan.layers is None:
        return architecture
    if plan.layers > len(architecture.decoder):
        raise InputError(f"{plan.name}: layers: found {plan.layers}; allowed: 1 to {len(architecture.decoder)}")
    return replace(architecture, decoder=architecture.decoder[: plan.layers])


def check_runs(plan: Plan, architecture: Architecture) -> None:
    """Refuse a plan that its backend does not run, without loading the framework.

    Args:
        plan: checked by itself.
        architecture: of the plan, with as many layers as it asks for.

    Raises:
        InputError: a part of the plan or of the architecture is predicted, not run; what is allowed.
        InfeasiblePlanError: a degree does not divide the architecture.
    """
    _module(plan.backend, "supported_plans").check_runs(plan, architecture)


def builder(backend: str) -> Builder:
    """What builds a backend's runs, in this process.

    Raises:
        InputError: plans of this backend are predicted, not run.
    """
    return cast(Builder, _module(backend, "parallel_trainer").build)


def release_comm_buffers(backend: str, device: torch.device) -> None:
    """Make a backend's process groups drop what their last calls left; all processes of a job call it between plans.

    Raises:
        InputError: plans of this backend are predicted, not run.
    """
    _module(backend, "parallel_trainer").release_comm_buffers(device)


def _module(backend: str, name: str) -> Any:
    if backend not in BACKENDS:
        raise InputError(
            f"backend: found {backend!r}; allowed for plans that are run: {', '.join(BACKENDS)}. `moemodel predict` "
            "takes all of these"
        )
    return importlib.import_module(f"{BACKENDS[backend]}.{name}")
