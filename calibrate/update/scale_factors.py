"""What a validation may move in a calibration: a few factors, each common to all plans.

A factor starts at 1. What is known of it beforehand is the error that the calibration states of the parameters that it
multiplies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from moemodel.model.records.calibration import Calibration, OperatorFit, Parameter

UNKNOWN_ERROR = 0.3  # log; assumed: of a parameter whose error the calibration doesn't state
Change = Callable[[Calibration, float], Calibration]


@dataclass(frozen=True, kw_only=True)
class ScaleFactor:
    """A factor on some parameters of a calibration.

    Attributes:
        name: as in the module's table.
        meaning: for a reader.
        spread: standard deviation of its logarithm before the validation.
        highest: that it may be.
        change: the calibration with the factor on its parameters.
    """

    name: str
    meaning: str
    spread: float
    change: Change
    highest: float = math.inf


_DYNAMIC = ("flop_J", "vector_op_J", "cache_J_per_B", "dram_J_per_B", "active_W")


def time_knobs(calibration: Calibration) -> list[ScaleFactor]:
    """Factors that step times depend on."""
    network, host = calibration.network.parameters, calibration.host
    links = [name for name in network if name.startswith("efficiency_")]
    starts = [name for name in network if "latency" in name]
    overlaps = [name for name in network if name.endswith("overlap")]  # one for all, and each collective's own
    return [
        ScaleFactor(
            name="kernels",
            meaning="time of operators",
            spread=calibration.composition_error.value or UNKNOWN_ERROR,
            change=_scaled_operators,
        ),
        ScaleFactor(
            name="host",
            meaning="time of the host",
            spread=max((lane.log_error for lane in host), default=0.0) or UNKNOWN_ERROR,
            change=_scaled_host,
        ),
        _network_knob("links", "bandwidth of collectives", calibration, links, at_most=1.0),
        _network_knob("start", "latency of collectives", calibration, starts),
        _network_knob("overlap", "communication that hides behind computation", calibration, overlaps, at_most=1.0),
    ]


def power_knobs(calibration: Calibration) -> list[ScaleFactor]:
    """Factors that power depends on; none where power isn't modelled."""
    if not calibration.power.points:
        return []
    dynamic = ScaleFactor(
        name="dynamic",
        meaning="energy of operators",
        spread=calibration.power.log_error or UNKNOWN_ERROR,
        change=_scaled_power,
    )
    talking = [name for name in calibration.network.parameters if name.endswith("link_power")]
    return [dynamic, _network_knob("link_power", "power of collectives", calibration, talking)]


def memory_knobs(calibration: Calibration) -> list[ScaleFactor]:
    """Factors that memory depends on, as the framework's allocator counts it."""
    workspace = calibration.memory.parameters["workspace"]
    return [
        ScaleFactor(
            name="workspace",
            meaning="memory that libraries keep",
            spread=workspace.error or 1.0,  # assumed, where no error is stated: within a factor of e
            change=_scaled_workspace,
        )
    ]


def _network_knob(
    name: str, meaning: str, calibration: Calibration, names: Sequence[str], at_most: float = math.inf
) -> ScaleFactor:
    parameters = calibration.network.parameters
    errors = [parameters[n].error or UNKNOWN_ERROR for n in names]
    largest = max((parameters[n].value for n in names), default=0.0)

    def change(c: Calibration, factor: float) -> Calibration:
        moved = _times(c.network.parameters, dict.fromkeys(names, factor))
        return c.model_copy(update={"network": c.network.model_copy(update={"parameters": moved})})

    return ScaleFactor(
        name=name,
        meaning=meaning,
        spread=max([*errors, calibration.network.log_error]) or UNKNOWN_ERROR,
        change=change,
        highest=at_most / largest if largest > 0 else math.inf,
    )


def _times(parameters: Mapping[str, Parameter], factors: Mapping[str, float]) -> dict[str, Parameter]:
    return {
        name: p.model_copy(update={"value": p.value * factors[name]}) if name in factors else p
        for name, p in parameters.items()
    }


def _scaled_operators(calibration: Calibration, factor: float) -> Calibration:
    """Every operator takes `factor` times as long: its overheads are longer, its rates lower."""
    return calibration.model_copy(update={"operators": [_slower(fit, factor) for fit in calibration.operators]})


def _slower(fit: OperatorFit, factor: float) -> OperatorFit:
    factors = {name: factor for name in fit.parameters if name in ("t0", "t1")}
    factors |= {name: 1 / factor for name in fit.parameters if "efficiency" in name}
    return fit.model_copy(update={"parameters": _times(fit.parameters, factors)})


def _scaled_host(calibration: Calibration, factor: float) -> Calibration:
    lanes = [
        lane.model_copy(update={"blocks": _times(lane.blocks, dict.fromkeys(lane.blocks, factor))})
        for lane in calibration.host
    ]
    return calibration.model_copy(update={"host": lanes})


def _scaled_power(calibration: Calibration, factor: float) -> Calibration:
    moved = _times(calibration.power.parameters, dict.fromkeys(_DYNAMIC, factor))
    return calibration.model_copy(update={"power": calibration.power.model_copy(update={"parameters": moved})})


def _scaled_workspace(calibration: Calibration, factor: float) -> Calibration:
    moved = _times(calibration.memory.parameters, {"workspace": factor})
    return calibration.model_copy(update={"memory": calibration.memory.model_copy(update={"parameters": moved})})
