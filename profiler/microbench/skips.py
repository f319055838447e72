"""What was not measured, and why. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

# What torch raises for an operator that does not fit or does not run here.
_SKIPPABLE = (RuntimeError, ImportError, TypeError, ValueError)


@dataclass(frozen=True, kw_only=True)
class Skip:
    """Something that was not measured, and why."""

    what: str
    reason: str


def not_reached(section: str, left: int, of: int) -> Skip:
    """What a budget cut off."""
    return Skip(what=section, reason=f"{left} of {of} left out, the budget was spent; run again to add them")


def skippable() -> tuple[type[Exception], ...]:
    """The errors of one operator that leave the others measurable."""
    return _SKIPPABLE
