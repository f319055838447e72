"""What a GPU, a node and the cluster draw: in the mean over a step, and in the phase that draws most.

    GPU                 mean over the step P_h, of the one that draws most
    node                min(n P_h, G P) + hosts, of n GPUs of a node, of G GPUs in all with mean P: a node holds
                        the hottest GPU n times at most, and draws no more than the cluster
    peak of a GPU       max over phases (energy / time) x P_h / P, and no less than P_h; above the power limit
                        where a phase is shorter than the second or so over which that limit holds the mean
    peak of more        as the mean, with the peak for P and P_h: as if all GPUs were in that phase at once, which
                        they are without a pipeline

Phases are forward, backward and optimizer; what links draw while communication hides behind passes is added to theirs.
Left out: what a governor lets pass for milliseconds, and differences between hosts. Axes: P plans.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moemodel.model.core.arrays import FloatArray
from moemodel.model.device.power import power_model
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.predict.prediction import Prediction
from moemodel.model.results.outcome import Outcome
from moemodel.model.search.document import Search
from moemodel.model.step.system import System


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What a step draws, and in which of its phases. [P]

    Attributes:
        gpus: of each plan; `per_node` those of its fullest node.
        mean_W, hottest_W: of one GPU over the step, and of the one that draws most.
        phases: energy of all GPUs and time of the mean GPU in forward, backward and, where there is one, optimizer.
        hidden_s: communication behind passes.
        link_W: what a GPU draws more that communicates.
        host_W: of the rest of a node, for each GPU.
    """

    gpus: FloatArray
    per_node: FloatArray
    mean_W: FloatArray
    hottest_W: FloatArray
    phases: tuple[tuple[FloatArray, FloatArray], ...]
    hidden_s: FloatArray
    link_W: float
    host_W: float

    @classmethod
    def of(cls, plans: PlanBatch, p: Prediction, machine: System, document: Search) -> Drawn:
        """Of plans of a search."""
        return cls(
            gpus=plans.gpus.astype(np.float64),
            per_node=np.minimum(plans.gpus, document.cluster.gpus_per_node or machine.gpu.gpus_per_node),
            mean_W=p.power_W,
            hottest_W=p.hottest_power_W,
            phases=((p.forward_J, p.forward_s), (p.backward_J, p.backward_s), (p.optimizer_J, p.optimizer_s)),
            hidden_s=p.hidden_communication_s,
            link_W=power_model(machine.calibration).link_W,
            host_W=document.site.host_power_W,
        )

    @classmethod
    def of_one(cls, answer: Outcome, machine: System) -> Drawn:
        """Of one plan, as it is predicted alone. [1]"""
        plan = answer.plan
        node = plan.cluster.gpus_per_node or machine.gpu.gpus_per_node
        phases = [phase for phase in answer.phases.values() if phase.clock_Hz is not None]
        return cls(
            gpus=np.array([float(plan.cluster.gpus)]),
            per_node=np.array([float(min(plan.cluster.gpus, node))]),
            mean_W=np.array([answer.power_W.value]),
            hottest_W=np.array([answer.hottest_power_W.value]),
            phases=tuple((np.array([phase.energy_J]), np.array([phase.time_s])) for phase in phases),
            hidden_s=np.array([answer.hidden_communication_s]),
            link_W=power_model(machine.calibration).link_W,
            host_W=plan.site.host_power_W,
        )

    def powers(self) -> dict[str, FloatArray]:
        """By the names of `quantities`. [P]"""
        peak_W, n, host_W = self._peak_W(), self.per_node, self.host_W
        return {
            "power_per_gpu_W": self.hottest_W,
            "node_power_W": np.minimum(n * self.hottest_W, self.gpus * self.mean_W) + n * host_W,
            "cluster_power_W": self.gpus * self.mean_W + self.gpus * host_W,
            "peak_power_per_gpu_W": peak_W,
            "peak_node_power_W": n * peak_W + n * host_W,
            "peak_cluster_power_W": self.gpus * peak_W + self.gpus * host_W,
        }

    def _peak_W(self) -> FloatArray:
        """Of the GPU that draws most, in the phase that draws most. [P]"""
        passes = self.phases[:2]
        link_W = self.link_W * _over(self.hidden_s, np.asarray(sum(time_s for _, time_s in passes)))
        drawn = [_over(energy_J / self.gpus, time_s) for energy_J, time_s in self.phases]
        with_links = [*(watts + link_W for watts in drawn[:2]), *drawn[2:]]
        peak_W = np.maximum.reduce(with_links) * (self.hottest_W / self.mean_W)
        return np.asarray(np.maximum(peak_W, self.hottest_W))


def _over(part: FloatArray, whole: FloatArray) -> FloatArray:
    """A ratio; nothing, where there is nothing to divide by."""
    return np.asarray(np.divide(part, whole, out=np.zeros_like(part), where=whole > 0))
