"""How far predictions have been off for each framework: what widens the intervals of those that no profile measured.

A profile measures this project's own PyTorch code, and its calibration knows how far that is off. Of other frameworks
it knows their kernels alone: what their code adds shows in published runs, predicted without a fit
(`python bench/public_runs.py --write-record`), of dense models and of those with experts. A framework of which no run
was ever predicted is taken to be as far off as the worst that was.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from moemodel.model.core.documents import Strict, read_json

PRESET = Path(__file__).parents[1] / "presets" / "track_record.json"


class TrackRecord(Strict):
    """Predicted step times of a framework's published runs against measured ones.

    Attributes:
        runs: that were predicted.
        mean_log: of log(predicted / measured).
        within_log: |log(predicted / measured)| of nine in ten of them is no more.
        log_error: standard error of log(measured / predicted), beside what the calibrations say of their own, with
            which nine in ten of the runs lie inside their central 90 % intervals; 0 where they do so without.
        sources: of the runs.
    """

    runs: int = Field(gt=0)
    mean_log: float
    within_log: Annotated[float, Field(ge=0)]
    log_error: Annotated[float, Field(ge=0)]
    sources: tuple[str, ...]


class FrameworkRecord(Strict):
    """Of a framework's runs of dense models, and of those with experts; where one is missing the other stands in."""

    dense: TrackRecord | None = None
    experts: TrackRecord | None = None

    @property
    def known(self) -> tuple[TrackRecord, ...]:
        """Those that there are."""
        return tuple(record for record in (self.dense, self.experts) if record is not None)

    def of(self, *, experts: bool) -> TrackRecord:
        """That of one kind of models."""
        first, second = (self.experts, self.dense) if experts else (self.dense, self.experts)
        found = first or second
        assert found is not None, "a framework has a record of at least one kind"
        return found


class TrackRecords(Strict):
    """The file: by name of the framework, with what wrote it."""

    written_by: str
    frameworks: dict[str, FrameworkRecord]


@cache
def track_records() -> dict[str, FrameworkRecord]:
    """Of every framework of which runs were predicted, by name."""
    return read_json(PRESET, TrackRecords).frameworks


def widest() -> tuple[str, TrackRecord]:
    """The worst of all, and whose it is."""
    return max(_all(), key=lambda named: named[1].log_error)


def _all() -> Iterator[tuple[str, TrackRecord]]:
    for name, framework in track_records().items():
        yield from ((name, record) for record in framework.known)
