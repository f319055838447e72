"""How tensor and expert parallelism cut each parameter, by its name in the whole model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from moemodel.model.architecture.spec import Architecture
from moemodel.profiler.backends.torch_native.model import DecoderModel, draw
from moemodel.profiler.backends.torch_native.rank_mesh import RankMesh
from moemodel.profiler.backends.torch_native.vocab_parallel import Rows


@dataclass(frozen=True, kw_only=True)
class Share:
    """How a parameter is cut.

    Attributes:
        dim: that tp cuts; None: every tensor-parallel rank holds all of it.
        expert: its first dimension is the experts, which ep shares out.
        halves: the dimension holds a gate and an up-projection, each of which is cut.
        vocabulary: the dimension is the vocabulary, whose parts may be uneven.
        partial: the gradient of a parameter that is on every tensor-parallel rank is a part of a sum over them
            ("always"), or is so under sequence parallelism, where each rank saw its rows only ("sequence").
    """

    dim: int | None = None
    expert: bool = False
    halves: bool = False
    vocabulary: bool = False
    partial: Literal["never", "always", "sequence"] = "never"


_COLUMNS, _ROWS = Share(dim=0), Share(dim=1)
_BETWEEN = Share(partial="sequence")  # seen by the rows between blocks
_EACH = Share(partial="always")  # used with a part of the heads, or of the experts' width

_SHARES: tuple[tuple[str, Share], ...] = (
    (r"embedding_VW|head_VW", Share(dim=0, vocabulary=True)),
    (r"position_PD|project_(in|out)\.weight|norm\.\w+|layers\.\d+\.norms\.\d+\.\w+", _BETWEEN),
    (r".*\.[qkv]\.(weight|bias)|.*\.(gate|up)\.(weight|bias)", _COLUMNS),
    (r".*\.(o|down)\.weight", _ROWS),
    (r".*\.(o|down)\.bias", _BETWEEN),
    (r".*\.(router|shared_gate)\.weight", _EACH),
    (r".*\.experts\.down_EFD", Share(dim=1, expert=True)),
)


def share_of(name: str, architecture: Architecture) -> Share:
    """How the parameter of this name in the whole model is cut."""
    if re.fullmatch(r".*\.[qk]_norm\.weight", name):
        layer = architecture.decoder[int(name.split(".")[1])]
        attention = layer.attentions[int(name.split(".")[3])]
        return _COLUMNS if attention.qk_norm == "full" else _EACH
    if name.endswith(".experts.up_EDF"):
        block = architecture.decoder[int(name.split(".")[1])].feed_forward
        return Share(dim=2, expert=True, halves=bool(getattr(block, "gated", False)))
    for pattern, share in _SHARES:
        if re.fullmatch(pattern, name):
            return share
    raise AssertionError(f"no rule says how {name} is cut")


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


def held(whole: Tensor, share: Share, place: RankMesh) -> Tensor:
    """The part of a whole parameter that a rank holds."""
    if share.expert:
        whole = whole.chunk(place.mesh.ep)[place.at.ep]
    tp = place.mesh.tp
    if share.dim is None or tp == 1:
        return whole
    if share.vocabulary:
        rows = Rows.of(whole.shape[0], place.at.tp, tp)
        return whole[rows.first : rows.stop]
    halves = whole.chunk(2, share.dim) if share.halves else (whole,)
    return torch.cat([half.chunk(tp, share.dim)[place.at.tp] for half in halves], share.dim)


@torch.no_grad()
def initialise_part(model: DecoderModel, seed: int, place: RankMesh) -> None:
    """Give a part of a model the weights that the whole one would have; one whole parameter is there at a time."""
    architecture = model.architecture
    with torch.device("meta"):
        whole_model = DecoderModel(architecture, recompute="none")
    shapes = {name: parameter.shape for name, parameter in whole_model.named_parameters()}
    for name, parameter in whole_names(model):
        share = share_of(name, architecture)
        if parameter.shape == shapes[name]:
            draw(parameter, name, seed, tied=architecture.tied)
            continue
        whole = torch.empty(shapes[name], dtype=parameter.dtype, device=parameter.device)
        draw(whole, name, seed, tied=architecture.tied)
        parameter.copy_(held(whole, share, place))
