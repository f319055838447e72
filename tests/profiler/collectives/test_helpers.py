"""Helpers of a launcher's first process: what they are asked, over the launcher's store."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from moemodel.profiler.collectives import helpers as together
from moemodel.profiler.collectives.helpers import first_of_job, helps, run_as_helper, several
from moemodel.profiler.collectives.points import scale_for
from moemodel.profiler.collectives.request import Request
from moemodel.profiler.jobs import ranks

SOON_S = 60.0  # for what takes no time where nothing else runs


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    """Nothing to measure."""
    return Request(
        gpu="cpu",
        points=(),
        overlaps=(),
        scale=scale_for(cpu=True, ranks=2),
        seed=0,
        until_wall_s=0.0,
        events=tmp_path / "events.jsonl",
    )


@pytest.fixture
def store() -> TCPStore:
    """What torchrun's own process holds."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def environment(store: TCPStore, rank: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """What helpers were asked to measure."""
    requests: list[Request] = []
    monkeypatch.setattr(together, "serve", requests.append)
    return requests


def test_one_process_alone_has_nobody_to_help_it() -> None:
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    for started in ({}, alone):
        assert not several(started)
        assert not helps(started)
        with first_of_job(started) as helpers:
            assert helpers is None


def test_helpers_do_what_the_first_asks(store: TCPStore, asked: list[Request], request_: Request) -> None:
    assert helps(environment(store, 1))
    assert not helps(environment(store, 0))
    helper = threading.Thread(target=run_as_helper, args=(environment(store, 1),))
    helper.start()
    with first_of_job(environment(store, 0)) as helpers:
        assert helpers is not None
        joined = helpers.call(request_)
    helper.join(SOON_S)
    assert asked == [request_]
    assert joined == environment(store, 0)


def test_helpers_go_when_the_first_fails(store: TCPStore, asked: list[Request]) -> None:
    helper = threading.Thread(target=run_as_helper, args=(environment(store, 1),))
    helper.start()
    with pytest.raises(RuntimeError, match="no GPU"), first_of_job(environment(store, 0)):
        raise RuntimeError("no GPU")
    helper.join(SOON_S)
    assert not helper.is_alive()
    assert asked == []


def test_without_torchrun_the_first_holds_the_store_and_its_own_part_does_not(
    store: TCPStore, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []

    def fake(_: str, port: int, *, is_master: bool, master_listen_fd: int, **__: object) -> TCPStore:
        made.append(is_master)
        with socket.socket(fileno=master_listen_fd) as listener:
            assert listener.getsockname() == ("127.0.0.1", port)  # not on every interface
        return store

    monkeypatch.setattr(ranks, "TCPStore", fake)
    with socket.create_server(("127.0.0.1", 0)) as made_free:
        free = str(made_free.getsockname()[1])
    slurm = environment(store, 0) | {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": free}
    with first_of_job(slurm) as helpers:
        assert helpers is not None
        assert helpers.call(request_)["TORCHELASTIC_USE_AGENT_STORE"] == "True"
    assert made == [True]
