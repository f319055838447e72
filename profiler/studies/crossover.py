"""The crossover study on the GPU at hand: passes of each of its models in a row, under the meter.

    python -m moemodel.profiler.studies.crossover OUT.json [--device cuda:0] [--seconds 3] [--repeats 2] [--tiny]

What is run, and what is known of the published study, say `perceptrons` and `model.results.crossover`. As there the
host waits for the device before and after every pass, products are of float32 without TF32, and the input is one batch
of normally distributed features. Other than there: weights are as torch initialises them, not trained; a model runs for
seconds, not half a minute. Clocks are left as they are; energy is the GPU's counter (`meter`).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.errors import DeviceError
from moemodel.model.core.files import write_atomic
from moemodel.model.results.crossover import BATCH, SIZES, Form, architecture_name
from moemodel.profiler.devices.memory import free_memory
from moemodel.profiler.meter.energy_meter import Meter
from moemodel.profiler.studies.perceptrons import ChosenExperts, EveryExpert, build

_WARM_S = 1.0  # before a model is metered: clocks and libraries settle
_TINY_WIDTH = 16  # of hidden layers, for tests of the study itself
_PRESETS: tuple[Form, ...] = ("dense", "every")  # one preset each; the second holds both forms of the mixture

Progress = Callable[[str, str], None]


def measure(
    device: torch.device,
    *,
    seconds: float = 3.0,
    repeats: int = 2,
    tiny: bool = False,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Every model of the study on a device: inferences per second and joule, W.

    Args:
        device: where it runs.
        seconds: of each repeat of a model.
        repeats: stretches that are metered apart, at least 1.
        tiny: models of a few hundred parameters instead, which shows that it works and nothing else.
        progress: is told size and form before each is measured.
    """
    torch.manual_seed(0)
    cases: list[dict[str, Any]] = []
    with _without_tf32():
        for size in SIZES:
            for preset in _PRESETS:
                cases += _cases(size, preset, device, seconds=seconds, repeats=repeats, tiny=tiny, progress=progress)
                free_memory(device)
    return {
        "study": "crossover",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "batch": BATCH,
        "tf32": False,
        "tiny": tiny,
        "seconds": seconds,
        "repeats": repeats,
        "cases": cases,
    }


@contextmanager
def _without_tf32() -> Iterator[None]:
    """As torch is by default; what the caller has set comes back."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _cases(
    size: str, preset: Form, device: torch.device, *, seconds: float, repeats: int, tiny: bool, progress: Progress
) -> list[dict[str, Any]]:
    """The forms of one preset, one after another."""
    architecture = read_architecture(architecture_name(size, preset))
    if tiny:
        architecture = _narrow(architecture)
    x_BD = torch.randn(BATCH, architecture.hidden, device=device)
    found = []
    for form, model in build(architecture, device).items():
        progress(size, form)
        rate = _metered(model, x_BD, seconds=seconds, repeats=repeats)
        found.append({"size": size, "form": form, "architecture": architecture.name, **_loads(model, x_BD), **rate})
    return found


def _narrow(architecture: Architecture) -> Architecture:
    layer = architecture.decoder[0]
    block = replace(layer.own_feed_forward, width=_TINY_WIDTH)
    return replace(architecture, decoder=(replace(layer, feed_forward=block),))


def _metered(model: nn.Module, x_BD: torch.Tensor, *, seconds: float, repeats: int) -> dict[str, Any]:
    """Equal stretches of passes, each a step of the meter."""
    passes = max(1, round(_passes_per_s(model, x_BD, min(_WARM_S, seconds)) * seconds))
    times_s: list[float] = []
    with Meter(devices=[x_BD.device], strict=True) as meter:
        for _ in range(repeats):
            with meter.step():
                begin_s = time.perf_counter()
                for _ in range(passes):
                    _pass(model, x_BD)
                times_s.append(time.perf_counter() - begin_s)
    (device,) = meter.summary().devices
    time_s, inferences = sum(times_s) / repeats, passes * len(x_BD)
    energy_J, error_J = device.step_energy_J, device.step_energy_standard_error_J
    return {
        "passes": passes,
        "pass_time_s": time_s / passes,
        "inferences_per_s": inferences / time_s,
        "slowest_over_fastest": max(times_s) / min(times_s),
        "power_W": None if energy_J is None else energy_J / time_s,
        "inferences_per_J": None if energy_J is None else inferences / energy_J,
        "energy_relative_error": None if not energy_J or error_J is None else error_J / energy_J,
        "energy_source": device.energy_source,
        "notes": list(device.notes),
    }


def _passes_per_s(model: nn.Module, x_BD: torch.Tensor, seconds: float) -> float:
    """After passes that warm up, of which there is one at least."""
    _pass(model, x_BD)
    begin_s, passes = time.perf_counter(), 0
    while passes == 0 or time.perf_counter() - begin_s < seconds:
        _pass(model, x_BD)
        passes += 1
    return passes / (time.perf_counter() - begin_s)


@torch.no_grad()
def _pass(model: nn.Module, x_BD: torch.Tensor) -> None:
    """One, on an idle device and until it is idle again, as the study times it."""
    _wait(x_BD.device)
    model(x_BD)
    _wait(x_BD.device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def _loads(model: nn.Module, x_BD: torch.Tensor) -> dict[str, Any]:
    """How many experts have rows, and those of the busiest over the mean; nothing of a dense model."""
    if not isinstance(model, EveryExpert | ChosenExperts):
        return {}
    experts = len(model.mixture.experts)
    rows_E = torch.bincount(model.mixture.routed(x_BD)[1].flatten(), minlength=experts)
    return {"experts_with_rows": int((rows_E > 0).sum()), "skew": float(rows_E.max() * experts / rows_E.sum())}


def device_of(name: str) -> torch.device:
    """A torch device by its name.

    Raises:
        DeviceError: there is none.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"--device: found {name}; allowed: cpu, cuda, cuda:0 and the like") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"--device {name}: torch finds no GPU here")
    return device


def main(arguments: Sequence[str] | None = None) -> None:
    """The command of the module's docstring."""
    parser = argparse.ArgumentParser(description="Measure the crossover study on the GPU at hand.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args(arguments)
    found = measure(device_of(asked.device), seconds=asked.seconds, repeats=asked.repeats, tiny=asked.tiny)
    write_atomic(asked.output, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
