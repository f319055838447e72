"""A whole profile: sections in order, each within its share of the time, each interruptible."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from moemodel.model.core.ending import Terminated, ending_cleanly
from moemodel.model.core.errors import DeviceError, InputError
from moemodel.model.records.profile import MANIFEST, HostRow
from moemodel.profiler.clocks.claim import claimed
from moemodel.profiler.clocks.clock_control import Choice, ClockControl, choose_clocks
from moemodel.profiler.clocks.settings import AskedClocks, Clocks
from moemodel.profiler.collectives.helpers import first_of_job, helps, run_as_helper
from moemodel.profiler.collectives.points import Scale
from moemodel.profiler.collectives.section import SECTION as COLLECTIVES
from moemodel.profiler.collectives.section import Collectives, check_enough, devices_at_hand
from moemodel.profiler.devices.base import Device
from moemodel.profiler.devices.cpu import power_note
from moemodel.profiler.devices.memory import make_room
from moemodel.profiler.instruments.energy_sampler import EnergySampler
from moemodel.profiler.jobs.place import launched
from moemodel.profiler.jobs.ranks import adopt_launcher
from moemodel.profiler.microbench.budget import MeasurementBudget, budget_for
from moemodel.profiler.microbench.grid import cpu_grid, cpu_sweep, gpu_grid, gpu_sweep
from moemodel.profiler.microbench.harness import Harness
from moemodel.profiler.microbench.points import Point
from moemodel.profiler.microbench.skips import Skip
from moemodel.profiler.platforms.base import Platform
from moemodel.profiler.platforms.registry import open_named, platform_of
from moemodel.profiler.sections.base import Section
from moemodel.profiler.sections.loads import cpu_loads, gpu_loads
from moemodel.profiler.sections.locked_sweep import LockedSweep
from moemodel.profiler.sections.operator_times import Mix, OperatorTimes
from moemodel.profiler.sections.passive_sweep import PassiveSweep
from moemodel.profiler.sections.power import Load, PowerOfLoads
from moemodel.profiler.sections.progress import Progress, Silent
from moemodel.profiler.sections.thermal import Heat, ThermalTrace
from moemodel.profiler.store.folder_lock import folder_lock
from moemodel.profiler.store.manifest import new_manifest
from moemodel.profiler.store.profile_writer import ProfileWriter, read_manifest
from moemodel.profiler.training.launch import LaunchOptions, measure_host
from moemodel.profiler.training.measure import measure_plans

# Section -> its share of the time: assumed; what one leaves over goes to the next. `host` is last: its kernel counter
# may slow later launches of the process.
SECTIONS = {"mixed": 0.30, "power": 0.28, "heat": 0.19, "solo": 0.07, "sweep": 0.12, "host": 0.04}
_HEAVY_SECTIONS = ("mixed", "sweep")  # which drive the clock by a heavy load: not asked for by --clocks as-is
_HEAVY_RATIO = 3.0  # of heavy load to operator in section `mixed`, as the mix 3:1 of the sweep
# On a processor: 226 s on two cores that others used too (AMD EPYC, measured for this project, 2026).
_SLOW_HOST = (
    "the budget of {:.0f} s bounds all sections but the last: host trains small models, which a processor takes "
    "minutes for where other work runs beside it; Ctrl-C keeps what was measured, --sections without host leaves it out"
)
_PARALLEL_HOST_REPEATS = 10  # of each tiny model: about 30 s on two H100


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is measured on a kind of device."""

    points: Sequence[Point]
    sweep: Sequence[Point]
    loads: Sequence[Load]


@dataclass(kw_only=True)
class ProfileReport:
    """What a profile run did.

    Attributes:
        folder: of the profile.
        seconds: that this run took.
        sections: section -> seconds it took in this run.
        rows: table -> rows in the profile now.
        skips: what could not be measured.
        notes: what a reader should know, such as why there are no true clocks.
        helped: this process only helped the first of a launcher's; that one has the outcome.
        interrupted: by Ctrl-C or a signal; the profile can be resumed.
        signal: number of the signal that ended it; None for Ctrl-C.
    """

    folder: Path
    seconds: float = 0.0
    sections: dict[str, float] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    skips: list[Skip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    helped: bool = False
    interrupted: bool = False
    signal: int | None = None


def profile(
    gpu: str,
    folder: Path,
    *,
    budget_s: float = 280.0,  # within five minutes, with what starting takes
    seed: int = 0,
    clocks: AskedClocks = "passive",
    sections: Sequence[str] | None = None,
    plans: Sequence[Path] = (),
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda _: None,
    budget: MeasurementBudget | None = None,
    workload: Workload | None = None,
    ranks: int | None = None,
    scale: Scale | None = None,
) -> ProfileReport:
    """Measure a device into a profile folder, or go on with one that was interrupted.

    Where there are several GPUs, the first is measured by itself, then how all talk to each other: in processes that
    this one starts, or in those of a launcher (torchrun), of which the first writes the profile.

    Args:
        gpu: name, alias or description file of the GPU, or "cpu"; must be the device that is here. With "sim:" before
            its name, a simulation of it, whose seconds are virtual.
        folder: of the profile.
        budget_s: for the sections of one device together; collectives and training runs come on top.
        seed: of shapes, order and operands.
        clocks: "passive": the governor moves the clock under mixes of load; "as-is": no such mixes; "lock": section
            `sweep` locks clocks, which are given back to the driver whatever happens; "auto": "lock" where that is
            permitted and nobody else computes there, else "passive"; the outcome's notes say which, and why.
        sections: of `SECTIONS`, and "collectives"; all of them by default.
        plans: training plans to run and measure after the sections.
        progress: told how far it is.
        announce: told before a setting of the GPU is changed.
        budget: instead of what suits the device.
        workload: instead of what suits the device.
        ranks: devices that talk to each other; all that are visible by default, of processors one.
        scale: of the collectives, instead of what suits the device.

    Raises:
        DeviceError: another device, none, or one that does not allow what is asked, or was not restored; or processes
            that measure collectives failed or hung.
        InputError: no such section or GPU description, or more ranks than there are; or somebody else is at work in
            the folder.
        ProfileError: the folder holds another profile, or a damaged one.
    """
    begun_s = time.perf_counter()
    chosen = _chosen_sections(sections, clocks)
    adopt_launcher()
    if helps():
        run_as_helper()
        return ProfileReport(folder=folder, helped=True)
    outcome = ProfileReport(folder=folder)
    with ending_cleanly():
        try:
            with folder_lock(folder, "profile", hint=_launch_hint()), ExitStack() as stack:
                helpers = stack.enter_context(first_of_job())
                device, name = open_named(gpu)
                stack.callback(device.close)
                platform = platform_of(device)
                if plans and not platform.trains:
                    raise DeviceError(f"--gpu {gpu} runs operators only, no training steps; leave --train out")
                talking = devices_at_hand(device, platform, ranks)
                if COLLECTIVES in (sections or ()):
                    check_enough(talking)
                begun_s += platform.timer.now_s() - time.perf_counter()  # the same instant, in the device's time
                stack.callback(lambda: setattr(outcome, "seconds", platform.timer.now_s() - begun_s))
                settings = platform.settings()
                stack.enter_context(claimed(device.info.name, settings.address if settings else None))
                control = stack.enter_context(ClockControl(device, settings))
                choice = choose_clocks(
                    clocks, control, begun=_begun(folder), needed="sweep" in chosen, announce=announce
                )
                outcome.notes += _clock_notes(choice, control)
                writer = ProfileWriter(folder, new_manifest(name, device.info, choice.clocks, seed))
                stack.callback(lambda: outcome.rows.update(writer.rows()))
                stack.callback(writer.consolidate)
                run = _Run(
                    device=device,
                    platform=platform,
                    writer=writer,
                    progress=progress or Silent(),
                    outcome=outcome,
                    budget=budget or budget_for(device.torch_device),
                    workload=workload or default_workload(device, seed),
                    seed=seed,
                    control=control if choice.clocks == "lock" else None,
                )
                if device.torch_device.type == "cpu" and run.lacks_host(chosen):
                    announce(_SLOW_HOST.format(budget_s))
                run.sections(chosen, begun_s, budget_s)
                if talking > 1 and (sections is None or COLLECTIVES in sections):
                    run.collectives(
                        Collectives(
                            gpu=gpu,
                            device=device,
                            platform=platform,
                            writer=writer,
                            ranks=talking,
                            seed=seed,
                            scale=scale,
                            helpers=helpers,
                            notes=outcome.notes,
                        )
                    )
                run.training(plans)
        except KeyboardInterrupt as interruption:
            outcome.interrupted = True
            outcome.signal = interruption.number if isinstance(interruption, Terminated) else None
    return outcome


def _launch_hint() -> str:
    """What to do where a launcher started several of this command that don't know of each other."""
    found = launched()
    if found is None:
        return ""
    return (
        f"; this is process {found.rank} of {found.size} that {found.source} started: start one, or export MASTER_ADDR "
        "and MASTER_PORT first, by which the others help it with collectives"
    )


def _clock_notes(choice: Choice, control: ClockControl) -> list[str]:
    """How clocks are dealt with, and who else computes there."""
    chosen = [choice.note] if choice.note else []
    company = control.company() if choice.clocks != "lock" else None
    if company is None or any(company in note for note in chosen):
        return chosen
    return [*chosen, f"{company}: times and power are of both"]


def default_workload(device: Device, seed: int) -> Workload:
    """The grid, sweep and loads for a kind of device."""
    if device.torch_device.type == "cpu":
        return Workload(points=cpu_grid(seed), sweep=cpu_sweep(), loads=cpu_loads())
    return Workload(points=gpu_grid(seed), sweep=gpu_sweep(), loads=gpu_loads())


def _mixed(work: Workload, budget: MeasurementBudget, control: ClockControl | None) -> Section:
    del control
    return OperatorTimes(work.points, Mix(label="mixed", heavy=_HEAVY_RATIO, samples=budget.mixed_samples))


def _solo(work: Workload, budget: MeasurementBudget, control: ClockControl | None) -> Section:
    del control
    return OperatorTimes(work.points, Mix(label="solo", heavy=0, samples=budget.solo_samples))


def _sweep(work: Workload, budget: MeasurementBudget, control: ClockControl | None) -> Section:
    del budget
    return LockedSweep(control, work.sweep, work.loads) if control else PassiveSweep(work.sweep)


# What measures a section with the harness; the control is there where clocks are locked.
_OPENERS: dict[str, Callable[[Workload, MeasurementBudget, ClockControl | None], Section]] = {
    "mixed": _mixed,
    "power": lambda work, *_: PowerOfLoads(work.loads),
    "heat": lambda work, *_: Heat(work.loads),
    "solo": _solo,
    "sweep": _sweep,
}


def _begun(folder: Path) -> Clocks | None:
    """How the clocks of the profile in a folder are dealt with; None where there is none yet."""
    file = folder / MANIFEST
    return read_manifest(file).clocks if file.exists() else None


def _chosen_sections(sections: Sequence[str] | None, clocks: AskedClocks) -> list[str]:
    """The sections of one device among those that are asked for."""
    allowed = [s for s in SECTIONS if clocks != "as-is" or s not in _HEAVY_SECTIONS]
    for section in sections or ():
        if section not in (*allowed, COLLECTIVES):
            names = ", ".join([*allowed, COLLECTIVES])
            raise InputError(f"--sections: found {section!r}; allowed with --clocks {clocks}: {names}")
    return [s for s in allowed if sections is None or s in sections]


def shares(sections: Sequence[str]) -> list[float]:
    """Cumulative share of the budget at the end of each section; what one leaves over goes to the next."""
    total = sum(SECTIONS[s] for s in sections)
    ends: list[float] = []
    for section in sections:
        ends.append((ends[-1] if ends else 0.0) + SECTIONS[section] / total)
    return ends


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One run's parts, tied together."""

    device: Device
    platform: Platform
    writer: ProfileWriter
    progress: Progress
    outcome: ProfileReport
    budget: MeasurementBudget
    workload: Workload
    seed: int
    control: ClockControl | None = None  # where clocks are locked

    def sections(self, chosen: Sequence[str], begun_s: float, budget_s: float) -> None:
        ends_s = [begun_s + budget_s * share for share in shares(chosen)]
        deadline_s = dict(zip(chosen, ends_s, strict=True))
        on_bench = [s for s in chosen if s != "host"]
        if on_bench:
            self._on_bench(on_bench, deadline_s)
            make_room(self.device.torch_device)
        if self.lacks_host(chosen):
            if self.platform.timer.now_s() > deadline_s["host"]:
                self.outcome.skips.append(Skip(what="host", reason="the budget was spent; run again to add it"))
            else:
                self._section("host", 1, self._host)

    def lacks_host(self, chosen: Sequence[str]) -> bool:
        """Whether section `host` is still to be measured."""
        return "host" in chosen and "host" not in self.writer.manifest.sections

    def collectives(self, section: Collectives) -> None:
        """Measure how several devices talk to each other, in processes apart; this one's device is left to them."""
        make_room(self.device.torch_device)
        begun_s = self.platform.timer.now_s()
        self.outcome.skips += section.measure(self.progress)
        if self.device.torch_device.type == "cuda" and section.helpers is None:
            self._parallel_host(section.gpu)
        self._finish(COLLECTIVES, begun_s)

    def _parallel_host(self, gpu: str) -> None:
        """The host's time of what parallel plans add; with collectives over gloo it would say nothing of a GPU's."""
        if self.writer.has(HostRow, block="fsdp_unit", direction="forward", detail="zero 3"):
            return
        self.progress.begin("host of parallel plans", 1)
        try:
            with tempfile.TemporaryDirectory(prefix="moemodel-") as folder:
                options = LaunchOptions(gpu=gpu, clocks="passive")
                rows = measure_host(folder=Path(folder), options=options, repeats=_PARALLEL_HOST_REPEATS)
            self.writer.append(rows)
        except DeviceError as error:
            self.outcome.skips.append(Skip(what="host of parallel plans", reason=str(error)))
        self.progress.end()

    def training(self, plans: Sequence[Path]) -> None:
        """Measure whole training steps of plans; the harness and its operands are gone by now."""
        if not plans:
            return
        self.progress.begin("training", len(plans))
        begun_s = self.platform.timer.now_s()
        failed = measure_plans(plans, self.device, self.writer, report=self.progress.step)
        self.outcome.skips += [Skip(what=f"plan {f.plan}", reason=f.reason) for f in failed]
        self._finish("training", begun_s)

    def _on_bench(self, chosen: Sequence[str], deadline_s: dict[str, float]) -> None:
        begun_s = self.platform.timer.now_s()
        sampler = self.platform.sampler()
        trace = ThermalTrace(sampler, self.writer, begun_s)
        sampler.label = "starting"
        with sampler:
            try:
                bench = self._open_bench(sampler)
                self._note(bench)
                for name in chosen:
                    section = _OPENERS[name](self.workload, self.budget, self.control)
                    sampler.label = name
                    self._section(name, section.steps, partial(self._run, section, bench, deadline_s[name], trace))
                self.writer.note_host(context_B=_context_B(self.device))
            finally:
                self.outcome.notes += trace.end()

    def _open_bench(self, sampler: EnergySampler) -> Harness:
        """The harness, its operands made and its heavy load run once.

        Raises:
            DeviceError: the device does not even do that.
        """
        try:
            instruments = self.platform.instruments(self.budget, self.seed)
            return Harness(self.device, self.budget, self.seed, sampler, instruments)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise DeviceError(f"{self.device.info.name} failed before anything was measured: {reason}") from error

    def _run(self, section: Section, bench: Harness, deadline_s: float, trace: ThermalTrace) -> list[Skip]:
        skips = section.run(bench, self.writer, deadline_s, self.progress)
        trace.keep()
        return skips

    def _host(self) -> list[Skip]:
        rows = self.platform.host_rows(self.budget.host_repeats)
        self.writer.append([row for row in rows if not self.writer.has(HostRow, **row.columns())])
        self.progress.step("tiny models")
        return []

    def _section(self, name: str, steps: int, measure: Callable[[], list[Skip]]) -> None:
        self.progress.begin(name, steps)
        begun_s = self.platform.timer.now_s()
        self.outcome.skips += measure()
        self._finish(name, begun_s)

    def _finish(self, name: str, begun_s: float) -> None:
        seconds = self.platform.timer.now_s() - begun_s
        self.outcome.sections[name] = seconds
        self.writer.section_finished(name, seconds)
        self.progress.end()

    def _note(self, bench: Harness) -> None:
        if bench.clock.note:
            self.outcome.notes.append(bench.clock.note)
        note = power_note(self.device.info)
        if note is None and self.device.energy_J() is None:
            note = "no energy: this device has no energy counter that may be read"
        if note:
            self.outcome.notes.append(note)
        self.outcome.notes.append(f"heavy load: {bench.heavy.name}, {bench.heavy.time_s * 1e3:.3f} ms")


def _context_B(device: Device) -> float | None:
    """Device memory that the driver counts beside the framework's allocator: context, libraries, kernels."""
    used_B = device.used_memory_B()
    if used_B is None or device.torch_device.type != "cuda":
        return None
    return used_B - torch.cuda.memory_reserved(device.torch_device)
