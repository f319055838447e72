"""The calibrations that ship, a JSON file each in `shipped/`, named like the GPU; which one is meant; writing one.

Of a GPU that has none, the nearest one's is taken over (`calibration.derive`).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from moemodel.calibration.derive.nearest import nearest
from moemodel.calibration.derive.transfer import derive_calibration
from moemodel.model.core.errors import CalibrationError, InputError
from moemodel.model.core.files import is_there, write_atomic
from moemodel.model.core.suggest import unknown
from moemodel.model.hardware.gpu import Gpu, list_gpus, read_gpu
from moemodel.model.records.calibration import Calibration, MemoryFit, Parameter, read_calibration

_SHIPPED = Path(__file__).parents[1] / "shipped"
# Of those that ship, the ones in which only kernels are fitted and the rest is derived: nothing is derived from them.
PARTLY_DERIVED = ("b200-sxm-180gb", "b300-sxm-288gb", "gb200-186gb", "gb300-288gb")
# Fitted to another GPU than it is of, to the A100 of 80 GB: what is derived is derived from that one.
_OF_ANOTHER = ("a100-sxm-40gb",)
_MEMORY_OF = "h100-sxm-80gb"  # whose context was measured: of the others that ship it is assumed


def list_calibrations() -> tuple[str, ...]:
    """Names of the calibrations that ship, sorted."""
    return tuple(sorted(path.stem for path in _SHIPPED.glob("*.json")))


@cache
def shipped(name: str) -> Calibration:
    """A calibration that ships.

    Raises:
        CalibrationError: there is none of that name; the message lists those there are, and how to make one.
    """
    if name not in list_calibrations():
        if name in list_gpus():
            raise _none_ships(name)
        error: InputError = unknown(
            "calibration", name, list_calibrations(), or_else="the file that `moemodel calibrate` wrote"
        )
        raise CalibrationError(f"{error}. `moemodel profile` and `moemodel calibrate` make one of your own GPU")
    return read_calibration(_SHIPPED / f"{name}.json")


def _none_ships(gpu: str) -> CalibrationError:
    return CalibrationError(
        f"no calibration of {gpu} ships; those that do: {', '.join(list_calibrations())}. Make one: run `moemodel "
        "profile` on that GPU, then `moemodel calibrate`, and name its file with --calibration. Without one `moemodel "
        "predict` gives memory, FLOPs, bytes and volumes of communication of a GPU of which nothing can be derived"
    )


def load_calibration(given: Calibration | Path | str | None, gpu: str, *, key: str = "gpu") -> Calibration:
    """The calibration that is meant.

    Args:
        given: itself, its file, the name of a shipped one, or None: the shipped one of a GPU, or one derived for it.
        gpu: name or description file of that GPU.
        key: what an error calls the GPU by.

    Raises:
        CalibrationError: there is none, or the file isn't one.
        InputError: unknown GPU.
    """
    if isinstance(given, Calibration):
        return given
    if given is None:
        return _of_gpu(read_gpu(gpu, key=key))
    path = Path(given)
    is_file = isinstance(given, Path) or path.suffix == ".json" or is_there(path)
    return read_calibration(path) if is_file and str(given) not in list_calibrations() else shipped(str(given))


def calibration_or_stand_in(given: Calibration | Path | str | None, gpu: str, *, key: str = "gpu") -> Calibration:
    """The calibration that is meant; where none is given, ships or can be derived, one that serves for memory alone.

    Args, Raises: see `load_calibration`; never for want of a calibration.
    """
    if given is None:
        description = read_gpu(gpu, key=key)
        if description.name not in list_calibrations() and derived_from(description) is None:
            return _memory_alone(description)
    return load_calibration(given, gpu, key=key)


def derived_from(gpu: Gpu) -> Gpu | None:
    """The GPU whose shipped calibration is taken over to one that has none; None: its description says too little."""
    bases = (name for name in list_calibrations() if name not in (gpu.name, *PARTLY_DERIVED, *_OF_ANOTHER))
    return nearest(gpu, (read_gpu(name) for name in bases))


def _of_gpu(gpu: Gpu) -> Calibration:
    """Shipped, or derived."""
    if gpu.name in list_calibrations():
        return shipped(gpu.name)
    base = derived_from(gpu)
    if base is None:
        raise _none_ships(gpu.name)
    return _derived(gpu, base)


@cache
def _derived(gpu: Gpu, base: Gpu) -> Calibration:
    return derive_calibration(shipped(base.name), base, gpu)


def _memory_alone(gpu: Gpu) -> Calibration:
    """What a GPU that nobody measured holds beside tensors, taken from one that was; no operator has a time."""
    like = shipped(_MEMORY_OF)
    parameters = {
        name: Parameter.assumed(
            (2 if name == "log_error" else 1) * known.value, known.unit, f"as on {like.gpu}, not measured on {gpu.name}"
        )
        for name, known in like.memory.parameters.items()
    }
    return like.model_copy(
        update={
            "name": f"none of {gpu.name}",
            "gpu": gpu.name,
            "provenance": f"None: what lies in memory beside tensors is taken to be as on {like.gpu}.",
            "operators": [],
            "host": [],
            "power": like.power.model_copy(update={"points": 0}),
            "memory": MemoryFit(parameters=parameters),
        }
    )


def write_calibration(calibration: Calibration, path: Path | str) -> None:
    """Write a calibration as JSON, whole or not at all.

    Raises:
        CalibrationError: the place cannot be written to.
    """
    try:
        write_atomic(Path(path), calibration.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be written: {error.strerror}") from None
