"""A decoder-only architecture as a PyTorch module, built of the operators in `operators`.

What the profiler times operator by operator is what this model runs, so a prediction can be checked against it.
Choices that a prediction has to share:

- Norms come first in a layer (pre-norm), whatever the original did: the operators are the same.
- Queries, keys, values and output are four products. Gate and up-projection are two in a dense block and one of
  width 2F in experts, of which `swiglu` reads the two halves in place.
- Learned positions are looked up for every token, as Hugging Face's models do.
- Activations between blocks are [T, D]. The head's logits are in the model's precision, the loss in float32.
- Routers have no auxiliary loss: it costs next to nothing, and the load is measured, not assumed.
- Weights depend on a seed and on each parameter's name alone, so that whoever holds a part of the model can draw it.

A rank of several builds the same modules for what it holds: some of the layers (`Span`), and of these a part
(`ShardingStrategy`).

Recompute. `full`: a layer keeps its input and runs again in the backward pass. `selective`: so it does, but for every
other product and the core of attention, whose outputs it keeps (torchtitan's `selective_ac_option: op`).

Shapes: T tokens (batch x seq), D hidden, B batch, H heads, G key/value heads, S seq, K head_dim, E experts, k experts
per token, F width, R = T k rows, V vocabulary, W embedding width.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from moemodel.model.architecture.spec import Architecture, Attention, Layer, Mlp, Moe
from moemodel.model.core.errors import InputError
from moemodel.model.plan.recompute import RecomputeName
from moemodel.profiler.backends.torch_native import operators as torch_ops
from moemodel.profiler.backends.torch_native.supported_models import check_supported

_INIT_STD = 0.02  # GPT-2 (Radford et al. 2019) and most models since
_ROTARY_THETA = 10_000.0  # any base costs the same
_LOADS_KEPT = 1024  # forward passes whose expert counts a layer remembers


@dataclass(frozen=True)
class Positions:
    """How [T, D] rows are sequences, and the rotary tables [S, 1, K/2] by head width."""

    batch: int
    seq: int
    rotary: dict[int, tuple[Tensor, Tensor]]


class ShardingStrategy:
    """What a device holds of each layer, and what it tells those that hold the rest. This one holds all of it."""

    def layer(self, layer: Layer) -> Layer:
        """What it holds of a layer, as a layer."""
        return layer

    def vocabulary(self, rows: int) -> int:
        """Rows that it holds of the token embedding and of the head."""
        return rows

    def enter_tensor_parallel_region(self, x_TD: Tensor) -> Tensor:
        """Input of a block, for products that are sharded by columns."""
        return x_TD

    def leave_tensor_parallel_region(self, x_TD: Tensor) -> Tensor:
        """Output of a block, whose last product was sharded by rows."""
        return x_TD

    def project(self, linear: nn.Linear, x: Tensor) -> Tensor:
        """The last product of a block, and `leave_tensor_parallel_region`."""
        out: Tensor = linear(x)
        return out

    def normalise(self, q_TQ: Tensor, k_TG: Tensor, q_norm: nn.Module, k_norm: nn.Module) -> tuple[Tensor, Tensor]:
        """Queries and keys, normalised over all their heads."""
        return q_norm(q_TQ), k_norm(k_TG)

    def pass_experts(self, x_RD: Tensor, d: torch_ops.Dispatch, experts: nn.Module) -> Tensor:
        """Rows sorted by expert through the experts."""
        out: Tensor = experts(x_RD, d.offsets_E)
        return out

    def embed(self, tokens_BS: Tensor, table_VW: Tensor) -> Tensor:
        """Rows of the token embedding."""
        return functional.embedding(tokens_BS, table_VW)

    def own_rows(self, rows_BS: Tensor) -> Tensor:
        """Of one value a token, those of the tokens that it holds between blocks."""
        return rows_BS

    def loss(self, x_TW: Tensor, head_VW: Tensor, targets_T: Tensor) -> Tensor:
        """Mean loss of all tokens."""
        return torch_ops.cross_entropy(functional.linear(x_TW, head_VW), targets_T)


WHOLE = ShardingStrategy()


@dataclass(frozen=True, kw_only=True)
class Span:
    """Consecutive layers of a model, `first` to before `stop`, and which ends come with them."""

    first: int
    stop: int
    embedding: bool
    head: bool


class _Norm(nn.Module):
    def __init__(self, width: int, *, kind: str, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width)) if bias else None
        self._rms = kind == "rms"

    def forward(self, x: Tensor) -> Tensor:
        if self._rms:
            return torch_ops.rms_norm(x, self.weight)
        return torch_ops.layer_norm(x, self.weight, self.bias)


class _Attention(nn.Module):
    def __init__(self, attention: Attention, hidden: int, *, sharding: ShardingStrategy) -> None:
        super().__init__()
        self._shape, self._sharding = attention, sharding
        queries, keys = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
        self.q = nn.Linear(hidden, queries, bias=attention.bias_qkv)
        self.k = nn.Linear(hidden, keys, bias=attention.bias_qkv)
        self.v = nn.Linear(hidden, keys, bias=attention.bias_qkv)
        self.o = nn.Linear(queries, hidden, bias=attention.bias_out)
        per_head = attention.qk_norm == "per_head"
        widths = (attention.head_dim, attention.head_dim) if per_head else (queries, keys)
        normed = attention.qk_norm != "none"
        self.q_norm = _Norm(widths[0], kind="rms", bias=False) if normed else None
        self.k_norm = _Norm(widths[1], kind="rms", bias=False) if normed else None

    def forward(self, x_TD: Tensor, positions: Positions) -> Tensor:
        x_TD = self._sharding.enter_tensor_parallel_region(x_TD)
        q, k = self.q(x_TD), self.k(x_TD)
        if self.q_norm is not None and self.k_norm is not None and self._shape.qk_norm == "full":
            q, k = self._sharding.normalise(q, k, self.q_norm, self.k_norm)
        q_BHSK, k_BGSK = self._heads(q, self.q_norm, positions), self._heads(k, self.k_norm, positions)
        v_BGSK = self._split(self.v(x_TD), positions).transpose(1, 2)
        y_BHSK = torch_ops.attention(q_BHSK, k_BGSK, v_BGSK, self._shape.causal)
        return self._sharding.project(self.o, y_BHSK.transpose(1, 2).reshape(x_TD.shape[0], -1))

    def _heads(self, x: Tensor, norm: _Norm | None, positions: Positions) -> Tensor:
        """Normalise each head where heads have their own norm, rotate, and bring heads before the sequence.

        In memory the sequence stays before the heads: a flash kernel's output has the layout of its queries, and so
        needs no copy to become rows again.
        """
        x_BSHK = self._split(x, positions)
        if norm is not None and self._shape.qk_norm == "per_head":
            x_BSHK = norm(x_BSHK)
        if self._shape.rotary:
            x_BSHK = torch_ops.rotary(x_BSHK, *positions.rotary[self._shape.head_dim])
        return x_BSHK.transpose(1, 2)

    def _split(self, x: Tensor, positions: Positions) -> Tensor:
        return x.view(positions.batch, positions.seq, -1, self._shape.head_dim)


def _gelu_gate(gate: Tensor, up: Tensor) -> Tensor:
    return functional.gelu(gate) * up


def _relu_gate(gate: Tensor, up: Tensor) -> Tensor:
    return functional.relu(gate) * up


_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
}
_GATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": _gelu_gate,
    "relu": _relu_gate,
    "silu": torch_ops.swiglu,
}


class _Mlp(nn.Module):
    def __init__(self, block: Mlp, hidden: int, sharding: ShardingStrategy) -> None:
        super().__init__()
        self._activation, self._sharding = block.activation, sharding
        self.gate = nn.Linear(hidden, block.width, bias=block.bias) if block.gated else None
        self.up = nn.Linear(hidden, block.width, bias=block.bias)
        self.down = nn.Linear(block.width, hidden, bias=block.bias)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self._sharding.project(self.down, self._inner(self._sharding.enter_tensor_parallel_region(x_TD)))

    def _inner(self, x_TD: Tensor) -> Tensor:
        if self.gate is None:
            return _PLAIN[self._activation](self.up(x_TD))
        return _GATES[self._activation](self.gate(x_TD), self.up(x_TD))


class Experts(nn.Module):
    """Two grouped products over rows sorted by expert."""

    def __init__(self, block: Moe, hidden: int) -> None:
        super().__init__()
        self._block = block
        self.up_EDF = nn.Parameter(torch.empty(block.experts, hidden, block.width * (2 if block.gated else 1)))
        self.down_EFD = nn.Parameter(torch.empty(block.experts, block.width, hidden))

    def forward(self, x_RD: Tensor, offsets_E: Tensor) -> Tensor:
        return torch_ops.grouped_linear(self._inner(x_RD, offsets_E), self.down_EFD, offsets_E)

    def _inner(self, x_RD: Tensor, offsets_E: Tensor) -> Tensor:
        up = torch_ops.grouped_linear(x_RD, self.up_EDF, offsets_E)
        if self._block.gated:
            return _GATES[self._block.activation](*up.chunk(2, dim=-1))
        return _PLAIN[self._block.activation](up)


class Mixture(nn.Module):
    """Dropless experts: rows sorted by expert, through the experts, weighted and added back.

    Args:
        block: as the architecture has it.
        held: what this device holds of it.
        hidden: model width.
        sharding: see `ShardingStrategy`.
    """

    def __init__(self, block: Moe, held: Moe, hidden: int, sharding: ShardingStrategy) -> None:
        super().__init__()
        self._block, self._sharding = block, sharding
        self.router = nn.Linear(hidden, block.experts, bias=False)
        self.experts = Experts(held, hidden)
        shared = Mlp(width=held.shared_width, activation=block.activation, gated=block.gated, bias=block.bias)
        self.shared = _Mlp(shared, hidden, WHOLE) if block.shared_width else None  # enters and leaves with the rest
        self.shared_gate = nn.Linear(hidden, 1, bias=False) if block.shared_gate else None
        self.loads: deque[Tensor] = deque(maxlen=_LOADS_KEPT)  # rows of each expert, one tensor [E] a forward pass

    def forward(self, x_TD: Tensor) -> Tensor:
        x_TD = self._sharding.enter_tensor_parallel_region(x_TD)
        y_TD = self._routed(x_TD)
        if self.shared is None:
            return self._sharding.leave_tensor_parallel_region(y_TD)
        shared_TD: Tensor = self.shared(x_TD)
        if self.shared_gate is not None:
            shared_TD = torch.sigmoid(self.shared_gate(x_TD)) * shared_TD
        return self._sharding.leave_tensor_parallel_region(y_TD + shared_TD)

    def _routed(self, x_TD: Tensor) -> Tensor:
        block = self._block
        weight_Tk, expert_Tk = torch_ops.route(self.router(x_TD), block.top_k)
        d = torch_ops.dispatch(expert_Tk, block.experts)
        self.loads.append(d.counts_E)
        y_RD = self._sharding.pass_experts(torch_ops.permute(x_TD, d, block.top_k), d, self.experts)
        return torch_ops.unpermute(y_RD, weight_Tk, d)


_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}
_CORES = {
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}


def _keep_some() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts of a forward pass and of its repetition that keep the outputs of cores and of every other product."""
    seen = {True: 0, False: 0}  # products of the repetition, and of the forward pass

    def policy(context: SelectiveCheckpointContext, op: Any, *_: Any, **__: Any) -> CheckpointPolicy:
        seen[context.is_recompute] += op in _PRODUCTS
        kept = op in _CORES or (op in _PRODUCTS and seen[context.is_recompute] % 2 == 1)
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    contexts: tuple[AbstractContextManager[Any], AbstractContextManager[Any]]
    contexts = create_selective_checkpoint_contexts(policy)  # type: ignore[no-untyped-call]
    return contexts


class _Layer(nn.Module):
    def __init__(self, layer: Layer, hidden: int, *, recompute: RecomputeName, sharding: ShardingStrategy) -> None:
        super().__init__()
        self._recompute = recompute
        held = sharding.layer(layer)
        assert layer.norm is not None
        norms = [_Norm(hidden, kind=layer.norm, bias=layer.norm_bias) for _ in range(len(layer.attentions) + 1)]
        self.norms = nn.ModuleList(norms)
        self.attentions = nn.ModuleList(_Attention(a, hidden, sharding=sharding) for a in held.attentions)
        self.feed_forward = _feed_forward(layer.feed_forward, held.feed_forward, hidden, sharding)

    def forward(self, x_TD: Tensor, positions: Positions) -> Tensor:
        if self._recompute == "none" or not torch.is_grad_enabled():
            return self._run(x_TD, positions)
        contexts = _keep_some if self._recompute == "selective" else noop_context_fn
        out: Tensor = checkpoint(
            self._run, x_TD, positions, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
        )
        return out

    def _run(self, x_TD: Tensor, positions: Positions) -> Tensor:
        for norm, attention in zip(self.norms, self.attentions, strict=False):  # the last norm is the feed-forward's
            x_TD = x_TD + attention(norm(x_TD), positions)
        out: Tensor = x_TD + self.feed_forward(self.norms[-1](x_TD))
        return out


def _feed_forward(block: Mlp | Moe, held: Mlp | Moe, hidden: int, sharding: ShardingStrategy) -> _Mlp | Mixture:
    if isinstance(block, Moe) and isinstance(held, Moe):
        return Mixture(block, held, hidden, sharding)
    assert isinstance(held, Mlp)
    return _Mlp(held, hidden, sharding)


class DecoderModel(nn.Module):
    """Token and target ids [B, S] in, mean loss out. Build it with `build_model`.

    Args:
        architecture: decoder-only.
        recompute: see the module.
        span: the layers and ends that are there; None: all of them. Without both ends there is no `forward`: call
            `embed`, `run_layers` and `loss`.
        sharding: how much of each layer.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        recompute: RecomputeName,
        span: Span | None = None,
        sharding: ShardingStrategy = WHOLE,
    ) -> None:
        super().__init__()
        self.architecture, self._sharding = architecture, sharding
        self.span = span or Span(first=0, stop=len(architecture.decoder), embedding=True, head=True)
        first, last = self.span.embedding, self.span.head
        width, hidden = architecture.embedding_width, architecture.hidden
        vocab, projected = sharding.vocabulary(architecture.vocab), architecture.embedding_width != hidden
        top = architecture.decoder[-1]
        assert top.norm is not None
        tied_head = last and architecture.tied
        self.embedding_VW = nn.Parameter(torch.empty(vocab, width)) if first or tied_head else None
        rows = architecture.learned_positions if first else 0
        self.position_PD = nn.Parameter(torch.empty(rows, hidden)) if rows else None
        self.project_in = nn.Linear(width, hidden, bias=False) if first and projected else None
        self.project_out = nn.Linear(hidden, width, bias=False) if last and projected else None
        held = architecture.decoder[self.span.first : self.span.stop]
        self.layers = nn.ModuleList(_Layer(layer, hidden, recompute=recompute, sharding=sharding) for layer in held)
        self.norm = _Norm(hidden, kind=top.norm, bias=top.norm_bias) if last and architecture.final_norm else None
        self.head_VW = nn.Parameter(torch.empty(vocab, width)) if last and not architecture.tied else None
        self._tables: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def forward(self, tokens_BS: Tensor, targets_BS: Tensor) -> Tensor:
        batch, seq = tokens_BS.shape
        return self.loss(self.run_layers(self.embed(tokens_BS), batch, seq), targets_BS)

    def embed(self, tokens_BS: Tensor) -> Tensor:
        """Token ids to the first layer's input.

        Raises:
            InputError: there are fewer learned positions than tokens in a sequence.
        """
        assert self.embedding_VW is not None
        rows, seq = self.architecture.learned_positions, tokens_BS.shape[1]
        if rows and seq > rows:
            raise InputError(
                f"sequence_length {seq}: {self.architecture.name} has {rows} learned positions; allowed: at most that"
            )
        x = self._sharding.embed(tokens_BS, self.embedding_VW)
        if self.project_in is not None:
            x = self.project_in(x)
        if self.position_PD is not None:
            position_BS = torch.arange(seq, device=tokens_BS.device).expand_as(tokens_BS)
            x = x + functional.embedding(self._sharding.own_rows(position_BS), self.position_PD)
        return x.flatten(0, -2)

    def run_layers(self, x_TD: Tensor, batch: int, seq: int) -> Tensor:
        """The layers that are there; `x_TD` holds that many sequences of that many tokens."""
        positions = self._positions(batch, seq, x_TD)
        for layer in self.layers:
            x_TD = layer(x_TD, positions)
        return x_TD

    def loss(self, x_TD: Tensor, targets_BS: Tensor) -> Tensor:
        """Mean loss, from the last layer's output."""
        if self.norm is not None:
            x_TD = self.norm(x_TD)
        x_TW = x_TD if self.project_out is None else self.project_out(x_TD)
        head_VW = self.embedding_VW if self.head_VW is None else self.head_VW
        assert head_VW is not None
        return self._sharding.loss(x_TW, head_VW, targets_BS.reshape(-1))

    def expert_loads(self) -> list[Tensor]:
        """Rows of each expert [E], one tensor a MoE layer and forward pass since they were cleared."""
        return [load for module in self.modules() if isinstance(module, Mixture) for load in module.loads]

    def clear_expert_loads(self) -> None:
        """Forget the loads counted so far."""
        for module in self.modules():
            if isinstance(module, Mixture):
                module.loads.clear()

    def _positions(self, batch: int, seq: int, like: Tensor) -> Positions:
        attentions = [attention for layer in self.architecture.decoder for attention in layer.attentions]
        widths = {attention.head_dim for attention in attentions if attention.rotary}
        return Positions(batch, seq, {width: self._table(seq, width, like) for width in widths})

    def _table(self, seq: int, head_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary tables, computed once for each length and head width."""
        if (seq, head_dim) not in self._tables:
            cos_Sh, sin_Sh = torch_ops.rotary_tables(seq, head_dim, _ROTARY_THETA, like.device, like.dtype)
            self._tables[seq, head_dim] = cos_Sh.unsqueeze(1), sin_Sh.unsqueeze(1)
        return self._tables[seq, head_dim]


def build_model(
    architecture: Architecture,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    recompute: RecomputeName = "none",
    seed: int = 0,
) -> DecoderModel:
    """A model with fresh weights; see `draw`.

    Args:
        architecture: decoder-only, dropless softmax top-k routing.
        device: where its parameters are allocated; never on the host first.
        dtype: of parameters and activations.
        recompute: what the backward pass computes again; see the module.
        seed: of the weights.

    Raises:
        InputError: the architecture has a part that this backend does not run.
    """
    check_supported(architecture)
    with torch.device("meta"):
        model = DecoderModel(architecture, recompute=recompute)
    model = model.to(dtype=dtype).to_empty(device=device)
    initialise(model, seed)
    return model


@torch.no_grad()
def initialise(model: DecoderModel, seed: int) -> None:
    """Fill every parameter of a model that is whole."""
    for name, parameter in model.named_parameters():
        draw(parameter, name, seed, tied=model.architecture.tied)


@torch.no_grad()
def draw(parameter: Tensor, name: str, seed: int, *, tied: bool) -> None:
    """Fill a parameter: matrices normal with deviation 0.02, norms one, biases zero.

    The values depend on the seed, the name and the shape, and on no other parameter.

    An embedding of its own (not the head's as well) gets unit variance, PyTorch's default: beside it the first
    layers' output, much the same for every token, is small, so that tokens differ where routers see them. With a small
    one, a router sends every token to the same experts.

    Args:
        parameter: whole, in its own precision.
        name: in the whole model.
        seed: of the model.
        tied: whether the embedding is the head's as well.
    """
    if parameter.dim() > 1:
        digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=7).digest()  # a seed has less than 64 bits
        generator = torch.Generator(parameter.device).manual_seed(int.from_bytes(digest))
        std = 1.0 if name == "embedding_VW" and not tied else _INIT_STD
        nn.init.normal_(parameter, std=std, generator=generator)
    elif name.endswith("bias"):
        nn.init.zeros_(parameter)
    else:
        nn.init.ones_(parameter)
