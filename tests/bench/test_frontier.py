"""The benchmark of frontiers runs as its users run it, without the solver that it is held against."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable


def test_a_small_front_is_near_its_bound(run_bench: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run_bench("frontier.py", "--json", "--cases", "2x4", "--limit", "0", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    (figures,) = json.loads(done.stdout).values()
    assert 0 <= figures["worst_gap"] < 0.005
    assert 0 < figures["seconds"] < 10
    assert "lowtime_seconds" not in figures
