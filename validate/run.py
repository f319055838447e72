"""A validation from end to end: plans chosen, run in turns on the hardware at hand, and reported on."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from moemodel.model.core.ending import ending_cleanly
from moemodel.model.core.files import write_atomic
from moemodel.model.plan.spec import Plan, plan_text
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.measured import predict_as_run
from moemodel.model.results.validation import REPORT, Environment, Failed, Launcher, Report, Visit, row_of
from moemodel.model.search.result import SearchResult
from moemodel.profiler.devices.cpu import power_note
from moemodel.profiler.store.folder_lock import folder_lock
from moemodel.profiler.training.launch import Failure, LaunchOptions, Measured, PlanVisit, launch
from moemodel.validation.records.session import RequestedPlan, RunRecord, Session, ValidationSpec
from moemodel.validation.report.build import report_of
from moemodel.validation.report.page import html_page
from moemodel.validation.select.duration import in_words, remaining_s, run_s
from moemodel.validation.select.hardware import Clocks, one_queue, probe_hardware
from moemodel.validation.select.plans import Chosen, from_plans, from_search
from moemodel.validation.select.runnable import Choice, PlanRequest

PAGE = "report.html"

Say = Callable[[str], None]

_KINDS = {  # of failures, for a reader
    "refused": "refused",
    "memory": "out of memory",
    "timeout": "no progress",
    "crash": "crashed",
    "error": "error",
}


class Launch(Protocol):
    """Runs plans: what is needed of `profiler.training.launch.launch`."""

    def __call__(
        self, visits: Sequence[PlanVisit], *, folder: Path, options: LaunchOptions, report: Say
    ) -> Iterator[Measured | Failure]: ...


@dataclass(frozen=True, kw_only=True)
class Options:
    """How plans are run.

    Attributes:
        repeats: rounds.
        seconds: measured, of a run, at least; `warm_s` before them.
        seed: of the order, of the random control, of weights and data.
        clocks: "passive": no clock is held; "lock": a plan that asks for a clock fails without; "auto": where that is
            permitted.
        launcher: what starts the processes.
        timeout_s: of a run that makes no progress.
    """

    repeats: int = 3  # the fewest that give a deviation worth the name
    seconds: float = 3.0
    warm_s: float = 2.0
    seed: int = 0
    clocks: Clocks = "auto"
    launcher: Launcher = "local"
    timeout_s: float = 240.0  # as profiler.training.launch; so are the times above


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """What a validation did.

    Attributes:
        report: predicted against measured.
        folder: that it lies in.
        interrupted: Ctrl-C or a signal ended it; `signal` is that signal's number, None for Ctrl-C.
    """

    report: Report
    folder: Path
    interrupted: bool = False
    signal: int | None = None


# ---- all of it ------------------------------------------------------------------------------------------------------


def validate_here(
    asked: SearchResult | Sequence[PlanRequest],
    folder: Path | None,
    calibration: Calibration,
    options: Options,
    *,
    gpu: str,
    top: int,
    controls: bool,
    say: Say = lambda _: None,
) -> ValidationResult:
    """Choose plans that the hardware at hand can run, say which, and validate them.

    Args:
        asked: a search, of which the best are taken, or plans.
        folder: of the validation; None: named after the search or the first plan, in the current folder.
        calibration: of the GPU.
        options: how to run.
        gpu: name or description file of the GPU at hand.
        top: plans of the search at most, controls not counted.
        controls: whether to run the default plan and a random one beside them.
        say: told in a sentence how it goes.

    Raises:
        DeviceError: another GPU or none, or its clock can't be held where that was asked for.
        InputError, InfeasiblePlanError, CalibrationError: see `from_search`, `from_plans` and `validate`.
    """
    hardware, environment = probe_hardware(gpu, clocks=options.clocks, launcher=options.launcher)
    if isinstance(asked, SearchResult):
        chosen = from_search(asked, hardware, calibration, top=top, controls=controls, seed=options.seed)
    else:
        chosen = from_plans(asked, hardware, calibration, controls=controls, seed=options.seed)
    predicted_s = _predicted_s({choice.asked.name: choice.plan for choice in chosen.choices}, calibration, options)
    _announce(chosen, options, predicted_s, gpu, say)
    spec = spec_of(chosen, environment, options, asked.search.name if isinstance(asked, SearchResult) else None)
    return validate(spec, folder or _folder_of(asked), calibration, options, gpu=gpu, say=say, predicted_s=predicted_s)


def gpu_of(asked: SearchResult | Sequence[PlanRequest]) -> str:
    """The GPU that a search, or the first of some plans, is for."""
    return (asked.search if isinstance(asked, SearchResult) else asked[0].plan).cluster.gpu


def _folder_of(asked: SearchResult | Sequence[PlanRequest]) -> Path:
    """Where a validation goes unless one says: named after the search, the first file, or the first plan."""
    if isinstance(asked, SearchResult):
        name = asked.search.name
    else:
        kind, _, place = asked[0].role.partition(" ")
        name = Path(place).stem if kind == "file" else place
    return Path(f"validation-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}")


def _announce(chosen: Chosen, options: Options, predicted_s: Mapping[str, float], gpu: str, say: Say) -> None:
    """What is going to be run, before it is."""
    for plan in chosen.set_aside:
        say(f"set aside: {plan.name}: {plan.reason}")
    for choice in chosen.choices:
        say(f"plan {choice.asked.name}: {', '.join(choice.roles)}")
        for note in choice.notes:
            say(f"  note: {note}")
    if queued := one_queue([choice.plan for choice in chosen.choices]):
        say(f"note: {queued}")
    seconds = remaining_s([*predicted_s] * options.repeats, predicted_s=predicted_s, taken=(), starts=True)
    doubt = "; predictions for a processor may be several times off: it is told anew after each run"
    say(f"{len(predicted_s)} plans, {options.repeats} rounds: {in_words(seconds)}{doubt if gpu == 'cpu' else ''}")


def _predicted_s(plans: Mapping[str, Plan], calibration: Calibration, options: Options) -> dict[str, float]:
    """Duration of a run of each plan, by its predicted step time."""
    times_s = {name: predict_as_run(plan, calibration).values["step_time"] for name, plan in plans.items()}
    return {name: run_s(time_s, warm_s=options.warm_s, seconds=options.seconds) for name, time_s in times_s.items()}


# ---- what is run ----------------------------------------------------------------------------------------------------


def spec_of(chosen: Chosen, environment: Environment, options: Options, search: str | None) -> ValidationSpec:
    """What is run, as it is kept."""
    guess = power_note(environment.device)
    queued = one_queue([choice.plan for choice in chosen.choices])
    return ValidationSpec(
        plans=tuple(_asked(choice) for choice in chosen.choices),
        set_aside=chosen.set_aside,
        search=search,
        repeats=options.repeats,
        seconds=options.seconds,
        warm_s=options.warm_s,
        seed=options.seed,
        asked_clocks=options.clocks,
        environment=environment,
        notes=(*chosen.notes, *([f"{guess[0].upper()}{guess[1:]}."] if guess else []), *([queued] if queued else [])),
    )


def _asked(choice: Choice) -> RequestedPlan:
    return RequestedPlan(
        name=choice.asked.name,
        asked_yaml=plan_text(choice.asked),
        plan_yaml=plan_text(choice.plan),
        roles=choice.roles,
        notes=choice.notes,
    )


# ---- the runs -------------------------------------------------------------------------------------------------------


def validate(
    spec: ValidationSpec,
    folder: Path,
    calibration: Calibration,
    options: Options,
    *,
    gpu: str,
    say: Say = lambda _: None,
    launch: Launch = launch,
    predicted_s: Mapping[str, float] | None = None,
) -> ValidationResult:
    """Run what is asked, or what is left of it, and write the report into the folder.

    Every plan is predicted before the first is run: what is missing of a calibration is found out before GPU time is
    spent. An interruption keeps the runs that ended, and reports on them.

    Args:
        spec: what to run (`spec_of`).
        folder: of the validation; one that was interrupted is gone on with.
        calibration: of the GPU.
        options: how to run.
        gpu: name or description file of the GPU.
        say: told in a sentence how it goes.
        launch: instead of real processes.
        predicted_s: how long a run of each plan takes, by its name; None: it is predicted here.

    Raises:
        InputError: the folder holds another validation, or somebody else validates in it.
        CalibrationError: the calibration is of another GPU, or lacks an operator.
        DeviceError: no process could be started at all.
    """
    runs_s = predicted_s or _predicted_s({asked.name: asked.plan for asked in spec.plans}, calibration, options)
    with ending_cleanly(), folder_lock(folder, "validate"):
        session = Session(folder, spec)
        if session.resumed:
            say(f"{folder}: {len(session.records)} runs were made before; going on")

        def to_go() -> str:
            left = [asked.name for asked, _ in session.left()]
            taken = [(record.plan, record.visit.seconds) for record in session.records if record.visit]
            about = in_words(remaining_s(left, predicted_s=runs_s, taken=taken, starts=False))
            return f"{len(left)} run{'' if len(left) == 1 else 's'} to go" + (f", {about}" if left else "")

        return _validate(session, calibration, options, gpu, launch, say, to_go)


def _validate(
    session: Session,
    calibration: Calibration,
    options: Options,
    gpu: str,
    launch: Launch,
    say: Say,
    to_go: Callable[[], str],
) -> ValidationResult:
    interrupted, signal = False, None
    try:
        _run(session, options, gpu, launch, say, to_go)
    except KeyboardInterrupt as interruption:
        interrupted, signal = True, getattr(interruption, "number", None)
    finally:  # whatever ended it, what was measured is reported on
        report = report_of(session.spec, session.records, calibration)
        write(report, session.folder)
    return ValidationResult(report=report, folder=session.folder, interrupted=interrupted, signal=signal)


def write(report: Report, folder: Path) -> None:
    """Write `report.json` and the page, each whole or not at all."""
    write_atomic(folder / REPORT, report.to_json())
    write_atomic(folder / PAGE, html_page(report))


def _run(session: Session, options: Options, gpu: str, launch: Launch, say: Say, to_go: Callable[[], str]) -> None:
    """Make the runs that are left; after a failure, without the other runs of that plan."""
    how = LaunchOptions(
        gpu=gpu,
        launcher=options.launcher,
        clocks=options.clocks,
        warm_s=options.warm_s,
        measured_s=options.seconds,
        timeout_s=options.timeout_s,
    )
    while left := session.left():
        visits = [_visit(asked, repeat, options) for asked, repeat in left]
        found = launch(visits, folder=session.folder, options=how, report=say)
        try:
            if not any(_failed(one, session, say, to_go) for one in found):
                return
        finally:
            close = getattr(found, "close", None)  # of a generator: ends its processes
            if close is not None:
                close()


def _failed(found: Measured | Failure, session: Session, say: Say, to_go: Callable[[], str]) -> bool:
    """Keep a run that ended, and say so; whether it failed."""
    record = _record(found, session.folder)
    session.add(record)
    say(f"{_sentence(record)} ({to_go()})")
    return record.failed is not None


def _visit(asked: RequestedPlan, repeat: int, options: Options) -> PlanVisit:
    plan = asked.plan.model_copy(update={"power_cap_W": None})  # it is the limit in force (`choice_of`)
    return PlanVisit(plan=plan, plan_yaml=plan_text(plan), folder=Path.cwd(), repeat=repeat, seed=options.seed)


def _record(found: Measured | Failure, folder: Path) -> RunRecord:
    name, repeat = found.visit.plan.name, found.visit.repeat
    if isinstance(found, Failure):
        log = None if found.log is None else os.path.relpath(found.log, folder)
        kind = _KINDS.get(found.kind, found.kind)
        reason = found.reason.encode("utf-8", "replace").decode()  # it may quote a file's name that is no text
        return RunRecord(plan=name, failed=Failed(repeat=repeat, kind=kind, reason=reason, log=log))
    visit = Visit(
        repeat=repeat,
        clock_held=found.clock_held,
        clock_note=found.clock_note,
        seconds=found.seconds,
        rows=tuple(row_of(row.columns()) for row in found.rows),
    )
    return RunRecord(plan=name, visit=visit)


def _sentence(record: RunRecord) -> str:
    if record.failed:
        return f"{record.plan}: {record.failed.kind}: {record.failed.reason}"
    if record.visit is None:
        return record.plan
    times_s = [row["step_time_s"] for row in record.visit.rows if row["step_time_s"] is not None]
    took = f"{max(times_s) * 1e3:.1f} ms a step" if times_s else "no time"
    return f"{record.plan}, round {record.visit.repeat + 1}: {took}"
