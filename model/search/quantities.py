"""What a search can optimize and limit, by name: what each needs to be known, and what its best plan is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moemodel.model.plan.spec import SiteSpec

ObjectiveName = Literal[
    "step_time_s",
    "it_energy_J",
    "gpu_energy_J",
    "memory_B",
    "tokens_per_s_per_gpu",
    "power_per_gpu_W",
    "node_power_W",
    "cluster_power_W",
    "peak_power_per_gpu_W",
    "peak_node_power_W",
    "peak_cluster_power_W",
    "gpus",
    "run_hours",
    "run_days",
    "run_kWh",
    "run_kgCO2e",
    "run_cost",
]
DEFAULT_OBJECTIVES: tuple[ObjectiveName, ...] = ("step_time_s", "it_energy_J")
DEADLINE = "deadline"  # a limit alone: on the hours of the run
FORMER_NAMES = {"energy_J": "it_energy_J"}
GoalName = Literal["fastest", "fewest-gpus", "least-energy", "least-cost", "least-carbon", "least-power"]
WITHOUT_POWER: tuple[ObjectiveName, ...] = ("step_time_s",)  # the default where no power was measured


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One of the figures of a plan that can be optimized.

    Attributes:
        best: what the plan is called that is best in it.
        of_power: known only where power was measured; of a cost, where electricity has a price.
        higher_is_better: it is maximized.
    """

    best: str
    of_power: bool = False
    higher_is_better: bool = False


QUANTITIES: dict[str, Quantity] = {
    "step_time_s": Quantity(best="fastest"),
    "it_energy_J": Quantity(best="least_energy", of_power=True),
    "gpu_energy_J": Quantity(best="least_gpu_energy", of_power=True),
    "memory_B": Quantity(best="least_memory"),
    "tokens_per_s_per_gpu": Quantity(best="most_tokens_per_gpu", higher_is_better=True),
    "power_per_gpu_W": Quantity(best="least_power_per_gpu", of_power=True),
    "node_power_W": Quantity(best="least_node_power", of_power=True),
    "cluster_power_W": Quantity(best="least_cluster_power", of_power=True),
    "peak_power_per_gpu_W": Quantity(best="least_peak_power_per_gpu", of_power=True),
    "peak_node_power_W": Quantity(best="least_peak_node_power", of_power=True),
    "peak_cluster_power_W": Quantity(best="least_peak_cluster_power", of_power=True),
    "gpus": Quantity(best="fewest_gpus"),
    "run_hours": Quantity(best="fastest"),
    "run_days": Quantity(best="fastest"),
    "run_kWh": Quantity(best="least_energy", of_power=True),
    "run_kgCO2e": Quantity(best="least_emissions", of_power=True),
    "run_cost": Quantity(best="least_cost"),
}


def needs_power(name: str, site: SiteSpec) -> bool:
    """Whether an objective or a limit can be told only where power was measured."""
    quantity = QUANTITIES.get(name)
    return quantity is not None and (quantity.of_power or (name == "run_cost" and site.price_per_kWh is not None))


def goal_objectives(goal: GoalName, *, of_whole_run: bool, has_power: bool) -> tuple[ObjectiveName, ...]:
    """What a goal optimizes: its own quantity first, then time, so that the front shows what either costs of the other.

    Args:
        goal: as a user says it.
        of_whole_run: the search says how many tokens it trains on: energy is then that of the run, at the meter.
        has_power: power was measured; without it the fastest is the fastest, whatever it draws.
    """
    first: dict[GoalName, ObjectiveName] = {
        "fewest-gpus": "gpus",
        "least-energy": "run_kWh" if of_whole_run else "it_energy_J",
        "least-cost": "run_cost",
        "least-carbon": "run_kgCO2e",
        "least-power": "cluster_power_W",
    }
    if goal == "fastest":
        return DEFAULT_OBJECTIVES if has_power else WITHOUT_POWER
    return (first[goal], "step_time_s")


def of_run(name: str) -> bool:
    """Whether it is of the whole run, which has to have a number of tokens."""
    return name.startswith("run_") or name == DEADLINE


def unpriced(name: str, site: SiteSpec) -> bool:
    """Whether it is a cost, and nothing has a price."""
    return name == "run_cost" and site.price_per_kWh is None and site.gpu_hour_price is None
