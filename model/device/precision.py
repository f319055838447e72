"""A calibration for a precision of other elements than the 16 bits it was measured with.

Elements of 4 bytes instead of 2 are the same to a kernel as half the bandwidth and half the cache. Products of operands
of fewer bits are priced by fits of their own where the calibration has them (`KernelFit`). Without, tensor cores that
multiply narrower or wider operands are faster or slower by the ratio of the GPU's peaks. They take as much energy a
second; attention keeps the rate of bf16.

Products in fp32 are the FP32 pipes'. Nobody measured them here. Assumed of them:
    rate       the data sheet's over that of bf16, cycle by cycle
    energy     as much a second as tensor cores
    tiles      the small ones are as efficient as the largest: what holds those back on tensor cores is feeding them,
               and the pipes take operands a sixteenth as fast
    depth0     the beginning and end of a tile, which are latencies of memory, take as long as they do there
    alignment  none is needed: CUTLASS's SIMT kernels load element by element (default_gemm_configuration.h, kAlignment)
    limit      the fast one is the tensor cores' and does not hold (`dvfs`)
    attention  at the pipes' rate, with the same share of it
"""

from __future__ import annotations

from collections.abc import Mapping

from moemodel.model.core.errors import InputError
from moemodel.model.device.roofline import ATTENTIONS, PRODUCTS
from moemodel.model.frameworks.base import Framework, Precision
from moemodel.model.hardware.gpu import Gpu
from moemodel.model.operators.work import Kind, Pass
from moemodel.model.records.calibration import Calibration, KernelDtype, KernelFit, OperatorFit, Parameter

# Whose kernels price products of a type: of those that there are the ones that come nearest to the peak. Tensor cores
# multiply all kinds of 8-bit operands at one rate (data sheets); what engines' kernels make of it differs more by who
# wrote them than by how operands are scaled, and the best shows what a library for training can reach.
KERNELS: dict[str, tuple[KernelDtype, ...]] = {
    "fp8": ("fp8", "fp8_block"),
    "fp8_block": ("fp8_block",),
    "mxfp8": ("mxfp8", "fp8", "fp8_block"),
    "nvfp4": ("nvfp4",),
}
# On Hopper, rate of 8-bit products whose sums go to float32 every 128 of depth, over that of those summed in tensor
# cores alone: 12 products on an H100 at its 700 W by torch 2.11, 1,224 and 1,302 TFLOP/s in the mean (measured for this
# project, 2026-11-28; `bench/kernel_generations.py`). Blackwell's sum in float32
SPLIT_ACCUMULATION = 0.94
_MEASURED_B = 2.0  # of an element: bf16, which profiles are of


def rescale_for_precision(
    calibration: Calibration, framework: Framework, precision: Precision, gpu: Gpu
) -> Calibration:
    """The calibration as a precision's elements and products have it; the same one for 16 bits.

    Args:
        calibration: of kernels on 16-bit elements.
        framework: that trains.
        precision: one of the framework's.
        gpu: whose peaks say how fast tensor cores are.

    Raises:
        InputError: the GPU's tensor cores don't multiply the precision's operands.
    """
    recipe = framework.precisions[precision]
    wide, rate = recipe.element_size_B / _MEASURED_B, _tensor_rate(framework, precision, gpu)
    if wide == 1 and rate == 1:
        return calibration
    chip = {"flops_per_cycle": rate, "bandwidth_Bps": 1 / wide, "l2_B": 1 / wide}
    power = {"flop_J": 1 / rate, "dram_J_per_B": wide, "cache_J_per_B": wide}
    fit, of_pipes = calibration.power, recipe.matmul_dtype == "fp32"
    changed = _on_pipes if of_pipes else _operator
    update = {
        "chip": scaled(calibration.chip, chip),
        "operators": [
            _backward(
                kernel_of(
                    calibration,
                    "fp8_block" if recipe.blocks else recipe.matmul_dtype,
                    operator.kind,
                    operator.direction,
                )
                or changed(operator, rate),
                SPLIT_ACCUMULATION if recipe.splits_accumulation and gpu.architecture == "hopper" else 1.0,
            )
            for operator in calibration.operators
        ],
        "power": fit.model_copy(update={"parameters": scaled(fit.parameters, power)}),
    }
    return calibration.model_copy(update=update | (_without_fast_limit(calibration) if of_pipes else {}))


def _backward(fit: OperatorFit, rate: float) -> OperatorFit:
    """A product, of gradients where it is one, that is so much faster than forward."""
    if rate == 1 or fit.kind not in PRODUCTS or fit.direction is Pass.FORWARD:
        return fit
    tiles = [name for name in fit.parameters if name.startswith("efficiency_")]
    return fit.model_copy(update={"parameters": scaled(fit.parameters, dict.fromkeys(tiles, rate))})


def kernel_of(calibration: Calibration, dtype: str, kind: Kind, direction: Pass) -> KernelFit | None:
    """The fit that prices a product of a type; None: there is none, and the 16-bit one's is scaled by peaks."""
    known = (calibration.kernel(one, kind, direction) for one in KERNELS.get(dtype, ()))
    return max((fit for fit in known if fit is not None), key=_share_of_peak, default=None)


def _share_of_peak(fit: KernelFit) -> float:
    return max(p.value for name, p in fit.parameters.items() if name.startswith("efficiency"))


def _tensor_rate(framework: Framework, precision: Precision, gpu: Gpu) -> float:
    """Rate of the tensor cores in products over that of bf16."""
    dtype = framework.precisions[precision].matmul_dtype
    if dtype == "bf16":
        return 1.0
    if dtype not in gpu.peaks or "bf16" not in gpu.peaks:
        known = ", ".join(gpu.peaks) or "none"
        raise InputError(
            f"backend {framework.name}, precision {precision}: its products are {dtype}; {gpu.name} has peaks for "
            f"{known}; use another precision or GPU"
        )
    rate = gpu.peaks[dtype].flops_per_s / gpu.peaks["bf16"].flops_per_s
    if dtype != "fp32":
        return rate
    return rate * gpu.peaks["bf16"].clock_Hz / gpu.peaks[dtype].clock_Hz


def _on_pipes(fit: OperatorFit, rate: float) -> OperatorFit:
    """A product on the FP32 pipes instead of tensor cores; see the module's docstring."""
    if fit.kind not in PRODUCTS:
        return fit
    tiles = {name: p for name, p in fit.parameters.items() if name.startswith("efficiency_")}
    best = max(tiles.values(), key=lambda p: p.value)
    changed = dict.fromkeys(tiles, best) | scaled({"depth0": fit.parameters["depth0"]}, {"depth0": rate})
    if "alignment" in fit.parameters:
        changed["alignment"] = fit.parameters["alignment"].model_copy(update={"value": 1.0})
    return fit.model_copy(update={"parameters": {**fit.parameters, **changed}})


def _without_fast_limit(calibration: Calibration) -> dict[str, object]:
    governor = calibration.governor
    kept = {name: p for name, p in governor.parameters.items() if not name.startswith("tensor_")}
    return {"governor": governor.model_copy(update={"parameters": kept})}


def _operator(fit: OperatorFit, rate: float) -> OperatorFit:
    if fit.kind not in ATTENTIONS:
        return fit
    return fit.model_copy(update={"parameters": scaled(fit.parameters, {"efficiency": 1 / rate})})


def scaled(parameters: Mapping[str, Parameter], factors: Mapping[str, float]) -> dict[str, Parameter]:
    """Parameters, those named times their factor."""
    return {
        name: p.model_copy(update={"value": p.value * factors[name]}) if name in factors else p
        for name, p in parameters.items()
    }
