"""How long a validation takes, as it is told before and while it runs."""

from __future__ import annotations

import pytest

from moemodel.validation.select.duration import in_words, remaining_s, run_s


def test_short_steps_take_the_seconds_that_are_asked_for() -> None:
    assert run_s(0.01, warm_s=2, seconds=3) == pytest.approx(5, abs=1.2)


def test_long_steps_take_as_many_as_are_measured_at_least() -> None:
    """25 s a step: 5 to warm up, 20 measured and 6 more, which 5 s of steps would have hidden."""
    assert run_s(25.0, warm_s=2, seconds=3) == pytest.approx(31 * 25, abs=2)


def test_what_was_run_tells_of_what_was_not() -> None:
    predicted_s = {"a": 10.0, "b": 20.0}
    before = remaining_s(["a", "b"], predicted_s=predicted_s, taken=(), starts=False)
    after = remaining_s(["b"], predicted_s=predicted_s, taken=[("a", 70.0)], starts=False)
    assert (before, after) == (30.0, 140.0)
    known = remaining_s(["b", "a"], predicted_s=predicted_s, taken=[("a", 70.0), ("b", 50.0)], starts=False)
    assert known == 120.0


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "about 1 s"), (42, "about 40 s"), (780, "about 13 min"), (9000, "about 2.5 h")]
)
def test_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
