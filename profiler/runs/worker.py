"""One process of a run: `python -m moemodel.profiler.runs.worker --order FOLDER/run-order.json`, under `execute`.

A run has processes of its own, so frameworks that cannot live in one process never meet, and what one leaves in a
device disturbs no other. Whatever goes wrong on any rank ends its process at once, and so the run.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.distributed as dist

from moemodel.model.core.documents import parse_yaml, read_json
from moemodel.model.core.errors import InputError, MissingExtraError
from moemodel.model.core.files import write_atomic
from moemodel.model.plan.spec import Plan
from moemodel.model.records.run import RankResult, rank_file
from moemodel.profiler.backends.base import (
    Run,
    TrainingRun,
    architecture_in,
    builder,
    check_runs,
    release_comm_buffers,
)
from moemodel.profiler.data.text import describe
from moemodel.profiler.devices.base import Device
from moemodel.profiler.emissions.codecarbon import CodeCarbonLevels
from moemodel.profiler.jobs.events import EVENTS, EventWriter
from moemodel.profiler.jobs.failures import write_failure
from moemodel.profiler.jobs.ranks import adopt_launcher, failure_of, fit_devices, join, part, redirect_output
from moemodel.profiler.jobs.rendezvous import RendezvousStore
from moemodel.profiler.platforms.registry import open_named
from moemodel.profiler.runs.orders import RunOrder
from moemodel.profiler.runs.record import Recorder

_PATIENCE_S = 86_400.0  # of ranks with each other: whoever started them knows when they hang
_TELL_S = 1.0  # between two words on how far it is
_VERSIONS = ("moemodel", "torch", "deepspeed", "fastmoe", "megatron-core", "transformers", "codecarbon")


def _ignore(_: str) -> None:
    return None


def _train(order: RunOrder, folder: Path) -> None:
    """This rank's part of a run.

    Raises:
        MoeModelError: the plan or its data is refused.
    """
    plan = parse_yaml(order.plan_yaml, Plan, "plan")
    architecture = architecture_in(plan, Path(order.plan_folder))
    check_runs(plan, architecture)
    rank = dist.get_rank()
    events = EventWriter(folder / EVENTS)
    device, _ = open_named(order.gpu)
    asked = TrainingRun.of(
        plan, architecture, name=order.name, plan_yaml=order.plan_yaml, seed=order.seed, data=order.data,
        learning_rate=order.learning_rate,
    )  # fmt: skip
    if rank == 0:
        events.write("began", device=device.info.name, versions=_versions(), data=describe(order.data, architecture))
    release_comm_buffers(plan.backend, device.torch_device)
    base_B = torch.cuda.memory_allocated(device.torch_device) if device.torch_device.type == "cuda" else 0
    run = builder(plan.backend)(asked, device.torch_device)
    assert run is not None  # the job has as many ranks as its plan
    try:
        if rank == 0:
            events.write("built")
        peers = RendezvousStore(
            dist.distributed_c10d._get_default_store(), rank, dist.get_world_size(), name="run", timeout_s=_PATIENCE_S
        )
        _warm_up(run, order.warmup_steps)
        recorder = _recorder(run, order, plan, device, base_B)
        _measure(recorder, order, plan, peers, events if rank == 0 else None)
    finally:
        run.close()


def _warm_up(run: Run, steps: int) -> None:
    for _ in range(steps):
        run.step(_ignore)
    run.wait()
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)


def _recorder(run: Run, order: RunOrder, plan: Plan, device: Device, base_B: int) -> Recorder:
    samples = plan.global_batch // plan.parallel.dp
    return Recorder(
        run,
        device,
        Path(order.folder),
        rank=dist.get_rank(),
        micro_batches=plan.micro_batches,
        samples=samples,
        tokens=samples * plan.sequence_length,
        base_B=base_B,
    )


def _measure(
    recorder: Recorder, order: RunOrder, plan: Plan, peers: RendezvousStore, events: EventWriter | None
) -> None:
    carbon = _carbon(order, plan)
    observers = () if carbon is None else (carbon,)
    teller = _Teller(events, order.steps)
    result = recorder.train(order.steps, ready=peers.barrier, progress=teller, observers=observers)
    if carbon is not None:
        session = carbon.summary().levels.get("session")  # None: it could not begin, of which the meter's notes say why
        emissions_kg = None if session is None else session.emissions_kg
        _write(order, result.model_copy(update={"emissions_kg": emissions_kg}))
    peers.barrier()


def _write(order: RunOrder, result: RankResult) -> None:
    write_atomic(Path(order.folder) / rank_file(result.rank), result.model_dump_json(indent=1))


def _carbon(order: RunOrder, plan: Plan) -> CodeCarbonLevels | None:
    if order.emissions is None:
        return None
    place = order.emissions
    return CodeCarbonLevels(
        Path(order.folder) / "codecarbon",
        run=order.name,
        model=Path(plan.architecture).stem,
        country=place.country,
        region=place.region,
        pue=place.pue,
        levels=("session",),  # those of steps and phases wait for the device, which a run does not
    )


class _Teller:
    """Tells how far a run is, on rank 0."""

    def __init__(self, events: EventWriter | None, steps: int) -> None:
        self._events, self._steps, self._told_s = events, steps, time.monotonic()

    def __call__(self, done: int) -> None:
        now_s = time.monotonic()
        if self._events is not None and (now_s - self._told_s > _TELL_S or done == self._steps):
            self._told_s = now_s
            self._events.write("steps", done=done)


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _main(order: RunOrder, folder: Path, rank: int) -> None:
    cpu = order.gpu == "cpu"
    try:
        if not cpu:
            fit_devices(os.environ)
        join(cpu=cpu, timeout_s=order.timeout_s)
        _train(order, folder)
        if rank == 0:
            EventWriter(folder / EVENTS).write("done")
        part()
    except (InputError, MissingExtraError) as error:
        _leave(folder, rank, error, refused=True)
    except BaseException as error:  # noqa: BLE001 (whatever it is, the others must not wait for this one)
        _leave(folder, rank, error, refused=False)


def _leave(folder: Path, rank: int, error: BaseException, *, refused: bool) -> None:
    traceback.print_exception(error)
    failure = failure_of(error, 0)
    write_failure(folder, rank, failure.model_copy(update={"kind": "refused"} if refused else {}))
    sys.stderr.flush()
    os._exit(1)  # anything gentler may wait for a collective


def main(arguments: list[str]) -> int:
    """Do one process's part of a run."""
    parser = argparse.ArgumentParser(prog="moemodel.profiler.runs.worker")
    parser.add_argument("--order", type=Path, required=True, help="run-order.json, as moemodel.profiler.runs writes it")
    file: Path = parser.parse_args(arguments).order
    adopt_launcher(os.environ)
    rank = int(os.environ.get("RANK", "0"))
    (file.parent / f"{rank}.pid").write_text(str(os.getpid()), encoding="utf-8")
    redirect_output(file.parent / f"{rank}.log")
    faulthandler.enable()
    _main(read_json(file, RunOrder), file.parent, rank)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # closing communicators one by one may hang, and there is nothing left to close for


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
