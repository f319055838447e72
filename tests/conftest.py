"""Fixtures of all tests: a complete calibration of made-up but plausible numbers, so that no test needs a real one."""

from __future__ import annotations

import os

# Before numpy and torch are imported: a worker of pytest-xdist has one core, and so have the processes that it starts.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import gc
import importlib.util
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from moemodel.model.device.roofline import form_of
from moemodel.model.operators.work import PASSES, Kind, Pass
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import (
    SCHEMA_VERSION,
    Calibration,
    GovernorFit,
    HostLane,
    MemoryFit,
    NetworkFit,
    OperatorFit,
    Parameter,
    PowerFit,
    ThermalFit,
)
from moemodel.model.step.system import System, system_of


def pytest_configure() -> None:
    """Let Ctrl-C reach the tests of it, and what they start, though a shell that starts `make test &` ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collections: models are freed by hundreds of them."""
    gc.collect()
    gc.freeze()


_SOURCE = "made up for tests, of the order of an H100"

_FORMS: dict[str, dict[str, float]] = {
    "product": {
        "t0": 4e-6,
        "p": 4.0,
        "quantisation": 0.5,
        "split_depth": 1024.0,
        "split_gain": 0.7,
        "depth0": 150.0,
        "efficiency_256x128": 0.8,
        "efficiency_128x128": 0.72,
        "efficiency_128x64": 0.6,
        "efficiency_64x64": 0.45,
        "memory_efficiency": 0.85,
    },
    "attention": {
        "t0": 6e-6,
        "p": 4.0,
        "quantisation": 0.5,
        "efficiency": 0.75,
        "head_dim0": 16.0,
        "seq0": 400.0,
        "memory_efficiency": 0.8,
    },
    "stream": {
        "t0": 3e-6,
        "p": 4.0,
        "memory_efficiency": 0.85,
        "cache_efficiency": 1.8,
        "cache_size": 0.5,
        "issue_efficiency": 0.4,
    },
}
_FORMS["grouped"] = _FORMS["product"]

_HOST_US: dict[str, tuple[float, float, float]] = {  # forward, backward, step
    "dense_layer": (180.0, 250.0, 40.0),
    "dense_layer_gated": (200.0, 280.0, 40.0),
    "dense_layer_gated_qk_norm": (240.0, 330.0, 50.0),
    "moe_layer": (400.0, 500.0, 40.0),
    "moe_layer_qk_norm": (440.0, 550.0, 50.0),
    "head_and_loss": (100.0, 120.0, 0.0),
    "step": (0.0, 0.0, 500.0),
}


def _parameters(values: dict[str, float], unit: str = "1") -> dict[str, Parameter]:
    return {
        name: Parameter(value=value, unit=unit, origin="assumed", source=_SOURCE, error=0.05)
        for name, value in values.items()
    }


def _operator(kind: Kind, direction: Pass) -> OperatorFit:
    features = ("m", "n") if form_of(kind) == "stream" else ()
    box = dict.fromkeys(("m", "n", "experts", "top_k"), (1.0, 1e12)) if features else {}
    return OperatorFit(
        kind=kind,
        direction=direction,
        parameters=_parameters(_FORMS[form_of(kind)]),
        log_error=0.05,
        measured=box,
        points=20,
    )


def synthetic_calibration(name: str = "test-h100", gpu: str = "h100-sxm-80gb") -> Calibration:
    """A calibration with every operator, of a GPU like an H100."""
    return Calibration(
        schema_version=SCHEMA_VERSION,
        name=name,
        gpu=gpu,
        created="2026-01-01",
        moemodel_version="0.1.0",
        provenance="Made up for tests; nothing here was measured.",
        clock_reference_Hz=1.5e9,
        clock_range_Hz=(345e6, 1980e6),
        clock_measured_Hz=(1150e6, 1980e6),
        composition_error=Parameter(value=0.03, unit="1", origin="assumed", source=_SOURCE),
        chip=_parameters(
            {"multiprocessors": 132.0, "flops_per_cycle": 4096.0, "bandwidth_Bps": 3.35e12, "l2_B": 52428800.0}
        ),
        operators=[_operator(kind, direction) for kind in Kind for direction in PASSES[kind]],
        host=[
            HostLane(
                backend="torch",
                blocks=_parameters(
                    {
                        f"{block}/{phase}": us * 1e-6
                        for block, passes in _HOST_US.items()
                        for phase, us in zip(("forward", "backward", "step"), passes, strict=True)
                    },
                    "s",
                ),
                log_error=0.1,
            )
        ],
        power=PowerFit(
            parameters=_parameters(
                {
                    "base_W": 90.0,
                    "tree_W": 20.0,
                    "leak_W_per_C": 0.8,
                    "rise_per_C": 0.0,
                    "leak_reference_C": 50.0,
                    "flop_J": 0.35e-12,
                    "vector_op_J": 2e-12,
                    "cache_J_per_B": 20e-12,
                    "dram_J_per_B": 60e-12,
                    "active_W": 120.0,
                    "knee_Hz": 1005e6,
                    "voltage_slope": 0.5,
                }
            ),
            log_error=0.06,
            points=50,
        ),
        governor=GovernorFit(
            parameters=_parameters(
                {"sustained_share": 1.0, "gain": 9e6, "tensor_clock": 1.6e9, "tensor_sharpness": 10.0}
            ),
            log_error=0.02,
        ),
        thermal=ThermalFit(
            parameters=_parameters(
                {"die_C_per_W": 0.02, "die_time": 2.0, "sink_C_per_W": 0.025, "sink_time": 20.0, "inlet_C": 30.0}
            )
        ),
        network=NetworkFit(
            parameters=_parameters(
                {
                    "bandwidth": 450e9,
                    "step_latency": 2e-6,
                    "start_latency": 20e-6,
                    "overlap": 0.5,
                    "link_power": 150.0,
                    "efficiency_all_reduce": 0.75,
                    "efficiency_reduce_scatter": 0.75,
                    "efficiency_all_gather": 0.75,
                    "efficiency_all_to_all": 0.7,
                    "efficiency_send_recv": 0.8,
                }
            ),
            log_error=0.15,
        ),
        memory=MemoryFit(parameters=_parameters({"context": 0.6e9, "workspace": 0.1e9, "fragmentation": 0.03})),
    )


def make_plan(**changes: Any) -> Plan:
    """OPT-350M on one H100; `parallel` and `cluster` are updated, other keys replaced."""
    document: dict[str, Any] = {
        "name": "test",
        "architecture": "opt-350m",
        "sequence_length": 2048,
        "global_batch": 16,
        "micro_batch": 1,
    }
    cluster = {"gpu": "h100-sxm-80gb", "gpus": 1} | changes.pop("cluster", {})
    parallel = changes.pop("parallel", {})
    return Plan.model_validate(document | changes | {"cluster": cluster, "parallel": parallel})


@pytest.fixture(scope="session")
def plan_of() -> Callable[..., Plan]:
    """`make_plan`: a plan of OPT-350M with some keys changed."""
    return make_plan


@pytest.fixture(scope="session")
def batch() -> Callable[..., PlanBatch]:
    """A batch of plans of 2048 tokens on one GPU, with some columns changed."""

    def make(**columns: Any) -> PlanBatch:
        degrees = dict.fromkeys(("dp", "tp", "pp", "ep", "cp", "virtual_stages", "micro_batch"), 1)
        rest = {"zero_stage": 0, "sequence_parallel": 0, "global_batch": 64, "seq": 2048, "recompute": 0, "schedule": 0}
        free = {"skew": 1.0, "clock_Hz": np.inf, "power_cap_W": np.inf}
        return PlanBatch.of(**degrees | rest | free | columns)

    return make


@pytest.fixture(scope="session")
def calibration() -> Calibration:
    """A synthetic calibration of an H100."""
    return synthetic_calibration()


@pytest.fixture(scope="session")
def machine(calibration: Calibration) -> System:
    """That H100, eight of them in a node."""
    return system_of(make_plan(), calibration)


@pytest.fixture(scope="session")
def calibration_file(calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, as a file."""
    path = tmp_path_factory.mktemp("calibration") / "test-h100.json"
    path.write_text(calibration.model_dump_json(), encoding="utf-8")
    return path


# --- validations without a GPU ---------------------------------------------------------------------------------------


@pytest.fixture
def made_up_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """`moemodel validate` finds eight H100, on which every step takes 1.1 s and 700 J; all else of it is real."""
    from moemodel.model.hardware.gpu import read_gpu
    from moemodel.model.results.validation import Environment, Visit, row_of
    from moemodel.validation import run
    from moemodel.validation.records.session import RunRecord
    from moemodel.validation.report.build import report_of
    from moemodel.validation.select.runnable import Hardware
    from tests.reports import environment_of

    environment = environment_of(gpus=8)
    measured = {"step_time_s": 1.1, "energy_J": 700.0, "power_W": 650.0, "peak_allocated_B": 5e9, "rank": 0}
    rows = (row_of(measured),)

    def probe_hardware(gpu: str, **_: Any) -> tuple[Hardware, Environment]:
        here: dict[str, Any] = {"gpus": 8, "no_locks": "--clocks passive", "power_limit_W": 700.0}
        return Hardware(gpu=read_gpu(gpu), unable=lambda _: None, **here), environment

    def validate(spec: Any, folder: Path, calibration: Calibration, _: Any, **__: Any) -> run.ValidationResult:
        order = [(one.name, repeat) for one, repeat in spec.order()]
        visits = [(name, Visit(repeat=repeat, clock_held=None, seconds=5.0, rows=rows)) for name, repeat in order]
        report = report_of(spec, [RunRecord(plan=name, visit=visit) for name, visit in visits], calibration)
        folder.mkdir(exist_ok=True)
        run.write(report, folder)
        return run.ValidationResult(report=report, folder=folder)

    monkeypatch.setattr(run, "probe_hardware", probe_hardware)
    monkeypatch.setattr(run, "validate", validate)


# --- scripts of bench/ -----------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def run_bench() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python bench/SCRIPT ARGUMENTS...` as its users do; warnings are errors."""

    def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", str(ROOT / "bench" / script), *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def rerun_bench() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_bench` without a process: for what else is asked of a script that a test has run as its users do."""

    def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [str(ROOT / "bench" / script), *map(str, arguments)]
        code, out, err = 0, StringIO(), StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", command)
            try:
                runpy.run_path(command[0], run_name="__main__")
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def bench_module() -> Callable[[str], ModuleType]:
    """Imports a script of bench/, which is no package."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load
