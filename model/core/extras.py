"""What is installed only by an extra: who needs it says which one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from moemodel.model.core.errors import MissingExtraError


def how_to_install(extra: str) -> str:
    """What to do for want of an extra, as the end of a message. How this package was installed can't be known.

    Args:
        extra: of this package.
    """
    return (
        f"install the extra {extra} from where moemodel itself came from: pip install '.[{extra}]' in its source "
        f"folder, or pip install 'moemodel[{extra}]' where it came from a package index"
    )


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
        raise MissingExtraError(f"{who} needs {error.name}, which is not installed; {how_to_install(extra)}") from None
