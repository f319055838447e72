"""How wrong taking a calibration over to another GPU has been, of GPUs whose truth is known (`bench/derived.py`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class DerivingRecord:
    """Errors of what was derived.

    Attributes:
        time_log_error, power_log_error: standard deviation of log(measured / derived), around 0.
        told: the same in a sentence.
    """

    time_log_error: float
    power_log_error: float
    told: str


@cache
def deriving_record(*, same_architecture: bool) -> DerivingRecord:
    """Between GPUs of one architecture, or of two."""
    data = json.loads(Path(__file__).with_name("record.json").read_text(encoding="utf-8"))
    return DerivingRecord(**data["same_architecture" if same_architecture else "another_architecture"])
