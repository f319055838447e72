"""`moemodel gpus`: the GPUs that are known, what can be predicted on each, and the source of every value."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import click

from moemodel.cli.output import console, echo_json, sources, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from moemodel.model.hardware.gpu import Gpu


# What a GPU's calibration is, and what can be done with it.
_STANDINGS = {
    "measured": "All is predicted, by what this project measured on that GPU.",
    "fitted": "All is predicted, by a calibration fitted to what others published: intervals are wider.",
    "derived": "All is predicted, by a calibration taken over from the nearest GPU that has one: intervals are as wide "
    "as that has proved wrong. `moemodel profile` on such a GPU, then `moemodel calibrate`, makes one of its own.",
    "needs a profile": "Memory, whether a plan fits, FLOPs, bytes and volumes of communication. Time, power and energy "
    "need a calibration: `moemodel profile` on such a GPU, then `moemodel calibrate`.",
}


@click.command("gpus", short_help="Known GPUs, and what can be predicted on each.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gpus_command(names: tuple[str, ...], as_json: bool) -> None:
    """List known GPUs and what can be predicted on each, or describe those named, value by value with its source."""
    from moemodel.calibration.derive.record import deriving_record
    from moemodel.model.hardware.gpu import list_gpus, read_gpu

    found = [read_gpu(name) for name in names or list_gpus()]
    if as_json:
        echo_json([_gpu(gpu) for gpu in found])
        return
    out = console()
    if names:
        for gpu in found:
            out.print(*_values(gpu), sep="\n")
            out.print(f"{_standing(gpu)}: {_STANDINGS[_standing(gpu)]}")
        return
    numbers = ("memory GB", "TB/s", "16b TFLOP/s", "W", "MHz")
    made = table("GPU", *numbers, "calibration", numbers=numbers)
    standings = {gpu.name: _standing(gpu) for gpu in found}
    for gpu in found:
        peak = gpu.peak_16_bit
        made.add_row(
            gpu.name,
            _scaled(gpu.memory_B, 1e9, ".1f"),
            _scaled(gpu.memory_bandwidth_Bps, 1e12, ".2f"),
            _scaled(None if peak is None else peak.flops_per_s, 1e12, ".0f"),
            _scaled(gpu.power_limit_W, 1.0, ".0f"),
            _range_MHz(gpu),
            standings[gpu.name],
        )
    out.print(made)
    named = {standing: text for standing, text in _STANDINGS.items() if standing in standings.values()}
    out.print(sources(named, "What can be done"))
    out.print(sources({gpu.name: text for gpu in found if (text := _provenance(gpu))}, "Calibrations"))
    out.print("How wrong deriving has been:", *(deriving_record(same_architecture=same).told for same in (True, False)))
    out.print("`moemodel gpus NAME` gives the source of every value; `moemodel profile` measures a GPU of your own.")


def _gpu(gpu: Gpu) -> dict[str, object]:
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
        "standing": _standing(gpu),
    }


def _provenance(gpu: Gpu) -> str:
    """What the calibration of a GPU rests on; empty if there is none."""
    from moemodel.calibration.store.catalogue import derived_from, load_calibration

    standing = _standing(gpu)
    if standing == "needs a profile":
        return ""
    base = derived_from(gpu)
    if standing == "derived" and base is not None:
        return f"Derived from {base.name}."
    return load_calibration(None, gpu.name).provenance


def _standing(gpu: Gpu) -> str:
    """Which of `_STANDINGS` a GPU has: measured where most of its operators' parameters are."""
    from moemodel.calibration.store.catalogue import derived_from, list_calibrations, shipped

    if gpu.name not in list_calibrations():
        return "needs a profile" if derived_from(gpu) is None else "derived"
    origins = [p.origin for operator in shipped(gpu.name).operators for p in operator.parameters.values()]
    return "measured" if origins.count("measured") > len(origins) / 2 else "fitted"


def _values(gpu: Gpu) -> list[RenderableType]:
    """Every value of a GPU with the number of its source, and the sources."""
    texts = list(dict.fromkeys(gpu.sources.values()))
    made = table("value", "", "source", title=f"{gpu.name}: {gpu.product}", numbers=("", "source"))
    for name, source in gpu.sources.items():
        head, _, dtype = name.partition(".")
        value = gpu.peak(dtype).flops_per_s if head == "peaks" else getattr(gpu, name)
        made.add_row(f"{name} flops_per_s" if dtype else name, _text(value), str(texts.index(source) + 1))
    return [made, sources({str(number): source for number, source in enumerate(texts, start=1)})]


def _text(value: float | tuple[tuple[int, int], ...]) -> str:
    """A value, or sizes of tiles."""
    if isinstance(value, tuple):
        return ", ".join(f"{rows}x{columns}" for rows, columns in value)
    return f"{value:.6g}"


def _range_MHz(gpu: Gpu) -> str:
    """Lowest to highest clock; one question mark where neither is known."""
    ends = [_scaled(clock_Hz, 1e6, ".0f") for clock_Hz in (gpu.clock_min_Hz, gpu.clock_max_Hz)]
    return "?" if ends == ["?", "?"] else "-".join(ends)


def _scaled(value: float | None, size: float, form: str) -> str:
    return "?" if value is None else format(value / size, form)
