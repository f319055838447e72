"""A begin and an end as a context."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType


class Scope:
    """A context manager that is made once and may be entered many times.

    Args:
        begin, end: called on entering and leaving.
        drop: called instead of `end` where an exception leaves it.
    """

    __slots__ = ("_begin", "_drop", "_end")

    def __init__(self, begin: Callable[[], None], end: Callable[[], None], drop: Callable[[], None]) -> None:
        self._begin, self._end, self._drop = begin, end, drop

    def __enter__(self) -> None:
        self._begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._end()
        else:
            self._drop()
