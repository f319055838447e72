"""How a framework runs a Mixture-of-Experts block: its form as data, which `layers.moe` prices.

Kernels that stream tensors are told by the tensor they go over. With T tokens of a GPU, D hidden, E experts, k of them
a token, and rows as they are padded: C of each expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# T, T D, T E, T k, T k D; rows of the GPU's experts times D, times an expert's width, and as many for each of the
# experts; E D, T (E C)
Tensor = Literal[
    "places",
    "tokens",
    "scores",
    "choices",
    "chosen_rows",
    "expert_rows",
    "inner_rows",
    "every_expert_rows",
    "router_weights",
    "masks",
]


# What torch's `index_add` of 16-bit rows takes an element, whose sums are atomic: 0.536 ms for 32,768 rows of 2,048 on
# an H200 (traced, torch 2.11; 2026), as long as a copy of so many bytes takes at the rate of that GPU's large copies
# (its shipped calibration); of other GPUs assumed to be as many. It moves 6, and is taken to draw as much as they do.
_COPY_B_PER_S = 4.21e12


def copied_B(time_s: float, elements: float) -> float:
    """Bytes of an element that a copy there moves in the time that kernels took of so many."""
    return time_s * _COPY_B_PER_S / elements


INDEX_ADD_B = copied_B(0.536e-3, 32_768 * 2_048)
INDEX_ADD_ENERGY = 6 / INDEX_ADD_B
# The same of a cast from 16 bits to 32: 0.384 ms for 8,192 x 8 rows of 2,048 there, twice as long as the other way
WIDEN_B = copied_B(0.384e-3, 8192 * 8 * 2048)


@dataclass(frozen=True, kw_only=True)
class StreamedKernels:
    """Plain kernels over the elements of one tensor.

    Attributes:
        over: which.
        forward, backward: how many kernels, in a pass.
        forward_B, backward_B: bytes of an element that these read and write, all of them together.
        kept_B: bytes of an element that stay for the backward pass.
        energy: of what a copy of so many bytes takes, that these kernels take in as long.
        fewest, most: experts of a token, with which they run.
        each_expert: they run for each expert that a GPU holds by itself, so many of them each.
        backward_expert_s: beside these, what each expert that a GPU holds takes of a backward pass.
    """

    over: Tensor
    forward: float = 0.0
    backward: float = 0.0
    forward_B: float = 0.0
    backward_B: float = 0.0
    kept_B: float = 0.0
    energy: float = 1.0
    fewest: int = 1
    most: int = 1_000_000
    each_expert: bool = False
    backward_expert_s: float = 0.0

    def runs(self, top_k: int) -> bool:
        """With so many experts a token."""
        return self.fewest <= top_k <= self.most


@dataclass(frozen=True, kw_only=True)
class ByChoices:
    """Numbers that differ by the experts of a token: for one, for two, for more."""

    one: float
    two: float
    more: float

    def of(self, top_k: int) -> float:
        """For so many."""
        return {1: self.one, 2: self.two}.get(top_k, self.more)


@dataclass(frozen=True, kw_only=True)
class Launches:
    """Kernels that the host queues for one block, from the router to the combination; what its experts launch aside.

    Attributes:
        forward, backward: in a pass.
        each_forward, each_backward: beside its products and its activation, for each expert that a GPU holds;
            `each_spread` forward where a GPU holds several of several ranks' rows.
        grouped: as how many experts grouped products count.
    """

    forward: ByChoices
    backward: ByChoices
    each_forward: float = 0.0
    each_backward: float = 0.0
    each_spread: float = 0.0
    grouped: float = 1.0


@dataclass(frozen=True, kw_only=True)
class HostWaits:
    """How often the host waits for the device.

    Attributes:
        forward: in a forward pass of a block without a capacity, to read how many rows go where; `cut` in one whose
            rows are cut at a capacity; `spread` beside either where experts are spread over ranks.
        clamped: forward beside these where experts clamp their inner rows.
        each_product: around each call of a product of experts, in either pass, so that the device runs dry.
    """

    forward: float = 0.0
    cut: float = 0.0
    spread: float = 0.0
    clamped: float = 0.0
    each_product: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MoeForm:
    """The form of a Mixture-of-Experts block in a framework. The defaults are torch's, which profiles measure.

    Attributes:
        padding: an expert's rows are padded to its capacity where it has one (`capacity`); to it, and where it has none
            to the rows of the busiest expert (`always`); or never, and what is over a capacity is dropped.
        min_capacity: rows that a capacity is at least.
        products: of all experts together (`grouped`); of each by itself, one after another (`each`); or of each on
            one of several streams, which fills the device as a grouped product does (`streams`).
        cast_cycles: of an SM, for each byte of rows that casts to 8 and 4 bits move, behind moving it.
        expert_kernel_s: of each product of 8 and 4 bits, and of each cast, of an expert by itself, beside its work.
        expert_products: as how many of torch's kernels the host queues a product of one expert, where a call of the
            framework's runs those of all, one after another.
        fuses_casts: the kernel that activates inner rows casts them, and their gradients.
        splits_gate: gate and up-projection of an expert are products of their own.
        dispatch: rows are sorted by their expert, and weighted and added back, by what calibrations call permute and
            unpermute; by kernels that `kernels` lists; or by products with masks of T x E C (GShard, Lepikhin et al.
            2020, algorithm 2), beside these kernels.
        sorts_again: rows of several ranks are sorted by expert again; `sorts_several` by a kernel of its own, which
            moves no more than it has to, and only where a GPU holds several experts.
        pads_cast_rows: products of 8 and 4 bits take an expert's rows in multiples of 16 or 32, to which they are
            copied, and back behind the last, unless whoever sends them has left room (`deepep`) or a capacity has.
        float32_router: the router's product is of float32, without TF32, forward and backward.
        float32_times: how much longer it takes than one of 16 bits; of the GPU, which whoever knows it sets.
        kernels: others, beside the router's softmax and choice; `float32_rows` beside these where autocast has rows in
            float32 (`MicroBatch.autocast`).
        policies: kernels that a plan's routing policies add to the framework's own.
        biases, clamps: plain kernels of the experts that have biases, and that clamp their inner rows; the host queues
            each as torch's does one.
        launches: None: as the profile measured of torch's.
        host_waits: of the host for the device.
        exchanges_counts: before rows go to other ranks, these are told how many.
        balance_loss: the load-balancing loss is computed whether it is asked for or not.
        messages_each: an exchange is one collective for each expert of a rank.
        separate_experts: each expert's weights are tensors of their own.
    """

    padding: Literal["capacity", "always", "never"] = "capacity"
    min_capacity: int = 0
    products: Literal["grouped", "each", "streams"] = "grouped"
    cast_cycles: float = 0.0
    expert_kernel_s: float = 0.0
    expert_products: float = 0.0
    fuses_casts: bool = False
    splits_gate: bool = False
    dispatch: Literal["sorted", "kernels", "masks"] = "sorted"
    sorts_again: bool = True
    sorts_several: bool = False
    pads_cast_rows: bool = False
    float32_router: bool = False
    float32_times: float = 1.0
    kernels: tuple[StreamedKernels, ...] = ()
    float32_rows: tuple[StreamedKernels, ...] = ()
    policies: tuple[StreamedKernels, ...] = ()
    biases: tuple[StreamedKernels, ...] = ()
    clamps: tuple[StreamedKernels, ...] = ()
    launches: Launches | None = None
    host_waits: HostWaits = HostWaits()
    exchanges_counts: bool = True
    balance_loss: bool = False
    messages_each: bool = False
    separate_experts: bool = False


PLAIN_FORM = MoeForm()

# Kernels that a profile of torch 2.11 traces on an H100 and on an H200 (`calibrate/profiles`, table host, column
# kernels), forward and backward, by what the measured layer is called.
_MEASURED = {
    "dense_layer": (13.0, 31.0),
    "dense_layer_gated": (29.0, 46.0),
    "dense_layer_gated_qk_norm": (31.0, 50.0),
    "moe_layer": (56.0, 70.0),
    "moe_layer_qk_norm": (58.0, 74.0),
}
# Of a layer with experts the block from the router to the combination: what it has beyond one with a gated dense block,
# whose five kernels forward and ten backward are added again.
_DENSE_BLOCK = (5.0, 10.0)
MEASURED_BLOCK = (56.0 - 29.0 + _DENSE_BLOCK[0], 70.0 - 46.0 + _DENSE_BLOCK[1])


# Of a plain dense layer the block of two products and an activation between them
PLAIN_DENSE_BLOCK = (3.0, 5.0)
# Of the block's kernels those up to where rows leave: the router's product, softmax, choice (two) and weights (three),
# and the counts and order of rows (thirteen), among them a stable sort of four; of their gradients the router's alone
# (counted in profiler/backends/torch_native, routers.py and operators.py)
MEASURED_ROUTER = (20.0, 10.0)


def kernels_behind(*, experts: bool) -> tuple[float, float]:
    """Of a measured layer's kernels, forward and backward, those that graphs of what comes before its feed-forward
    block, and of its router, leave to the host."""
    if not experts:
        return _DENSE_BLOCK
    return MEASURED_BLOCK[0] - MEASURED_ROUTER[0], MEASURED_BLOCK[1] - MEASURED_ROUTER[1]


def measured_layer(name: str) -> tuple[float, float]:
    """Kernels of a measured layer, forward and backward."""
    return _MEASURED[name]


def expert_kernels(*, products: int, gated: bool) -> tuple[float, float]:
    """Kernels of one expert that runs by itself, forward and backward.

    Products, the activation and, if gated, its product with the up-projection; backward two for each product, the
    activation's gradient, and of a gate two products of elements and a sum.
    """
    return products + (2.0 if gated else 1.0), 2.0 * products + (4.0 if gated else 1.0)
