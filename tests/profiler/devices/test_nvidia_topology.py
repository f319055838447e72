"""How GPUs are connected, read from a fake driver, and as a graph."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moemodel.model.core.errors import DeviceError
from moemodel.model.network.topology import graph_of, link_Bps
from moemodel.model.records.profile import Topology
from moemodel.profiler.devices.base import LINK_TRAFFIC, NoLinks
from moemodel.profiler.devices.gpm import GpmCounters
from moemodel.profiler.devices.nvidia import NvidiaDevice
from moemodel.profiler.devices.nvidia_topology import read_topology

LINKS = 18  # of an H100 SXM
MIB = 1 << 20


@pytest.fixture
def machine(fake_nvml: Any, fake_gpu: Any) -> Any:
    """Builds an NVML of several H100; a name in `refuses` of a GPU raises."""

    class Linked(type(fake_nvml)):  # type: ignore[misc]
        NVML_P2P_CAPS_INDEX_NVLINK = 2
        NVML_P2P_STATUS_OK = 0
        NVML_NVLINK_DEVICE_TYPE_GPU = 0
        NVML_NVLINK_DEVICE_TYPE_SWITCH = 2
        NVML_NVLINK_MAX_LINKS = 36
        NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC = 61
        NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC = 60
        remote = 2
        ancestor = 50

        def nvmlDeviceGetNvLinkState(self, gpu: Any, link: int) -> int:
            self._check(gpu, "nvlink")
            if link >= LINKS:
                raise self.NVMLError(3)
            return 1

        def nvmlDeviceGetNvLinkVersion(self, gpu: Any, _link: int) -> int:
            self._check(gpu, "version")
            return 6

        def nvmlDeviceGetNvLinkRemoteDeviceType(self, gpu: Any, _link: int) -> int:
            self._check(gpu, "remote")
            return int(self.remote)

        def nvmlDeviceGetMaxPcieLinkGeneration(self, gpu: Any) -> int:
            self._check(gpu, "pcie")
            return 5

        def nvmlDeviceGetMaxPcieLinkWidth(self, gpu: Any) -> int:
            self._check(gpu, "pcie")
            return 16

        def nvmlDeviceGetP2PStatus(self, a: Any, b: Any, _index: int) -> int:
            return 5 if {"nvlink"} & (a.refuses | b.refuses) else 0

        def nvmlDeviceGetTopologyCommonAncestor(self, a: Any, _b: Any) -> int:
            self._check(a, "ancestor")
            return int(self.ancestor)

        def nvmlGpmMetricsGet(self, request: Any) -> Any:
            for metric in request.metrics[: request.numMetrics]:
                metric.value = {61: 1000.0, 60: 500.0}[metric.metricId]
            return request

    def build(count: int, refuses: set[str] | None = None, **answers: int) -> tuple[Any, list[Any]]:
        gpus = [type(fake_gpu)(uuid=f"GPU-{i}", refuses=refuses or set()) for i in range(count)]
        nvml = Linked(*gpus)
        for name, value in answers.items():
            setattr(nvml, name, value)
        return nvml, [SimpleNamespace(uuid=f"GPU-{i}", name=gpu.name) for i, gpu in enumerate(gpus)]

    return build


def test_an_nvswitch_machine(machine: Any) -> None:
    topology = read_topology(*machine(4))
    assert [gpu.index for gpu in topology.gpus] == [0, 1, 2, 3]
    gpu = topology.gpus[0]
    assert (gpu.nvlinks, gpu.nvlink_to, gpu.nvlink_version) == (18, "switch", 6)
    assert gpu.nvlink_Bps == pytest.approx(450e9)
    assert gpu.pcie_Bps == pytest.approx(16 * 32e9 / 8 * 128 / 130)
    assert len(topology.pairs) == 6
    assert all(pair.nvlink and pair.ancestor == "system" for pair in topology.pairs)
    assert Topology.model_validate_json(topology.model_dump_json()) == topology


def test_the_graph_of_an_nvswitch_machine_has_two_ways(machine: Any) -> None:
    topology = read_topology(*machine(4))
    graph = graph_of(topology)
    for gpu in range(4):
        assert {kind for *_, kind in graph.edges(("gpu", gpu), data="kind")} == {"nvlink", "pcie"}
    assert graph.edges[("gpu", 0), ("nvswitch", 0)]["bandwidth_Bps"] == pytest.approx(450e9)
    assert link_Bps(topology) == (pytest.approx(450e9), "nvlink")


def test_links_from_gpu_to_gpu_are_shared_out(machine: Any) -> None:
    topology = read_topology(*machine(4, remote=0))
    graph = graph_of(topology)
    assert ("nvswitch", 0) not in graph
    assert graph.edges[("gpu", 0), ("gpu", 3)]["bandwidth_Bps"] == pytest.approx(150e9)


def test_a_machine_without_nvlink_talks_over_pcie(machine: Any) -> None:
    topology = read_topology(*machine(2, {"nvlink"}, ancestor=10))
    assert [(gpu.nvlinks, gpu.nvlink_Bps, gpu.nvlink_to) for gpu in topology.gpus] == [(0, None, None)] * 2
    assert topology.pairs[0].nvlink is False
    graph = graph_of(topology)
    assert set(graph.neighbors(("gpu", 1))) == {("pcie", 0)} == set(graph.neighbors(("gpu", 0)))
    assert link_Bps(topology) == (pytest.approx(63.0e9, rel=1e-3), "pcie")


def test_what_the_driver_does_not_say_stays_open(machine: Any) -> None:
    refused = {"version", "remote", "pcie", "ancestor"}
    topology = read_topology(*machine(2, refused))
    gpu = topology.gpus[0]
    assert (gpu.nvlinks, gpu.nvlink_version, gpu.nvlink_to, gpu.nvlink_Bps, gpu.pcie_Bps) == (
        18,
        None,
        None,
        None,
        None,
    )
    assert topology.pairs[0].ancestor is None
    assert link_Bps(topology) is None


def test_a_gpu_that_nvml_does_not_know(machine: Any) -> None:
    nvml, properties = machine(2)
    with pytest.raises(DeviceError, match="NVML does not know the GPU that torch uses"):
        read_topology(nvml, [*properties, SimpleNamespace(uuid="GPU-9", name="another")])


def test_traffic_is_counted_in_bytes(machine: Any) -> None:
    nvml, _ = machine(1)
    meter = NvidiaDevice(torch.device("cuda", 0), nvml, nvml.gpus[0], 132).link_traffic()
    assert isinstance(meter, GpmCounters)
    assert meter.end() == dict.fromkeys(LINK_TRAFFIC)  # never begun
    meter.begin()
    assert meter.end() == {"sent_Bps": 1000 * MIB, "received_Bps": 500 * MIB}


@pytest.mark.parametrize("refused", ["gpm", "gpm sample"])
def test_traffic_that_cannot_be_read_is_none(machine: Any, refused: str) -> None:
    nvml, _ = machine(1, {refused})
    meter = NvidiaDevice(torch.device("cuda", 0), nvml, nvml.gpus[0], 132).link_traffic()
    meter.begin()
    assert meter.end() == dict.fromkeys(LINK_TRAFFIC)


def test_a_library_that_knows_no_nvlink_metrics_counts_none(fake_nvml: Any, fake_gpu: Any) -> None:
    meter = NvidiaDevice(torch.device("cuda", 0), fake_nvml, fake_gpu, 132).link_traffic()
    assert isinstance(meter, NoLinks)
    meter.begin()
    assert meter.end() == dict.fromkeys(LINK_TRAFFIC)


def test_windows_of_activity_and_traffic_may_overlap(machine: Any) -> None:
    """Each has samples of its own, so that one's first sample stays what it was."""
    nvml, _ = machine(1)
    device = NvidiaDevice(torch.device("cuda", 0), nvml, nvml.gpus[0], 132)
    activity, traffic = device.activity(), device.link_traffic()
    assert isinstance(activity, GpmCounters)
    assert isinstance(traffic, GpmCounters)
    assert not {*map(id, activity._samples)} & {*map(id, traffic._samples)}
