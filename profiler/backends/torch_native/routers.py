"""How routers choose experts, and what they add to the loss.

| router        | scores s of a token, from its logits z                 | chosen                      | weights    |
| ------------- | ------------------------------------------------------ | --------------------------- | ---------- |
| softmax_topk  | softmax(z)                                             | the k best                  | normalised |
| noisy_topk    | softmax(z + N(0, 1) softplus(z')), z' of other weights | the k best                  | normalised |
| switch_top1   | softmax(z)                                             | the best                    | s          |
| gshard_top2   | softmax(z)                                             | 2 best; one by chance: 2 g2 | normalised |
| sigmoid_topk  | sigmoid(z)                                             | the k best                  | normalised |
| expert_choice | softmax(z)                                             | by experts: their best      | s          |

Shazeer et al. 2017 (arXiv:1701.06538, equations 3 to 5); Fedus et al. 2022 (arXiv:2101.03961, section 2.1); Lepikhin
et al. 2020 (arXiv:2006.16668, algorithm 1); DeepSeek-V3 (arXiv:2412.19437, section 2.1.2); Zhou et al. 2022
(arXiv:2202.09368, section 3.2). A plan's `normalize` overrules the last column, where the paper leaves a choice, and
its `temperature` divides logits. Noise and chance are of training alone (`Module.train`). Scores are computed in
float32 from logits in the model's precision (Switch computes these in float32, too).

An expert that chooses tokens looks at all of a micro-batch: in a causal model a token's experts then depend on tokens
behind it.

All is of the tokens that one rank sees of one micro-batch, losses too, as in the papers' implementations: the mean of
replicas' losses is not the loss of all their tokens.

Shapes: T tokens, E experts, k experts of a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from moemodel.model.architecture.spec import Moe
from moemodel.model.plan.routing import RoutingSpec

RANDOM_ROUTERS = frozenset({"noisy_topk", "gshard_top2"})


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a router decided of T tokens.

    Attributes:
        weight_Tk: of each token's experts, best first, in the model's precision.
        expert_Tk: which they are.
        score_TE: of all experts, float32; rows add up to one but for sigmoids.
        logit_TE: what they were computed from, float32; None where no loss wants it.
        sent_Tk: which pairs are sent at all; None: all.
    """

    weight_Tk: Tensor
    expert_Tk: Tensor
    score_TE: Tensor
    logit_TE: Tensor | None = None
    sent_Tk: Tensor | None = None


class Router:
    """The rule by which one block's experts are chosen; it holds no weights.

    Args:
        block: whose experts.
        routing: what a plan asks for.
    """

    def __init__(self, block: Moe, routing: RoutingSpec) -> None:
        self.block, self.routing = block, routing
        named = routing.normalize
        self._normalised = block.router != "switch_top1" if named is None else named

    @property
    def wants_logits(self) -> bool:
        """Whether the z-loss does."""
        return self.routing.z_loss > 0

    def scores(self, logit_TE: Tensor, noise_TE: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Scores of all experts, float32, and the logits where a loss wants them.

        Args:
            logit_TE: the router's product with its input.
            noise_TE: of a noisy router in training, the product that scales its noise.
        """
        if self.routing.temperature != 1.0:
            logit_TE = logit_TE / self.routing.temperature
        if noise_TE is not None:
            logit_TE = noisy(logit_TE, noise_TE)
        kept_TE = logit_TE.float() if self.wants_logits else None
        if self.block.router == "sigmoid_topk":
            return logit_TE.float().sigmoid(), kept_TE
        return logit_TE.softmax(dim=-1, dtype=torch.float32), kept_TE

    def choose(
        self, logit_TE: Tensor, *, noise_TE: Tensor | None = None, bias_E: Tensor | None = None, random: bool = False
    ) -> Choice:
        """Each token's experts.

        Args:
            logit_TE, noise_TE: see `scores`.
            bias_E: added to the scores for the choice alone (Wang et al. 2024, equation 3); None: nothing.
            random: whether GShard's second expert is left to chance.
        """
        score_TE, kept_TE = self.scores(logit_TE, noise_TE)
        weight_Tk, expert_Tk = self._best(score_TE, bias_E)
        if self._normalised:
            weight_Tk = weight_Tk / weight_Tk.sum(dim=-1, keepdim=True)
        sent_Tk = second_by_chance(weight_Tk) if random and self.block.router == "gshard_top2" else None
        return Choice(
            weight_Tk=weight_Tk.to(logit_TE.dtype),
            expert_Tk=expert_Tk,
            score_TE=score_TE,
            logit_TE=kept_TE,
            sent_Tk=sent_Tk,
        )

    def _best(self, score_TE: Tensor, bias_E: Tensor | None) -> tuple[Tensor, Tensor]:
        if bias_E is None:
            weight_Tk, expert_Tk = score_TE.topk(self.block.top_k, dim=-1)
            return weight_Tk, expert_Tk
        expert_Tk = (score_TE.detach() + bias_E).topk(self.block.top_k, dim=-1).indices
        return score_TE.gather(-1, expert_Tk), expert_Tk

    def z_loss(self, logit_TE: Tensor) -> Tensor:
        """The z-loss times its coefficient."""
        return self.routing.z_loss * z_loss(logit_TE)

    def loss(self, choice: Choice, chosen_E: Tensor) -> Tensor | None:
        """What the router adds to the loss, times its coefficients; None: nothing.

        Args:
            choice: of the tokens.
            chosen_E: tokens that each expert was chosen for.
        """
        parts = []
        if self.routing.balance_loss:
            counted_E = self._counted(choice, chosen_E)
            parts.append(self.routing.balance_loss * balance_loss(choice.score_TE, counted_E))
        if choice.logit_TE is not None:
            parts.append(self.z_loss(choice.logit_TE))
        return sum(parts[1:], parts[0]) if parts else None

    def _counted(self, choice: Choice, counts_E: Tensor) -> Tensor:
        """Choices that the balancing loss counts: of GShard's, the first ones alone."""
        if self.block.router != "gshard_top2":
            return counts_E
        return chosen_counts(choice.expert_Tk[:, :1], self.block.experts)


def noisy(logit_TE: Tensor, noise_TE: Tensor) -> Tensor:
    """Logits with noise, H = z + N(0, 1) softplus(z') (Shazeer et al. 2017, equation 4)."""
    return logit_TE + torch.randn_like(logit_TE) * functional.softplus(noise_TE)


def jittered(x_TD: Tensor, jitter: float) -> Tensor:
    """A router's input, each value times a number between 1 - jitter and 1 + jitter (Fedus et al. 2022, figure 15)."""
    return x_TD * torch.empty_like(x_TD).uniform_(1 - jitter, 1 + jitter)


def second_by_chance(weight_Tk: Tensor) -> Tensor:
    """Which pairs are sent: the first ones, the second ones with chance 2 g2 (Lepikhin et al. 2020, algorithm 1)."""
    sent_Tk = torch.ones_like(weight_Tk, dtype=torch.bool)
    sent_Tk[:, 1] = 2 * weight_Tk[:, 1] > torch.rand_like(weight_Tk[:, 1])
    return sent_Tk


def balance_loss(score_TE: Tensor, chosen_E: Tensor) -> Tensor:
    """N sum_e f_e P_e, one where all experts are alike (Fedus et al. 2022, equations 4 to 6).

    f_e is the share of choices that fell on e, with several experts of a token too, so that one stays one (as
    Megatron-Core counts; Hugging Face's models add up over the k experts, k times as much). P_e is the mean over tokens
    of e's share in a token's scores, which of sigmoids DeepSeek-V3 takes, too (equations 17 to 20).
    """
    share_TE = score_TE / score_TE.sum(-1, keepdim=True)
    f_E = chosen_E.to(score_TE.dtype) / chosen_E.sum()
    return score_TE.shape[-1] * (f_E * share_TE.mean(0)).sum()


def z_loss(logit_TE: Tensor) -> Tensor:
    """Mean over tokens of (ln sum_e exp z_e)^2 (Zoph et al. 2022, arXiv:2202.08906, equation 5)."""
    return logit_TE.logsumexp(-1).square().mean()


def chosen_counts(expert_Tk: Tensor, experts: int) -> Tensor:
    """How often each expert was chosen [E], without waiting for the device."""
    flat = expert_Tk.flatten()
    counts_E = torch.zeros(experts, dtype=torch.int64, device=flat.device)
    return counts_E.scatter_add_(0, flat, torch.ones_like(flat))
