"""`bench/kernel_generations.py`: what ships is what readings say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    command = [sys.executable, str(BENCH / "kernel_generations.py"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kernel", ["flash1", "flash2"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_generations_ship_as_they_were_read(kernel: str, direction: str, figures: dict[str, Any]) -> None:
    assert figures[kernel][direction] == figures[kernel]["shipped"][direction]


@pytest.mark.parametrize("name", ["split_accumulation", "cast_B"])
def test_products_of_eight_bits_ship_as_they_were_read(name: str, figures: dict[str, Any]) -> None:
    assert figures[name]["shipped"] == pytest.approx(figures[name]["read"], rel=0.01)


def test_fused_kernels_move_their_bytes_as_a_copy_does(figures: dict[str, Any]) -> None:
    """But for the backward pass of norms, which is two."""
    shares = dict(figures["fused"])
    assert shares.pop("rms_b") > 0.7
    assert min(shares.values()) > 0.9
    assert max(shares.values()) < 1.05
