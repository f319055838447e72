"""A command that a signal ends has the exit status that a shell reports, whichever command it is; no traceback."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from moemodel import api

Run = Callable[..., Result]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_exit_status_of_a_signal(
    number: signal.Signals, moemodel: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(*_: Any, **__: Any) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr(api, "search", search)
    before = [signal.getsignal(each) for each in signal.Signals]
    try:
        result = moemodel("optimize", "search.yaml")
    finally:
        for each, handler in zip(signal.Signals, before, strict=True):
            if each not in (signal.SIGKILL, signal.SIGSTOP):
                signal.signal(each, handler)
    assert result.exit_code == 128 + number
    assert "Traceback" not in result.output
    assert not (folder / "moemodel-search.json").exists()
