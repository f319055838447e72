"""Callbacks against small loops that call them as the Trainers of Hugging Face and Lightning do."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moemodel.model.core.errors import InputError
from moemodel.profiler.meter.callbacks import hugging_face_callback, lightning_callback
from moemodel.profiler.meter.energy_meter import Meter


class _Base:
    """Every event that a test does not override does nothing, as in the libraries."""

    def on_epoch_begin(self, *_: Any, **__: Any) -> None: ...


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(TrainerCallback=_Base))


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning.pytorch", SimpleNamespace(Callback=_Base))


def _meter() -> Meter:
    return Meter(devices=["cpu"], strict=True)


def _calls(callback: Any) -> tuple[int, dict[str, int]]:
    device = callback.meter.summary().devices[0]
    return device.steps, {name: phase.calls for name, phase in device.phases.items()}


def hugging_face_loop(callback: Any, steps: int, micro_batches: int) -> None:
    """The order of `transformers.Trainer`'s events, an evaluation after every step."""
    model = torch.nn.Linear(4, 1)
    common = (None, None, None)
    callback.on_train_begin(*common, model=model)
    callback.on_epoch_begin(*common, model=model)
    for _ in range(steps):
        callback.on_step_begin(*common, model=model)
        for _ in range(micro_batches):
            model(torch.ones(2, 4)).sum().backward()
        callback.on_pre_optimizer_step(*common, model=model)
        callback.on_optimizer_step(*common, model=model)
        callback.on_step_end(*common, model=model)
        model.eval()
        model(torch.ones(2, 4))
        model.train()
    callback.on_train_end(*common, model=model)
    model(torch.ones(2, 4))  # its hooks are gone


@pytest.mark.usefixtures("transformers")
def test_hugging_face_phases() -> None:
    callback = hugging_face_callback(_meter())
    assert isinstance(callback, _Base)
    hugging_face_loop(callback, steps=3, micro_batches=2)
    assert _calls(callback) == (3, {"forward": 6, "backward": 6, "optimizer": 3})


@pytest.mark.usefixtures("transformers")
def test_hugging_face_without_hooks() -> None:
    callback = hugging_face_callback(_meter(), split=False)
    hugging_face_loop(callback, steps=3, micro_batches=2)
    assert _calls(callback) == (3, {"forward and backward": 3, "optimizer": 3})


def lightning_loop(callback: Any, batches: int, accumulate: int) -> None:
    """The order of Lightning's hooks under automatic optimisation."""
    callback.on_train_start(None, None)
    for i in range(batches):
        callback.on_train_batch_start(None, None, None, i)
        callback.on_before_backward(None, None, None)
        callback.on_after_backward(None, None)
        if (i + 1) % accumulate == 0:
            callback.on_before_optimizer_step(None, None, None)
        callback.on_train_batch_end(None, None, None, None, i)


@pytest.mark.usefixtures("lightning")
def test_lightning_phases() -> None:
    callback = lightning_callback(_meter())
    lightning_loop(callback, batches=6, accumulate=2)
    callback.on_train_end(None, None)
    assert _calls(callback) == (6, {"forward": 6, "backward": 6, "optimizer": 3})


@pytest.mark.usefixtures("lightning")
def test_lightning_stops_on_an_exception() -> None:
    callback = lightning_callback(_meter())
    lightning_loop(callback, batches=2, accumulate=1)
    callback.on_train_batch_start(None, None, None, 2)
    callback.on_exception(None, None, KeyboardInterrupt())
    assert _calls(callback) == (2, {"forward": 2, "backward": 2, "optimizer": 2})


@pytest.mark.parametrize(
    ("make", "modules", "extra"),
    [
        (hugging_face_callback, ["transformers"], "huggingface"),
        (lightning_callback, ["lightning.pytorch", "pytorch_lightning"], "lightning"),
    ],
)
def test_a_missing_library_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, make: Any, modules: list[str], extra: str
) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"cannot be imported .*pip install 'moemodel\[{extra}\]'"):
        make()
