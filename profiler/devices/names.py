"""Names of GPUs as a user gives them: aliases, case, the prefixes of what is simulated or replayed."""

from __future__ import annotations

import re
from collections.abc import Mapping

from moemodel.model.core.errors import DeviceError

SIMULATED = "sim:"  # before a GPU's name: not the GPU, but a simulation of it
REPLAYED = "replay:"  # before a file's name: a recording of a device (see `meter.recording`)


def resolve(gpu: str, known: Mapping[str, str]) -> str:
    """The name of the GPU that an alias means; of a simulated one, what it simulates.

    Raises:
        DeviceError: no GPU has that name or alias.
    """
    by_alias = {_plain(alias): name for alias, name in known.items()} | {_plain(name): name for name in known.values()}
    if gpu.startswith(SIMULATED):
        gpu = gpu.removeprefix(SIMULATED).partition("?")[0]
    if _plain(gpu) not in by_alias:
        names = ", ".join(["cpu", *sorted(set(known.values()) - {"cpu"})])
        raise DeviceError(f"--gpu {gpu}: no GPU of that name is described; there are: {names}")
    return by_alias[_plain(gpu)]


def check_is(wanted: str, found: str, gpu: str, known: Mapping[str, str]) -> None:
    """Check that the device NVML found is the GPU that was asked for.

    Raises:
        DeviceError: it is another one.
    """
    by_alias = {_plain(alias): name for alias, name in known.items()}
    actual = by_alias.get(_plain(found))
    if actual == wanted:
        return
    if actual is None:
        hint = f"if that is a {wanted}, add {found!r} to the aliases in its description"
    else:
        hint = f"that is a {actual}: run with --gpu {actual}"
    raise DeviceError(f"--gpu {gpu} ({wanted}) was asked for, but the GPU here is {found!r}; {hint}")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()
