"""How fast a GPU multiplies large matrices: in a burst, and steadily, at the clock that its power limit leaves it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from moemodel.model.core.arrays import FloatArray
from moemodel.model.device.dvfs import crossing, time_at_clock
from moemodel.model.device.operator_cost import OperatorCostModel
from moemodel.model.device.power import PowerModel, power_model
from moemodel.model.device.roofline import chip_of_calibration
from moemodel.model.hardware.gpu import Gpu
from moemodel.model.operators.calls import Call, Phase
from moemodel.model.operators.work import Kind, Pass, Shape
from moemodel.model.records.calibration import Calibration

_SIDE = 8192.0  # of square matrices: among the largest products of training, and what public tests of rates multiply
_CLOCKS = 33


@dataclass(frozen=True, kw_only=True)
class LargeProduct:
    """A product of large square matrices at ascending clocks, [K].

    Attributes:
        clock_Hz_K: that are set.
        time_s_K: of one.
        dynamic_J_K: its energy, without clock tree.
        true_clock_Hz_K: SM clock while it runs.
    """

    clock_Hz_K: FloatArray
    time_s_K: FloatArray
    dynamic_J_K: FloatArray
    true_clock_Hz_K: FloatArray

    @classmethod
    def of(cls, calibration: Calibration) -> LargeProduct:
        """As a calibration prices it."""
        clock_Hz_K = np.linspace(*calibration.clock_range_Hz, _CLOCKS)
        side, once = np.array([_SIDE]), np.ones(1)
        shape = Shape(m=side, n=side, k=side)
        call = Call(kind=Kind.GEMM, direction=Pass.FORWARD, shape=shape, phase=Phase.FORWARD, count=once)
        pricer = OperatorCostModel(calibration, chip_of_calibration(calibration), power_model(calibration), clock_Hz_K)
        cost = pricer.phase_costs([call], 1)[Phase.FORWARD]
        time_s_K = cost.time_s_UK[0]
        return cls(
            clock_Hz_K=clock_Hz_K,
            time_s_K=time_s_K,
            dynamic_J_K=cost.energy_J_UK[0],
            true_clock_Hz_K=cost.cycles_UK[0] / time_s_K,
        )

    def times_energy(self, factor: float) -> LargeProduct:
        """The same at so many times the energy."""
        return replace(self, dynamic_J_K=factor * self.dynamic_J_K)

    @property
    def burst_flops_per_s(self) -> float:
        """Rate at the highest clock that is set."""
        return float(2 * _SIDE**3 / self.time_s_K[-1])

    def sustained_share(self, power: PowerModel, limit_W: float) -> float:
        """Of the rate in a burst, what is left in the steady state under a power limit."""
        return self.sustained_flops_per_s(power, limit_W) / self.burst_flops_per_s

    def sustained_flops_per_s(self, power: PowerModel, limit_W: float) -> float:
        """Rate in the steady state under a power limit.

        Args:
            power: of the GPU.
            limit_W: at which the governor holds it.
        """
        dynamic_W_K = self.dynamic_J_K / self.time_s_K + power.clocked_W(self.true_clock_Hz_K)
        steady_W_K = np.maximum.accumulate(power.steady(dynamic_W_K)[0])
        settled_Hz = crossing(steady_W_K[None], self.clock_Hz_K, np.array([limit_W]))
        return float(2 * _SIDE**3 / time_at_clock(self.time_s_K[None], self.clock_Hz_K, settled_Hz)[0])


@cache
def _public_rates() -> dict[str, dict[str, float | str]]:
    path = Path(__file__).with_name("public_rates.json")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def public_burst_share(gpu: Gpu) -> float | None:
    """Share of its 16-bit peak that public tests saw a large product reach in a burst; None: none is known."""
    found, peak = _public_rates().get(gpu.name), gpu.peak_16_bit
    return None if found is None or peak is None else float(found["flops_per_s"]) / peak.flops_per_s


@dataclass(frozen=True, kw_only=True)
class SustainedRate:
    """What public tests saw a large product of random operands sustain, FLOP/s, under a power limit, W."""

    flops_per_s: float
    limit_W: float


def public_sustained_rate(gpu: Gpu) -> SustainedRate | None:
    """Of a GPU; None: none is known."""
    found = _public_rates().get(gpu.name, {})
    if "sustained_flops_per_s" not in found:
        return None
    return SustainedRate(flops_per_s=float(found["sustained_flops_per_s"]), limit_W=float(found["sustained_limit_W"]))
