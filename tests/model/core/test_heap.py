"""Freed memory that is kept: in a process of its own, since the setting is the process's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_COUNT = """
import resource
import numpy as np
from moemodel.model.core.heap import keep_freed_memory
kept = keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        [np.ones(500_000) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, faults())
"""


def _faults(**environment: str) -> tuple[bool, int]:
    """Whether memory is kept, and pages that 200 arrays of 4 MB ask for anew."""
    said = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", _COUNT], env=said | environment, capture_output=True, text=True, check=True, timeout=60
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_arrays_that_are_made_again_ask_for_no_new_pages() -> None:
    kept, faults = _faults()
    if not kept:
        pytest.skip("this process's allocator is not glibc's")
    assert faults < 500  # of 200,000 that the arrays fill


def test_what_the_environment_says_stays() -> None:
    assert _faults(MALLOC_TRIM_THRESHOLD_="131072")[0] is False
