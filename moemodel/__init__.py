"""Predict, measure and optimise the time, energy, memory, carbon and cost of training language models.

    from pathlib import Path
    import moemodel

    plan = moemodel.read_plan(Path("plan.yaml"))
    answer = moemodel.outcome(plan, moemodel.shipped("h100-sxm-80gb"))
    print(answer.energy_per_token_J.value)

Everything below is imported when it is first used: `import moemodel` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moemodel.calibrate.catalogue import list_calibrations, shipped
    from moemodel.model.architecture import Architecture
    from moemodel.model.calibration import Calibration, read_calibration
    from moemodel.model.errors import (
        CalibrationError,
        DeviceError,
        InfeasiblePlanError,
        InputError,
        MoeModelError,
        ProfileError,
    )
    from moemodel.model.gpu import Gpu, list_gpus, read_gpu
    from moemodel.model.hf_config import list_architectures, read_architecture
    from moemodel.model.machine import Machine
    from moemodel.model.outcome import Estimate, Outcome, machine_of, outcome
    from moemodel.model.plan import Plan, PlanBatch, batch_of, read_plan
    from moemodel.model.predict import Prediction, predict
    from moemodel.model.search import search
    from moemodel.model.search_document import Search, read_search
    from moemodel.model.search_result import SearchResult, read_search_result
    from moemodel.profiler.meter import Meter

__version__ = "0.1.0"

_HOMES: dict[str, str] = {
    "Architecture": "model.architecture",
    "Calibration": "model.calibration",
    "CalibrationError": "model.errors",
    "DeviceError": "model.errors",
    "Estimate": "model.outcome",
    "Gpu": "model.gpu",
    "InfeasiblePlanError": "model.errors",
    "InputError": "model.errors",
    "Machine": "model.machine",
    "Meter": "profiler.meter",
    "MoeModelError": "model.errors",
    "Outcome": "model.outcome",
    "Plan": "model.plan",
    "PlanBatch": "model.plan",
    "Prediction": "model.predict",
    "ProfileError": "model.errors",
    "Search": "model.search_document",
    "SearchResult": "model.search_result",
    "batch_of": "model.plan",
    "list_architectures": "model.hf_config",
    "list_calibrations": "calibrate.catalogue",
    "list_gpus": "model.gpu",
    "machine_of": "model.outcome",
    "outcome": "model.outcome",
    "predict": "model.predict",
    "read_architecture": "model.hf_config",
    "read_calibration": "model.calibration",
    "read_gpu": "model.gpu",
    "read_plan": "model.plan",
    "read_search": "model.search_document",
    "read_search_result": "model.search_result",
    "search": "model.search",
    "shipped": "calibrate.catalogue",
}

__all__ = [
    "Architecture",
    "Calibration",
    "CalibrationError",
    "DeviceError",
    "Estimate",
    "Gpu",
    "InfeasiblePlanError",
    "InputError",
    "Machine",
    "Meter",
    "MoeModelError",
    "Outcome",
    "Plan",
    "PlanBatch",
    "Prediction",
    "ProfileError",
    "Search",
    "SearchResult",
    "__version__",
    "batch_of",
    "list_architectures",
    "list_calibrations",
    "list_gpus",
    "machine_of",
    "outcome",
    "predict",
    "read_architecture",
    "read_calibration",
    "read_gpu",
    "read_plan",
    "read_search",
    "read_search_result",
    "search",
    "shipped",
]


def __getattr__(name: str) -> Any:
    """A public name, imported from its home on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'moemodel' has no attribute {name!r}")
    value = getattr(import_module(f"moemodel.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
