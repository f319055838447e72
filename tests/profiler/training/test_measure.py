"""Training runs on the CPU: every column, times that add up, energy against a counter of known power, plans."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moemodel.model.architecture.spec import Architecture, Attention, Layer, Mlp, Moe
from moemodel.model.core.errors import DeviceError, InputError
from moemodel.model.plan.spec import ParallelSpec, read_plan
from moemodel.model.records.profile import IterationRow, Value
from moemodel.profiler.backends.base import TrainingRun
from moemodel.profiler.backends.torch_native.batches import Batches, zipf_tokens
from moemodel.profiler.backends.torch_native.layer import Making
from moemodel.profiler.backends.torch_native.model import DecoderModel
from moemodel.profiler.backends.torch_native.trainer import Trainer
from moemodel.profiler.devices.cpu import CpuDevice
from moemodel.profiler.instruments.cycle_counter import ClockReader, Stamp
from moemodel.profiler.training import measure as training
from moemodel.profiler.training.measure import expert_skew, measure_plans, measure_run, training_run

_PLANS = Path(__file__).parents[3] / "bench" / "plans"

_DENSE = Layer(
    attentions=(Attention(heads=2, kv_heads=2, head_dim=8),),
    feed_forward=Mlp(width=32, activation="silu", gated=True),
    norm="rms",
)
_SPARSE = replace(_DENSE, feed_forward=Moe(experts=4, top_k=2, width=16, activation="silu", gated=True))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _run(layer: Layer = _DENSE, **options: Any) -> TrainingRun:
    architecture = Architecture(
        name="tiny", hidden=16, vocab=64, embedding_width=16, tied=False, decoder=(layer,) * 2, max_seq=64
    )
    settings: dict[str, Any] = {"seq": 16, "micro_batch": 2, "steps": 4, "warmup": 1}
    return TrainingRun(name="tiny", architecture=architecture, **{**settings, **options})


class _Meter(CpuDevice):
    """A device that draws 100 W, counted in ticks of 1 ms."""

    def energy_J(self) -> float | None:
        return 0.1 * (time.perf_counter() // 0.001)

    def used_memory_B(self) -> float | None:
        return 3e9

    def temperature_C(self) -> float | None:
        return 55.0


class _Writer:
    def __init__(self) -> None:
        self.rows: list[IterationRow] = []

    def append(self, rows: Iterable[IterationRow]) -> None:
        self.rows.extend(rows)

    def has(self, kind: type[IterationRow], /, **columns: Value) -> bool:
        assert kind is IterationRow
        return any(old.plan == columns["plan"] for old in self.rows)

    def flush(self) -> None:
        return None


# --- one run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [_DENSE, _SPARSE], ids=["dense", "sparse"])
def test_a_row_has_every_column_and_times_that_add_up(layer: Layer) -> None:
    row = measure_run(_run(layer, micro_batches=2), CpuDevice(), build=Trainer, warm_s=0.0, measured_s=0.0)
    assert row.steps == 4
    phases_s = row.forward_time_s + row.backward_time_s + row.optimizer_time_s
    assert 0 < phases_s <= row.step_time_s * 1.0001
    assert row.step_time_std_s >= 0
    assert row.host_time_s > 0
    assert (row.expert_skew is None) == (layer is _DENSE)
    assert row.peak_allocated_B is None
    assert row.clock_Hz is None
    assert 0 < row.loss_last < 2 * row.loss_first


def test_energy_is_power_times_step_time() -> None:
    """Over a number of steps, which a busy machine makes longer, and not over a time, which it makes uncertain."""
    row = measure_run(_run(steps=200), _Meter(), build=Trainer, warm_s=0.0, measured_s=0.0)
    assert row.steps == 200
    assert row.power_W == pytest.approx(100, rel=0.1)
    assert row.energy_J == pytest.approx(row.power_W * row.step_time_s)
    assert row.device_used_B == 3_000_000_000
    assert row.temperature_C == 55.0


def test_short_steps_are_repeated_until_the_counter_has_ticked_enough() -> None:
    row = measure_run(_run(), CpuDevice(), build=Trainer, warm_s=0.0, measured_s=0.3)
    assert row.steps > 4


def test_the_same_seed_trains_the_same_model() -> None:
    losses = [
        measure_run(_run(seed=seed), CpuDevice(), build=Trainer, warm_s=0.0, measured_s=0.0).loss_first
        for seed in (3, 3, 4)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_accumulated_gradients_are_those_of_the_mean_loss() -> None:
    def gradients(micro_batches: int) -> list[torch.Tensor]:
        trainer = Trainer(_run(micro_batches=micro_batches), torch.device("cpu"))
        batch = trainer._batches.step()
        first = tuple(part[0] for part in batch)
        for _ in range(micro_batches):
            trainer._queue = [first]  # type: ignore[list-item]
            trainer.backward(trainer.forward())
        return [p.grad for p in trainer.model.parameters() if p.grad is not None]

    for once, often in zip(gradients(1), gradients(4), strict=True):
        torch.testing.assert_close(often, once, rtol=0.05, atol=1e-3)  # sums of bf16


def test_training_learns() -> None:
    trainer = Trainer(_run(_SPARSE, lr=3e-3), torch.device("cpu"))
    losses = []
    for _ in range(80):
        trainer.step()
        losses.append(trainer.loss())
    assert losses[-1] < losses[0] - 0.3


def test_the_loss_is_the_mean_over_the_global_batch() -> None:
    losses = []
    for micro_batch, micro_batches in ((4, 1), (2, 2), (1, 4)):
        run = _run(micro_batch=micro_batch, micro_batches=micro_batches, dtype="float32", lr=1e-2)
        trainer = Trainer(run, torch.device("cpu"))
        for _ in range(3):
            trainer.step()
        losses.append(trainer.loss())
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)  # the same sequences in the same steps


def test_replicas_share_out_each_step() -> None:
    whole = Batches(_run(micro_batches=4), torch.device("cpu"))
    run = _run(micro_batches=2, parallel=ParallelSpec(dp=2))
    replicas = [Batches(run, torch.device("cpu"), replica) for replica in range(2)]
    for _ in range(20):  # past the end of the pool
        tokens = torch.cat([replica.step()[0] for replica in replicas])
        assert torch.equal(tokens, whole.step()[0])


def test_a_loss_that_is_no_number_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "backward", lambda _, loss: (loss * torch.nan).backward())
    with pytest.raises(DeviceError, match="tiny: the loss became nan"):
        measure_run(_run(), CpuDevice(), build=Trainer, warm_s=0.0, measured_s=0.0)


# --- marks -----------------------------------------------------------------------------------------------------------


class _Clock(ClockReader):
    """One gigahertz for every stamp that lies between two readings."""

    def __init__(self) -> None:
        self._next = 0

    def stamp(self) -> Stamp | None:
        self._next += 1
        return Stamp(slot=self._next, number=self._next)

    def means_Hz(self, pairs: Sequence[tuple[Stamp | None, Stamp | None]]) -> list[float | None]:
        return [None if a is None or b is None else 1e9 * b.number for a, b in pairs]


class _At:
    """An event at a given time."""

    def __init__(self, times_s: Iterator[float]) -> None:
        self._times_s = times_s

    def record(self) -> None:
        self.at_s = next(self._times_s)

    def elapsed_time(self, later: _At) -> float:
        return (later.at_s - self.at_s) * 1e3


def _timeline(times_s: Sequence[float], phases: Sequence[str], stamped: Sequence[bool]) -> training._Timeline:
    timeline = training._Timeline(torch.device("cpu"), _Clock())
    at = iter(times_s)
    timeline._event = lambda: _At(at)
    for read_clock in stamped:
        timeline.stamped = read_clock
        for phase in phases:
            timeline.mark(phase)
    return timeline


def test_marks_give_phase_and_step_times() -> None:
    phases = ("start", "forward", "backward", "forward", "backward", "optimizer")
    timeline = _timeline([0, 1, 3, 4, 6, 7, 8, 9, 11, 12, 14, 15], phases, [False, False])
    assert timeline.phase_times_s() == pytest.approx({"forward": 2.0, "backward": 4.0, "optimizer": 1.0})
    assert timeline.step_times_s() == pytest.approx([8.0, 7.0])  # the gap between steps belongs to the first
    assert timeline.clocks_Hz() == {"forward": None, "backward": None, "optimizer": None, "step": None}


def test_clocks_are_weighted_by_time() -> None:
    phases = ("start", "forward", "backward", "optimizer")
    timeline = _timeline([0, 1, 3, 4, 4, 7, 9, 10, 10, 11, 12, 13], phases, [True, True, False])
    clocks = timeline.clocks_Hz()
    # the fake clock says 2, 3, 4 GHz in the first step's phases and 6, 7, 8 GHz in the second's
    assert clocks["forward"] == pytest.approx((2e9 * 1 + 6e9 * 3) / 4)
    assert clocks["step"] == pytest.approx((2 * 1 + 3 * 2 + 4 * 1 + 6 * 3 + 7 * 2 + 8 * 1) * 1e9 / 10)


def test_stamps_fit_in_the_ring() -> None:
    class Still:
        marks = 4

        def step(self, mark: Any) -> None:
            for phase in ("start", "forward", "backward", "optimizer"):
                mark(phase)

    clock = _Clock()
    timeline = training._Timeline(torch.device("cpu"), clock)
    training._run_steps(Still(), timeline, 1000)  # type: ignore[arg-type]
    assert 256 <= clock._next <= 512 + 4


# --- data ------------------------------------------------------------------------------------------------------------


def test_zipf_tokens_fall_with_rank() -> None:
    counts = torch.bincount(zipf_tokens(100, (200_000,), seed=1), minlength=100).double()
    assert counts.numel() == 100
    harmonic = sum(1 / r for r in range(1, 101))
    for rank in (1, 2, 10):
        assert counts[rank - 1] / 200_000 == pytest.approx(1 / rank / harmonic, rel=0.05)


def test_targets_are_the_next_tokens() -> None:
    batches = Batches(_run(micro_batches=3), torch.device("cpu"))
    tokens, targets = batches.step()
    assert tokens.shape == targets.shape == (3, 2, 16)
    assert torch.equal(tokens[..., 1:], targets[..., :-1])
    assert not torch.equal(tokens, batches.step()[0])


def test_skew_is_the_busiest_over_the_mean() -> None:
    assert expert_skew([]) is None
    assert expert_skew([torch.tensor([5, 5, 5, 5])]) == pytest.approx(1.0)
    assert expert_skew([torch.tensor([8, 0, 0, 0]), torch.tensor([4, 0, 4, 0])]) == pytest.approx(3.0)


# --- plans -----------------------------------------------------------------------------------------------------------

_CONFIG = """{"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32,
"num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}"""
_PLAN = """name: {name}
architecture: config.json
layers: {layers}
sequence_length: 16
global_batch: 4
micro_batch: 2
cluster: {{gpu: cpu, gpus: 1}}
"""


def _plan(folder: Path, name: str, layers: int = 2, extra: str = "") -> Path:
    (folder / "config.json").write_text(_CONFIG)
    path = folder / f"{name}.yaml"
    path.write_text(_PLAN.format(name=name, layers=layers) + extra)
    return path


def _run_of(path: Path) -> TrainingRun:
    return training_run(read_plan(path), path)


def test_a_plan_becomes_a_run(tmp_path: Path) -> None:
    path = _plan(tmp_path, "two", extra="recompute: full\nprecision: bf16\n")
    run = _run_of(path)
    assert (run.name, run.seq, run.micro_batch, run.micro_batches) == ("two", 16, 2, 2)
    assert (run.recompute, run.precision) == ("full", "bf16")
    assert len(run.architecture.decoder) == 2
    assert run.plan_yaml == path.read_text()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("backend: megatron\n", "backend: found 'megatron'; allowed here: torch"),
        ("clock_MHz: 1200\n", "no setting of the GPU is changed"),
    ],
)
def test_refuses_plans_for_others(tmp_path: Path, extra: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _run_of(_plan(tmp_path, "other", extra=extra))


def test_refuses_more_gpus_and_more_layers(tmp_path: Path) -> None:
    path = _plan(tmp_path, "wide", extra="parallel: {dp: 2}\n")
    path.write_text(path.read_text().replace("gpus: 1", "gpus: 2"))
    with pytest.raises(InputError, match=r"cluster\.gpus: found 2; allowed here: 1"):
        _run_of(path)
    with pytest.raises(InputError, match="layers: found 4; allowed: 1 to 3"):
        _run_of(_plan(tmp_path, "deep", layers=4))


def test_a_plan_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [_plan(tmp_path, "deep", layers=4), _plan(tmp_path, "huge", layers=3), _plan(tmp_path, "fine")]
    real = training.measure_run

    def run_out_of_memory(run: TrainingRun, *arguments: Any, **options: Any) -> IterationRow:
        if run.name == "huge":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")
        return real(replace(run, steps=2, warmup=1), *arguments, **options)

    monkeypatch.setattr(training, "measure_run", run_out_of_memory)
    writer, said = _Writer(), list[str]()
    failed = measure_plans(paths, CpuDevice(), writer, report=said.append, warm_s=0.0, measured_s=0.0)
    assert [f.plan for f in failed] == ["deep", "huge"]
    assert failed[1].reason == ("does not fit in the GPU's memory: CUDA out of memory. Tried to allocate 9 GiB.")
    assert [row.plan for row in writer.rows] == ["fine"]
    assert said[-1].startswith("fine: ")


def test_plans_that_were_measured_are_left_out(tmp_path: Path) -> None:
    writer = _Writer()
    writer.rows.append(IterationRow(plan="done", rank=0, steps=1, step_time_s=1.0))
    assert measure_plans([_plan(tmp_path, "done")], CpuDevice(), writer) == []
    assert len(writer.rows) == 1


@pytest.mark.parametrize("path", sorted(_PLANS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_plan_that_ships_can_be_built(path: Path) -> None:
    run = _run_of(path)
    assert run.name == path.stem
    assert run.name in (_PLANS / "README.md").read_text()
    with torch.device("meta"):
        DecoderModel(run.architecture, Making(recompute=run.recompute))
