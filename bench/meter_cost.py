"""What the meter costs a training step, and what CodeCarbon does beside it.

    python bench/meter_cost.py [--json] [--seconds S] [--device cpu] [--loop memory|host] [--reader thread]
                               [--codecarbon]

Two loops, each with and without the meter in one process:

    memory   steps of 50 ms of memory-bound layers: the device is what a step waits for
    host     a small mixture of experts like OLMoE's in Hugging Face's eager code, thousands of tiny kernels: the host
             is what a step waits for. Whatever takes its time, or its interpreter's lock, shows

Memory-bound: blocks of steps with and without come in pairs, in random order, so that drift of clocks and temperature
cancels. A block begins and ends on an idle device. `share_of_step` is the mean of the paired differences, without the
tenth of them at either end, over the time of a bare step; its standard error comes from the spread of the pairs (Tukey
and McLaughlin 1963).

Host-bound: a host's steps scatter by per cent from one second to the next, so that blocks show nothing below one. Here
single steps are compared. They are as short as two layers make them, since what the meter does in a step does not
depend on the step's length; within one session steps with its calls and without follow each other in random order, and
in every twenty of them its reader process runs or is stopped, at random too. Steps are taken as they are but for those
that are further than a tenth from the median of their 120 neighbours, which count as a tenth off; of every 120, least
squares gives what the calls add to a step and the reader to its time, and the spread of these the standard errors.

    host_bound_calls_s               what the calls of one step add to it, readings of events included
    host_bound_reader_share          what the reader adds, as a share of the time
    host_bound_share_of_step         both, of a step of 70 ms, with host_bound_standard_error
    host_bound_inside_s              time inside the calls of one step, in a session of 300 steps of 70 ms; without what
                                     measuring it takes
    host_bound_phases, ..._residual_share   name -> mean time, s; power and its standard error, W, after these 300 steps

`host_time_per_call_s` is that of a step that does nothing, over its calls. On a GPU if there is one, else on the CPU,
where the noise of the machine is larger than the meter. --reader thread has a thread read the sensors, as was done
before there was a reader process; it can't be stopped, and its cost is in no figure but `share_of_step`.

With --codecarbon, each of CodeCarbon's levels (`profiler/emissions/codecarbon.py`) is such an instrument too, in the
memory-bound loop: `codecarbon_session_share_of_step`, `codecarbon_step_...`, `codecarbon_phase_...`. Steps and phases
include the waiting for the device that they need. Blocks with the session level are longer, and it measures every
second instead of every 15, so that each holds what CodeCarbon does in its threads: an upper bound.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from moemodel.model.core.errors import MoeModelError
from moemodel.profiler.emissions.codecarbon import LEVELS, CodeCarbonLevels
from moemodel.profiler.meter.energy_meter import READERS, Meter

_WARM_S = 3.0
_CALLS = 8  # a step: begin and end of it and of three phases
_STEP_S, _SHORT_STEP_S = 0.07, 0.012  # of the host-bound loop: as it is in use, and as the calls' cost is seen best
_BLOCK, _BATCH = 20, 120  # steps
_OUTLIER = 0.1  # of a step: so far from the median and no further counts what other work of the machine does to it
_SESSION_STEPS = 300
_SETTLE = 32  # steps, until most are without events: two readings of 16
_TRIMMED = 0.1  # of the paired differences, at either end
_NOTHING = nullcontext()
_LOOPS = ("memory", "host")

Scope = Callable[[str], AbstractContextManager[None]]


class Instrument(Protocol):
    """What a loop is annotated for."""

    def step(self) -> AbstractContextManager[None]: ...
    def phase(self, name: str) -> AbstractContextManager[None]: ...


# --- loops -----------------------------------------------------------------------------------------------------------


class Loop:
    """A training loop whose steps last about `step_s`."""

    step_s: float

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def fit_step_time(self) -> None:
        """Make a step as long as it is to be; also warms the device up."""
        raise NotImplementedError

    def step(self, phase: Scope) -> None:
        """Queue one step."""
        raise NotImplementedError

    def run(self, steps: int, instrument: Instrument | None) -> float:
        """Steps on a device that is idle before and after: seconds a step."""
        self.wait()
        begin_s = time.perf_counter()
        for _ in range(steps):
            with instrument.step() if instrument else _NOTHING:
                self.step(instrument.phase if instrument else _no_phase)
        self.wait()
        return (time.perf_counter() - begin_s) / steps

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class MemoryBoundLoop(Loop):
    """The device is what a step waits for; far below the power cap, where the clock would depend on the rest before."""

    step_s = 0.05
    block = 12  # steps that are compared
    settle = 10  # before them, until an instrument runs as it always does
    gpu_width, cpu_width, layers = 4096, 256, 8

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        on_gpu = device.type == "cuda"
        width = self.gpu_width if on_gpu else self.cpu_width
        kind = torch.bfloat16 if on_gpu else torch.float32
        layers: list[nn.Module] = []
        for _ in range(self.layers):
            layers += [nn.LayerNorm(width), nn.ReLU()] if on_gpu else [nn.Linear(width, width), nn.GELU()]
        self._model = nn.Sequential(*layers).to(device, kind)
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=1e-4)
        self._input = torch.randn(64, width, device=device, dtype=kind)

    def fit_step_time(self) -> None:
        width = self._input.shape[1]
        end_s = time.perf_counter() + _WARM_S
        while time.perf_counter() < end_s:
            step_s = self.run(4, None)
            wanted = int(len(self._input) * min(max(self.step_s / step_s, 0.25), 4.0))
            if abs(step_s / self.step_s - 1) > 0.1:
                self._input = torch.randn(max(wanted, 8), width, device=self.device, dtype=self._input.dtype)

    def step(self, phase: Scope) -> None:
        with phase("forward"):
            loss = self._model(self._input).float().square().mean()
        with phase("backward"):
            loss.backward()
        with phase("optimizer"):
            self._optimizer.step()
            self._optimizer.zero_grad()


class HostBoundLoop(Loop):
    """A mixture of experts of many tiny kernels: the host is what a step waits for."""

    tokens, most_layers = 128, 64

    def __init__(self, device: torch.device, step_s: float) -> None:
        super().__init__(device)
        self.step_s = step_s
        self._input = torch.randn(self.tokens, _WIDTH, device=device)
        self._build(1)

    def _build(self, layers: int) -> None:
        torch.manual_seed(0)
        self._layers = layers
        self._model = nn.Sequential(*(_SparseBlock() for _ in range(layers))).to(self.device)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-4)

    def fit_step_time(self) -> None:
        end_s = time.perf_counter() + _WARM_S
        self.run(2, None)
        while time.perf_counter() < end_s:
            step_s = self.run(3, None)
            wanted = min(max(round(self._layers * self.step_s / step_s), 1), self.most_layers)
            if wanted != self._layers and abs(step_s / self.step_s - 1) > 0.1:
                self._build(wanted)
                self.run(2, None)

    def step(self, phase: Scope) -> None:
        with phase("forward"):
            loss = self._model(self._input).square().mean()
        with phase("backward"):
            loss.backward()
        with phase("optimizer"):
            nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad()


_WIDTH, _HEADS, _EXPERTS, _TOP_K, _EXPERT_WIDTH = 128, 4, 16, 4, 128


class _SparseBlock(nn.Module):
    """Attention and experts, each expert by itself, on the tokens that `where` finds: as transformers' eager OLMoE."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(_WIDTH) for _ in range(4))
        self.projections = nn.ModuleList(nn.Linear(_WIDTH, _WIDTH, bias=False) for _ in range(4))
        self.router = nn.Linear(_WIDTH, _EXPERTS, bias=False)
        self.gates = nn.ModuleList(nn.Linear(_WIDTH, _EXPERT_WIDTH, bias=False) for _ in range(_EXPERTS))
        self.ups = nn.ModuleList(nn.Linear(_WIDTH, _EXPERT_WIDTH, bias=False) for _ in range(_EXPERTS))
        self.downs = nn.ModuleList(nn.Linear(_EXPERT_WIDTH, _WIDTH, bias=False) for _ in range(_EXPERTS))

    def forward(self, x_TD: Tensor) -> Tensor:
        x_TD = x_TD + self._attention(self.norms[0](x_TD))
        return x_TD + self._experts(self.norms[1](x_TD))

    def _attention(self, x_TD: Tensor) -> Tensor:
        q, k, v = (self.projections[i](x_TD) for i in range(3))
        q, k = self.norms[2](q), self.norms[3](k)
        q, k, v = (each.view(1, len(x_TD), _HEADS, -1).transpose(1, 2) for each in (q, k, v))
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out_TD: Tensor = self.projections[3](out.transpose(1, 2).reshape(len(x_TD), _WIDTH))
        return out_TD

    def _experts(self, x_TD: Tensor) -> Tensor:
        weights, chosen = torch.topk(self.router(x_TD).float().softmax(-1), _TOP_K, dim=-1)
        mask_EKT = nn.functional.one_hot(chosen, _EXPERTS).permute(2, 1, 0)
        out_TD = torch.zeros_like(x_TD)
        for e in range(_EXPERTS):
            place, token = torch.where(mask_EKT[e])  # waits for the device, as transformers does
            rows = x_TD[token]
            rows = self.downs[e](nn.functional.silu(self.gates[e](rows)) * self.ups[e](rows))
            out_TD.index_add_(0, token, rows * weights[token, place, None])
        return out_TD


def _no_phase(_: str) -> AbstractContextManager[None]:
    return _NOTHING


# --- instruments -----------------------------------------------------------------------------------------------------


@dataclass
class Subject:
    """An instrument whose cost is measured.

    Attributes:
        name: before its figures; "" for the meter.
        begin: makes one for a block, running; its threads must not run in a bare block.
        block, settle: steps; None: the loop's.
        differences_s: of a step with it and without, a pair each.
        extra: other figures, of the last block.
    """

    name: str
    begin: Callable[[], AbstractContextManager[Instrument]]
    block: int | None = None
    settle: int | None = None
    differences_s: list[float] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def figures(self, step_s: float) -> dict[str, Any]:
        """Its share of a step, and how exactly that is known."""
        mean_s, error_s = trimmed_mean(self.differences_s)
        prefix = f"{self.name}_" if self.name else ""
        return {
            f"{prefix}share_of_step": mean_s / step_s,
            f"{prefix}standard_error": error_s / step_s,
            f"{prefix}pairs": len(self.differences_s),
            **{f"{prefix}{name}": value for name, value in self.extra.items()},
        }


def trimmed_mean(values: Sequence[float], share: float = _TRIMMED) -> tuple[float, float]:
    """Mean without a share of the values at either end, and its standard error (Tukey and McLaughlin 1963)."""
    ordered = sorted(values)
    cut = int(share * len(ordered))
    kept = ordered[cut : len(ordered) - cut]
    winsorised = [kept[0]] * cut + kept + [kept[-1]] * cut
    return statistics.fmean(kept), statistics.stdev(winsorised) * math.sqrt(len(ordered)) / len(kept)


def meter_subject(device: torch.device, folder: Path, reader: str) -> Subject:
    """The meter, with its files."""

    @contextmanager
    def begin() -> Iterator[Instrument]:
        with Meter(folder, devices=[device], read_every=4, reader=reader) as meter:
            yield meter
        found = meter.summary()
        subject.extra["notes"] = list(found.notes)
        subject.extra["read_by"] = found.devices[0].read_by if found.devices else None

    subject = Subject("", begin)
    return subject


def codecarbon_subject(level: str, device: torch.device, folder: Path) -> Subject:
    """One level of CodeCarbon's, alone."""

    @contextmanager
    def begin() -> Iterator[Instrument]:
        options: dict[str, Any] = {"run": "meter-cost", "model": level, "country": "CAN", "region": "quebec"}
        with CodeCarbonLevels(folder, levels=(level,), devices=[device], measure_every_s=1.0, **options) as carbon:
            yield carbon
        found = carbon.summary()
        cost = found.levels[level]
        subject.extra = {
            "readings_per_step": cost.readings / max(found.steps, 1),
            "inside_s_per_step": cost.inside_s_per_step,
            "waited_s_per_step": cost.waited_s / max(found.steps, 1),
            "background_s_per_s": None if cost.background_s is None else cost.background_s / found.duration_s,
        }

    subject = Subject(f"codecarbon_{level}", begin, settle=2, block=40 if level == "session" else None)
    return subject


# --- the memory-bound loop -------------------------------------------------------------------------------------------


def memory_bound(seconds: float, device: torch.device, folder: Path, reader: str, codecarbon: bool) -> dict[str, Any]:
    """Pairs of blocks with and without each instrument for about `seconds`."""
    subjects = [meter_subject(device, folder / "memory", reader)]
    if codecarbon:
        subjects += [codecarbon_subject(level, device, folder) for level in LEVELS]
        for subject in subjects:  # the first of each finds the hardware: seconds
            with subject.begin():
                pass
    loop = MemoryBoundLoop(device)
    loop.fit_step_time()
    bare_s = _alternate(loop, subjects, seconds)
    step_s = statistics.median(bare_s)
    found: dict[str, Any] = {"step_time_s": step_s}
    for subject in subjects:
        found |= subject.figures(step_s)
    return found


def _alternate(loop: MemoryBoundLoop, subjects: Sequence[Subject], seconds: float) -> list[float]:
    """Fill in the subjects' differences, two each at least; seconds of a bare step in each bare block."""
    draw = random.Random(0)
    bare_s: list[float] = []
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s or len(subjects[-1].differences_s) < 2:
        for subject in draw.sample(list(subjects), len(subjects)):
            pair = {kind: _block(loop, subject if kind else None) for kind in draw.sample([True, False], 2)}
            bare_s.append(pair[False])
            subject.differences_s.append(pair[True] - pair[False])
    return bare_s


def _block(loop: MemoryBoundLoop, subject: Subject | None) -> float:
    """Seconds of a step in a block, with an instrument or without."""
    settle = loop.settle if subject is None or subject.settle is None else subject.settle
    block = loop.block if subject is None or subject.block is None else subject.block
    with subject.begin() if subject else nullcontext() as instrument:
        loop.run(settle, instrument)
        return loop.run(block, instrument)


# --- the host-bound loop ---------------------------------------------------------------------------------------------


def host_bound(seconds: float, device: torch.device, folder: Path, reader: str) -> dict[str, Any]:
    """Single steps with and without, for about `seconds`, and a session of `_SESSION_STEPS`."""
    loop = HostBoundLoop(device, _SHORT_STEP_S)
    loop.fit_step_time()
    gc.collect()
    gc.freeze()  # a collection that looks through all modules of the model would fall on some steps and not others
    try:
        steps = _toggled(loop, seconds, folder / "host", reader)
    finally:
        gc.unfreeze()
    fits = [_fit(steps[at : at + _BATCH]) for at in range(0, len(steps), _BATCH)]
    calls_s, calls_error_s = trimmed_mean([fit[1] for fit in fits])
    reader_share, reader_error = trimmed_mean([fit[2] / fit[0] for fit in fits])
    if all(step.reads for step in steps):
        reader_share = reader_error = 0.0
    found = {
        "short_step_time_s": statistics.median(step.time_s for step in steps),
        "steps": len(steps),
        "calls_s": calls_s,
        "calls_standard_error_s": calls_error_s,
        "reader_share": reader_share,
        "reader_standard_error": reader_error,
        "share_of_step": calls_s / _STEP_S + reader_share,
        "standard_error": math.hypot(calls_error_s / _STEP_S, reader_error),
    }
    return found | _session(HostBoundLoop(device, _STEP_S), folder / "session", reader)


class _Step(NamedTuple):
    """One step: its time, whether it had the meter's calls, and whether the reader ran."""

    time_s: float
    metered: bool
    reads: bool


def _toggled(loop: HostBoundLoop, seconds: float, folder: Path, reader: str) -> list[_Step]:
    """Steps in whole batches, two at least; half of each block with calls, half of a batch's blocks with the reader."""
    draw = random.Random(0)
    steps: list[_Step] = []
    with Meter(folder, devices=[loop.device], reader=reader) as meter:
        loop.run(_SETTLE, meter)
        end_s = time.perf_counter() + seconds
        while time.perf_counter() < end_s or len(steps) < 2 * _BATCH:
            for reads in draw.sample([True, False] * (_BATCH // _BLOCK // 2), _BATCH // _BLOCK):
                if meter.reader_pid is not None:
                    os.kill(meter.reader_pid, signal.SIGCONT if reads else signal.SIGSTOP)
                loop.run(1, None)
                for metered in draw.sample([True, False] * (_BLOCK // 2), _BLOCK):
                    time_s = loop.run(1, meter if metered else None)
                    steps.append(_Step(time_s, metered, reads or meter.reader_pid is None))
        if meter.reader_pid is not None:
            os.kill(meter.reader_pid, signal.SIGCONT)
    return steps


def _fit(steps: Sequence[_Step]) -> tuple[float, float, float]:
    """A bare step, what calls add to it, and what the reader does, s: least squares, without outliers and drift."""
    time_s = np.array([step.time_s for step in steps])
    middle_s = float(np.median(time_s))
    time_s = np.clip(time_s, (1 - _OUTLIER) * middle_s, (1 + _OUTLIER) * middle_s)
    at = np.linspace(-1.0, 1.0, len(steps))
    metered, reads = (np.array([float(step[i]) for step in steps]) for i in (1, 2))
    columns = np.column_stack([np.ones(len(steps)), metered, reads - reads.mean(), at, at**2])
    bare_s, calls_s, reader_s = np.linalg.lstsq(columns, time_s, rcond=None)[0][:3]
    return float(bare_s), float(calls_s), float(reader_s)


class _Timed:
    """The meter, and how long its calls take."""

    def __init__(self, meter: Instrument) -> None:
        self._meter = meter
        self._scopes: dict[str, _TimedScope] = {}
        self.inside_s = 0.0

    def step(self) -> AbstractContextManager[None]:
        return _TimedScope(self, self._meter.step())

    def phase(self, name: str) -> AbstractContextManager[None]:
        scope = self._scopes.get(name)
        if scope is None:
            scope = self._scopes[name] = _TimedScope(self, self._meter.phase(name))
        return scope


class _TimedScope(AbstractContextManager[None]):
    """One of the meter's contexts; adds little, since what comes soon after a mark is not marked again."""

    def __init__(self, timed: _Timed, inner: AbstractContextManager[None]) -> None:
        self._timed, self._inner = timed, inner

    def __enter__(self) -> None:
        begin_s = time.perf_counter()
        self._inner.__enter__()
        self._timed.inside_s += time.perf_counter() - begin_s

    def __exit__(self, *error: Any) -> None:
        begin_s = time.perf_counter()
        self._inner.__exit__(*error)
        self._timed.inside_s += time.perf_counter() - begin_s


class _Nothing:
    """An instrument that does nothing: what `_Timed` finds of it is what measuring takes."""

    def step(self) -> AbstractContextManager[None]:
        return _NOTHING

    def phase(self, name: str) -> AbstractContextManager[None]:
        del name
        return _NOTHING


def _session(loop: HostBoundLoop, folder: Path, reader: str) -> dict[str, Any]:
    """The meter over `_SESSION_STEPS`: the host's time inside its calls, and what it then knows of phases."""
    loop.fit_step_time()
    bare = _Timed(_Nothing())
    loop.run(_SETTLE, bare)
    with Meter(folder, devices=[loop.device], reader=reader) as meter:
        timed = _Timed(meter)
        loop.run(_SETTLE, timed)
        timed.inside_s = 0.0
        loop.run(_SESSION_STEPS, timed)
    found = meter.summary()
    device = found.devices[0]
    return {
        "inside_s": timed.inside_s / _SESSION_STEPS - bare.inside_s / _SETTLE,
        "step_time_s": device.step_time_s,
        "power_W": device.power_W,
        "residual_share": device.residual_share,
        "phases": {
            name: [phase.mean_time_s, phase.power_W, phase.power_standard_error_W]
            for name, phase in device.phases.items()
        },
        "read_by": device.read_by,
        "notes": [*found.notes, *device.notes],
    }


def measure(
    seconds: float,
    device: torch.device,
    *,
    loops: Sequence[str] = _LOOPS,
    reader: str = "process",
    codecarbon: bool = False,
) -> dict[str, Any]:
    """Figures of both loops, `seconds` in all, of which the host-bound loop has three quarters."""
    share = 0.75 if len(loops) > 1 else 1.0
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if "memory" in loops:
            memory_s = (1 - share or 1.0) * seconds
            found |= memory_bound(memory_s, device, Path(folder), reader, codecarbon)
        if "host" in loops:
            host = host_bound(share * seconds, device, Path(folder), reader)
            found |= {f"host_bound_{name}": value for name, value in host.items()}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return found | {"host_time_per_call_s": call_time_s(device), "device": name}


def call_time_s(device: torch.device, steps: int = 400) -> float:
    """The host's time of one call of the meter, readings included, on steps that do nothing."""
    with Meter(devices=[device]) as meter:
        times_s = []
        for _ in range(steps // 16):
            begin_s = time.perf_counter()
            for _ in range(16):
                with meter.step():
                    for name in ("forward", "backward", "optimizer"):
                        with meter.phase(name):
                            pass
            times_s.append((time.perf_counter() - begin_s) / 16 / _CALLS)
    return statistics.median(times_s)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="Cost of the meter to a training step.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seconds", type=float, help="of measuring, beside warming up; 160, with --codecarbon 230")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--loop", choices=_LOOPS, help="one of them; default: both")
    parser.add_argument("--reader", choices=READERS, default="process", help="what reads the sensors")
    parser.add_argument("--codecarbon", action="store_true", help="CodeCarbon's three levels too")
    arguments = parser.parse_args()
    device = torch.device("cuda", 0) if arguments.device == "cuda" else torch.device("cpu")
    seconds = arguments.seconds if arguments.seconds is not None else 230.0 if arguments.codecarbon else 160.0
    loops = [arguments.loop] if arguments.loop else list(_LOOPS)
    try:
        found = measure(seconds, device, loops=loops, reader=arguments.reader, codecarbon=arguments.codecarbon)
    except MoeModelError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if arguments.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:42} {value}")


if __name__ == "__main__":
    main()
