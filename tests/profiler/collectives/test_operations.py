"""Collectives do what they are called, on two processes; repeated sums stay finite."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch

from moemodel.profiler.collectives.operations import Operation, computation

# Each rank knows the other's data by its seed, and so what it must receive.
CHECK = """
import torch
from moemodel.profiler.jobs import ranks
from moemodel.profiler.collectives.operations import Buffers
from moemodel.profiler.collectives.process_groups import ProcessGroups
from moemodel.profiler.collectives.points import LinkPoint

joined = ranks.join(cpu=True, timeout_s=60)
me, other = joined.rank, 1 - joined.rank
groups = ProcessGroups(joined, [2], 60)
group = groups.group(2)
assert group.most(float(me)) == 1.0
said = {"a": None, "b": 1.5}
assert groups.gather([me, said]) == ([[0, said], [1, said]] if me == 0 else [])
buffers = Buffers(joined.device, 4096, seed=me)
theirs = Buffers(joined.device, 4096, seed=other).source
mine = buffers.source.clone()
N = 512  # elements of 1 KiB

def run(collective, **more):
    buffers.sink.fill_(-7)
    operation = buffers.operation(LinkPoint(collective=collective, ranks=2, size_B=1024, **more), group)
    operation.run(1)
    assert torch.equal(buffers.source, mine), collective  # data sent are not changed
    return buffers.sink, operation

def both(first, second):
    return torch.cat([first, second] if me == 0 else [second, first])

def equal(found, expected):
    assert torch.allclose(found.float(), expected.float(), rtol=1e-2, atol=0), (found, expected)
    assert (buffers.sink[len(expected):] == -7).all()  # and nothing else is written

sink, operation = run("all_reduce")
assert torch.allclose(sink[:N].float() * 2.0**100, (mine[:N] + theirs[:N]).float(), rtol=2e-2, atol=2e-2)
operation.run(operation.calls_most)
assert torch.isfinite(sink[:N].float()).all()
equal(run("reduce_scatter")[0][:N // 2], (mine[:N] + theirs[:N]).chunk(2)[me])
equal(run("all_gather")[0][:N], both(mine[:N // 2], theirs[:N // 2]))
equal(run("all_to_all")[0][:N], both(mine[:N].chunk(2)[me], theirs[:N].chunk(2)[me]))
cut = int(N * 0.75)
share = slice(0, cut) if me == 0 else slice(cut, N)
equal(run("all_to_all", skew=1.5)[0][: 2 * (share.stop - share.start)], both(mine[share], theirs[share]))
equal(run("send_recv")[0][:N], theirs[:N])
equal(run("exchange")[0][:N], theirs[:N])
try:
    run("gossip")
except ValueError as error:
    assert str(error) == "no such collective: gossip"
ranks.leave()
"""


def test_each_collective_moves_what_it_says() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CHECK],
            env={**os.environ, **world, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=90)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)


def test_data_are_fresh_as_often_as_they_must_be() -> None:
    done: list[str] = []
    operation = Operation(call=lambda: done.append("call"), prepare=lambda: done.append("prepare"), calls_most=2)
    operation.run(5)
    assert done == ["prepare", "call", "call", "prepare", "call", "call", "prepare", "call"]


@pytest.mark.parametrize("shape", [("gemm", 4, 6, 8), ("add", 10, 0, 0)])
def test_computations_compute(shape: tuple[str, int, int, int]) -> None:
    call = computation(*shape, torch.device("cpu"), 0)
    first = call().clone()
    assert first.shape == ((4, 6) if shape[0] == "gemm" else (10,))
    assert first.abs().sum() > 0
    assert torch.equal(call(), first)
