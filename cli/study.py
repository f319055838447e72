"""`moemodel study`: studies of others, predicted, and repeated on the GPU at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moemodel.cli.output import Finite, bullets, console, digits, echo, echo_json, table, working
from moemodel.model.core.extras import needs_extra

if TYPE_CHECKING:
    from rich.table import Table

    from moemodel.model.results.crossover import Form, Rate
    from moemodel.model.results.parallelism import Point
    from moemodel.model.results.parallelism_insights import Insight, Study

    Rates = dict[tuple[str, Form], Rate]

# What is predicted unless told: cards that this project can have, and the study's own.
_GPUS = ("h100-sxm-80gb", "h200-sxm-141gb", "a100-pcie-80gb")
_WORDS = {"dense": "dense", "every": "MoE, every expert", "chosen": "MoE, chosen experts"}


@click.group("study", short_help="Studies of others, predicted, and repeated on the GPU at hand.")
def study_command() -> None:
    """Predict what others have measured, and measure it again."""


@study_command.command("crossover", short_help="From which size on a Mixture-of-Experts takes less energy.")
@click.option("--gpu", metavar="NAME", help="Measure on the GPU that is here, such as h100, or cpu: half a minute.")
@click.option("--on", "gpus", multiple=True, metavar="NAME", help=f"Predict this GPU.  [default: {', '.join(_GPUS)}]")
@click.option("--seconds", type=Finite(min=0.01), default=3.0, show_default=True, help="Of each repeat of a model.")
@click.option("--repeats", type=click.IntRange(min=1), default=2, show_default=True, help="Of each model measured.")
@click.option("--tiny", is_flag=True, help="Measure models of a few hundred parameters, to see that it works.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the same figures, units in the names.")
def crossover_command(
    gpu: str | None, gpus: tuple[str, ...], seconds: float, repeats: int, tiny: bool, as_json: bool
) -> None:
    """Inferences per second and joule of dense MLPs and of Mixture-of-Experts of the same size (neuralwatt 2025).

    Forward passes alone, in float32, 128 samples at a time: four sizes, the dense model and two forms of the other.
    """
    found = {name: _predicted(name) for name in gpus or _GPUS}
    measured = None if gpu is None else _measured(gpu, seconds=seconds, repeats=repeats, tiny=tiny)
    if as_json:
        echo_json(_json(found, measured))
        return
    out = console()
    for name, rates in found.items():
        cases = [{"size": size, "form": form, **asdict(rate)} for (size, form), rate in rates.items()]
        out.print(_rows(f"{name}, predicted", cases, rates), "", bullets(_turns(rates)), "")
    if measured is not None:
        from moemodel.model.results.crossover import rates_of

        rates = rates_of(measured["cases"])
        rows = _rows(f"{measured['device']}, measured", measured["cases"], rates)
        out.print(rows, "", bullets([*_turns(rates), *_remarks(measured)]))


def _predicted(gpu: str) -> Rates:
    from moemodel.calibration.store.catalogue import load_calibration
    from moemodel.model.hardware.gpu import read_gpu
    from moemodel.model.results.crossover import predicted_rates

    return predicted_rates(load_calibration(None, read_gpu(gpu, key="--on").name, key="--on"))


@needs_extra("study", "profile")
def _measured(gpu: str, *, seconds: float, repeats: int, tiny: bool) -> dict[str, Any]:
    from moemodel.model.core.errors import InputError
    from moemodel.profiler.devices.names import SIMULATED
    from moemodel.profiler.platforms.registry import open_named
    from moemodel.profiler.studies.crossover import measure

    if gpu.startswith(SIMULATED):
        raise InputError(f"--gpu: found {gpu}; a simulated GPU runs no models; allowed: a GPU that is here, or cpu")
    device, _ = open_named(gpu)
    with working("crossover") as progress:
        done = 0

        def told(size: str, form: str) -> None:
            nonlocal done
            progress(done, 12, f"{size}, {form}")
            done += 1

        try:
            return measure(device.torch_device, seconds=seconds, repeats=repeats, tiny=tiny, progress=told)
        finally:
            device.close()


def _json(found: dict[str, Rates], measured: dict[str, Any] | None) -> dict[str, Any]:
    from moemodel.model.results.crossover import BATCH, rates_json, rates_of

    document: dict[str, Any] = {"study": "crossover", "batch": BATCH, "precision": "fp32", "tf32": False}
    document["predicted"] = {name: rates_json(rates) for name, rates in found.items()}
    if measured is not None:
        document["measured"] = rates_json(rates_of(measured["cases"])) | measured
    return document


def _rows(title: str, cases: Sequence[Mapping[str, Any]], rates: Rates) -> Table:
    from moemodel.model.results.crossover import winner

    numbers = ("inferences/s", "W", "inferences/J", "idle")
    made = table("size", "model", *numbers, "wins", title=title, numbers=numbers)
    for case in cases:
        size, form = case["size"], case["form"]
        idle = case.get("waits_for_host")
        known = form != "dense" and {(size, "dense"), (size, form)} <= set(rates)
        made.add_row(
            size,
            _WORDS[form],
            digits(case["inferences_per_s"]),
            "" if case["power_W"] is None else f"{case['power_W']:.0f}",
            "" if case["inferences_per_J"] is None else digits(case["inferences_per_J"]),
            "" if idle is None else f"{idle:.0%}",
            winner(rates, size, form) if known else "",
        )
    return made


def _turns(rates: Rates) -> list[str]:
    from moemodel.model.results.crossover import MIXTURES, turns_at

    if not rates:
        return ["No energy was measured, so there is no winner."]
    found = {form: turns_at(rates, form) for form in MIXTURES}
    return [
        f"{_WORDS[form]}: "
        + ("the dense model wins up to the largest size." if size is None else f"it takes less energy from {size} on.")
        for form, size in found.items()
    ]


def _remarks(measured: dict[str, Any]) -> list[str]:
    """What the meter said, each once."""
    return list(dict.fromkeys(note for case in measured["cases"] for note in case["notes"]))


# ---- parallelism ----------------------------------------------------------------------------------------------------

_MOST_ROWS = 12  # of plans over degrees that are printed; `--json` has all


@study_command.command("parallelism", short_help="Energy and time over degrees of parallelism and clocks.")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="Folder of parallelism.json.")
@click.option(
    "--figures/--no-figures",
    default=None,
    help="Draw PNG and SVG into the folder, too; needs the extra plots.  [default: where it is installed]",
)
@click.option("--json", "as_json", is_flag=True, help="Print what parallelism.json holds.")
def parallelism_command(output: Path | None, figures: bool | None, as_json: bool) -> None:
    """OPT-350M and OLMoE under Megatron-DeepSpeed on GH200 and A100, as Zhang, Strati and Klimovic ran them (2026).

    Energy and time over dp, tp, pp, micro-batch and ep; over SM clocks of one A100; of four plans whose stages are
    slowed, those with more bubble first. Of each of the three findings: does the prediction show it, by how much, and
    where do the curves cross? Nothing is fitted to the study.
    """
    from moemodel.model.core.errors import InputError
    from moemodel.model.results.parallelism_insights import study_json

    if figures and output is None:
        raise InputError("--figures: found no folder for them; give one with -o")
    found = _predicted_study()
    document = study_json(found)
    written = [] if output is None else _write(output, document, found, figures)
    if as_json:
        echo_json(document)
        return
    out = console()
    for part in _report(found):
        out.print(part, "")
    if written:
        out.print(f"{output}: {', '.join(written)}", soft_wrap=True)


def _predicted_study() -> Study:
    from moemodel.calibration.store.catalogue import load_calibration
    from moemodel.model.results.parallelism import GPUS
    from moemodel.model.results.parallelism_insights import predicted_study

    with working("parallelism"):
        return predicted_study({gpu: load_calibration(None, gpu, key="gpu") for gpu in GPUS})


def _write(folder: Path, document: dict[str, Any], found: Study, figures: bool | None) -> list[str]:
    """The files' names; figures are drawn before anything is written."""
    import json
    from importlib.util import find_spec

    from moemodel.model.core.extras import how_to_install
    from moemodel.model.core.files import write_atomic

    drawn: dict[str, bytes] = {}
    if figures or (figures is None and find_spec("matplotlib") is not None):
        from moemodel.cli.study_figures import study_figures

        drawn = dict(study_figures(found))
    elif figures is None:
        echo(f"figures are not drawn: matplotlib is not installed; {how_to_install('plots')}", err=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "parallelism.json", json.dumps(document, indent=1) + "\n")
    for name, content in drawn.items():
        write_atomic(folder / name, content)
    return ["parallelism.json", *drawn]


def _report(found: Study) -> list[Any]:
    from moemodel.model.results.parallelism_insights import fastest_text

    return [
        _points("OPT-350M on 32 GH200, the fastest plans", "plan", found.degrees[:_MOST_ROWS]),
        *(_points(f"OLMoE on 32 GH200, {n} tokens", "experts", points) for n, points in found.experts.items()),
        _points("OPT-350M on one A100", "clock, MHz", found.clocks[::3], clocks=True),
        _points("OPT-350M on 2 x 4 A100 at full clock", "plan", [points[0] for points in found.joint.values()]),
        _points("the same, each at its least energy", "plan", [_least(p) for p in found.joint.values()], clocks=True),
        bullets(fastest_text(found.variants)),
        *(part for insight in found.insights for part in _insight(insight)),
        bullets(_CAVEATS),
    ]


# What every reader of these figures has to know
_CAVEATS = (
    "Predicted; nothing is fitted to the study, whose text was not at hand: the findings are in this project's words.",
    "Steps at locked clocks were never measured by this project. Margins of a per cent or two are below what "
    "predictions of these plans are known to be off.",
    "What an A100 does below 510 MHz is extrapolated: no reading stands behind it. Times and power of the GH200 are "
    "derived from an H100's; its processor is not counted.",
    "OLMoE runs under DeepSpeed's expert layer in bf16 with ZeRO 1 here, and the network of the A100 is assumed.",
)


def _least(points: Sequence[Point]) -> Point:
    return min(points, key=lambda point: point.energy_J)


def _points(title: str, named: str, points: Sequence[Point], *, clocks: bool = False) -> Table:
    numbers = ("s", "kJ", "W a GPU", "sent", "bubble", "host")
    made = table(named, *numbers, title=title, numbers=numbers)
    for point in points:
        step_s = point.step_s
        made.add_row(
            _named(point, alone=named == "clock, MHz") if clocks else point.name,
            digits(step_s),
            digits(point.energy_J / 1e3),
            f"{point.power_W:.0f}" if point.fits else "too large",
            *(f"{part_s / step_s:.0%}" for part_s in (point.communication_s, point.bubble_s, point.host_s)),
        )
    return made


def _named(point: Point, *, alone: bool) -> str:
    clocks = [f"{clock:g}" for clock in point.clocks_MHz or ()]
    text = clocks[0] if len(set(clocks)) == 1 else ",".join(clocks)
    return text if alone else f"{point.name} at {text}"


def _insight(insight: Insight) -> list[Any]:
    verdict = f"shown, by {insight.margin:.1%}" if insight.holds else "not shown"
    return [f"{insight.name}: {insight.statement} [{verdict}]", bullets(insight.text)]
