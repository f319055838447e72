"""Sequences of a run: the same for every plan, a replica its share; real text in turn; spans for encoder-decoders."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moemodel.model.architecture.denoising import denoising_of
from moemodel.model.architecture.spec import Architecture, Attention, Layer, Mlp
from moemodel.model.core.errors import InputError
from moemodel.model.plan.spec import ParallelSpec
from moemodel.profiler.backends.base import TrainingRun
from moemodel.profiler.backends.torch_native.batches import Batches
from moemodel.profiler.data.spec import DataSpec
from moemodel.profiler.data.text import load

_CPU = torch.device("cpu")
_LAYER = Layer(
    attentions=(Attention(heads=2, kv_heads=2, head_dim=8),),
    feed_forward=Mlp(width=16, activation="relu", gated=False),
    norm="rms",
)
_DECODER = Architecture(name="tiny", hidden=16, vocab=512, embedding_width=16, tied=True, decoder=(_LAYER,))
_BOTH = replace(_DECODER, encoder=(_LAYER,))


def _run(**options: Any) -> TrainingRun:
    settings: dict[str, Any] = {"architecture": _DECODER, "seq": 16, "micro_batch": 2, "micro_batches": 2}
    return TrainingRun(name="tiny", **settings | options)


def _rows(batches: Batches) -> tuple[Tensor, Tensor]:
    tokens, targets = batches.step()
    return tokens.flatten(0, 1), targets.flatten(0, 1)


@pytest.mark.parametrize("data", [None, DataSpec(tokens=4096), DataSpec(source="synthetic", zipf_exponent=0.0)])
@pytest.mark.parametrize("architecture", [_DECODER, _BOTH], ids=["decoder", "both"])
def test_every_plan_sees_the_same_sequences_a_replica_its_share(data: Any, architecture: Architecture) -> None:
    whole = Batches(_run(data=data, architecture=architecture, micro_batch=4, micro_batches=1), _CPU)
    shared = _run(data=data, architecture=architecture, micro_batches=1, parallel=ParallelSpec(dp=2))
    replicas = [Batches(shared, _CPU, replica) for replica in range(2)]
    steps = [_rows(whole) for _ in range(3)]
    for expected in steps:
        parts = [_rows(replica) for replica in replicas]
        for i in range(2):
            assert torch.equal(torch.cat([part[i] for part in parts]), expected[i])
    assert not torch.equal(steps[0][0], steps[1][0])


def test_a_decoder_is_asked_for_the_next_token_of_the_text() -> None:
    stream = load(DataSpec(tokens=4096), _DECODER).tokens.tolist()
    tokens, targets = _rows(Batches(_run(data=DataSpec(tokens=4096)), _CPU))
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    for row, last in zip(tokens.tolist(), targets[:, -1].tolist(), strict=True):
        assert any(stream[i : i + 17] == [*row, last] for i in range(0, len(stream), 16) if stream[i] == row[0])


def test_an_encoder_decoder_is_asked_for_what_is_hidden() -> None:
    tokens, targets = Batches(_run(data=DataSpec(tokens=4096), architecture=_BOTH), _CPU).step()
    lengths = denoising_of(16)
    assert tokens.shape == (2, 2, 16)
    assert targets.shape == (2, 2, lengths.target)
    assert (targets[..., 0] == _BOTH.vocab - 1).all()
    assert (tokens == _BOTH.vocab - 1).sum() == 4


def test_another_seed_is_another_order_of_the_same_text() -> None:
    first, second = (_rows(Batches(_run(data=DataSpec(tokens=4096), seed=seed), _CPU))[0] for seed in (0, 1))
    assert not torch.equal(first, second)


def test_a_short_text_comes_again(tmp_path: Path) -> None:
    shard = tmp_path / "a.json.gz"
    words = " ".join(f"w{i}" for i in range(40))
    shard.write_bytes(gzip.compress(json.dumps({"text": words}).encode()))
    batches = Batches(_run(data=DataSpec(source="c4", path=shard), micro_batch=1, micro_batches=1), _CPU)
    steps = [_rows(batches)[0] for _ in range(4)]
    assert torch.equal(steps[0], steps[2])
    assert torch.equal(steps[1], steps[3])
    assert not torch.equal(steps[0], steps[1])
    with pytest.raises(InputError, match="data: found a text of 41 tokens; allowed: at least 65, one sequence"):
        Batches(_run(data=DataSpec(source="c4", path=shard), seq=64), _CPU)
