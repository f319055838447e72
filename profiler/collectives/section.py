"""Section `collectives` of a profile, from the process that writes it: who measures, what is missing, where it goes."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from moemodel.model.core.errors import InputError
from moemodel.model.records.profile import CollectiveRow, OverlapRow, Topology
from moemodel.profiler.collectives.helpers import Helpers
from moemodel.profiler.collectives.points import LinkPoint, OverlapPoint, Scale, link_points, overlap_points, scale_for
from moemodel.profiler.collectives.request import Request
from moemodel.profiler.collectives.start import follow
from moemodel.profiler.devices.base import Device
from moemodel.profiler.jobs.events import EVENTS, Event
from moemodel.profiler.jobs.isolation import child_environment
from moemodel.profiler.jobs.launcher import Program, local_programs
from moemodel.profiler.microbench.skips import Skip, not_reached
from moemodel.profiler.platforms.base import Platform
from moemodel.profiler.sections.progress import Progress
from moemodel.profiler.store.profile_writer import ProfileWriter

SECTION = "collectives"
WORKER = "moemodel.profiler.collectives.worker"
_ROWS: dict[str, type[CollectiveRow] | type[OverlapRow]] = {row.TABLE: row for row in (CollectiveRow, OverlapRow)}
_START_S = 15.0  # to start processes and connect them, beside the measuring


def devices_at_hand(
    device: Device, platform: Platform, asked: int | None, environment: Mapping[str, str] = os.environ
) -> int:
    """How many devices may talk to each other.

    Args:
        device: of this process.
        platform: of the device.
        asked: by the user; None: all GPUs that are visible, one processor.
        environment: where a launcher may have said how many there are.

    Raises:
        InputError: more are asked for than there are, or of a device that talks to none.
    """
    if not platform.links:
        if asked is not None and asked > 1:
            raise InputError("--ranks: a simulated GPU has no links to others; leave --ranks out")
        return 1
    started = int(environment.get("WORLD_SIZE", "1"))
    if started > 1:
        if asked is not None and asked != started:
            raise InputError(f"--ranks: found {asked}; the launcher started {started} processes: leave --ranks out")
        return started
    if device.torch_device.type == "cpu":
        return asked or 1
    visible = torch.cuda.device_count()
    if asked is not None and asked > visible:
        shown = environment.get("CUDA_VISIBLE_DEVICES", "not set")
        raise InputError(f"--ranks: found {asked}; {visible} GPUs are visible (CUDA_VISIBLE_DEVICES: {shown})")
    return asked or visible


def check_enough(ranks: int) -> None:
    """Check that there is somebody to talk to.

    Raises:
        InputError: there is not.
    """
    if ranks < 2:
        raise InputError(
            "--sections: collectives needs two devices or more, found 1; run on a machine with several GPUs visible, "
            "start it on several by torchrun, or try it by --gpu cpu --ranks 2"
        )


@dataclass(kw_only=True)
class Collectives:
    """The section, ready to run.

    Attributes:
        gpu: name of the GPU description, or "cpu".
        device: of this process.
        platform: of the device.
        writer: of the profile.
        ranks: devices that take part.
        scale: how much and how long.
        seed: of the data.
        helpers: the other processes of a launcher's job; None where this one starts them.
        notes: what a reader should know, filled while it runs.
    """

    gpu: str
    device: Device
    platform: Platform
    writer: ProfileWriter
    ranks: int
    seed: int
    scale: Scale | None = None
    helpers: Helpers | None = None
    notes: list[str] = field(default_factory=list)
    _left: int = 0

    def missing(self) -> tuple[list[LinkPoint], list[OverlapPoint]]:
        """The points that the profile does not have yet."""
        scale = self._scale()

        def there(kind: type[CollectiveRow | OverlapRow], point: LinkPoint | OverlapPoint) -> bool:
            return self.writer.has(kind, **asdict(point), nodes=self._nodes(point.ranks))

        return (
            [point for point in link_points(self.ranks, scale) if not there(CollectiveRow, point)],
            [point for point in overlap_points(self.ranks, scale) if not there(OverlapRow, point)],
        )

    def measure(self, progress: Progress) -> list[Skip]:
        """Measure what is missing into the profile.

        Raises:
            DeviceError: a process failed or hung; what was measured before is in the profile.
        """
        links, overlaps = self.missing()
        count = len(links) + len(overlaps)
        progress.begin(SECTION, count)
        if count == 0:
            return []
        topology = self.platform.topology(self.ranks)
        if topology is not None:
            self._note_topology(topology)
        if self.device.torch_device.type == "cuda":
            self.writer.note_host(**_nccl())
        with tempfile.TemporaryDirectory(prefix="moemodel-") as folder:
            request = Request(
                gpu="cpu" if self.device.torch_device.type == "cpu" else self.gpu,
                points=tuple(links),
                overlaps=tuple(overlaps),
                scale=self._scale(),
                seed=self.seed,
                until_wall_s=time.time() + self._scale().seconds - _START_S,
                events=Path(folder) / EVENTS,
            )
            self._run(request, progress)
        return [not_reached(SECTION, self._left, count)] if self._left else []

    def _note_topology(self, topology: Topology) -> None:
        """Keep the description that covers more GPUs, where an earlier run left one."""
        known = self.writer.manifest.topology
        if known is None or len(known.gpus) <= len(topology.gpus):
            self.writer.note_topology(topology)

    def _run(self, request: Request, progress: Progress) -> None:
        file = request.events.with_name("request.json")
        file.write_text(request.text(), encoding="utf-8")
        if self.helpers:
            own = (sys.executable, "-P", "-m", WORKER, str(file))
            programs = [Program(command=own, environment=child_environment(self.helpers.call(request)), name="0")]
        else:
            programs = local_programs(WORKER, [str(file)], processes=self.ranks, environment=os.environ)

        def tell(event: Event) -> None:
            self._hear(event, progress)

        follow(programs, file.parent, tell, stall_s=request.scale.stall_s, meet_here=self.helpers is None)

    def _hear(self, event: Event, progress: Progress) -> None:
        match event["event"]:
            case "at":
                progress.step(event["what"])
            case "row":
                row = _ROWS[event["table"]](**event["row"])
                self.writer.append([replace(row, nodes=self._nodes(row.ranks))])
                self.writer.flush()  # a row is seconds of several GPUs
            case "note" if event["text"] not in self.notes:
                self.notes.append(event["text"])
            case "left":
                self._left = event["count"]

    def _scale(self) -> Scale:
        return self.scale or scale_for(cpu=self.device.torch_device.type == "cpu", ranks=self.ranks)

    def _nodes(self, ranks: int) -> int:
        """Nodes that the first so many ranks lie on; a launcher fills them one after another."""
        if not self.helpers:
            return 1
        visible = torch.cuda.device_count() or self.ranks  # where the launcher doesn't say: one process a GPU
        local = int(os.environ.get("LOCAL_WORLD_SIZE", visible))
        return -(-ranks // local)


def _nccl() -> dict[str, Any]:
    """The version of NCCL and what its environment sets: both decide times."""
    version = ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]
    return {"nccl": version, "nccl_settings": {k: v for k, v in sorted(os.environ.items()) if k.startswith("NCCL_")}}
