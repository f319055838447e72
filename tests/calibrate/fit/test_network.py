"""Links: known parameters come back from rows that obey them; protocols that change with size are followed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moemodel.calibration.fit.calibration import calibrate_profile
from moemodel.calibration.fit.collective_overlap import hidden_shares, host_call_s, link_powers, slowdowns
from moemodel.calibration.fit.collective_times import fit_skew, fit_times, held_out_sizes, link_rows, predicted_s
from moemodel.calibration.fit.network import measured_network, network_fit, node_bandwidth
from moemodel.calibration.store.profile_tables import CollectiveTable, OverlapTable
from moemodel.model.hardware.gpu import Gpu, read_gpu
from moemodel.model.network.collectives import Collective, Network
from moemodel.model.records.calibration import NetworkFit
from moemodel.model.records.profile import EXCHANGE, IDLE_LINKS, TABLES, Topology, TopologyGpu, TopologyPair
from moemodel.profiler.collectives.points import link_points, overlap_points, scale_for

NODE_BPS = 450e9
TRUE = Network(
    gpus_per_node=8,
    node_Bps=NODE_BPS,
    nic_Bps=50e9,
    node_latency_s=1.5e-6,
    nic_latency_s=5e-6,
    efficiency={c: 0.6 + 0.05 * i for i, c in enumerate(Collective)},
    start_s=8e-6,
    overlap=0.5,
)
Time = Callable[[Collective, float, int], float]


def formula(collective: Collective, size_B: float, ranks: int) -> float:
    n = np.array([ranks])
    return float(TRUE.time_s(collective, np.array([size_B]), n, TRUE.route(n, np.ones_like(n))).item())


def protocols(collective: Collective, size_B: float, ranks: int) -> float:
    """As NCCL: little messages with little latency and a quarter of the bandwidth, up to where the others win."""
    n = ranks - 1
    slow = 5e-6 + n * 0.7e-6 + size_B / (0.25 * 300e9)
    middle = 11e-6 + n * 1.4e-6 + size_B / (0.6 * 330e9)
    return min(slow, middle, 20e-6 + n * 2.5e-6 + size_B / (330e9 * (1 + 0.1 * list(Collective).index(collective))))


@pytest.fixture(scope="module")
def h100() -> Gpu:
    return read_gpu("h100-sxm-80gb")


def measured(time: Time, ranks: int = 4, noise: float = 0.0, skew_share: float = 1.0) -> pd.DataFrame:
    """Table `collectives` of GPUs whose collectives take that long."""
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for point in link_points(ranks, scale_for(cpu=False, ranks=ranks)):
        row = {"collective": point.collective, "ranks": point.ranks, "nodes": 1, "size_B": point.size_B}
        row |= {"skew": point.skew, "host_time_s": 2.5e-5}
        if point.collective == IDLE_LINKS:
            row |= {"power_W": 120.0, "host_time_s": None}
        else:
            known = Collective.SEND_RECV if point.collective == EXCHANGE else Collective(point.collective)
            bytes_B = point.size_B * (1 + skew_share * (point.skew - 1))
            row["time_s"] = time(known, bytes_B, point.ranks) * np.exp(noise * random.standard_normal())
        if point.held and point.collective != IDLE_LINKS:
            row["held_time_s"] = max(row["time_s"], 2.5e-5)
            row["power_W"] = 120.0 + 150.0 * row["time_s"] / row["held_time_s"]
        rows.append(row)
    return pd.DataFrame(rows, columns=list(TABLES["collectives"]))


def beside(hidden: float, slower: float, memory_slower: float = 1.25) -> pd.DataFrame:
    """Table `overlap` of GPUs where products get `slower` and lose a tenth of their clock beside a collective."""
    rows: list[dict[str, Any]] = []
    for point in overlap_points(2, scale_for(cpu=False, ranks=2)):
        product = point.computation == "gemm"
        factor = slower if product else memory_slower
        collective_slower = (1 - hidden) / (1 - 1 / factor)
        rows.append(
            {
                "computation": point.computation,
                "m": point.m,
                "n": point.n,
                "k": point.k,
                "collective": point.collective,
                "ranks": 2,
                "size_B": point.size_B,
                "priority": 0,
                "computation_time_s": 1e-3,
                "collective_time_s": 2e-3,
                "together_computation_time_s": 1e-3 * factor / (0.9 if product else 1.0),
                "together_collective_time_s": 2e-3 * collective_slower,
                "computation_clock_Hz": 1.5e9,
                "together_clock_Hz": 1.35e9,
            }
        )
    return pd.DataFrame(rows, columns=list(TABLES["overlap"]))


# --- times ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("collective", list(Collective))
def test_known_parameters_come_back(collective: Collective) -> None:
    rows = next(r for r in link_rows(CollectiveTable.of(measured(formula))) if r.collective is collective)
    fit = fit_times(rows, NODE_BPS)
    assert fit.efficiency == pytest.approx(TRUE.efficiency[collective], rel=1e-3)
    if collective is not Collective.SEND_RECV:  # which is measured between two
        assert fit.step_measured
        assert (fit.start_s, fit.step_s) == (pytest.approx(8e-6, rel=1e-3), pytest.approx(1.5e-6, rel=1e-3))
    assert max(abs(ratio) for curve in fit.curves for ratio in curve.log_ratio) < 1e-4


def test_one_group_cannot_tell_a_step_from_a_start() -> None:
    rows = next(
        r for r in link_rows(CollectiveTable.of(measured(formula, ranks=2))) if r.collective is Collective.ALL_REDUCE
    )
    fit = fit_times(rows, NODE_BPS)
    assert not fit.step_measured
    assert fit.start_s + 2 * fit.step_s == pytest.approx(8e-6 + 2 * 1.5e-6, rel=1e-3)


@pytest.mark.parametrize("collective", list(Collective))
def test_held_out_sizes_of_changing_protocols(collective: Collective) -> None:
    rows = next(r for r in link_rows(CollectiveTable.of(measured(protocols, noise=0.01))) if r.collective is collective)
    found = held_out_sizes(rows, NODE_BPS)
    assert len(found.size_B) == 18 * len(np.unique(rows.ranks))
    assert 0.001 < np.abs(np.expm1(found.log_ratio)).mean() < 0.06
    fit = fit_times(rows, NODE_BPS)
    assert predicted_s(fit, rows.size_B, rows.ranks, NODE_BPS) == pytest.approx(rows.time_s, rel=1e-4)


def test_a_size_that_was_held_out_is_not_seen() -> None:
    """A reading that is wrong twofold shows in its own error and moves its neighbours' alone."""
    table = measured(formula, ranks=2)
    odd = (table["collective"] == "all_reduce") & (table["size_B"] == 4 << 20)
    table.loc[odd, "time_s"] *= 2
    found = held_out_sizes(
        next(r for r in link_rows(CollectiveTable.of(table)) if r.collective is Collective.ALL_REDUCE), NODE_BPS
    )
    error = dict(zip(found.size_B, found.log_ratio, strict=True))
    assert error[4 << 20] == pytest.approx(-np.log(2), abs=0.1)
    assert abs(error[256 << 20]) < 0.1


def test_repeated_readings_count_by_their_median() -> None:
    table = measured(formula, ranks=2)
    wild = table.assign(time_s=table["time_s"] * 100)
    once, thrice = (
        link_rows(CollectiveTable.of(table)),
        link_rows(CollectiveTable.of(pd.concat([table, wild, table], ignore_index=True))),
    )
    assert [r.time_s.tolist() for r in thrice] == [r.time_s.tolist() for r in once]


def test_messages_among_more_than_two_are_exchanges() -> None:
    table = measured(formula)
    table.loc[table["collective"] == EXCHANGE, "time_s"] *= 2
    rows = next(r for r in link_rows(CollectiveTable.of(table)) if r.collective is Collective.SEND_RECV)
    alone_s = np.array([formula(Collective.SEND_RECV, size_B, 2) for size_B in rows.size_B])
    assert set(rows.ranks) == {2, 4}
    assert rows.time_s == pytest.approx(np.where(rows.ranks == 2, 1, 2) * alone_s)


@pytest.mark.parametrize("share", [0.6, 1.0])
def test_the_share_of_a_skew_comes_back(share: float) -> None:
    table = measured(formula, skew_share=share)
    even = fit_times(
        next(r for r in link_rows(CollectiveTable.of(table)) if r.collective is Collective.ALL_TO_ALL), NODE_BPS
    )
    found = fit_skew(CollectiveTable.of(table), even, NODE_BPS)
    assert found == (pytest.approx(share, abs=0.01), pytest.approx(0, abs=0.01))
    assert fit_skew(CollectiveTable.of(table[table["skew"] == 1]), even, NODE_BPS) is None


# --- power, host, overlap ------------------------------------------------------------------------------------------


def test_power_is_that_while_it_runs() -> None:
    found = link_powers(CollectiveTable.of(measured(formula)))
    assert set(found) == set(Collective)
    assert [each.value for each in found.values()] == pytest.approx([150.0] * 5)
    unknown = measured(formula)
    unknown["power_W"] = np.nan
    assert link_powers(CollectiveTable.of(unknown)) == {}


def test_the_host_queues_a_collective_in_its_time() -> None:
    found = host_call_s(CollectiveTable.of(measured(formula)))
    assert found is not None
    assert found.value == pytest.approx(2.5e-5)
    assert host_call_s(CollectiveTable.of(measured(formula).assign(host_time_s=np.nan))) is None


def test_what_hides_is_reckoned_in_cycles_of_products() -> None:
    table = beside(hidden=0.7, slower=1.2)
    products = slowdowns(OverlapTable.of(table[table["computation"] == "gemm"]))
    assert products.computation == pytest.approx(1.2)
    for memory_bound in (False, True):
        shares = hidden_shares(OverlapTable.of(table), memory_bound=memory_bound)
        assert set(shares) == set(Collective)
        assert [share.value for share in shares.values()] == pytest.approx([0.7] * 5)


def test_without_a_clock_seconds_count() -> None:
    table = beside(hidden=0.7, slower=1.2).assign(together_clock_Hz=np.nan)
    assert slowdowns(OverlapTable.of(table)).computation[0] == pytest.approx(1.2 / 0.9)


def test_nothing_hides_less_than_nothing_or_more_than_all() -> None:
    table = beside(hidden=0.7, slower=1.2).assign(together_collective_time_s=1.0)
    assert {share.value for share in hidden_shares(OverlapTable.of(table), memory_bound=False).values()} == {0.0}
    table = beside(hidden=0.7, slower=1.2).assign(together_computation_time_s=0.5e-3)
    assert {share.value for share in hidden_shares(OverlapTable.of(table), memory_bound=False).values()} == {1.0}


# --- the whole fit -------------------------------------------------------------------------------------------------


def tables(collectives: pd.DataFrame, overlap: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {"collectives": collectives, "overlap": overlap}


def _typed(collectives: pd.DataFrame, overlap: pd.DataFrame) -> tuple[CollectiveTable, OverlapTable]:
    return CollectiveTable.of(collectives), OverlapTable.of(overlap)


def empty(name: str) -> pd.DataFrame:
    return pd.DataFrame(columns=list(TABLES[name]))


def test_a_profile_of_one_gpu_has_the_links_of_the_data_file(h100: Gpu) -> None:
    fit, errors = measured_network(h100, *_typed(empty("collectives"), empty("overlap")), None, "a test")
    assert fit == network_fit(h100)
    assert errors == []
    assert fit.curves == []


def test_a_profile_of_several_has_its_own(h100: Gpu) -> None:
    fit, errors = measured_network(h100, *_typed(measured(protocols), beside(0.7, 1.2)), None, "a test")
    values = {name: p.value for name, p in fit.parameters.items()}
    assert values["overlap"] == pytest.approx(0.7)
    assert values["all_gather_memory_overlap"] == pytest.approx(0.7)
    assert values["link_power"] == values["all_to_all_link_power"] == pytest.approx(150.0)
    assert values["host_call"] == pytest.approx(2.5e-5)
    assert values["bandwidth"] == h100.nvlink_Bps
    assert {fit.parameters[f"{c}_start_latency"].origin for c in Collective} == {"measured"}
    assert "2/4 ranks" in fit.parameters["efficiency_all_reduce"].source
    assert {error.collective for error in errors} == set(Collective)
    assert fit.log_error == pytest.approx(0.02, abs=0.06)
    assert NetworkFit.model_validate_json(fit.model_dump_json()) == fit


def test_without_overlap_and_power_the_data_file_says_them(h100: Gpu) -> None:
    collectives = measured(formula).assign(power_W=np.nan)
    fit, _ = measured_network(h100, *_typed(collectives, empty("overlap")), None, "a test")
    carried = network_fit(h100).parameters
    for name in ("overlap", "link_power"):
        assert fit.parameters[name] == carried[name]


def test_too_few_sizes_are_no_measurement(h100: Gpu) -> None:
    few = measured(formula)
    few = few[few["size_B"].isin([1 << 10, 1 << 20, 1 << 30])]
    assert measured_network(h100, *_typed(few, empty("overlap")), None, "a test") == (network_fit(h100), [])


def test_gpus_that_talk_over_pcie(h100: Gpu) -> None:
    gpus = [TopologyGpu(index=i, name="H100", uuid=str(i), nvlinks=0, pcie_Bps=63e9) for i in range(2)]
    pcie = Topology(gpus=gpus, pairs=[TopologyPair(a=0, b=1, nvlink=False)])
    assert node_bandwidth(h100, pcie).value == 63e9
    assert node_bandwidth(h100, None).value == h100.nvlink_Bps


def test_a_profile_of_collectives_alone_adds_its_links(
    small_profile: Path, write_profile: Callable[..., Path], tmp_path: Path
) -> None:
    links = write_profile(tmp_path / "links", tables(measured(protocols), beside(0.7, 1.2)))
    alone, _ = calibrate_profile(small_profile)
    both, _ = calibrate_profile(small_profile, links)
    assert alone.network == network_fit(read_gpu("h100-sxm-80gb"))
    assert both.network.parameters["overlap"].value == pytest.approx(0.7)
    assert both.network.parameters["efficiency_all_reduce"].source.startswith("4 x NVIDIA H100 80GB HBM3, ")
    assert both.provenance == alone.provenance  # one GPU's operators, as before
    assert both.operators == alone.operators


def test_odd_tables_of_collectives_are_fitted_all_the_same(h100: Gpu) -> None:
    """Groups that are all alike, sizes that were measured as messages and as exchanges, power that never changes."""
    collectives, overlap = measured(protocols), beside(0.7, 1.2)
    for odd in (
        collectives.assign(ranks=4),
        collectives.assign(ranks=1),
        collectives.assign(power_W=120.0),
        collectives.assign(power_W=120.0 - 10.0 * (collectives["collective"] != IDLE_LINKS)),
        collectives.assign(collective=collectives["collective"].sample(frac=1, random_state=1).to_numpy()),
    ):
        fit, _ = measured_network(h100, *_typed(odd, overlap), None, "a test")
        assert all(np.isfinite(parameter.value) for parameter in fit.parameters.values())
        assert fit.parameters["link_power"].value >= 0
