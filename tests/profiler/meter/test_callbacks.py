"""Callbacks against small loops that call them as the Trainers of Hugging Face and Lightning do."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moemodel.model.core.errors import InputError
from moemodel.profiler.meter.batches import sizes_of
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
        callback.on_train_batch_start(None, None, {"input_ids": torch.zeros(4, 16, dtype=torch.int64)}, i)
        callback.on_before_backward(None, None, None)
        callback.on_after_backward(None, None)
        if (i + 1) % accumulate == 0:
            callback.on_before_optimizer_step(None, None, None)
        callback.on_train_batch_end(None, None, {"loss": torch.tensor(float(i))}, None, i)


@pytest.mark.usefixtures("lightning")
def test_lightning_phases() -> None:
    callback = lightning_callback(_meter())
    lightning_loop(callback, batches=6, accumulate=2)
    callback.on_train_end(None, None)
    assert _calls(callback) == (3, {"forward": 6, "backward": 6, "optimizer": 3})


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


# --- one meaning of a step, and what the loop tells of it ------------------------------------------------------------


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rank0-steps.jsonl").read_text().splitlines()]


class _Causal(torch.nn.Module):
    """A model that answers as those of transformers do, by names."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.calls = 0

    def forward(self, input_ids: torch.Tensor, num_items_in_batch: int | None = None) -> SimpleNamespace:
        del num_items_in_batch
        self.calls += 1
        return SimpleNamespace(loss=self.layer(input_ids.float().mean().reshape(1)).sum() * 0 + self.calls)


@pytest.mark.usefixtures("transformers")
@pytest.mark.parametrize(("partial", "loss"), [(None, 1.5), (64, None)])
def test_hugging_faces_steps_carry_their_micro_batches(tmp_path: Path, partial: int | None, loss: float | None) -> None:
    callback = hugging_face_callback(Meter(tmp_path, devices=["cpu"], strict=True))
    model = _Causal()
    common = (None, None, None)
    callback.on_train_begin(*common, model=model)
    for _ in range(2):
        callback.on_step_begin(*common)
        for _ in range(2):
            model(input_ids=torch.zeros(4, 16, dtype=torch.int64), num_items_in_batch=partial).loss.backward()
        callback.on_pre_optimizer_step(*common)
        callback.on_optimizer_step(*common)
        callback.on_step_end(*common)
        model.eval()
        model(torch.zeros(2, 2))  # an evaluation is no micro-batch
        model.train()
    callback.on_train_end(*common)
    rows = _rows(tmp_path)
    assert [(row["micro_batches"], row["samples"], row["tokens"]) for row in rows] == [(2, 8, 128)] * 2
    assert rows[0].get("loss") == loss
    summary = callback.meter.summary()
    assert (summary.micro_batches, summary.samples, summary.tokens) == (4, 16, 256)


@pytest.mark.usefixtures("transformers")
def test_without_hooks_micro_batches_are_counted(tmp_path: Path) -> None:
    callback = hugging_face_callback(Meter(tmp_path, devices=["cpu"], strict=True), split=False)
    common = (None, None, None)
    callback.on_train_begin(*common, model=None)
    callback.on_step_begin(*common)
    callback.on_substep_end(*common)
    callback.on_substep_end(*common)
    callback.on_pre_optimizer_step(*common)
    callback.on_optimizer_step(*common)
    callback.on_step_end(*common)
    callback.on_train_end(*common)
    assert [row["micro_batches"] for row in _rows(tmp_path)] == [3]


@pytest.mark.usefixtures("lightning")
def test_lightnings_steps_are_optimizer_steps_too(tmp_path: Path) -> None:
    callback = lightning_callback(Meter(tmp_path, devices=["cpu"], strict=True))
    lightning_loop(callback, batches=7, accumulate=3)
    callback.on_train_end(None, None)
    rows = _rows(tmp_path)  # the seventh batch had no optimizer: it is no step
    assert [(row["micro_batches"], row["samples"], row["tokens"], row["loss"]) for row in rows] == [
        (3, 12, 192, 1.0),
        (3, 12, 192, 4.0),
    ]


@pytest.mark.usefixtures("lightning")
def test_a_validation_within_a_step_is_a_phase_of_its_own() -> None:
    callback = lightning_callback(_meter())
    callback.on_train_start(None, None)
    for i in range(2):
        callback.on_train_batch_start(None, None, None, i)
        callback.on_before_backward(None, None, None)
        callback.on_after_backward(None, None)
        if i:
            callback.on_before_optimizer_step(None, None, None)
        callback.on_train_batch_end(None, None, None, None, i)
        callback.on_validation_start(None, None)  # the second falls between steps
        callback.on_validation_end(None, None)
    callback.on_train_end(None, None)
    assert _calls(callback) == (1, {"forward": 2, "backward": 2, "validation": 1, "optimizer": 1})


def test_a_loop_of_ones_own_tells_by_add_batch(tmp_path: Path) -> None:
    with Meter(tmp_path, devices=["cpu"], read_every=2) as meter:
        with pytest.warns(RuntimeWarning, match="add_batch: no step has begun"):
            meter.add_batch(samples=1)
        for loss in (2.0, torch.tensor([3.0], requires_grad=True), float("nan"), None):
            with meter.step():
                meter.add_batch(samples=8, tokens=None if loss is None else 100, loss=loss)
        with suppress(KeyError), meter.step():
            meter.add_batch(samples=99)
            raise KeyError
        with meter.step():
            pass
    rows = _rows(tmp_path)
    assert [row.get("loss") for row in rows] == [2.0, 3.0, "nan", None, None]
    assert [row.get("samples") for row in rows] == [8, 8, 8, 8, None]
    assert "micro_batches" not in rows[4]
    summary = meter.summary()
    assert (summary.micro_batches, summary.samples, summary.tokens) == (None, None, None)
    assert any("told nothing of 1 of 5 steps" in note for note in summary.notes)


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [
        ({"input_ids": torch.zeros(4, 16), "labels": torch.zeros(4)}, (4, 64)),
        ({"pixels": torch.zeros(3, 8, 8)}, (3, None)),
        ((torch.zeros(5, 2), torch.zeros(5)), (5, None)),
        ([{"x": [torch.zeros(6)]}], (6, None)),
        (torch.tensor(1.0), (None, None)),
        (None, (None, None)),
        ("text", (None, None)),
    ],
)
def test_sizes_of_batches(batch: Any, sizes: tuple[int | None, int | None]) -> None:
    assert sizes_of(batch) == sizes
