"""FlashAttention-2 on an A100: efficiencies such that both passes take as long as its paper shows (Dao 2023).

The paper's figure gives R, of a forward and a backward pass together, by the width of heads and by length:

    R = 3.5 / (1 / R_f + 2.5 / R_b)        R_b = q R_f

    R_f, R_b  rates of either pass      2.5  FLOPs of a backward pass over those of a forward pass
    q         of the two, in the paper's abstract: 63 % of the peak backward over 73 % forward, at best

Fitted are e_inf, d0 and s0 of `device.roofline`'s form of attention, the same d0 and s0 in both passes, which R alone
does not tell apart. What masks cost is in them, so causal attention and attention without a mask are fitted apart.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moemodel.calibration.least_squares import minimise
from moemodel.model.core.arrays import FloatArray
from moemodel.model.device.roofline import RooflineChip, operator_time
from moemodel.model.operators.work import Kind, Pass, Shape
from moemodel.model.records.calibration import OperatorFit, Parameter

SOURCE = (
    "FlashAttention-2 (Dao 2023, arXiv:2307.08691), figure 4 (Dao-AILab/flash-attention, "
    "assets/flash2_a100_fwd_bwd_benchmark.png, BSD-3-Clause): A100 80GB SXM4, both passes"
)
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
_HIDDEN, _TOKENS = 2048, 16384  # of all heads together; of a batch (section 4.1)
# TFLOP/s, by kind and width of heads, at `LENGTHS`; NaN: hidden behind the figure's legend
SECOND: Mapping[tuple[Kind, int], tuple[float, ...]] = {
    (Kind.ATTENTION, 64): (88, 119, 140, 156, 165, 171),
    (Kind.ATTENTION, 128): (99, 133, 155, 173, 182, 189),
    (Kind.ATTENTION_FULL, 64): (132, np.nan, 162, 171, 175, 176),
    (Kind.ATTENTION_FULL, 128): (np.nan, np.nan, 187, 196, 201, 203),
}
# What these are of, by features of `device.roofline`
MEASURED = {
    "batch": (1.0, 32.0),
    "heads": (16.0, 32.0),
    "kv_heads": (16.0, 32.0),
    "seq": (512.0, 16384.0),
    "head_dim": (64.0, 128.0),
}
# The same of the first FlashAttention
FIRST: Mapping[tuple[Kind, int], tuple[float, ...]] = {
    (Kind.ATTENTION, 64): (58, 70, 77, 87, 92, 97),
    (Kind.ATTENTION, 128): (55, 62, 69, 76, 80, 83),
}
BACKWARD_FLOPS = 2.5  # of a backward pass over a forward one's (section 4.1)
_BACKWARD_RATE = 0.63 / 0.73  # q
_NAMES = ("efficiency", "head_dim0", "seq0")
_START, _LOW, _HIGH = np.log([0.7, 16.0, 500.0]), np.log([0.3, 1e-3, 1.0]), np.log([2.0, 200.0, 4000.0])

Passes = Mapping[Pass, OperatorFit]


def figure_shape(head_dim: int) -> Shape:
    """What the figure's attention is of, at all `LENGTHS`."""
    seq, heads = np.array(LENGTHS, dtype=np.float64), float(_HIDDEN // head_dim)
    return Shape(batch=_TOKENS / seq, heads=heads, kv_heads=heads, seq=seq, head_dim=float(head_dim))


def both_passes(fits: Passes, chip: RooflineChip, kind: Kind, head_dim: int) -> FloatArray:
    """TFLOP/s of both passes together at the figure's shapes, at the chip's highest clock."""
    shape, clock_Hz = figure_shape(head_dim), np.array([chip.clock_Hz])
    time_s = sum(operator_time(fit, chip, shape, clock_Hz).time_s_UK[:, 0] for fit in fits.values())
    masked = 0.5 if kind is Kind.ATTENTION else 1.0
    flops = masked * 4.0 * _TOKENS * np.array(LENGTHS, dtype=np.float64) * _HIDDEN
    return np.asarray((1 + BACKWARD_FLOPS) * flops / time_s / 1e12)


def fit_flash(base: Passes, chip: RooflineChip, kind: Kind) -> dict[Pass, dict[str, Parameter]]:
    """Parameters of either pass that the figure gives; all others are the base's.

    Args:
        base: fits of both passes of the kind, which say how launches and waves count.
        chip: the A100.
        kind: causal attention, or attention without a mask.
    """
    figure = {head_dim: np.array(rates) for (of, head_dim), rates in SECOND.items() if of is kind}

    def errors(x: FloatArray) -> FloatArray:
        fits = {direction: _with(fit, _values(x, direction)) for direction, fit in base.items()}
        off = [np.log(both_passes(fits, chip, kind, head_dim) / rates) for head_dim, rates in figure.items()]
        missed = np.concatenate(off)
        return np.asarray(missed[np.isfinite(missed)])

    x = minimise(errors, _START, low=_LOW, high=_HIGH)
    return {
        direction: {name: Parameter.fitted(value, "1", SOURCE) for name, value in _values(x, direction).items()}
        for direction in base
    }


def _values(x: FloatArray, direction: Pass) -> dict[str, float]:
    values = dict(zip(_NAMES, np.exp(x).tolist(), strict=True))
    if direction is Pass.BACKWARD:
        values["efficiency"] *= _BACKWARD_RATE
    return values


def _with(fit: OperatorFit, values: Mapping[str, float]) -> OperatorFit:
    changed = {name: fit.parameters[name].model_copy(update={"value": value}) for name, value in values.items()}
    return fit.model_copy(update={"parameters": fit.parameters | changed})
