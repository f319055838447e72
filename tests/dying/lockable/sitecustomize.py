"""Every Python process that finds this sets the clocks of a processor, in a file, as those of a simulated GPU are set.

`moemodel validate` trains, and so can't be tried on a simulated GPU; here its workers, and their guardians, lock what
`MOEMODEL_TEST_CLOCKS` names.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

PATCHED = "moemodel.profiler.platforms.base"
CLOCKS_HZ = [1.2e9, 1.5e9, 1.8e9]


class Settings:
    """`DeviceSettings` of a processor, for the time being."""

    def __init__(self, file: str) -> None:
        from moemodel.profiler.devices.address import Address
        from moemodel.profiler.simulated.state import OPEN_STORED, State, StoredSettings

        self.driver = StoredSettings(Path(file), initial=State(power_limit_W=300.0))
        self.address = Address(opener=OPEN_STORED, argument=file)

    def clocks_Hz(self) -> list[float]:
        return CLOCKS_HZ

    def obstacle(self) -> str | None:
        return None

    company = missing_privilege = obstacle


class Finder(MetaPathFinder):
    """Finds one module, once, and changes it when it is loaded."""

    def find_spec(self, fullname: str, *_: Any) -> ModuleSpec | None:
        if fullname != PATCHED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            module.TorchPlatform.settings = lambda _: Settings(os.environ["MOEMODEL_TEST_CLOCKS"])

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


if "MOEMODEL_TEST_CLOCKS" in os.environ:
    sys.meta_path.insert(0, Finder())
