"""When a run begins and ends, as a person writes it."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta, tzinfo

from moemodel.model.core.errors import InputError
from moemodel.model.core.shown import shown
from moemodel.model.grid.series import localized
from moemodel.model.search.deadline import hours_in

_MOST_HOURS = 10_000.0  # more than a year: a typing error


def time_of(text: str | datetime, zone: tzinfo | None, *, key: str) -> datetime:
    """A point of time, UTC.

    Args:
        text: ISO 8601, such as 2026-01-31T13:00Z, 2026-01-31 13:00+01:00 or 2026-01-31; or a time itself.
        zone: of a time without an offset; None: UTC.
        key: what an error calls it.

    Raises:
        InputError: no time, or none that clocks in that zone show.
    """
    try:
        time = datetime.fromisoformat(text.strip()) if isinstance(text, str) else text
        if time.tzinfo is not None:
            return time.astimezone(UTC)
        return localized(time, zone or UTC, place=key)
    except (ValueError, OverflowError):
        raise InputError(
            f"{key}: found {shown(text)}; allowed: a time such as 2026-01-31T13:00Z or 2026-01-31"
        ) from None


def deadline_of(text: str | datetime, start: datetime, zone: tzinfo | None, *, key: str = "--deadline") -> datetime:
    """A deadline, UTC: a point of time, or hours or days after the start, such as 72h or 5d.

    Raises:
        InputError: neither, or not after the start.
    """
    lasts = None
    if isinstance(text, str):
        with suppress(ValueError):  # of an unknown unit it is no time either, which the error says
            lasts = hours_in(text.strip().removeprefix("+"))
    if lasts is None:
        deadline = time_of(text, zone, key=key)
    else:
        deadline = start + timedelta(hours=min(lasts, 2 * _MOST_HOURS))
    hours = (deadline - start) / timedelta(hours=1)
    if not 0 < hours <= _MOST_HOURS:
        raise InputError(
            f"{key}: found {shown(text)}, {hours:,.6g} hours after the start at {stamp(start)}; allowed: more than 0, "
            f"at most {_MOST_HOURS:,.0f}"
        )
    return deadline


def stamp(time: datetime) -> str:
    """A point of time as it is shown, to the minute."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
