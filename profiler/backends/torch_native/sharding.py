"""How tensor and expert parallelism shard each parameter, by its name in the whole model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from moemodel.model.architecture.spec import Architecture, Layer
from moemodel.profiler.backends.torch_native.layer import Making
from moemodel.profiler.backends.torch_native.model import DecoderModel, draw, has_small_embedding, model_of
from moemodel.profiler.backends.torch_native.rank_mesh import RankMesh
from moemodel.profiler.backends.torch_native.vocab_parallel import Rows


@dataclass(frozen=True, kw_only=True)
class ShardSpec:
    """How a parameter is sharded.

    Attributes:
        dim: that tp shards; None: every tensor-parallel rank holds all of it.
        expert: its first dimension is the experts, which ep shares out.
        halves: the dimension holds a gate and an up-projection, each of which is sharded.
        vocabulary: the dimension is the vocabulary, whose parts may be uneven.
        partial: the gradient of a parameter that is on every tensor-parallel rank is a part of a sum over them
            ("always"), or is so under sequence parallelism, where each rank saw its rows only ("sequence").
    """

    dim: int | None = None
    expert: bool = False
    halves: bool = False
    vocabulary: bool = False
    partial: Literal["never", "always", "sequence"] = "never"


_COLUMNS, _ROWS = ShardSpec(dim=0), ShardSpec(dim=1)
_BETWEEN = ShardSpec(partial="sequence")  # seen by the rows between blocks
_EACH = ShardSpec(partial="always")  # used with a part of the heads, or of the experts' width

_SPECS: tuple[tuple[str, ShardSpec], ...] = (
    (r"embedding_VW|head_VW", ShardSpec(dim=0, vocabulary=True)),
    (r"position_PD|project_(in|out)\.weight|(encoder_)?(norm\.\w+|layers\.\d+\.norms\.\d+\.\w+)", _BETWEEN),
    (r"(en|de)coder_bias_UH", _ROWS),
    (r".*\.[qkv]\.(weight|bias)|.*\.(gate|up)\.(weight|bias)", _COLUMNS),
    (r".*\.(o|down)\.weight", _ROWS),
    (r".*\.(o|down)\.bias", _BETWEEN),
    (r".*\.(router|noise|shared_gate|coefficient)\.(weight|bias)", _EACH),
    (r".*\.experts\.down_EFD", ShardSpec(dim=1, expert=True)),
)


def shard_spec(name: str, architecture: Architecture) -> ShardSpec:
    """How the parameter of this name in the whole model is sharded."""
    if re.fullmatch(r".*\.[qk]_norm\.weight", name):
        layer = _layer(name, architecture)
        attention = layer.attentions[int(name.split(".")[3])]
        return _COLUMNS if attention.qk_norm == "full" else _EACH
    if name.endswith(".experts.up_EDF"):
        block = _layer(name, architecture).feed_forward
        return ShardSpec(dim=2, expert=True, halves=bool(getattr(block, "gated", False)))
    for pattern, spec in _SPECS:
        if re.fullmatch(pattern, name):
            return spec
    raise AssertionError(f"no rule says how {name} is sharded")


def _layer(name: str, architecture: Architecture) -> Layer:
    """What the architecture says of the layer that a parameter of the whole model is in."""
    stack, number, *_ = name.split(".")
    return (architecture.encoder if stack == "encoder_layers" else architecture.decoder)[int(number)]


def whole_names(model: DecoderModel) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters and their names in the whole model, of which this may be some layers."""
    for name, parameter in model.named_parameters():
        yield whole_name(name, model), parameter


def whole_name(name: str, model: DecoderModel) -> str:
    """The name in the whole model."""
    parts = name.split(".")
    if parts[0] == "layers":
        parts[1] = str(int(parts[1]) + model.span.first)
    return ".".join(parts)


def held(whole: Tensor, spec: ShardSpec, place: RankMesh) -> Tensor:
    """The part of a whole parameter that a rank holds."""
    if spec.expert:
        whole = whole.chunk(place.mesh.ep)[place.at.ep]
    tp = place.mesh.tp
    if spec.dim is None or tp == 1:
        return whole
    if spec.vocabulary:
        rows = Rows.of(whole.shape[0], place.at.tp, tp)
        return whole[rows.first : rows.stop]
    halves = whole.chunk(2, spec.dim) if spec.halves else (whole,)
    return torch.cat([half.chunk(tp, spec.dim)[place.at.tp] for half in halves], spec.dim)


@torch.no_grad()
def initialise_part(model: DecoderModel, seed: int, place: RankMesh) -> None:
    """Give a part of a model the weights that the whole one would have; one whole parameter is there at a time."""
    architecture = model.architecture
    with torch.device("meta"):
        whole_model = model_of(architecture, Making(routing=model.making.routing))
    shapes = {name: parameter.shape for name, parameter in whole_model.named_parameters()}
    for name, parameter in whole_names(model):
        spec = shard_spec(name, architecture)
        if parameter.shape == shapes[name]:
            draw(parameter, name, seed, tied=has_small_embedding(architecture))
            continue
        whole = torch.empty(shapes[name], dtype=parameter.dtype, device=parameter.device)
        draw(whole, name, seed, tied=has_small_embedding(architecture))
        parameter.copy_(held(whole, spec, place))
