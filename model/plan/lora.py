"""Low-rank adapters beside frozen weights (Hu et al. 2021, LoRA), as a plan says them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from moemodel.model.core.documents import Strict, Switch
from moemodel.model.frameworks.base import ADAPTED, AdaptedLinear

Rank = Annotated[int, Field(gt=0, le=65_536, strict=True)]


class LoraSpec(Strict):
    """Adapters of a rank on some linear layers; all else is frozen."""

    rank: Rank = Field(description="inner width of an adapter")
    targets: tuple[AdaptedLinear, ...] = Field(
        default=ADAPTED,
        description="linear layers that have one: qkv and proj of attention, fc1 and fc2 of dense blocks",
    )
    dropout: Switch = Field(default=False, description="of adapters' inputs")
    all_to_all: Switch = Field(
        default=False,
        description="under sequence parallelism outputs of adapters of proj and fc2 go to the ranks of their tokens by "
        "an all-to-all (NeMo's a2a_experimental); false: all ranks gather them whole",
    )

    @model_validator(mode="after")
    def _each_once(self) -> LoraSpec:
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets: allowed: one or more of {', '.join(ADAPTED)}, each once")
        return self
