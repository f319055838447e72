"""Which Megatron Core is installed, and what beside it."""

from __future__ import annotations

from functools import cache

from moemodel.model.core.errors import MissingExtraError
from moemodel.model.core.extras import how_to_install
from moemodel.profiler.backends.megatron_core.settings import Kernels

OLDEST = (0, 19)  # layer specifications hold builders there; what is older was not tried


def check_version(found: str) -> None:
    """Refuse a Megatron Core that is too old.

    Args:
        found: its version.

    Raises:
        MissingExtraError: what is allowed.
    """
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise MissingExtraError(
            f"the backend megatron-core needs megatron-core {oldest} or newer, which needs Python 3.12; found {found}; "
            + how_to_install("megatron")
        )


@cache
def kernels() -> Kernels:
    """What this process builds models of.

    Raises:
        MissingExtraError: Megatron Core is too old.
    """
    import megatron.core
    from megatron.core.extensions.transformer_engine import HAVE_TE

    check_version(megatron.core.__version__)
    return Kernels(engine=HAVE_TE)
