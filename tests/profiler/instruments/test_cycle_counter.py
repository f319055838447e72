"""True clocks: the arithmetic of stamps on a CPU, the kernel itself on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moemodel.profiler.instruments.cycle_counter import ClockReader, clock_Hz

SMS = 4


def _stamps(cycles: list[int], time_ns: list[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([[c, t, sm] for sm, (c, t) in enumerate(zip(cycles, time_ns, strict=True))], dtype=np.int64)


def test_cycles_over_time() -> None:
    before = _stamps([100, 7_000, 3, 10**15], [10**18] * SMS)
    after = before.copy()
    after[:, 0] += 1_365_000
    after[:, 1] += 1_000_000  # 1 ms
    assert clock_Hz(before, after) == pytest.approx(1365e6)


def test_median_over_sms_and_any_order() -> None:
    before = _stamps([0] * 5, [1] * 5)
    after = before.copy()
    after[:, 0] += [1000, 1400, 1500, 1600, 9000]
    after[:, 1] += 1000
    assert clock_Hz(before, after[::-1]) == pytest.approx(1.5e9)


def test_several_programs_on_an_sm_stay_together() -> None:
    """Cycles and time are taken of the same program."""
    before = np.array([[10, 1000, 0], [20, 1010, 0]])
    after = np.array([[2010, 2000, 0], [2020, 2010, 0]])
    assert clock_Hz(before, after) == pytest.approx(2e9)


def test_only_sms_in_both() -> None:
    assert clock_Hz(np.array([[5, 5, 0]]), np.array([[9, 9, 1]])) is None


def test_without_cuda_it_is_a_no_op_that_says_why(bare_device: Any) -> None:
    clock = ClockReader(bare_device)
    before, after = clock.stamp(), clock.stamp()
    assert (before, clock.mean_Hz(before, after)) == (None, None)
    assert clock.note is not None
    assert "cpu" in clock.note
