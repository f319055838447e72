"""One profile at a time measures on a GPU: two of them would measure each other, and undo each other's clocks.

NVML lists who computes on a GPU, but neither of two that begin together does so yet. So each takes a name that the
system gives to one process only, and takes back when that ends, however it ends: an abstract Unix socket, which nobody
can connect to. Processes in other network name spaces (most containers) don't see it; those NVML may show later.
"""

from __future__ import annotations

import errno
import hashlib
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from moemodel.model.core.errors import DeviceError
from moemodel.profiler.devices.address import Address


@contextmanager
def claimed(name: str, address: Address | None) -> Iterator[None]:
    """No other profile of this GPU begins on this machine meanwhile.

    Args:
        name: of the device, for a reader.
        address: of its settings; None where the device is this process's alone (a processor, a simulation).

    Raises:
        DeviceError: one has begun.
    """
    if address is None or sys.platform != "linux":
        yield
        return
    key = hashlib.sha256(f"{address.opener} {address.argument}".encode()).hexdigest()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim:
        try:
            claim.bind(f"\0moemodel-{key}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise DeviceError(
                f"another process computes on this GPU: a `moemodel profile` of {name} is under way on this machine; "
                "wait for it, since the two would measure each other"
            ) from None
        yield
