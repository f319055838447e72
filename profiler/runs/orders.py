"""What the processes of one training run are told to do: `run-order.json` in the job's folder. No torch here."""

from __future__ import annotations

from pydantic import Field

from moemodel.model.core.documents import Strict
from moemodel.profiler.data.spec import DataSpec

ORDER = "run-order.json"


class EmissionsPlace(Strict):
    """Whose electricity CodeCarbon counts with."""

    country: str
    region: str | None = None
    pue: float = 1.0


class RunOrder(Strict):
    """One training run."""

    gpu: str = Field(description="GPU that must be there, or cpu")
    name: str
    folder: str = Field(description="of the run: where its ranks write")
    plan_yaml: str
    plan_folder: str = Field(description="that a path in the plan is relative to")
    data: DataSpec
    learning_rate: float
    seed: int
    steps: int
    warmup_steps: int
    emissions: EmissionsPlace | None = Field(default=None, description="CodeCarbon beside the meter; null: without it")
    timeout_s: float = Field(description="of a collective")
    launcher_pid: int = Field(description="process whose end ends the job")
    launcher_host: str
