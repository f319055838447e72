"""Below which clocks the voltage of a board drops, where public readings at locked clocks show it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from moemodel.model.hardware.gpu import Gpu
from moemodel.model.records.calibration import Parameter

_UNITS = {"drop_from_Hz": "Hz", "drop_to_Hz": "Hz", "drop_share": "1"}


@cache
def _published() -> dict[str, dict[str, float | str]]:
    path = Path(__file__).with_name("public_voltages.json")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def published_drop(gpu: Gpu) -> dict[str, Parameter]:
    """Parameters of `device.power` that say it; none of a board of which nothing is known."""
    found = _published().get(gpu.name)
    if found is None:
        return {}
    return {name: Parameter.fitted(float(found[name]), unit, str(found["source"])) for name, unit in _UNITS.items()}
