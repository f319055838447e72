"""What a table of a profile may hold: checked column by column when it is read, so that fits meet what they can use.

A column is known by its name, whose end says its unit. Bounds are far beyond what any device does, and only keep
readings that are none (a counter that jumped, -1 for "not there") out of fits; power and clock are bounded by the
device's own limits where the manifest has them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from moemodel.model.core.arrays import BoolArray, FloatArray
from moemodel.model.core.errors import ProfileError
from moemodel.model.network.collectives import Collective
from moemodel.model.operators.work import PASSES, SHAPE_FIELDS, Kind, Pass
from moemodel.model.records.profile import EXCHANGE, IDLE_LINKS, REQUIRED, TABLES, DeviceInfo

_LONGEST_TEXT = 500  # characters of a name
_LONGEST_PLAN = 1_000_000  # of a plan's YAML text
_LIMITS_OVER = 3.0  # a mean over a second stays below its limit; a reading of an instant may not
_SAME_POWER = 0.01  # the profiler divides one by the other
_LONGEST_SHOWN = 60  # characters of a value that is found


@dataclass(frozen=True, kw_only=True)
class _Numbers:
    """Numbers from `low` to `high`, or zero; `whole` ones; `said` is how an error says so."""

    low: float = 0.0
    or_zero: bool = False
    high: float
    whole: bool = False

    def wrong(self, values: np.ndarray) -> BoolArray:
        """Which values are not allowed; those that are not there are NaN, and another matter."""
        good = (values >= self.low) & (values <= self.high)
        bad = ~(good | (values == 0) if self.or_zero else good) & ~np.isnan(values)
        return np.asarray(bad | (np.trunc(values) != values) & ~np.isnan(values) if self.whole else bad)

    @property
    def said(self) -> str:
        zero = "0, or " if self.or_zero else ""
        return f"{zero}a {'whole ' if self.whole else ''}number from {self.low:g} to {self.high:g}"


_SIZE = _Numbers(low=1, high=1e12, whole=True)
_SHARE = _Numbers(low=1e-6, high=1, or_zero=True)  # a smaller one makes energies of a call beyond reason
_DURATION = _Numbers(low=1e-9, high=1e6)
_NUMBERS = {
    **dict.fromkeys(SHAPE_FIELDS, _SIZE),
    "skew": _Numbers(low=1, high=1e6),
    "expert_skew": _Numbers(low=1, high=1e6),
    "duty": _SHARE,
    "sm_activity": _SHARE,
    "sm_occupancy": _SHARE,
    "tensor_activity": _SHARE,
    "fp32_activity": _SHARE,
    "dram_activity": _SHARE,
    "calls": _Numbers(low=1, high=1e9, whole=True),
    "kernels": _Numbers(high=1e9),
    "ranks": _Numbers(low=1, high=1e6, whole=True),
    "nodes": _Numbers(low=1, high=1e6, whole=True),
    "rank": _Numbers(high=1e6, whole=True),
    "steps": _Numbers(low=1, high=1e9, whole=True),
    "priority": _Numbers(low=-100, high=100, whole=True),
    "parameters": _Numbers(high=1e15, whole=True),
    "elapsed_s": _Numbers(high=1e9),
    "wall_s": _Numbers(high=1e11),
    "host_time_s": _Numbers(high=1e6),
    "step_time_std_s": _Numbers(high=1e6),
}
_OF_TABLE = {
    ("host", "host_time_s"): _Numbers(low=-1e6, high=1e6),  # a difference of two models' times
    **{("overlap", name): _Numbers(high=1e12, whole=True) for name in ("m", "n", "k")},  # 0: a sum has no such size
    ("thermal", "power_W"): _Numbers(high=1e6),  # a reading of an instant
}
_ENDINGS = {
    "_C": _Numbers(low=1e-3, high=200),  # a sensor that is not there reads 0 or -1
    "_Hz": _Numbers(low=1e6, high=1e11),
    "_W": _Numbers(low=1e-3, high=1e6),
    "_J": _Numbers(high=1e12),
    "_Bps": _Numbers(high=1e15),
    "_B": _Numbers(high=1e15, whole=True),
    "_s": _DURATION,
}
_ANY = _Numbers(low=-1e300, high=1e300)
_NAMES: dict[tuple[str, str], Iterable[str]] = {
    **{(table, "kind"): Kind for table in ("operators", "power")},
    **{(table, "direction"): Pass for table in ("operators", "power", "host")},
    ("collectives", "collective"): [*Collective, EXCHANGE, IDLE_LINKS],
    ("overlap", "collective"): [*Collective, EXCHANGE, IDLE_LINKS],
    ("overlap", "computation"): ["gemm", "add"],
}
_LIMITED = {"power_W": "power_limit_W", "clock_Hz": "clock_max_Hz", "clock_reported_Hz": "clock_max_Hz"}


def check_table(table: pa.Table, name: str, path: Path, device: DeviceInfo | None = None) -> None:
    """Refuse a table that holds what its columns cannot.

    Args:
        table: of a profile, with the columns of its schema.
        name: of the table.
        path: of its file, for errors.
        device: whose limits bound power and clock.

    Raises:
        ProfileError: the first column with a value that is not allowed: file, column, row (from 1 on), what was found
            and what is allowed.
    """
    for column, kind in TABLES[name].items():
        values = table.column(column).combine_chunks()
        if kind == "string":
            _check_texts(values, name, column, path)
        else:
            _check_numbers(values, name, column, path, device)
    if name in ("operators", "power"):
        _check_passes(table, path)
    if name == "power":
        _check_loads(table, path)
        _check_power(table, path)
        _check_twice(table, path)


def _check_texts(values: pa.Array, table: str, column: str, path: Path) -> None:
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (texts or pa.types.is_null(kind)):
        raise ProfileError(f"{path}: {column}: found {values.type}; text is expected")
    found = values.to_pylist()
    allowed = frozenset(_NAMES.get((table, column), ()))
    longest = _LONGEST_PLAN if column == "plan_yaml" else _LONGEST_TEXT
    bad = {text for text in set(found) if not _is_text(text, table, column, allowed, longest)}
    if bad:
        expected = (
            f"one of {', '.join(sorted(allowed))}" if allowed else f"printable text of up to {longest} characters"
        )
        _refuse([text in bad for text in found], found, column, expected, path)


def _is_text(text: str | None, table: str, column: str, allowed: frozenset[str], longest: int) -> bool:
    if text is None:
        return column not in REQUIRED[table]
    if allowed:
        return text in allowed
    return len(text) <= longest and (text.isprintable() or column == "plan_yaml")


def _check_numbers(values: pa.Array, table: str, column: str, path: Path, device: DeviceInfo | None) -> None:
    kind = values.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise ProfileError(f"{path}: {column}: found {kind}; numbers are expected")
    floats = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)
    allowed = _allowed(table, column, device)
    bad = allowed.wrong(floats)
    if column in REQUIRED[table]:
        bad = bad | np.isnan(floats)
    _refuse(bad, values, column, allowed.said, path)


def _allowed(table: str, column: str, device: DeviceInfo | None) -> _Numbers:
    known = _OF_TABLE.get((table, column)) or _NUMBERS.get(column)
    known = known or next((rule for end, rule in _ENDINGS.items() if column.endswith(end)), _ANY)
    limit = next((limit for end, limit in _LIMITED.items() if column.endswith(end)), None)
    most = getattr(device, limit) if device and limit else None
    return known if most is None else _Numbers(low=known.low, high=min(known.high, _LIMITS_OVER * most))


def _check_passes(table: pa.Table, path: Path) -> None:
    """Every operator has the passes that it can have; a load that is none has neither."""
    kinds, directions = table.column("kind").to_pylist(), table.column("direction").to_pylist()
    allowed = {(str(kind), str(each)) for kind, passes in PASSES.items() for each in passes} | {(None, None)}
    bad = [pair not in allowed for pair in zip(kinds, directions, strict=True)]
    if any(bad):
        kind = kinds[bad.index(True)]
        expected = f"one of {', '.join(PASSES[Kind(kind)])}, as kind is {kind}" if kind else "none, as there is no kind"
        _refuse(bad, directions, "direction", expected, path)


def _check_loads(table: pa.Table, path: Path) -> None:
    """A load that is an operator has sizes; one whose time is known, a share of the time in which it ran."""
    is_operator = np.array([kind is not None for kind in table.column("kind").to_pylist()], dtype=bool)
    timed = ~_missing(table, "time_s")
    for column, needed, why in (
        *((name, is_operator, "as kind is given") for name in SHAPE_FIELDS),
        ("time_s", is_operator, "as kind is given"),
        ("duty", timed, "as time_s is given"),
    ):
        said = f"{_allowed('power', column, None).said}, {why}"
        _refuse(_missing(table, column) & needed, table.column(column), column, said, path)


def _check_power(table: pa.Table, path: Path) -> None:
    """Power is energy over time, as it was computed: another value of one of the three is damage."""
    power_W, energy_J, duration_s = (_floats(table, name) for name in ("power_W", "energy_J", "duration_s"))
    mean_W = energy_J / duration_s
    bad = np.abs(power_W / mean_W - 1) > _SAME_POWER
    if bad.any():
        expected = f"energy_J over duration_s, {mean_W[bad][0]:.6g},"
        _refuse(bad, table.column("power_W"), "power_W", expected, path)


def _check_twice(table: pa.Table, path: Path) -> None:
    """A load is measured once at a time: a row that stands twice would count twice in a fit."""
    same = table.to_pandas().duplicated().to_numpy() & ~_missing(table, "wall_s")
    _refuse(same, table.column("wall_s"), "wall_s", "another time, as another row is the same in every column,", path)


def _missing(table: pa.Table, column: str) -> BoolArray:
    return np.isnan(_floats(table, column))


def _floats(table: pa.Table, column: str) -> FloatArray:
    values = table.column(column).combine_chunks().cast(pa.float64(), safe=False)
    return np.asarray(values.to_numpy(zero_copy_only=False).astype(np.float64))


def _refuse(
    bad: Sequence[bool] | BoolArray, values: Sequence[object] | pa.Array, column: str, allowed: str, path: Path
) -> None:
    """Raise the error of the first bad row, if there is one."""
    rows = np.flatnonzero(np.asarray(bad))
    if not len(rows):
        return
    value = values[int(rows[0])]
    plain = value.as_py() if isinstance(value, pa.Scalar) else value
    found = "null" if plain is None or (isinstance(plain, float) and math.isnan(plain)) else repr(plain)
    found = found if len(found) <= _LONGEST_SHOWN else f"{found[:_LONGEST_SHOWN]}..."
    more = f" (and {len(rows) - 1} more rows)" if len(rows) > 1 else ""
    raise ProfileError(
        f"{path}: {column}, row {rows[0] + 1}{more}: found {found}; {allowed} is expected. Delete the file and run "
        "`moemodel profile` on this folder again"
    )
