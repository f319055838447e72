"""What a profile of a simulated GPU gives back of the parameters that it hides.

    python bench/simulated_gpu.py [--json] [--gpu h100-sxm-80gb] [--clocks passive] [--seeds 5]

Profiles the simulated GPU in each seed's noise, fits power, limits and temperature as `moemodel calibrate` does, and
compares with what the simulation hid. `NAME` is the error furthest from zero over the seeds, as a share of the hidden
value. Not in it: how energy divides between cache and memory, which a profile hardly shows.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from moemodel.calibration.fit.dvfs import fit_governor
from moemodel.calibration.fit.power import fit_power, loads_of
from moemodel.calibration.fit.thermal import fit_leakage, fit_thermal
from moemodel.calibration.store.profile_reader import read_profile
from moemodel.model.device.roofline import Chip as Datasheet
from moemodel.profiler.run import profile
from moemodel.profiler.simulated.chip import CHIPS, Chip

Found = dict[str, tuple[float, float]]  # parameter -> hidden and found
_DIVIDED = ("cache_J_per_B", "dram_J_per_B")


def recovered(folder: Path, chip: Chip) -> Found:
    """What the fits make of a profile of a simulated GPU, beside what that hid."""
    tables, source = read_profile(folder).tables, "simulated"
    loads, leakage = loads_of(tables["power"], chip.clock_max_Hz), fit_leakage(tables["thermal"], source)
    power = fit_power(loads, chip.clock_max_Hz, leakage, source)[0].parameters
    datasheet = Datasheet(
        multiprocessors=chip.multiprocessors,
        flops_per_cycle=chip.flops_per_cycle,
        bandwidth_Bps=chip.bandwidth_Bps,
        l2_B=chip.l2_B,
        clock_Hz=chip.clock_max_Hz,
    )
    governor = fit_governor(loads, tables["operators"], datasheet, chip.cap_W, source).parameters
    thermal = {name: p.value for name, p in fit_thermal(tables["thermal"], source).parameters.items()}
    (die_C_per_W, die_s), (sink_C_per_W, sink_s) = modes(chip)
    electrics = {
        name: (float(getattr(chip.electrics, name)), p.value)
        for name, p in power.items()
        if hasattr(chip.electrics, name)
    }
    return electrics | {
        "tensor_clock": (chip.governor.tensor_Hz, governor["tensor_clock"].value),
        "sustained_share": (chip.governor.sustained_share, governor["sustained_share"].value),
        "die_C_per_W": (die_C_per_W, thermal["die_C_per_W"]),
        "die_time": (die_s, thermal["die_time"]),
        "sink_C_per_W": (sink_C_per_W, thermal["sink_C_per_W"]),
        "sink_time": (sink_s, thermal["sink_time"]),
        "inlet_C": (chip.thermal.inlet_C, thermal["inlet_C"]),
    }


def modes(chip: Chip) -> list[tuple[float, float]]:
    """Resistance and time constant of the two exponentials in which the die answers to power, the faster one first.

    C dT/dt = -K T + (P, 0) for the rises T of die and sink: with S = C^-1/2 K C^-1/2 = sum_i l_i u_i u_i', the die's
    answer is sum_i u_i[0]^2 / (C_die l_i) (1 - exp(-l_i t)).
    """
    t = chip.thermal
    across, away = 1 / t.die_C_per_W, 1 / t.sink_C_per_W
    conductance = np.array([[across, -across], [-across, across + away]])
    root = np.diag([t.die_J_per_C**-0.5, t.sink_J_per_C**-0.5])
    rates, vectors = np.linalg.eigh(root @ conductance @ root)
    found = [
        (float(u[0] ** 2 / (t.die_J_per_C * rate)), float(1 / rate)) for rate, u in zip(rates, vectors.T, strict=True)
    ]
    return sorted(found, key=lambda mode: mode[1])


def figures(gpu: str, clocks: str, seeds: int) -> dict[str, float]:
    """The error of each parameter that is furthest from zero."""
    worst: dict[str, float] = {}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            outcome = profile(f"sim:{gpu}?seed={seed}", Path(folder) / "profile", clocks=clocks)  # type: ignore[arg-type]
            found = recovered(outcome.folder, CHIPS[gpu]())
        errors = {name: value / hidden - 1 for name, (hidden, value) in found.items() if name not in _DIVIDED}
        worst = {name: max(worst.get(name, 0.0), error, key=abs) for name, error in errors.items()}
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--gpu", choices=sorted(CHIPS), default="h100-sxm-80gb")
    parser.add_argument("--clocks", choices=["passive", "lock"], default="passive")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    found = figures(options.gpu, options.clocks, options.seeds)
    if options.json:
        print(json.dumps(found))
        return
    for name, error in found.items():
        print(f"{name:18} {error:+.1%}")


if __name__ == "__main__":
    main()
