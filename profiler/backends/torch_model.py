"""A decoder-only architecture as a PyTorch module, built of the operators in `profiler.torch_ops`.

What the profiler times operator by operator is what this model runs, so a prediction can be checked against it.
Choices that a prediction has to share:

- Norms come first in a layer (pre-norm), whatever the original did: the operators are the same.
- Queries, keys, values and output are four products. Gate and up-projection are two in a dense block and one of
  width 2F in experts, of which `swiglu` reads the two halves in place.
- Learned positions are looked up for every token, as Hugging Face's models do.
- Activations between blocks are [T, D]. The head's logits are in the model's precision, the loss in float32.
- Routers have no auxiliary loss: it costs next to nothing, and the load is measured, not assumed.

Recompute. `full`: a layer keeps its input and runs again in the backward pass. `selective`: the attention core runs
again, as in Megatron (Korthikanti et al. 2022, section 5); with a flash kernel, which keeps no score matrix, that
costs a forward kernel and saves only the softmax statistics (4 bytes a head and token), so it is there to be
measured, not to be recommended.

Shapes: T tokens (batch x seq), D hidden, B batch, H heads, G key/value heads, S seq, K head_dim, E experts, k experts
per token, F width, R = T k rows, V vocabulary, W embedding width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from moemodel.model.architecture import Architecture, Attention, Layer, Mlp, Moe
from moemodel.model.errors import InputError
from moemodel.model.plan import RecomputeName
from moemodel.profiler import torch_ops

_INIT_STD = 0.02  # GPT-2 (Radford et al. 2019) and most models since
_ROTARY_THETA = 10_000.0  # any base costs the same
_LOADS_KEPT = 1024  # forward passes whose expert counts a layer remembers


@dataclass(frozen=True)
class Positions:
    """How [T, D] rows are sequences, and the rotary tables [S, 1, K/2] by head width."""

    batch: int
    seq: int
    rotary: dict[int, tuple[Tensor, Tensor]]


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
    def __init__(self, attention: Attention, hidden: int, *, recompute: bool) -> None:
        super().__init__()
        self._shape, self._recompute = attention, recompute
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
        q_BHSK = self._heads(self.q(x_TD), self.q_norm, positions)
        k_BGSK = self._heads(self.k(x_TD), self.k_norm, positions)
        v_BGSK = self._split(self.v(x_TD), positions).transpose(1, 2)
        y_BHSK = self._core(q_BHSK, k_BGSK, v_BGSK)
        out: Tensor = self.o(y_BHSK.transpose(1, 2).reshape(x_TD.shape[0], -1))
        return out

    def _heads(self, x: Tensor, norm: _Norm | None, positions: Positions) -> Tensor:
        """Normalise over the full width or each head, rotate, and bring heads before the sequence.

        In memory the sequence stays before the heads: a flash kernel's output has the layout of its queries, and so
        needs no copy to become rows again.
        """
        if norm is not None and self._shape.qk_norm == "full":
            x = norm(x)
        x_BSHK = self._split(x, positions)
        if norm is not None and self._shape.qk_norm == "per_head":
            x_BSHK = norm(x_BSHK)
        if self._shape.rotary:
            x_BSHK = torch_ops.rotary(x_BSHK, *positions.rotary[self._shape.head_dim])
        return x_BSHK.transpose(1, 2)

    def _split(self, x: Tensor, positions: Positions) -> Tensor:
        return x.view(positions.batch, positions.seq, -1, self._shape.head_dim)

    def _core(self, q_BHSK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor) -> Tensor:
        if not (self._recompute and torch.is_grad_enabled()):
            return torch_ops.attention(q_BHSK, k_BGSK, v_BGSK, self._shape.causal)
        out: Tensor = checkpoint(
            torch_ops.attention,
            q_BHSK,
            k_BGSK,
            v_BGSK,
            self._shape.causal,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        return out


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
    def __init__(self, block: Mlp, hidden: int) -> None:
        super().__init__()
        self._activation = block.activation
        self.gate = nn.Linear(hidden, block.width, bias=block.bias) if block.gated else None
        self.up = nn.Linear(hidden, block.width, bias=block.bias)
        self.down = nn.Linear(block.width, hidden, bias=block.bias)

    def forward(self, x_TD: Tensor) -> Tensor:
        out: Tensor = self.down(self._inner(x_TD))
        return out

    def _inner(self, x_TD: Tensor) -> Tensor:
        if self.gate is None:
            return _PLAIN[self._activation](self.up(x_TD))
        return _GATES[self._activation](self.gate(x_TD), self.up(x_TD))


class _Moe(nn.Module):
    """Dropless experts: rows sorted by expert, two grouped products, rows weighted and added back."""

    def __init__(self, block: Moe, hidden: int) -> None:
        super().__init__()
        self._block = block
        self.router = nn.Linear(hidden, block.experts, bias=False)
        self.up_EDF = nn.Parameter(torch.empty(block.experts, hidden, block.width * (2 if block.gated else 1)))
        self.down_EFD = nn.Parameter(torch.empty(block.experts, block.width, hidden))
        shared = Mlp(width=block.shared_width, activation=block.activation, gated=block.gated, bias=block.bias)
        self.shared = _Mlp(shared, hidden) if block.shared_width else None
        self.shared_gate = nn.Linear(hidden, 1, bias=False) if block.shared_gate else None
        self.loads: deque[Tensor] = deque(maxlen=_LOADS_KEPT)  # rows of each expert, one tensor [E] a forward pass

    def forward(self, x_TD: Tensor) -> Tensor:
        y_TD = self._routed(x_TD)
        if self.shared is None:
            return y_TD
        shared_TD: Tensor = self.shared(x_TD)
        if self.shared_gate is not None:
            shared_TD = torch.sigmoid(self.shared_gate(x_TD)) * shared_TD
        return y_TD + shared_TD

    def _routed(self, x_TD: Tensor) -> Tensor:
        block = self._block
        weight_Tk, expert_Tk = torch_ops.route(self.router(x_TD), block.top_k)
        d = torch_ops.dispatch(expert_Tk, block.experts)
        self.loads.append(d.counts_E)
        x_RF = self._inner(torch_ops.permute(x_TD, d, block.top_k), d.offsets_E)
        return torch_ops.unpermute(torch_ops.grouped_linear(x_RF, self.down_EFD, d.offsets_E), weight_Tk, d)

    def _inner(self, x_RD: Tensor, offsets_E: Tensor) -> Tensor:
        up = torch_ops.grouped_linear(x_RD, self.up_EDF, offsets_E)
        if self._block.gated:
            return _GATES[self._block.activation](*up.chunk(2, dim=-1))
        return _PLAIN[self._block.activation](up)


class _Layer(nn.Module):
    def __init__(self, layer: Layer, hidden: int, *, recompute: RecomputeName) -> None:
        super().__init__()
        self._recompute = recompute == "full"
        assert layer.norm is not None
        norms = [_Norm(hidden, kind=layer.norm, bias=layer.norm_bias) for _ in range(len(layer.attentions) + 1)]
        self.norms = nn.ModuleList(norms)
        core = recompute == "selective"
        self.attentions = nn.ModuleList(_Attention(a, hidden, recompute=core) for a in layer.attentions)
        block = layer.feed_forward
        self.feed_forward = _Mlp(block, hidden) if isinstance(block, Mlp) else _Moe(block, hidden)

    def forward(self, x_TD: Tensor, positions: Positions) -> Tensor:
        if not (self._recompute and torch.is_grad_enabled()):
            return self._run(x_TD, positions)
        out: Tensor = checkpoint(self._run, x_TD, positions, use_reentrant=False, preserve_rng_state=False)
        return out

    def _run(self, x_TD: Tensor, positions: Positions) -> Tensor:
        for norm, attention in zip(self.norms, self.attentions, strict=False):  # the last norm is the feed-forward's
            x_TD = x_TD + attention(norm(x_TD), positions)
        out: Tensor = x_TD + self.feed_forward(self.norms[-1](x_TD))
        return out


class DecoderModel(nn.Module):
    """Token and target ids [B, S] in, mean loss out. Build it with `build_model`."""

    def __init__(self, architecture: Architecture, *, recompute: RecomputeName) -> None:
        super().__init__()
        self.architecture = architecture
        width, hidden, vocab = architecture.embedding_width, architecture.hidden, architecture.vocab
        last = architecture.decoder[-1]
        assert last.norm is not None
        self.embedding_VW = nn.Parameter(torch.empty(vocab, width))
        rows = architecture.learned_positions
        self.position_PD = nn.Parameter(torch.empty(rows, hidden)) if rows else None
        self.project_in = nn.Linear(width, hidden, bias=False) if width != hidden else None
        self.project_out = nn.Linear(hidden, width, bias=False) if width != hidden else None
        self.layers = nn.ModuleList(_Layer(layer, hidden, recompute=recompute) for layer in architecture.decoder)
        self.norm = _Norm(hidden, kind=last.norm, bias=last.norm_bias) if architecture.final_norm else None
        self.head_VW = None if architecture.tied else nn.Parameter(torch.empty(vocab, width))
        self._tables: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def forward(self, tokens_BS: Tensor, targets_BS: Tensor) -> Tensor:
        positions = self._positions(*tokens_BS.shape)
        x_TD = self._embed(tokens_BS)
        for layer in self.layers:
            x_TD = layer(x_TD, positions)
        if self.norm is not None:
            x_TD = self.norm(x_TD)
        x_TW = x_TD if self.project_out is None else self.project_out(x_TD)
        head_VW = self.embedding_VW if self.head_VW is None else self.head_VW
        return torch_ops.cross_entropy(functional.linear(x_TW, head_VW), targets_BS.reshape(-1))

    def expert_loads(self) -> list[Tensor]:
        """Rows of each expert [E], one tensor a MoE layer and forward pass since they were cleared."""
        return [load for module in self.modules() if isinstance(module, _Moe) for load in module.loads]

    def clear_expert_loads(self) -> None:
        """Forget the loads counted so far."""
        for module in self.modules():
            if isinstance(module, _Moe):
                module.loads.clear()

    def _embed(self, tokens_BS: Tensor) -> Tensor:
        x_BSD = functional.embedding(tokens_BS, self.embedding_VW)
        if self.project_in is not None:
            x_BSD = self.project_in(x_BSD)
        if self.position_PD is not None:
            position_BS = torch.arange(tokens_BS.shape[1], device=tokens_BS.device).expand_as(tokens_BS)
            x_BSD = x_BSD + functional.embedding(position_BS, self.position_PD)
        return x_BSD.flatten(0, 1)

    def _positions(self, batch: int, seq: int) -> Positions:
        rows = self.architecture.learned_positions
        if rows and seq > rows:
            raise InputError(
                f"sequence_length {seq}: {self.architecture.name} has {rows} learned positions; allowed: at most that"
            )
        attentions = [attention for layer in self.architecture.decoder for attention in layer.attentions]
        widths = {attention.head_dim for attention in attentions if attention.rotary}
        return Positions(batch, seq, {width: self._table(seq, width) for width in widths})

    def _table(self, seq: int, head_dim: int) -> tuple[Tensor, Tensor]:
        """Rotary tables, computed once for each length and head width."""
        if (seq, head_dim) not in self._tables:
            like = self.embedding_VW
            cos_Sh, sin_Sh = torch_ops.rotary_tables(seq, head_dim, _ROTARY_THETA, like.device, like.dtype)
            self._tables[seq, head_dim] = cos_Sh.unsqueeze(1), sin_Sh.unsqueeze(1)
        return self._tables[seq, head_dim]


def build_model(
    architecture: Architecture, *, device: torch.device | str, dtype: torch.dtype, recompute: RecomputeName = "none"
) -> DecoderModel:
    """A model with fresh weights (normal, std 0.02; norms 1, biases 0) drawn from torch's global generator.

    Args:
        architecture: decoder-only, dropless softmax top-k routing.
        device: where its parameters are allocated; never on the host first.
        dtype: of parameters and activations.
        recompute: what the backward pass computes again; see the module.

    Raises:
        InputError: the architecture has a part that this backend does not run.
    """
    check_supported(architecture)
    with torch.device("meta"):
        model = DecoderModel(architecture, recompute=recompute)
    model = model.to(dtype=dtype).to_empty(device=device)
    initialise(model)
    return model


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Fill every parameter: matrices normal, norms one, biases zero.

    An embedding of its own (not the head's as well) gets unit variance, PyTorch's default: beside it the first
    layers' output, much the same for every token, is small, so that tokens differ where routers see them. With a small
    one, a router sends every token to the same experts.
    """
    untied = {"embedding_VW"} if getattr(model, "head_VW", None) is not None else set()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.0 if name in untied else _INIT_STD)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.ones_(parameter)


def check_supported(architecture: Architecture) -> None:
    """Refuse what this backend does not run.

    Raises:
        InputError: every such part of the architecture.
    """
    missing = _model_gaps(architecture)
    for layer in dict.fromkeys(architecture.layers):
        missing += _layer_gaps(layer)
    if missing:
        raise InputError(
            f"{architecture.name}: the torch backend does not run {', '.join(dict.fromkeys(missing))}; it runs "
            "decoder-only models with plain or grouped-query attention and dropless softmax top-k experts. "
            "`moemodel predict` takes all architectures"
        )


def _model_gaps(architecture: Architecture) -> list[str]:
    gaps = {
        "encoders": bool(architecture.encoder),
        "models without layers": not architecture.decoder,
        "models without a vocabulary head": not architecture.has_head,
    }
    return [name for name, found in gaps.items() if found]


def _layer_gaps(layer: Layer) -> list[str]:
    block = layer.feed_forward
    gaps = {
        "layers without norms": layer.norm is None,
        "cross attention": any(a.cross for a in layer.attentions),
        "latent attention": any(a.latent is not None for a in layer.attentions),
        "relative position biases": any(a.relative_buckets > 0 for a in layer.attentions),
        "feed-forward blocks of more than one hidden layer": block.depth != 1,
        "feed-forward blocks of another output width": block.out_width is not None,
    }
    if isinstance(block, Moe):
        gaps |= {
            f"{block.router} routers": block.router != "softmax_topk",
            "expert biases": block.bias,
            "router bias corrections": block.router_bias,
            "capacity factors": block.capacity_factor is not None,
        }
    return [name for name, found in gaps.items() if found]
