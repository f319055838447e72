"""What a prediction rests on beside architecture and plan: a calibrated GPU, its limits, its cluster, its software."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from moemodel.model.core.errors import CalibrationError, InputError
from moemodel.model.device.attention import is_known, rescale_for_attention
from moemodel.model.device.description import Change, rescale_for_description
from moemodel.model.device.precision import rescale_for_precision
from moemodel.model.frameworks.base import (
    Fp8Recipe,
    Framework,
    HostOffload,
    Lora,
    OverlapAxis,
    Precision,
    PrecisionRecipe,
)
from moemodel.model.frameworks.megatron_lm import DETERMINISTIC_B
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.frameworks.track_record import TrackRecord, track_records, widest
from moemodel.model.hardware.gpu import Gpu
from moemodel.model.network.cluster import Internode, cluster_network, read_internode
from moemodel.model.network.collectives import Network
from moemodel.model.plan.context_comm import ALL_GATHER
from moemodel.model.plan.data_loading import DataLoadingSpec
from moemodel.model.plan.offload import OffloadSpec
from moemodel.model.plan.router_policies import form_as_asked
from moemodel.model.plan.spec import EIGHT_BITS, Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.step.kernels_as_asked import kernels_as_asked

_UNKNOWN_MEMORY_ERROR = 0.1  # log; assumed: twice that of frameworks whose runs are known
_UNKNOWN_HOST_ERROR = 0.3  # log; assumed: a backend whose host lane was not measured, and takes another's


# Bytes of a logit when the loss's backward pass begins: 16-bit logits and their gradient, of a fused kernel; or 16-bit
# logits and the float32 softmax that becomes their gradient (Megatron-LM, tensor_parallel/cross_entropy.py)
FUSED_LOGIT_B, _PLAIN_LOGIT_B = 4.0, 6.0
# The same made one graph of (core/fusions/fused_cross_entropy.py, calculate_gradients): torch.compile copies the
# softmax that gradients are put into, beside the 16-bit gradient
_COMPILED_LOGIT_B = 10.0
_FP8_ROW_B = 1 + 4 / 128  # of an element, with a float32 scale for 128 of them (DeepSeek-V3, section 3.3.2)
# Of a host link's bandwidth: 55.6 GB/s of the 63.0 of 16 lanes of PCI Express 5 (host_to_device_memcpy_ce, as a guide
# to NVIDIA's nvbandwidth prints it)
_PCIE_SHARE = 0.88
_ONE_ORDER = ("blackwell", "blackwell-ultra")  # generations whose 8-bit products take weights in any order
GRADIENT_B = {"bf16": 2.0, "fp32": 4.0}


@dataclass(frozen=True, kw_only=True)
class System:
    """What a prediction rests on beside plan and architecture.

    Attributes:
        gpu: its data sheet; `internode` what joins the nodes.
        calibration: of the GPU, for the elements of `precision`; `uncast` for products of 16-bit operands, where others
            are cast to fewer bits; None: none are.
        network: links inside and between nodes, and how well collectives use them.
        memory_B, power_limit_W, peak_flops_per_s: of a GPU; infinite, or NaN the rate, where the data sheet gives none.
        inlet_C: of the air; None: as it was at calibration.
        slowdown_C: die temperature above which the hardware slows the clock.
        framework, precision: that train.
        loss_is_stated: the plan says how the loss is computed.
        several_nodes: its GPUs fill more than one, between which nothing was measured.
        changes: figures of the GPU that the calibration was rescaled for.
        data_loading: how fast sequences are read; None: no step waits for them.
    """

    gpu: Gpu
    internode: Internode
    calibration: Calibration
    uncast: Calibration | None = None
    network: Network
    memory_B: float
    power_limit_W: float
    peak_flops_per_s: float
    inlet_C: float | None = None
    slowdown_C: float = math.inf
    framework: Framework
    precision: Precision
    loss_is_stated: bool = False
    several_nodes: bool = False
    changes: tuple[Change, ...] = ()
    data_loading: DataLoadingSpec | None = None

    @property
    def memory_error(self) -> float:
        """Relative standard error of peak memory: the device's part, as the calibration states it, and the framework's;
        assumed where either is not stated.
        """
        stated = self.calibration.memory.parameters.get("log_error")
        device = _UNKNOWN_MEMORY_ERROR if stated is None else stated.value
        beside = self.framework.memory_log_error
        return math.hypot(device, _UNKNOWN_MEMORY_ERROR if beside is None else beside)

    @property
    def gradient_B(self) -> float:
        """Bytes of a gradient element on the wire."""
        return self.framework.wire_B(self.precision)

    @property
    def sustained_share(self) -> float:
        """Share of the power cap that a load held back by it settles at."""
        return self.calibration.governor.parameters["sustained_share"].value

    @property
    def governor_gain_Hz_per_J(self) -> float:
        """How fast the clock answers to power above or below the limit."""
        return self.calibration.governor.parameters["gain"].value

    @property
    def network_error(self) -> float:
        """Standard deviation of log(measured / predicted) of a collective, between nodes where there are several."""
        fabric = self.network.fabric
        between = fabric.log_error if self.several_nodes and fabric is not None else 0.0
        return math.hypot(self.calibration.network.log_error, between)

    @property
    def host_error(self) -> float:
        """The same of the host's time under this framework; assumed where nobody measured it."""
        lanes = [lane.log_error for lane in self.calibration.host if lane.backend == self.framework.name]
        return max(lanes, default=_UNKNOWN_HOST_ERROR)

    def framework_record(self, *, experts: bool) -> TrackRecord | None:
        """How predictions of this framework have done, with models that have experts or not; None where no run of it
        was predicted, but the calibration itself is of it."""
        known = track_records().get(self.framework.name)
        if known is not None:
            return known.of(experts=experts)
        return None if any(lane.backend == self.framework.name for lane in self.calibration.host) else widest()[1]

    def framework_error(self, *, experts: bool) -> float:
        """What a framework does that nobody measured with this calibration; common to all plans of it."""
        record = self.framework_record(experts=experts)
        return 0.0 if record is None else record.log_error

    @property
    def composition_error(self) -> float:
        """What adding up operators leaves out, whatever the operators' own errors."""
        return self.calibration.composition_error.value


def system_of(plan: Plan, calibration: Calibration) -> System:
    """What a plan runs on: every file that it names is read here, once.

    Args:
        plan: a checked plan.
        calibration: of its GPU.

    Raises:
        InputError: unknown GPU or network between nodes, products that the GPU's tensor cores don't do, or a kernel
            that the framework or the GPU does not have.
        CalibrationError: the calibration is of another GPU, by name or by its description.
    """
    cluster, framework = plan.cluster, framework_as_run(plan)
    gpu = cluster.description()
    if calibration.gpu != gpu.name:
        raise CalibrationError(
            f"calibration {calibration.name} is of {calibration.gpu}, but cluster.gpu is {gpu.name}; "
            f"give a calibration of that GPU, or plan for {calibration.gpu}"
        )
    if plan.attention is None and framework.attention == "cudnn-masked" and not is_known(framework.attention, gpu):
        raise InputError(
            f"compile: found true with backend {framework.name}, whose attention is handed a mask then, and how fast "
            f"that is on {gpu.name} is not known; allowed: false, null, or true with attention: unfused"
        )
    calibration = rescale_for_attention(calibration, framework.attention, gpu, asked=plan.attention is not None)
    calibration, changes = rescale_for_description(calibration, gpu)
    network, internode = cluster_network(
        calibration, gpu, cluster.gpus, cluster.gpus_per_node, read_internode(cluster.internode)
    )
    peak, framework = gpu.peak_16_bit, _on_gpu(_in_one_order(framework, gpu), gpu)
    return System(
        gpu=gpu,
        internode=internode,
        calibration=rescale_for_precision(calibration, framework, plan.precision, gpu),
        uncast=calibration if framework.precisions[plan.precision].casts else None,
        network=network,
        memory_B=math.inf if gpu.memory_B is None else float(gpu.memory_B),
        power_limit_W=math.inf if gpu.power_limit_W is None else gpu.power_limit_W,
        inlet_C=plan.site.inlet_C,
        slowdown_C=math.inf if gpu.slowdown_C is None else gpu.slowdown_C,
        peak_flops_per_s=math.nan if peak is None else peak.flops_per_s,
        framework=framework,
        precision=plan.precision,
        loss_is_stated=plan.cross_entropy is not None,
        several_nodes=cluster.gpus > network.gpus_per_node and not internode.tested,
        changes=changes,
        data_loading=cluster.data_loading,
    )


def framework_as_run(plan: Plan) -> Framework:
    """The framework of a plan, with what the plan says of it."""
    framework = kernels_as_asked(framework_of(plan.backend), plan)
    if framework.float32_shards and not framework.precisions[plan.precision].master_weights:
        framework = replace(framework, float32_shards=False)
    if plan.cross_entropy is not None:
        framework = replace(framework, logit_B=_logit_B(framework, plan.cross_entropy))
    if plan.gradient_dtype is not None:
        recipe = replace(framework.precisions[plan.precision], gradient_B=GRADIENT_B[plan.gradient_dtype])
        framework = replace(framework, precisions={**framework.precisions, plan.precision: recipe})
    if plan.optimizer is not None:
        recipe = plan.optimizer.recipe(framework.precisions[plan.precision], framework)
        precisions = {**framework.precisions, plan.precision: recipe}
        framework = replace(framework, precisions=precisions, muon=plan.optimizer.muon)
    if plan.dropout is not None:
        framework = replace(framework, dropout=plan.dropout)
    if plan.deterministic:
        framework = replace(
            framework,
            deterministic=True,
            workspace_B=framework.deterministic_workspace_B or {"others": 2 * DETERMINISTIC_B},
        )
    if plan.cp_comm is not None and not (plan.cp_comm == ALL_GATHER and framework.gathers_keys):
        framework = replace(framework, cp_comm=plan.cp_comm, gathers_keys=False)
    framework = replace(
        framework,
        bucket_parameters=plan.bucket_parameters,
        checks_gradients=bool(plan.gradient_checks),
        checks_weights=bool(plan.weight_checks),
    )
    if plan.fp8_recipe is not None:
        recipe = _scaled_so(framework.precisions[plan.precision], plan.fp8_recipe)
        framework = replace(framework, precisions={**framework.precisions, plan.precision: recipe})
    parameter_dtype = plan.parameter_dtype or (framework.parameter_dtype if plan.precision in EIGHT_BITS else None)
    if parameter_dtype is not None:
        recipe = _with_parameters(framework, plan, parameter_dtype)
        framework = replace(framework, precisions={**framework.precisions, plan.precision: recipe})
    if plan.transpose_cache is False and not (plan.precision == "mxfp8" and parameter_dtype == "fp8"):
        framework = replace(framework, casts_weights="pass")
    if plan.tp_comm_overlap is not None:
        exchanges: frozenset[OverlapAxis] = frozenset({"tp"})
        overlapped = framework.overlapped | exchanges if plan.tp_comm_overlap else framework.overlapped - exchanges
        framework = replace(
            framework, overlapped=overlapped, tp_buffers=plan.tp_comm_overlap and not framework.torch_launch
        )
    if plan.activation_input_dtype is not None:
        framework = replace(framework, stores_fp8_inputs=True)
    if plan.loss_chunks is not None:
        framework = replace(framework, loss_chunks=plan.loss_chunks)
    if plan.lora is not None:
        framework = replace(framework, lora=Lora(**plan.lora.model_dump() | {"dropout": bool(plan.lora.dropout)}))
        if framework.casts_adapters:  # what is trained is float32, whatever is frozen
            trained = {**framework.precisions, "bf16": framework.precisions["bf16-mixed"]}
            framework = replace(framework, precisions=trained)
    if plan.offload is not None:
        framework = replace(framework, offload=_offload(plan.offload))
    if plan.mode == "inference":
        framework = replace(framework, forward_only=True, synchronizes_every_pass=True, program_chooses=False)
    if plan.routing.dispatch_dtype is not None:
        framework = replace(framework, dispatched_B=_FP8_ROW_B)
    if plan.routing.products == "each":
        framework = replace(framework, experts_workspace_B=None)
    form = form_as_asked(framework, plan.routing)
    return framework if form is framework.moe else replace(framework, moe=form)


def _scaled_so(recipe: PrecisionRecipe, asked: Fp8Recipe) -> PrecisionRecipe:
    """Products of 8 bits with operands scaled in that way.

    Bytes that casts move of an element: read (2) and written in both orders (2); by the current largest, which is
    looked for first, read once more (2); of blocks with their scales. Kernels for blocks sum every 128 in float32 as
    they were read. A norm that knows the scale writes 8 bits itself (1 less), which are read and written in the other
    order (2; transformer_engine/pytorch/module/layernorm_linear.py).
    """
    if asked == "delayed":
        return replace(recipe, cast_B=4.0, normed_B=1.0, shares_largest=False)
    if asked == "tensorwise":
        return replace(recipe, cast_B=6.0, shares_largest=True)
    blocks = replace(recipe, blocks=True, splits_accumulation=False, shares_largest=False)
    return replace(blocks, cast_B=2.0 + 2 * blocks.product_input_B)


def _with_parameters(framework: Framework, plan: Plan, dtype: str) -> PrecisionRecipe:
    """Bytes of layers' weights that are kept in 8 bits, or in 16 beside their casts.

    Transformer Engine keeps casts in two orders unless tensor cores read 8-bit operands in any (pytorch/utils.py,
    is_non_tn_fp8_gemm_supported), and always of blocks of 32, which are scaled along the depth (mxfp8_tensor.py).
    Gathered are 8 bits, but of MXFP8 16, since only ranks that have all of a weight scale it both ways (Megatron Core,
    distributed_data_parallel_config.py, reuse_grad_buf_for_mxfp8_param_ag). FSDP2 keeps its shards, and casts what it
    gathers (torchao, float8/fsdp_utils.py).
    """
    recipe, blocks = framework.precisions[plan.precision], plan.precision == "mxfp8"
    one_order = plan.cluster.description().architecture in _ONE_ORDER and not blocks
    cast_B = recipe.product_input_B * (1 if one_order else 2)
    narrow = dtype == "fp8"
    gathered_B = recipe.product_input_B if narrow and not blocks else recipe.element_size_B
    if framework.data_parallel == "ddp-fsdp2":
        return replace(recipe, gathered_B=gathered_B)
    if plan.transpose_cache is False and not blocks:
        cast_B = recipe.product_input_B if narrow else 0.0
    layer_B = cast_B + (0.0 if narrow else recipe.element_size_B)
    turned_B = 0.0 if one_order else 2 * recipe.product_input_B  # read, and written in the other order
    kept_cast_B = (recipe.cast_B if blocks else turned_B) if narrow else None
    return replace(recipe, layer_B=layer_B, gathered_B=gathered_B, kept_cast_B=kept_cast_B)


def _offload(said: OffloadSpec) -> HostOffload:
    """What the host keeps, the link to it as the plan says."""
    return HostOffload(
        optimizer=said.optimizer,
        activations=said.activations,
        overlaps=said.overlap,
        link_Bps=math.nan if said.link_GBps is None else said.link_GBps * 1e9,
        memory_Bps=said.host_memory_GBps * 1e9,
    )


def _with_link(offload: HostOffload, gpu: Gpu) -> HostOffload:
    """With what the GPU's host link reaches.

    Raises:
        InputError: nobody says what it is.
    """
    if not math.isnan(offload.link_Bps):
        return offload
    if gpu.pcie_Bps is None:
        raise InputError(
            f"offload.link_GBps: found null; allowed: a number, since the description of {gpu.name} has no host link"
        )
    return replace(offload, link_Bps=_PCIE_SHARE * gpu.pcie_Bps)


def _on_gpu(framework: Framework, gpu: Gpu) -> Framework:
    """With its workspaces there, and what the GPU makes of a router's product in float32, which its tensor cores don't
    do."""
    framework = replace(
        framework,
        workspace_B=_there(framework.workspace_B, gpu),
        deterministic_workspace_B=_there(framework.deterministic_workspace_B, gpu),
        experts_workspace_B=_there(framework.experts_workspace_B, gpu),
    )
    if framework.offload is not None:
        framework = replace(framework, offload=_with_link(framework.offload, gpu))
    peak = gpu.peak_16_bit
    if not framework.moe.float32_router or peak is None or "fp32" not in gpu.peaks:
        return framework
    times = max(peak.flops_per_s / gpu.peaks["fp32"].flops_per_s, 1.0)
    return replace(framework, moe=replace(framework.moe, float32_times=times))


def _in_one_order(framework: Framework, gpu: Gpu) -> Framework:
    """With casts of 8 bits that Transformer Engine writes once, where tensor cores take operands in any order
    (pytorch/utils.py, is_non_tn_fp8_gemm_supported); blocks are scaled along the depth, so written twice."""
    if gpu.architecture not in _ONE_ORDER or framework.torch_launch:
        return framework
    once = {
        name: replace(
            recipe,
            cast_B=recipe.cast_B - recipe.product_input_B,
            reordered_B=0.0,
            normed_B=None if recipe.normed_B is None else 0.0,  # as the norm writes it
        )
        for name, recipe in framework.precisions.items()
        if recipe.matmul_dtype == "fp8" and not recipe.blocks
    }
    return replace(framework, precisions={**framework.precisions, **once}) if once else framework


def _there(known_B: Mapping[str, float] | None, gpu: Gpu) -> Mapping[str, float] | None:
    return None if known_B is None else {"others": known_B.get(gpu.architecture, known_B["others"])}


def _logit_B(framework: Framework, kernels: Literal["plain", "fused", "compiled"]) -> float | None:
    """Bytes of a logit of a loss computed so or so; None: as `embedding_head` counts torch's."""
    if kernels == "fused":
        return FUSED_LOGIT_B
    if kernels == "compiled":
        return _COMPILED_LOGIT_B
    return None if framework.logit_B is None else max(framework.logit_B, _PLAIN_LOGIT_B)
