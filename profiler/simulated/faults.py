"""What can go wrong with a simulated GPU, and how that is asked for: `sim:h100?fail=lost-after-5s`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from moemodel.model.core.errors import DeviceError

SENSORS = ("energy", "power", "temperature", "clock")
_FORMS = (
    "lost-after-SECONDSs",
    "no-permission",
    "unlock-fails-TIMES-times",
    "counter-reset-after-SECONDSs",
    *(f"stuck-{sensor}-after-SECONDSs" for sensor in SENSORS),
)
_COUNTED = re.compile(r"unlock-fails-(\d+)-times")
_TIMED = re.compile(r"(lost|counter-reset|stuck-(?:" + "|".join(SENSORS) + r"))-after-(\d+(?:\.\d+)?)s")


@dataclass(frozen=True, kw_only=True)
class Faults:
    """When what goes wrong, in seconds since the device was opened; never unless asked for.

    Attributes:
        lost_s: the GPU falls off the bus: work fails, sensors say nothing.
        reset_s: the energy counter starts again at zero.
        stuck_s: sensor of `SENSORS` -> from when on its reading stays what it is.
        no_permission: energy, power and activity may not be read.
        failing_unlocks: how many times unlocking the clocks fails, whoever tries.
    """

    lost_s: float = math.inf
    reset_s: float = math.inf
    stuck_s: dict[str, float] = field(default_factory=dict)
    no_permission: bool = False
    failing_unlocks: int = 0


def parse_faults(names: Sequence[str], gpu: str) -> Faults:
    """Faults from their names.

    Raises:
        DeviceError: there is no such fault.
    """
    lost_s, reset_s, stuck_s, no_permission, failing_unlocks = math.inf, math.inf, {}, False, 0
    for name in names:
        timed = _TIMED.fullmatch(name)
        if name == "no-permission":
            no_permission = True
        elif counted := _COUNTED.fullmatch(name):
            failing_unlocks = int(counted[1])
        elif timed is None:
            raise DeviceError(f"--gpu {gpu}: fail: found {name!r}; allowed: {', '.join(_FORMS)}")
        elif timed[1] == "lost":
            lost_s = float(timed[2])
        elif timed[1] == "counter-reset":
            reset_s = float(timed[2])
        else:
            stuck_s[timed[1].removeprefix("stuck-")] = float(timed[2])
    return Faults(
        lost_s=lost_s,
        reset_s=reset_s,
        stuck_s=stuck_s,
        no_permission=no_permission,
        failing_unlocks=failing_unlocks,
    )
