"""Links between GPUs of a node: from a profile or a data file where they were measured, else from the datasheet.

What a profile of several GPUs has comes first. `links/GPU.json` holds efficiencies and latencies of collectives for
profiles of one, each with its source. What nobody measured takes the datasheet's bandwidth and the efficiencies of the
H100's file, marked as assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from moemodel.calibration.fit.collective_overlap import Estimate, hidden_shares, host_call_s, link_powers
from moemodel.calibration.fit.collective_times import (
    STEP_S,
    HeldOutSizes,
    LinkRows,
    LinkTimes,
    fit_skew,
    fit_times,
    held_out_sizes,
    link_rows,
    mean_log_error,
)
from moemodel.calibration.store.profile_tables import CollectiveTable, OverlapTable
from moemodel.model.core.documents import Strict, read_json
from moemodel.model.hardware.gpu import Gpu
from moemodel.model.network.collectives import Collective
from moemodel.model.network.topology import link_Bps
from moemodel.model.records.calibration import NetworkFit, Parameter
from moemodel.model.records.profile import Topology

_FOLDER = Path(__file__).parents[1] / "links"
_ELSEWHERE = "h100-sxm-80gb"
_UNMEASURED_LOG_ERROR = 0.25  # assumed: an efficiency carried over from another generation of NVLink
_NO_LINK_BPS = 1e9  # a device without links: every collective is slow, and none is asked for


_FEWEST_SIZES = 4  # of a collective, to fit its three parameters and hold some out
_LEAST_ERROR = 0.02  # log; assumed: what times vary by from one day and machine to another


def measured_network(
    gpu: Gpu, collectives: CollectiveTable, overlap: OverlapTable, topology: Topology | None, source: str
) -> tuple[NetworkFit, list[HeldOutSizes]]:
    """The links of a GPU by its profile; what the profile lacks, as `network_fit` has it.

    Args:
        gpu: description.
        collectives, overlap: tables of the profile; both may be empty.
        topology: how its GPUs are connected, where that is known.
        source: of the measurements, for the reader.

    Returns:
        The fit, and for each collective the errors on sizes that were held out.
    """
    carried = network_fit(gpu)
    rows = [each for each in link_rows(collectives) if len(np.unique(each.size_B)) >= _FEWEST_SIZES]
    if not rows:
        return carried, []
    bandwidth = node_bandwidth(gpu, topology)
    fits = {each.collective: fit_times(each, bandwidth.value) for each in rows}
    errors = [held_out_sizes(each, bandwidth.value) for each in rows]
    parameters = {
        **carried.parameters,
        "bandwidth": bandwidth,
        **_times(rows, fits, errors, source),
        **_overlaps(overlap, source),
        **_powers(collectives, source),
        **_skew(collectives, fits, bandwidth.value, source),
        **_host(collectives, source),
    }
    return (
        NetworkFit(
            parameters=parameters,
            curves=[curve for fit in fits.values() for curve in fit.curves],
            log_error=max(_LEAST_ERROR, mean_log_error(errors)),
        ),
        errors,
    )


class _LinkFile(Strict):
    """`links/GPU.json`: parameters of the network but for its bandwidth, and the log error that they leave."""

    parameters: dict[str, Parameter]
    log_error: float


def network_fit(gpu: Gpu) -> NetworkFit:
    """The links of a GPU without a profile of them."""
    own = _FOLDER / f"{gpu.name}.json"
    measured = read_json(own if own.exists() else _FOLDER / f"{_ELSEWHERE}.json", _LinkFile)
    parameters = {**measured.parameters, "bandwidth": _bandwidth(gpu)}
    if own.exists():
        return NetworkFit(parameters=parameters, log_error=measured.log_error)
    carried = {
        name: p.model_copy(update={"origin": "assumed", "source": f"as on {_ELSEWHERE}: {p.source}"})
        for name, p in parameters.items()
        if name != "bandwidth"
    }
    return NetworkFit(parameters={**parameters, **carried}, log_error=_UNMEASURED_LOG_ERROR)


def _bandwidth(gpu: Gpu) -> Parameter:
    """One direction of a GPU's links: NVLink where it has it, else PCIe."""
    if gpu.nvlink_Bps is not None:
        return Parameter.datasheet(gpu.nvlink_Bps, "B/s", gpu.sources.get("nvlink_Bps", gpu.name))
    if gpu.pcie_Bps is not None:
        return Parameter.datasheet(gpu.pcie_Bps, "B/s", gpu.sources.get("pcie_Bps", gpu.name))
    return Parameter.assumed(_NO_LINK_BPS, "B/s", "no link between devices is known")


def node_bandwidth(gpu: Gpu, topology: Topology | None) -> Parameter:
    """The datasheet's bandwidth of what the driver says joins the GPUs; of the best they have, if it says nothing."""
    found = link_Bps(topology) if topology else None
    if found and found[1] == "pcie":
        return Parameter.datasheet(found[0], "B/s", "PCIe generation and width, as the driver gives them")
    return _bandwidth(gpu)


def _times(
    rows: list[LinkRows], fits: Mapping[Collective, LinkTimes], errors: list[HeldOutSizes], source: str
) -> dict[str, Parameter]:
    """Start, step and efficiency of each collective, and means of the first two for others."""
    parameters: dict[str, Parameter] = {}
    for each, error in zip(rows, errors, strict=True):
        fit, groups = fits[each.collective], "/".join(f"{n:.0f}" for n in np.unique(each.ranks))
        spread = error.log_error
        of = f"{source}: {len(each.size_B)} sizes and groups of {groups} ranks"
        parameters[f"efficiency_{each.collective}"] = Parameter.measured(fit.efficiency, "1", of, spread)
        parameters[f"{each.collective}_start_latency"] = Parameter.measured(fit.start_s, "s", of, spread)
        parameters[f"{each.collective}_step_latency"] = (
            Parameter.measured(fit.step_s, "s", of, spread)
            if fit.step_measured
            else Parameter.assumed(fit.step_s, "s", _ONE_GROUP, spread)
        )
    start_s = float(np.mean([fit.start_s for fit in fits.values()]))
    steps_s = [fit.step_s for fit in fits.values() if fit.step_measured]
    parameters["start_latency"] = Parameter.measured(start_s, "s", f"{source}: mean over collectives")
    if steps_s:
        parameters["step_latency"] = Parameter.measured(
            float(np.mean(steps_s)), "s", f"{source}: mean over collectives"
        )
    return parameters


_ONE_GROUP = f"{STEP_S * 1e6:.0f} us: one group alone cannot tell a step from a start"


def _overlaps(table: OverlapTable, source: str) -> dict[str, Parameter]:
    """Shares that hide behind products and behind memory-bound operators, and the mean of the former for others."""
    if not len(table):
        return {}
    parameters: dict[str, Parameter] = {}
    for name, memory_bound, beside in (("overlap", False, "products"), ("memory_overlap", True, "a memory-bound sum")):
        for collective, found in hidden_shares(table, memory_bound=memory_bound).items():
            text = f"{source}: beside {beside}, {found.rows} rows"
            parameters[f"{collective}_{name}"] = Parameter.measured(found.value, "1", text, _relative(found))
    shares = [parameters[name].value for c in Collective if (name := f"{c}_overlap") in parameters]
    if shares:
        # 0.1: assumed, of another collective than those measured
        parameters["overlap"] = Parameter.measured(float(np.mean(shares)), "1", f"{source}: mean over collectives", 0.1)
    return parameters


def _powers(table: CollectiveTable, source: str) -> dict[str, Parameter]:
    """Power above idle while a collective runs, and the mean over collectives."""
    found = link_powers(table)
    parameters = {
        f"{c}_link_power": Parameter.measured(each.value, "W", f"{source}: {each.rows} loads held", _relative(each))
        for c, each in found.items()
    }
    if found:
        mean_W = float(np.mean([each.value for each in found.values()]))
        spread_W = float(np.std([each.value for each in found.values()]))
        parameters["link_power"] = Parameter.measured(
            mean_W, "W", f"{source}: mean over collectives", spread_W / mean_W if mean_W > 0 else None
        )
    return parameters


def _skew(
    table: CollectiveTable, fits: Mapping[Collective, LinkTimes], node_Bps: float, source: str
) -> dict[str, Parameter]:
    even = fits.get(Collective.ALL_TO_ALL)
    found = fit_skew(table, even, node_Bps) if even else None
    return {"skew_share": Parameter.measured(found[0], "1", f"{source}: skewed all-to-alls", found[1])} if found else {}


def _host(table: CollectiveTable, source: str) -> dict[str, Parameter]:
    found = host_call_s(table)
    return {"host_call": Parameter.measured(found.value, "s", f"{source}: queueing", _relative(found))} if found else {}


def _relative(found: Estimate) -> float | None:
    return found.spread / abs(found.value) if found.rows > 1 and found.value else None
