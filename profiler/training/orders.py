"""What the processes of a training job are told to do: `job.json` in the job's folder. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from moemodel.model.core.documents import Strict

JOB = "job.json"
AskedClocks = Literal["auto", "passive", "lock"]


class VisitOrder(Strict):
    """One visit of a plan."""

    plan_yaml: str
    folder: str = Field(description="that a path in the plan is relative to")
    repeat: int
    seed: int


class Job(Strict):
    """What the processes of one job do."""

    gpu: str = Field(description="GPU that must be there, or cpu")
    clocks: AskedClocks
    warm_s: float
    measured_s: float
    timeout_s: float = Field(description="of a collective")
    launcher_pid: int = Field(description="process whose end ends the job")
    launcher_host: str
    host_repeats: int = Field(default=0, description="steps to measure the host's time of parallel parts in, first")
    visits: list[VisitOrder]
