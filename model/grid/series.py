"""An hourly series of carbon intensity or price, read from a CSV file: whose columns are known, what is made of them.

    Datetime (UTC), Zone id, Carbon intensity gCO₂eq/kWh (Life cycle)     Electricity Maps' data portal, also as it
                                                                          spelled them before: Zone Id, (LCA), (direct)
    datetime, zone, carbonIntensity                                       its API's answers as a table
    timestamp, MOER                                                       WattTime's history: lbs/MWh
    point_time, value                                                     its client's `get_historical_csv`: lbs/MWh
    time, value                                                           anything: the unit is said, or in a name

Times are made UTC. Those with an offset are; columns that say UTC are; others need a time zone, in which the hour that
comes twice when summer ends is taken in the order of the file, and one that never comes is an error. Several values an
hour make their mean. What is missing, doubled or unreadable is an error with its line.
"""

from __future__ import annotations

import csv
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from moemodel.model.core.errors import InputError
from moemodel.model.core.shown import shown
from moemodel.model.grid.units import Unit, unit_in, unit_of

HOUR = timedelta(hours=1)
_MOST_B = 64 * 2**20  # assumed: five years of a value every five minutes, with all of Electricity Maps' columns
_MOST_KG_PER_KWH = 5.0  # assumed: three times the worst plants; more is another unit
_MOST_PRICE = 1e4  # assumed, of a kWh in any currency
_MOST_NAMED = 5  # hours or columns in a message

_TIMES = ("datetime (utc)", "time (utc)", "point_time", "timestamp", "datetime", "time", "date", "start")
_MAPS = re.compile(r"carbon intensity gco2eq/kwh \((.+)\)")  # Electricity Maps
_LIFE_CYCLE = ("life cycle", "lca")
_ZONES = ("zone id", "zone", "region", "ba")
_WITHOUT_UNIT = {"carbonintensity": "gCO2eq/kWh", "moer": "lbs/MWh"}


@dataclass(frozen=True, kw_only=True)
class Series:
    """Values of hours.

    Attributes:
        unit: of the file.
        values: by the hour's beginning, UTC: kgCO2eq, or money, of a kWh.
        source: of whom its columns are, and which of them.
        zone: of the grid, as the file calls it; None: it does not.
        notes: what was made of the file.
    """

    unit: Unit
    values: Mapping[datetime, float]
    source: str
    zone: str | None
    notes: tuple[str, ...]

    @property
    def first(self) -> datetime:
        """Beginning of the first hour."""
        return min(self.values)

    @property
    def end(self) -> datetime:
        """End of the last one."""
        return max(self.values) + HOUR


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """Which columns of a file are read."""

    time: str
    value: str
    zone: str | None
    unit: Unit
    source: str
    notes: tuple[str, ...]

    @property
    def in_utc(self) -> bool:
        return _folded(self.time).endswith("(utc)")


def read_series(
    path: Path, *, unit: str | None = None, column: str | None = None, time_zone: str | None = None
) -> Series:
    """A series from a CSV file.

    Args:
        path: of the file.
        unit: of its values, where its columns don't say; goes before what they say.
        column: of its values, where there are several.
        time_zone: of times without one, such as Europe/Berlin or UTC.

    Raises:
        InputError: the file and line, what was found and what is allowed.
    """
    header, rows = _table(path)
    columns = _columns(str(path), header, unit=unit, column=column)
    zone = None if time_zone is None else zone_of(time_zone)
    reader = _Reader(str(path), columns, UTC if columns.in_utc else zone)
    for line, row in rows:
        reader.read(line, row)
    return reader.series()


def zone_of(name: str, *, key: str = "--time-zone") -> tzinfo:
    """A time zone by its IANA name.

    Raises:
        InputError: there is none of that name.
    """
    if name.casefold() in ("utc", "z"):
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InputError(f"{key}: found {shown(name)}; allowed: UTC, or an IANA name such as Europe/Berlin") from None


def localized(time: datetime, zone: tzinfo, *, place: str, second: bool = False) -> datetime:
    """UTC of a time without an offset.

    Args:
        time: of a clock on the wall.
        zone: whose clock it is.
        place: for an error.
        second: it is the second of two that the clock shows when summer ends.

    Raises:
        InputError: the clock never shows it: summer begins.
    """
    found = time.replace(tzinfo=zone, fold=int(second)).astimezone(UTC)
    if found.astimezone(zone).replace(tzinfo=None) != time:
        raise InputError(f"{place}: found {time}, which clocks in {zone} skip; allowed: times that there are, or UTC")
    return found


def _table(path: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """Columns of a file, and its rows by line."""
    try:
        size_B = path.stat().st_size
        if size_B > _MOST_B:
            raise InputError(f"{path}: found {size_B / 2**20:.0f} MiB; allowed: at most {_MOST_B // 2**20} MiB")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: found no text in UTF-8; allowed: a CSV file") from None
    except (FileNotFoundError, IsADirectoryError, ValueError):
        raise InputError(f"{path}: no such file; allowed: a CSV file of hours") from None
    lines = csv.reader(text.splitlines())
    header = next(_readable(path, lines), [])
    names = [name.strip() for name in header]
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"{path}:1: found {shown(','.join(names))}; allowed: names of two columns or more, each once")
    return names, _rows(path, names, lines)


def _readable(path: Path, lines: Iterator[list[str]]) -> Iterator[list[str]]:
    try:
        yield from lines
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV file: {error}") from None


def _rows(path: Path, names: Sequence[str], lines: Iterator[list[str]]) -> Iterator[tuple[int, dict[str, str]]]:
    for number, cells in enumerate(_readable(path, lines), start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(names):
            raise InputError(f"{path}:{number}: found {len(cells)} cells; allowed: {len(names)}, as in the first line")
        yield number, dict(zip(names, (cell.strip() for cell in cells), strict=True))


def _folded(name: str) -> str:
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKD", name).casefold()).strip()


def _columns(path: str, header: Sequence[str], *, unit: str | None, column: str | None) -> _Columns:
    """Which columns are read."""
    by_name = {_folded(name): name for name in header}
    times = [by_name[name] for name in _TIMES if name in by_name]
    if not times:
        raise InputError(f"{path}:1: found {_listed(header)}; allowed: a column of times called {', '.join(_TIMES)}")
    value = _value_column(path, by_name, times[0], column)
    source, own = _source(value, times[0])
    given = None if unit is None else unit_of(unit, key="--unit")
    notes = []
    if given is not None and own is not None and (given.kind, given.factor) != (own.kind, own.factor):
        notes.append(f"{path}: {value} is taken to be in {given.said}, as was said, not in {own.said}.")
    taken = given or own
    if taken is None:
        raise InputError(f"{path}:1: {value}: nothing says its unit; say it by --unit, or in the column's name")
    zone = next((by_name[name] for name in _ZONES if name in by_name and by_name[name] != value), None)
    return _Columns(time=times[0], value=value, zone=zone, unit=taken, source=source, notes=tuple(notes))


def _value_column(path: str, by_name: Mapping[str, str], time: str, asked: str | None) -> str:
    """The column of values."""
    if asked is not None:
        if _folded(asked) not in by_name:
            raise InputError(f"{path}: --column: found {shown(asked)}; allowed: {_listed(by_name.values())}")
        return by_name[_folded(asked)]
    maps = {match[1]: name for folded, name in by_name.items() if (match := _MAPS.fullmatch(folded))}
    for kind in (*_LIFE_CYCLE, "direct"):
        if kind in maps:
            return maps[kind]
    for known in (*_WITHOUT_UNIT, "value"):
        if known in by_name:
            return by_name[known]
    with_unit = [name for name in by_name.values() if name != time and unit_in(name) is not None]
    if len(with_unit) == 1:
        return with_unit[0]
    if not with_unit and len(by_name) == 2:
        return next(name for name in by_name.values() if name != time)
    raise InputError(
        f"{path}:1: found {_listed(by_name.values())}; allowed: one column of values: say which by --column"
    )


def _source(value: str, time: str) -> tuple[str, Unit | None]:
    """Whose columns they are, and the unit of their values."""
    folded = _folded(value)
    maps = _MAPS.fullmatch(folded)
    if maps is not None:
        over = "life cycle" if maps[1] in _LIFE_CYCLE else maps[1]
        return f"Electricity Maps, {over}", unit_of("gCO2eq/kWh")
    if folded == "carbonintensity":
        return "Electricity Maps", unit_of("gCO2eq/kWh")
    if folded == "moer" or (folded == "value" and _folded(time) == "point_time"):
        return "WattTime, marginal (MOER)", unit_of("lbs/MWh")
    return f"column {value}", unit_in(value)


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = ", ..." if len(every) > 2 * _MOST_NAMED else ""
    return ", ".join(shown(name) for name in every[: 2 * _MOST_NAMED]) + more


class _Reader:
    """Rows of a file, one after the other, and the series that they make."""

    def __init__(self, path: str, columns: _Columns, zone: tzinfo | None) -> None:
        self.path, self.columns, self.zone = path, columns, zone
        self.values: dict[datetime, float] = {}
        self._lines: dict[datetime, int] = {}
        self._walls: set[datetime] = set()
        self._zones: set[str] = set()
        self._doubled = 0
        self._empty = 0

    def read(self, line: int, row: Mapping[str, str]) -> None:
        """One row."""
        time = self._time(line, row[self.columns.time])
        if self.columns.zone is not None and row[self.columns.zone]:
            self._zones.add(row[self.columns.zone])
        if time in self._lines:
            raise InputError(
                f"{self.path}:{line}: found {row[self.columns.time]}, {time:%Y-%m-%d %H:%M} UTC, which line "
                f"{self._lines[time]} has already; allowed: every time once"
            )
        self._lines[time] = line
        text = row[self.columns.value]
        if not text:
            self._empty += 1
            return
        self.values[time] = self._value(line, text)

    def _time(self, line: int, text: str) -> datetime:
        place = f"{self.path}:{line}"
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            raise InputError(
                f"{place}: {self.columns.time}: found {shown(text)}; allowed: a time such as 2026-01-31T13:00Z"
            ) from None
        try:
            if time.tzinfo is not None:
                return time.astimezone(UTC)
            if self.zone is None:
                raise InputError(
                    f"{place}: {self.columns.time}: found {text}, which has no time zone; say by --time-zone which it "
                    "is in, such as UTC or Europe/Berlin"
                )
            second = time in self._walls
            self._walls.add(time)
            utc = localized(time, self.zone, place=place, second=second)
        except OverflowError:
            raise InputError(f"{place}: found {shown(text)}; allowed: a time of our days") from None
        self._doubled += second and utc not in self._lines
        return utc

    def _value(self, line: int, text: str) -> float:
        unit = self.columns.unit
        try:
            value = float(text) * unit.factor
        except ValueError:
            value = math.nan
        least, most = (0.0, _MOST_KG_PER_KWH) if unit.kind == "carbon" else (-_MOST_PRICE, _MOST_PRICE)
        if not least <= value <= most:
            raise InputError(
                f"{self.path}:{line}: {self.columns.value}: found {shown(text)} in {unit.said}; allowed: {least:g} to "
                f"{most:g} {unit.made}, or nothing"
            )
        return value

    def series(self) -> Series:
        """All that was read."""
        if len(self._zones) > 1:
            named = ", ".join(sorted(self._zones)[:_MOST_NAMED])
            raise InputError(f"{self.path}: {self.columns.zone}: found {named}; allowed: rows of one place")
        if len(self.values) < 2:
            raise InputError(f"{self.path}: found {len(self.values)} values; allowed: two hours or more")
        notes = [*self.columns.notes, *self._said()]
        values = self._hours(notes)
        return Series(
            unit=self.columns.unit,
            values=values,
            source=self.columns.source,
            zone=next(iter(self._zones), None),
            notes=tuple(notes),
        )

    def _said(self) -> Iterator[str]:
        unit = self.columns.unit
        yield f"{self.path}: {self.columns.value} ({self.columns.source})" + (
            f", in {unit.said}." if unit.factor == 1 else f", {unit.said} times {unit.factor:.6g} for {unit.made}."
        )
        if self.zone is not None and self.zone is not UTC:
            yield f"{self.path}: times are of {self.zone}, made UTC."
        if self._doubled:
            yield f"{self.path}: {self._doubled} times come twice, as summer ends; the second is taken to be the later."
        if self._empty:
            yield f"{self.path}: {self._empty} rows without a value are left out."
        if "MOER" in self.columns.source:
            yield (
                "A marginal rate says what a change of the load adds, or saves: what a schedule saves is a change; all "
                "that a run emits is not."
            )

    def _hours(self, notes: list[str]) -> dict[datetime, float]:
        """A value an hour."""
        times = sorted(self.values)
        step = min(b - a for a, b in pairwise(times))
        if step > HOUR:
            raise InputError(f"{self.path}: found a value every {step}; allowed: every hour, or oftener")
        if step < HOUR:
            return self._means(step, times, notes)
        off = [time for time in times if (time - times[0]) % HOUR]
        if off:
            raise InputError(
                f"{self.path}:{self._lines[off[0]]}: found {off[0]:%H:%M} UTC among hours that begin at "
                f"{times[0]:%M} past; allowed: hours that begin alike"
            )
        return {time: self.values[time] for time in times}

    def _means(self, step: timedelta, times: Sequence[datetime], notes: list[str]) -> dict[datetime, float]:
        """Means of hours of which every value is there."""
        if HOUR % step:
            raise InputError(f"{self.path}: found values {step} apart; allowed: parts of an hour, all as long")
        grouped: dict[datetime, list[float]] = {}
        for time in times:
            if (time - times[0]) % step:
                raise InputError(f"{self.path}:{self._lines[time]}: found a time that is not {step} after another")
            grouped.setdefault(time.replace(minute=0, second=0, microsecond=0), []).append(self.values[time])
        each = HOUR // step
        whole = {time: sum(values) / each for time, values in grouped.items() if len(values) == each}
        less = len(grouped) - len(whole)
        missing = f"; {less} hours of which some are missing are left out" if less else ""
        notes.append(f"{self.path}: hours are means of {each} values{missing}.")
        if not whole:
            raise InputError(f"{self.path}: found no hour with all of its {each} values; allowed: at least one")
        return whole
