"""`moemodel predict`: what a plan costs."""

from __future__ import annotations

import gc
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moemodel import api
from moemodel.cli.output import begins_with, bullets, console, digits, echo_json, prefixed, table, working

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from moemodel.model.plan.spec import Plan
    from moemodel.model.results.estimate import Estimate
    from moemodel.model.results.outcome import GpuVolumes, Interruptions, Outcome
    from moemodel.model.results.routing_cost import RoutingCost
    from moemodel.model.results.stage_clocks import StageOutcome

_TERMS_SHOWN = 6


@click.command("predict", short_help="Time, power, energy, memory, carbon and cost of a plan.")
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the same figures, units in the names.")
@click.option(
    "--calibration",
    metavar="NAME|FILE",
    help="A shipped calibration, or a file that `moemodel calibrate` wrote.  [default: of the plan's GPU; where none "
    "ships, memory, FLOPs, bytes and volumes of communication are all that is given]",
)
@click.option("--even-if-it-does-not-fit", is_flag=True, help="Answer also for a plan that needs too much memory.")
@click.option(
    "--trace",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the predicted iteration in time, stage by stage, as JSON for ui.perfetto.dev.",
)
def predict_command(
    plan: Path, as_json: bool, calibration: str | None, even_if_it_does_not_fit: bool, trace: Path | None
) -> None:
    """Predict time, power, energy, memory, carbon and cost of the run in PLAN, a YAML file (see `moemodel init`)."""
    with _lean():
        answer = api.predict(plan, calibration, even_if_it_does_not_fit=even_if_it_does_not_fit)
        if trace is not None:
            _write_trace(answer, calibration, trace)
        if as_json:
            echo_json(answer.to_json())
            return
        out = console()
        for part in _report(answer):
            out.print(part)
        if trace is not None:
            out.print(f"\nwrote {trace}", soft_wrap=True)


_FIRST = b'{"traceEvents":'  # how a trace begins


def _write_trace(answer: Outcome, calibration: str | None, trace: Path) -> None:
    """Write the iteration of a plan that is predicted."""
    from moemodel.model.core.errors import InputError
    from moemodel.model.core.files import write_atomic
    from moemodel.model.results.trace import trace_text

    if trace.exists() and not begins_with(trace, _FIRST):
        raise InputError(f"--trace {trace}: is there already and is no trace; name another file")
    with working("laying the step out in time"):
        write_atomic(trace, trace_text(api.iteration(answer.plan, calibration)))


@contextmanager
def _lean() -> Iterator[None]:
    """Keeps a cold start short: half of it is imports, and these three take a third off them.

    Imports make a hundred thousand objects and no garbage, so nobody looks for any, then or when the process ends. One
    prediction needs no threads, which numpy would start for every core. No plugin of pydantic, which it would look for
    in every installed package.
    """
    is_cold = "numpy" not in sys.modules
    if is_cold:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_cold:
            gc.freeze()
        if was_on:
            gc.enable()


def _report(answer: Outcome) -> list[RenderableType]:
    if answer.calibration is None:
        return [_heading(answer), "", _work(answer), "", _memory(answer), "", *_notes(answer)]
    parts: list[RenderableType] = [_heading(answer), "", _step(answer), "", _phases(answer)]
    parts += ["", _stages(answer)] if answer.stages else []
    parts += ["", _memory(answer)]
    if answer.routing is not None:
        parts += ["", _routing(answer.routing)]
    if answer.run is not None:
        parts += ["", _run(answer)]
    return [*parts, "", *_notes(answer)]


def _lengths(plan: Plan) -> str:
    """Tokens of a sequence, in words."""
    written = plan.decoder_sequence_length
    return f"{plan.sequence_length} tokens" + ("" if written is None else f" read and {written} written")


def _heading(answer: Outcome) -> str:
    plan, p = answer.plan, answer.plan.parallel
    degrees = {"dp": p.dp, "tp": p.tp, "pp": p.pp, "ep": p.ep, "cp": p.cp}
    words = [f"{name} {degree}" for name, degree in degrees.items() if degree > 1]
    words += [] if p.etp is None else [f"etp {p.etp}"]
    split = " ".join([*words, *plan.routing.dispatch_words]) or "one GPU"
    zero = f"zero {p.zero_stage}" + (f" in {p.replicas} replicas" if p.replicas > 1 else "")
    cut = "" if plan.layers is None else f", {plan.layers} layers"
    return (
        f"{plan.name}\n{plan.architecture}{cut}, {answer.parameters / 1e9:.3g} B parameters "
        f"({answer.active_parameters / 1e9:.3g} B active)\n"
        f"{plan.cluster.gpus} x {answer.gpu}, {split}, {zero}, {plan.schedule}, "
        f"recompute {plan.recompute}, {plan.precision}\n"
        f"{plan.global_batch} sequences of {_lengths(plan)} a step, {plan.micro_batch} at a time"
        f"{', forward alone' if plan.mode == 'inference' else ''}"
    )


def _step(answer: Outcome) -> Table:
    """The main figures of one step."""
    from moemodel.model.results.energy import GPU_ENERGY, IT_ENERGY, METER_ENERGY

    made = table("One step", "", "", "90 % interval", numbers=("",))
    step = answer.step_time_s.value
    _row(made, "time", answer.step_time_s, "s")
    _row(made, "tokens/s", answer.tokens_per_s, "tokens/s", scale=False)
    _row(made, "tokens/s per GPU", answer.tokens_per_s_per_gpu, "tokens/s", scale=False)
    if answer.inferences_per_s is not None and answer.inferences_per_J is not None:
        _row(made, "inferences/s", answer.inferences_per_s, "1/s", scale=False)
        _row(made, "inferences per joule of the GPUs", answer.inferences_per_J, "1/J", scale=False)
    if answer.mfu is not None:
        _row(made, "MFU", answer.mfu * 100, "%", scale=False)
    _row(made, "sustained SM clock", answer.clock_Hz * 1e-6, "MHz", scale=False)
    _row(made, "power per GPU", answer.power_W, "W", scale=False)
    if math.isfinite(answer.temperature_C):
        made.add_row("die temperature", digits(answer.temperature_C), "C", "")
    _row(made, f"{GPU_ENERGY}, all GPUs", answer.gpu_energy_J, "J")
    _row(made, f"{GPU_ENERGY} per token", answer.gpu_energy_per_token_J, "J")
    _row(made, f"{IT_ENERGY}, with hosts", answer.it_energy_J, "J")
    _row(made, f"{METER_ENERGY} (PUE {answer.plan.site.pue:g})", answer.meter_energy_J, "J")
    _row(made, "memory per GPU", answer.memory_B * 1e-9, "GB", scale=False)
    _row(made, "exposed communication", answer.exposed_communication_s * (100 / step), "% of the step", scale=False)
    _row(made, "pipeline bubble", answer.bubble_s * (100 / step), "% of the step", scale=False)
    return made


def _row(made: Table, name: str, figure: Estimate, unit: str, *, scale: bool = True) -> None:
    if math.isnan(figure.value):
        made.add_row(name, "not measured", "", "")
        return
    factor, shown = prefixed(figure.value, unit) if scale else (1.0, unit)
    known = figure.low is not None and figure.high is not None and figure.value != 0
    low, high = (figure.low or 0.0) * factor, (figure.high or 0.0) * factor
    interval = f"{digits(low)} to {digits(high)}" if known else ("" if figure.value == 0 else "unknown")
    made.add_row(name, digits(figure.value * factor), shown, interval)


def _phases(answer: Outcome) -> Table:
    """Where time and energy of a step go; power is a GPU's mean while the phase lasts."""
    from moemodel.model.results.energy import GPU_ENERGY

    numbers = ("time", "of step", GPU_ENERGY, "of it", "W per GPU", "MHz")
    made = table("Phase", *numbers, numbers=numbers)
    factor, seconds = prefixed(answer.step_time_s.value, "s")
    per_joule, joules = prefixed(answer.gpu_energy_J.value, "J")
    unmeasured = math.isnan(answer.gpu_energy_J.value)
    gpus = answer.plan.cluster.gpus
    for name, phase in answer.phases.items():
        # transfers that computation hides draw power too, but last no time of their own
        lasts = name != "communication" and _lasts(answer, phase.time_s) and not unmeasured
        power = f"{phase.energy_J / phase.time_s / gpus:.0f}" if lasts else ""
        made.add_row(
            name,
            f"{digits(phase.time_s * factor)} {seconds}",
            f"{answer.share(phase.time_s):.1%}",
            "" if unmeasured else f"{digits(phase.energy_J * per_joule)} {joules}",
            "" if unmeasured else f"{phase.energy_J / answer.gpu_energy_J.value:.1%}",
            power,
            "" if phase.clock_Hz is None or math.isnan(phase.clock_Hz) else f"{phase.clock_Hz / 1e6:.0f}",
        )
    return made


def _stages(answer: Outcome) -> Table:
    """Clocks by stage and phase, stages that are alike on a line: the true clock, and what it was asked for."""
    phases = tuple(answer.stages[0].clock_Hz)
    heads = (*(f"{phase}, MHz" for phase in phases), "W per GPU")
    made = table("Stage (clock asked for)", *heads, numbers=heads)
    rows = [(*(_stage_clock(stage, phase) for phase in phases), _watts(stage.power_W)) for stage in answer.stages]
    for cells, alike in groupby(zip(rows, answer.stages, strict=True), key=lambda pair: pair[0]):
        numbers = [stage.stage for _, stage in alike]
        made.add_row(f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}", *cells)
    return made


def _stage_clock(stage: StageOutcome, phase: str) -> str:
    asked_Hz, kept_Hz = stage.asked_Hz[phase], stage.clock_Hz[phase]
    kept = "" if math.isnan(kept_Hz) else f"{kept_Hz / 1e6:.0f} "
    return f"{kept}({'auto' if asked_Hz is None else f'{asked_Hz / 1e6:g}'})"


def _watts(power_W: float) -> str:
    return "" if math.isnan(power_W) else f"{power_W:.0f}"


def _lasts(answer: Outcome, time_s: float) -> bool:
    return answer.share(time_s) > 1e-6


def _memory(answer: Outcome) -> Table:
    """The largest terms of the fullest GPU's peak."""
    made = table("Memory of the fullest GPU", "GB", "of peak", numbers=("GB", "of peak"))
    peak_B = answer.memory_B.value
    terms = list(answer.memory_terms_B.items())
    rows = [*terms[:_TERMS_SHOWN], ("others", sum(size for _, size in terms[_TERMS_SHOWN:]))]
    for name, size_B in rows:
        made.add_row(name.replace("_", " "), f"{size_B / 1e9:.2f}", f"{size_B / peak_B:.0%}")
    available = answer.memory_available_B
    held = "" if available is None else f" of {available / 1e9:.1f} available"
    made.add_row(f"peak{held}", f"{peak_B / 1e9:.2f}", "")
    if available is not None:
        likely = f" (it fits with a probability of {answer.fit_probability:.0%})"
        made.add_row(f"{answer.verdict}{likely if answer.verdict == 'may not fit' else ''}", "", "")
    return made


def _routing(routing: RoutingCost) -> Table:
    """The gating, and what uneven loads of experts cost."""
    balanced, uneven = routing.balanced, routing.uneven
    made = table("Routing", "balanced", f"skew {uneven.skew:.3g}", "costs", numbers=("balanced", "costs"))
    figures = {
        "step": (balanced.step_time_s, uneven.step_time_s, "s"),
        "all-to-all": (balanced.all_to_all_s, uneven.all_to_all_s, "s"),
        "GPU energy": (balanced.gpu_energy_J, uneven.gpu_energy_J, "J"),
    }
    for name, (even, other, unit) in figures.items():
        if even > 0:
            factor, shown = prefixed(even, unit)
            made.add_row(
                name,
                f"{digits(even * factor)} {shown}",
                f"{digits(other * factor)} {shown}",
                f"{other / even - 1:+.0%}",
            )
    factor, shown = prefixed(routing.gating_s, "s")
    made.add_row(
        "gating", f"{digits(routing.gating_s * factor)} {shown}, {routing.gating_share:.0%} of the step", "", ""
    )
    return made


def _work(answer: Outcome) -> Table:
    """What there is to do in a step, however long it takes."""
    made = table("One step, without a calibration", "", "", numbers=("",))
    of_all = {"model FLOPs, all GPUs": (answer.model_flops, "FLOP"), "tokens": (answer.tokens, "")}
    of_one = {} if answer.volumes is None else _volumes(answer.volumes)
    for name, (size, unit) in (of_all | of_one).items():
        factor, shown = prefixed(size, unit) if unit else (1.0, unit)
        made.add_row(name, digits(size * factor), shown)
    return made


def _volumes(volumes: GpuVolumes) -> dict[str, tuple[float, str]]:
    """By what they are called: figures of the mean GPU, with their unit."""
    sent = {f"sent over {axis}, per GPU": (size_B, "B") for axis, size_B in volumes.sent_B.items()}
    return {
        "FLOPs with recomputation, per GPU": (volumes.flops, "FLOP"),
        "device memory traffic, per GPU": (volumes.memory_traffic_B, "B"),
    } | {name: figure for name, figure in sent.items() if figure[0] > 0}


def _run(answer: Outcome) -> Table:
    """Totals of the run."""
    from moemodel.model.results.energy import METER_ENERGY

    made = table("The whole run", "", "", "90 % interval", numbers=("",))
    run = answer.run
    if run is None:
        return made
    made.add_row("tokens", f"{run.tokens:.3g}", f"in {run.steps:,} steps", "")
    _row(made, "time", run.hours, "hours", scale=False)
    _row(made, METER_ENERGY, run.energy_kWh, "kWh", scale=False)
    _row(made, "emissions", run.emissions_kg, "kgCO2e", scale=False)
    if run.cost is not None:
        _row(made, "cost", run.cost, run.currency, scale=False)
    if run.interrupted is not None:
        _interruptions(made, run.interrupted)
    return made


def _interruptions(made: Table, found: Interruptions) -> None:
    """What is in these totals of failures and checkpoints."""
    made.add_row("goodput", f"{found.goodput * 100:.4g}", "% of the time makes progress", "")
    made.add_row("failures expected", digits(found.failures), f"one in {digits(found.mtbf_h)} hours", "")
    made.add_row("work lost", digits(found.lost_h), "hours", "")
    every = f"hours, one every {digits(found.interval_s)} s"
    made.add_row("checkpoints", digits(found.checkpoints_h), every, "")
    made.add_row("restarts", digits(found.restarts_h), "hours", "")


def _notes(answer: Outcome) -> list[RenderableType]:
    from rich.text import Text

    return [Text("Notes", style="bold"), bullets(answer.notes)]
