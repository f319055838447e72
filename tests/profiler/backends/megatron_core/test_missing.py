"""What is said where Megatron Core is not installed, or too old."""

from __future__ import annotations

import subprocess
import sys

import pytest

from moemodel.model.core.errors import MissingExtraError
from moemodel.profiler.backends.megatron_core.versions import check_version

_WITHOUT = """
import sys
sys.modules["megatron"] = None
from moemodel.model.core.errors import MissingExtraError
from moemodel.profiler.backends.base import builder
try:
    builder("megatron-core")
except MissingExtraError as error:
    print(error)
"""


def test_the_extra_is_named() -> None:
    done = subprocess.run([sys.executable, "-c", _WITHOUT], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("the backend megatron-core (on Python 3.12 or newer) needs megatron")
    assert "which is not installed; install the extra megatron" in done.stdout


def test_an_old_one_is_refused() -> None:
    with pytest.raises(MissingExtraError, match=r"needs megatron-core 0\.19 or newer, .*; found 0\.16\.1; install"):
        check_version("0.16.1")
    check_version("0.19.2")
    check_version("1.0.0rc1")
