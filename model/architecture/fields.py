"""Types of the keys of configurations, and refusals that several families share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from moemodel.model.architecture.spec import Activation

_LARGEST_COUNT = 2**31 - 1  # sizes beyond 32 bits are typing errors
_MOST_LAYERS = 10_000  # far above any published model; a typing error here would fill the memory

ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "relu2": "relu2",
    "squared_relu": "relu2",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_python": "gelu",
    "quick_gelu": "gelu",
}


def _activation(name: object) -> object:
    return ACTIVATIONS.get(name, name) if isinstance(name, str) else name


Count = Annotated[int, Field(strict=True, gt=0, le=_LARGEST_COUNT)]
CountOrZero = Annotated[int, Field(strict=True, ge=0, le=_LARGEST_COUNT)]
Flag = Annotated[bool, Field(strict=True)]
Layers = Annotated[int, Field(strict=True, gt=0, le=_MOST_LAYERS)]
ActivationName = Annotated[Activation, BeforeValidator(_activation)]


def reject(key: str, found: object, allowed: str) -> None:
    """Refuse a value.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{key}: found {found}; allowed: {allowed}")


def require_divides(key: str, divisor: int, of_key: str, of: int) -> None:
    """Refuse a value that does not divide another.

    Raises:
        ValueError: it doesn't.
    """
    if of % divisor:
        reject(key, divisor, f"a divisor of {of_key} ({of})")


def require_at_most(key: str, value: int, limit_key: str, limit: int) -> None:
    """Refuse a value above another.

    Raises:
        ValueError: it is.
    """
    if value > limit:
        reject(key, value, f"at most {limit_key} ({limit})")
