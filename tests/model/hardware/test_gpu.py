"""GPU descriptions: published figures agree with each other, and mistakes are told."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from moemodel.model.core.errors import InputError
from moemodel.model.hardware.gpu import list_gpus, read_gpu

GPUS = [name for name in list_gpus() if name != "cpu"]
PRESETS = Path(__file__).parents[3] / "model" / "presets" / "gpus"


def _description(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((PRESETS / "a40-48gb.json").read_text(encoding="utf-8"))
    return data | changes


def _refusal(folder: Path, data: dict[str, Any]) -> str:
    path = folder / "mine.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_gpu(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_the_promised_gpus_ship() -> None:
    assert set(list_gpus()) == {
        "a100-pcie-80gb",
        "a100-sxm-40gb",
        "a100-sxm-80gb",
        "a40-48gb",
        "cpu",
        "gh200-96gb",
        "h100-sxm-80gb",
        "h200-sxm-141gb",
        "v100-sxm-32gb",
    }


@pytest.mark.parametrize("name", list_gpus())
def test_a_preset_is_named_as_its_file(name: str) -> None:
    assert read_gpu(name).name == name


@pytest.mark.parametrize("name", list_gpus())
def test_every_value_has_a_source(name: str) -> None:
    gpu = read_gpu(name)
    plain = {"name", "product", "aliases", "architecture", "peaks", "sources"}
    known = {key for key, value in vars(gpu).items() if key not in plain and value is not None}
    assert set(gpu.sources) == known | {f"peaks.{dtype}" for dtype in gpu.peaks}
    assert all(len(source) > 10 for source in gpu.sources.values())


def test_no_two_gpus_share_a_name() -> None:
    names = [name.casefold() for gpu in map(read_gpu, list_gpus()) for name in (gpu.name, *gpu.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm-80gb"),
        ("nvidia a100-sxm4-40gb", "a100-sxm-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("NVIDIA GH200 480GB", "gh200-96gb"),
        ("Tesla V100-SXM2-32GB", "v100-sxm-32gb"),
        ("NVIDIA H200", "h200-sxm-141gb"),
        ("NVIDIA A40", "a40-48gb"),
        ("H100", "h100-sxm-80gb"),
        ("a100", "a100-sxm-80gb"),
    ],
)
def test_names_that_drivers_and_people_use_are_known(name: str, meant: str) -> None:
    assert read_gpu(name).name == meant


@pytest.mark.parametrize("name", GPUS)
def test_peaks_are_whole_powers_of_two_of_operations_a_cycle(name: str) -> None:
    """Rate, clock and multiprocessors come from different lines of a datasheet; this ties them together."""
    gpu = read_gpu(name)
    assert gpu.multiprocessors is not None
    for dtype, peak in gpu.peaks.items():
        each = peak.flops_per_cycle / gpu.multiprocessors
        assert each == pytest.approx(2 ** round(math.log2(each)), rel=0.005), dtype


@pytest.mark.parametrize("name", GPUS)
def test_halving_the_width_of_a_tensor_core_type_doubles_its_rate(name: str) -> None:
    peaks = read_gpu(name).peaks
    for wide, narrow in (("tf32", "bf16"), ("fp16", "fp8")):
        if wide in peaks and narrow in peaks:
            assert peaks[narrow].flops_per_s == pytest.approx(2 * peaks[wide].flops_per_s, rel=0.01)  # type: ignore[index]


@pytest.mark.parametrize("name", GPUS)
def test_clocks_and_powers_lie_in_their_ranges(name: str) -> None:
    gpu = read_gpu(name)
    assert gpu.clock_min_Hz is not None
    assert gpu.clock_max_Hz is not None
    assert gpu.clock_step_Hz is not None
    steps = (gpu.clock_max_Hz - gpu.clock_min_Hz) / gpu.clock_step_Hz
    assert steps == pytest.approx(round(steps))
    assert all(gpu.clock_min_Hz < peak.clock_Hz <= gpu.clock_max_Hz for peak in gpu.peaks.values())
    assert gpu.power_limit_W is not None
    assert (gpu.power_limit_min_W or 0.0) < gpu.power_limit_W <= (gpu.power_limit_max_W or gpu.power_limit_W)
    assert (gpu.idle_power_W or 0.0) < gpu.power_limit_W


def test_the_h100_is_as_measured() -> None:
    h100 = read_gpu("h100")
    assert (h100.multiprocessors, h100.l2_B, h100.slowdown_C) == (132, 50 * 2**20, 89.0)
    assert (h100.clock_min_Hz, h100.clock_max_Hz, h100.clock_step_Hz) == (345e6, 1980e6, 15e6)
    assert (h100.power_limit_min_W, h100.power_limit_W, h100.power_limit_max_W) == (200.0, 700.0, 700.0)
    assert h100.peak("bf16").flops_per_s == 989.4e12
    assert h100.peak("bf16").clock_Hz == 1830e6


def test_a_cpu_has_nothing_that_makes_no_sense() -> None:
    cpu = read_gpu("cpu")
    assert cpu.gpus_per_node == 1
    assert cpu.peaks == {}
    assert cpu.multiprocessors is cpu.nvlink_Bps is cpu.clock_max_Hz is None


def test_a_peak_that_is_not_there_is_told_what_is() -> None:
    with pytest.raises(InputError, match=r"gpu v100-sxm-32gb: dtype: found 'bf16'; allowed: fp16, fp32, fp64"):
        read_gpu("v100").peak("bf16")


def test_an_unknown_gpu_is_told_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        read_gpu("h100-sxm-80")
    message = str(caught.value)
    assert message.startswith("gpu: found 'h100-sxm-80'; allowed: a100-pcie-80gb, a100-sxm-40gb, ")
    assert "or the path of a GPU description; did you mean 'h100-sxm-80gb'" in message


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(_description(name="mine")), encoding="utf-8")
    mine = read_gpu(str(path))
    assert mine.name == "mine"
    assert mine.memory_bandwidth_Bps == read_gpu("a40").memory_bandwidth_Bps


def test_an_unknown_key_is_refused(tmp_path: Path) -> None:
    message = _refusal(tmp_path, _description(memory_GB=48))
    assert message.startswith("unknown key 'memory_GB'; allowed here: ")
    assert "memory_B" in message


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    data = _description()
    del data["slowdown_C"]
    assert _refusal(tmp_path, data) == "the key 'slowdown_C' is missing"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"memory_B": {"value": -1, "source": "smi"}},
            "memory_B.value: found -1; input should be greater than 0",
        ),
        (
            {"memory_B": {"value": 48, "source": "hearsay"}},
            "memory_B.source: found 'hearsay'; allowed: a key of 'sources' (",
        ),
        (
            {"clock_min_Hz": {"value": 2e9, "source": "ampere"}},
            "clock_min_Hz: found 2e+09; allowed: at most clock_max_Hz (1.74e+09)",
        ),
        (
            {"power_limit_min_W": {"value": 400, "source": "zeus"}},
            "power_limit_min_W: found 400; allowed: at most power_limit_max_W (300)",
        ),
        (
            {"peaks": {"int4": {"flops_per_s": 1e12, "clock_Hz": 1e9, "source": "smi"}}},
            "peaks.int4.[key]: found 'int4'; input should be 'fp64', 'fp32', 'tf32', 'bf16', 'fp16', 'fp8' or 'fp4'",
        ),
    ],
)
def test_a_wrong_value_is_told_what_is_allowed(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert _refusal(tmp_path, _description(**changes)).startswith(message)
