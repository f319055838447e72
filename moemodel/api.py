"""The public functions: what the commands do, for Python. They open what they are given, and call the rooms.

A document (a plan, a search) is given as a path, as YAML text, as a dict of the same keys, or as itself. Every room is
imported when its function is called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from moemodel.model.core.extras import needs_extra

if TYPE_CHECKING:
    from datetime import datetime

    from pydantic import BaseModel

    from moemodel.calibration.fit.operators import HeldOut
    from moemodel.calibration.published.kernels.overlay import HeldOutReadings
    from moemodel.calibration.update.from_reports import Update
    from moemodel.model.core.errors import InfeasiblePlanError
    from moemodel.model.grid.options import Clocks
    from moemodel.model.grid.schedule import Schedule
    from moemodel.model.plan.megatron_import import MegatronImport
    from moemodel.model.plan.spec import Plan
    from moemodel.model.records.calibration import Calibration
    from moemodel.model.results.iteration import Iteration
    from moemodel.model.results.outcome import Outcome
    from moemodel.model.results.placement import PlacementResult
    from moemodel.model.results.validation import Report
    from moemodel.model.search.document import Search
    from moemodel.model.search.explain import Explanation
    from moemodel.model.search.result import SearchResult
    from moemodel.model.strategies.strategies import Strategies
    from moemodel.profiler.run import ProfileReport
    from moemodel.profiler.runs.document import RunDocument
    from moemodel.profiler.runs.execute import MatrixResult
    from moemodel.profiler.runs.execute import Progress as RunProgress
    from moemodel.profiler.sections.progress import Progress
    from moemodel.validation.compare.comparison import Comparison
    from moemodel.validation.run import ValidationResult
    from moemodel.validation.select.runnable import PlanRequest

    DocumentT = TypeVar("DocumentT", bound=BaseModel)

SEARCH_RESULT = "moemodel-search.json"  # where `moemodel optimize` leaves its result, and `validate` looks for one
_SUFFIXES = (".yaml", ".yml", ".json")


def predict(
    plan: Plan | Path | str | Mapping[str, Any],
    calibration: Calibration | Path | str | None = None,
    *,
    even_if_it_does_not_fit: bool = False,
) -> Outcome:
    """Time, power, energy, memory, carbon and cost of a training plan: `moemodel predict`.

    >>> import moemodel
    >>> answer = moemodel.predict('''
    ... architecture: opt-350m
    ... sequence_length: 2048
    ... global_batch: 64
    ... micro_batch: 4
    ... cluster: {gpu: h100-sxm-80gb, gpus: 8}
    ... parallel: {dp: 8, zero_stage: 1}
    ... ''')
    >>> answer.fits
    True
    >>> 0.05 < answer.step_time_s.value < 0.5
    True
    >>> answer.step_time_s.low < answer.step_time_s.value < answer.step_time_s.high
    True

    The same from a file, and for a cap of 500 W:

    >>> plan = moemodel.read_plan("examples/olmoe-1b-7b.yaml")
    >>> capped = moemodel.predict(plan.model_copy(update={"power_cap_W": 500.0}))
    >>> capped.power_W.value <= 500.0
    True

    Args:
        plan: a path, YAML text, a dict of the same keys, or a `Plan`. A string is a path if it ends in .yaml, .yml or
            .json, contains a slash, or is a file's name; a text of several lines, or in braces, is YAML.
        calibration: itself, its file, or the name of one that ships (`moemodel.list_calibrations()`); None: the one
            that ships for the plan's GPU. Where none does, the answer holds memory, FLOPs, bytes and volumes of
            communication, and NaN for what needs one.
        even_if_it_does_not_fit: answer also for a plan that needs more memory than the GPUs have.

    Returns:
        One answer, in SI units that the names of its fields end in: figures of one optimizer step with their 90 %
        intervals (`Estimate`), by phase (`phases`), of the whole run if the plan says how many `tokens` (`run`, else
        None), and `notes`: what the answer rests on. Energy is that of all GPUs; memory that of the fullest.

    Raises:
        InputError: no such file, or a key that is unknown, missing or wrong: file, line and key, what was found and
            what is allowed; unknown GPU, network or architecture.
        InfeasiblePlanError: degrees that don't divide the model, or too little memory; with what would do.
        CalibrationError: none of that name, or of another GPU.
    """
    from moemodel.calibration.store.catalogue import calibration_or_stand_in
    from moemodel.model.plan.spec import Plan, read_plan
    from moemodel.model.results.outcome import outcome

    opened, place = _opened(plan, Plan, "plan", read_plan)
    with _errors_name(place):
        loaded = calibration_or_stand_in(calibration, opened.cluster.gpu, key="cluster.gpu")
        return outcome(opened, loaded, even_if_it_does_not_fit=even_if_it_does_not_fit, with_volumes=True)


def iteration(
    plan: Plan | Path | str | Mapping[str, Any], calibration: Calibration | Path | str | None = None
) -> Iteration:
    """One predicted iteration in time, stage by stage of its pipeline: `moemodel predict --trace`.

    >>> import moemodel
    >>> plan = {"architecture": "opt-350m", "sequence_length": 2048, "global_batch": 16}
    >>> plan |= {"cluster": {"gpu": "h100-sxm-80gb", "gpus": 4}, "parallel": {"pp": 4}}
    >>> laid_out = moemodel.iteration(plan)
    >>> [line.slices[0].kind for line in laid_out.stages]
    ['forward', 'waiting', 'waiting', 'waiting']

    Args:
        plan, calibration: see `predict`.

    Returns:
        The step (`step_s`); of each stage (`stages`) what a GPU does when (`slices`), its power, and its memory over
        time. `moemodel.model.results.trace.trace_text` makes a file for Perfetto of it.

    Raises:
        InputError, InfeasiblePlanError, CalibrationError: see `predict`; or more passes than can be laid out.
    """
    from moemodel.calibration.store.catalogue import load_calibration
    from moemodel.model.plan.spec import Plan, read_plan
    from moemodel.model.results.iteration import iteration

    opened, place = _opened(plan, Plan, "plan", read_plan)
    with _errors_name(place):
        return iteration(opened, load_calibration(calibration, opened.cluster.gpu, key="cluster.gpu"))


def search(
    document: Search | Path | str | Mapping[str, Any],
    calibration: Calibration | Path | str | None = None,
    *,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> SearchResult:
    """The front of all legal plans within limits, of time and energy or other objectives: `moemodel optimize`.

    >>> import moemodel
    >>> found = moemodel.search({
    ...     "architecture": "opt-350m",
    ...     "sequence_length": 2048,
    ...     "global_batch": 64,
    ...     "cluster": {"gpu": "h100-sxm-80gb", "gpus": 8},
    ...     "search": {"tp": 1, "pp": 1, "cp": 1, "micro_batch": [4, 8], "recompute": "none"},
    ... })
    >>> times_s = [entry.step_time_s.value for entry in found.front]
    >>> times_s == sorted(times_s)
    True
    >>> best = found.front[found.picks["least_energy"] - 1]
    >>> best.plan.parallel.dp
    8

    Args:
        document: a path, YAML text, a dict of the same keys, or a `Search`; see `predict`.
        calibration: see `predict`.
        progress: is told how far it is: a part ("memory", "prediction", "front"), and how many of how many plans of it
            are done.

    Returns:
        The plans kept of the front, the best in the first objective first, numbered from 1 (`front`), each with step
        time (s), energies of a step (J), power (W) and memory (B) and their 90 % intervals, what the whole run takes
        (`run`), and what it can't be told apart from; number of each pick (`picks`); the best plans behind it
        (`next_best`); a plan without a search to hold them against (`references`); in what each pick differs from the
        fastest, phase by phase (`differences`); what was refused, by reason (`counts`). `to_json()` is what the
        command writes.

    Raises:
        InputError: see `predict`; or more combinations than can be held.
        InfeasiblePlanError: no plan is feasible; the reasons with counts, and by how much to relax which limit, which
            its `advice` holds as numbers (`moemodel.model.search.relax`).
        CalibrationError: none of that name, or of another GPU; or no power was measured, and an objective or a limit
            needs it.
    """
    from moemodel.calibration.store.catalogue import load_calibration
    from moemodel.model.search.document import Search, read_search
    from moemodel.model.search.search import search

    opened, place = _opened(document, Search, "search", read_search)
    with _errors_name(place):
        return search(opened, load_calibration(calibration, opened.cluster.gpu, key="cluster.gpu"), progress)


def search_many(
    documents: Iterable[Search | Path | str | Mapping[str, Any]],
    calibration: Calibration | Path | str | None = None,
    *,
    jobs: int | None = None,
    backend: str | None = None,
) -> list[SearchResult | InfeasiblePlanError]:
    """Several searches, of other models, clusters or sites, at once: `moemodel optimize A.yaml B.yaml --jobs 2`.

    >>> import moemodel
    >>> document = {
    ...     "architecture": "opt-350m",
    ...     "sequence_length": 2048,
    ...     "global_batch": 64,
    ...     "search": {"tp": 1, "pp": 1, "cp": 1, "micro_batch": 4, "recompute": "none"},
    ... }
    >>> clusters = [{"gpu": "h100-sxm-80gb", "gpus": gpus} for gpus in (8, 16)]
    >>> found = moemodel.search_many([document | {"cluster": cluster} for cluster in clusters], jobs=1)
    >>> [result.front[0].plan.cluster.gpus for result in found]
    [8, 16]

    Args:
        documents: each as `search` takes it. All are read before the first one begins.
        calibration: of all of them; None: of each the one that ships for its GPU.
        jobs: how many run at once; None: as many as there are cores (1 needs nothing more, several the extra
            `parallel`).
        backend: where they run, by joblib's name: `loky` (processes of this machine), `dask` (the cluster of the
            current `distributed.Client`, of $DASK_SCHEDULER_ADDRESS, or workers on this machine; extra `dask`), `ray`,
            or any other that was registered with joblib; None: joblib's default. On other machines the same moemodel
            has to be installed, and files that the searches name have to be there.

    Returns:
        A result for each, in their order; of a search in which no plan is feasible, the error that `search` raises.

    Raises:
        InputError, CalibrationError: see `search`; an unknown backend.
        MissingExtraError: joblib, or what the backend needs, isn't installed.
    """
    from moemodel.calibration.store.catalogue import load_calibration
    from moemodel.model.search.document import Search, read_search
    from moemodel.model.search.many import search_all

    asked = []
    for document in documents:
        opened, place = _opened(document, Search, "search", read_search)
        with _errors_name(place):
            asked.append((opened, load_calibration(calibration, opened.cluster.gpu, key="cluster.gpu")))
    return search_all(asked, jobs=jobs, backend=backend)


def _each(said: str | Sequence[str] | None, count: int, key: str) -> Sequence[str | None]:
    """What is said of each of several; one for all, or one for each."""
    from moemodel.model.core.errors import InputError

    listed: list[str | None] = [said] if isinstance(said, str) or said is None else list(said) or [None]
    if len(listed) not in (1, count):
        raise InputError(f"{key}: found {len(listed)} for {count} series; allowed: one for all, or one for each")
    return listed * count if len(listed) == 1 else listed


@needs_extra("schedule", "schedule")
def schedule(
    plan: Plan | Path | str | Mapping[str, Any],
    series: Path | str | Sequence[Path | str],
    *,
    deadline: datetime | str,
    start: datetime | str | None = None,
    minimise: Literal["carbon", "cost"] | None = None,
    clocks: Clocks = "measured",
    when_off: Literal["kept", "released"] = "kept",
    start_s: float | None = None,
    checkpoint_s: float | None = None,
    unit: str | Sequence[str] | None = None,
    column: str | Sequence[str] | None = None,
    time_zone: str | None = None,
    fill_hours: int = 0,
    calibration: Calibration | Path | str | None = None,
) -> Schedule:
    """When to run, to pause and to slow the clocks against an hourly series of carbon or price: `moemodel schedule`.

    Needs the extra `schedule`.

    >>> import moemodel
    >>> found = moemodel.schedule(
    ...     "examples/opt-350m.yaml", "examples/made-up-week.csv", deadline="4d", when_off="released"
    ... )
    >>> found.minimised, found.totals.pauses > 0
    ('carbon', True)
    >>> 0 < found.saved()["emissions"] < 1
    True

    Args:
        plan: a path, YAML text, a dict of the same keys, or a `Plan`, with `tokens`; see `predict`.
        series: a CSV file of carbon intensity or of prices, or one of each; `model.grid.series` says whose columns are
            known. What is not in a series is the site's, every hour alike.
        deadline, start: a time, or its text in ISO 8601; a deadline also hours or days after the start, such as "72h".
            Without an offset it is of `time_zone`, else UTC. Start None: the first hour of the first series.
        minimise: None: what the first series is of.
        clocks: "measured": the plan's own, and ten over the range that was measured; "plan": its own alone; or MHz.
        when_off: in a pause, GPUs and hosts are "kept" (idle, and paid for) or "released".
        start_s, checkpoint_s: from a pause until it trains, and writing a checkpoint; None: as the plan's `failures`
            say, else assumed.
        unit, column: of the values of the series, where its columns don't say; or one for each of several.
        time_zone: of times without an offset, by its IANA name.
        fill_hours: longest gap in a series that is filled by a straight line.
        calibration: see `predict`.

    Returns:
        What is done when (`segments`), sums over it (`totals`) and over running at once (`at_once_totals`), and what is
        saved (`saved()`, `later_h`).

    Raises:
        InputError: see `predict`; a series that can't be read, or lacks hours.
        InfeasiblePlanError: the run does not end by the deadline: by how much that has to move.
        CalibrationError: see `predict`; or no power was measured.
    """
    from moemodel.calibration.store.catalogue import load_calibration
    from moemodel.model.core.errors import InputError
    from moemodel.model.grid.options import paused_run
    from moemodel.model.grid.schedule import schedule
    from moemodel.model.grid.series import read_series, zone_of
    from moemodel.model.grid.times import deadline_of, time_of
    from moemodel.model.plan.spec import Plan, read_plan

    zone = None if time_zone is None else zone_of(time_zone)
    files = [series] if isinstance(series, str | Path) else list(series)
    said = zip(_each(unit, len(files), "unit"), _each(column, len(files), "column"), strict=True)
    read = [
        read_series(Path(file), unit=of_it, column=name, time_zone=time_zone)
        for file, (of_it, name) in zip(files, said, strict=True)
    ]
    opened, place = _opened(plan, Plan, "plan", read_plan)
    if not read:
        raise InputError("series: found none; allowed: a CSV file of carbon intensity or prices, or one of each")
    begins = read[0].first if start is None else time_of(start, zone, key="--start")
    with _errors_name(place):
        loaded = load_calibration(calibration, opened.cluster.gpu, key="cluster.gpu")
        run = paused_run(opened, loaded, clocks=clocks, when_off=when_off, start_s=start_s, checkpoint_s=checkpoint_s)
    return schedule(
        run,
        read,
        start=begins,
        deadline=deadline_of(deadline, begins, zone),
        minimise=minimise,
        fill_hours=fill_hours,
    )


def explain(
    document: Search | Path | str | Mapping[str, Any],
    plan: Plan | Path | str | Mapping[str, Any],
    calibration: Calibration | Path | str | None = None,
    *,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Explanation:
    """Why a plan is not the one that a search proposes: `moemodel optimize SEARCH --explain PLAN`.

    >>> import moemodel
    >>> choices = {"tp": 1, "pp": 1, "cp": 1, "micro_batch": [4, 8], "recompute": "none"}
    >>> job = {"architecture": "opt-350m", "sequence_length": 2048, "global_batch": 64}
    >>> gpus = {"gpu": "h100-sxm-80gb", "gpus": 8}
    >>> search = job | {"cluster": gpus, "search": choices}
    >>> plan = job | {"cluster": gpus, "parallel": {"dp": 4}, "micro_batch": 4}
    >>> [reason.name for reason in moemodel.explain(search, plan).reasons]
    ['degrees']

    Args:
        document, calibration, progress: see `search`.
        plan: see `predict`; also one whose degrees don't go together, which is what is then explained.

    Returns:
        Whether it is refused, beaten, or on the front (`verdict`); each rule and limit that refuses it, and by how much
        (`reasons`); the plan of the front that beats it by most, by how much in each objective, and whether the two can
        be told apart (`beaten_by`). `to_json()` gives all of it as text.

    Raises:
        InputError, CalibrationError: see `search`.
    """
    from moemodel.calibration.store.catalogue import load_calibration
    from moemodel.model.search.document import Search, read_search
    from moemodel.model.search.explain import explain
    from moemodel.model.search.search import search

    opened, place = _opened(document, Search, "search", read_search)
    given = _plan_or_data(plan)
    with _errors_name(place):
        loaded = load_calibration(calibration, opened.cluster.gpu, key="cluster.gpu")
        return explain(opened, given, loaded, lambda asked: search(asked, loaded, progress))


def place(
    plan: Plan | Path | str | Mapping[str, Any],
    loads: Path | str | None = None,
    *,
    copies: int = 0,
    optimal: bool = False,
    seconds: float = 10.0,
    calibration: Calibration | Path | str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> PlacementResult:
    """Place a plan's experts by their loads, with copies of hot ones or without: `moemodel place`.

    >>> import moemodel
    >>> found = moemodel.place('''
    ... architecture: olmoe-1b-7b
    ... sequence_length: 2048
    ... global_batch: 64
    ... cluster: {gpu: h100-sxm-80gb, gpus: 8}
    ... parallel: {dp: 8, ep: 8, zero_stage: 1}
    ... backend: megatron
    ... ''')
    >>> found.after.step_time_s < found.before.step_time_s
    True

    Args:
        plan: as `predict` takes it, with ep of 2 at least.
        loads: a run's `routing-rankN.jsonl`, or its folder; None: drawn, as uneven as the plan's `routing.skew` says.
        copies: of experts, in each layer, beyond one of each; a multiple of ep.
        optimal: by an integer programme (extra calibrate), for so many `seconds` over all layers.
        calibration: as `predict` takes it, one that knows times.
        progress: called with layers done, how many there are, and which is next.

    Returns:
        Time, energy, memory and all-to-all of a step with experts in order and as placed; the experts of every rank.

    Raises:
        InputError: as `predict`; a model without experts, ep 1, copies that no placement holds, loads of another model.
        InfeasiblePlanError: degrees that don't divide the model.
        CalibrationError: as `predict`.
        MissingExtraError: scipy is not installed, which `optimal` needs.
    """
    from moemodel.calibration.store.catalogue import load_calibration
    from moemodel.model.plan.spec import Plan, read_plan
    from moemodel.model.results.placement import place

    opened, where = _opened(plan, Plan, "plan", read_plan)
    with _errors_name(where):
        loaded = load_calibration(calibration, opened.cluster.gpu, key="cluster.gpu")
    path = None if loads is None else Path(loads)
    return place(opened, loaded, path, copies=copies, optimal=optimal, seconds=seconds, progress=progress)


def _plan_or_data(given: Plan | Path | str | Mapping[str, Any]) -> Plan | dict[str, Any]:
    """A plan; its plain data where its degrees alone keep it from being one.

    Raises:
        InputError: see `predict`.
    """
    from moemodel.model.core.documents import read_text
    from moemodel.model.core.errors import InputError
    from moemodel.model.core.yaml_text import yaml_data
    from moemodel.model.plan.spec import Plan, read_plan
    from moemodel.model.search.explain import is_plan_but_for_rules

    try:
        return _opened(given, Plan, "plan", read_plan)[0]
    except InputError:
        if isinstance(given, Mapping):
            data: Any = dict(given)
        elif isinstance(given, Path) or (isinstance(given, str) and _is_path(given)):
            data = yaml_data(read_text(Path(given)), str(given))[0]
        else:
            data = yaml_data(str(given), "plan")[0]
        if not isinstance(data, dict) or not is_plan_but_for_rules(data):
            raise
        return data


def strategies(
    plan: Plan | Path | str | Mapping[str, Any],
    calibration: Calibration | Path | str | None = None,
    *,
    longer: float = 0.0,
    even_if_it_does_not_fit: bool = False,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Strategies:
    """What ways to choose clocks take on one job, each by its name: `moemodel strategies`.

    Needs the extra `clocks`. What rests on locked clocks was never measured on a real card.

    >>> import moemodel
    >>> found = moemodel.strategies({
    ...     "architecture": "opt-350m",
    ...     "sequence_length": 2048,
    ...     "global_batch": 16,
    ...     "micro_batch": 4,
    ...     "cluster": {"gpu": "h100-sxm-80gb", "gpus": 2},
    ...     "parallel": {"pp": 2},
    ... }, longer=0.05)
    >>> rows = {row.name: row for row in found.rows}
    >>> rows["joint"].energy.value <= rows["one-clock"].energy.value < 0
    True
    >>> rows["joint"].time.value <= 0.05 + 1e-9
    True

    Args:
        plan: see `predict`; its own clock does not count.
        calibration: see `predict`.
        longer: how much longer than at the highest clock a step may take, as a share.
        even_if_it_does_not_fit: answer also for a plan that needs more memory than the GPUs have.
        progress: is told which strategy comes, and how many of how many are done.

    Returns:
        For each strategy (`rows`) its prediction, the changes of time and energy against `max-clock` with their 90 %
        intervals, its clocks, and a plan that says them, None where no plan can; and `notes`. `to_json()` is what the
        command prints.

    Raises:
        InputError: see `predict`; or a share that is negative or beyond all sense, or a plan of inference.
        InfeasiblePlanError: see `predict`.
        CalibrationError: none of that name, of another GPU, or one without power.
        MissingExtraError: the extra is not installed.
    """
    from moemodel.calibration.store.catalogue import load_calibration
    from moemodel.model.plan.spec import Plan, read_plan
    from moemodel.model.strategies.strategies import strategies

    opened, place = _opened(plan, Plan, "plan", read_plan)
    with _errors_name(place):
        loaded = load_calibration(calibration, opened.cluster.gpu, key="cluster.gpu")
        return strategies(
            opened, loaded, longer=longer, even_if_it_does_not_fit=even_if_it_does_not_fit, progress=progress
        )


@needs_extra("profile", "profile")
def profile(
    gpu: str,
    folder: Path | str | None = None,
    *,
    clocks: Literal["auto", "lock", "passive", "as-is"] = "auto",
    budget_s: float = 280.0,
    seed: int = 0,
    sections: Sequence[str] | None = None,
    plans: Sequence[Path | str] = (),
    ranks: int | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> ProfileReport:
    """Measure the GPU at hand into a folder, or go on with a profile that was interrupted: `moemodel profile`.

    Needs the extra `profile`. A simulated GPU, whose seconds are virtual, shows how it goes:

    >>> import moemodel
    >>> done = moemodel.profile("sim:h100", "my-profile", sections=["host"])
    >>> done.interrupted, sorted(done.sections), done.rows["host"] > 0
    (False, ['host'], True)

    Args:
        gpu: name, alias or description file of the GPU that is here; "cpu"; or "sim:" and a name.
        folder: of the profile; None: `profile-GPU`.
        clocks: "lock" locks the SM clock step by step and gives it back to the driver whatever happens; "passive"
            lets mixes of load move it; "as-is" leaves that out, too; "auto" locks where that is permitted.
        budget_s: seconds for the sections of one GPU together; collectives and training steps come on top.
        seed: of shapes, order and operands.
        sections: of "mixed", "power", "heat", "solo", "sweep", "host", "collectives"; None: all.
        plans: files of plans whose training steps are measured, too.
        ranks: GPUs that talk to each other; None: all that are visible.
        progress: is told how far it is.
        announce: is told before a setting of the GPU is changed.

    Returns:
        Folder, rows of each table, seconds of each section, what was skipped and why, and whether a signal ended it.

    Raises:
        DeviceError: another GPU or none, or one that refuses what is asked.
        InputError: unknown section or GPU, or more ranks than there are.
        ProfileError: the folder holds another profile, or a damaged one.
    """
    from moemodel.profiler.run import profile

    return profile(
        gpu,
        _profile_folder(gpu) if folder is None else Path(folder),
        budget_s=budget_s,
        seed=seed,
        clocks=clocks,
        sections=sections,
        plans=[Path(plan) for plan in plans],
        progress=progress,
        announce=announce,
        ranks=ranks,
    )


@needs_extra("calibrate", "calibrate")
def calibrate(
    *profiles: Path | str, progress: Callable[[int, int, str], None] = lambda *_: None
) -> tuple[Calibration, list[HeldOut]]:
    """Fit a calibration to profiles of one kind of GPU, whose samples are pooled: `moemodel calibrate`.

    Needs the extra `calibrate`.

    >>> import moemodel
    >>> calibration, errors = moemodel.calibrate("my-profile")
    >>> moemodel.write_calibration(calibration, "mine.json")
    >>> moemodel.predict("plan.yaml", "mine.json").calibration == calibration.name
    True

    Args:
        profiles: folders that `profile` wrote, at least one.
        progress: is told the steps done, of how many, and what comes now.

    Returns:
        The calibration, and for each operator and pass the relative errors of times on shapes that were held out.

    Raises:
        InputError: no profile is given.
        ProfileError: one is missing, damaged, of another GPU, or lacks what a calibration needs.
    """
    from moemodel.calibration.fit.calibration import calibrate_profile
    from moemodel.model.core.errors import InputError

    if not profiles:
        raise InputError("calibrate: found no profile; give at least one folder that `moemodel profile` wrote")
    return calibrate_profile(*map(Path, profiles), progress=progress)


@needs_extra("calibrate_readings", "calibrate")
def calibrate_readings(*files: Path | str, gpu: str | None = None) -> tuple[Calibration, list[HeldOutReadings]]:
    """Fit a calibration to tables of kernel readings of one GPU: `moemodel calibrate --readings`.

    Needs the extra `calibrate`. What the readings don't show is as in the calibration of that GPU which this project
    measured, or else as derived for it.

    >>> import moemodel
    >>> calibration, errors = moemodel.calibrate_readings("gemm.csv", gpu="b200")
    >>> calibration.gpu, errors[0].name
    ('b200-sxm-180gb', 'gemm/forward')

    Args:
        files: Parquet or CSV, of the form that `calibration.published.kernels.readings` describes; at least one.
        gpu: name or description file; None: the only GPU that the files have rows of.

    Returns:
        The calibration, and relative errors of times on shapes that were held out.

    Raises:
        InputError: no file is given; one is missing, of another form or has an impossible value; rows of several GPUs
            and none named; too few rows that can be used.
        CalibrationError: the GPU's description says too little to derive the rest.
    """
    from moemodel.calibration.published.kernels.overlay import base_of, overlay_readings
    from moemodel.calibration.published.kernels.readings import gpu_of, read_readings
    from moemodel.model.core.errors import InputError

    if not files:
        raise InputError("calibrate_readings: found no file; give at least one table of kernel readings")
    paths = [Path(file) for file in files]
    description = gpu_of(paths, gpu)
    return overlay_readings(base_of(description), description, read_readings(paths, description))


@needs_extra("recalibrate", "calibrate")
def recalibrate(
    *reports: Report | Path | str, calibration: Calibration | Path | str | None = None, force: bool = False
) -> Update:
    """Refit factors common to all plans to what validations found: `moemodel calibrate --update`.

    Needs the extra `calibrate`.

    >>> import moemodel
    >>> update = moemodel.recalibrate("validation")
    >>> if update.kept:
    ...     moemodel.write_calibration(update.calibration, "new.json")

    Args:
        reports: that `validate` returned or wrote: themselves, their files, or the folders; at least one.
        calibration: to start from, see `predict`; None: the one that ships for the reports' GPU.
        force: keep what does not help plans that were left out of the fit, too.

    Returns:
        The new calibration, the parts of it that were fitted with their errors before and after, and which were kept.

    Raises:
        InputError: no report, too few plans in them, or one given or counted twice.
        CalibrationError: of another GPU than a report, or lacks an operator.
    """
    from moemodel.calibration.store.catalogue import load_calibration
    from moemodel.calibration.update.from_reports import update
    from moemodel.model.core.errors import InputError
    from moemodel.model.results.validation import read_report

    if not reports:
        raise InputError("recalibrate: found no report; give at least one that `moemodel validate` wrote")
    read = [read_report(Path(one)) if isinstance(one, str | Path) else one for one in reports]
    start = load_calibration(calibration, read[0].environment.gpu, key="environment.gpu")
    places = (str(one) if isinstance(one, str | Path) else f"the report of {one.created}" for one in reports)
    return update(start, read, ", ".join(places), force=force)


@needs_extra("validate", "profile")
def validate(
    *plans: Plan | Path | str | Mapping[str, Any],
    search: SearchResult | Path | str = SEARCH_RESULT,
    folder: Path | str | None = None,
    gpu: str | None = None,
    calibration: Calibration | Path | str | None = None,
    top: int = 5,
    controls: bool = True,
    repeats: int = 3,
    seconds: float = 3.0,
    warm_s: float = 2.0,
    seed: int = 0,
    clocks: Literal["auto", "passive", "lock"] = "auto",
    launcher: Literal["local", "slurm"] = "local",
    timeout_s: float = 240.0,
    say: Callable[[str], None] = lambda _: None,
) -> ValidationResult:
    """Run plans for real on the GPUs at hand, and hold what they measure against predictions: `moemodel validate`.

    Needs the extra `profile`.

    >>> import moemodel
    >>> result = moemodel.validate("plan.yaml", folder="validation", repeats=1, controls=False)
    >>> result.report.complete, sorted(result.report.errors)
    (True, ['energy', 'memory', 'power', 'step_time'])

    Args:
        plans: each a path, YAML text, a dict, or a `Plan`, see `predict`; none: the best of a search.
        search: what `search` returned, or the file that `moemodel optimize` wrote; not read where plans are given.
        folder: of the validation; one that was interrupted is gone on with. None: `validation-NAME`.
        gpu: name or description file of the GPU that is here; None: that of the search or of the first plan.
        calibration: see `predict`; None: the one that ships for that GPU.
        top: plans of the search that are run.
        controls: run the default plan and a random feasible one too.
        repeats: rounds; in each, every plan is run once.
        seconds: measured, of a run; after `warm_s` seconds that are not.
        seed: of the order, of the random control, of weights and data.
        clocks: "auto" holds the clock that a plan asks for where that is permitted; "passive" never; "lock": such a
            plan fails where it isn't.
        launcher: what starts the processes.
        timeout_s: seconds without progress after which a run is ended.
        say: told in a sentence how it goes.

    Returns:
        The report (predicted and measured time, power, energy, memory and clock of each plan in SI units, their errors
        and the agreement of rankings), its folder, and whether a signal ended it before all was run.

    Raises:
        InputError: see `predict`; no plan can be run here; or the folder holds another validation.
        InfeasiblePlanError: degrees that don't divide the model.
        CalibrationError: of another GPU, or it lacks an operator.
        DeviceError: another GPU or none, or its clock can't be held where that was asked for.
    """
    from moemodel.calibration.store.catalogue import load_calibration
    from moemodel.validation.run import Options, gpu_of, validate_here

    asked = _requests(plans) if plans else _search_result(search)
    wanted = gpu_of(asked)
    loaded = load_calibration(calibration, gpu or wanted, key="--gpu" if gpu else "cluster.gpu")
    options = Options(
        repeats=repeats,
        seconds=seconds,
        warm_s=warm_s,
        seed=seed,
        clocks=clocks,
        launcher=launcher,
        timeout_s=timeout_s,
    )
    return validate_here(
        asked,
        None if folder is None else Path(folder),
        loaded,
        options,
        gpu=gpu or wanted,
        top=top,
        controls=controls,
        say=say,
    )


def run(
    document: RunDocument | Path | str | Mapping[str, Any],
    folder: Path | str | None = None,
    *,
    gpu: str | None = None,
    calibration: Calibration | Path | str | None = None,
    launcher: Literal["local", "slurm"] = "local",
    timeout_s: float = 240.0,
    only: Sequence[str] = (),
    progress: Callable[[RunProgress], None] = lambda _: None,
) -> MatrixResult:
    """Train what a document asks for, run by run, each with a folder of what it did: `moemodel run`.

    Needs the extra `profile`, and that of each framework. Beside every run lies what was predicted before it began.

    >>> import moemodel
    >>> done = moemodel.run('''
    ... plan: {architecture: config.json, sequence_length: 32, global_batch: 2, cluster: {gpu: h100-sxm-80gb}}
    ... samples: 4
    ... warmup_steps: 1
    ... ''', "runs", gpu="cpu")
    >>> [result.status for result in done.results.values()]
    ['done']

    Args:
        document: a path, YAML text, a dict of the same keys, or a `RunDocument`.
        folder: of the runs; one that holds runs of the same document is gone on with. None: the document's name.
        gpu: name or description file of the GPU that is here, or "cpu", in the plans' place; None: the plans'.
        calibration: of the predictions; None: the one that ships for each plan's GPU.
        launcher: what starts the processes.
        timeout_s: seconds without progress after which a run is ended.
        only: names of runs; none: all.
        progress: is told how far it is.

    Returns:
        Folder and result of each run: done, out of memory, refused, or failed, and why.

    Raises:
        InputError: see `predict`; samples that are no whole number of steps; or the folder holds other things.
    """
    from moemodel.profiler.runs.document import RunDocument, on_gpu, read_run
    from moemodel.profiler.runs.execute import RunOptions, run_matrix
    from moemodel.profiler.runs.place import emissions_place

    opened, place = _opened(document, RunDocument, "run", read_run)
    opened = on_gpu(opened, gpu)
    options = RunOptions(
        launcher=launcher,
        timeout_s=timeout_s,
        emissions=lambda cell: emissions_place(cell.plan, opened.codecarbon),
    )
    return run_matrix(
        opened,
        Path(opened.name) if folder is None else Path(folder),
        options,
        plan_folder=Path(place).parent if place else Path(),
        predict=lambda cell: _predicted(cell.plan, calibration),
        progress=progress,
        only=only,
    )


def import_megatron(
    arguments: Mapping[str, Any] | Path | str,
    *,
    gpu: str,
    gpus: int,
    vocab: int | None = None,
    model: Literal["gpt", "bert", "t5"] | None = None,
    folder: Path | str,
    overwrite: bool = False,
) -> MegatronImport:
    """Make a plan and a model of Megatron-LM's arguments: `moemodel import megatron`.

    >>> import moemodel
    >>> arguments = {"--num-layers": 12, "--hidden-size": 512, "--num-attention-heads": 8, "--bf16": True}
    >>> arguments |= {"--seq-length": 1024, "--max-position-embeddings": 1024, "--micro-batch-size": 4}
    >>> found = moemodel.import_megatron(arguments, gpu="a100-sxm-80gb", gpus=8, folder="imported")
    >>> found.plan.parallel.dp, found.plan.global_batch
    (8, 32)
    >>> found.left_out[0]
    '--hidden-dropout 0.1: nothing is dropped'
    >>> moemodel.predict("imported/plan.yaml").fits
    True

    Args:
        arguments: name -> value, True for a flag; or a file: a launch script, a text of them, YAML or JSON
            (`model.plan.argument_files`).
        gpu, gpus: that they run on, which Megatron's arguments do not say.
        vocab: words of the tokenizer, where the arguments don't state them.
        model: that the program trains; None: as a launch script says, or GPT.
        folder: that `plan.yaml` and `config.json` are written into; made if it is not there.
        overwrite: files of these names that are there.

    Returns:
        The plan; what of the arguments no plan can say (`left_out`), a sentence each; and arguments that nobody here
        knows (`unknown`).

    Raises:
        InputError: no such file, an argument that is missing or wrong, a run that no plan can be of, or files that are
            there already.
    """
    from moemodel.model.plan.argument_files import names_bert, read_arguments
    from moemodel.model.plan.megatron_import import import_run

    given = arguments if isinstance(arguments, Mapping) else read_arguments(Path(arguments))
    if model is None and not isinstance(arguments, Mapping) and names_bert(Path(arguments)):
        model = "bert"
    return import_run(given, Path(folder), gpu=gpu, gpus=gpus, vocab=vocab, model=model, overwrite=overwrite)


def predict_runs(
    document: RunDocument | Path | str | Mapping[str, Any],
    *,
    gpu: str | None = None,
    calibration: Calibration | Path | str | None = None,
) -> dict[str, Outcome]:
    """What is predicted of every run that a document asks for, without running any: `moemodel run --predict`.

    >>> import moemodel
    >>> answers = moemodel.predict_runs('''
    ... plan: {architecture: opt-350m, sequence_length: 512, global_batch: 8, cluster: {gpu: h100-sxm-80gb}}
    ... matrix: {micro_batch: [4, 8]}
    ... samples: 80
    ... ''')
    >>> [name for name, answer in answers.items() if answer.fits]
    ['micro_batch-4', 'micro_batch-8']

    Args:
        document: see `run`.
        gpu: in the plans' place; None: the plans'.
        calibration: of the predictions; None: the one that ships for each plan's GPU.

    Returns:
        By name of the run, as `predict` answers; for those that don't fit, too.

    Raises:
        InputError: see `run`.
        InfeasiblePlanError: degrees that don't divide a model.
    """
    from moemodel.profiler.runs.document import RunDocument, cells, on_gpu, read_run

    opened, place = _opened(document, RunDocument, "run", read_run)
    opened = on_gpu(opened, gpu)
    return {
        cell.name: predict(cell.plan, calibration, even_if_it_does_not_fit=True)
        for cell in cells(opened, Path(place).parent if place else Path())
    }


def compare(*runs: Path | str, folder: Path | str | None = None, figures: bool | None = False) -> Comparison:
    """Hold training runs against each other at equal samples: `moemodel compare`.

    >>> import moemodel
    >>> found = moemodel.compare("runs", folder="comparison")
    >>> for one in found.differences:
    ...     if one.factor == "framework" and one.quantity == "energy":
    ...         print(one.a, one.b, one.verdict)
    deepspeed torch less
    >>> [cell.spread("energy").runs for cell in found.cells]
    [3, 3]

    Args:
        runs: folders that `moemodel run` wrote, of runs or of matrices.
        folder: to write a page, tables and data into; None: nothing is written.
        figures: as PNG and SVG too; None: where matplotlib is installed. Needs the extra `plots`.

    Returns:
        Cells, each with its repeats at as many samples as the shortest run has; in what pairs of cells that differ in
        one thing differ by more than their repeats do; what was predicted beside what was measured; runs that were not
        done, and why; notes. In SI units.

    Raises:
        InputError: a folder that is no run's, or holds one that is given twice; a file that is damaged, contradicts
            another, or is of a newer version; or `folder` holds other things.
        MissingExtraError: figures were asked for, and matplotlib is not installed.
    """
    from moemodel.validation.compare.comparison import compare_folders
    from moemodel.validation.compare.write import can_draw, check_folder, write_comparison

    if folder is not None:
        check_folder(Path(folder))
    found = compare_folders([Path(run) for run in runs])
    if folder is not None:
        write_comparison(found, Path(folder), figures=can_draw() if figures is None else figures)
    return found


def _predicted(plan: Plan, calibration: Calibration | Path | str | None) -> Mapping[str, Any] | None:
    """What is predicted of a plan, for its run's folder; None where nothing can be."""
    from moemodel.model.core.errors import MoeModelError

    try:
        answer = predict(plan, calibration, even_if_it_does_not_fit=True)
    except MoeModelError:
        return None
    return answer.to_json()


# ---- what is given --------------------------------------------------------------------------------------------------


def _opened(given: Any, model: type[DocumentT], what: str, read: Callable[[Path], DocumentT]) -> tuple[DocumentT, str]:
    """A document, and the file it is of, which errors name; "" where it is of none.

    Raises:
        InputError: it is none of what is allowed, or not what `model` allows.
    """
    from moemodel.model.core.documents import parse_data, parse_yaml
    from moemodel.model.core.errors import InputError
    from moemodel.model.core.shown import shown

    if isinstance(given, model):
        return given, ""
    if isinstance(given, Path) or (isinstance(given, str) and _is_path(given)):
        return read(Path(given)), str(given)
    if isinstance(given, Mapping):
        return _found_here(parse_data(dict(given), model, what)), ""
    if isinstance(given, str) and (":" in given or "\n" in given):
        return _found_here(parse_yaml(given, model, what)), ""
    found = f"{shown(given)}, no such file" if isinstance(given, str) else type(given).__name__
    raise InputError(f"{what}: found {found}; allowed: a path, YAML text, a dict, or a {model.__name__}")


def _found_here(document: DocumentT) -> DocumentT:
    """A document that is of no file: a framework's that it names is looked for in the working directory."""
    from moemodel.model.frameworks.framework_file import is_known_by_now
    from moemodel.model.plan.paths import NamesFiles

    if isinstance(document, NamesFiles) and not is_known_by_now(document.backend):
        return document.read_in(Path.cwd())
    return document


def _is_path(text: str) -> bool:
    from moemodel.model.core.files import is_there

    if "\n" in text or text.lstrip().startswith("{"):
        return False
    return bool(text) and (text.endswith(_SUFFIXES) or "/" in text or is_there(Path(text)))


@contextmanager
def _errors_name(place: str) -> Iterator[None]:
    """An error says which file it is about."""
    from moemodel.model.core.errors import InfeasiblePlanError, InputError

    try:
        yield
    except (InputError, InfeasiblePlanError) as error:
        named = type(error)(f"{place}: {error}" if place else str(error))
        named.__dict__.update(error.__dict__)  # what else it has to say
        raise named from None


def _profile_folder(gpu: str) -> Path:
    """Where a profile goes unless one says: `sim:h100?seed=1` isn't a name for every file system."""
    described = gpu.endswith(".json") and not gpu.startswith("sim:")
    return Path(f"profile-{re.sub(r'[^A-Za-z0-9.]+', '-', Path(gpu).stem if described else gpu)}")


def _requests(plans: Sequence[Plan | Path | str | Mapping[str, Any]]) -> list[PlanRequest]:
    """Plans that are given, each with where it is from."""
    from moemodel.model.plan.spec import Plan, read_plan
    from moemodel.validation.select.runnable import PlanRequest

    opened = (_opened(plan, Plan, "plan", read_plan) for plan in plans)
    return [PlanRequest(role=f"file {place}" if place else f"plan {plan.name}", plan=plan) for plan, place in opened]


def _search_result(given: SearchResult | Path | str) -> SearchResult:
    from moemodel.model.core.errors import InputError
    from moemodel.model.core.files import is_there
    from moemodel.model.search.result import read_search_result

    if not isinstance(given, str | Path):
        return given
    if not is_there(Path(given)):
        raise InputError(f"{given}: no such file; run `moemodel optimize SEARCH.yaml` first, or name plan files")
    return read_search_result(Path(given))
