"""What the meter costs a training step, and what CodeCarbon does beside it.

    python bench/meter_cost.py [--json] [--seconds S] [--device cpu] [--loop memory|host] [--readers] [--codecarbon]

Two loops, each trained with and without an instrument in one process:

    memory   steps of 50 ms of memory-bound layers: the device is what a step waits for
    host     steps of 70 ms of a small mixture of experts like OLMoE's in Hugging Face's eager code: thousands of tiny
             kernels, and the host is what a step waits for. Whatever takes its time, or its interpreter's lock, shows

Blocks of steps with and without come in pairs, in random order, so that drift of clocks and temperature cancels. A
block begins and ends on an idle device. `share_of_step` is the mean of the paired differences, without the tenth of
them at either end, over the time of a bare step; its standard error comes from the spread of the pairs (Tukey and
McLaughlin 1963). `inside_share_of_step` is the time inside the meter's own calls alone, which is known far better: it
lacks what its other threads and processes take from the loop. That and `phases` (name -> mean time, s; power and its
standard error, W) are of a session of 300 steps. `host_time_per_call_s` is that of a step that does
nothing, over its calls. Figures of the host-bound loop begin with `host_bound_`.

On a GPU if there is one, else on the CPU, where the noise of the machine is larger than the meter.

--readers adds two other meters to the host-bound loop: one whose sensors a thread reads, as was done before
(`host_bound_thread_...`), and one that only makes marks (`host_bound_marks_...`).

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
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from moemodel.model.core.errors import MoeModelError
from moemodel.model.records.profile import DeviceInfo
from moemodel.profiler.emissions.codecarbon import LEVELS, CodeCarbonLevels
from moemodel.profiler.meter.energy_meter import Meter

_WARM_S = 3.0
_CALLS = 8  # a step: begin and end of it and of three phases
_SESSION_STEPS = 300
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
    block: int  # steps that are compared
    settle: int  # steps before them, until an instrument runs as it always does
    settle_bare: int  # likewise, without one

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

    step_s, block, settle, settle_bare = 0.05, 12, 10, 10
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

    step_s, block, settle, settle_bare = 0.07, 24, 12, 2
    tokens, most_layers = 128, 64

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._input = torch.randn(self.tokens, _WIDTH, device=device)
        self._build(2)

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


@dataclass(frozen=True, kw_only=True)
class _NoSensors:
    """A device that marks are made on, and nothing is read of."""

    info: DeviceInfo
    torch_device: torch.device

    def energy_J(self) -> float | None:
        return None

    def power_W(self) -> float | None:
        return None

    def close(self) -> None:
        return None


def meter_subject(device: torch.device, folder: Path, name: str = "", kind: str = "process") -> Subject:
    """The meter, with its files; `kind` is "process" or "thread", which reads the sensors, or "marks": nothing does."""
    target: Any = device
    if kind == "marks":
        target = _NoSensors(info=DeviceInfo(name="marks", vendor="cpu", memory_B=1), torch_device=device)

    @contextmanager
    def begin() -> Iterator[Instrument]:
        reader = "thread" if kind == "thread" else "process"
        with Meter(folder, devices=[target], read_every=8, reader=reader) as meter:
            yield meter
        found = meter.summary()
        subject.extra["notes"] = [*found.notes, *(note for each in found.devices for note in each.notes)]
        subject.extra["read_by"] = found.devices[0].read_by if found.devices else None

    subject = Subject(name, begin)
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


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(
    seconds: float,
    device: torch.device,
    *,
    loops: Sequence[str] = _LOOPS,
    readers: bool = False,
    codecarbon: bool = False,
) -> dict[str, Any]:
    """Pairs of blocks with and without each instrument for about `seconds`, three quarters of it host-bound."""
    found: dict[str, Any] = {}
    shares = {"memory": 0.25, "host": 0.75} if len(loops) > 1 else dict.fromkeys(loops, 1.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "memory" in loops:
            subjects = [meter_subject(device, folder / "memory")]
            if codecarbon:
                subjects += [codecarbon_subject(level, device, folder) for level in LEVELS]
                for subject in subjects:  # the first of each finds the hardware: seconds
                    with subject.begin():
                        pass
            found |= _figures(MemoryBoundLoop(device), subjects, shares["memory"] * seconds, folder)
        if "host" in loops:
            kinds = ["process", *(["thread", "marks"] if readers else [])]
            names = {"process": "", "thread": "thread", "marks": "marks"}
            subjects = [meter_subject(device, folder / kind, names[kind], kind) for kind in kinds]
            host = _figures(HostBoundLoop(device), subjects, shares["host"] * seconds, folder)
            found |= {f"host_bound_{key}": value for key, value in host.items()}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return found | {"host_time_per_call_s": call_time_s(device), "device": name}


def _figures(loop: Loop, subjects: Sequence[Subject], seconds: float, folder: Path) -> dict[str, Any]:
    loop.fit_step_time()
    gc.collect()
    gc.freeze()  # a collection that looks through all modules of the model would fall into some blocks and not others
    try:
        bare_s = _alternate(loop, subjects, seconds)
    finally:
        gc.unfreeze()
    step_s = statistics.median(bare_s)
    found: dict[str, Any] = {"step_time_s": step_s}
    for subject in subjects:
        found |= subject.figures(step_s)
    return found | session(loop, folder / f"{type(loop).__name__}-session", step_s)


def _alternate(loop: Loop, subjects: Sequence[Subject], seconds: float) -> list[float]:
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


def _block(loop: Loop, subject: Subject | None) -> float:
    """Seconds of a step in a block, with an instrument or without."""
    block = loop.block if subject is None or subject.block is None else subject.block
    if subject is None:
        settle = loop.settle_bare
    else:
        settle = loop.settle if subject.settle is None else subject.settle
    with subject.begin() if subject else nullcontext() as instrument:
        loop.run(settle, instrument)
        return loop.run(block, instrument)


class _Timed:
    """The meter, and how long its calls take."""

    def __init__(self, meter: Meter) -> None:
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


def session(loop: Loop, folder: Path, step_s: float) -> dict[str, Any]:
    """The meter alone over `_SESSION_STEPS`: the host's time inside its calls, and what it then knows of phases."""
    with Meter(folder, devices=[loop.device]) as meter:
        timed = _Timed(meter)
        loop.run(16, timed)  # as many as are read at once
        timed.inside_s = 0.0
        loop.run(_SESSION_STEPS, timed)
    device = meter.summary().devices[0]
    return {
        "inside_share_of_step": timed.inside_s / _SESSION_STEPS / step_s,
        "power_W": device.power_W,
        "residual_share": device.residual_share,
        "phases": {
            name: [phase.mean_time_s, phase.power_W, phase.power_standard_error_W]
            for name, phase in device.phases.items()
        },
        "session_notes": list(device.notes),
    }


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
    parser.add_argument("--seconds", type=float, help="of pairs of blocks; 140, with --codecarbon 210")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--loop", choices=_LOOPS, help="one of them; default: both")
    parser.add_argument("--readers", action="store_true", help="a meter with a thread, and one without sensors, too")
    parser.add_argument("--codecarbon", action="store_true", help="CodeCarbon's three levels too")
    arguments = parser.parse_args()
    device = torch.device("cuda", 0) if arguments.device == "cuda" else torch.device("cpu")
    seconds = arguments.seconds if arguments.seconds is not None else 210.0 if arguments.codecarbon else 140.0
    loops = [arguments.loop] if arguments.loop else list(_LOOPS)
    try:
        found = measure(seconds, device, loops=loops, readers=arguments.readers, codecarbon=arguments.codecarbon)
    except MoeModelError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if arguments.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:42} {value}")


if __name__ == "__main__":
    main()
