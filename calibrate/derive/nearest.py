"""Which calibrated GPU another is taken over from."""

from __future__ import annotations

import math
from collections.abc import Iterable

from moemodel.calibration.derive.transfer import Sheet, sheet_of
from moemodel.model.hardware.gpu import Gpu

# NVIDIA's in the order of their years; what stands further apart has less in common. AMD's matrix cores are newer than
# Ampere's; of none of theirs is there a calibration.
_GENERATIONS = {
    "volta": 2017,
    "turing": 2018,
    "ampere": 2020,
    "ampere-ga10x": 2020,
    "cdna2": 2021,
    "ada": 2022,
    "hopper": 2022,
    "cdna3": 2023,
    "blackwell": 2024,
    "cdna4": 2025,
    "blackwell-gb20x": 2025,
    "blackwell-ultra": 2025,
}
_UNKNOWN = max(_GENERATIONS.values())  # an architecture that is not listed is new


def nearest(gpu: Gpu, calibrated: Iterable[Gpu]) -> Gpu | None:
    """The calibrated GPU to derive from: of the same architecture, else of the nearest years; among those, whose
    bandwidth, multiprocessors and power limit are nearest. None: nothing can be derived.

    Args:
        gpu: that has no calibration.
        calibrated: those that have.
    """
    sheet = sheet_of(gpu)
    if sheet is None:
        return None

    def distance(candidate: tuple[Gpu, Sheet]) -> tuple[int, int, float]:
        other, known = candidate
        pairs = (
            (sheet.bandwidth_Bps, known.bandwidth_Bps),
            (sheet.multiprocessors, known.multiprocessors),
            (sheet.limit_W, known.limit_W),
        )
        years = abs(_year(gpu) - _year(other))
        return (int(gpu.architecture != other.architecture), years, math.dist(*zip(*map(_logs, pairs), strict=True)))

    candidates = [(other, known) for other in calibrated if (known := sheet_of(other)) is not None]
    return min(candidates, key=distance)[0] if candidates else None


def _logs(pair: tuple[float, float]) -> tuple[float, float]:
    return math.log(pair[0]), math.log(pair[1])


def _year(gpu: Gpu) -> int:
    return _GENERATIONS.get(gpu.architecture, _UNKNOWN)
