"""What is installed only by an extra: who needs it says which one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from moemodel.model.core.errors import MissingExtraError


@contextmanager
def needs_extra(who: str, extra: str) -> Iterator[None]:
    """Names the extra that installs a module which is found to be missing.

    Args:
        who: needs it.
        extra: of this package; empty: none, so that the error stays what it is.

    Raises:
        MissingExtraError: a module of another package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if not extra or not error.name or error.name.partition(".")[0] == "moemodel":
            raise
        raise MissingExtraError(
            f"{who} needs {error.name}, which is not installed; install it with: pip install 'moemodel[{extra}]'"
        ) from None
