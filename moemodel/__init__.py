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
    from moemodel.calibration.store.catalogue import list_calibrations, shipped
    from moemodel.model.architecture.hf_config import list_architectures, read_architecture
    from moemodel.model.architecture.spec import Architecture
    from moemodel.model.core.errors import (
        CalibrationError,
        DeviceError,
        InfeasiblePlanError,
        InputError,
        MoeModelError,
        ProfileError,
    )
    from moemodel.model.hardware.gpu import Gpu, list_gpus, read_gpu
    from moemodel.model.plan.spec import Plan, PlanBatch, batch_of, read_plan
    from moemodel.model.predict.predict import predict
    from moemodel.model.predict.prediction import Prediction
    from moemodel.model.records.calibration import Calibration, read_calibration
    from moemodel.model.results.estimate import Estimate
    from moemodel.model.results.outcome import Outcome, machine_of, outcome
    from moemodel.model.search.document import Search, read_search
    from moemodel.model.search.result import SearchResult, read_search_result
    from moemodel.model.search.search import search
    from moemodel.model.step.system import Machine
    from moemodel.profiler.meter.energy_meter import Meter

__version__ = "0.1.0"

_HOMES: dict[str, str] = {
    "Architecture": "model.architecture.spec",
    "Calibration": "model.records.calibration",
    "CalibrationError": "model.core.errors",
    "DeviceError": "model.core.errors",
    "Estimate": "model.results.estimate",
    "Gpu": "model.hardware.gpu",
    "InfeasiblePlanError": "model.core.errors",
    "InputError": "model.core.errors",
    "Machine": "model.step.system",
    "Meter": "profiler.meter.energy_meter",
    "MoeModelError": "model.core.errors",
    "Outcome": "model.results.outcome",
    "Plan": "model.plan.spec",
    "PlanBatch": "model.plan.spec",
    "Prediction": "model.predict.prediction",
    "ProfileError": "model.core.errors",
    "Search": "model.search.document",
    "SearchResult": "model.search.result",
    "batch_of": "model.plan.spec",
    "list_architectures": "model.architecture.hf_config",
    "list_calibrations": "calibration.store.catalogue",
    "list_gpus": "model.hardware.gpu",
    "machine_of": "model.results.outcome",
    "outcome": "model.results.outcome",
    "predict": "model.predict.predict",
    "read_architecture": "model.architecture.hf_config",
    "read_calibration": "model.records.calibration",
    "read_gpu": "model.hardware.gpu",
    "read_plan": "model.plan.spec",
    "read_search": "model.search.document",
    "read_search_result": "model.search.result",
    "search": "model.search.search",
    "shipped": "calibration.store.catalogue",
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
