"""`moemodel models`: the architectures that are known, and where their descriptions come from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from moemodel.cli.output import console, echo_json, sources, table

if TYPE_CHECKING:
    from moemodel.model.architecture.spec import Architecture


_SEQUENCE = 4096  # tokens, for shares of FLOPs; shorter where a model's longest is


@click.command("models", short_help="Known architectures, or your own config.json.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models_command(names: tuple[str, ...], as_json: bool) -> None:
    """List known architectures, or describe those named (or your own config.json)."""
    from moemodel.model.architecture.hf_config import list_architectures, read_architecture

    described = [_described(read_architecture(name)) for name in names or list_architectures()]
    if as_json:
        echo_json([asdict(model) for model in described])
        return
    numbers = ("parameters", "active", "layers", "width")
    made = table("Architecture", *numbers, "feed-forward", numbers=numbers)
    for model in described:
        counts = (_count(model.parameters), _count(model.active_parameters), str(model.layers), str(model.hidden))
        made.add_row(model.name, *counts, model.feed_forward)
    out = console()
    out.print(made)
    out.print(sources({model.name: model.source for model in described}))
    if names:
        for model in described:
            out.print(*(f"{model.name}: {note}" for note in model.notes), sep="\n", markup=False)


@dataclass(frozen=True, kw_only=True)
class _Model:
    """What is said of an architecture, in the order of the JSON."""

    name: str
    parameters: int
    active_parameters: int
    layers: int
    encoder_layers: int
    hidden: int
    vocab: int
    max_sequence: int | None
    feed_forward: str
    source: str
    notes: tuple[str, ...]


def _described(architecture: Architecture) -> _Model:
    from moemodel.model.layers.multi_token import multi_token_note
    from moemodel.model.layers.parameters import parameters

    counted = parameters(architecture)
    left_out = multi_token_note(architecture, min(architecture.max_seq or _SEQUENCE, _SEQUENCE))
    return _Model(
        name=architecture.name,
        parameters=counted.total,
        active_parameters=counted.active,
        layers=len(architecture.layers),
        encoder_layers=len(architecture.encoder),
        hidden=architecture.hidden,
        vocab=architecture.vocab,
        max_sequence=architecture.max_seq,
        feed_forward=_feed_forward(architecture),
        source=architecture.source,
        notes=(*architecture.notes, *([left_out] if left_out else [])),
    )


def _feed_forward(architecture: Architecture) -> str:
    """Dense, or the experts; with an encoder or not."""
    from moemodel.model.architecture.spec import Moe

    blocks = (layer.feed_forward for layer in architecture.layers)
    routed = next((block for block in blocks if isinstance(block, Moe)), None)
    kind = "dense" if routed is None else f"{routed.experts} experts, top {routed.top_k}"
    return f"{kind}, encoder-decoder" if architecture.encoder else kind


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"
