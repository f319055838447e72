"""What the meter costs a training step of about 50 ms.

    python bench/meter_cost.py [--json] [--seconds S]

Trains a small dense model and alternates stretches of steps with and without the meter, in one process; each metered
stretch is paired with the mean of the bare ones beside it, so that drift of clocks and temperature cancels.
`share_of_step` is the median of the paired differences over the time of a bare step; its standard error comes from the
pairs' spread. A stretch begins and ends on an idle device. On a GPU if there is one, else on the CPU, where the noise
of the machine is larger than the meter. `host_time_per_call_s` is the host's time for a step's calls, over their
number.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from moemodel.profiler.meter import Meter

_STEP_S = 0.05
_STRETCH = 12  # steps
_WARM_S = 3.0
_CALLS = 8  # a step: begin and end of it and of three phases
_GPU_WIDTH, _CPU_WIDTH = 4096, 256
_LAYERS = 8
_NOTHING = nullcontext()

Scope = Callable[[str], AbstractContextManager[None]]


class Loop:
    """A training loop; its steps last about 50 ms by the number of rows in a batch."""

    def __init__(self, device: torch.device) -> None:
        width = _GPU_WIDTH if device.type == "cuda" else _CPU_WIDTH
        kind = torch.bfloat16 if device.type == "cuda" else torch.float32
        layers = [layer for _ in range(_LAYERS) for layer in (nn.Linear(width, width), nn.GELU())]
        self.device = device
        self._model = nn.Sequential(*layers).to(device, kind)
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=1e-4)
        self._input = torch.randn(64, width, device=device, dtype=kind)

    def fit_step_time(self) -> None:
        """Choose the batch so that a step takes about `_STEP_S`; also warms the device up."""
        width = self._input.shape[1]
        end_s = time.perf_counter() + _WARM_S
        while time.perf_counter() < end_s:
            begin_s = time.perf_counter()
            self.run(4, None)
            step_s = (time.perf_counter() - begin_s) / 4
            wanted = int(len(self._input) * min(max(_STEP_S / step_s, 0.25), 4.0))
            if abs(step_s / _STEP_S - 1) > 0.1:
                self._input = torch.randn(max(wanted, 8), width, device=self.device, dtype=self._input.dtype)

    def run(self, steps: int, meter: Meter | None) -> float:
        """Steps on a device that is idle before and after: seconds a step."""
        self.wait()
        begin_s = time.perf_counter()
        for _ in range(steps):
            with meter.step() if meter else _NOTHING:
                self.step(meter.phase if meter else _no_phase)
        self.wait()
        return (time.perf_counter() - begin_s) / steps

    def step(self, phase: Scope) -> None:
        """Queue one step."""
        with phase("forward"):
            loss = self._model(self._input).float().square().mean()
        with phase("backward"):
            loss.backward()
        with phase("optimizer"):
            self._optimizer.step()
            self._optimizer.zero_grad()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _no_phase(_: str) -> AbstractContextManager[None]:
    return _NOTHING


def measure(seconds: float) -> dict[str, object]:
    """Alternate bare and metered stretches for about `seconds`."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    loop = Loop(device)
    loop.fit_step_time()
    bare_s, metered_s = [loop.run(_STRETCH, None)], []
    end_s = time.perf_counter() + seconds
    notes: tuple[str, ...] = ()
    while time.perf_counter() < end_s:
        # The meter's thread must not run in a bare stretch: a session for each metered one.
        with Meter(devices=[device], read_every=4) as meter:
            loop.run(10, meter)  # until the counter's rhythm is known
            metered_s.append(loop.run(_STRETCH, meter))
        loop.run(4, None)
        bare_s.append(loop.run(_STRETCH, None))
        notes = meter.summary().notes
    step_s = statistics.median(bare_s)
    differences_s = [m - (a + b) / 2 for a, m, b in zip(bare_s, metered_s, bare_s[1:], strict=False)]
    error_s = 1.25 * statistics.stdev(differences_s) / len(differences_s) ** 0.5  # of a median
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "share_of_step": statistics.median(differences_s) / step_s,
        "standard_error": error_s / step_s,
        "step_time_s": step_s,
        "pairs": len(differences_s),
        "host_time_per_call_s": call_time_s(device),
        "device": name,
        "notes": list(notes),
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
    parser = argparse.ArgumentParser(description="Cost of the meter to a training step of about 50 ms.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seconds", type=float, default=35.0, help="of alternating stretches")
    arguments = parser.parse_args()
    found = measure(arguments.seconds)
    if arguments.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:22} {value}")


if __name__ == "__main__":
    main()
