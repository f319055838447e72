"""Reads the text that nccl-tests print, in whatever else a log holds.

    # Collective test starting: all_reduce_perf          (since version 2.17)
    #  Rank  0 Group  0 Pid  1887 on worker-1 device  0 [0000:8d:00] NVIDIA H100 80GB HBM3
    #                                                     out-of-place                     in-place
    #      size      count   type  redop  root    time  algbw  busbw #wrong    time  algbw  busbw #wrong
    #       (B) (elements)                        (us) (GB/s) (GB/s)           (us) (GB/s) (GB/s)
         1048576     262144  float    sum    -1   35.21  29.78  52.12      0   34.70  30.22  52.88      0
    # Out of bounds values : 0 OK
    # Avg bus bandwidth    : 52.5

What a launcher puts before a line, or into it where the program flushed, is cut off; lines of launchers, plugins and
NCCL itself are skipped, wherever they stand. A row is known by its size, count and type, so it may follow anything, and
the cells after them go by the header: `redop` and `root` may be missing there or be blank, and so may one of the two
measurements. What begins like a row, or has as many figures as one, must be one. Layout: nccl-tests, src/util.cu, and
src/all_reduce.cu of versions before 2.13.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from moemodel.model.core.errors import InputError
from moemodel.model.network.nccl_run import FIGURE, NOT_MEASURED, NcclRun, check_right, reading

_ESCAPE = re.compile(r"\x1b(?:\[[0-9;:?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")  # colours and titles
_TAG = re.compile(r"\[[^\[\]\s]{0,100}\](?:<\w{1,20}>:?)?")  # "[0]" of Hydra, "[1,0]<stdout>:" of Open MPI
_RANK = re.compile(r"Rank\s+([0-9]{1,9})\s+(?:Group\s+([0-9]{1,9})\s+)?Pid\s+[0-9]+\s+on\s+(\S+)\s+device\s+[0-9]+(.*)")
_PROGRAM = re.compile(r"Collective test (?:starting|concluded):\s*(\S+)")
_BEGINNING = re.compile(r"# nccl-tests version|Collective test starting:|# nThread\s+[0-9]")
_FAILED = re.compile(r"Out of bounds values\s*:\s*([0-9]+)\s+FAILED")
_CHATTER = re.compile(r"NCCL (?:INFO|WARN|TRACE|version)")
_FLOATS = ("half", "float", "double", "bfloat16", "f8e4m3", "f8e5m2", "fp8_e4m3", "fp8_e5m2")
_TYPES = frozenset(f"{sign}{size}" for sign in ("int", "uint") for size in (8, 32, 64)).union(_FLOATS, ("char", "int"))
_CELLS = ("algbw", "busbw", "#wrong", "error", "i_min", "i_max", "i_p99", "i_cv%")  # that follow a time
_FEWEST_FIGURES, _FEWEST_POINTS = 6, 2  # of a line that should be a row: it has 8, 6 with decimals; a list of ranks 0
_WORD = re.compile(r"\S+")
_WHOLE = re.compile(r"[0-9]+")
_GLUED = re.compile(r"(-?[0-9]+(?:\.[0-9]+)?)[A-Za-z_/\[(].*")  # a line of NCCL that began where a row's cell ended


@dataclass(frozen=True, kw_only=True)
class _Header:
    """The columns, and where their times end, counted from the end of `count`, beneath which rows are aligned."""

    columns: tuple[str, ...]
    ends: tuple[int, ...] = field(compare=False)

    @cached_property
    def heads(self) -> tuple[str, ...]:
        """Between the type and the first time: redop, root, where the version has them."""
        return self.columns[3 : self.columns.index("time")]

    @cached_property
    def measurements(self) -> int:
        """Out of place and in place, or one alone."""
        return self.columns.count("time")

    @cached_property
    def cells(self) -> tuple[str, ...]:
        """Of one measurement."""
        first = self.columns.index("time")
        after = next((i for i in range(first + 1, len(self.columns)) if self.columns[i] not in _CELLS), None)
        return self.columns[first:after]

    @cached_property
    def tail(self) -> int:
        """Words after the measurements; a timestamp is a date and a time."""
        rest = self.columns[self.columns.index("time") + self.measurements * len(self.cells) :]
        return len(rest) + rest.count("timestamp")


@dataclass(kw_only=True)
class _Row:
    """A row as far as it was printed: cells after the type, and where the first time ended."""

    line: int
    size: str
    count_end: int
    words: list[tuple[str, int]] = field(default_factory=list)


@dataclass(kw_only=True)
class _Scan:
    source: str
    runs: list[NcclRun] = field(default_factory=list)
    header: _Header | None = None
    row: _Row | None = None  # that was begun

    @property
    def run(self) -> NcclRun:
        if not self.runs:
            self.begin(1)
        return self.runs[-1]

    def begin(self, line: int) -> None:
        self.runs.append(NcclRun(source=self.source, place=f"{self.source}:{line}" if self.runs else self.source))
        self.header = None

    def error(self, line: int, message: str) -> InputError:
        return InputError(f"{self.source}:{line}: {message}")


def scan(text: str, source: str) -> list[NcclRun]:
    """The runs whose output stands in a text, in its order; those without results, too.

    Raises:
        InputError: the line that cannot be read.
    """
    found = _Scan(source=source)
    for number, line in _lines(text):
        if found.row is not None and _continues(line, found):
            continue
        if not _said(line, number, found):
            _result(line, number, found)
    _close(found)
    return found.runs


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Every line and its number, without colours and without the tags of launchers."""
    for number, raw in enumerate(text.splitlines(), start=1):
        line = _unwrapped(raw.removeprefix("\ufeff")) if '"log":' in raw else raw.removeprefix("\ufeff")
        yield number, _TAG.sub("", _ESCAPE.sub("", line))


def _unwrapped(line: str) -> str:
    """What a line of a container's log in JSON holds; a line that is none as it is."""
    try:
        held = json.loads(line)
    except (ValueError, RecursionError):
        return line
    return str(held["log"]).rstrip("\n") if isinstance(held, dict) and "log" in held else line


def _said(line: str, number: int, found: _Scan) -> bool:
    """Whether a line is none of the results; what it says is kept."""
    if _BEGINNING.search(line) and (found.run.hosts or found.header):
        _close(found)
        found.begin(number)
    if rank := _RANK.search(line):
        if int(rank[2] or 0):
            raise found.error(number, "found several groups; run the test without NCCL_TESTS_SPLIT")
        found.run.add_rank(int(rank[1]), rank[3], rank[4].strip(), f"{found.source}:{number}")
    elif program := _PROGRAM.search(line):
        found.run.programs.append(program[1])
    elif failed := _FAILED.search(line):
        raise found.error(number, f"the test found {failed[1]} wrong values: its times say nothing; repair it first")
    elif (header := _header(line)) is not None:
        if "cputime" in header.columns:
            raise found.error(number, "found times of the CPU; run the test without -C")
        if found.header and header != found.header:
            raise found.error(number, "a second table with other columns; keep every test in a file of its own")
        found.header = header
    else:
        return False
    return True


def _header(line: str) -> _Header | None:
    """The columns that a line names; None where it names none."""
    if "busbw" not in line or "time" not in line:
        return None
    words = [(word[0], word.end()) for word in _WORD.finditer(line.replace("#size", "#  size"))]
    names = [word for word, _ in words]
    first = next((i for i, pair in enumerate(pairwise(names)) if pair == ("size", "count")), None)
    if first is None or not {"time", "cputime"} & set(names[first:]) or "busbw" not in names[first:]:
        return None
    count_end = words[first + 1][1]
    columns = names[first:]
    if columns[2:3] != ["type"]:
        return None
    return _Header(
        columns=tuple(columns),
        ends=tuple(end - count_end for word, end in words[first:] if word in ("time", "cputime")),
    )


def _result(line: str, number: int, found: _Scan) -> None:
    """Read a row, if a line is one."""
    header = found.header
    words = [(word[0], word.end()) for word in _WORD.finditer(line)]
    start = _row_start(words)
    if start is None:
        if header and _looks_like_a_row(words) and not _CHATTER.search(line):
            raise _damaged(words, number, found, header)
        return
    size, cells = words[start][0], words[start + 3 :]
    if header is None or not cells:
        return
    _close(found)  # one that was begun and never completed
    row = _Row(line=number, size=size, count_end=words[start + 1][1])
    known = words[start + 2][0] in _TYPES
    if not known and sum(_is_figure(word) for word, _ in cells) < len(header.cells):
        return  # a launcher that counts something
    if not _filled(row, cells, header):
        raise _columns(len(words) - start, number, found, header)
    if _complete(row, header):
        _keep(row, found, header)
    else:
        found.row = row


def _row_start(words: Sequence[tuple[str, int]]) -> int | None:
    """Where two whole numbers and a type follow one another, if they do, and not in a comment."""
    for index in range(len(words) - 2):
        (size, _), (count, _), (kind, _) = words[index : index + 3]
        if size.startswith("#"):
            return None
        if _WHOLE.fullmatch(size) and _WHOLE.fullmatch(count) and _is_name(kind):
            return index
    return None


def _looks_like_a_row(words: Sequence[tuple[str, int]]) -> bool:
    figures = [word for word, _ in words if _is_figure(word)]
    return len(figures) >= _FEWEST_FIGURES and sum("." in word for word in figures) >= _FEWEST_POINTS


def _is_figure(word: str) -> bool:
    return word == NOT_MEASURED or bool(FIGURE.fullmatch(word))


def _most(header: _Header) -> int:
    return len(header.heads) + header.measurements * len(header.cells) + header.tail


def _filled(row: _Row, words: Sequence[tuple[str, int]], header: _Header) -> bool:
    """Take the words of a row up to where something else begins; whether a row may end there."""
    if len(words) == _most(header):
        row.words = list(words)
        return True
    rest = iter(words)
    for word, end in rest:
        is_redop = not row.words and "redop" in header.heads and _is_name(word)
        is_tail = len(row.words) >= _most(header) - header.tail
        if is_redop or _is_figure(word) or (is_tail and len(row.words) < _most(header)):
            row.words.append((word, end))
        elif glued := _GLUED.fullmatch(word):
            row.words.append((glued[1], end - len(word) + len(glued[1])))
            return True
        else:
            return _complete(row, header) or _begins_another_line(word)
    return len(row.words) < _most(header)


def _is_name(word: str) -> bool:
    return word[0].isalpha() and not _is_figure(word)


def _begins_another_line(word: str) -> bool:
    """Whether a launcher or plugin may have begun to speak here; else it is a cell that is damaged."""
    return ":" in word or "/" in word or word in ("NCCL", "WARN", "INFO", "WARNING", "ERROR")


def _continues(line: str, found: _Scan) -> bool:
    """Whether a line is the rest of a row that something interrupted."""
    row, header = found.row, found.header
    words = [(word[0], word.end()) for word in _WORD.finditer(line)]
    if row is None or header is None or not words or not all(_is_figure(word) for word, _ in words):
        return False
    if len(row.words) + len(words) > _most(header):
        return False
    row.words += words
    if _complete(row, header):
        _keep(row, found, header)
        found.row = None
    return True


def _complete(row: _Row, header: _Header) -> bool:
    return _heads(row, header) + header.measurements * len(header.cells) + header.tail == len(row.words)


def _heads(row: _Row, header: _Header) -> int:
    """How many cells stand before the first time: redop where a word is there, root unless it is blank, all others."""
    has_redop = bool(row.words) and _is_name(row.words[0][0])
    heads = len(header.heads) - ("redop" in header.heads and not has_redop)
    blank_root = heads - 1 + header.measurements * len(header.cells) + header.tail
    return heads - ("root" in header.heads and len(row.words) == blank_root)


def _close(found: _Scan) -> None:
    """End a row that was begun: one of the two measurements is a row, too.

    Raises:
        InputError: it has no whole measurement.
    """
    row, header, found.row = found.row, found.header, None
    if row is None or header is None:
        return
    if len(row.words) - _heads(row, header) not in (len(header.cells), len(header.cells) + header.tail):
        raise _columns(3 + len(row.words), row.line, found, header)
    _keep(row, found, header)


def _keep(row: _Row, found: _Scan, header: _Header) -> None:
    place, cells = f"{found.source}:{row.line}", len(header.cells)
    words = row.words[_heads(row, header) :]
    times: list[float | None] = []
    for at in range(0, min(len(words) // cells, header.measurements) * cells, cells):
        one = {name: word for name, (word, _) in zip(header.cells, words[at : at + cells], strict=True)}
        if "#wrong" in one:  # the older `error` is the largest difference, which rounding makes
            check_right(one["#wrong"], place)
        times.append(reading(one["time"], "time", place))
    size_B = reading(row.size, "size", place)
    if size_B is None:
        raise found.error(row.line, "size: found N/A; a number is expected")
    if len(times) == 1 and header.measurements > 1 and _is_second(words[0][1] - row.count_end, header):
        times.insert(0, None)
    found.run.add_times(size_B, times[0], times[1] if len(times) > 1 else None)


def _is_second(end: int, header: _Header) -> bool:
    """Whether a time stands beneath the second one of the header."""
    return abs(end - header.ends[1]) < abs(end - header.ends[0])


def _damaged(words: Sequence[tuple[str, int]], number: int, found: _Scan, header: _Header) -> InputError:
    """The error of a line that should be a row: what stands before its type, or how many columns it has."""
    kind = next((i for i, (word, _) in enumerate(words) if word in _TYPES and i > 1), None)
    if kind is not None:
        for name, (word, _) in zip(("size", "count"), words[kind - 2 : kind], strict=True):
            if not _WHOLE.fullmatch(word):
                return found.error(number, f"{name}: found {word[:40]!r}; a whole number is expected")
    return _columns(len(words), number, found, header)


def _columns(count: int, number: int, found: _Scan, header: _Header) -> InputError:
    named = " ".join(header.columns)
    return found.error(number, f"found {count} columns; the header has {len(header.columns)}: {named}")
