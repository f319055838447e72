"""Low-rank adapters beside frozen weights (Hu et al. 2021, LoRA), as a plan says them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from moemodel.model.core.documents import Strict, Switch, switch
from moemodel.model.frameworks.base import ADAPTED, SCATTERED, AdaptedLinear


def _switch_or_probability(value: Any) -> bool | float:
    found = switch(value)
    if isinstance(found, bool):
        return found
    if isinstance(found, int | float) and 0.0 <= found <= 1.0:
        return float(found)
    raise ValueError("allowed: true, false, or a probability, from 0 to 1")


Rank = Annotated[int, Field(gt=0, le=65_536, strict=True)]


class LoraSpec(Strict):
    """Adapters of a rank on some linear layers; all else is frozen."""

    rank: Rank = Field(description="inner width of an adapter")
    targets: tuple[AdaptedLinear, ...] = Field(
        default=ADAPTED,
        description="linear layers that have one: qkv and proj of attention, fc1 and fc2 of dense blocks",
    )
    dropout: Annotated[bool | float, BeforeValidator(_switch_or_probability)] = Field(
        default=False, description="of adapters' inputs: whether there is any, or its probability, 0: none"
    )
    all_to_all: Switch = Field(
        default=False,
        description="under sequence parallelism outputs of adapters of proj and fc2 go to the ranks of their tokens by "
        "an all-to-all (NeMo's a2a_experimental); false: all ranks gather them whole",
    )

    @model_validator(mode="after")
    def _each_once(self) -> LoraSpec:
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets: allowed: one or more of {', '.join(ADAPTED)}, each once")
        if self.all_to_all and not set(self.targets) & set(SCATTERED):
            raise ValueError(
                f"all_to_all: found true with targets {', '.join(self.targets)}; allowed: false, or "
                f"{' or '.join(SCATTERED)} among the targets"
            )
        return self

    def on_ranks(self, *, tp: int, sequence_parallel: bool) -> LoraSpec:
        """With `all_to_all` as far as ranks that share a sequence have one."""
        applies = tp > 1 and sequence_parallel
        return self if applies or not self.all_to_all else self.model_copy(update={"all_to_all": False})
