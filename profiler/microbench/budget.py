"""How long to measure: one set of numbers a kind of device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_L2_UNKNOWN_B = 64 << 20  # where torch doesn't tell: more than an H100's 50 MB


@dataclass(frozen=True, kw_only=True)
class MeasurementBudget:
    """Lengths of everything.

    Attributes:
        pool_elements: random values shared by all operands.
        cold_B: bytes of operand sets that leave nothing in the caches.
        sample_s: aim for the calls of one sample.
        mixed_samples, solo_samples: samples of a point with the heavy load in between, and alone.
        heavy_at_most: heavy calls before one sample.
        sweep_settle_s, sweep_record_s: of one mix of the passive sweep.
        sweep_samples: rows kept of one mix.
        power_settle_s, power_window_s: of one load; ten ticks of NVML's 100 ms counter.
        heating_s, cooling_s: of section `heat`; after the cooling it heats for half as long again.
        alternating_s: of two loads in turns.
        burst_s: calls queued at once under a held load.
        host_repeats: steps of each tiny model in the host section.
    """

    pool_elements: int
    cold_B: int
    sample_s: float
    mixed_samples: int
    solo_samples: int
    heavy_at_most: int
    sweep_settle_s: float
    sweep_record_s: float
    sweep_samples: int
    power_settle_s: float
    power_window_s: float
    heating_s: float
    cooling_s: float
    alternating_s: float
    burst_s: float
    host_repeats: int


def budget_for(device: torch.device) -> MeasurementBudget:
    """About 250 s in all for a GPU, 30 s for a CPU."""
    if device.type == "cpu":
        return MeasurementBudget(
            pool_elements=1 << 22,
            cold_B=0,
            sample_s=1e-3,
            mixed_samples=2,
            solo_samples=2,
            heavy_at_most=2,
            sweep_settle_s=0.02,
            sweep_record_s=0.05,
            sweep_samples=4,
            power_settle_s=0.05,
            power_window_s=0.25,
            heating_s=0.05,  # a processor has no such trace: only the same code is run
            cooling_s=0.05,
            alternating_s=0.1,
            burst_s=8e-3,
            host_repeats=2,
        )
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return MeasurementBudget(
        pool_elements=1 << 30,  # 2 GiB of bf16: forty times the cache of an H100
        cold_B=2 * int(getattr(properties, "L2_cache_size", _L2_UNKNOWN_B)),  # twice the cache leaves nothing in it
        sample_s=1e-3,
        mixed_samples=4,
        solo_samples=3,
        heavy_at_most=32,
        sweep_settle_s=0.25,  # the clock moves by some MHz a millisecond (model.device.dvfs)
        sweep_record_s=0.35,  # ten operators at six mixes take 36 s with it, a little more than the section has
        sweep_samples=16,
        power_settle_s=0.35,  # assumed: three ticks for the readings; the slow limit takes two seconds
        power_window_s=1.05,
        heating_s=12.0,  # an H100's heat sink follows with 18 s (its calibration), its die within one
        cooling_s=22.0,  # likewise: the range of temperatures that tells what leaks
        alternating_s=3.5,  # 2 s to settle (`profiler.sections.thermal`), then a second and a half of ticks
        burst_s=8e-3,
        host_repeats=30,
    )
