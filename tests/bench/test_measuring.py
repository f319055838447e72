"""The benchmarks that measure: small runs of them, on a simulated GPU and on the processor."""

from __future__ import annotations

import json
import math
import random
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

MEASURED = Path(__file__).parents[2] / "bench" / "measured"


Run = Callable[..., subprocess.CompletedProcess[str]]
Load = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, run_bench: Run) -> tuple[Path, dict[str, Any]]:
    """A session on a simulated GPU, whose powers are the same alone and in the mix but for what warmth leaks."""
    file = tmp_path_factory.mktemp("attribution") / "session.jsonl"
    done = run_bench(
        "attribution.py", "--json", "--gpu", "sim:h100?seed=3", "--record", file, "--seconds", "20", "--alone", "2.8"
    )
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    return file, figures


def test_power_of_short_phases_is_right(recording: tuple[Path, dict[str, Any]]) -> None:
    _, figures = recording
    assert 0 < figures["attribution_mape"] < 0.01
    for name, phase in figures["phases"].items():  # idle, the die is 3 degrees warmer in the mix, and leaks 1.5 W more
        assert abs(phase["off_share"]) < (0.03 if name == "idle" else 0.01)
    assert figures["phases_not_told"] == 0
    assert set(figures["phases"]) == {"optimizer", "embedding", "copy", "attention", "idle"}
    powers_W = {name: phase["alone_W"] for name, phase in figures["phases"].items()}
    assert powers_W["idle"] < 150 < 400 < min(power_W for name, power_W in powers_W.items() if name != "idle")
    assert max(powers_W.values()) < 0.85 * 700  # below the cap, so that the clock is the same
    assert figures["mixed_clock_MHz"] == pytest.approx(1980)
    assert figures["recording_B"] < 200_000


def test_the_recording_says_the_same_again(recording: tuple[Path, dict[str, Any]], rerun_bench: Run) -> None:
    file, figures = recording
    done = rerun_bench("attribution.py", "--json", "--from", file)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == figures
    table = rerun_bench("attribution.py", "--from", file).stdout
    assert table.splitlines()[1].startswith("optimizer ")


def test_a_real_gpu_recorded(rerun_bench: Run) -> None:
    """The project's aim, on what an H100's sensors said."""
    done = rerun_bench("attribution.py", "--json", "--from", MEASURED / "h100-sxm-80gb-attribution.jsonl")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["device"] == "NVIDIA H100 80GB HBM3"
    assert figures["phases_not_told"] == 0
    assert 0 < figures["attribution_mape"] <= 0.03
    assert figures["attribution_worst"] < 0.05


def test_what_cannot_be_evaluated_says_so(
    recording: tuple[Path, dict[str, Any]], tmp_path: Path, rerun_bench: Run
) -> None:
    file, _ = recording
    text = file.read_text()
    (tmp_path / "cut.jsonl").write_text(text[: len(text) // 2])
    done = rerun_bench("attribution.py", "--from", tmp_path / "cut.jsonl")
    assert done.returncode == 2
    assert "no mixed section" in done.stderr
    assert rerun_bench("attribution.py", "--gpu", "sim:h100", "--record", file).returncode == 2  # never written over
    assert file.read_text() == text


def test_codecarbons_levels_have_a_cost(monkeypatch: pytest.MonkeyPatch, bench_module: Load) -> None:
    pytest.importorskip("codecarbon")
    bench = bench_module("meter_cost")
    monkeypatch.setattr(bench.MemoryBoundLoop, "step_s", 0.004)
    monkeypatch.setattr(bench, "_WARM_S", 0.2)
    figures = bench.measure(0.1, torch.device("cpu"), loops=["memory"], codecarbon=True)
    assert figures["step_time_s"] > 0
    for name in ("", "codecarbon_session_", "codecarbon_step_", "codecarbon_phase_"):
        assert figures[f"{name}pairs"] >= 2
        assert isinstance(figures[f"{name}share_of_step"], float)
        assert figures[f"{name}standard_error"] > 0
    assert figures["codecarbon_step_inside_s_per_step"] > 0
    assert figures["codecarbon_phase_inside_s_per_step"] > 0
    assert figures["codecarbon_step_readings_per_step"] == 1
    assert figures["codecarbon_phase_readings_per_step"] == 3
    json.dumps(figures, allow_nan=False)


def test_without_codecarbon_it_is_the_meters_cost_alone(monkeypatch: pytest.MonkeyPatch, bench_module: Load) -> None:
    bench = bench_module("meter_cost")
    monkeypatch.setattr(bench.MemoryBoundLoop, "step_s", 0.004)
    for name, value in {
        "_WARM_S": 0.1,
        "_STEP_S": 0.01,
        "_SESSION_STEPS": 4,
        "_BLOCK": 2,
        "_BATCH": 4,
        "_SETTLE": 2,
    }.items():
        monkeypatch.setattr(bench, name, value)
    figures = bench.measure(0.1, torch.device("cpu"))
    host = "calls_s calls_standard_error_s inside_s notes phases power_W read_by reader_share reader_standard_error"
    host += " residual_share share_of_step short_step_time_s standard_error step_time_s steps"
    assert set(figures) == {
        "share_of_step",
        "standard_error",
        "step_time_s",
        "pairs",
        "host_time_per_call_s",
        "device",
        "notes",
        "read_by",
        *(f"host_bound_{name}" for name in host.split()),
    }
    assert set(figures["host_bound_phases"]) == {"forward", "backward", "optimizer"}
    json.dumps(figures, allow_nan=False)


def test_what_calls_and_reader_cost_is_found_among_noise(bench_module: Load) -> None:
    """Steps of 12 ms that drift by 5 % and scatter by 2 %, one in thirty far out; calls add 60 us, the reader 0.5 %."""
    bench = bench_module("meter_cost")
    draw = random.Random(0)
    fits = []
    for batch in range(100):
        steps = []
        for block in draw.sample([True, False] * 3, 6):
            for metered in draw.sample([True, False] * 10, 20):
                at = (batch * 120 + len(steps)) / 12_000
                time_s = 0.012 * (1 + 0.05 * math.sin(30 * at)) * draw.gauss(1, 0.02) * (1.005 if block else 1)
                time_s += (6e-5 if metered else 0.0) + (0.02 if draw.random() < 1 / 30 else 0.0)
                steps.append(bench._Step(time_s, metered, block))
        fits.append(bench._fit(steps))
    calls_s, error_s = bench.trimmed_mean([fit[1] for fit in fits])
    assert error_s < 8e-6
    assert abs(calls_s - 6e-5) < 3 * error_s
    share, share_error = bench.trimmed_mean([fit[2] / fit[0] for fit in fits])
    assert share_error < 1e-3
    assert abs(share - 0.005) < 3 * share_error


def test_a_trimmed_mean_and_its_error(bench_module: Load) -> None:
    """Without trimming they are the mean and its standard error; trimmed, one wild value does nothing."""
    bench = bench_module("meter_cost")
    values = [float(value) for value in range(10)]
    assert bench.trimmed_mean(values, 0.0) == pytest.approx((4.5, statistics.stdev(values) / 10**0.5))
    assert bench.trimmed_mean([*values[:-1], 1e9])[0] == pytest.approx(4.5)
