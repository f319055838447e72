"""GPU descriptions: published figures agree with each other, and mistakes are told."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from moemodel.model.core.dtypes import Dtype
from moemodel.model.core.errors import InputError
from moemodel.model.hardware.gpu import Gpu, list_gpus, read_gpu

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
        "a100-pcie-40gb",
        "a100-pcie-80gb",
        "a100-sxm-40gb",
        "a100-sxm-80gb",
        "a40-48gb",
        "b200-sxm-180gb",
        "b300-sxm-288gb",
        "cpu",
        "gb200-186gb",
        "gb300-288gb",
        "gh200-144gb",
        "gh200-96gb",
        "h100-nvl-94gb",
        "h100-pcie-80gb",
        "h100-sxm-80gb",
        "h100-sxm-96gb",
        "h20-141gb",
        "h20-96gb",
        "h200-sxm-141gb",
        "h800-sxm-80gb",
        "l40s-48gb",
        "mi250x-gcd-64gb",
        "mi300x-192gb",
        "mi325x-256gb",
        "mi355x-288gb",
        "rtx-pro-6000",
        "v100-pcie-16gb",
        "v100-pcie-32gb",
        "v100-sxm-16gb",
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
        ("NVIDIA GH200 144G HBM3e", "gh200-144gb"),
        ("NVIDIA H100 PCIe", "h100-pcie-80gb"),
        ("NVIDIA H100 NVL", "h100-nvl-94gb"),
        ("NVIDIA H800", "h800-sxm-80gb"),
        ("NVIDIA H20", "h20-96gb"),
        ("NVIDIA H20-3e", "h20-141gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-pcie-40gb"),
        ("NVIDIA L40S", "l40s-48gb"),
        ("Tesla V100-SXM2-16GB", "v100-sxm-16gb"),
        ("Tesla V100-PCIE-32GB", "v100-pcie-32gb"),
        ("NVIDIA B200", "b200-sxm-180gb"),
        ("NVIDIA B300 SXM6 AC", "b300-sxm-288gb"),
        ("NVIDIA GB200", "gb200-186gb"),
        ("NVIDIA GB300", "gb300-288gb"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"),
        ("AMD Instinct MI250X", "mi250x-gcd-64gb"),
        ("AMD Instinct MI300X", "mi300x-192gb"),
        ("AMD Instinct MI325X", "mi325x-256gb"),
        ("AMD Instinct MI355X", "mi355x-288gb"),
        ("H100", "h100-sxm-80gb"),
        ("a100", "a100-sxm-80gb"),
    ],
)
def test_names_that_drivers_and_people_use_are_known(name: str, meant: str) -> None:
    assert read_gpu(name).name == meant


# Operations of a multiprocessor in a cycle by the vendors' whitepapers; a multiply-add is two.
_EACH_CYCLE = {
    "volta": {"fp64": 64, "fp32": 128, "fp16": 1024},
    "ampere": {"fp64": 128, "fp32": 128, "tf32": 1024, "bf16": 2048},
    "ampere-ga10x": {"fp32": 256, "tf32": 512, "bf16": 1024},
    "hopper": {"fp64": 256, "fp32": 256, "tf32": 2048, "bf16": 4096, "fp8": 8192},
    "ada": {"fp32": 256, "tf32": 512, "bf16": 1024, "fp8": 2048},
    "blackwell": {"fp64": 128, "fp32": 256, "tf32": 4096, "bf16": 8192, "fp8": 16384, "fp6": 16384, "nvfp4": 32768},
    "blackwell-gb20x": {"fp32": 256, "tf32": 512, "bf16": 1024, "fp8": 2048, "nvfp4": 4096},
    "blackwell-ultra": {
        "fp64": 4,
        "fp32": 256,
        "tf32": 4096,
        "bf16": 8192,
        "mxfp8": 16384,
        "fp6": 16384,
        "nvfp4": 3 * 16384,
    },
    "cdna2": {"fp64": 256, "fp32": 256, "bf16": 1024},
    "cdna3": {"fp64": 256, "fp32": 256, "tf32": 1024, "bf16": 2048, "fp8": 4096},
    "cdna4": {"fp64": 128, "fp32": 256, "bf16": 4096, "fp8": 8192, "mxfp8": 8192, "fp6": 16384, "fp4": 16384},
}
_OTHERWISE = {  # tensor cores of an H20 are slowed to a quarter
    "h20-96gb": {"tf32": 512, "bf16": 1024, "fp8": 2048},
    "h20-141gb": {"tf32": 512, "bf16": 1024, "fp8": 2048},
}


def _each_cycle(gpu: Gpu) -> dict[str, float]:
    """Operations that one multiprocessor does in a cycle, by data type."""
    assert gpu.multiprocessors is not None
    return {dtype: peak.flops_per_cycle / gpu.multiprocessors for dtype, peak in gpu.peaks.items()}


@pytest.mark.parametrize("name", GPUS)
def test_peaks_are_whole_operations_a_cycle(name: str) -> None:
    """Rate, clock and multiprocessors come from different lines of a datasheet; this ties them together.

    Powers of two, but for 4 bits of Blackwell Ultra, three times 8. Rates that are published in two digits are 1 % off.
    """
    gpu = read_gpu(name)
    each = _each_cycle(gpu)
    for dtype, operations in each.items():
        odd = 3 if gpu.architecture == "blackwell-ultra" and dtype in ("fp4", "nvfp4") else 1
        assert operations == pytest.approx(odd * 2 ** round(math.log2(operations / odd)), rel=0.01), dtype
    for dtype, operations in _OTHERWISE.get(name, _EACH_CYCLE[gpu.architecture]).items():
        if dtype in each:
            assert each[dtype] == pytest.approx(operations, rel=0.01), dtype
    assert set(each) & set(_OTHERWISE.get(name, _EACH_CYCLE[gpu.architecture]))


@pytest.mark.parametrize("name", GPUS)
def test_simd_lanes_multiply_and_add_once_a_cycle(name: str) -> None:
    """Of NVIDIA GPUs, whose fp32 runs on them; matrix cores of AMD's take fp32, and packed pairs double the lanes."""
    gpu = read_gpu(name)
    each = _each_cycle(gpu)
    assert gpu.simd_lanes is not None
    if gpu.architecture.startswith("cdna"):
        assert each["fp32"] == pytest.approx(4 * gpu.simd_lanes, rel=0.01)
    elif "fp32" in each:
        assert each["fp32"] == pytest.approx(2 * gpu.simd_lanes, rel=0.01)


@pytest.mark.parametrize("name", GPUS)
def test_halving_the_width_of_a_tensor_core_type_doubles_its_rate(name: str) -> None:
    peaks = read_gpu(name).peaks
    pairs: tuple[tuple[Dtype, Dtype, int], ...] = (
        ("tf32", "bf16", 2),
        ("bf16", "fp16", 1),
        ("fp16", "fp8", 2),
        ("fp8", "mxfp8", 1),
        ("fp4", "nvfp4", 1),
    )
    for wide, narrow, times in pairs:
        if wide in peaks and narrow in peaks:
            assert peaks[narrow].flops_per_s == pytest.approx(times * peaks[wide].flops_per_s, rel=0.01)


def test_formats_that_only_some_generations_have() -> None:
    """Transformer Engine wants Blackwell for MXFP8 and NVFP4; CDNA 4 has the former."""
    having = {name: set(read_gpu(name).peaks) & {"mxfp8", "nvfp4"} for name in GPUS}
    assert {name for name, formats in having.items() if "nvfp4" in formats} == {
        "b200-sxm-180gb",
        "b300-sxm-288gb",
        "gb200-186gb",
        "gb300-288gb",
        "rtx-pro-6000",
    }
    assert {name for name, formats in having.items() if formats == {"mxfp8"}} == {"mi355x-288gb"}


@pytest.mark.parametrize("name", GPUS)
def test_links_are_whole_links_of_their_generation(name: str) -> None:
    """25 GB/s each way of NVLink 2 to 4 (A40: 14.1), 50 of NVLink 5; 50, 64 and 76.8 of Infinity Fabric."""
    gpu = read_gpu(name)
    assert (gpu.nvlink_links is None) is (gpu.nvlink_Bps is None)
    of_a_link = {"blackwell": 50e9, "blackwell-ultra": 50e9, "cdna2": 50e9, "cdna3": 64e9, "cdna4": 76.8e9}
    if gpu.nvlink_links and gpu.nvlink_Bps:
        one_Bps = 14.0625e9 if name == "a40-48gb" else of_a_link.get(gpu.architecture, 25e9)
        assert gpu.nvlink_Bps == gpu.nvlink_links * one_Bps


@pytest.mark.parametrize("name", GPUS)
def test_names_say_the_memory_that_the_driver_reports(name: str) -> None:
    gpu = read_gpu(name)
    said = re.search(r"(\d+)GB", gpu.product)
    assert said is not None
    assert gpu.memory_B is not None
    assert 0.98 * int(said[1]) * 1e9 < gpu.memory_B < 1.08 * int(said[1]) * 1e9


def test_a_rack_of_superchips_is_one_node_of_several_hosts() -> None:
    gb200 = read_gpu("gb200")
    assert (gb200.gpus_per_node, gb200.gpus_per_host) == (72, 4)
    assert read_gpu("b200").gpus_per_host is None


@pytest.mark.parametrize("name", GPUS)
def test_clocks_and_powers_lie_in_their_ranges(name: str) -> None:
    gpu = read_gpu(name)
    assert gpu.clock_max_Hz is not None
    low_Hz = gpu.clock_min_Hz or 0.0  # not public of AMD's
    if gpu.clock_min_Hz and gpu.clock_step_Hz:
        steps = (gpu.clock_max_Hz - gpu.clock_min_Hz) / gpu.clock_step_Hz
        assert steps == pytest.approx(round(steps))
    assert all(low_Hz < peak.clock_Hz <= gpu.clock_max_Hz for peak in gpu.peaks.values())
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
    assert message.startswith("gpu: found 'h100-sxm-80'; allowed: a100-pcie-40gb, a100-pcie-80gb, ")
    assert "or the path of a GPU description; did you mean 'h100-sxm-80gb'" in message


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(_description(name="mine")), encoding="utf-8")
    mine = read_gpu(str(path))
    assert mine.name == "mine"
    assert mine.memory_bandwidth_Bps == read_gpu("a40").memory_bandwidth_Bps


def test_a_file_from_before_some_keys_is_read(tmp_path: Path) -> None:
    data = _description()
    for key in ("simd_lanes", "tiles", "memory_cache_B", "gpus_per_host"):
        data.pop(key, None)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    mine = read_gpu(path)
    assert (mine.simd_lanes, mine.tiles, mine.memory_cache_B, mine.gpus_per_host) == (None,) * 4


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
            {"power_limit_min_W": {"value": 400, "source": "log"}},
            "power_limit_min_W: found 400; allowed: at most power_limit_max_W (300)",
        ),
        (
            {"peaks": {"int4": {"flops_per_s": 1e12, "clock_Hz": 1e9, "source": "smi"}}},
            "peaks.int4.[key]: found 'int4'; input should be 'fp64', 'fp32', 'tf32', 'bf16', 'fp16', 'fp8', 'mxfp8', "
            "'fp6', 'fp4' or 'nvfp4'",
        ),
        (
            {"gpus_per_host": {"value": 3, "source": "convention"}},
            "gpus_per_host: found 3; allowed: a divisor of gpus_per_node (4)",
        ),
        (
            {"tiles": {"value": [[128, 0]], "source": "whitepaper"}},
            "tiles.value.0.1: found 0; input should be greater than 0",
        ),
    ],
)
def test_a_wrong_value_is_told_what_is_allowed(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert _refusal(tmp_path, _description(**changes)).startswith(message)
