"""By which another process finds what this one has opened: a function that opens it, by name, and its argument.

Small processes run this beside the one that measures, so it imports nothing heavy: no torch, no numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Address:
    """By which another process finds the same device; JSON in between.

    Attributes:
        opener: "module:function" that opens it, by name: that process loads what its device needs, no more.
        argument: of the opener.
    """

    opener: str
    argument: str

    def open(self) -> Any:
        """What is there; raises what the opener does."""
        module, _, function = self.opener.partition(":")
        return getattr(import_module(module), function)(self.argument)
