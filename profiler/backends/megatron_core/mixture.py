"""Megatron Core's MoE layer alone, with rows [T, D] in and out; what the golden test holds to the plain layer."""

from __future__ import annotations

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.moe_layer import MoELayer
from torch import Tensor, nn

from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.plan.routing import RoutingSpec
from moemodel.profiler.backends.base import TrainingRun
from moemodel.profiler.backends.megatron_core.gpt import block_specs_of, transformer_config
from moemodel.profiler.backends.megatron_core.groups import own_part
from moemodel.profiler.backends.megatron_core.router_watch import RouterWatch
from moemodel.profiler.backends.megatron_core.weights import of_feed_forward
from moemodel.profiler.backends.torch_native.mixture import reference_shapes
from moemodel.profiler.backends.torch_native.router_passes import RoutingPasses


class MegatronMixture(nn.Module):
    """A block of experts; its process group is open (`groups`).

    Args:
        architecture: of one layer, which has the block.
        routing: what a plan asks of its router.
        dtype: of parameters and activations.
    """

    def __init__(self, architecture: Architecture, routing: RoutingSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self._architecture, self._hidden = architecture, architecture.hidden
        run = TrainingRun(
            name=architecture.name,
            architecture=architecture,
            seq=1,
            micro_batch=1,
            routing=routing,
            dtype=str(dtype).removeprefix("torch."),
        )
        config = transformer_config(run)
        (layer,) = block_specs_of(run, config).layer_specs
        self.layer: MoELayer = _mixture(layer, config)
        self._watch = RouterWatch(0, self.layer.router)

    @property
    def records(self) -> RoutingPasses:
        """What its router did, a record a forward pass."""
        return self._watch.records

    def forward(self, x_TD: Tensor) -> Tensor:
        """Rows [T, D] in and out."""
        out: Tensor = self.layer(x_TD.unsqueeze(1))[0]
        return out.squeeze(1)

    @torch.no_grad()
    def load_reference(self, router_ED: Tensor, up_EDF: Tensor, down_EFD: Tensor) -> None:
        """Take the weights of the plain layer."""
        whole = {"router.weight": router_ED, "experts.up_EDF": up_EDF, "experts.down_EFD": down_EFD}
        for name, parameter in self.layer.named_parameters():
            parameter.copy_(self._from(name, whole))

    def reference_gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the weights, in the shapes of the plain layer's: router, up and down.

        Weights here are linear functions of those, so the functions' own gradients bring these back.
        """
        whole = self._zeros()
        made = [(self._from(name, whole), p.grad) for name, p in self.layer.named_parameters() if p.grad is not None]
        outputs, gradients = zip(*made, strict=True)
        router, up, down = torch.autograd.grad(outputs, list(whole.values()), gradients)
        return router, up, down

    def _from(self, name: str, whole: dict[str, Tensor]) -> Tensor:
        layer = self._architecture.decoder[0]
        return of_feed_forward(name, layer, self._hidden, own_part(), lambda part, _: whole[part])

    def _zeros(self) -> dict[str, Tensor]:
        block, like = self._architecture.decoder[0].feed_forward, next(self.layer.parameters())
        assert isinstance(block, Moe)
        shapes = reference_shapes(block, self._hidden)
        return {name: like.new_zeros(shape).requires_grad_() for name, shape in shapes.items()}


def _mixture(layer: object, config: object) -> MoELayer:
    groups = ProcessGroupCollection.use_mpu_process_groups()
    built: MoELayer = layer.submodules.mlp(config=config, pg_collection=groups, is_mtp_layer=False)  # type: ignore[attr-defined]
    built.set_layer_number(1)
    return built
