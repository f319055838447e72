"""Reads what nccl-tests write with `-J` (src/util.cu of version 2.17 and later), and a draft of it that builds have:

    {"version": 1, "args": ["all_reduce_perf", ...],
     "config": {"nthreads": 1, "ngpus": 8, "devices": [{"rank": 0, "hostname": "node-1", ...}, ...]},
     "results": [{"size": 1024, "out_of_place": {"time": 20.1, "nwrong": 0.0}, "in_place": {...}}, ...],
     "out_of_bounds": {"count": 0, "okay": "true"}}

    {"identifier": "nccl-tests structured output",
     "benchmark": [{"1024": {"oop_time": 20.1, "oop_error": 0.0, "ip_time": 20.0, "ip_error": "N/A"}, ...}]}

Of the devices of one process, `devices` has the first alone. The draft does not say who took part.
"""

from __future__ import annotations

import json
from pathlib import PurePath

from pydantic import BaseModel, ConfigDict, Field

from moemodel.model.core.documents import parse_data
from moemodel.model.core.errors import InputError
from moemodel.model.network.nccl_run import NcclRun, check_right, reading

_MOST_DEVICES = 1 << 16  # of one process: beyond any machine's, and few enough to count them out


class _Lenient(BaseModel):
    """What other versions add is not read."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _Device(_Lenient):
    rank: int = Field(ge=0)
    group: int = 0
    hostname: str
    device_info: str = ""


class _Config(_Lenient):
    nthreads: int = Field(default=1, ge=1, le=_MOST_DEVICES)
    ngpus: int = Field(default=1, ge=1, le=_MOST_DEVICES)
    devices: list[_Device] = Field(default_factory=list)


class _Measurement(_Lenient):
    time: float | str | None = None
    cpu_time: float | str | None = None
    nwrong: float | str | None = None


class _Result(_Lenient):
    size: float = Field(ge=0)
    out_of_place: _Measurement | None = None
    in_place: _Measurement | None = None


class _Bounds(_Lenient):
    count: int = 0


class _Report(_Lenient):
    args: list[str] = Field(default_factory=list)
    config: _Config = Field(default_factory=_Config)
    results: list[_Result]
    out_of_bounds: _Bounds | None = None


class _DraftRow(_Lenient):
    oop_time: float | str | None = None
    oop_error: float | str | None = None
    ip_time: float | str | None = None
    ip_error: float | str | None = None


class _Draft(_Lenient):
    benchmark: list[dict[str, _DraftRow]]


def read_json_run(text: str, source: str) -> NcclRun:
    """The run that a JSON document reports.

    Raises:
        InputError: it is none, or one of a test that failed; with the place.
    """
    try:
        data = json.loads(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise InputError(f"{source}:{error.lineno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{source}: not JSON that can be read: a number or a nesting is too long") from None
    if isinstance(data, dict) and "benchmark" in data:
        return _of_draft(parse_data(data, _Draft, source), source)
    if not isinstance(data, dict) or "results" not in data:
        raise InputError(f"{source}: found JSON without the key 'results', which nccl-tests write with -J")
    return _of_report(parse_data(data, _Report, source), source)


def _of_report(report: _Report, source: str) -> NcclRun:
    run = NcclRun(source=source, place=source)
    if report.args:
        run.programs.append(PurePath(report.args[0]).name)
    if report.out_of_bounds and report.out_of_bounds.count:
        raise InputError(
            f"{source}: out_of_bounds: the test found {report.out_of_bounds.count} wrong values: its times say "
            "nothing; repair it first"
        )
    _add_ranks(run, report.config, source)
    for index, result in enumerate(report.results):
        both = []
        for name, part in (("out_of_place", result.out_of_place), ("in_place", result.in_place)):
            place = f"{source}: results.{index}.{name}"
            if part is not None and part.cpu_time is not None:
                raise InputError(f"{place}: found times of the CPU; run the test without -C")
            both.append(None if part is None else _time_us(part.time, part.nwrong, place))
        run.add_times(result.size, both[0], both[1])
    return run


def _add_ranks(run: NcclRun, config: _Config, source: str) -> None:
    each = config.nthreads * config.ngpus
    if each * len(config.devices) > _MOST_DEVICES:
        raise InputError(
            f"{source}: config: found {each * len(config.devices)} ranks; {_MOST_DEVICES} at most are read"
        )
    for index, device in enumerate(config.devices):
        place = f"{source}: config.devices.{index}"
        if device.group:
            raise InputError(f"{place}: found several groups; run the test without NCCL_TESTS_SPLIT")
        for rank in range(device.rank, device.rank + each):
            run.add_rank(rank, device.hostname, device.device_info, place)


def _of_draft(draft: _Draft, source: str) -> NcclRun:
    run = NcclRun(source=source, place=source)
    for index, sizes in enumerate(draft.benchmark):
        for size, row in sizes.items():
            place = f"{source}: benchmark.{index}.{size}"
            size_B = reading(size, "size", place)
            if size_B is None:
                raise InputError(f"{place}: size: found {size}; a number is expected")
            # its error is the number of wrong values
            out_of_place_us = _time_us(row.oop_time, row.oop_error, place)
            run.add_times(size_B, out_of_place_us, _time_us(row.ip_time, row.ip_error, place))
    return run


def _time_us(time: float | str | None, wrong: float | str | None, place: str) -> float | None:
    if wrong is not None:
        check_right(wrong, place)
    return None if time is None else reading(time, "time", place)


def is_json(text: str) -> bool:
    """Whether a file is one JSON document, and not lines of them, as some containers keep their logs."""
    text = text.lstrip("\ufeff \t\r\n")
    return text.startswith("{") and not text.startswith(('{"log"', '{"stream"', '{"time"'))
