"""Being ended by a signal: Ctrl-C, SIGTERM and SIGHUP end a command alike, once, and with what it has kept.

The first raises KeyboardInterrupt, so that files are whole, settings given back and processes ended. While that goes on
the same again is not heard for a while (a terminal that is closed sends SIGHUP twice, `timeout` and batch systems send
to the whole group), then ends the process at once: whatever is left is given back by those who guard it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
_DEAF_S = 2.0  # assumed: longer than whoever sends a signal twice takes, shorter than a person's patience


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: to end as after Ctrl-C.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class Ending:
    """Whether a signal has ended what a block does.

    Args:
        now_s: a clock.
        leave: ends the process at once, with an exit status.

    Attributes:
        number: of the first signal; None while there was none.
        last: nothing comes after the block but the end of the process, in which signals are not heard any more.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic, leave: Callable[[int], object] = os._exit) -> None:
        self.number: int | None = None
        self.last = False
        self._now_s, self._leave = now_s, leave
        self._first_s = 0.0

    @property
    def exit_status(self) -> int | None:
        """As a shell reports a command that a signal ended; None while there was none."""
        return None if self.number is None else 128 + self.number

    def hear(self, number: int, _frame: FrameType | None = None) -> None:
        """A signal has come.

        Raises:
            KeyboardInterrupt: it is the first, and Ctrl-C.
            Terminated: it is the first, and another.
        """
        if self.number is not None:
            if self._now_s() - self._first_s > _DEAF_S:
                self._leave(128 + number)
            return
        self.number, self._first_s = number, self._now_s()
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


_current: list[Ending] = []  # that of the block that this process is in


@contextmanager
def ending_cleanly() -> Iterator[Ending]:
    """Signals that end a process raise KeyboardInterrupt in the block, unless they are ignored or handled already.

    Within another such block, and in a thread, nothing changes: only the main thread may say what a signal does.
    """
    if _current or threading.current_thread() is not threading.main_thread():
        yield _current[0] if _current else Ending()
        return
    ending = Ending()
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in _ENDING if signal.getsignal(number) in usual}
    _current.append(ending)
    try:
        for number in before:
            signal.signal(number, ending.hear)
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if ending.last and ending.number is not None else handler)
        _current.clear()
