"""Signals that end a command: heard once, then not for a while, then at once."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from moemodel.model.core.ending import Ending, Terminated, ending_cleanly


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_block_as_ctrl_c_does(number: signal.Signals) -> None:
    def run() -> None:
        with ending_cleanly():
            signal.raise_signal(number)
            pytest.fail("it went on")

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as ended:
        run()
    assert isinstance(ended.value, Terminated)
    assert ended.value.number == number
    assert signal.getsignal(number) == before


def test_the_same_again_does_not_disturb_what_is_being_finished() -> None:
    finished: list[str] = []
    with ending_cleanly() as ending:
        try:
            signal.raise_signal(signal.SIGHUP)
        except KeyboardInterrupt:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            finished.append("all of it")
    assert finished == ["all of it"]
    assert ending.exit_status == 129


def test_later_it_ends_the_process_at_once() -> None:
    now_s, left = [0.0], list[int]()
    ending = Ending(lambda: now_s[0], left.append)
    with pytest.raises(KeyboardInterrupt):
        ending.hear(signal.SIGINT)
    now_s[0] = 1.0
    ending.hear(signal.SIGINT)
    assert left == []
    now_s[0] = 9.0
    ending.hear(signal.SIGTERM)
    assert left == [143]


def test_an_inner_block_leaves_signals_to_the_outer() -> None:
    with ending_cleanly() as outer:
        with pytest.raises(Terminated), ending_cleanly() as inner:
            signal.raise_signal(signal.SIGTERM)
        assert inner is outer
        signal.raise_signal(signal.SIGTERM)  # still not heard


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with ending_cleanly():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    seen: list[Any] = []

    def run() -> None:
        with ending_cleanly():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
