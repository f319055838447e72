"""What a profile was measured with: library versions and the host, for the manifest."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import moemodel
from moemodel.model.records.profile import DeviceInfo, Manifest
from moemodel.profiler.clocks.settings import Clocks
from moemodel.profiler.devices.cpu import memory_B, processor_name
from moemodel.profiler.microbench.points import DTYPE

_LIBRARIES = ("torch", "triton", "nvidia-ml-py", "numpy", "pyarrow")


def new_manifest(gpu: str, device: DeviceInfo, clocks: Clocks, seed: int) -> Manifest:
    """The manifest of a profile that begins now.

    Args:
        gpu: name of the GPU description.
        device: as it was found.
        clocks: how clocks are dealt with.
        seed: of shapes, order and operands.
    """
    return Manifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        moemodel_version=moemodel.__version__,
        gpu=gpu,
        device=device,
        clocks=clocks,
        dtype=DTYPE,
        libraries=libraries(),
        host=host(),
        seed=seed,
    )


def libraries() -> dict[str, str]:
    """Versions of what is installed of the libraries that times depend on, and of Python, CUDA and cuDNN."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    cudnn: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    if cudnn:
        found["cudnn"] = str(cudnn)
    return found


def host() -> dict[str, Any]:
    """The machine around the device."""
    return {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_B": memory_B(),
        "system": f"{platform.system()} {platform.machine()}",
    }
