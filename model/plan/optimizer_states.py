"""In which types a plan keeps what its optimizer keeps: master weights, and Adam's two moments."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, model_validator

from moemodel.model.core.documents import Strict
from moemodel.model.frameworks.base import Framework, MasterDtype, MomentDtype, Muon, Precision, PrecisionRecipe

# Bytes of an element. 8-bit moments have a float32 scale for every block of 256 (Dettmers et al. 2022, section 2.1, as
# bitsandbytes and torchao cut them today)
_MOMENT_B: dict[MomentDtype, float] = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0 + 4.0 / 256}
# `remainder`: the 16 bits that a float32 weight has beyond its bf16 one (Transformer Engine, optimizers/fused_adam.py)
_MASTER_B: dict[MasterDtype, float] = {"fp32": 4.0, "fp16": 2.0, "remainder": 2.0}
_WEIGHT_B = 2.0  # of a 16-bit weight that a remainder is read with


class OptimizerStates(Strict):
    """The optimizer, and types of what it keeps. None: as the framework does, given the others.

    `muon` makes updates of matrices orthogonal (Jordan 2024) and keeps one moment of them, in the type of the first;
    AdamW updates embedding, head, norms and biases.
    """

    name: Literal["adamw", "muon"] = Field(default="adamw", description="which it is")
    ns_steps: Annotated[int, Field(gt=0, le=100, strict=True)] = Field(
        default=5, description="steps of Newton and Schulz, of muon"
    )
    tp_mode: Literal["duplicated", "blockwise"] = Field(
        default="duplicated",
        description="of muon: tensor-parallel ranks gather whole matrices, or each makes its own part orthogonal",
    )
    exp_avg: MomentDtype = Field(default="fp32", description="type of the first moment")
    exp_avg_sq: MomentDtype = Field(default="fp32", description="type of the second moment")
    master: MasterDtype | None = Field(default=None, description="type of master weights")

    @model_validator(mode="after")
    def _says_something(self) -> OptimizerStates:
        if (self.name, self.exp_avg, self.exp_avg_sq, self.master) == ("adamw", "fp32", "fp32", None):
            raise ValueError("allowed: null, muon, or a type other than fp32 of exp_avg, exp_avg_sq or master")
        if self.name != "muon" and {"ns_steps", "tp_mode"} & self.model_fields_set:
            raise ValueError(f"ns_steps, tp_mode: found with name {self.name}; allowed with name muon alone")
        return self

    @property
    def has_types(self) -> bool:
        """Whether it keeps anything in another type than float32."""
        return (self.exp_avg, self.exp_avg_sq, self.master) != ("fp32", "fp32", None)

    def master_of(self, framework: Framework) -> MasterDtype:
        """Type of master weights: where moments are smaller, Megatron keeps remainders (core/optimizer/
        optimizer_config.py, store_param_remainders)."""
        if self.master is not None:
            return self.master
        if not self.has_types:
            return "fp32"
        return "remainder" if "remainder" in framework.master_dtypes else "fp32"

    def recipe(self, plain: PrecisionRecipe, framework: Framework) -> PrecisionRecipe:
        """A precision's bytes with these states, and what the update moves of them: read and written each."""
        master = self.master_of(framework)
        state_B = _MASTER_B[master] + _MOMENT_B[self.exp_avg] + _MOMENT_B[self.exp_avg_sq]
        moved_B = plain.update_B + 2 * (state_B - plain.state_B) + _WEIGHT_B * (master == "remainder")
        made = plain.with_states(state_B=state_B, update_B=moved_B)
        return made if self.name != "muon" else replace(made, matrix_state_B=state_B - _MOMENT_B[self.exp_avg_sq])

    @property
    def muon(self) -> Muon | None:
        """How it makes updates orthogonal; None: it does not."""
        return Muon(steps=self.ns_steps, gathers=self.tp_mode == "duplicated") if self.name == "muon" else None


def needs_shards(asked: OptimizerStates | None, framework: Framework) -> bool:
    """Whether a framework keeps such states only where ZeRO shards them."""
    return asked is not None and asked.has_types and framework.sharded_dtypes


def steps_whole_matrices(asked: OptimizerStates | None) -> bool:
    """Whether no rank may hold a part of a matrix that it updates, so that ZeRO stops at stage 1."""
    return asked is not None and asked.name == "muon"


def check_optimizer(asked: OptimizerStates | None, framework: Framework, precision: Precision) -> None:
    """Refuse types that a framework does not keep.

    Raises:
        ValueError: what was found, and what is allowed.
    """
    if asked is None:
        return
    if not framework.precisions[precision].master_weights:
        raise ValueError(f"optimizer: found types of states with precision {precision}; allowed: null")
    if asked.name == "muon" and framework.data_parallel != "distributed-optimizer":
        raise ValueError(
            f"optimizer.name: found muon with backend {framework.name}; allowed: adamw, or a backend that gives each "
            "rank whole matrices to update: megatron, megatron-core, nemo"
        )
    allowed = {
        "exp_avg": (asked.exp_avg, framework.moment_dtypes),
        "exp_avg_sq": (asked.exp_avg_sq, framework.moment_dtypes),
        "master": (asked.master, framework.master_dtypes),
    }
    wrong = [
        f"optimizer.{key}: found {found} with backend {framework.name}; allowed: {', '.join(known)}"
        for key, (found, known) in allowed.items()
        if found is not None and found not in known
    ]
    if wrong:
        raise ValueError("; ".join(wrong))
