"""How far predictions have been off for each framework: what widens the intervals of those that no profile measured.

A profile measures this project's own PyTorch code, and its calibration knows how far that is off. Of other frameworks
it knows their kernels alone: what their code adds shows in published runs, predicted without a fit
(`python bench/external.py --write-record`). A framework of which no run was ever predicted is taken to be as far off
as the worst that was.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from moemodel.model.core.documents import Strict, read_json
from moemodel.model.core.interval import Z

PRESET = Path(__file__).parents[1] / "presets" / "track_record.json"


class TrackRecord(Strict):
    """Predicted step times of a framework's published runs against measured ones.

    Attributes:
        runs: that were predicted.
        mean_log: of log(predicted / measured).
        within_log: |log(predicted / measured)| of nine in ten of them is no more.
        sources: of the runs.
    """

    runs: int = Field(gt=0)
    mean_log: float
    within_log: Annotated[float, Field(ge=0)]
    sources: tuple[str, ...]

    @property
    def log_error(self) -> float:
        """Standard error of log(measured / predicted) whose central 90 % interval holds nine in ten of the runs."""
        return self.within_log / Z


class TrackRecords(Strict):
    """The file: by name of the framework, with what wrote it."""

    written_by: str
    frameworks: dict[str, TrackRecord]


@cache
def track_records() -> dict[str, TrackRecord]:
    """Of every framework of which runs were predicted, by name."""
    return read_json(PRESET, TrackRecords).frameworks


def widest() -> TrackRecord:
    """The worst of them."""
    return max(track_records().values(), key=lambda record: record.within_log)
