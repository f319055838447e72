"""Predict, measure and optimise the time, energy, memory, carbon and cost of training language models.

    import moemodel

    answer = moemodel.predict("plan.yaml")
    print(answer.step_time_s, answer.gpu_energy_per_token_J, answer.notes)

What the commands do, Python does by the same functions: `predict`, `search`, `search_many` and `explain`
(`moemodel optimize`), `strategies`, `schedule`, `profile`, `calibrate`, `calibrate_readings` (`calibrate --readings`),
`recalibrate` (`calibrate --update`), `validate`, `run`, `predict_runs` (`run --predict`), `iteration` (`predict
--trace`), `import_megatron` (`import megatron`), `compare` and `place`; `Meter` goes around a training loop of your
own. The other names are their documents.
`Meter`, `profile`, `run` and `validate` need the extra `profile`, installed from where moemodel itself came from; what
begins with `calibrate` or `recalibrate` the extra `calibrate`, `strategies` the extra `clocks`. Everything is imported
when it is first used: `import moemodel` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from warnings import warn

if TYPE_CHECKING:
    from moemodel.api import (
        calibrate,
        calibrate_readings,
        compare,
        explain,
        import_megatron,
        iteration,
        place,
        predict_runs,
        recalibrate,
        schedule,
        search_many,
        strategies,
    )
    from moemodel.calibration.store.catalogue import list_calibrations, shipped, write_calibration
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
    from moemodel.model.grid.schedule import Schedule
    from moemodel.model.hardware.gpu import Gpu, list_gpus, read_gpu
    from moemodel.model.plan.spec import Plan, read_plan
    from moemodel.model.predict.predict import predict
    from moemodel.model.records.calibration import Calibration, read_calibration
    from moemodel.model.results.estimate import Estimate
    from moemodel.model.results.outcome import Outcome
    from moemodel.model.results.validation import Report, read_report
    from moemodel.model.search.document import Search, read_search
    from moemodel.model.search.result import SearchResult, read_search_result
    from moemodel.model.search.search import search
    from moemodel.profiler.meter.energy_meter import Meter
    from moemodel.profiler.run import profile
    from moemodel.profiler.runs.execute import run_matrix as run
    from moemodel.validation.run import validate

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
    "Meter": "profiler.meter.energy_meter",
    "MoeModelError": "model.core.errors",
    "Outcome": "model.results.outcome",
    "Plan": "model.plan.spec",
    "ProfileError": "model.core.errors",
    "Report": "model.results.validation",
    "Schedule": "model.grid.schedule",
    "Search": "model.search.document",
    "SearchResult": "model.search.result",
    "calibrate": "api",
    "calibrate_readings": "api",
    "compare": "api",
    "explain": "api",
    "import_megatron": "api",
    "iteration": "api",
    "list_architectures": "model.architecture.hf_config",
    "list_calibrations": "calibration.store.catalogue",
    "list_gpus": "model.hardware.gpu",
    "place": "api",
    "predict": "api",
    "predict_runs": "api",
    "profile": "api",
    "read_architecture": "model.architecture.hf_config",
    "read_calibration": "model.records.calibration",
    "read_gpu": "model.hardware.gpu",
    "read_plan": "model.plan.spec",
    "read_report": "model.results.validation",
    "read_search": "model.search.document",
    "read_search_result": "model.search.result",
    "recalibrate": "api",
    "run": "api",
    "schedule": "api",
    "search": "api",
    "search_many": "api",
    "shipped": "calibration.store.catalogue",
    "strategies": "api",
    "validate": "api",
    "write_calibration": "calibration.store.catalogue",
}

# What a name needs beside the package itself: the module, and the extra that installs it.
_NEEDS: dict[str, tuple[str, str]] = {"Meter": ("torch", "profile")}

if TYPE_CHECKING:
    __all__ = [
        "Architecture",
        "Calibration",
        "CalibrationError",
        "DeviceError",
        "Estimate",
        "Gpu",
        "InfeasiblePlanError",
        "InputError",
        "Meter",
        "MoeModelError",
        "Outcome",
        "Plan",
        "ProfileError",
        "Report",
        "Schedule",
        "Search",
        "SearchResult",
        "__version__",
        "calibrate",
        "calibrate_readings",
        "compare",
        "explain",
        "import_megatron",
        "iteration",
        "list_architectures",
        "list_calibrations",
        "list_gpus",
        "place",
        "predict",
        "predict_runs",
        "profile",
        "read_architecture",
        "read_calibration",
        "read_gpu",
        "read_plan",
        "read_report",
        "read_search",
        "read_search_result",
        "recalibrate",
        "run",
        "schedule",
        "search",
        "search_many",
        "shipped",
        "strategies",
        "validate",
        "write_calibration",
    ]


def __getattr__(name: str) -> Any:
    """A public name, imported from its home on first use; `__all__`: those that what is installed is enough for."""
    if name == "__all__":
        return _public()
    if name not in _HOMES:
        raise AttributeError(f"module 'moemodel' has no attribute {name!r}")
    from moemodel.model.core.extras import needs_extra

    with needs_extra(f"moemodel.{name}", _NEEDS[name][1] if name in _NEEDS else ""):
        value = getattr(import_module(f"moemodel.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(name for name in ("__version__", *_HOMES) if not _missing(name))


def _missing(name: str) -> bool:
    try:
        return name in _NEEDS and find_spec(_NEEDS[name][0]) is None
    except (ImportError, ValueError):  # somebody keeps it from being imported
        return True


def _public() -> list[str]:
    """Names for `from moemodel import *`; which are left out, and what they need, is a warning."""
    from moemodel.model.core.extras import how_to_install

    for name, (module, extra) in _NEEDS.items():
        if _missing(name):
            warn(
                f"moemodel.{name} is left out: it needs {module}, which is not installed; {how_to_install(extra)}",
                stacklevel=3,
            )
    return __dir__()
