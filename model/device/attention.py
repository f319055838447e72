"""A calibration with another generation of attention's kernel than the one that was measured.

What a profile times is the kernel that torch's scaled dot product attention chose on that GPU (`MEASURED`). Others are
so much slower or faster, pass by pass and by the size of heads; how they get faster with length is taken to be alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from moemodel.model.core.errors import InputError
from moemodel.model.device.roofline import ATTENTIONS
from moemodel.model.frameworks.base import AttentionName
from moemodel.model.hardware.gpu import Gpu
from moemodel.model.operators.work import Pass
from moemodel.model.records.calibration import Calibration, OperatorFit


@dataclass(frozen=True, kw_only=True)
class AttentionRate:
    """Rate of a kernel at one clock over that of the measured one, by pass, at heads 64 and 128 wide."""

    forward: tuple[float, float]
    backward: tuple[float, float]

    def times(self, forward: float, backward: float) -> AttentionRate:
        """Of a kernel that is so much faster."""
        return AttentionRate(
            forward=(self.forward[0] * forward, self.forward[1] * forward),
            backward=(self.backward[0] * backward, self.backward[1] * backward),
        )


_HEADS = (64.0, 128.0)
_SAME = AttentionRate(forward=(1.0, 1.0), backward=(1.0, 1.0))

# On an H100, torch 2.11's kernels over cuDNN's 9.19, at the clock that each ran at: means over causal attention on
# 1,024 to 32,768 tokens (measured for this project, 2026-11-28; `bench/kernel_generations.py`). For the first
# generation stands xformers' kernel, whose speed on an A100 is about its own (Dao 2023, figure 4)
_SECOND_ON_HOPPER = AttentionRate(forward=(0.649, 0.516), backward=(0.609, 0.527))
_FIRST_ON_HOPPER = AttentionRate(forward=(0.288, 0.277), backward=(0.260, 0.250))
# FlashAttention-3 (Shah et al. 2024), section 1: 1.5 to 2.0 times the second forward, 1.5 to 1.75 backward, on an H100
_THIRD_OVER_SECOND = (1.75, 1.625)
# cuDNN's with a mask, over the same without one: on an H200 3.34 and 3.49 times as long forward and 2.93 and 3.35
# backward, means over 2,048 to 16,384 tokens of 32 heads 64 and 128 wide (measured for this project, torch 2.11,
# 2026-11-29; within 14 % of each)
_MASKED = AttentionRate(forward=(1 / 3.34, 1 / 3.49), backward=(1 / 2.93, 1 / 3.35))
# FlashAttention-2 (Dao 2023), figure 4, causal attention on an A100, both passes, means over 1,024 to 16,384 tokens:
# the first one has 0.564 of the second's rate at heads 64 wide, 0.446 at 128 (`calibrate/published`, `FIRST`).
# Between passes that is divided as section 1 and the abstract have these: the first one at the middle of 30 to 50 % of
# the peak forward and of 25 to 35 % backward, the second at 73 and 63 %
_FIRST_ON_AMPERE = AttentionRate(forward=(0.627, 0.496), backward=(0.545, 0.431))

# By the generation of a GPU, over what its calibrations hold: cuDNN's on Hopper, the second flash kernel's on an A100
RATES: dict[str, dict[AttentionName, AttentionRate]] = {
    "ampere": {"flash1": _FIRST_ON_AMPERE, "flash2": _SAME},
    "hopper": {
        "flash1": _FIRST_ON_HOPPER,
        "flash2": _SECOND_ON_HOPPER,
        "flash3": _SECOND_ON_HOPPER.times(*_THIRD_OVER_SECOND),
        "cudnn": _SAME,
        "cudnn-masked": _MASKED,
    },
}


def is_known(attention: AttentionName, gpu: Gpu) -> bool:
    """Whether the speed of a kernel is, on that generation of GPUs."""
    return attention in RATES.get(gpu.architecture, {})


def rescale_for_attention(
    calibration: Calibration, attention: AttentionName | None, gpu: Gpu, *, asked: bool
) -> Calibration:
    """The calibration as another kernel has it; the same one where none is named.

    Args:
        calibration: of what was measured on the GPU.
        attention: the kernel; None: the measured one. Unfused ones are made of other operators.
        gpu: whose generation it runs on.
        asked: the plan names it; else the framework does, and where nothing is known of it the measured one stands in.

    Raises:
        InputError: nothing is known of that kernel on that generation.
    """
    if attention is None or attention in ("unfused", "unfused-fp32"):
        return calibration
    known = RATES.get(gpu.architecture, {})
    if attention not in known:
        if not asked:
            return calibration
        allowed = ", ".join([*known, "unfused", "unfused-fp32", "null"])
        raise InputError(f"attention: found {attention}, whose speed on {gpu.name} is not known; allowed: {allowed}")
    rate = known[attention]
    if rate == _SAME:
        return calibration
    return calibration.model_copy(update={"operators": [_rescaled(fit, rate) for fit in calibration.operators]})


def _rescaled(fit: OperatorFit, rate: AttentionRate) -> OperatorFit:
    """The fit whose efficiency, e d/(d + d0), is so many times as high at either head size d; in their mean where the
    other kernel would be better at the narrower heads, which no d0 says."""
    if fit.kind not in ATTENTIONS:
        return fit
    shares = rate.forward if fit.direction is Pass.FORWARD else rate.backward
    e, d0 = fit.parameters["efficiency"], fit.parameters["head_dim0"]
    at_64, at_128 = ((d + d0.value) / (share * d) for share, d in zip(shares, _HEADS, strict=True))
    # of e' d/(d + d0') through both points the reciprocal is linear in 1/d
    slope = max((at_64 - at_128) / (1 / _HEADS[0] - 1 / _HEADS[1]), 0.0)
    level = (at_64 - slope / _HEADS[0] + at_128 - slope / _HEADS[1]) / 2
    changed = {
        "efficiency": e.model_copy(update={"value": e.value / level}),
        "head_dim0": d0.model_copy(update={"value": slope / level}),
    }
    return fit.model_copy(update={"parameters": fit.parameters | changed})
