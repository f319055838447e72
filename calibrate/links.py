"""Links between GPUs of a node: from a data file where they were measured, else from the datasheet.

`links/GPU.json` holds efficiencies and latencies of collectives, each with its source. What nobody measured takes the
datasheet's bandwidth and the efficiencies of the H100's file, marked as assumed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moemodel.model.calibration import NetworkFit, Parameter
from moemodel.model.gpu import Gpu

_FOLDER = Path(__file__).parent / "links"
_ELSEWHERE = "h100-sxm-80gb"
_UNMEASURED_LOG_ERROR = 0.25  # assumed: an efficiency carried over from another generation of NVLink
_NO_LINK_BPS = 1e9  # a device without links: every collective is slow, and none is asked for


def network_fit(gpu: Gpu) -> NetworkFit:
    """The links of a GPU."""
    own = _FOLDER / f"{gpu.name}.json"
    data = _read(own if own.exists() else _FOLDER / f"{_ELSEWHERE}.json")
    parameters = {name: Parameter(**entry) for name, entry in data["parameters"].items()}
    parameters["bandwidth"] = _bandwidth(gpu)
    if own.exists():
        return NetworkFit(parameters=parameters, log_error=data["log_error"])
    carried = {
        name: p.model_copy(update={"origin": "assumed", "source": f"as on {_ELSEWHERE}: {p.source}"})
        for name, p in parameters.items()
        if name != "bandwidth"
    }
    return NetworkFit(parameters={**parameters, **carried}, log_error=_UNMEASURED_LOG_ERROR)


def _read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def _bandwidth(gpu: Gpu) -> Parameter:
    """One direction of a GPU's links: NVLink where it has it, else PCIe."""
    if gpu.nvlink_Bps is not None:
        return Parameter(
            value=gpu.nvlink_Bps, unit="B/s", origin="datasheet", source=gpu.sources.get("nvlink_Bps", gpu.name)
        )
    if gpu.pcie_Bps is not None:
        return Parameter(
            value=gpu.pcie_Bps, unit="B/s", origin="datasheet", source=gpu.sources.get("pcie_Bps", gpu.name)
        )
    return Parameter(value=_NO_LINK_BPS, unit="B/s", origin="assumed", source="no link between devices is known")
