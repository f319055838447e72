"""What a training framework makes of a model on a GPU: one frozen record a framework, one file each.

A record holds facts of the framework's code, each with its source beside it: which kernels are fused, what runs behind
computation, what it keeps in memory, what it sends. Adding a framework is adding a file and a line in `registry`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from moemodel.model.core.dtypes import Dtype
from moemodel.model.frameworks.moe_form import PLAIN_FORM, MoeForm

Precision = Literal["bf16", "bf16-mixed", "fp8", "mxfp8", "nvfp4", "fp32"]

# How operands of 8 bits are scaled: by their current largest element, by that of steps before, or every 128 elements of
# activations and 128 x 128 of weights (Transformer Engine, common/recipe: Float8CurrentScaling, DelayedScaling,
# Float8BlockScaling)
Fp8Recipe = Literal["tensorwise", "delayed", "blockwise"]

# Mesh axes whose communication may run behind computation: activations of tensor parallelism, rows to experts, messages
# between stages, gradients, and the parameters that ZeRO gathers. Keys and values of context parallelism always do.
OverlapAxis = Literal["tp", "ep", "pp", "gradients", "parameters"]

# Kernels of attention: FlashAttention's three generations, cuDNN's; `cudnn-masked`: cuDNN's where a mask says which
# pairs count, of which it skips none; `unfused`: a product, a softmax, a product; `unfused-fp32`: that softmax in
# float32, a kernel for each step.
AttentionName = Literal["flash1", "flash2", "flash3", "cudnn", "cudnn-masked", "unfused", "unfused-fp32"]

# Of every layer, what graphs replay where the host queues the rest: what comes before the feed-forward block, and of
# one with experts its router, with the counts of rows that it makes (Megatron Core's scopes attn, moe_router and
# moe_preprocess); or the latter alone.
CapturedParts = Literal["attention", "router"]

# Operators, by the names of `operators.work.Kind`, that a framework may run as one kernel which moves no more than it
# has to; profiles measure what torch makes of them, one plain kernel after another or one that strides.
FusedOperator = Literal[
    "rms_norm", "layer_norm", "rotary", "gelu", "relu", "swiglu", "swiglu_packed", "router", "permute", "unpermute"
]

# Operators of which a framework may run kernels of its own, one after another, where torch has others; `head_norm` is a
# norm of queries or keys, which is as `rms_norm` where nothing is said of it.
PlainOperator = Literal["rms_norm", "head_norm", "rotary"]


_WEIGHTS_KERNELS = 2  # for the gradient of weights: a product and a sum


@dataclass(frozen=True, kw_only=True)
class PlainKernels:
    """Kernels of an operator, one after another.

    Attributes:
        forward_B, backward_B: bytes of an element that a copy moves in as long as they take.
        energy: of what such a copy takes, that they take.
        kept_B: bytes of an element that they keep for the backward pass, beside what the operator gives;
            `weights_kept_B` of these for the gradient of its weights alone, whose kernels move `weights_B` as a copy.
        kernels: how many they are, forward and backward; None: as many as torch's.
        autocast: the same where torch.autocast has float32 elements before or among them; None: alike.
    """

    forward_B: float
    backward_B: float
    energy: float = 1.0
    kept_B: float = 0.0
    weights_kept_B: float = 0.0
    weights_B: float = 0.0
    kernels: tuple[float, float] | None = None
    autocast: PlainKernels | None = None

    @property
    def under_autocast(self) -> PlainKernels:
        """Those of plans whose parameters are float32 ones that autocast casts."""
        return self.autocast or self

    @property
    def frozen(self) -> PlainKernels:
        """Those of an operator whose weights have no gradient."""
        moved_B = (self.forward_B + self.backward_B) * self.energy - self.weights_B
        backward_B = self.backward_B - self.weights_B
        return replace(
            self,
            backward_B=backward_B,
            energy=moved_B / (self.forward_B + backward_B),
            kept_B=self.kept_B - self.weights_kept_B,
            weights_kept_B=0.0,
            weights_B=0.0,
            kernels=None if self.kernels is None else (self.kernels[0], self.kernels[1] - _WEIGHTS_KERNELS),
            autocast=None if self.autocast is None else self.autocast.frozen,
        )


# Of what an optimizer keeps; `int8` in blocks with a scale each, `remainder` what a 16-bit weight lacks of float32.
MomentDtype = Literal["fp32", "bf16", "fp16", "fp8", "int8"]
MasterDtype = Literal["fp32", "fp16", "remainder"]


# Bytes of a cast element with its share of the scale: one a tensor; 8 bits for every 32 elements (OCP Microscaling
# Formats v1.0, section 5); 8 bits for every 16 (NVFP4, NVIDIA Blackwell architecture technical brief).
_CAST_B: dict[Dtype, float] = {"fp8": 1.0, "mxfp8": 1 + 1 / 32, "nvfp4": 0.5 + 1 / 16}

_BLOCK_B = 1.0 + 4.0 / 128  # of an element of blocks of 128


# Of a parameter, that one kernel of an update moves (`operators.work`, ADAMW_MIXED): 16-bit gradient and weight, and
# float32 master and moments, read and written
_UPDATE_B = 2 * 2.0 + 6 * 4.0


# The same of torch's AdamW on a processor, one operation after another on float32 tensors: weights decayed (2 of 4
# bytes), first moment (3), second (2 + 3), its root, divided and shifted (2 + 2 + 2), update (4); to 16 bits
# (torch/optim/adam.py, _single_tensor_adam)
_HOST_UPDATE_B = 20 * 4.0 + 6.0


@dataclass(frozen=True, kw_only=True)
class PrecisionRecipe:
    """Bytes and types of one precision.

    Attributes:
        weight_B, gradient_B, state_B: bytes a parameter that are kept (master weights count as state).
        transient_B: bytes a parameter that the optimizer allocates while it steps; `group_transient_B` without ZeRO
            beside these, of the largest group of parameters that it steps together.
        master_weights: the optimizer updates float32 copies of 16-bit parameters.
        element_size_B: bytes of an element of parameters and activations.
        update_B: of a parameter, that one kernel of an update moves.
        matmul_dtype: type of the operands of products inside layers, whose rate `device.precision` takes from the GPU's
            peaks; those of 8 and 4 bits are cast by kernels beforehand.
        cast_B: bytes that these move of an element, all of them together; `normed_B` of what a norm gives, beyond what
            that norm moves; None: as of any other. `reordered_B` of these move an element of a cast that was gathered,
            into the order that it was not gathered in.
        matrix_state_B: bytes a parameter of states of matrices, where an optimizer keeps less of these.
        layer_B: bytes of a layer's parameter that is kept, where it differs from `weight_B`; `gathered_B` of one that
            data-parallel ranks gather, where it differs from an element; `kept_cast_B` that casts move of one that is
            kept in 8 bits, or that putting it in another order does; None: it is kept in 16.
        shares_largest: the largest element is found among tensor-parallel ranks, where these hold parts of a tensor.
        blocks: operands have a float32 scale for every 128 elements, and kernels of their own.
        splits_accumulation: in products of cast gradients sums go to float32 every 128 of depth.
    """

    weight_B: float
    gradient_B: float
    state_B: float
    transient_B: float = 0.0
    group_transient_B: float = 0.0
    master_weights: bool = True
    element_size_B: float = 2.0
    update_B: float = _UPDATE_B
    matmul_dtype: Dtype = "bf16"
    cast_B: float = 4.0
    normed_B: float | None = None
    reordered_B: float = 0.0
    shares_largest: bool = False
    blocks: bool = False
    matrix_state_B: float | None = None
    layer_B: float | None = None
    gathered_B: float | None = None
    kept_cast_B: float | None = None
    splits_accumulation: bool = False

    def with_states(self, *, state_B: float, update_B: float) -> PrecisionRecipe:
        """With states of so many bytes, of which an update moves so many."""
        return replace(self, state_B=state_B, update_B=update_B)

    @property
    def update_share(self) -> float:
        """Bytes that an update moves, over those of float32 states beside 16-bit weights and gradients."""
        return self.update_B / _UPDATE_B

    @property
    def casts(self) -> bool:
        """Whether kernels cast the operands of products beforehand."""
        return self.matmul_dtype in _CAST_B

    @property
    def weight_cast_B(self) -> float:
        """Bytes that casts of a weight move: as of any operand, or of one that is kept in 8 bits."""
        return self.cast_B if self.kept_cast_B is None else self.kept_cast_B

    @property
    def product_input_B(self) -> float:
        """Of the cast input where products cast theirs, of an activation elsewhere."""
        return _BLOCK_B if self.blocks else _CAST_B.get(self.matmul_dtype, self.element_size_B)


@dataclass(frozen=True, kw_only=True)
class HostFactors:
    """Host time of what a framework queues, over that of as many kernels of the torch backend's layer: its Python takes
    more or less of them. Of forward passes, backward passes and the optimizer's step.

    Measured by `bench/host_factors.py`, on models so small that nothing else takes time.
    """

    forward: float = 1.0
    backward: float = 1.0
    step: float = 1.0


# Linear layers that may have an adapter: the products of attention's inputs and of its output, the first and the last
# of a dense feed-forward block (Megatron-Bridge's linear_qkv, linear_proj, linear_fc1 and linear_fc2)
AdaptedLinear = Literal["qkv", "proj", "fc1", "fc2"]
ADAPTED: tuple[AdaptedLinear, ...] = get_args(AdaptedLinear)
# Of these, whose input sequence parallelism gathers; and, cut by their inputs, whose output it scatters: so that the
# output's gradient is gathered
GATHERED: tuple[AdaptedLinear, ...] = ("qkv", "fc1")
SCATTERED: tuple[AdaptedLinear, ...] = ("proj", "fc2")


@dataclass(frozen=True, kw_only=True)
class Muon:
    """An optimizer that makes updates of matrices orthogonal.

    Attributes:
        steps: of Newton and Schulz.
        gathers: tensor-parallel ranks gather whole matrices and do the same; else each takes its own part.
    """

    steps: int
    gathers: bool


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters of some linear layers, beside which all else is frozen.

    Attributes:
        rank: inner width.
        targets: linear layers that have one.
        dropout: of adapters' inputs.
        all_to_all: under sequence parallelism outputs behind products that are cut by their inputs go to the ranks of
            their tokens alone; else all ranks gather them.
    """

    rank: int
    targets: tuple[AdaptedLinear, ...]
    dropout: bool = False
    all_to_all: bool = False


@dataclass(frozen=True, kw_only=True)
class HostOffload:
    """What a plan keeps on the host.

    Attributes:
        optimizer: share of the parameters that the host updates, and whose states it keeps.
        activations: share of what layers keep.
        overlaps: copies either way run beside the host's update.
        link_Bps: of a GPU to its host, either way; NaN where nobody says.
        memory_Bps: of the host's memory, a GPU's part of it.
    """

    optimizer: float
    activations: float
    overlaps: bool
    link_Bps: float
    memory_Bps: float


@dataclass(frozen=True, kw_only=True)
class Framework:
    """A training framework.

    Attributes:
        name: in a plan's `backend`.
        precisions: that it trains in, each with its recipe.

        fused_qkv: queries, keys and values are one product; else one each.
        fused_gate_up: so are the gate and the up-projection of dense feed-forward blocks (of experts they always are).
        fused_kernels: operators that are one kernel in either pass, which moves its least bytes as fast as the
            calibration's copies move theirs; others take what the profile measured of torch's.
        turns_scaled: its fused rotation scales what it turns, too, where a model asks for it.
        plain_kernels: operators that are kernels one after another, of another chain than torch's own; all others are
            as measured.
        fused_loss_B: bytes of a logit that kernels of a fused cross-entropy move, forward and backward; None: it is
            not fused.
        logged_losses: cross-entropies of every micro-batch that its trainer computes for what it logs, beside the loss,
            in torch's plain kernels.
        flash_attention: attention is one kernel; else a product for the scores, a softmax over them, a product with the
            values.
        attention: which kernel that is; None: as profiles measure it.
        compiles: torch.compile fuses chains of elementwise kernels of whole layers where a plan asks for it.
        compiles_loss: the loss's kernels too.
        compiles_with_mask: what torch.compile makes of it hands attention a mask of all pairs of tokens.
        compiled: a plan asked for that: collectives inside layers are waited for where they are called, and operands
            that several products read are cast once.
        captured: CUDA graphs of passes are replayed where a plan asks for it: the host queues none of their kernels.
        captured_parts: graphs hold these parts of layers alone; None: all, or nothing.
        softmax: without flash attention, `fused` scales, masks and normalises in one kernel where it can run; `plain`
            fills the mask in, then normalises.
        softmax_longest: sequences up to this many tokens have the `fused` one.
        plain_softmax_time: of `plain` kernels over scores, over what torch 2.11's take on an H200.
        dropout: attention probabilities and the output of every block pass through dropout.
        fused_dropout: that of blocks is one kernel with their bias and the residual's sum; else kernels apart.
        moment_dtypes, master_dtypes: types that its optimizers keep moments and master weights in, where a plan asks;
            `sharded_dtypes`: other than float32 only where ZeRO shards them.
        fused_optimizer: it steps all parameters in a few kernels, which the host queues in no time beside
            `tensor_calls`.
        step_kernels: that the host queues, or waits for, in a step for each tensor of parameters; None: as the profile
            measured of torch's.
        step_read: of what it queues for each tensor, the share up to the one whose result it reads, tensor after
            tensor, before it queues anything of the rest: neither it nor the device can do any of the rest meanwhile.
        step_read_B: bytes a parameter that kernels up to there move; in `optimizer_B`.
        optimizer_B: bytes a parameter that kernels of a step move beyond those of one that does all at once;
            `sharded_optimizer_B` beside these from ZeRO 1 on.
        gradients_B: bytes a parameter that kernels of a step move, beside these, of gradients that no ZeRO stage below
            2 shards.
        sums_B: bytes a parameter that adding a micro-batch's gradients to what is there moves, of the first one's too;
            None: as torch's, of all others.
        sums_in_products: products of weights' gradients add them up as they give them.
        fills_gradients: gradients lie in buffers that every step fills with zeros, and that those of every micro-batch
            are added to, the first one's too.
        casts_weights: how often weights are cast where operands of products are: once a step, in the first forward
            pass, or in every one; None: they stay cast.
        host_update_B: bytes a parameter that an update on the host moves through its memory.
        eager_sharding: what sharding a tensor adds are plain kernels, one after another: the vocabulary-parallel loss
            and embedding, norms over all heads, rows of several ranks sorted by expert again.

        synchronizes_every_pass: the host waits for the device after every forward and backward pass, and cannot run
            ahead of it.
        torch_launch: collectives, units and buckets cost the host what the profile measured of torch's; else a
            collective or message is one call.
        plain_host: of any layer the host's time is that of the plain one that profiles measure, since norms, rotation
            and gates are one kernel each, and of what blocks queue beside its kernels.
        drained_calls: as many calls of operators as the host takes while the device has nothing to do, in the forward
            pass of every micro-batch and in a step.
        pass_calls: of the host, beside those of layers, in either pass of a micro-batch through a chunk of a pipeline.
        ring_calls: beside the message, for each block of keys and values that go around a ring, forward and backward.
        tensor_calls: of each tensor of parameters of a layer, in a backward pass and in a step, in which each adapter's
            modules take `adapter_calls` beside.
        shard_calls: to gather or scatter the parameters or gradients of a layer in a pass where ZeRO shards parameters,
            where `torch_launch` does not say.
        deterministic_host: host time of kernels that give the same bits every time, over that of the fastest.
        latent_calls: of attention by latents, beyond plain attention's, forward and backward.
        paired_calls: of a layer with experts whose rows travel behind another micro-batch's passes, since it falls into
            parts that take turns with that one's, forward and backward.
        repeated_calls: of each module of a layer, or layer, that runs again, beside operators, forward and backward.
        busy_waits: a GPU that waits for others does so in a collective's kernel, which draws power.

        checks_collectives: a plan asks torch to compare every collective over the hosts of its ranks beforehand
            (`step.collective_checks`).
        message_s: that a stage waits for the host around every message that says of what shape a tensor is, and around
            the tensor; of the `described` pipeline.

        moe: form of its Mixture-of-Experts block.
        host_factors: host time of its kernels over that of torch's.

        keeps_norm_shards: under sequence parallelism a product keeps the shard of its input and gathers it again in the
            backward pass (Korthikanti et al. 2022, section 4.2.2); else the whole.
        frees_late: a host that runs ahead of the device cannot use again what collectives still hold, the output of the
            last product of each block, whole and scattered; one that waits for others (`checks_collectives`) and is
            behind the device can, but for micro-batches in flight between the first and the last of them.
        late_layers: of so many layers at most, in a forward and in a backward pass, since it runs no further ahead.
        short_of_memory: the allocator has given back what it kept for nobody: copies of a step while passes run.
        may_keep_norm_shards: a setting of its own, or a later version, keeps the shard after all.
        gated_tensors: of a gated block's width, that it keeps: gate, its activation, up-projection and their product; a
            kernel that makes the product of gate and up-projection keeps no activation.
        keeps_expert_outputs: rows are weighted behind the last product of their expert, whose output is kept; else
            before it, by the kernel that activates them.
        eager_loss: cross-entropy is one plain kernel after another, over a whole vocabulary too.
        returns_logits: the program gets logits beside the loss, as float32 copies.
        logit_B: bytes of a logit when the loss's backward pass begins; None: as `embedding_head` counts torch's.
        part_logit_B: the same where ranks share a vocabulary, if `logit_B` is None; None: as counted there.
        float32_shards: parameters of mixed precision are the float32 ones that states count; 16-bit ones are only
            gathered, or copies that last as long as the passes of a micro-batch.
        shards_ends_apart: FSDP gathers embedding and head each by itself, else both at once.
        wraps_lone: FSDP shards what no other rank holds, too, over that one: what it would gather and scatter it
            copies.
        flat_copy_B: bytes a parameter of flat buffers that gradients are exchanged in, which the allocator keeps.
        reserves_logits: memory counts as reserved, and 16-bit logits stay so beside the loss's float32 tensors, which
            outgrow their block.
        pools_by_stream: what is gathered and what is scattered lies in memory that the allocator keeps for the streams
            that do it, beside all else.
        placeholder_gradients: products add gradients to what is summed, and hand autograd a tensor of the weight's
            shape in their place: one for each shape of a layer stays, one of the head's lasts as long as its pass.
        selective: what `recompute: selective` runs again: the `core` of attention, or all `operators` of a layer but
            every other product, attention, reduce-scatters and all-to-alls.

        recompute_stops_early: a layer that runs again does so up to the last tensor that its backward pass reads, so
            that its last product does not; left out: nor do sums over tensor-parallel ranks behind it.
        program_chooses: the program that calls it chooses how the loss is computed and how many micro-batches a
            schedule gets; else the framework does.
        workspace_B: that libraries keep for products, by generation of GPU, `others` beside these; None: as the
            calibration has it of torch's. `deterministic_workspace_B` where products give the same bits every time;
            `experts_workspace_B` beside it for products of layers with experts.
        deterministic: kernels give the same bits every time (torch.use_deterministic_algorithms).
        keeps_score_buffer: unfused attention multiplies queries and keys into a buffer that stays from layer to layer;
            what is gathered goes into it too.
        context_B: of the context, with the kernels and libraries that it loads, and of communicators; None: as the
            calibration has it of torch's.
        counts_passes: what passes make beside what they keep is known of its code: gradients on their way through the
            last block, the final norm's input and output, the message last sent.
        memory_log_error: standard deviation of log(measured / predicted) of peak memory in published runs of it, beside
            what the calibration states of its device (`bench/memory.py`); None: nobody's are known.

        overlapped: axes whose communication runs behind computation.
        data_parallel: `ddp-fsdp2` (torch's DDP under ZeRO 0, FSDP2 above: buckets and units, copies on their way),
            `distributed-optimizer` (Megatron's), or `flattened`: gradients are copied into one buffer, scaled,
            all-reduced under any ZeRO stage and copied back, behind nothing (DeepSpeed, FastMoE).
        float32_experts: products of experts take operands of their weights' type, and autocast casts neither.
        data_parallel_only: every GPU trains the whole model, whose states ZeRO may shard; no run of it on several GPUs
            was held against a prediction.
        replicates_shards: ZeRO may shard over groups of ranks, each for itself (`parallel.replicas`).
        all_reduces: gradients are all-reduced under ZeRO 1, too, rather than scattered.
        gradient_bucket_B: without ZeRO they are, in messages of so many bytes of 16-bit gradients; None: in one.
        bucket_parameters: in messages of so many parameters where a plan says so; None: as `step.data_parallel` says.
        checks_gradients: the host waits for the norm of every message's gradients beforehand, and looks at it, where a
            plan says so.
        checks_weights: the host hashes all weights of the GPU after every step, where a plan says so.
        bucket_copies_B: bytes a parameter of gradients that stay in DDP's buckets, without ZeRO, where several ranks
            have the same parameters.
        gather_copies_B: bytes a parameter of flat copies that a step makes to gather what it updated under ZeRO, of all
            parameters and of a rank's own. Larger than what passes leave free, they stay with the allocator beside.
        unsummed_gradients_B: bytes a parameter of gradients that a backward pass has made until it ends, when they are
            added to the sums that stay.
        gather_buffers: buffers that stay, each of all hidden states of a micro-batch, for what tensor-parallel ranks
            gather.
        sums_norm_gradients: under sequence parallelism tensor-parallel ranks sum the gradients of norms once a step,
            each tensor by itself, in one call.
        gathered_tensor_s: of each tensor and each rank that has a part of it, to copy that part to its place when ZeRO
            has gathered parameters.
        reduce_bucket_B: of the buffer that gradients under ZeRO are reduced in, allocated for a backward pass whatever
            the size of the model; `largest_expert_group`: parameters of experts that the optimizer steps together.
        steps_whole_experts_along: where experts are not spread over ranks, the optimizer steps them in one group with
            all other parameters; else always apart.
        pipeline: `torch` (torch.distributed.pipelining: a buffer for every message, for which the host does not wait),
            `megatron` (a stage sends and receives together), `deepspeed` (one message after another, each cut among
            tensor-parallel ranks, which gather it again), or `described` (one after another, each tensor behind two
            messages that say its shape).
        message_copy_Bps: of the `deepspeed` pipeline: how fast the host fills a buffer with zeros, and copies it to the
            device, for every tensor that a pass receives.
        cuts_messages: where all tensor-parallel ranks of a stage hold the same activation, each sends a part of it, and
            those of the next stage gather it (Narayanan et al. 2021, section 4.1); of the `megatron` pipeline.
        cuts_by_cost: a pipeline's stages take layers until they have more than their share of the products' weights,
            the head's among them; else layers count alike.
        repeats_keys: keys and values are copied for every head that reads them, before attention and before they
            travel between ranks of context parallelism.
        gathers_inputs_again: under sequence parallelism a backward pass gathers the inputs of products again beside the
            product that gives their gradient, which it scatters beside the one that gives the weight's.
        copies_heads: kernels put queries, keys and values in order, keys and values together, and again in order.
        splits_heads: queries, keys and values are parts of what one product gives: queries of several groups are copied
            out of it, and gradients of all are put together again.
        eager_loss_B: bytes of a logit that plain kernels of the loss move, forward and backward; None: as torch's.
        gathers_keys: ranks of context parallelism gather keys and values, once a pass, beside attention to their own;
            else these go around a ring, a message beside attention to each block.
        cp_comm: how they reach keys and values where a plan says so (`plan.context_comm`).
        shards_experts: tensor parallelism cuts experts too; else whole experts lie on a GPU, and tensor-parallel ranks
            take part in expert parallelism (Megatron's expert_tensor_parallel_size 1).
        dispatches_all_tokens: every tensor-parallel rank sends the rows of all of its tokens, and first how many go to
            each expert, for which the host waits; else the ranks share them.
        dispatched_B: bytes of an element of a row on its way to an expert; None: as of activations.
        scattered_B: bytes of a gradient element that FSDP moves on its way into the buffer that is scattered.
        gradient_wire_B: bytes of a gradient element that is exchanged; None: as in memory.

        parameter_dtype: of layers' weights where products are of 8 bits and a plan does not say; None: as its recipes
            count them.
        stores_fp8_inputs: gated activations keep their input in 8 bits, where a plan says so.
        loss_chunks: parts of a micro-batch's tokens that head and loss pass one after another.
        tp_buffers: exchanges of tensor parallelism run over buffers of their own, where a plan says so.
        offload: what the host keeps where a plan says so.
        muon: its optimizer's way, where a plan says so.
        lora: adapters, beside which all is frozen, where a plan says so.
        casts_adapters: these are float32 ones: each casts its input to that, dropout reads it, and autocast makes 16
            bits of what is left and of their weights; so that each keeps an input of its own.
        casts_shards: under sequence parallelism what is gathered is cast to 8 bits before, a shard on each rank.

        forward_only: nothing is trained: a step is its forward passes, of which nothing is kept.
    """

    name: str
    precisions: Mapping[Precision, PrecisionRecipe] = field(hash=False)

    fused_qkv: bool
    fused_gate_up: bool
    fused_kernels: frozenset[FusedOperator] = frozenset()
    turns_scaled: bool = True
    plain_kernels: Mapping[PlainOperator, PlainKernels] = field(default_factory=dict, hash=False)
    fused_loss_B: tuple[float, float] | None = None
    logged_losses: int = 0
    flash_attention: bool = True
    attention: AttentionName | None = None
    compiles: bool = False
    compiles_loss: bool = True
    compiles_with_mask: bool = False
    compiled: bool = False
    captured: bool = False
    captured_parts: CapturedParts | None = None
    softmax: Literal["fused", "plain"] = "fused"
    softmax_longest: int = 2048
    plain_softmax_time: float = 1.0
    dropout: bool = False
    fused_dropout: bool = False
    moment_dtypes: tuple[MomentDtype, ...] = ("fp32",)
    master_dtypes: tuple[MasterDtype, ...] = ("fp32",)
    sharded_dtypes: bool = False
    fused_optimizer: bool = False
    step_kernels: float | None = None
    step_read: float = 0.0
    step_read_B: float = 0.0
    optimizer_B: float = 0.0
    sharded_optimizer_B: float = 0.0
    gradients_B: float = 0.0
    sums_B: float | None = None
    sums_in_products: bool = False
    fills_gradients: bool = False
    casts_weights: Literal["step", "pass"] | None = None
    host_update_B: float = _HOST_UPDATE_B
    eager_sharding: bool = False

    synchronizes_every_pass: bool = False
    torch_launch: bool = False
    plain_host: bool = False
    drained_calls: tuple[float, float] = (0.0, 0.0)
    pass_calls: float = 0.0
    ring_calls: tuple[float, float] = (0.0, 0.0)
    tensor_calls: tuple[float, float] = (0.0, 0.0)
    adapter_calls: float = 0.0
    shard_calls: float = 0.0
    latent_calls: tuple[float, float] = (0.0, 0.0)
    paired_calls: tuple[float, float] = (0.0, 0.0)
    repeated_calls: tuple[float, float] = (0.0, 0.0)
    deterministic_host: float = 1.0
    busy_waits: bool = False
    checks_collectives: bool = False
    message_s: float = 0.0

    moe: MoeForm = PLAIN_FORM
    host_factors: HostFactors = HostFactors()

    keeps_norm_shards: bool = False
    frees_late: bool = False
    late_layers: tuple[float, float] = (math.inf, math.inf)
    short_of_memory: bool = False
    may_keep_norm_shards: bool = False
    gated_tensors: float = 4.0
    keeps_expert_outputs: bool = True
    eager_loss: bool = False
    returns_logits: bool = False
    logit_B: float | None = None
    part_logit_B: float | None = None
    float32_shards: bool = False
    shards_ends_apart: bool = False
    wraps_lone: bool = False
    flat_copy_B: float = 0.0
    reserves_logits: bool = False
    pools_by_stream: bool = False
    placeholder_gradients: bool = False
    selective: Literal["core", "operators"] = "core"
    recompute_stops_early: bool = False
    program_chooses: bool = False
    workspace_B: Mapping[str, float] | None = field(default=None, hash=False)
    deterministic_workspace_B: Mapping[str, float] | None = field(default=None, hash=False)
    experts_workspace_B: Mapping[str, float] | None = field(default=None, hash=False)
    deterministic: bool = False
    keeps_score_buffer: bool = False
    context_B: float | None = None
    counts_passes: bool = False
    memory_log_error: float | None = None

    overlapped: frozenset[OverlapAxis] = frozenset()
    data_parallel: Literal["ddp-fsdp2", "distributed-optimizer", "flattened"] = "distributed-optimizer"
    all_reduces: bool = False
    gradient_bucket_B: float | None = None
    bucket_parameters: int | None = None
    checks_gradients: bool = False
    checks_weights: bool = False
    bucket_copies_B: float = 0.0
    gather_copies_B: tuple[float, float] = (0.0, 0.0)
    unsummed_gradients_B: float = 0.0
    gather_buffers: int = 0
    sums_norm_gradients: bool = False
    gathered_tensor_s: float = 0.0
    float32_experts: bool = False
    data_parallel_only: bool = False
    replicates_shards: bool = False
    reduce_bucket_B: float = 0.0
    largest_expert_group: float = math.inf
    steps_whole_experts_along: bool = False
    pipeline: Literal["torch", "megatron", "deepspeed", "described"] = "megatron"
    message_copy_Bps: float = math.inf
    cuts_messages: bool = False
    repeats_keys: bool = False
    gathers_inputs_again: bool = False
    copies_heads: bool = False
    splits_heads: bool = False
    eager_loss_B: tuple[float, float] | None = None
    gathers_keys: bool = False
    cp_comm: str | None = None
    cuts_by_cost: bool = False
    shards_experts: bool = True
    dispatches_all_tokens: bool = False
    dispatched_B: float | None = None
    scattered_B: float = 4.0
    gradient_wire_B: float | None = None

    parameter_dtype: Literal["bf16", "fp8"] | None = None
    stores_fp8_inputs: bool = False
    loss_chunks: int = 1
    tp_buffers: bool = False
    offload: HostOffload | None = None
    muon: Muon | None = None
    lora: Lora | None = None
    casts_adapters: bool = False
    casts_shards: bool = False

    forward_only: bool = False

    def plain(self, operator: PlainOperator) -> PlainKernels | None:
        """Kernels of an operator that are one after another; None: they are not, or fused after all."""
        kind: Literal["rms_norm", "rotary"] = "rotary" if operator == "rotary" else "rms_norm"
        if kind in self.fused_kernels:
            return None
        kernels = self.plain_kernels.get(operator, self.plain_kernels.get(kind))
        return kernels if kernels is None or self.lora is None else kernels.frozen

    def wire_B(self, precision: Precision) -> float:
        """Bytes of a gradient element that is exchanged."""
        return self.precisions[precision].gradient_B if self.gradient_wire_B is None else self.gradient_wire_B
