"""Folders of `moemodel run` for tests, written by its records: several frameworks, batches, models and repeats, and
runs that did not end well. What they hold is made up, of the order of a small model on one GPU, and adds up as a run's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moemodel.model.plan.spec import Plan, plan_text
from moemodel.model.records.run import (
    MANIFEST,
    MATRIX,
    PREDICTED,
    RESULT,
    MatrixRecord,
    PhaseEnergy,
    RankResult,
    RoutingRecord,
    RunManifest,
    RunResult,
    StepRecord,
    rank_file,
    routing_file,
    steps_file,
)

SAMPLES, WARMUP = 320, 10
EXPERTS, LAYERS = 64, 2
POWER_W = 500.0
STEP_S = {"torch": 0.100, "deepspeed": 0.125, "megatron-core": 0.080}  # of a batch of 8
_PHASES = {"forward": (0.30, 0.95), "backward": (0.55, 1.05), "optimizer": (0.10, 0.80)}  # shares of time, of power
_GPU = "NVIDIA H100 80GB HBM3"


@dataclass(frozen=True, kw_only=True)
class MadeRun:
    """One run to write.

    Attributes:
        backend, batch, model, gpus: of its plan.
        repeat: of its cell; its seed, too.
        slower: factor on the time, and so on the energy, that nobody foresaw.
        work: factor on the time that was foreseen.
        samples: it trains on.
        status, reason, largest_term: how it ends; "cut short": without a result.
        keys: others of its plan.
        predicted: factor of what was predicted over what is measured; None: nothing was.
        energy: whether its GPU has a sensor.
        skew: rows of the first expert over the mean.
        dropped: share of rows.
    """

    backend: str = "torch"
    batch: int = 8
    model: str = "olmoe-1b-7b"
    gpus: int = 1
    repeat: int = 0
    slower: float = 1.0
    work: float = 1.0
    samples: int = SAMPLES
    status: str = "done"
    reason: str | None = None
    largest_term: str | None = None
    keys: Mapping[str, Any] = field(default_factory=dict)
    predicted: float | None = 1.05
    energy: bool = True
    skew: float = 2.0
    dropped: float = 0.0
    gpu: str = _GPU

    @property
    def name(self) -> str:
        """Of its folder, as a matrix over these keys gives it."""
        return f"backend-{self.backend}_global_batch-{self.batch}_architecture-{self.model}_repeat-{self.repeat}"

    @property
    def cell(self) -> dict[str, Any]:
        """In what it differs from others of the matrix."""
        return {"backend": self.backend, "global_batch": self.batch, "architecture": self.model}

    @property
    def plan(self) -> Plan:
        """That it runs."""
        parallel = {"dp": self.gpus, "ep": self.gpus}
        keys = {"layers": LAYERS, "sequence_length": 256, "micro_batch": self.batch // self.gpus, "parallel": parallel}
        cluster = {"gpu": "h100-sxm-80gb", "gpus": self.gpus}
        return Plan.model_validate(
            {"name": self.name, "architecture": self.model, "global_batch": self.batch, "backend": self.backend}
            | keys | {"cluster": cluster} | dict(self.keys)
        )  # fmt: skip

    @property
    def step_s(self) -> float:
        """Mean time of a step."""
        return self.foreseen_s * self.slower

    @property
    def foreseen_s(self) -> float:
        """Of a step, without what nobody foresaw."""
        return STEP_S[self.backend] * self.batch / 8 / self.gpus * self.work


def write_matrix(folder: Path, runs: Sequence[MadeRun], *, asked: int | None = None) -> Path:
    """A matrix folder of some runs; `asked`: repeats in its document, of which some may not have begun."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "backend": sorted({run.backend for run in runs}),
        "global_batch": sorted({run.batch for run in runs}),
        "architecture": sorted({run.model for run in runs}),
    }
    repeats = asked or 1 + max(run.repeat for run in runs)
    document = {"matrix": values, "samples": runs[0].samples, "warmup_steps": WARMUP, "repeats": repeats}
    record = MatrixRecord(name=folder.name, document=document)
    (folder / MATRIX).write_text(record.model_dump_json(indent=1), encoding="utf-8")
    for run in runs:
        write_run(folder / run.name, run)
    return folder


def write_run(folder: Path, run: MadeRun) -> Path:
    """The folder of one run."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / MANIFEST, manifest_of(run, folder.name))
    if run.predicted is not None:
        (folder / PREDICTED).write_text(json.dumps(_predicted(run)), encoding="utf-8")
    if run.status == "done":
        _write(folder / RESULT, _done(folder, run))
    elif run.status != "cut short":
        ended = {"status": run.status, "reason": run.reason, "largest_term": run.largest_term}
        _write(folder / RESULT, RunResult.model_validate(ended))
    return folder


def manifest_of(run: MadeRun, name: str) -> RunManifest:
    """What was asked for."""
    return RunManifest(
        name=name,
        cell=run.cell,
        plan_yaml=plan_text(run.plan),
        samples=run.samples,
        steps=run.samples // run.batch,
        warmup_steps=WARMUP,
        learning_rate=1e-4,
        data={"source": "corpus"},
        seed=run.repeat,
        repeat=run.repeat,
        gpu=run.gpu,
        versions={"moemodel": "0.1.0", "torch": "2.13.0"},
        started=f"2026-11-28T12:{run.repeat:02d}:00+00:00",
    )


def _write(file: Path, record: RunManifest | RunResult | RankResult) -> None:
    file.write_text(record.model_dump_json(indent=1), encoding="utf-8")


def _write_lines(file: Path, records: Iterable[StepRecord | RoutingRecord]) -> None:
    file.write_text("".join(record.model_dump_json() + "\n" for record in records), encoding="utf-8")


def _done(folder: Path, run: MadeRun) -> RunResult:
    """A run's steps, routing and ranks, and the result that follows from them."""
    random = np.random.default_rng([run.repeat, run.batch, len(run.backend), len(run.model)])
    count = run.samples // run.batch
    times_s = run.step_s * (1 + 0.01 * random.standard_normal((run.gpus, count)))
    losses = _losses(run, count, random)
    ranks = []
    for rank, of_rank_s in enumerate(times_s):
        _write_lines(folder / steps_file(rank), _steps(run, of_rank_s, losses))
        if "olmoe" in run.model:
            _write_lines(folder / routing_file(rank), _routing(run, count, random))
        ranks.append(_rank(run, rank, float(of_rank_s.sum())))
        _write(folder / rank_file(rank), ranks[-1])
    return _result(run, times_s, losses, ranks)


def _losses(run: MadeRun, count: int, random: np.random.Generator) -> Any:
    samples = run.batch * np.arange(1, count + 1)
    return 6.0 + 4.8 * np.exp(-samples / 150.0) + 0.02 * random.standard_normal(count)


def _steps(run: MadeRun, times_s: Any, losses: Any) -> list[StepRecord]:
    return [
        StepRecord(
            step=step,
            time_s=time_s,
            **{f"{name}_s": share * time_s for name, (share, _) in _PHASES.items()},
            energy_J=POWER_W * time_s if run.energy else None,
            clock_Hz=1.755e9,
            temperature_C=55.0,
            allocated_B=2_000_000_000 * run.batch,
            reserved_B=2_200_000_000 * run.batch,
            task_loss=loss,
            router_loss=0.02,
        )
        for step, (time_s, loss) in enumerate(zip(times_s.tolist(), losses.tolist(), strict=True))
    ]


def _routing(run: MadeRun, count: int, random: np.random.Generator) -> list[RoutingRecord]:
    """Loads that even out a little while the run trains."""
    found = []
    rows = run.batch // run.gpus * 256 * 8
    for step in range(count):
        first = (1 + (run.skew - 1) * (1 - 0.3 * step / count)) / EXPERTS
        shares = np.array([first, *[(1 - first) / (EXPERTS - 1)] * (EXPERTS - 1)])
        for layer in range(LAYERS):
            rows_E = random.multinomial(rows, np.roll(shares, 5 * layer))
            entropy = 3.9 - 0.1 * layer if step % 16 == 0 else None
            dropped = round(run.dropped * rows)
            found.append(
                RoutingRecord(step=step, layer=layer, rows_E=rows_E.tolist(), dropped=dropped, entropy=entropy)
            )
    return found


def _rank(run: MadeRun, rank: int, duration_s: float) -> RankResult:
    energy_J = POWER_W * duration_s if run.energy else None
    phases = {
        name: PhaseEnergy(time_s=share * duration_s, energy_J=None if energy_J is None else share * of_power * energy_J)
        for name, (share, of_power) in _PHASES.items()
    }
    return RankResult(
        rank=rank,
        duration_s=duration_s,
        energy_J=energy_J,
        emissions_kg=None if energy_J is None else energy_J / 3.6e6 * 0.4,
        power_W=POWER_W if run.energy else None,
        clock_Hz=1.755e9,
        temperature_C=55.0,
        peak_allocated_B=2_000_000_000 * run.batch,
        peak_reserved_B=2_200_000_000 * run.batch,
        parameters=1_000_000,
        phases=phases,
    )


def _result(run: MadeRun, times_s: Any, losses: Any, ranks: list[RankResult]) -> RunResult:
    slowest_s = times_s.max(axis=0)
    energies_J = [rank.energy_J or 0.0 for rank in ranks]
    return RunResult(
        status="done",
        steps=len(losses),
        samples=run.samples,
        duration_s=float(times_s.sum(axis=1).max()),
        step_time_s=float(slowest_s.mean()),
        step_time_std_s=float(slowest_s.std(ddof=1)) if len(losses) > 1 else None,
        energy_J=sum(energies_J) if run.energy else None,
        emissions_kg=sum(energies_J) / 3.6e6 * 0.4 if run.energy else None,
        task_loss_first=float(losses[0]),
        task_loss_last=float(losses[-max(1, round(0.1 * len(losses))) :].mean()),
        ranks=ranks,
    )


def _predicted(run: MadeRun) -> dict[str, Any]:
    """As `moemodel predict --json` says it, of what is compared."""
    factor = run.predicted or 1.0
    time_s, energy_J = run.foreseen_s * factor, run.foreseen_s * factor * POWER_W * run.gpus

    def estimate(value: float) -> dict[str, Any]:
        return {"value": value, "interval": [value / 1.08, value * 1.08]}

    phases = {
        name: {"time_s": share * time_s, "energy_J": share * of_power * energy_J}
        for name, (share, of_power) in _PHASES.items()
    }
    idle = {"time_s": 0.05 * time_s, "energy_J": 0.02 * energy_J}
    return {
        "gpu": "h100-sxm-80gb",
        "calibration": "h100-sxm-80gb",
        "step": {"step_time_s": estimate(time_s), "gpu_energy_J": estimate(energy_J)},
        "memory": {"peak_B": estimate(2.0e9 * run.batch * factor), "terms_B": {"activations": 1e9, "gradients": 9e8}},
        "phases": phases | {"communication": {"time_s": 0.0, "energy_J": 0.0}, "idle": idle},
    }


def study() -> list[MadeRun]:
    """Three frameworks, two batches, two models, three repeats; and four runs that did not end well."""
    noise = (1.0, 1.006, 0.993)
    runs = [
        MadeRun(backend=backend, batch=batch, model=model, repeat=repeat, slower=noise[repeat], work=work)
        for backend in STEP_S
        for batch in (8, 16)
        for model, work in (("olmoe-1b-7b", 1.0), ("opt-350m", 0.6))
        for repeat in range(3)
    ]
    return [_ill(run) for run in runs]


def _ill(run: MadeRun) -> MadeRun:
    ends: dict[tuple[str, int, str, int], dict[str, Any]] = {
        ("deepspeed", 16, "olmoe-1b-7b", 1): {
            "status": "out of memory", "reason": "CUDA out of memory: tried to allocate 2.0 GiB",
            "largest_term": "activations",
        },
        ("megatron-core", 8, "opt-350m", 0): {"status": "refused", "reason": "no <learned> positions beyond 2,048"},
        ("megatron-core", 8, "opt-350m", 1): {"status": "failed", "reason": "rank 0 ended with signal 11"},
        ("megatron-core", 8, "opt-350m", 2): {"status": "cut short"},
    }  # fmt: skip
    changes = ends.get((run.backend, run.batch, run.model, run.repeat), {})
    return MadeRun(**{**vars(run), **changes})
