"""What a plan says of its routers: how evenly they load experts, and in what they differ from the architecture's."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from moemodel.model.architecture.spec import Architecture, Layer, Moe, Router
from moemodel.model.core.documents import Strict, Switch
from moemodel.model.plan.dispatch import DispatchChoices, DispatchName
from moemodel.model.records.routing_statistics import Balancing
from moemodel.model.schedule.pipeline_layout import distinct_layers

_Factor = Annotated[float, Field(gt=0, le=1e3, strict=True)]
_Coefficient = Annotated[float, Field(ge=0, le=1e3, strict=True)]
_Experts = Annotated[int, Field(gt=0, le=100_000, strict=True)]
NodeLimit = Annotated[int, Field(gt=0, le=100_000, strict=True)]


SKEW_STATES = ("balanced", "initial", "trained")
_MOST_SKEW = 1e6
_FILES = (".json", ".jsonl")


def _skew(value: Any) -> Any:
    """A number, a word, or the name of a file.

    Raises:
        ValueError: what is allowed.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    named = isinstance(value, str) and (value in SKEW_STATES or value.endswith(_FILES)) and value.isprintable()
    if named or (number and 1 <= value <= _MOST_SKEW):
        return float(value) if number else value
    raise ValueError(
        f"allowed: a number of 1 or more, {', '.join(SKEW_STATES)}, null, or the path of a file of statistics "
        f"({', '.join(_FILES)})"
    )


Skew = Annotated[float | str, BeforeValidator(_skew)]


class RoutingSpec(Strict):
    """How evenly the routers load the experts, and by which rule they choose them."""

    skew: Skew | None = Field(
        default=None,
        description="rows of the busiest expert over the mean, `balanced`, what routers were seen to do from random "
        "weights (`initial`) or after training (`trained`), or a file of statistics; null: not known, balanced is "
        "predicted, and intervals reach what was seen",
    )
    router: Router | None = Field(default=None, description="how experts are chosen; null: as the architecture says")
    top_k: _Experts | None = Field(default=None, description="experts of a token; null: as the architecture says")
    normalize: Switch | None = Field(
        default=None, description="weights of a token's experts add up to one; null: as the framework does"
    )
    capacity_factor: _Factor | None = Field(
        default=None,
        description="rows that an expert takes over the mean, the others being dropped; null: as the architecture says",
    )
    pad: Switch | None = Field(
        default=None, description="an expert's rows are padded to its capacity; null: as the framework does"
    )
    jitter: _Coefficient = Field(
        default=0.0, description="routers see their input times 1 - jitter to 1 + jitter (Fedus et al. 2022)"
    )
    temperature: _Factor = Field(default=1.0, description="the routers' scores are divided by it")
    balance_loss: _Coefficient = Field(
        default=0.0, description="coefficient of the load-balancing loss (Fedus et al. 2022, eq. 4), summed over layers"
    )
    z_loss: _Coefficient = Field(default=0.0, description="coefficient of the z-loss (Zoph et al. 2022, eq. 5)")
    bias_rate: _Coefficient = Field(
        default=0.0, description="step of biases that balance without a loss (Wang et al. 2024, algorithm 1)"
    )
    residual: Switch = Field(
        default=False, description="a dense block beside the experts (Rajbhandari et al. 2022, Residual-MoE)"
    )
    products: Literal["grouped", "each"] | None = Field(
        default=None,
        description="an expert's products together with others' (grouped) or one after another (each); null: as the "
        "framework does",
    )
    dispatch: DispatchName = Field(
        default="alltoall",
        description="how rows get to experts: every copy by itself (alltoall), all tokens to all ranks (allgather), or "
        "a row once to a node, and on by NVLink (deepep)",
    )
    dispatch_overlap: Switch | None = Field(
        default=None,
        description="rows are sent behind the computation of another micro-batch; null: as the framework does",
    )
    dispatch_dtype: Literal["fp8"] | None = Field(
        default=None,
        description="rows go to experts in 8 bits with a scale for 128, and come back in 16, with products in 8 bits "
        "(DeepSeek-V3, section 3.3.3); null: in the bytes of activations",
    )
    node_limit: NodeLimit | None = Field(
        default=None,
        description="nodes that the experts of a token lie on at most (DeepSeek-V3, section 2.1.2); null: as the "
        "architecture's router has it",
    )

    @property
    def dispatch_choices(self) -> dict[str, int]:
        """How rows get to experts, as numbers (`plan.dispatch`)."""
        said = DispatchChoices(
            dispatch=self.dispatch, node_limit=self.node_limit, dispatch_overlap=self.dispatch_overlap
        )
        return said.numbers

    @property
    def dispatch_words(self) -> list[str]:
        """The same in words; none of what it does not say."""
        words = [] if self.dispatch == "alltoall" else [str(self.dispatch)]
        words += [] if self.dispatch_dtype is None else [f"rows in {self.dispatch_dtype}"]
        words += [] if self.node_limit is None else [f"to {self.node_limit} nodes"]
        if self.dispatch_overlap is not None:
            words.append("rows behind computation" if self.dispatch_overlap else "rows not behind computation")
        return words


def balancing_of(routing: RoutingSpec) -> Balancing:
    """What of a plan makes its routers load experts evenly; biases where both do."""
    if routing.bias_rate:
        return "bias"
    return "loss" if routing.balance_loss else "none"


def routed_architecture(architecture: Architecture, routing: RoutingSpec) -> Architecture:
    """An architecture with the routers that a plan asks for."""

    def changed(layer: Layer) -> Layer:
        block = layer.feed_forward
        return layer if not isinstance(block, Moe) else replace(layer, feed_forward=_changed(block, routing))

    once = {layer: changed(layer) for layer in distinct_layers(architecture)}
    return replace(
        architecture,
        encoder=tuple(once[layer] for layer in architecture.encoder),
        decoder=tuple(once[layer] for layer in architecture.decoder),
        multi_token=tuple(map(changed, architecture.multi_token)),
    )


def _changed(block: Moe, routing: RoutingSpec) -> Moe:
    return replace(
        block,
        router=block.router if routing.router is None else routing.router,
        top_k=block.top_k if routing.top_k is None else routing.top_k,
        capacity_factor=block.capacity_factor if routing.capacity_factor is None else routing.capacity_factor,
        residual=block.residual or routing.residual,
    )
