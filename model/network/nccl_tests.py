"""Reads what nccl-tests print (all_reduce_perf, all_gather_perf, reduce_scatter_perf, alltoall_perf, sendrecv_perf).

    # Collective test starting: all_reduce_perf          (since version 2.16 or so)
    #  Rank  0 Group  0 Pid  1887 on worker-1 device  0 [0x8d] NVIDIA H100 80GB HBM3
    #                                                     out-of-place                     in-place
    #      size      count   type  redop  root    time  algbw  busbw #wrong    time  algbw  busbw #wrong
    #       (B) (elements)                        (us) (GB/s) (GB/s)           (us) (GB/s) (GB/s)
         1048576     262144  float    sum    -1   35.21  29.78  52.12      0   34.70  30.22  52.88      0
    # Out of bounds values : 0 OK
    # Avg bus bandwidth    : 52.5

Columns go by their header, so that older ones (no root, `error`) and longer ones (timestamps) are read too. `size` is
of the full tensor, as `network.collectives` counts. What MPI puts before a line, and what launchers and NCCL say among
them, is skipped; everything else between header and footer must be a row. Layout: nccl-tests, src/util.cu; sizes: its
doc/PERFORMANCE.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moemodel.model.core.documents import read_text
from moemodel.model.core.errors import InputError
from moemodel.model.network.collectives import Collective

_PROGRAMS = {
    "all_reduce": Collective.ALL_REDUCE,
    "reduce_scatter": Collective.REDUCE_SCATTER,
    "all_gather": Collective.ALL_GATHER,
    "alltoall": Collective.ALL_TO_ALL,
    "sendrecv": Collective.SEND_RECV,
}
_MPI = re.compile(r"^(\[\d+,\d+\]<std(out|err)>:|\s*\d+:)\s?")  # before each line, by mpirun or `srun -l`
_RANK = re.compile(r"^#?\s*Rank\s+(\d+)\s+(?:Group\s+(\d+)\s+)?Pid\s+(\d+)\s+on\s+(\S+)\s+device\s+(\d+)")
_PROGRAM = re.compile(r"Collective test (?:starting|concluded):\s*(\S+)")
_FAILED = re.compile(r"Out of bounds values\s*:\s*(\d+)\s+FAILED")
_CHATTER = re.compile(r"NCCL (INFO|WARN|version)")
_FOOTER = re.compile(r"^#?\s*(Out of bounds values|Avg bus bandwidth|Errors with asterisks)")
_MICRO = 1e-6


@dataclass(frozen=True, kw_only=True)
class NcclTest:
    """One run of one program.

    Attributes:
        source: the file.
        collective: that it measured.
        ranks, nodes: that took part.
        size_B: of the full tensor, rising.
        time_s: of each; of all_reduce in place, as frameworks do it, of the others out of place.
    """

    source: str
    collective: Collective
    ranks: int
    nodes: int
    size_B: tuple[float, ...]
    time_s: tuple[float, ...]


@dataclass(kw_only=True)
class _Found:
    """What was read so far."""

    source: str
    programs: list[str] = field(default_factory=list)
    hosts: dict[int, str] = field(default_factory=dict)  # rank -> host
    columns: list[str] | None = None
    rows: dict[float, tuple[float | None, float | None]] = field(default_factory=dict)  # out of place, in place, s
    ended: bool = False

    def error(self, line: int, message: str) -> InputError:
        return InputError(f"{self.source}:{line}: {message}")


def read_nccl_test(
    path: Path, *, collective: Collective | None = None, ranks: int | None = None, nodes: int | None = None
) -> NcclTest:
    """The output of an nccl-test.

    Args:
        path: of the file that it was kept in.
        collective, ranks, nodes: where the file does not say.

    Raises:
        InputError: the line that cannot be read, or what the file lacks.
    """
    found = _scan(read_text(path).splitlines(), str(path))
    if not found.rows:
        raise InputError(f"{path}: no rows of results; a file as nccl-tests print it is expected, header and all")
    which = collective or _collective(found, path)
    ranks = ranks or len(found.hosts)
    nodes = nodes or len(set(found.hosts.values()))
    if ranks < 2 or nodes < 1 or ranks % nodes:
        raise InputError(
            f"{path}: found {ranks} ranks on {nodes} nodes; give ranks and nodes of the test: two ranks or more, "
            "equally many on every node"
        )
    chosen = [(size_B, _time_s(which, *times)) for size_B, times in sorted(found.rows.items())]
    known = [(size_B, time_s) for size_B, time_s in chosen if time_s is not None]
    if len(known) < 2:
        raise InputError(f"{path}: found {len(known)} sizes with a time; two or more are needed: run it with -f 2")
    return NcclTest(
        source=str(path),
        collective=which,
        ranks=ranks,
        nodes=nodes,
        size_B=tuple(size_B for size_B, _ in known),
        time_s=tuple(time_s for _, time_s in known),
    )


def _scan(lines: Iterable[str], source: str) -> _Found:
    found = _Found(source=source)
    for number, raw in enumerate(lines, start=1):
        line = _MPI.sub("", raw).strip()
        if not _said(line, number, found) and found.columns and not found.ended:
            _row(line, number, found)
    return found


def _said(line: str, number: int, found: _Found) -> bool:
    """Whether a line is none of the results; what it says is kept."""
    if rank := _RANK.match(line):
        _rank(int(rank[1]), int(rank[2] or 0), rank[4], number, found)
    elif program := _PROGRAM.search(line):
        found.programs.append(program[1])
    elif failed := _FAILED.search(line):
        raise found.error(number, f"the test found {failed[1]} wrong values: its times say nothing; repair it first")
    elif _FOOTER.match(line):
        found.ended = True
    elif (columns := _header(line)) is not None:
        if "cputime" in columns:
            raise found.error(number, "found times of the CPU; run the test without -C")
        if found.columns and columns != found.columns:
            raise found.error(number, "a second table with other columns; keep every test in a file of its own")
        found.columns = columns
    else:
        return not line or line.startswith("#") or bool(_CHATTER.search(line))
    return True


def _rank(rank: int, group: int, host: str, number: int, found: _Found) -> None:
    if group:
        raise found.error(number, "found several groups; run the test without NCCL_TESTS_SPLIT")
    if rank in found.hosts:
        raise found.error(
            number,
            f"rank {rank} stands twice: every process measured itself alone; build nccl-tests with MPI=1, "
            "and keep every test in a file of its own",
        )
    found.hosts[rank] = host


def _header(line: str) -> list[str] | None:
    """The columns that a line names; None where it names none."""
    words = line.removeprefix("#").split()
    times = {"time", "cputime"} & set(words)
    return words if words[:2] == ["size", "count"] and times and "busbw" in words else None


def _row(line: str, number: int, found: _Found) -> None:
    columns, words = found.columns or [], line.split()
    if len(words) != len(columns):
        raise found.error(number, f"found {len(words)} columns; the header has {len(columns)}: {' '.join(columns)}")
    places = [index for index, name in enumerate(columns) if name == "time"]
    size_B = _number(words[0], "size", number, found)
    if size_B is None:
        raise found.error(number, "size: found N/A; a number is expected")
    wrong = [words[index] for index, name in enumerate(columns) if name in ("#wrong", "error")]
    _check_right(wrong, columns, number, found)
    times = [_number(words[place], "time", number, found) for place in places]
    if size_B > 0:  # a size that does not divide among the ranks is rounded to nothing
        found.rows[size_B] = (times[0], times[1] if len(times) > 1 else None)


def _number(word: str, name: str, number: int, found: _Found) -> float | None:
    """A value, in the unit that it is printed in; None for one that was not measured."""
    if word == "N/A":
        return None
    try:
        value = float(word)
    except ValueError:
        raise found.error(number, f"{name}: found {word!r}; a number is expected") from None
    if not 0 <= value < float("inf"):
        raise found.error(number, f"{name}: found {word}; a number from 0 on is expected")
    return value


def _check_right(wrong: Sequence[str], columns: Sequence[str], number: int, found: _Found) -> None:
    """`#wrong` counts wrong values; the older `error` is their largest difference, which rounding makes."""
    if "#wrong" not in columns:
        return
    for word in wrong:
        if _number(word, "#wrong", number, found):
            raise found.error(number, f"found {word} wrong values: the times say nothing; repair it first")


def _time_s(collective: Collective, out_of_place_us: float | None, in_place_us: float | None) -> float | None:
    """As frameworks run it, where that was measured; a time of 0 is none."""
    wanted, other = out_of_place_us, in_place_us
    if collective is Collective.ALL_REDUCE:
        wanted, other = other, wanted
    time_us = wanted or other
    return time_us * _MICRO if time_us else None


def _collective(found: _Found, path: Path) -> Collective:
    """By what the test says of itself, else by the name of the file.

    Raises:
        InputError: neither tells, or it is one that plans do not use.
    """
    for text in (*found.programs, path.name):
        for program, collective in _PROGRAMS.items():
            if text.startswith(program) or (text == path.name and program in text):
                return collective
        if text != path.name:
            raise InputError(f"{path}: found {text}; allowed: {', '.join(f'{name}_perf' for name in _PROGRAMS)}")
    raise InputError(f"{path}: does not say which collective; give its key collective: {', '.join(Collective)}")
