"""What interrupts a long run, and what it does about it: the block `failures` of a plan."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from moemodel.model.core.documents import Strict

# Llama 3 405B: 419 unexpected interruptions in 54 days on 16,384 H100, one in 50,700 hours of a GPU ("The Llama 3 Herd
# of Models", arXiv 2407.21783). No default: a plan that says nothing of failures has none.
SUGGESTED_MTBF_HOURS = 50_000.0
# Assumed: training stands still for so long while a checkpoint is written. What is written behind training takes less.
CHECKPOINT_S = 60.0
# Assumed: a job is found dead, starts anew and reads its checkpoint.
RESTART_S = 300.0

Hours = Annotated[float, Field(gt=0, le=1e12, strict=True)]
Seconds = Annotated[float, Field(ge=0, le=1e7, strict=True)]  # 115 days, assumed: more is a typing error
Interval = Annotated[float, Field(gt=0, le=1e9, strict=True)]


class FailuresSpec(Strict):
    """Failures that end the job, and checkpoints. Times in seconds."""

    mtbf_hours_per_gpu: Hours = Field(
        description="mean time between failures, of one GPU and its share of hosts and network; 50,000 for Llama 3"
    )
    checkpoint_interval_s: Interval | None = Field(
        default=None, description="training between two checkpoints; null: Young's and Daly's"
    )
    checkpoint_s: Seconds = Field(default=CHECKPOINT_S, description="that training stands still for a checkpoint")
    restart_s: Seconds = Field(default=RESTART_S, description="from a failure until training goes on")

    def mtbf_s(self, gpus: int) -> float:
        """Mean time between failures of a job: any of its GPUs ends it."""
        return self.mtbf_hours_per_gpu * 3600.0 / gpus
