"""How wrong predictions are that come from the profile of a simulated GPU, whose physics are not the predictor's.

    python bench/simulated_gpu.py [--json] [--gpu h100-sxm-80gb] [--clocks passive|lock] [--seeds 5]

Profiles the simulated GPU in each seed's noise (fewer shapes than a real profile has), calibrates it as `moemodel
calibrate` does, and holds against the simulation itself what the calibration says of

    operator_*   shapes that were not in the profile, at true clocks that were measured
    load_*       mixtures of operators in turn, some with pauses, some time after they began on an idle GPU
    step_*       training steps of OPT-350M in the steady state, the clock left to the governor
    locked_*     the same at clocks that are set (with lock)
    capped_*     the same under lower power caps (with lock)

`_mape` is the mean absolute error as a share of the true value, `_p90` its ninetieth percentile. `locked_regret` is
what the step at the clock predicted to take least energy takes beyond the least there is. The rest means the same in
both worlds: `inlet_C`, `rise_C_per_W` (of the die over the inlet), `sink_s` (the slowest time constant), `idle_W`,
`sustained_W` (what a product draws at the cap), as shares of the true value. Printed is the largest over the seeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np

from moemodel.calibration.fit.calibration import calibrate_profile
from moemodel.model.device.power import power_model
from moemodel.model.device.roofline import chip_of_calibration, operator_time
from moemodel.model.device.sustained_load import Part, SustainedLoad, sustained_load
from moemodel.model.device.thermal import thermal_model
from moemodel.model.operators.work import GEMM_PASSES, SHAPE_FIELDS, Kind, Pass, Shape
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.outcome import Outcome, outcome
from moemodel.profiler.microbench.grid import gpu_grid, gpu_sweep
from moemodel.profiler.microbench.points import Point, Sizes
from moemodel.profiler.run import Workload, profile
from moemodel.profiler.sections.loads import gpu_loads
from moemodel.profiler.simulated.chip import CHIPS, SimulatedChip
from moemodel.profiler.simulated.gpu import VirtualGpu
from moemodel.profiler.simulated.kernels import Kernel, kernel

# What a step of OPT-350M is made of; a few shapes each, so that the fits take seconds.
KINDS = (
    Kind.GEMM, Kind.ATTENTION, Kind.LAYER_NORM, Kind.RELU, Kind.RESIDUAL_ADD, Kind.BIAS, Kind.EMBEDDING,
    Kind.CROSS_ENTROPY, Kind.ADAMW_MIXED, Kind.GRAD_NORM, Kind.ACCUMULATE, Kind.COPY, Kind.GELU,
)  # fmt: skip
_SHAPES = {Kind.GEMM: 14, Kind.GELU: 12, Kind.ATTENTION: 11}
_OTHER_SHAPES = 6
_UNSEEN_SEED = 17  # of the grid that held-out shapes are drawn from
_UNSEEN = 10  # of each pass
_LEAST_S = 20e-6  # shorter operators are mostly launch, and of no account in a step
_CAPS = (0.85, 0.7)  # power caps, of the highest
_LAYERS = 24
_TOGETHER = 6  # layers whose calls are queued in one go
_PARAMETERS = 331_196_416  # of OPT-350M
_SETTLE_S = 0.7
_MEASURE_S = 0.8

F, B, S = Pass.FORWARD, Pass.BACKWARD, Pass.STEP


# --- what is profiled ------------------------------------------------------------------------------------------------


def points(seed: int, shapes: Callable[[Kind], int], kinds: Sequence[Kind] = KINDS) -> list[Point]:
    """Some shapes of each operator and pass, of the profiler's grid of a seed."""
    ordered = sorted((p for p in gpu_grid(seed) if p.kind in kinds), key=lambda p: (p.kind, p.direction))
    groups = groupby(ordered, key=lambda p: (p.kind, p.direction))
    return [point for (kind, _), group in groups for point in list(group)[: shapes(kind)]]


def profiled(kinds: Sequence[Kind] = KINDS) -> Workload:
    """What the profiles of this file hold."""
    return Workload(
        points=points(0, lambda kind: _SHAPES.get(kind, _OTHER_SHAPES), kinds),
        sweep=[point for point in gpu_sweep() if point.kind in kinds],
        loads=gpu_loads(),
    )


# --- the truth -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LoadCycle:
    """Operators in turn, each so many times, and a pause."""

    parts: tuple[tuple[Point, int], ...]
    pause_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LoadState:
    """What a load does, on the simulated GPU or as predicted; `clock_Hz` while it has work, energy of a round."""

    round_s: float
    clock_Hz: float
    power_W: float
    temperature_C: float

    @property
    def energy_J(self) -> float:
        return self.round_s * self.power_W


class SimulatedLoad:
    """A cycle of operators on a simulated GPU that was idle."""

    def __init__(self, chip: SimulatedChip, one: LoadCycle) -> None:
        self.gpu = VirtualGpu(chip)
        self._calls: list[tuple[Kernel, int]] = [(kernel_of(chip, point), calls) for point, calls in one.parts]
        self._pause_s = one.pause_s

    def run(self, until_s: float) -> LoadState:
        """What it did up to a time, whole rounds."""
        gpu, before, rounds, cycles, busy_s = self.gpu, self.gpu.totals.copy(), 0, 0.0, 0.0
        while gpu.now_s < until_s:
            begun = gpu.mark()
            for one, calls in self._calls:
                gpu.launch(one, calls)
            ended = gpu.mark()
            gpu.wait(ended)
            cycles, busy_s = cycles + ended.cycles - begun.cycles, busy_s + ended.time_s - begun.time_s
            rounds += 1
            if self._pause_s:
                gpu.sleep(self._pause_s)
        lasted_s = gpu.totals.time_s - before.time_s
        return LoadState(
            round_s=lasted_s / rounds,
            clock_Hz=cycles / busy_s,
            power_W=(gpu.totals.energy_J - before.energy_J) / lasted_s,
            temperature_C=gpu.die_C,
        )

    def after(self, seconds: float) -> LoadState:
        """So long after it began: the mean of the second about that."""
        self.run(seconds - 0.5)
        return self.run(seconds + 0.5)

    def steady(self) -> LoadState:
        """After a long time, which is shortened: masses are brought to where its power would warm them."""
        for _ in range(3):
            self.gpu.warm(self.run(self.gpu.now_s + _SETTLE_S).power_W)
        self.run(self.gpu.now_s + _SETTLE_S)
        return self.run(self.gpu.now_s + _MEASURE_S)


@cache
def _kernel(name: str, point: Point) -> Kernel:
    return kernel(CHIPS[name](), point)


def kernel_of(chip: SimulatedChip, point: Point) -> Kernel:
    """The kernel of a point on one of CHIPS, the same object each time."""
    return _kernel(chip.gpu.name, point)


# --- what is held out ------------------------------------------------------------------------------------------------


def _gemm(m: int, n: int, k: int, direction: Pass = F) -> Point:
    return Point(kind=Kind.GEMM, direction=direction, sizes=Sizes(m=m, n=n, k=k))


def _attention(batch: int, seq: int, head_dim: int, direction: Pass, heads: int = 16) -> Point:
    sizes = Sizes(batch=batch, heads=heads, kv_heads=heads, seq=seq, head_dim=head_dim)
    return Point(kind=Kind.ATTENTION, direction=direction, sizes=sizes)


def _stream(kind: Kind, direction: Pass, m: int, n: int = 1, k: int = 1) -> Point:
    return Point(kind=kind, direction=direction, sizes=Sizes(m=m, n=n, k=k))


# Loads, and after how many seconds they are looked at.
LOADS: dict[str, tuple[LoadCycle, float]] = {
    "product": (LoadCycle(parts=((_gemm(8192, 8192, 8192), 5),)), 40.0),
    "copy": (LoadCycle(parts=((_stream(Kind.COPY, F, 1 << 28), 20),)), 5.0),
    "dense block": (
        LoadCycle(
            parts=(
                (_gemm(12288, 5120, 5120), 3),
                (_attention(6, 2048, 128, F, heads=20), 2),
                (_stream(Kind.GELU, F, 12288, 20480), 1),
                (_stream(Kind.LAYER_NORM, F, 12288, 5120), 2),
            )
        ),
        30.0,
    ),
    "passes and a long optimizer": (
        LoadCycle(
            parts=(
                (_gemm(10240, 5120, 4096, Pass.BACKWARD_WEIGHT), 96),
                (_stream(Kind.ADAMW_MIXED, S, 300_000_000), 32),
            )
        ),
        20.0,
    ),
    "attention, a third of the time": (
        LoadCycle(parts=((_attention(6, 3072, 128, B, heads=20), 12),), pause_s=0.06),
        15.0,
    ),
    "memory-bound": (
        LoadCycle(
            parts=(
                (_stream(Kind.RESIDUAL_ADD, F, 24576, 5120), 4),
                (_stream(Kind.LAYER_NORM, B, 24576, 5120), 4),
                (_stream(Kind.CROSS_ENTROPY, F, 6144, 64000), 1),
            )
        ),
        20.0,
    ),
    "products, half of the time": (LoadCycle(parts=((_gemm(6144, 6144, 6144), 8),), pause_s=0.006), 15.0),
}


def step_of_opt_350m(micro_batch: int, seq: int, micro_batches: int) -> LoadCycle:
    """The operators of a training step on one GPU, in order but for layers, of which some are queued together."""
    m = micro_batch * seq
    micro: list[tuple[Point, int]] = [(p, 1) for p in _ends(m, F)]
    for direction in (F, B):
        micro += [(p, _TOGETHER) for _ in range(_LAYERS // _TOGETHER) for p in _layer(m, micro_batch, seq, direction)]
    micro += [(p, 1) for p in _ends(m, B)]
    adding = [(_stream(Kind.ACCUMULATE, B, _PARAMETERS), 1)]
    update = [(_stream(kind, S, _PARAMETERS), 1) for kind in (Kind.GRAD_NORM, Kind.ADAMW_MIXED)]
    return LoadCycle(parts=tuple(micro + (micro + adding) * (micro_batches - 1) + update))


def _layer(m: int, batch: int, seq: int, direction: Pass) -> Iterator[Point]:
    """Of width 1024, queries, keys and values a product each, four times as wide within."""
    if direction is F:
        products: Sequence[Pass] = (F,)
    else:
        products = [p for p in GEMM_PASSES if p is not F]
    for n, k in (*((1024, 1024),) * 4, (4096, 1024), (1024, 4096)):
        yield from (_gemm(m, n, k, p) for p in products)
        if direction is B:
            yield _stream(Kind.BIAS, B, m, n)
    yield _attention(batch, seq, 64, direction)
    yield _stream(Kind.RELU, direction, m, 4096)
    for kind in (Kind.LAYER_NORM, Kind.RESIDUAL_ADD):
        yield from (_stream(kind, direction, m, 1024) for _ in range(2))
    if direction is B:  # gradients of queries, keys and values add up
        yield from (_stream(Kind.RESIDUAL_ADD, B, m, 1024) for _ in range(2))


def _ends(m: int, direction: Pass) -> Iterator[Point]:
    """Embeddings of width 512, projected to 1024 and back, and the loss."""
    products = (F,) if direction is F else GEMM_PASSES[1:]
    for k, n in ((50272, 512), (2050, 1024)):
        yield _stream(Kind.EMBEDDING, direction, m, n, k)
    yield _stream(Kind.RESIDUAL_ADD, direction, m, 1024)
    for n, k in ((1024, 512), (512, 1024), (50272, 512)):
        yield from (_gemm(m, n, k, p) for p in products)
    yield _stream(Kind.CROSS_ENTROPY, direction, m, 50272)


Step = tuple[int, int, int]  # micro batch, sequence length, micro-batches
STEPS: tuple[Step, ...] = ((4, 2048, 1), (8, 1024, 2), (16, 2048, 1))


# --- predicted against true ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A load, predicted and true."""

    name: str
    predicted: LoadState
    true: LoadState

    def error(self, what: str) -> float:
        """Relative error of a field of `LoadState`."""
        predicted, true = (float(getattr(seen, what)) for seen in (self.predicted, self.true))
        return predicted / true - 1


def shape_of(point: Point) -> Shape:
    """As the predictor takes it."""
    return Shape(**{name: np.array([float(getattr(point.sizes, name))]) for name in SHAPE_FIELDS})


def compare_loads(calibration: Calibration, chip: SimulatedChip, names: Sequence[str]) -> list[Comparison]:
    """Some of LOADS, from an idle GPU on."""
    found = []
    for name in names:
        one, seconds = LOADS[name]
        parts = [Part(kind=p.kind, direction=p.direction, shape=shape_of(p), calls=n) for p, n in one.parts]
        said = sustained_load(parts, calibration, power_limit_W=chip.cap_W, time_s=seconds, pause_s=one.pause_s)
        found.append(Comparison(name=name, predicted=_load_state(said), true=SimulatedLoad(chip, one).after(seconds)))
    return found


def _load_state(said: SustainedLoad) -> LoadState:
    return LoadState(**{name: getattr(said, name) for name in ("round_s", "clock_Hz", "power_W", "temperature_C")})


def compare_step(
    calibration: Calibration,
    chip: SimulatedChip,
    step: Step,
    *,
    clock_Hz: float | None = None,
    cap_W: float | None = None,
) -> Comparison:
    """A training step at a clock that is set or not, under a power cap that is lowered or not."""
    micro_batch, seq, micro_batches = step
    load = SimulatedLoad(chip, step_of_opt_350m(micro_batch, seq, micro_batches))
    if clock_Hz is not None:
        load.gpu.settings.lock(clock_Hz, clock_Hz)
    if cap_W is not None:
        load.gpu.settings.set_power_limit(cap_W)
    plan = Plan.model_validate(
        {
            "name": "simulated",
            "architecture": "opt-350m",
            "sequence_length": seq,
            "global_batch": micro_batch * micro_batches,
            "micro_batch": micro_batch,
            "cluster": {"gpu": chip.gpu.name, "gpus": 1},
            "clock_MHz": None if clock_Hz is None else clock_Hz / 1e6,
            "power_cap_W": cap_W,
        }
    )
    name = f"{micro_batch} x {seq}, {micro_batches} micro-batches, {clock_Hz or 0:.0f} Hz, {cap_W or 0:.0f} W"
    said = outcome(plan, calibration, even_if_it_does_not_fit=True)
    return Comparison(name=name, predicted=_step_state(said), true=load.steady())


def _step_state(said: Outcome) -> LoadState:
    return LoadState(
        round_s=said.step_time_s.value,
        clock_Hz=said.clock_Hz.value,
        power_W=said.power_W.value,
        temperature_C=said.temperature_C,
    )


def compare_operators(calibration: Calibration, chip: SimulatedChip) -> dict[str, list[float]]:
    """Shapes that were not profiled, at five clocks: relative errors of time, errors of its exponent in the clock."""
    known = set(profiled().points)
    datasheet = chip_of_calibration(calibration)
    clocks = np.linspace(*calibration.clock_measured_Hz, 5)
    span = float(np.log(clocks[-1] / clocks[0]))
    times, exponents = [], []
    for point in points(_UNSEEN_SEED, lambda _: _UNSEEN):
        fit = calibration.operator(point.kind, point.direction)
        true_s = np.array([kernel_of(chip, point).time_s(f) for f in clocks])
        if point in known or fit is None or true_s[-1] < _LEAST_S:
            continue
        predicted_s = operator_time(fit, datasheet, shape_of(point), clocks).time_s_UK[0]
        times += list(predicted_s / true_s - 1)
        slopes = [float(np.log(t[0] / t[-1])) / span for t in (predicted_s, true_s)]
        exponents.append(slopes[0] - slopes[1])
    return {"time": times, "exponent": exponents}


def shared_meanings(calibration: Calibration, chip: SimulatedChip, loads: Sequence[Comparison]) -> dict[str, float]:
    """Relative errors of what means the same in both worlds."""
    thermal, power, gpu = thermal_model(calibration), power_model(calibration), VirtualGpu(chip)
    top_Hz = np.array([chip.clock_max_Hz])
    idle_W = float(power.static_W(gpu.die_C) + power.clocked_W(top_Hz)[0])
    errors = {
        "inlet_C": thermal.inlet_C / chip.thermal.inlet_C,
        "rise_C_per_W": thermal.total_C_per_W / chip.thermal.total_C_per_W,
        "sink_s": thermal.sink_s / slowest_s(chip),
        "idle_W": idle_W / gpu.static_W(),
    }
    sustained = next(load.error("power_W") for load in loads if load.name == "product")
    return {name: ratio - 1 for name, ratio in errors.items()} | {"sustained_W": sustained}


def slowest_s(chip: SimulatedChip) -> float:
    """Slowest time constant of the row of masses: C dT/dt = -K T for their rises T."""
    t = chip.thermal
    a, b, c = 1 / t.die_C_per_W, 1 / t.chamber_C_per_W, 1 / t.fins_C_per_W
    conductance = np.array([[a, -a, 0.0], [-a, a + b, -b], [0.0, -b, b + c]])
    capacity = np.diag([t.die_J_per_C, t.chamber_J_per_C, t.fins_J_per_C])
    return 1 / float(np.linalg.eigvals(np.linalg.solve(capacity, conductance)).real.min())


def regret(steps: Sequence[Comparison]) -> float:
    """Energy at the clock that is predicted to take least, beyond the least."""
    chosen = min(steps, key=lambda one: one.predicted.energy_J)
    return chosen.true.energy_J / min(one.true.energy_J for one in steps) - 1


# --- figures ---------------------------------------------------------------------------------------------------------


def mape(errors: Sequence[float]) -> float:
    """Mean absolute value."""
    return float(np.mean(np.abs(errors)))


_NO_SHARE = ("load_temperature_worst_C", "profile_s", "calibrate_s")
_WHAT = {"time": "round_s", "clock": "clock_Hz", "power": "power_W", "energy": "energy_J"}


def summary(prefix: str, compared: Sequence[Comparison]) -> dict[str, float]:
    """Mean absolute errors."""
    return {f"{prefix}_{name}_mape": mape([one.error(what) for one in compared]) for name, what in _WHAT.items()}


def locked_clocks_Hz(chip: SimulatedChip) -> list[float]:
    """From low to high, on the driver's steps."""
    steps = round((chip.clock_max_Hz - chip.clock_min_Hz) / chip.clock_step_Hz)
    return [chip.clock_min_Hz + chip.clock_step_Hz * round(steps * share) for share in np.linspace(0.05, 1.0, 7)]


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What is compared: names of LOADS (with "product"), training steps, and which of these at clocks that are set."""

    loads: tuple[str, ...] = tuple(LOADS)
    steps: tuple[Step, ...] = STEPS
    locked: tuple[Step, ...] = ()


def figures(calibration: Calibration, chip: SimulatedChip, scope: Scope) -> dict[str, float]:
    """All of one calibration."""
    operators = compare_operators(calibration, chip)
    loads = compare_loads(calibration, chip, scope.loads)
    found = {
        "operator_time_mape": mape(operators["time"]),
        "operator_time_p90": float(np.quantile(np.abs(operators["time"]), 0.9)),
        "operator_exponent_mae": mape(operators["exponent"]),
        **summary("load", loads),
        "load_temperature_worst_C": max(abs(o.predicted.temperature_C - o.true.temperature_C) for o in loads),
        **shared_meanings(calibration, chip, loads),
    }
    if scope.steps:
        found |= summary("step", [compare_step(calibration, chip, step) for step in scope.steps])
    if scope.locked:
        set_Hz = locked_clocks_Hz(chip)
        steps = [[compare_step(calibration, chip, step, clock_Hz=f) for f in set_Hz] for step in scope.locked]
        limited = [compare_step(calibration, chip, scope.locked[0], cap_W=share * chip.cap_W) for share in _CAPS]
        found |= summary("locked", [one for plan in steps for one in plan]) | summary("capped", limited)
        found["locked_regret"] = max(regret(plan) for plan in steps)
    return found


def worst(gpu: str, clocks: Literal["passive", "lock"], seeds: int) -> dict[str, float]:
    """Of each figure, the furthest from zero over the seeds."""
    found: dict[str, float] = {}
    scope = Scope(locked=STEPS if clocks == "lock" else ())
    for seed in range(seeds):
        begun_s = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            made = profile(f"sim:{gpu}?seed={seed}", Path(folder) / "profile", clocks=clocks, workload=profiled())
            profiled_s = time.perf_counter()
            calibration = calibrate_profile(made.folder)[0]
        took = {"profile_s": profiled_s - begun_s, "calibrate_s": time.perf_counter() - profiled_s}
        here = figures(calibration, CHIPS[gpu](), scope) | took
        found = {name: max(found.get(name, 0.0), value, key=abs) for name, value in here.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--gpu", choices=sorted(CHIPS), default="h100-sxm-80gb")
    parser.add_argument("--clocks", choices=["passive", "lock"], default="passive")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    found = worst(options.gpu, options.clocks, options.seeds)
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        unit = f"{value:8.2f}" if name in _NO_SHARE else f"{value:+8.1%}"
        print(f"{name:28} {unit}")


if __name__ == "__main__":
    main()
