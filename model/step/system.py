"""What a prediction rests on beside architecture and plan: a calibrated GPU, its limits, its cluster, its software."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moemodel.model.frameworks.base import Framework, Precision
from moemodel.model.network.collectives import Network
from moemodel.model.records.calibration import Calibration

_UNKNOWN_HOST_ERROR = 0.3  # log; assumed: a backend whose host lane was not measured, and takes another's


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a prediction rests on beside plan and architecture."""

    calibration: Calibration
    network: Network
    memory_B: float
    power_limit_W: float
    peak_flops_per_s: float
    inlet_C: float | None = None  # of the air; None: as it was at calibration
    slowdown_C: float = math.inf  # die temperature above which the hardware slows the clock
    framework: Framework
    precision: Precision

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
        return self.calibration.network.log_error

    @property
    def host_error(self) -> float:
        lanes = [lane.log_error for lane in self.calibration.host if lane.backend == self.framework.name]
        return max(lanes, default=_UNKNOWN_HOST_ERROR)

    @property
    def composition_error(self) -> float:
        """What adding up operators leaves out, whatever the operators' own errors."""
        return self.calibration.composition_error.value
