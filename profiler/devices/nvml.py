"""NVML (nvidia-ml-py) itself: loading it, errors that last, clocks that a GPU lists.

The guardian process runs this too, so it imports nothing heavy: no torch, no numpy.
"""

from __future__ import annotations

from typing import Any

from moemodel.model.core.errors import DeviceError
from moemodel.model.core.extras import how_to_install

# Asking again will not help.
LASTING_ERRORS = (
    "NVML_ERROR_NOT_SUPPORTED",
    "NVML_ERROR_NO_PERMISSION",
    "NVML_ERROR_INVALID_ARGUMENT",
    "NVML_ERROR_FUNCTION_NOT_FOUND",
)


def supported_clocks_MHz(nvml: Any, handle: Any) -> list[float]:
    """The SM clocks that the driver lists at the highest memory clock.

    Args:
        nvml: the initialised `pynvml` module, or something that behaves like it.
        handle: NVML's handle of the GPU.

    Raises:
        nvml.NVMLError: it lists none.
    """
    memory_MHz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)
    return [float(clock_MHz) for clock_MHz in nvml.nvmlDeviceGetSupportedGraphicsClocks(handle, memory_MHz)]


def text(value: Any) -> str:
    """NVML gives bytes or text, depending on its version."""
    return value.decode() if isinstance(value, bytes) else str(value)


def load_nvml() -> Any:
    """The initialised `pynvml` module.

    Raises:
        DeviceError: it is not installed, or finds no driver or no permission; the message says what to do.
    """
    try:
        import pynvml
    except ImportError as error:
        raise DeviceError(f"nvidia-ml-py is missing; {how_to_install('profile')}") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise DeviceError(advice(pynvml, error)) from error
    return pynvml


def advice(nvml: Any, error: Any) -> str:
    """What is wrong, and what to do about it.

    Args:
        nvml: the `pynvml` module, or something that behaves like it.
        error: its NVMLError.
    """
    if error.value == nvml.NVML_ERROR_NO_PERMISSION:
        return "no permission to read the GPU; ask for access to /dev/nvidia*, or run the container with --gpus"
    if error.value in (nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED):
        return "no NVIDIA driver found on this machine; run on a machine with the GPU (in a container, with --gpus all)"
    return f"NVML says {error}; check that nvidia-smi works"
