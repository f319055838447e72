"""Two profiles of one GPU, in whatever folders: the second does not begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from moemodel.model.core.errors import DeviceError
from moemodel.profiler.clocks.claim import claimed
from moemodel.profiler.devices.address import Address
from moemodel.profiler.run import profile
from moemodel.profiler.simulated.instruments import SimulatedSettings, open_simulated


def test_a_gpu_is_measured_by_one_process(tmp_path: Path) -> None:
    gpu = f"sim:h100?state={tmp_path / 'state.json'}"
    device = open_simulated(gpu, {"h100": "h100-sxm-80gb"})
    with (
        claimed("H100", SimulatedSettings(device).address),
        pytest.raises(DeviceError, match=r"another process computes on this GPU: a `moemodel profile` of .* is under"),
    ):
        profile(gpu, tmp_path / "second", sections=[])
    assert not (tmp_path / "second").exists()
    assert profile(gpu, tmp_path / "second", sections=[]).rows["operators"] == 0


def test_other_gpus_are_free() -> None:
    one, other = (Address(opener="module:open", argument=uuid) for uuid in ("GPU-test-1", "GPU-test-2"))
    with claimed("one", one), claimed("other", other), claimed("a processor", None), claimed("another", None):
        pass
