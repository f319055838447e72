"""The energies of a plan, each under a name of its own, from the GPUs to the meter.

GPU energy              of all GPUs
IT energy               of GPUs and hosts: the energy of IT equipment that ISO/IEC 30134-2 divides by
energy at the meter     IT energy times PUE: the energy of the site that ISO/IEC 30134-2 divides
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moemodel.model.plan.spec import Plan
from moemodel.model.results.estimate import Estimate

# What a reader is shown; the keys of JSON are `gpu_energy_J`, `it_energy_J`, `meter_energy_J`.
GPU_ENERGY = "GPU energy"
IT_ENERGY = "IT energy"
METER_ENERGY = "energy at the meter"


@dataclass(frozen=True, kw_only=True)
class StepEnergy:
    """Energy of one step, J, by where it is counted.

    Attributes:
        gpu_J: of all GPUs.
        it_J: of GPUs and hosts.
        meter_J: of the site.
    """

    gpu_J: Estimate
    it_J: Estimate
    meter_J: Estimate

    @classmethod
    def of(cls, plan: Plan, gpu_J: Estimate, step_time_s: Estimate) -> StepEnergy:
        """From the energy of a plan's GPUs: its hosts draw `site.host_power_W` a GPU all the while."""
        it_J = gpu_J + step_time_s * (plan.cluster.gpus * plan.site.host_power_W)
        return cls(gpu_J=gpu_J, it_J=it_J, meter_J=it_J * plan.site.pue)

    def to_json(self) -> dict[str, Any]:
        """By key; `energy_J` is the former name of `gpu_energy_J`."""
        gpu = self.gpu_J.to_json()
        return {
            "gpu_energy_J": gpu,
            "it_energy_J": self.it_J.to_json(),
            "meter_energy_J": self.meter_J.to_json(),
            "energy_J": gpu,
        }
