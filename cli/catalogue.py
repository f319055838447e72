"""`moemodel models` and `moemodel gpus`: what is known, and where it comes from."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from moemodel.cli.output import console, echo_json, table

if TYPE_CHECKING:
    from moemodel.model.architecture.spec import Architecture
    from moemodel.model.hardware.gpu import Gpu

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command("models")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@_json
def models_command(names: tuple[str, ...], as_json: bool) -> None:
    """List known architectures, or describe those named (or your own config.json)."""
    from moemodel.model.architecture.hf_config import list_architectures, read_architecture

    described = [_model(read_architecture(name)) for name in names or list_architectures()]
    if as_json:
        echo_json(described)
        return
    numbers = ("parameters", "active", "layers", "width")
    made = table("Architecture", *numbers, "feed-forward", numbers=numbers)
    for model in described:
        made.add_row(
            str(model["name"]),
            _count(model["parameters"]),
            _count(model["active_parameters"]),
            str(model["layers"]),
            str(model["hidden"]),
            str(model["feed_forward"]),
        )
    out = console()
    out.print(made)
    out.print(_sources({str(model["name"]): str(model["source"]) for model in described}))


@click.command("gpus")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@_json
def gpus_command(names: tuple[str, ...], as_json: bool) -> None:
    """List known GPUs and their calibrations, or describe those named, value by value with its source."""
    from moemodel.model.hardware.gpu import list_gpus, read_gpu

    found = [read_gpu(name) for name in names or list_gpus()]
    if as_json:
        echo_json([_gpu(gpu) for gpu in found])
        return
    out = console()
    if names:
        for gpu in found:
            out.print(*_values(gpu), sep="\n")
        return
    numbers = ("memory GB", "TB/s", "bf16 TFLOP/s", "W", "MHz")
    made = table("GPU", *numbers, "calibration", numbers=numbers)
    for gpu in found:
        peak = gpu.peaks.get("bf16")
        made.add_row(
            gpu.name,
            _scaled(gpu.memory_B, 1e9, ".1f"),
            _scaled(gpu.memory_bandwidth_Bps, 1e12, ".2f"),
            _scaled(None if peak is None else peak.flops_per_s, 1e12, ".0f"),
            _scaled(gpu.power_limit_W, 1.0, ".0f"),
            f"{_scaled(gpu.clock_min_Hz, 1e6, '.0f')}-{_scaled(gpu.clock_max_Hz, 1e6, '.0f')}",
            "ships" if _provenance(gpu) else "none",
        )
    out.print(made)
    out.print(_sources({gpu.name: text for gpu in found if (text := _provenance(gpu))}, "Calibrations"))
    out.print("`moemodel gpus NAME` gives the source of every value; `moemodel profile` measures a GPU of your own.")


def _model(architecture: Architecture) -> dict[str, Any]:
    from moemodel.model.layers.parameters import parameters

    counted = parameters(architecture)
    return {
        "name": architecture.name,
        "parameters": counted.total,
        "active_parameters": counted.active,
        "layers": len(architecture.layers),
        "encoder_layers": len(architecture.encoder),
        "hidden": architecture.hidden,
        "vocab": architecture.vocab,
        "max_sequence": architecture.max_seq,
        "feed_forward": _feed_forward(architecture),
        "source": architecture.source,
    }


def _feed_forward(architecture: Architecture) -> str:
    """Dense, or the experts; with an encoder or not."""
    from moemodel.model.architecture.spec import Moe

    blocks = (layer.feed_forward for layer in architecture.layers)
    routed = next((block for block in blocks if isinstance(block, Moe)), None)
    kind = "dense" if routed is None else f"{routed.experts} experts, top {routed.top_k}"
    return f"{kind}, encoder-decoder" if architecture.encoder else kind


def _gpu(gpu: Gpu) -> dict[str, Any]:
    values = {f.name: getattr(gpu, f.name) for f in fields(gpu) if f.name not in ("peaks", "sources", "aliases")}
    peaks = {
        str(dtype): {"flops_per_s": peak.flops_per_s, "clock_Hz": peak.clock_Hz} for dtype, peak in gpu.peaks.items()
    }
    calibration = _provenance(gpu) or None
    return values | {
        "aliases": list(gpu.aliases),
        "peaks": peaks,
        "sources": dict(gpu.sources),
        "calibration": calibration,
    }


def _provenance(gpu: Gpu) -> str:
    """What the shipped calibration of a GPU rests on; empty if none ships."""
    from moemodel.calibration.store.catalogue import list_calibrations, shipped

    return shipped(gpu.name).provenance if gpu.name in list_calibrations() else ""


def _values(gpu: Gpu) -> list[Any]:
    """Every value of a GPU with the number of its source, and the sources."""
    sources = list(dict.fromkeys(gpu.sources.values()))
    made = table("value", "", "source", title=f"{gpu.name}: {gpu.product}", numbers=("", "source"))
    for name, source in gpu.sources.items():
        head, _, dtype = name.partition(".")
        value = gpu.peak(dtype).flops_per_s if head == "peaks" else getattr(gpu, name)
        made.add_row(f"{name} flops_per_s" if dtype else name, f"{value:.6g}", str(sources.index(source) + 1))
    return [made, _sources({str(number): source for number, source in enumerate(sources, start=1)})]


def _sources(texts: dict[str, str], title: str = "Sources") -> Any:
    made = table(title, "")
    for name, text in texts.items():
        made.add_row(name, text)
    return made


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


def _scaled(value: float | None, size: float, form: str) -> str:
    return "?" if value is None else format(value / size, form)
