"""What a backward pass computes again instead of keeping it."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

RecomputeName = Literal["none", "selective", "full"]


class Recompute(IntEnum):
    """What the backward pass computes again instead of keeping it (Korthikanti et al. 2022, section 5)."""

    NONE = 0
    SELECTIVE = 1  # the attention core
    FULL = 2  # every layer from its input


RECOMPUTE: dict[str, Recompute] = {name.name.lower(): name for name in Recompute}
