"""The models of the crossover study in plain PyTorch: a dense MLP, and the two forms of its Mixture-of-Experts.

What is computed is that of neuralwatt's experiment (https://github.com/neuralwatt/moe_energy_evaluation, April 2025:
baseline_mlp.py, expert.py, moe_original.py, moe_optimized2.py), written anew; the shapes are the presets `mlp-*`. A
linear gate scores the experts, softmax goes over the k best scores alone, and each expert is an MLP of its own on the
samples that chose it. The two forms differ in what they go over:

    every    all experts: samples are repeated k times first, and each expert has a mask over these rows, of which it
             is asked whether any is set, and by which rows are taken and put back. The literature calls it naive. It
             does not pass all samples through all experts: an expert computes its own rows.
    chosen   the experts that were chosen, read from the device first: rows by their numbers, weighted, and added to
             the output at once.

Symbols: B samples, D features, E experts, K choices of a sample, R = B K rows, O outputs.
"""

from __future__ import annotations

import torch
from torch import nn

from moemodel.model.architecture.spec import Architecture, Mlp, Moe
from moemodel.model.layers.mlp import mlp_products


def perceptron(block: Mlp | Moe, features: int) -> nn.Sequential:
    """A dense block, or one expert: products with biases, ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in mlp_products(block, features):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Mixture(nn.Module):
    """Gate and experts; which of both forms runs is the caller's."""

    def __init__(self, block: Moe, features: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList([perceptron(block, features) for _ in range(block.experts)])
        self.gate = nn.Linear(features, block.experts)
        self.choices = block.top_k
        self.outputs = mlp_products(block, features)[-1][1]

    def routed(self, x_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and numbers of the experts of each sample, [B, K] each."""
        scores_BK, experts_BK = torch.topk(self.gate(x_BD), self.choices, dim=1)
        return torch.softmax(scores_BK, dim=1), experts_BK


class EveryExpert(nn.Module):
    """The loop over all experts."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Outputs, [B, O]."""
        mixture, samples = self.mixture, len(x_BD)
        weights_BK, experts_BK = mixture.routed(x_BD)
        outputs_BO = x_BD.new_zeros(samples, mixture.outputs)
        sample_R = torch.arange(samples, device=x_BD.device).repeat_interleave(mixture.choices)
        expert_R = experts_BK.flatten()
        x_RD = x_BD.repeat_interleave(mixture.choices, dim=0)
        y_RO = x_BD.new_zeros(samples * mixture.choices, mixture.outputs)
        for number, expert in enumerate(mixture.experts):
            own_R = expert_R == number
            if own_R.any():  # waits for the device, as both masks below do
                y_RO[own_R] = expert(x_RD[own_R])
        weighted_RO = y_RO * weights_BK.flatten()[:, None]
        return outputs_BO.scatter_add_(0, sample_R[:, None].repeat(1, mixture.outputs), weighted_RO)


class ChosenExperts(nn.Module):
    """The loop over the experts that were chosen."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Outputs, [B, O]."""
        mixture = self.mixture
        weights_BK, experts_BK = mixture.routed(x_BD)
        outputs_BO = x_BD.new_zeros(len(x_BD), mixture.outputs)
        for number in torch.unique(experts_BK):  # on the device: each is read when its expert is looked up
            sample_R, choice_R = torch.nonzero(experts_BK == number, as_tuple=True)
            x_RD, weights_R = x_BD[sample_R], weights_BK[sample_R, choice_R]
            y_RO = mixture.experts[int(number)](x_RD) * weights_R[:, None]
            outputs_BO.index_add_(0, sample_R, y_RO)
        return outputs_BO


def build(architecture: Architecture, device: torch.device) -> dict[str, nn.Module]:
    """The forms of one preset, sharing their weights: `dense`, or `every` and `chosen`; random, without gradients."""
    block = architecture.decoder[0].feed_forward
    assert block is not None
    with torch.device(device):
        if isinstance(block, Mlp):
            forms: dict[str, nn.Module] = {"dense": perceptron(block, architecture.hidden)}
        else:
            mixture = Mixture(block, architecture.hidden)
            forms = {"every": EveryExpert(mixture), "chosen": ChosenExperts(mixture)}
    return {name: form.eval().requires_grad_(requires_grad=False) for name, form in forms.items()}
