"""What nccl-tests print and write, of several versions, in the logs that launchers keep of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from moemodel.model.core.errors import InputError
from moemodel.model.network.collectives import Collective
from moemodel.model.network.nccl_tests import NcclTest, read_nccl_test, read_nccl_tests

TIMES_US = {1024: (30.0, 25.0), 1 << 20: (90.5, 80.25), 1 << 30: (12000.0, 11000.0)}
IN_PLACE_S = (25e-6, 80.25e-6, 11e-3)
OUT_OF_PLACE_S = (30e-6, 90.5e-6, 12e-3)
HEAD, ONE = 52, 33  # widths of a row up to its first time, and of one measurement


def ranks(nodes: int = 2, each: int = 8, gpu: str = "NVIDIA H100 80GB HBM3", group: str = "Group  0 ") -> list[str]:
    """As `writeDeviceReport` prints them."""
    return [
        f"#  Rank {rank:2d} {group}Pid {4000 + rank:6d} on {f'node-{rank // each}':>10s} device {rank % each:2d} "
        f"[0000:{rank % each:02x}:00] {gpu}"
        for rank in range(nodes * each)
    ]


def table(redop: str = "sum", root: str = "-1", wrong: tuple[str, str] = ("0", "0")) -> list[str]:
    """Header and rows as `writeResultHeader` and `writeBenchmarkLineBody` print them (version 2.18)."""
    title = f"# {'size':>10s}  {'count':>12s}  {'type':>8s}  {'redop':>6s}  {'root':>6s}"
    for _ in range(2):
        title += f"  {'time':>7s}  {'algbw':>6s}  {'busbw':>6s}  {'#wrong':>6s}"
    lines = [f"# {'':66s}out-of-place{'':23s}in-place", title + " "]
    for size_B, times in TIMES_US.items():
        row = f"{size_B:12d}  {size_B // 4:12d}  {'float':>8s}  {redop:>6s}  {root:>6s}"
        for time_us, count in zip(times, wrong, strict=True):
            row += f"  {time_us:7.{2 if time_us < 1e4 else 1}f}  {1.5:6.2f}  {1.4:6.2f}  {count:>6s}"
        lines.append(row)
    return lines


FOOTER = ["# Out of bounds values : 0 OK", "# Avg bus bandwidth    : 52.5 ", "#"]


def printed(program: str | None = "all_reduce_perf", nodes: int = 2, rows: Sequence[str] | None = None) -> list[str]:
    head = ["# nccl-tests version 2.18.3 nccl-headers=23003 nccl-library=23003"] if program else []
    head += [f"# Collective test starting: {program}"] if program else []
    head += ["# nThread 1 nGpus 1 minBytes 1024 maxBytes 1073741824 step: 1024(factor) warmup iters: 1", "#"]
    foot = [f"# Collective test concluded: {program}"] if program else []
    return [*head, "# Using devices", *ranks(nodes), *(table() if rows is None else rows), *FOOTER, *foot]


Keep = Callable[..., Path]


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    """Writes text, or lines of it, into a file."""

    def write(text: str | Sequence[str], name: str = "out.txt") -> Path:
        path = tmp_path / name
        path.write_text(text if isinstance(text, str) else "\n".join(text) + "\n", encoding="utf-8", newline="")
        return path

    return write


def as_expected(test: NcclTest, collective: Collective = Collective.ALL_REDUCE) -> None:
    assert (test.collective, test.ranks, test.nodes) == (collective, 16, 2)
    assert test.size_B == tuple(TIMES_US)
    expected = IN_PLACE_S if collective is Collective.ALL_REDUCE else OUT_OF_PLACE_S
    assert test.time_s == pytest.approx(expected)


# --- launchers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [
        "[0] ",
        "[1,0]<stdout>:",
        "        [1,0]<stdout>:",
        "[1,0]<stdout>: ",
        "[prterun-node-0-9999@1,0]<stdout>: ",
        "0: ",
        " 0: ",
        "node-0: ",
        "[node-0:0] ",
        "2024-05-01T12:00:00.123456789Z stdout F ",
        "2024-05-01T12:00:00.123456789Z ",
        "May  1 12:00:00 node-0 slurmd[123]: ",
        "worker-0 | ",
        "[pod/nccl-launcher-abcde/nccl] ",
        "[1714564800.123] 17 ",
        "\x1b[36mnccl-test-0\x1b[0m ",
        "I0501 12:00:00.000000 12345 run.cc:17] ",
    ],
)
def test_what_launchers_and_logs_put_before_each_line(prefix: str, keep: Keep) -> None:
    as_expected(read_nccl_test(keep([prefix + line for line in printed()])))


def test_a_tag_wherever_the_program_flushed(keep: Keep) -> None:
    """Hydra puts it before every piece of output that it gets."""
    lines = [f"[0] {line}" for line in printed()]
    title = next(i for i, line in enumerate(lines) if "busbw" in line)
    for at in range(title + 1, title + 1 + len(TIMES_US)):
        row = lines[at]
        lines[at] = "[0] " + row[4 : 4 + HEAD] + "[0]" + row[4 + HEAD : 4 + HEAD + ONE] + "[0]" + row[4 + HEAD + ONE :]
    as_expected(read_nccl_test(keep(lines)))


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
def test_ends_of_lines(end: str, keep: Keep) -> None:
    as_expected(read_nccl_test(keep("\ufeff" + end.join(printed()))))


def test_colours_are_no_figures(keep: Keep) -> None:
    as_expected(read_nccl_test(keep([f"\x1b[1;32m{line}\x1b[0m\x1b[K" for line in printed()])))


def test_a_container_log_in_json(keep: Keep) -> None:
    lines = [json.dumps({"log": line + "\n", "stream": "stdout", "time": "2024-05-01T12:00:00Z"}) for line in printed()]
    as_expected(read_nccl_test(keep(lines)))


SAID = [
    "NCCL version 2.28.9+cuda13.0",
    "node-0:21:21 [0] NCCL INFO NET/Plugin: Failed to find ncclCollNetPlugin_v5 symbol.",
    "node-0:21:97 [5] NCCL INFO Channel 00/32 :    0   1   2   3   4   5   6   7   8   9",
    '[2024-05-01 12:00:00] node-0:21:97 [0] init.cc:1234 NCCL WARN Missing "iommu=pt"',
    "AMEM [INFO] amem_nccl.cpp:amem_memPause:335 groupID:170 pid:197781 GPU:3 memUsed: 4042 MB before paused",
    "[node-a:02943] 15 more processes have sent help message help-mca-var.txt / mutually-exclusive-vars",
    "srun: error: node-1: task 9: Killed",
    "Warning: Permanently added 'node-1' (ED25519) to the list of known hosts.",
    "3 4 channels opened",
    "rings: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15",
    "NET/OFI Selected provider is efa, fabric is efa (found 32 nics)",
    "--------------------------------------------------------------------------",
    "",
]


@pytest.mark.parametrize("said", SAID)
def test_what_launchers_plugins_and_nccl_say_between_the_lines(said: str, keep: Keep) -> None:
    noisy = [said]
    for line in printed():
        noisy += [line, said]
    as_expected(read_nccl_test(keep(noisy)))


@pytest.mark.parametrize("cut", [HEAD, HEAD + ONE])
def test_a_row_that_nccl_interrupted(cut: int, keep: Keep) -> None:
    """It begins to speak where the row was flushed, and the row goes on after its line."""
    lines = printed()
    title = next(i for i, line in enumerate(lines) if "busbw" in line)
    row = lines[title + 2]
    lines[title + 2 : title + 3] = [
        row[:cut].rstrip() + "node-0:21:97 [0] NCCL INFO Connected all rings",
        SAID[1],
        row[cut:],
    ]
    as_expected(read_nccl_test(keep(lines)))


def test_a_line_of_nccl_after_a_whole_row(keep: Keep) -> None:
    as_expected(
        read_nccl_test(
            keep([line + "node-0:21:97 [0] NCCL INFO x" if " float " in line else line for line in printed()])
        )
    )


def test_rows_after_the_footer_count(keep: Keep) -> None:
    """Where outputs of several processes were joined, it may come before them."""
    lines = printed()
    as_expected(read_nccl_test(keep([*lines[: -len(TIMES_US) - 4], *FOOTER, *lines[-len(TIMES_US) - 4 :]])))


# --- versions ---------------------------------------------------------------------------------------------------------


def old_table(redop: str | None) -> list[str]:
    """As versions before 2.13 print it: no root, `error`, and for some collectives no redop either (None)."""
    named = "" if redop is None else f"  {'redop':>6s}"
    title = f"# {'size':>10s}  {'count':>12s}  {'type':>6s}{named}"
    title += f"  {'time':>7s}  {'algbw':>6s}  {'busbw':>6s}  {'error':>5s}" * 2
    cell = "" if redop is None else f"  {redop:>6s}"
    rows = []
    for size_B, times in TIMES_US.items():
        row = f"{size_B:12d}  {size_B // 4:12d}  {'float':>6s}{cell}"
        rows.append(row + "".join(f"  {time_us:7.5g}  {1.5:6.2f}  {1.4:6.2f}  {'N/A':>5s}" for time_us in times))
    return [title, *rows]


@pytest.mark.parametrize("redop", ["sum", "", None])
def test_versions_without_a_root_and_blank_cells(redop: str | None, keep: Keep) -> None:
    lines = [*ranks(group=""), *old_table(redop), *FOOTER]
    as_expected(read_nccl_test(keep(lines, "alltoall_16.log")), Collective.ALL_TO_ALL)


@pytest.mark.parametrize(("redop", "root"), [("none", "-1"), ("", "-1"), ("", ""), ("sum", ""), ("avg", "0")])
def test_blank_cells_of_a_newer_version(redop: str, root: str, keep: Keep) -> None:
    rows = table(redop, root, wrong=("0", "N/A"))
    as_expected(read_nccl_test(keep(printed("sendrecv_perf", rows=rows))), Collective.SEND_RECV)


def test_a_measurement_that_was_not_made(keep: Keep) -> None:
    """Out of place alone, in place alone (a replayed trace prints blanks), or `-c 0`, which checks nothing."""
    rows = table(wrong=("N/A", "N/A"))
    as_expected(read_nccl_test(keep(printed(rows=rows))))
    first = [line[:HEAD] if " float " in line else line for line in rows]
    second = [line[:HEAD] + " " * ONE + line[HEAD + ONE :] if " float " in line else line for line in rows]
    third = [rows[0], rows[1][: rows[1].index("#wrong") + 6], *(line[: HEAD + ONE] for line in rows[2:])]
    out_of_place = [*rows[:2], *(line[: HEAD + ONE] for line in rows[2:])]
    for lines in (out_of_place, third):
        assert read_nccl_test(keep(printed(rows=lines))).time_s == pytest.approx(OUT_OF_PLACE_S)
    in_place = read_nccl_test(keep(printed("alltoall_perf", rows=second)))
    assert in_place.time_s == pytest.approx(IN_PLACE_S)
    with pytest.raises(InputError, match=r"out.txt:24: found 5 columns; the header has 13"):
        read_nccl_test(keep(printed(rows=first)))


def test_columns_after_the_measurements(keep: Keep) -> None:
    """Timestamps (`-S`), and percentiles of single iterations (`-I`)."""
    rows = [
        line + (f"{'timestamp':>19s}" if "busbw" in line else "  2026-01-02 03:04:05" if " float " in line else "")
        for line in table()
    ]
    as_expected(read_nccl_test(keep(printed(rows=rows))))
    more, names = f"  {1.1:7.2f}" * 4, "".join(f"  {name:>7s}" for name in ("i_min", "i_max", "i_p99", "i_cv%"))
    each = []
    for line in table():
        extra = names if "busbw" in line else more if " float " in line else ""
        each.append(line[: HEAD + ONE] + extra + line[HEAD + ONE :].rstrip() + extra)
    as_expected(read_nccl_test(keep(printed(rows=each))))


@pytest.mark.parametrize("kind", ["half", "bfloat16", "f8e4m3", "int8", "a_new_one"])
def test_types(kind: str, keep: Keep) -> None:
    as_expected(read_nccl_test(keep([line.replace("   float", f"{kind:>8s}") for line in printed()])))


def test_a_size_that_was_measured_often_counts_by_its_median(keep: Keep) -> None:
    rows = table()
    slower = [line.replace("80.25", "95.25") for line in rows[2:]]
    slow = [line.replace("80.25", "9999.0") for line in rows[2:]]
    as_expected(read_nccl_test(keep(printed(rows=[*rows, *rows[2:], *slow]))))
    assert read_nccl_test(keep(printed(rows=[*rows, *slower]))).time_s[1] == pytest.approx(87.75e-6)


# --- several runs in a file -------------------------------------------------------------------------------------------


def test_runs_one_after_another(keep: Keep) -> None:
    lines = [
        *printed("all_reduce_perf"),
        *printed("broadcast_perf"),
        *printed("alltoall_perf"),
        *printed("alltoallv_perf"),
    ]
    tests, unused = read_nccl_tests(keep(lines))
    for test, collective in zip(tests, (Collective.ALL_REDUCE, Collective.ALL_TO_ALL), strict=True):
        as_expected(test, collective)
    assert [run.program for run in unused] == ["broadcast_perf", "alltoallv_perf"]
    with pytest.raises(InputError, match=r"out.txt: found 2 runs; one is expected"):
        read_nccl_test(keep(lines))
    with pytest.raises(InputError, match=r"out.txt: found broadcast_perf; allowed: all_reduce_perf, "):
        read_nccl_tests(keep(printed("broadcast_perf")))


def test_runs_that_do_not_say_which_they_are(keep: Keep) -> None:
    with pytest.raises(InputError, match=r"out.txt: does not say which collective; give its key collective"):
        read_nccl_tests(keep([*printed(None), *printed(None)]))
    with pytest.raises(InputError, match=r"reduce.txt: does not say which collective"):
        read_nccl_test(keep(printed(None), "reduce.txt"))
    with pytest.raises(InputError, match=r"does not say which collective"):
        read_nccl_test(keep(printed(None), "all_reduce_and_all_gather.txt"))
    as_expected(read_nccl_test(keep(printed(None), "2026-01-02_AllReduce.v100.txt")))
    as_expected(read_nccl_test(keep(printed(None), "all-to-all.log")), Collective.ALL_TO_ALL)


def test_processes_that_each_measured_themselves(keep: Keep) -> None:
    alone = printed(nodes=2)
    alone = [line for line in alone if "Rank" not in line or "Rank  0" in line]
    with pytest.raises(InputError, match=r"found 16 runs of one rank each: .*build nccl-tests with MPI=1"):
        read_nccl_tests(keep(alone * 16))
    with pytest.raises(InputError, match=r"out.txt:\d+: rank 0 stands twice: .*build nccl-tests with MPI=1"):
        read_nccl_tests(keep([line for line in alone for _ in range(2)]))


# --- damage -----------------------------------------------------------------------------------------------------------


def changed(row: str, old: str, new: str) -> list[str]:
    """The output with one row changed."""
    lines = printed()
    at = next(i for i, line in enumerate(lines) if line.lstrip().startswith(row))
    assert old in lines[at]
    lines[at] = lines[at].replace(old, new, 1)
    return lines


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("90.50", "  nan", "time: found nan; a number from 0 on is expected"),
        ("80.25", "  inf", "time: found inf; a number from 0 on is expected"),
        ("80.25", "1e400", "time: found 1e400; a number from 0 on is expected"),
        ("90.50", "90,50", "time: found '90,50'; a number is expected"),
        ("90.50", "-3.00", "time: found -3.00; a number from 0 on is expected"),
        ("1048576  ", "9" * 400 + " ", "size: found 9+; a number from 0 on is expected"),
        ("1048576  ", "nan", "size: found 'nan'; a whole number is expected"),
        ("262144", "2621.5", "count: found '2621.5'; a whole number is expected"),
        ("90.50", "9_0.5", "time: found '9_0.5'; a number is expected"),
        ("  1.40       0    80.25", "    80.25", "found 11 columns; the header has 13"),
        ("    80.25    1.50    1.40       0", "   80.25", "found 10 columns; the header has 13"),
        ("       0    80.25", "       7    80.25", "found 7 wrong values: the times say nothing; repair it first"),
        ("-1 ", "-1 17.5 ", "found 14 columns; the header has 13"),
    ],
)
def test_a_damaged_row_is_named(old: str, new: str, reason: str, keep: Keep) -> None:
    lines = changed("1048576", old, new)
    with pytest.raises(InputError, match=rf"out\.txt:25: {reason}"):
        read_nccl_test(keep(lines))


@pytest.mark.parametrize("said", [8, 32])
def test_ranks_that_the_file_contradicts(said: int, keep: Keep) -> None:
    """Its list is whole: another number would divide the bytes among other ranks without a word."""
    path = keep(printed())
    with pytest.raises(InputError, match=rf"found ranks {said}; the file lists 16: leave ranks out"):
        read_nccl_test(path, ranks=said)
    assert read_nccl_test(path, ranks=16).ranks == 16


def test_a_list_of_ranks_with_a_gap(keep: Keep) -> None:
    lines = [line for line in printed() if "Rank  3" not in line]
    with pytest.raises(InputError, match=r"out.txt: rank 3 is not among the 15 listed; give ranks and nodes"):
        read_nccl_test(keep(lines))
    as_expected(read_nccl_test(keep(lines), ranks=16, nodes=2))


def test_two_names_over_one_table(keep: Keep) -> None:
    lines = printed()
    lines.insert(2, "# Collective test starting: all_gather_perf")
    with pytest.raises(InputError, match=r"found all_reduce_perf and all_gather_perf over one table"):
        read_nccl_test(keep(lines))


@pytest.mark.parametrize(
    "line",
    [
        "x" * 200_000,
        "[1,1]<std" * 20_000,
        "#" + " " * 200_000 + "Rank",
        "Rank " + "1" * 100_000,
        "1 " * 100_000 + "float",
    ],
)
def test_long_lines_take_no_time(line: str, keep: Keep) -> None:
    lines = printed()
    lines.insert(len(lines) - 6, line)
    as_expected(read_nccl_test(keep(lines)))


# --- JSON -------------------------------------------------------------------------------------------------------------


def report(**changes: Any) -> dict[str, Any]:
    """As `-J` writes it: eight GPUs a process, of which each process lists the first."""
    devices = [
        {"rank": 8 * p, "group": 0, "pid": p, "hostname": f"node-{p}", "device": 0, "device_info": "NVIDIA H100"}
        for p in range(2)
    ]

    def part(time_us: float) -> dict[str, Any]:
        return {"time": time_us, "alg_bw": 1.5, "bus_bw": 1.4, "nwrong": 0.0}

    rows = [
        {
            "size": size,
            "count": size // 4,
            "type": "float",
            "redop": "sum",
            "root": "    -1",
            "out_of_place": part(out),
            "in_place": part(inside),
            "actual_iterations": 20,
            "experiment_name": "",
        }
        for size, (out, inside) in TIMES_US.items()
    ]
    return {
        "version": 3,
        "args": ["/opt/nccl-tests/build/all_reduce_perf", "-J", "out.json"],
        "nccl_version": 22809,
        "config": {"nthreads": 1, "ngpus": 8, "devices": devices},
        "results": rows,
        "out_of_bounds": {"count": 0, "okay": "true"},
        **changes,
    }


def test_json(keep: Keep) -> None:
    as_expected(read_nccl_test(keep(json.dumps(report()), "out.json")))
    found = report(args=["alltoall_perf"])
    for row in found["results"]:
        row["in_place"] = None
    as_expected(read_nccl_test(keep(json.dumps(found, indent=1), "out.json")), Collective.ALL_TO_ALL)


def test_json_of_a_draft_of_it(keep: Keep) -> None:
    rows = {
        str(size): {"count": 1, "oop_time": out, "oop_error": 0.0, "ip_time": inside, "ip_error": "N/A"}
        for size, (out, inside) in TIMES_US.items()
    }
    path = keep(json.dumps({"identifier": "nccl-tests structured output", "benchmark": [rows]}), "alltoall_perf.json")
    as_expected(read_nccl_test(path, ranks=16, nodes=2), Collective.ALL_TO_ALL)
    with pytest.raises(InputError, match=r"alltoall_perf.json: found 0 ranks on 0 nodes; give ranks and nodes"):
        read_nccl_test(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", r"out.json:1: not JSON"),
        ('{"results": ' + "[" * 100_000, r"out.json: not JSON that can be read"),
        ('{"x": ' + "9" * 5000 + "}", r"out.json: not JSON that can be read|without the key 'results'"),
        ("{}", r"without the key 'results', which nccl-tests write with -J"),
        ({"results": 5}, r"results: found 5"),
        ({"results": [{"size": -1}]}, r"results.0.size: found -1"),
        (
            {"results": [{"size": 8, "in_place": {"time": "nan"}}]},
            r"results.0.in_place: time: found nan; a number from 0",
        ),
        (
            {"results": [{"size": 8, "in_place": {"time": 5, "nwrong": 3}}]},
            r"results.0.in_place: found 3.0 wrong values",
        ),
        ({"results": [{"size": 8, "in_place": {"cpu_time": 5}}]}, r"found times of the CPU; run the test without -C"),
        ({"out_of_bounds": {"count": 4}}, r"out_of_bounds: the test found 4 wrong values"),
        ({"config": {"ngpus": 10**6, "devices": []}}, r"config.ngpus: found 1000000"),
        ({"config": {"ngpus": 60000, "devices": [{"rank": 0, "hostname": "a"}] * 2}}, r"found 120000 ranks"),
        ({"config": {"devices": [{"rank": 0, "hostname": "a"}] * 2}}, r"config.devices.1: rank 0 stands twice"),
        ({"config": {"devices": [{"rank": 0, "hostname": "a", "group": 1}]}}, r"found several groups"),
    ],
)
def test_damaged_json(text: str | dict[str, Any], reason: str, keep: Keep) -> None:
    with pytest.raises(InputError, match=reason):
        read_nccl_test(keep(text if isinstance(text, str) else json.dumps(report(**text)), "out.json"))
