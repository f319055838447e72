"""How the NVIDIA GPUs of a machine are connected, read from NVML: NVLinks that are up, what they lead to, PCIe.

What the driver does not say stays None. Line rates: of NVLink by its version (NVIDIA, NVLink and NVSwitch: bandwidth of
a GPU, both directions, over its links), since not every driver gives the speed of a link; of PCIe from generation
and width (PCI Express Base Specification 6.0, section 1.2: transfers a second and lane, 8b/10b up to generation 2,
128b/130b up to 5, flits from 6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, Literal, TypeVar

from moemodel.model.records.profile import Topology, TopologyGpu, TopologyPair
from moemodel.profiler.devices.nvidia import nvml_handle
from moemodel.profiler.devices.nvml import text

_T = TypeVar("_T")

# Generation -> bytes a second of one lane, one direction.
_PCIE_LANE_BPS = {
    1: 2.5e9 / 8 * 8 / 10,
    2: 5e9 / 8 * 8 / 10,
    3: 8e9 / 8 * 128 / 130,
    4: 16e9 / 8 * 128 / 130,
    5: 32e9 / 8 * 128 / 130,
    6: 64e9 / 8 * 242 / 256,
}
_ANCESTORS: dict[int, Literal["internal", "single", "multiple", "hostbridge", "node", "system"]] = {
    0: "internal",
    10: "single",
    20: "multiple",
    30: "hostbridge",
    40: "node",
    50: "system",
}  # nvml.h, nvmlGpuTopologyLevel_t
# NVML_NVLINK_VERSION_... -> bytes a second of one link, one direction.
_NVLINK_BPS = {1: 20e9, 2: 25e9, 3: 25e9, 4: 25e9, 5: 25e9, 6: 25e9, 7: 50e9}
_MOST_LINKS = 18  # of a GPU so far (NVLink 4 and 5), where NVML does not say


def read_topology(nvml: Any, properties: Sequence[Any]) -> Topology:
    """How GPUs are connected.

    Args:
        nvml: the initialised `pynvml` module, or something that behaves like it.
        properties: of each GPU, as torch describes it (`torch.cuda.get_device_properties`), in torch's order.

    Raises:
        DeviceError: NVML does not know one of them.
    """
    handles = [nvml_handle(nvml, each) for each in properties]
    reader = _Reader(nvml)
    return Topology(
        gpus=[reader.gpu(index, handle) for index, handle in enumerate(handles)],
        pairs=[reader.pair(a, b, handles) for a, b in combinations(range(len(handles)), 2)],
    )


class _Reader:
    """NVML's answers, None where it refuses."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml

    def gpu(self, index: int, handle: Any) -> TopologyGpu:
        n = self._nvml
        links = self._links_up(handle)
        generation = self._ask(lambda: int(n.nvmlDeviceGetMaxPcieLinkGeneration(handle)))
        width = self._ask(lambda: int(n.nvmlDeviceGetMaxPcieLinkWidth(handle)))
        lane_Bps = _PCIE_LANE_BPS.get(generation or 0)
        version = self._ask(lambda: int(n.nvmlDeviceGetNvLinkVersion(handle, links[0]))) if links else None
        link_Bps = _NVLINK_BPS.get(version or 0)
        return TopologyGpu(
            index=index,
            name=self._ask(lambda: text(n.nvmlDeviceGetName(handle))) or "unknown",
            uuid=self._ask(lambda: text(n.nvmlDeviceGetUUID(handle))) or "unknown",
            nvlinks=len(links),
            nvlink_version=version,
            nvlink_Bps=link_Bps * len(links) if link_Bps else None,
            nvlink_to=self._other_end(handle, links[0]) if links else None,
            pcie_generation=generation,
            pcie_width=width,
            pcie_Bps=lane_Bps * width if lane_Bps and width else None,
        )

    def pair(self, a: int, b: int, handles: Sequence[Any]) -> TopologyPair:
        n = self._nvml

        def over_nvlink() -> bool:
            status = n.nvmlDeviceGetP2PStatus(handles[a], handles[b], n.NVML_P2P_CAPS_INDEX_NVLINK)
            return bool(status == n.NVML_P2P_STATUS_OK)

        level = self._ask(lambda: int(n.nvmlDeviceGetTopologyCommonAncestor(handles[a], handles[b])))
        return TopologyPair(
            a=a, b=b, nvlink=self._ask(over_nvlink), ancestor=None if level is None else _ANCESTORS.get(level)
        )

    def _links_up(self, handle: Any) -> list[int]:
        n = self._nvml
        most = getattr(n, "NVML_NVLINK_MAX_LINKS", _MOST_LINKS)

        def up(link: int) -> bool:
            return self._ask(lambda: int(n.nvmlDeviceGetNvLinkState(handle, link))) == 1

        return [link for link in range(most) if up(link)]

    def _other_end(self, handle: Any, link: int) -> Literal["switch", "gpu", "other"] | None:
        n = self._nvml
        kind = self._ask(lambda: int(n.nvmlDeviceGetNvLinkRemoteDeviceType(handle, link)))
        if kind is None:
            return None
        known: dict[int, Literal["switch", "gpu"]] = {
            n.NVML_NVLINK_DEVICE_TYPE_SWITCH: "switch",
            n.NVML_NVLINK_DEVICE_TYPE_GPU: "gpu",
        }
        return known.get(kind, "other")

    def _ask(self, question: Callable[[], _T]) -> _T | None:
        try:
            return question()
        except (AttributeError, OSError, ValueError, self._nvml.NVMLError):  # an older nvidia-ml-py; not supported here
            return None
