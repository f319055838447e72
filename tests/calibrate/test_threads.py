"""Fits run their linear algebra on one thread, and leave the caller's as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from threadpoolctl import threadpool_info, threadpool_limits

from moemodel.calibration.fit import calibration as fit
from moemodel.calibration.threads import one_blas_thread
from moemodel.model.core.errors import ProfileError


def _threads() -> list[int]:
    """Of every BLAS in this process: NumPy's and SciPy's own."""
    assert scipy.linalg.norm(np.eye(2)) > 0
    return [int(pool["num_threads"]) for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_inside_there_is_one_thread_and_outside_as_many_as_before() -> None:
    with threadpool_limits(limits=2, user_api="blas"):
        before = _threads()
        with one_blas_thread():
            assert set(_threads()) == {1}
        assert _threads() == before
        assert set(before) == {2}


def test_a_calibration_runs_on_one_even_if_it_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[int] = []

    def read(folder: Path) -> None:
        seen.extend(_threads())
        raise ProfileError(f"{folder}: no such folder")

    monkeypatch.setattr(fit, "read_profile", read)
    with threadpool_limits(limits=2, user_api="blas"):
        with pytest.raises(ProfileError):
            fit.calibrate_profile(tmp_path)
        assert set(seen) == {1}
        assert set(_threads()) == {2}
