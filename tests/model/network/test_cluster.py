"""Clusters that are described: by datasheet, and by what nccl-tests print."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.core.documents import parse_yaml
from moemodel.model.core.errors import InputError
from moemodel.model.hardware.gpu import Gpu, read_gpu
from moemodel.model.hardware.link import Link
from moemodel.model.network.cluster import (
    Internode,
    cluster_network,
    notes_on_tests,
    placed,
    read_internode,
    with_tests,
)
from moemodel.model.network.collectives import Collective, Network
from moemodel.model.network.nccl_tests import NcclTest, read_nccl_test
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.outcome import outcome

NODE = Network(
    gpus_per_node=8,
    node_Bps=400e9,
    nic_Bps=50e9,
    node_latency_s=2e-6,
    nic_latency_s=5e-6,
    efficiency=dict.fromkeys(Collective, 0.8),
    start_s=1e-5,
    overlap=0.5,
)
SIZES_B = [1 << i for i in range(10, 31, 2)]
TIMED = "     time   algbw   busbw #wrong"
TITLE = f"#       size         count      type   redop    root{TIMED}{TIMED}"
UNITS = "#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)"
FOOTER = ["# Out of bounds values : 0 OK", "# Avg bus bandwidth    : 12.3456", "#"]


def ranks_said(nodes: int, each: int) -> list[str]:
    return [
        f"#  Rank {rank:2} Group  0 Pid {4000 + rank:6} on node-{rank // each} device {rank % each:2} [0x1b] an H100"
        for rank in range(nodes * each)
    ]


def row(size_B: int, out_us: float | str, in_us: float | str, wrong: str = "0") -> str:
    shape = f"{size_B:12}  {size_B // 4:12}     float     sum      -1"
    return f"{shape}  {out_us:>7}  1.00  1.00  {wrong}  {in_us:>7}  1.00  1.00  N/A"


def printed(rows: Sequence[str], nodes: int = 2, each: int = 8, program: str | None = "all_reduce_perf") -> list[str]:
    """A whole output, as nccl-tests 2.17 print it."""
    said = [f"# Collective test starting: {program}"] if program else []
    return [
        "# nccl-tests version 2.17.6 nccl-headers=22807 nccl-library=22807",
        *said,
        "# nThread 1 nGpus 1 minBytes 8 maxBytes 8589934592 step: 2(factor) warmup iters: 5 iters: 20 agg iters: 1",
        "#",
        "# Using devices",
        *ranks_said(nodes, each),
        "NCCL version 2.28.9+cuda13.0",
        "#",
        "#                                                              out-of-place                       in-place",
        TITLE,
        UNITS,
        *rows,
        *FOOTER,
    ]


Keep = Callable[..., Path]


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    """Writes lines into a file, as a user keeps them."""

    def write(lines: Sequence[str], name: str = "out.txt") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


GOOD = [row(1024, 30.0, 25.0), row(1 << 20, 90.5, "80.25"), row(1 << 30, "1.2e+04", 11000)]


# --- what nccl-tests print -----------------------------------------------------------------------------------------


def test_a_test_as_it_is_printed(keep: Keep) -> None:
    test = read_nccl_test(keep(printed(GOOD)))
    assert (test.collective, test.ranks, test.nodes) == (Collective.ALL_REDUCE, 16, 2)
    assert test.size_B == (1024, 1 << 20, 1 << 30)
    assert test.time_s == pytest.approx((25e-6, 80.25e-6, 11e-3))  # in place, as frameworks do it


@pytest.mark.parametrize(
    ("program", "collective"),
    [
        ("reduce_scatter_perf", Collective.REDUCE_SCATTER),
        ("all_gather_perf_mpi", Collective.ALL_GATHER),
        ("alltoall_perf", Collective.ALL_TO_ALL),
        ("sendrecv_perf", Collective.SEND_RECV),
    ],
)
def test_other_programs_count_out_of_place(keep: Keep, program: str, collective: Collective) -> None:
    test = read_nccl_test(keep(printed(GOOD, program=program)))
    assert test.collective is collective
    assert test.time_s[0] == pytest.approx(30e-6)


def test_what_was_not_measured_in_place_is_taken_out_of_place(keep: Keep) -> None:
    test = read_nccl_test(keep(printed([row(1024, 30.0, "N/A"), row(2048, 31.0, 0.0)])))
    assert test.time_s == pytest.approx((30e-6, 31e-6))


def test_what_mpi_and_nccl_say_in_between_is_skipped(keep: Keep) -> None:
    noisy = ["Warning: Permanently added 'node-1' to the list of known hosts.", *printed(GOOD)]
    noisy.insert(len(noisy) - 4, "node-0:21:21 [0] NCCL INFO NET/Plugin: Failed to find ncclCollNetPlugin_v5 symbol.")
    quiet = read_nccl_test(keep(printed(GOOD)))
    tagged = [f"[1,0]<stdout>:{line}" for line in noisy] + ["all done, bye"]
    assert read_nccl_test(keep(noisy)) == quiet == read_nccl_test(keep(tagged))


def test_older_versions_have_fewer_columns_and_do_not_say_which(keep: Keep) -> None:
    title = "#       size         count    type   redop     time   algbw   busbw  error     time   algbw   busbw  error"
    lines = [
        "# Using devices",
        *(f"#   Rank {rank:2} Pid {rank} on host device {rank:2} [0x00] Tesla V100-SXM2-16GB" for rank in range(4)),
        title,
        "        1024           256   float     sum    20.00    0.05    0.08  1e-07    19.00    0.05    0.08  1e-07",
        "     1048576        262144   float     sum    50.00   20.97   31.45  1e-07    49.00   21.40   32.10  1e-07",
    ]
    test = read_nccl_test(keep(lines, "all_reduce_4.txt"))
    assert (test.collective, test.ranks, test.nodes) == (Collective.ALL_REDUCE, 4, 1)
    assert test.time_s == pytest.approx((19e-6, 49e-6))
    with pytest.raises(
        InputError, match=r"out.txt: does not say which collective; give its key collective: all_reduce, "
    ):
        read_nccl_test(keep(lines))
    assert read_nccl_test(keep(lines), collective=Collective.ALL_GATHER).collective is Collective.ALL_GATHER


def test_sizes_that_came_to_nothing_are_left_out(keep: Keep) -> None:
    test = read_nccl_test(keep(printed([row(0, 5.7, 5.5), row(0, 5.9, 5.5), *GOOD])))
    assert test.size_B[0] == 1024


def line_of(lines: Sequence[str], text: str) -> int:
    return 1 + next(index for index, line in enumerate(lines) if text in line)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (
            "        2048  512  float  sum  -1  31.0",
            r"found 6 columns; the header has 13: size count type redop root time",
        ),
        (row(2048, "fast", 31.0), r"time: found 'fast'; a number is expected"),
        (row(2048, -3.0, 31.0), r"time: found -3.0; a number from 0 on is expected"),
        (row(2048, 31.0, 31.0, wrong="17"), r"found 17 wrong values: the times say nothing; repair it first"),
        ("# Out of bounds values : 4 FAILED", r"the test found 4 wrong values: its times say nothing"),
        (
            "#  Rank  3 Group  0 Pid 99 on node-1 device  3 [0x1b] H100",
            r"rank 3 stands twice: .*build nccl-tests with MPI=1",
        ),
        ("#  Rank  0 Group  1 Pid 99 on node-1 device  3 [0x1b] H100", r"found several groups; .*NCCL_TESTS_SPLIT"),
        (TITLE + " stamp", r"a second table with other columns; keep every test in a file of its own"),
        (TITLE.replace(" time", " cputime"), r"found times of the CPU; run the test without -C"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_line(keep: Keep, bad: str, reason: str) -> None:
    lines = printed([GOOD[0], bad, *GOOD[1:]])
    with pytest.raises(InputError, match=rf"out\.txt:{line_of(lines, bad)}: {reason}"):
        read_nccl_test(keep(lines))


def test_files_that_are_no_tests(keep: Keep) -> None:
    with pytest.raises(InputError, match=r"out.txt: no rows of results; a file as nccl-tests print it is expected"):
        read_nccl_test(keep(["hello"]))
    with pytest.raises(InputError, match=r"found broadcast_perf; allowed: all_reduce_perf, reduce_scatter_perf, "):
        read_nccl_test(keep(printed(GOOD, program="broadcast_perf")))
    with pytest.raises(InputError, match=r"found 1 sizes with a time; two or more are needed: run it with -f 2"):
        read_nccl_test(keep(printed(GOOD[:1])))
    lines = [line for line in printed(GOOD) if "Rank" not in line]
    with pytest.raises(InputError, match=r"found 0 ranks on 0 nodes; give ranks and nodes of the test"):
        read_nccl_test(keep(lines))
    assert read_nccl_test(keep(lines), ranks=16, nodes=2).ranks == 16


# --- what follows from them ----------------------------------------------------------------------------------------


def would_measure(network: Network, collective: Collective, ranks: int, nodes: int) -> NcclTest:
    """What a test would measure on such a network."""
    return NcclTest(
        source="a test",
        collective=collective,
        ranks=ranks,
        nodes=nodes,
        size_B=tuple(float(size_B) for size_B in SIZES_B),
        time_s=tuple(
            took(network, collective, ranks, size_B, 8 * nodes // ranks if nodes > 1 else 1) for size_B in SIZES_B
        ),
    )


def took(network: Network, collective: Collective, ranks: int, size_B: float, stride: int = 1) -> float:
    n, s = np.array([ranks]), np.array([stride])
    return float(network.time_s(collective, np.array([size_B]), n, network.route(n, s)).item())


def other(efficiency: float) -> Network:
    """Such a cluster with slower links and starts."""
    return Network(
        gpus_per_node=8,
        node_Bps=400e9,
        nic_Bps=50e9,
        node_latency_s=2e-6,
        nic_latency_s=5e-6,
        efficiency=dict.fromkeys(Collective, efficiency),
        start_s=4e-5,
        overlap=0.5,
    )


@pytest.mark.parametrize("collective", list(Collective))
@pytest.mark.parametrize(("ranks", "nodes"), [(16, 2), (32, 4), (2, 2)])
def test_a_test_between_nodes_comes_back_there_and_changes_nothing_inside(
    collective: Collective, ranks: int, nodes: int
) -> None:
    test = would_measure(other(0.4), collective, ranks, nodes)
    found = with_tests(NODE, [test])
    assert found.internode_efficiency[collective] == pytest.approx(0.4)
    assert found.internode_launch_latencies_s[collective] == pytest.approx(4e-5)
    stride = 8 * nodes // ranks
    for size_B in (1e3, 3e6, 2e9):
        expected = took(other(0.4), collective, ranks, size_B, stride)
        assert took(found, collective, ranks, size_B, stride) == pytest.approx(expected, rel=1e-3)
        assert took(found, collective, 8, size_B) == took(NODE, collective, 8, size_B)
        for unchanged in set(Collective) - {collective}:
            assert took(found, unchanged, 16, size_B) == took(NODE, unchanged, 16, size_B)


@pytest.mark.parametrize("collective", list(Collective))
def test_a_test_inside_a_node_comes_back_and_changes_nothing_between(collective: Collective) -> None:
    found = with_tests(NODE, [would_measure(other(0.4), collective, 8, 1)])
    for size_B in (1e3, 3e6, 2e9):
        assert took(found, collective, 8, size_B) == pytest.approx(took(other(0.4), collective, 8, size_B), rel=1e-3)
        assert took(found, collective, 16, size_B) == pytest.approx(took(NODE, collective, 16, size_B))


def test_sizes_in_between_follow_the_test_and_not_a_line() -> None:
    straight = would_measure(NODE, Collective.ALL_REDUCE, 16, 2)
    bent = tuple(t * (1.5 if 1e5 < s < 1e7 else 1.0) for s, t in zip(straight.size_B, straight.time_s, strict=True))
    test = NcclTest(**{**straight.__dict__, "time_s": bent})
    found = with_tests(NODE, [test])
    for size_B, time_s in zip(test.size_B, bent, strict=True):
        assert took(found, Collective.ALL_REDUCE, 16, size_B) == pytest.approx(time_s)


def test_several_tests_each_hold_for_their_ranks() -> None:
    two, four = (
        would_measure(other(0.4), Collective.ALL_REDUCE, 16, 2),
        would_measure(other(0.2), Collective.ALL_REDUCE, 32, 4),
    )
    found = with_tests(NODE, [two, four])
    for ranks, efficiency in ((16, 0.4), (32, 0.2)):
        expected = took(other(efficiency), Collective.ALL_REDUCE, ranks, 1 << 28)
        assert took(found, Collective.ALL_REDUCE, ranks, 1 << 28) == pytest.approx(expected, rel=1e-3)


def test_a_test_on_larger_nodes_than_there_are() -> None:
    with pytest.raises(InputError, match="a test: ran on 16 GPUs a node; the cluster has 8"):
        with_tests(NODE, [would_measure(NODE, Collective.ALL_REDUCE, 16, 1)])


# --- cluster files -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return shipped("h100-sxm-80gb")


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    return read_gpu("h100-sxm-80gb")


def test_a_name_and_a_bandwidth_mean_what_they_did() -> None:
    link = Link(bandwidth_GBps=25, latency_us=3)
    assert read_internode(link) == Internode(link=link)
    assert read_internode("infiniband-ndr").link.bandwidth_GBps == 50
    with pytest.raises(InputError, match=r"found 'token-ring'; .*a bandwidth, or the path of a cluster file \(.yaml\)"):
        read_internode("token-ring")


def test_nics_are_shared_among_the_gpus_of_a_node(keep: Keep) -> None:
    file = keep(["nodes: 4", "gpus_per_node: 8", "nics_per_node: 2", "nic: infiniband-ndr"], "cluster.yaml")
    found = read_internode(str(file))
    assert found.link.bandwidth_GBps == pytest.approx(12.5)
    assert (found.nodes, found.gpus_per_node, found.tested) == (4, 8, False)


def test_tests_lie_beside_the_file(keep: Keep, calibration: Calibration, gpu: Gpu) -> None:
    keep(printed(GOOD), "reduce.txt")
    keep([line for line in printed(GOOD, program=None) if "Rank" not in line], "gather.log")
    file = keep(
        [
            "nic: {bandwidth_GBps: 40, latency_us: 4, source: a datasheet}",
            "nccl_tests:",
            "  - reduce.txt",
            "  - {file: gather.log, collective: all_gather, ranks: 16, nodes: 2}",
        ],
        "cluster.yml",
    )
    internode = read_internode(str(file))
    assert internode.tested
    assert [test.collective for test in internode.tests] == [Collective.ALL_REDUCE, Collective.ALL_GATHER]
    network, _ = cluster_network(calibration, gpu, 16, None, internode)
    assert network.nic_Bps == 40e9
    assert took(network, Collective.ALL_REDUCE, 16, 1 << 30) == pytest.approx(11e-3)
    assert took(network, Collective.ALL_GATHER, 16, 1 << 20) == pytest.approx(90.5e-6)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            ["racks: 3"],
            r"cluster.yaml:1: unknown key 'racks'; allowed here: gpus_per_host, gpus_per_node, nccl_tests, nic, nics",
        ),
        (["nic: rdma"], r"cluster.yaml: nic: found 'rdma'; allowed: efa-p5, .*or a bandwidth"),
        (["nodes: 0"], r"cluster.yaml:1: nodes: found 0; input should be greater than 0"),
        (
            ["gpus_per_host: 4"],
            r"cluster.yaml:1: gpus_per_host: found 4; gpus_per_node must be given, and be a multiple",
        ),
        (["gpus_per_node: 6", "gpus_per_host: 4"], r"cluster.yaml:2: gpus_per_host: found 4; gpus_per_node must be"),
        (["nics_per_node: 4"], r"cluster.yaml:1: nics_per_node: needs gpus_per_node, among which they are shared"),
        (["nccl_tests: [nowhere.txt]"], r"nowhere.txt: no such file"),
    ],
)
def test_malformed_files(keep: Keep, lines: list[str], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read_internode(str(keep(lines, "cluster.yaml")))


def test_a_plan_for_more_or_other_nodes_than_there_are(keep: Keep, calibration: Calibration, gpu: Gpu) -> None:
    internode = read_internode(str(keep(["nodes: 2", "gpus_per_node: 4"], "cluster.yaml")))
    assert cluster_network(calibration, gpu, 8, None, internode)[0].gpus_per_node == 4
    with pytest.raises(InputError, match=r"cluster.gpus: found 16; .*cluster.yaml has 8 GPUs"):
        cluster_network(calibration, gpu, 16, None, internode)
    with pytest.raises(
        InputError, match=r"cluster.gpus_per_node: found 8; .*cluster.yaml has 4: leave one of them out"
    ):
        cluster_network(calibration, gpu, 8, 8, internode)


PLAN = """
name: two-nodes
architecture: opt-350m
sequence_length: 1024
global_batch: 64
micro_batch: 4
cluster: {{gpu: h100-sxm-80gb, gpus: 16, internode: {internode}}}
parallel: {{dp: 16}}
"""


def test_a_plan_on_a_tested_cluster_says_what_its_links_rest_on(keep: Keep, calibration: Calibration) -> None:
    keep(printed([row(8, 4000.0, 4000.0), row(1 << 30, 90000.0, 90000.0)]), "reduce.txt")
    file = keep(["nccl_tests: [reduce.txt]"], "cluster.yaml")
    by_test = outcome(parse_yaml(PLAN.format(internode=file), Plan, "plan.yaml"), calibration)
    by_datasheet = outcome(parse_yaml(PLAN.format(internode="infiniband-ndr"), Plan, "plan.yaml"), calibration)
    assert any(f"all_reduce by the nccl-tests of {file}; others from 50 GB/s" in note for note in by_test.notes)
    assert any(note.startswith("Links between nodes are not measured: 50 GB/s") for note in by_datasheet.notes)
    assert (
        by_test.step_time_s.value > by_datasheet.step_time_s.value + 4e-3
    )  # what a reduction takes there, however small


def test_a_sweep_in_two_files_is_one_test(keep: Keep, calibration: Calibration, gpu: Gpu) -> None:
    """In whichever order the files are named."""
    rows = [*GOOD, row(1 << 31, "2.4e+04", 22000)]
    for name, some in (("whole", rows), ("small", rows[:2]), ("large", rows[2:])):
        keep(printed(some), f"{name}.txt")
    took_s = []
    for number, files in enumerate((["whole.txt"], ["small.txt", "large.txt"], ["large.txt", "small.txt"])):
        head = ["nic: {bandwidth_GBps: 40, latency_us: 4, source: a datasheet}", "nccl_tests:"]
        file = keep([*head, *(f"  - {name}" for name in files)], f"cluster-{number}.yml")
        network, _ = cluster_network(calibration, gpu, 16, None, read_internode(str(file)))
        took_s.append([took(network, Collective.ALL_REDUCE, 16, size_B) for size_B in (1 << 10, 1 << 20, 1 << 30)])
    assert took_s[1] == pytest.approx(took_s[0])
    assert took_s[2] == pytest.approx(took_s[0])


# --- hosts and nodes -------------------------------------------------------------------------------------------------


def listed(hosts: int, each: int, gpu: str = "an H100", nodes: int | None = None) -> NcclTest:
    """A test that lists its ranks' hosts, at 700 GB/s of bus bandwidth."""
    ranks = hosts * each
    time_s = tuple(2e-5 + 2 * (ranks - 1) / ranks * size_B / 700e9 for size_B in SIZES_B)
    return NcclTest(
        source="a test",
        collective=Collective.ALL_REDUCE,
        ranks=ranks,
        nodes=nodes or hosts,
        nodes_told=nodes is not None,
        hosts=hosts,
        gpus=frozenset({gpu}),
        size_B=tuple(map(float, SIZES_B)),
        time_s=time_s,
    )


@pytest.mark.parametrize(
    ("test", "gpus_per_node", "gpus_per_host", "nodes"),
    [
        (listed(2, 8), 8, None, 2),
        (listed(2, 1), 8, None, 2),  # one GPU of each host
        (listed(8, 4), 32, None, 1),  # no host has 32
        (listed(8, 4, "NVIDIA GB200"), 32, None, 1),
        (listed(2, 4, "NVIDIA GB200"), 8, None, 1),
        (listed(2, 4, "NVIDIA GB200"), 4, None, 2),  # without NVLink between hosts
        (listed(8, 1, "NVIDIA GB300"), 72, None, 1),
        (listed(36, 4, "NVIDIA GB200"), 72, None, 2),
        (listed(8, 4), 8, 4, 4),
        (listed(2, 4), 8, 4, 1),
        (listed(2, 4), 8, 8, 2),
        (listed(8, 4, nodes=8), 32, None, 8),
        (listed(8, 1, nodes=1), 8, None, 1),  # containers of one host
    ],
)
def test_the_nodes_that_hosts_make_up(
    test: NcclTest, gpus_per_node: int, gpus_per_host: int | None, nodes: int
) -> None:
    internode = Internode(link=Link(bandwidth_GBps=50, latency_us=5), gpus_per_host=gpus_per_host, tests=(test,))
    once = placed(internode, gpus_per_node)
    assert once.tests[0].nodes == nodes
    assert placed(once, gpus_per_node) == once


def test_hosts_that_fill_no_whole_domain() -> None:
    internode = Internode(link=Link(bandwidth_GBps=50, latency_us=5), tests=(listed(10, 4),))
    with pytest.raises(
        InputError, match="a test: found 40 ranks on 10 hosts, where a node of 32 GPUs has several hosts"
    ):
        placed(internode, 32)


@pytest.mark.parametrize("by", ["the names of the hosts", "nodes of the test"])
def test_a_test_of_a_domain_is_used_for_it(by: str, calibration: Calibration, gpu: Gpu) -> None:
    """What it measured comes back, and is less than the same five times slower."""
    took_s = []
    for slower in (1, 5):
        test = listed(8, 4, nodes=None if by == "the names of the hosts" else 1)
        test = replace(test, time_s=tuple(slower * time_s for time_s in test.time_s))
        internode = Internode(link=Link(bandwidth_GBps=50, latency_us=5), gpus_per_node=32, tests=(test,))
        network, _ = cluster_network(calibration, gpu, 32, None, internode)
        took_s.append(took(network, Collective.ALL_REDUCE, 32, SIZES_B[-1]))
        assert took_s[-1] == pytest.approx(test.time_s[-1])
    assert took_s[1] == pytest.approx(5 * took_s[0])


def test_what_a_test_was_not_used_for_is_said(calibration: Calibration, gpu: Gpu) -> None:
    def said(test: NcclTest, gpus: int, gpus_per_node: int = 8) -> str:
        as_read = Internode(link=Link(bandwidth_GBps=50, latency_us=5), source="c.yaml", tests=(test,))
        network, internode = cluster_network(calibration, gpu, gpus, gpus_per_node, as_read)
        return " ".join(notes_on_tests(internode, network, gpus))

    assert "taken as one node of 32 GPUs; give the test's nodes" in said(listed(8, 4), 32, 32)
    assert "measured between nodes, and not used: the plan's GPUs are one node of 8" in said(listed(8, 1), 8)
    assert "moved the bytes of all_reduce at 14 times the 50 GB/s that a GPU has between nodes" in said(
        listed(2, 1, nodes=2), 16
    )
    assert said(listed(1, 8), 8) == said(listed(2, 8), 16) == said(listed(8, 1, nodes=1), 8) == ""


def test_a_run_that_no_plan_uses_is_said(keep: Keep, calibration: Calibration) -> None:
    keep([*printed(GOOD), *printed(GOOD, program="broadcast_perf")], "both.txt")
    file = keep(["nccl_tests: [both.txt]"], "cluster.yaml")
    notes = outcome(parse_yaml(PLAN.format(internode=file), Plan, "plan.yaml"), calibration).notes
    assert any("both.txt: broadcast_perf is not used: no plan has that collective" in note for note in notes)


def test_what_was_measured_inside_a_node_is_said(keep: Keep, calibration: Calibration) -> None:
    keep(printed(GOOD, nodes=1), "inside.txt")
    file = keep(["nccl_tests: [inside.txt]"], "cluster.yaml")
    notes = outcome(parse_yaml(PLAN.format(internode=file), Plan, "plan.yaml"), calibration).notes
    assert any(note.startswith(f"Links inside a node: all_reduce by the nccl-tests of {file}") for note in notes)
