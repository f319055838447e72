"""A profile that a launcher started in several processes: the first writes it, the others help with collectives.

The others wait, without touching their GPUs, for what the first asks them through the launcher's store (a request, or
nothing). The first one hands its own part to a process that it can end, as it does where it starts them all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from moemodel.profiler.collectives.request import Request, read_request
from moemodel.profiler.collectives.worker import serve
from moemodel.profiler.jobs.launcher import AGENT_STORE
from moemodel.profiler.jobs.ranks import open_store, started_with_others

_KEY = "moemodel/collectives"
_NOTHING = "nothing"
_PATIENCE = timedelta(hours=2)  # of the others, while the first measures what takes one GPU


def several(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of several of a launcher's job."""
    return started_with_others(environment) and int(environment["WORLD_SIZE"]) > 1


def helps(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of those that help the first."""
    return several(environment) and int(environment["RANK"]) > 0


class Helpers:
    """The other processes, seen by the first; whatever happens, they are told when nothing more is asked."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment
        self._store = open_store(environment, _PATIENCE)
        self._called = False

    def call(self, request: Request) -> dict[str, str]:
        """Ask them to measure; the environment in which the first's own part joins them."""
        self._called = True
        self._store.set(_KEY, request.text())
        return {**self._environment, AGENT_STORE: "True"}  # this process or torchrun's holds the store: no second one

    def dismiss(self) -> None:
        """Let them go, if they were not asked."""
        if not self._called:
            self._store.set(_KEY, _NOTHING)


@contextmanager
def first_of_job(environment: Mapping[str, str] = os.environ) -> Iterator[Helpers | None]:
    """The helpers of the first process of several; None in one that was started alone."""
    if not several(environment):
        yield None
        return
    helpers = Helpers(environment)
    try:
        yield helpers
    finally:
        helpers.dismiss()


def run_as_helper(environment: Mapping[str, str] = os.environ) -> None:
    """Wait for what the first asks, and do it.

    Raises:
        torch.distributed.DistError: the first said nothing for two hours, or is gone.
    """
    store = open_store(environment, _PATIENCE)
    store.wait([_KEY], _PATIENCE)
    asked = store.get(_KEY).decode()
    if asked == _NOTHING:
        return
    serve(read_request(asked))
