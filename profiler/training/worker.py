"""One process of a job: `python -m moemodel.profiler.training.worker --job FOLDER/job.json`, under `launch`.

Runs the plans of the job one after another in the same processes, since starting Python and NCCL takes longer than many
a measurement. A plan that needs fewer ranks runs on the first ones, while the others wait in the store, off their
devices. Rank 0 appends what was measured before the next plan begins.

A plan that is refused is left out by all ranks alike. Anything else that goes wrong on any rank ends the process at
once, and so the job: the others may be waiting for it inside a collective, and no device is then in a known state.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import socket
import sys
import time
import traceback
from collections.abc import MutableMapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from moemodel.model.core.documents import parse_yaml, read_json
from moemodel.model.core.errors import DeviceError, MoeModelError
from moemodel.model.plan.clock import Auto, clock_text
from moemodel.model.plan.spec import Plan
from moemodel.model.records.profile import IterationRow
from moemodel.profiler.backends.base import (
    Builder,
    TrainingRun,
    architecture_in,
    builder,
    check_runs,
    release_comm_buffers,
)
from moemodel.profiler.clocks.clock_control import ClockControl
from moemodel.profiler.devices.base import Device
from moemodel.profiler.devices.memory import free_memory
from moemodel.profiler.host_overhead import parallel_plans as host
from moemodel.profiler.instruments.cycle_counter import ClockReader
from moemodel.profiler.jobs.events import EVENTS, EventWriter
from moemodel.profiler.jobs.failures import write_failure
from moemodel.profiler.jobs.ranks import Ranks, failure_of, fit_devices, join, part, redirect_output
from moemodel.profiler.jobs.rendezvous import RendezvousStore
from moemodel.profiler.platforms.registry import open_named, platform_of
from moemodel.profiler.training.asked_clocks import PhaseClocks_MHz, clocks_of_rank, untold_phases
from moemodel.profiler.training.measure import measure_run
from moemodel.profiler.training.orders import AskedClocks, Job, VisitOrder
from moemodel.profiler.training.phase_locks import PhaseLocks, device_passed, telling

_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
_PATIENCE_S = 86_400.0  # of a rank without a part in the plan: whoever started the job knows when it hangs


class Worker:
    """One process of a job, once all have met.

    Args:
        job: what to do.
        folder: of the job.
        ranks: who this one is.
        device: that it drives.
        control: of that device's clock.
    """

    def __init__(self, job: Job, folder: Path, ranks: Ranks, device: Device, control: ClockControl) -> None:
        self._job, self._ranks, self._device, self._control = job, ranks, device, control
        self._events = EventWriter(folder / EVENTS)
        self._store = dist.distributed_c10d._get_default_store()
        self._clock = ClockReader(device)
        self.visit: int | None = None  # that is running

    def run(self) -> None:
        """The host's time, if it is asked for, then all visits."""
        if self._job.host_repeats:
            rows = host.measure(
                self._device.torch_device, self._peers("host", self._ranks.size), self._job.host_repeats
            )
            self._emit_event("host", rows=[asdict(row) for row in rows])
        for number, order in enumerate(self._job.visits):
            self.visit = number
            everybody = self._peers(f"visit {number}", self._ranks.size)
            if not everybody.first(self._launcher_lives()):
                return
            self._emit_event("began", visit=number)
            begun_s = time.perf_counter()
            refusal = self._run_visit(order, everybody, begun_s)
            if refusal is not None:
                self._emit_event("refused", visit=number, reason=refusal)
            everybody.barrier()
        self._emit_event("done")

    def _run_visit(self, order: VisitOrder, everybody: RendezvousStore, begun_s: float) -> str | None:
        """Measure a plan and say what came out, or why it is refused."""
        try:
            plan = parse_yaml(order.plan_yaml, Plan, "plan")
            architecture = architecture_in(plan, Path(order.folder))
            check_runs(plan, architecture)
            if plan.cluster.gpus > self._ranks.size:
                return f"it needs {plan.cluster.gpus} processes, and the job has {self._ranks.size}"
        except MoeModelError as error:
            return str(error)
        if self._job.clocks != "passive" and (untold := untold_phases(plan)) is not None:
            return untold
        run = TrainingRun.of(plan, architecture, name=plan.name, plan_yaml=order.plan_yaml, seed=order.seed)
        clocks = clocks_of_rank(plan, self._ranks.rank) if self._ranks.rank < plan.cluster.gpus else {}
        held, note = self._hold(plan, clocks, everybody)
        try:
            if held is False and self._job.clocks == "lock":
                return f"clock_MHz {clock_text(plan.clock_MHz)} can't be held: {note}"
            release_comm_buffers(plan.backend, self._device.torch_device)
            changing = held is True and len(set(clocks.values())) > 1
            row, trouble = self._row_at(plan, run, clocks) if changing else (self._row(plan, run), None)
            rows = everybody.gather(None if row is None else asdict(row))
            if held:
                held, note = self._together(trouble, everybody)
            if held is False and self._job.clocks == "lock":
                return f"clock_MHz {clock_text(plan.clock_MHz)} was not held: {note}"
        finally:
            self._control.unlock()
        if rows is not None:
            self._emit_event(
                "measured",
                visit=self.visit,
                rows=[row for row in rows if row is not None],
                clock_held=held,
                clock_note=note,
                seconds=time.perf_counter() - begun_s,
            )
        return None

    def _row_at(self, plan: Plan, run: TrainingRun, clocks: PhaseClocks_MHz) -> tuple[IterationRow | None, str | None]:
        """This rank's row with a clock for each phase, and why one was not set, if so."""
        passed = device_passed(self._device.torch_device)
        with PhaseLocks(self._control, clocks, plan.micro_batches, passed) as locks:
            row = self._row(plan, run, telling(builder(plan.backend), locks.mark))
        return row, locks.trouble

    def _row(self, plan: Plan, run: TrainingRun, build: Builder | None = None) -> IterationRow | None:
        """This rank's row; None where the plan does without it."""
        build, ranks = build or builder(plan.backend), plan.cluster.gpus
        if self._ranks.rank >= ranks:
            build(run, self._device.torch_device)
            return None

        return measure_run(
            run,
            self._device,
            clock=self._clock,
            warm_s=self._job.warm_s,
            measured_s=self._job.measured_s,
            build=build,
            peers=self._peers(f"visit {self.visit} ranks", ranks),
        )

    def _hold(self, plan: Plan, clocks: PhaseClocks_MHz, everybody: RendezvousStore) -> tuple[bool | None, str | None]:
        """Lock the clocks of all ranks of a plan or of none: whether they are held (None: not asked), and why not.

        Args:
            plan: whose clocks.
            clocks: of this rank's phases; those that differ are set one by one later. Empty on a rank that the plan
                does without.
            everybody: all ranks of the job.
        """
        if isinstance(plan.clock, Auto):
            return None, None
        asked = {clock_MHz for clock_MHz in clocks.values() if clock_MHz is not None}
        reasons = (hold_clock(self._control, clock_MHz, self._job.clocks) for clock_MHz in sorted(asked))
        return self._together(next((reason for reason in reasons if reason is not None), None), everybody)

    def _together(self, reason: str | None, everybody: RendezvousStore) -> tuple[bool, str | None]:
        """Whether no rank says why its clock is not held; else the first such reason, and all are given back."""
        reasons = everybody.gather(reason)
        reason = everybody.first(next((r for r in reasons or () if r is not None), None))
        if reason is not None:
            self._control.unlock()
        return reason is None, reason

    def _launcher_lives(self) -> bool:
        """Whether whoever started the job is still there to take what it finds; where that is another machine, yes."""
        if socket.gethostname() != self._job.launcher_host:
            return True
        try:
            os.kill(self._job.launcher_pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def _peers(self, name: str, size: int) -> RendezvousStore:
        return RendezvousStore(self._store, self._ranks.rank, size, name=name, timeout_s=_PATIENCE_S)

    def _emit_event(self, event: str, **facts: Any) -> None:
        if self._ranks.rank == 0:
            self._events.write(event, **facts)


def hold_clock(control: ClockControl, clock_MHz: float, clocks: AskedClocks) -> str | None:
    """Hold a GPU's clock where that is permitted; why it is not held, None if it is.

    Args:
        control: of the GPU's clock.
        clock_MHz: to hold.
        clocks: "passive": never; "auto": where nothing is known to stand against it; "lock": try.
    """
    if clocks == "passive":
        return "clocks are left alone (--clocks passive)"
    reason = control.obstacle() or (control.missing_privilege() if clocks == "auto" else None)
    if reason is not None:
        return reason
    if round(clock_MHz) not in {round(clock_Hz * 1e-6) for clock_Hz in control.clocks_Hz()}:
        return f"{clock_MHz:g} MHz is none of the clocks that this GPU can be set to"
    try:
        control.lock(clock_MHz * 1e6)
    except DeviceError as error:
        return str(error)
    return None


# --- the process -----------------------------------------------------------------------------------------------------


def adopt_slurm(environment: MutableMapping[str, str]) -> None:
    """Under srun, say who is who by the names that torch knows."""
    if "RANK" in environment:
        return
    for name, slurm in _SLURM.items():
        if slurm in environment:
            environment[name] = environment[slurm]


def _main(job: Job, folder: Path, rank: int) -> None:
    cpu = job.gpu == "cpu"
    worker: Worker | None = None
    try:
        if not cpu:
            fit_devices(os.environ)
        ranks = join(cpu=cpu, timeout_s=job.timeout_s)
        device, _ = open_named(job.gpu)
        with ClockControl(device, platform_of(device).settings()) as control:
            worker = Worker(job, folder, ranks, device, control)
            worker.run()
            free_memory(device.torch_device)
            part()
    except BaseException as error:  # noqa: BLE001 (whatever it is, the others must not wait for this one)
        traceback.print_exc()
        write_failure(folder, rank, failure_of(error, worker.visit if worker else None))
        sys.stderr.flush()
        os._exit(1)  # anything gentler may wait for a collective


def main(arguments: list[str]) -> int:
    """Do one process's part of a job."""
    parser = argparse.ArgumentParser(prog="moemodel.profiler.training.worker")
    parser.add_argument(
        "--job", type=Path, required=True, help="job.json, as moemodel.profiler.training.launch writes it"
    )
    file: Path = parser.parse_args(arguments).job
    adopt_slurm(os.environ)
    rank = int(os.environ.get("RANK", "0"))
    (file.parent / f"{rank}.pid").write_text(str(os.getpid()), encoding="utf-8")
    redirect_output(file.parent / f"{rank}.log")
    faulthandler.enable()
    _main(read_json(file, Job), file.parent, rank)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # closing communicators one by one may hang, and there is nothing left to close for


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
