"""One input at a time, within bounds: it is answered or refused, in seconds and megabytes, and never anything else."""

from __future__ import annotations

import json
import math
import resource
import signal
import time
import traceback
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from moemodel.cli import main
from moemodel.model.core.errors import MoeModelError

MOST_S = 10  # of the processor, whatever else is on it
MOST_B = 2 << 30
_LONGEST = 5000  # characters of a message
_SIGNED = ("warmer_inlet", "_C")  # parts of names of what may be below 0


class TooSlowError(BaseException):
    """No answer in time. No `Exception`, so that nothing under test catches it."""


@dataclass
class Counts:
    """What came of some inputs."""

    answered: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    faults: list[tuple[str, bytes]] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = Counter(what for what, _ in self.faults)
        lines = [f"{count} x {what}" for what, count in kinds.most_common(10)]
        first = dict(reversed(self.faults))
        shown = [f"{what}\n  {content[:3000]!r}" for what, content in first.items()]
        counts = f"{self.answered} answered, {self.refused} refused, {len(self.faults)} faults; {self.slowest_s:.1f} s"
        return "\n".join([counts, *lines, *shown[:10]])

    def run(self, content: bytes, check: Callable[[], bool]) -> None:
        """Count one input.

        Args:
            content: of it, kept where something is wrong.
            check: true: answered; false: refused; an exception is a fault.
        """
        start = time.perf_counter()
        try:
            with _alarm():
                answered = check()
        except (Exception, TooSlowError, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - all are faults
            self.faults.append((_signature(error), content))
        else:
            self.answered += answered
            self.refused += not answered
        self.slowest_s = max(self.slowest_s, time.perf_counter() - start)


def _signature(error: BaseException) -> str:
    if isinstance(error, AssertionError):
        return str(error)[:300]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/tests/" not in frame.filename]
    ours = [frame for frame in frames if "moemodel" in frame.filename or "/model/" in frame.filename] or frames
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}" if ours else "?"
    return f"{type(error).__name__} {str(error)[:120]} at {where}"


@contextmanager
def _alarm() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TooSlowError(f"no answer in {MOST_S} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, MOST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def bounded_memory() -> Iterator[None]:
    """No more than `MOST_B` beyond what the process has by now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_B, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def reads(read: Callable[[], Any]) -> bool:
    """Whether a function answers; refusing with this package's error is the only alternative."""
    try:
        read()
    except MoeModelError as error:
        _check_message(str(error))
        return False
    return True


def runs(*arguments: str) -> bool:
    """Whether a command answers; else it refuses with one message and exit code 2."""
    result = CliRunner().invoke(main, list(arguments), prog_name="moemodel")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 2), f"exit code {result.exit_code}"
    assert all(map(_is_visible, set(result.stdout + result.stderr))), "an escape sequence reaches the terminal"
    if result.exit_code == 0:
        assert not result.stderr, f"a message beside an answer: {result.stderr[:100]}"
        if "--json" in arguments:
            _check_figures(json.loads(result.stdout))
        return True
    assert not result.stdout, "refused, but something is printed"
    assert result.stderr.startswith(("moemodel: ", "Usage: ")), f"no message of ours: {result.stderr[:100]}"
    _check_message(result.stderr)
    return False


def _check_message(message: str) -> None:
    assert message.strip(), "no message"
    assert len(message) <= _LONGEST, f"a message of {len(message)} characters"
    assert "not enough memory" not in message, "out of memory"


def _is_visible(character: str) -> bool:
    return character == "\n" or unicodedata.category(character) not in ("Cc", "Cf", "Cs")


def _check_figures(value: Any, name: str = "") -> None:
    """No number of an answer is infinite, not a number, or below 0 where that makes no sense."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key != "plan":
                _check_figures(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for inner in value:
            _check_figures(inner, name)
    elif isinstance(value, float | int) and not isinstance(value, bool):
        assert math.isfinite(value), f"{name} is {value}"
        assert value >= 0 or any(part in name for part in _SIGNED), f"{name} is below 0"
