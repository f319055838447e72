"""What nccl-tests measured (all_reduce_perf, all_gather_perf, reduce_scatter_perf, alltoall_perf, sendrecv_perf).

`size` is of the full tensor, as `network.collectives` counts. Of a size that was measured several times (`-N`,
`-d all`) the median counts. A file may hold several runs, one after another, of one program or of several. Sizes and
what they mean: nccl-tests, doc/PERFORMANCE.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from moemodel.model.core.documents import read_text
from moemodel.model.core.errors import InputError
from moemodel.model.network.collectives import Collective
from moemodel.model.network.nccl_json import is_json, read_json_run
from moemodel.model.network.nccl_run import NcclRun
from moemodel.model.network.nccl_text import scan

_PROGRAMS = {
    "allreduce": Collective.ALL_REDUCE,
    "reducescatter": Collective.REDUCE_SCATTER,
    "allgather": Collective.ALL_GATHER,
    "alltoall": Collective.ALL_TO_ALL,
    "all2all": Collective.ALL_TO_ALL,
    "sendrecv": Collective.SEND_RECV,
}
_ALLOWED = "all_reduce_perf, reduce_scatter_perf, all_gather_perf, alltoall_perf, sendrecv_perf"
# What plans do not use: sums at one rank, uneven messages.
_OTHERS = re.compile(
    r"(?:alltoall|all2all)v(?=perf|$)|(?<!all)reduce(?!scatter)|(?<!reduce)scatter|(?<!all)gather|broadcast|hypercube"
)
_MICRO = 1e-6


@dataclass(frozen=True, kw_only=True)
class NcclTest:
    """One run of one program.

    Attributes:
        source: the file.
        collective: that it measured.
        ranks: that took part.
        nodes: that they lay on: as many as there are host names, unless the test's user says how many.
        nodes_told: whether its user did; hosts may share an NVLink domain (see `cluster.placed`).
        hosts: names of machines in its list of ranks; 0 without a list.
        gpus: what the devices call themselves.
        size_B: of the full tensor, rising.
        time_s: of each; of all_reduce in place, as frameworks do it, of the others out of place.
    """

    source: str
    collective: Collective
    ranks: int
    nodes: int
    nodes_told: bool = True
    hosts: int = 0
    gpus: frozenset[str] = frozenset()
    size_B: tuple[float, ...]
    time_s: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Unused:
    """A run of a program whose collective no plan uses."""

    source: str
    program: str


def read_nccl_test(
    path: Path, *, collective: Collective | None = None, ranks: int | None = None, nodes: int | None = None
) -> NcclTest:
    """The output of one run of an nccl-test.

    Args:
        path: of the file that it was kept in.
        collective, ranks, nodes: where the file does not say.

    Raises:
        InputError: the line that cannot be read, what the file lacks, or that it holds several runs.
    """
    tests, _ = read_nccl_tests(path, collective=collective, ranks=ranks, nodes=nodes)
    if len(tests) > 1:
        raise InputError(f"{path}: found {len(tests)} runs; one is expected")
    return tests[0]


def read_nccl_tests(
    path: Path, *, collective: Collective | None = None, ranks: int | None = None, nodes: int | None = None
) -> tuple[tuple[NcclTest, ...], tuple[Unused, ...]]:
    """The runs whose output a file holds, and those in it that no plan uses.

    Args:
        path: of the file that they were kept in.
        collective, nodes: where the file does not say, or where its user knows better.
        ranks: where the file does not list all of them.

    Raises:
        InputError: the line that cannot be read, what the file lacks, or that it lists other than `ranks`.
    """
    text = read_text(path)
    runs = [read_json_run(text, str(path))] if is_json(text) else scan(text, str(path))
    if len(runs) > 1 and all(len(run.hosts) == 1 for run in runs):
        raise InputError(
            f"{path}: found {len(runs)} runs of one rank each: every process measured itself alone; build nccl-tests "
            "with MPI=1"
        )
    runs = [run for run in runs if run.times_us]
    if not runs:
        raise InputError(f"{path}: no rows of results; a file as nccl-tests print it is expected, header and all")
    tests: list[NcclTest] = []
    unused: list[Unused] = []
    for run in runs:
        which = collective or _collective(run, path, alone=len(runs) == 1)
        if isinstance(which, Collective):
            tests.append(_test(run, which, ranks=ranks, nodes=nodes))
        else:
            unused.append(Unused(source=str(path), program=which))
    if not tests:
        raise InputError(f"{path}: found {', '.join(u.program for u in unused)}; allowed: {_ALLOWED}")
    return tuple(tests), tuple(unused)


def _test(run: NcclRun, collective: Collective, *, ranks: int | None, nodes: int | None) -> NcclTest:
    missing = sorted(set(range(len(run.hosts))) - set(run.hosts))
    if missing and not (ranks and nodes):
        raise InputError(
            f"{run.place}: rank {missing[0]} is not among the {len(run.hosts)} listed; give ranks and nodes"
        )
    listed = len(run.hosts)
    if ranks and listed and not missing and ranks != listed:
        raise InputError(f"{run.place}: found ranks {ranks}; the file lists {listed}: leave ranks out")
    many = ranks or listed
    hosts = len(set(run.hosts.values()))
    among = nodes or hosts
    if many < 2 or among < 1 or many % among:
        raise InputError(
            f"{run.place}: found {many} ranks on {among} nodes; give ranks and nodes of the test: two ranks or more, "
            "equally many on every node"
        )
    chosen = [(size_B, _time_s(collective, run.times_us[size_B])) for size_B in sorted(run.times_us)]
    known = [(size_B, time_s) for size_B, time_s in chosen if time_s is not None]
    if len(known) < 2:
        raise InputError(f"{run.place}: found {len(known)} sizes with a time; two or more are needed: run it with -f 2")
    return NcclTest(
        source=run.source,
        collective=collective,
        ranks=many,
        nodes=among,
        nodes_told=nodes is not None,
        hosts=hosts,
        gpus=frozenset(run.gpus),
        size_B=tuple(size_B for size_B, _ in known),
        time_s=tuple(time_s for _, time_s in known),
    )


def _time_s(collective: Collective, both_us: Sequence[tuple[float | None, float | None]]) -> float | None:
    """As frameworks run it, where that was measured; a time of 0 is none."""
    out_of_place, in_place = (_median([times[part] for times in both_us]) for part in (0, 1))
    wanted, other = (in_place, out_of_place) if collective is Collective.ALL_REDUCE else (out_of_place, in_place)
    time_us = wanted or other
    return time_us * _MICRO if time_us else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value]
    return median(known) if known else None


def _collective(run: NcclRun, path: Path, *, alone: bool) -> Collective | str:
    """By what the test says of itself, else by the name of the file; the program's name where no plan uses it.

    Raises:
        InputError: neither tells.
    """
    said = dict.fromkeys(run.programs)
    if len(said) > 1:
        raise InputError(
            f"{run.place}: found {' and '.join(said)} over one table; keep every test in a file of its own"
        )
    if said:
        program = next(iter(said))
        found = _named(program)
        return next(iter(found)) if len(found) == 1 else program
    found = _named(path.name) if alone else set()
    if len(found) == 1:
        return next(iter(found))
    raise InputError(f"{run.place}: does not say which collective; give its key collective: {', '.join(Collective)}")


def _named(text: str) -> set[Collective]:
    """The collectives that a name holds."""
    plain = re.sub(r"[^a-z0-9]", "", text.lower())
    return set() if _OTHERS.search(plain) else {known for name, known in _PROGRAMS.items() if name in plain}
