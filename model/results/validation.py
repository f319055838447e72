"""What a validation found, as it is stored: every measured row of every plan, beside what was predicted.

`validate` writes it to `report.json`; `calibrate --update` and the benchmark predict its plans anew from the rows.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from moemodel.model.core.documents import Real, Strict, Switch, Whole, parse_yaml, read_json
from moemodel.model.core.errors import InputError
from moemodel.model.core.shown import shown
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import CalibrationRef
from moemodel.model.records.profile import TABLES, DeviceInfo

SCHEMA_VERSION = 1
REPORT = "report.json"

Number = Real | Whole | None
Launcher = Literal["local", "slurm"]

# Of table `iterations`, all but the plan, which stands beside the rows.
COLUMNS = tuple(name for name, kind in TABLES["iterations"].items() if kind != "string")


def row_of(found: dict[str, Any]) -> dict[str, Number]:
    """The columns of a measured row that a report keeps; what is no number is null."""
    return {name: _number(found.get(name)) for name in COLUMNS}


def _number(value: Any) -> Number:
    return None if value is None or not math.isfinite(value) else value


class Visit(Strict):
    """One run of a plan: a row of table `iterations` for each rank.

    Attributes:
        repeat: in which round, from 0.
        clock_held: whether the clock that the plan asks for was set; null where it asks for none.
        clock_note: why it was not.
        seconds: that it took, building the model included.
        rows: by rank.
    """

    repeat: Whole = Field(ge=0)
    clock_held: Switch | None
    clock_note: str | None = None
    seconds: Real
    rows: tuple[dict[str, Number], ...] = Field(min_length=1)

    @field_validator("rows")
    @classmethod
    def _columns(cls, rows: tuple[dict[str, Number], ...]) -> tuple[dict[str, Number], ...]:
        unknown = sorted({name for row in rows for name in row if name not in COLUMNS})
        if unknown:
            raise ValueError(f"found {', '.join(unknown)}; allowed: numeric columns of table iterations")
        return rows


class Failed(Strict):
    """A run that did not come to its end.

    Attributes:
        repeat: in which round, from 0.
        kind: in a word, such as "out of memory".
        reason: what went wrong.
        log: file with all that was printed, relative to the folder of the report; null where there is none.
    """

    repeat: Whole = Field(ge=0)
    kind: str
    reason: str
    log: str | None = None


class Measured(Strict):
    """Mean of a quantity over repeats, SI units; `std` is their standard deviation, null for a single one."""

    mean: Real
    std: Real | None
    n: Whole = Field(ge=1)


class Predicted(Strict):
    """A prediction and its central 90 % interval; null where its error isn't known."""

    value: Real
    interval: tuple[Real, Real] | None


class QuantityReport(Strict):
    """One quantity of one plan.

    Attributes:
        predicted: with temperature and expert load as measured.
        forecast: the same prediction without: what was known before the run.
        error: predicted over measured, less 1; null where one of them is missing.
        error_std: standard deviation of that over repeats; null for a single one.
    """

    predicted: Predicted | None
    forecast: Predicted | None
    measured: Measured | None
    error: Real | None
    error_std: Real | None


class PlanReport(Strict):
    """One plan.

    Attributes:
        name: no two plans of a report share it.
        roles: why it was run, such as "front 1 (fastest)", "file plan.yaml", "control: default".
        asked_yaml: the plan as it was asked for.
        plan_yaml: the plan as it ran and was predicted: without a clock that could not be held.
        notes: on this plan.
        quantities: by name, see `results.measured.QUANTITIES`.
        temperature_C, expert_skew: as measured, inputs of `predicted`; null where they weren't.
        visits: runs that came to their end.
        failures: runs that didn't.
    """

    name: str
    roles: tuple[str, ...]
    asked_yaml: str
    plan_yaml: str
    notes: tuple[str, ...]
    quantities: dict[str, QuantityReport]
    temperature_C: Real | None
    expert_skew: Real | None
    visits: tuple[Visit, ...]
    failures: tuple[Failed, ...]

    @property
    def plan(self) -> Plan:
        """The plan as it ran."""
        return parse_yaml(self.plan_yaml, Plan, self.name)


class SkippedPlan(Strict):
    """A plan that was not run, and why."""

    name: str
    reason: str


class Errors(Strict):
    """Errors of a quantity over plans: mean and worst of |predicted/measured - 1|, and the mean of the forecasts'."""

    mape: Real
    worst: Real
    worst_plan: str
    forecast_mape: Real | None
    covered: Real | None = Field(description="share of measurements in the 90 % interval; null without intervals")
    plans: Whole


class Ranking(Strict):
    """How well predictions order the plans by one quantity, among plans that are alternatives to each other.

    Attributes:
        tau: Kendall's tau-b over all pairs of alternatives; null without such pairs or differences.
        pairs: of alternatives.
        regret: measured value of the plan predicted best over the best measured, less 1; the worst over groups of
            alternatives; null without groups of two.
        chosen, best: names of those two plans, in the group with that regret.
    """

    tau: Real | None
    pairs: Whole
    regret: Real | None
    chosen: str | None
    best: str | None


class Environment(Strict):
    """On what it ran, and with what.

    Attributes:
        gpu: name of the GPU description.
        device: the first device, as it was found.
        gpus: devices at hand.
        clocks: how clocks were dealt with: "lock" or "passive".
        libraries, host: as in a profile's manifest.
    """

    gpu: str
    device: DeviceInfo
    gpus: Whole
    launcher: Launcher | Literal["torchrun"]
    clocks: Literal["lock", "passive"]
    libraries: dict[str, str]
    host: dict[str, Any]


class Report(Strict):
    """What a validation found.

    Attributes:
        created: ISO 8601, UTC.
        search: name of the search whose plans these are; null where plans were given.
        repeats, seconds, seed: rounds, measured seconds of a run, seed of the order and of the random control.
        complete: every run was made.
        plans: in the order of their predicted step time.
        set_aside: plans that were not run.
        errors: by quantity.
        ranking: by quantity, step_time and energy.
        notes: a sentence each.

    >>> import moemodel
    >>> report = moemodel.read_report("validation")
    >>> for plan in report.plans:
    ...     error = plan.quantities["step_time"].error  # predicted over measured, less 1; None: not measured
    >>> report.errors["step_time"].mape == abs(error)  # of a single plan
    True
    """

    schema_version: Whole
    moemodel_version: str
    created: str
    search: str | None
    repeats: Whole
    seconds: Real
    seed: Whole
    complete: Switch
    environment: Environment
    calibration: CalibrationRef
    plans: tuple[PlanReport, ...]
    set_aside: tuple[SkippedPlan, ...]
    errors: dict[str, Errors]
    ranking: dict[str, Ranking]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """The text of the file."""
        return self.model_dump_json(indent=1) + "\n"

    @property
    def failed(self) -> tuple[PlanReport, ...]:
        """Plans of which a run did not come to its end."""
        return tuple(plan for plan in self.plans if plan.failures)


class _Version(Strict):
    model_config = ConfigDict(extra="ignore")
    schema_version: Whole


def read_report(path: Path | str) -> Report:
    """A stored report, from its file or the folder that it lies in.

    Raises:
        InputError: missing, not JSON, of another schema version, or malformed; with the place.
    """
    path = Path(path) / REPORT if Path(path).is_dir() else Path(path)
    version = read_json(path, _Version).schema_version
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema_version: found {version}; this moemodel reads {SCHEMA_VERSION}. "
            "Validate again with `moemodel validate`"
        )
    report = read_json(path, Report)
    _check_rows(report, path)
    return report


def _check_rows(report: Report, path: Path) -> None:
    """Refuse what nobody measured; a run that measures it is kept as it is, and its report written."""
    for plan in report.plans:
        for number, visit in enumerate(plan.visits):
            for name, value in ((name, value) for row in visit.rows for name, value in row.items()):
                low, high = _range(name)
                if value is not None and not low <= value <= high:
                    place = f"plan {shown(plan.name)}, visit {number + 1}: {name}"
                    raise InputError(f"{path}: {place}: found {value:g}; allowed: {low:g} to {high:g}, or null")


def _range(column: str) -> tuple[float, float]:
    """What a measurement can be: signs as physics has them; the other bounds are assumed, and wide."""
    if column.startswith("loss"):
        return -1e9, 1e9
    if column.endswith("_C"):
        return -100.0, 300.0
    return (1e-9 if column == "step_time_s" else 0.0), 1e18
