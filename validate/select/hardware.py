"""The hardware at hand: what it is, how much of it there is, and whether its clocks can be held."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from moemodel.model.core.errors import DeviceError, MoeModelError
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.hardware.gpu import read_gpu
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.results.validation import Environment, Launcher
from moemodel.profiler.backends.base import check_runs
from moemodel.profiler.clocks.clock_control import ClockControl
from moemodel.profiler.devices.base import Device
from moemodel.profiler.platforms.registry import open_named, platform_of
from moemodel.profiler.store.manifest import host, libraries
from moemodel.validation.select.runnable import Hardware

Clocks = Literal["auto", "passive", "lock"]

_NODES = ("SLURM_NNODES", "SLURM_JOB_NUM_NODES")
_CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"  # hardware queues that kernels of all streams go through


def probe_hardware(gpu: str, *, clocks: Clocks, launcher: Launcher) -> tuple[Hardware, Environment]:
    """The hardware at hand, found out without changing anything.

    Args:
        gpu: name or description file of the GPU that should be here.
        clocks: "passive": none is held; "lock": it must be possible to; "auto": where that is permitted.
        launcher: "slurm": the machines of the allocation are alike, and all at hand.

    Raises:
        DeviceError: another GPU, none, a simulated one, or one whose clock can't be held where that was asked for.
    """
    device, name = open_named(gpu)
    try:
        if not platform_of(device).trains:
            raise DeviceError(f"--gpu {gpu} runs operators only, no training steps; validate on a real one, or on cpu")
        no_locks = _no_locks(device, clocks)
        hardware = Hardware(
            gpu=read_gpu(gpu if Path(gpu).suffix == ".json" else name),
            gpus=_devices(device) * _nodes(launcher),
            no_locks=no_locks,
            power_limit_W=device.info.power_limit_W,
            unable=unable,
        )
        environment = Environment(
            gpu=name,
            device=device.info,
            gpus=hardware.gpus,
            launcher=launcher,
            clocks="passive" if no_locks else "lock",
            libraries=libraries(),
            host=host(),
        )
    finally:
        device.close()
    return hardware, environment


def _no_locks(device: Device, clocks: Clocks) -> str | None:
    """Why no clock can be held; None where nothing is known against it."""
    if clocks == "passive":
        return "--clocks passive"
    with ClockControl(device, platform_of(device).settings()) as control:
        reason = control.obstacle() or control.missing_privilege()
    if reason is not None and clocks == "lock":
        raise DeviceError(f"--clocks lock: {reason}; use --clocks passive, which changes no setting")
    return reason


def _devices(device: Device) -> int:
    """Devices of this machine that torch sees; of processors, one for each core."""
    if device.torch_device.type == "cuda":
        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _nodes(launcher: Launcher) -> int:
    """Machines of the Slurm allocation, which are alike; 1 under any other launcher."""
    found = next((os.environ[name] for name in _NODES if name in os.environ), "1")
    return int(found) if launcher == "slurm" and found.isdecimal() else 1


def unable(plan: Plan) -> str | None:
    """What the runner says against a plan; None where it runs it."""
    try:
        check_runs(plan, architecture_of(plan))
    except MoeModelError as error:
        return str(error)
    return None


def one_queue(plans: Sequence[Plan]) -> str | None:
    """That the environment lets nothing overlap that plans are predicted to overlap; None where it does, or none is.

    Seen of FSDP2 on two H200: each layer's gather began when the layer before it was done.
    """
    if os.environ.get(_CONNECTIONS) != "1":
        return None
    hit = dict.fromkeys(plan.backend for plan in plans if plan.cluster.gpus > 1 and not _wants_one_queue(plan))
    if not hit:
        return None
    return (
        f"{_CONNECTIONS} is 1 in the environment: what is sent begins no sooner than the kernels that were queued "
        f"before it, and hides behind less of them than predicted. Megatron's frameworks want that; unset it for "
        f"{', '.join(hit)}."
    )


def _wants_one_queue(plan: Plan) -> bool:
    return framework_of(plan.backend).pipeline == "megatron"
