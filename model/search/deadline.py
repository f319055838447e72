"""When a run has to be done: hours, a duration in words, or a date."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from typing import Annotated, Any

from pydantic import BeforeValidator

_HOURS = {"h": 1.0, "hour": 1.0, "hours": 1.0, "d": 24.0, "day": 24.0, "days": 24.0, "week": 168.0, "weeks": 168.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?)\s*([a-z]+)")
_MOST_HOURS = 1e9  # assumed: beyond any run
_SECONDS_PER_HOUR = 3600.0
_ALLOWED = 'allowed: hours (720), a duration ("30 days", "36 h"), or a date ("2027-01-15", "2027-01-15T12:00+01:00")'


def _deadline(value: Any) -> Any:
    """Hours, or a date with its time zone."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _positive(float(value))
    hours = hours_in(value) if isinstance(value, str) else None
    return _moment(value) if hours is None else _positive(hours)


def hours_in(text: str) -> float | None:
    """Of a duration in words, such as 36 h or 30 days; None: it is none.

    Raises:
        ValueError: of a unit that is none, with those that are.
    """
    found = _DURATION.fullmatch(text.strip().lower())
    if found is None:
        return None
    number, unit = found.groups()
    if unit not in _HOURS:
        raise ValueError(f"{_ALLOWED}; units are {', '.join(_HOURS)}")
    return float(number) * _HOURS[unit]


def _positive(hours: float) -> float:
    if not 0 < hours <= _MOST_HOURS:
        raise ValueError(_ALLOWED)
    return hours


def _moment(value: Any) -> datetime:
    """A date and a time, UTC unless it names another zone; a date alone is where its day begins."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            raise ValueError(_ALLOWED) from None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(value, datetime):
        raise ValueError(_ALLOWED)  # noqa: TRY004 - pydantic makes a message of it
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


Deadline = Annotated[float | datetime, BeforeValidator(_deadline)]
Moment = Annotated[datetime, BeforeValidator(_moment)]


def hours_until(deadline: float | datetime | None, start: datetime | None) -> float | None:
    """From the start to the deadline; None where there is none."""
    if isinstance(deadline, datetime) and start is not None:
        return (deadline - start).total_seconds() / _SECONDS_PER_HOUR
    return None if deadline is None or isinstance(deadline, datetime) else deadline


def names_a_date(value: Any) -> bool:
    """Whether a deadline, as it is written, is a date and no duration."""
    return isinstance(value, date) or (isinstance(value, str) and _DURATION.fullmatch(value.strip().lower()) is None)


def this_minute() -> datetime:
    """Now, UTC, seconds left out."""
    return datetime.now(UTC).replace(second=0, microsecond=0)


def in_words(moment: datetime) -> str:
    """A date and a time as people read them."""
    return f"{moment:%Y-%m-%d %H:%M} {moment.tzname()}"
