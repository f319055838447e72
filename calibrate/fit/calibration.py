"""Fit a whole calibration from a profile: operators, host, power, governor, temperature, links, memory."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

import moemodel
from moemodel.calibration.fit.dvfs import fit_gain, fit_governor, no_governor, with_gain
from moemodel.calibration.fit.network import measured_network
from moemodel.calibration.fit.operators import HeldOut, fit_operator, held_out_error, observations
from moemodel.calibration.fit.power import UNITS, fit_power, loads_of
from moemodel.calibration.fit.thermal import fit_leakage, fit_thermal, stuck_reading
from moemodel.calibration.fit.trial import trial_reason
from moemodel.calibration.store.profile_reader import Profile, read_profile
from moemodel.calibration.store.profile_tables import OperatorTable, joined
from moemodel.calibration.threads import one_blas_thread
from moemodel.model.core.arrays import known_or, take_rows
from moemodel.model.core.errors import InputError, ProfileError
from moemodel.model.device.roofline import RooflineChip
from moemodel.model.hardware.gpu import Gpu, read_gpu
from moemodel.model.records.calibration import (
    SCHEMA_VERSION,
    Calibration,
    GovernorFit,
    HostLane,
    MemoryFit,
    OperatorFit,
    Parameter,
    PowerFit,
    ThermalFit,
)

_TRAINING_DTYPE = "bf16"
_FEWEST_LOADS = 8  # as many as power has coefficients and its voltage curve parameters
_HOST_LOG_ERROR = 0.25  # assumed: a virtual machine's host was seen to vary by this from one minute to the next
# Root mean square of log(reported / true clock) over the samples of the H100 profile that ships (its operators table).
_REPORTED_CLOCK_ERROR = 0.139
_COMPOSITION_ERROR = 0.03  # assumed: cache reuse and launch gaps between operators that were timed alone


Tell = Callable[[int, int, str], None]  # steps done, of how many, and what comes now


@one_blas_thread()
def calibrate_profile(
    folder: Path, *others: Path, progress: Tell = lambda *_: None
) -> tuple[Calibration, list[HeldOut]]:
    """Fit a calibration to a profile, or to profiles of several GPUs of one kind.

    Samples of several profiles are pooled: times differ by their true clocks alone, and power averages over the chips.
    Host times average over the machines. Temperature and memory are taken from the first. A profile may hold
    collectives alone, measured on several GPUs.

    Args:
        folder: of the profile.
        others: further profiles of the same kind of GPU.
        progress: is told how far it is.

    Returns:
        The calibration, and for each operator and pass the errors on shapes that were held out.

    Raises:
        ProfileError: a profile is missing, damaged, of another GPU, or lacks what a calibration needs.
    """
    read = [read_profile(each) for each in (folder, *others)]
    profile = _pooled(read[0], read[1:])
    linked = next((each for each in read if len(each.collectives)), profile)
    gpu = read_gpu(profile.manifest.gpu)
    if not len(profile.operators):
        raise ProfileError(
            f"{folder}: table operators: found no rows; run `moemodel profile` with --sections mixed,solo"
        )
    try:
        return _fitted(profile, linked, gpu, progress)
    except InputError as error:  # a value that no device has
        named = ", ".join(str(each) for each in (folder, *others))
        raise ProfileError(f"{named}: what was measured gives no calibration: {error}") from None


@one_blas_thread()
def held_out_errors(folder: Path, *others: Path) -> list[HeldOut]:
    """The second half of what `calibrate_profile` gives, in three quarters of its time: no calibration is fitted.

    Args:
        folder: of the profile.
        others: further profiles of the same kind of GPU.
    """
    read = [read_profile(each) for each in (folder, *others)]
    operators = _pooled(read[0], read[1:]).operators
    chip, _ = _chip(read_gpu(read[0].manifest.gpu), operators)
    return [held_out_error(data, chip) for data in observations(operators)]


def _fitted(profile: Profile, linked: Profile, gpu: Gpu, progress: Tell) -> tuple[Calibration, list[HeldOut]]:
    """The calibration of profiles in one, whose links are those of `linked`.

    Raises:
        InputError: a value comes out that no device has.
    """
    source, operators = _source(profile), profile.operators
    chip, chip_parameters = _chip(gpu, operators)
    fits: list[OperatorFit] = []
    errors: list[HeldOut] = []
    unsure = _unsure(operators, gpu)
    observed = list(observations(operators))
    steps = len(observed) + 2
    for step, data in enumerate(observed):
        progress(step, steps, f"{data.kind} {data.direction}")
        fit, held_out = fit_operator(data, chip, source)
        fits.append(fit.model_copy(update={"log_error": float(np.hypot(fit.log_error, unsure))}))
        errors.append(held_out)
    progress(len(observed), steps, "power")
    thermal = fit_thermal(profile.thermal, source)
    power, governor = _power(profile, gpu, chip, thermal, source)
    governor = governor.model_copy(update={"log_error": float(np.hypot(governor.log_error, unsure))})
    calibration = Calibration(
        schema_version=SCHEMA_VERSION,
        name=f"simulated-{gpu.name}" if profile.manifest.device.vendor == "simulated" else gpu.name,
        gpu=gpu.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        moemodel_version=moemodel.__version__,
        provenance=f"Measured: {source}.",
        trial=trial_reason(fits, errors),
        clock_reference_Hz=chip.clock_Hz,
        clock_range_Hz=(gpu.clock_min_Hz or 0.999 * chip.clock_Hz, chip.clock_Hz),  # no width is no range
        clock_measured_Hz=_measured_clocks(operators, chip.clock_Hz),
        composition_error=Parameter.assumed(
            _COMPOSITION_ERROR, "1", "cache reuse and launch gaps between operators timed alone"
        ),
        chip=chip_parameters,
        operators=fits,
        host=_host(profile, source),
        power=power,
        governor=governor,
        thermal=thermal,
        network=measured_network(
            gpu, profile.collectives, profile.overlap, linked.manifest.topology, _links_source(linked)
        )[0],
        memory=_memory(profile, source),
    )
    progress(len(observed) + 1, steps, "governor")
    if calibration.power.points and len(profile.alternating):
        cap_W = profile.manifest.device.power_limit_W or gpu.power_limit_W or np.inf
        gain = fit_gain(calibration, profile.alternating, profile.power, cap_W, source)
        calibration = with_gain(calibration, gain)
    progress(steps, steps, "done")
    return calibration, errors


def _measured_clocks(operators: OperatorTable, clock_Hz: float) -> tuple[float, float]:
    """Lowest and highest clock seen, without the half per cent at either end, which may be misread; the chip's if no
    clock was read."""
    clocks_Hz = known_or(operators.clock_Hz, operators.clock_reported_Hz)
    clocks_Hz = clocks_Hz[~np.isnan(clocks_Hz)]
    if not len(clocks_Hz):
        return clock_Hz, clock_Hz
    return float(np.percentile(clocks_Hz, 0.5)), float(np.percentile(clocks_Hz, 99.5))


def _unsure(operators: OperatorTable, gpu: Gpu) -> float:
    """Log error of clocks, and so of times at a clock, where only the driver's word for it is known.

    A GPU whose governor skips cycles runs below what its driver reports; how far, only the cycle counter tells.
    """
    if gpu.clock_max_Hz is None:  # a processor: its clock is no part of the model
        return 0.0
    told = np.isnan(operators.clock_Hz) & ~np.isnan(operators.clock_reported_Hz)
    return _REPORTED_CLOCK_ERROR * float(told.mean())


def _pooled(first: Profile, others: list[Profile]) -> Profile:
    """The first profile with the operators, loads and host times of the others.

    Raises:
        ProfileError: one is of another GPU or precision.
    """
    for other in others:
        for what in ("gpu", "dtype"):
            found, expected = getattr(other.manifest, what), getattr(first.manifest, what)
            if found != expected:
                raise ProfileError(f"{other.folder}: {what}: found {found}; {first.folder} has {expected}")
    if not others:
        return first
    every = [first, *others]
    return replace(
        first,
        operators=joined([profile.operators for profile in every]),
        power=joined([profile.power for profile in every]),
        host=joined([profile.host for profile in every]),
        collectives=joined([profile.collectives for profile in every]),
        overlap=joined([profile.overlap for profile in every]),
        chips=1 + sum(len(other.operators) > 0 for other in others),  # not those of collectives only
    )


def _source(profile: Profile) -> str:
    manifest = profile.manifest
    device = manifest.device.name
    torch = manifest.libraries.get("torch", "?")
    chips = f"{profile.chips} x " if profile.chips > 1 else ""
    return f"{chips}{device}, {manifest.created[:10]}, torch {torch}, driver {manifest.device.driver or 'none'}"


def _links_source(profile: Profile) -> str:
    manifest = profile.manifest
    count = int(profile.collectives.ranks.max()) if len(profile.collectives) else 1
    nccl = f", NCCL {manifest.host['nccl']}" if "nccl" in manifest.host else ""
    return f"{count} x {manifest.device.name}, {manifest.created[:10]}{nccl}"


def _chip(gpu: Gpu, operators: OperatorTable) -> tuple[RooflineChip, dict[str, Parameter]]:
    """The GPU's datasheet; for a device that has none (a CPU), rates that its own fastest samples define."""
    reported_Hz = operators.clock_reported_Hz[~np.isnan(operators.clock_reported_Hz)]
    clock_Hz = gpu.clock_max_Hz or (float(reported_Hz.max()) if len(reported_Hz) else np.nan)
    if gpu.multiprocessors and gpu.memory_bandwidth_Bps and gpu.l2_B and gpu.peaks:
        peak = gpu.peak(_TRAINING_DTYPE)
        values = {
            "multiprocessors": (float(gpu.multiprocessors), "1"),
            "flops_per_cycle": (peak.flops_per_cycle / gpu.multiprocessors, "1"),
            "bandwidth_Bps": (gpu.memory_bandwidth_Bps, "B/s"),
            "l2_B": (float(gpu.l2_B), "B"),
        }
        if gpu.simd_lanes and gpu.simd_lanes != RooflineChip.simd_lanes:  # which calibrations without it have
            values["simd_lanes"] = (float(gpu.simd_lanes), "1")
        parameters = {
            name: Parameter.datasheet(value, unit, f"GPU description {gpu.name}")
            for name, (value, unit) in values.items()
        }
    else:
        # 1 GHz: a processor's clock cancels out of its times
        parameters = _nominal_chip(operators, clock_Hz if np.isfinite(clock_Hz) else 1e9)
        clock_Hz = clock_Hz if np.isfinite(clock_Hz) else 1e9
    return RooflineChip(**{name: p.value for name, p in parameters.items()}, clock_Hz=clock_Hz), parameters


def _nominal_chip(operators: OperatorTable, clock_Hz: float) -> dict[str, Parameter]:
    """One multiprocessor as fast as the fastest product seen, memory as fast as the fastest copy."""
    products = take_rows(operators, operators.kind == "gemm")
    copies = take_rows(operators, operators.kind == "copy")
    if not len(products) or not len(copies):
        missing = "copy" if len(products) else "gemm"
        raise ProfileError(f"table operators: no rows of {missing}; run `moemodel profile` on this folder again")
    flops = (2.0 * products.m * products.n * products.k / products.time_s).max()
    bandwidth = (4.0 * copies.m / copies.time_s).max()  # bytes of an element of bf16, read and written
    source = "the fastest sample of the profile: this device has no datasheet rates"
    return {
        "multiprocessors": Parameter.measured(1.0, "1", source),
        "flops_per_cycle": Parameter.measured(float(flops) / clock_Hz, "1", source),
        "bandwidth_Bps": Parameter.measured(float(bandwidth), "B/s", source),
        "l2_B": Parameter.assumed(float(1 << 20), "B", "a last-level cache of 1 MiB a core"),
    }


def _power(
    profile: Profile, gpu: Gpu, chip: RooflineChip, thermal: ThermalFit, source: str
) -> tuple[PowerFit, GovernorFit]:
    """Power and governor; a device without power readings gets none, and a large error that says so."""
    clock_Hz = chip.clock_Hz
    table = profile.power
    if stuck_reading(profile.thermal):  # that of the loads is no better
        table = replace(table, temperature_C=np.full(len(table), np.nan))
    loads = loads_of(table, clock_Hz)
    cap_W = profile.manifest.device.power_limit_W or gpu.power_limit_W or np.inf
    if len(loads) < _FEWEST_LOADS or profile.manifest.device.power_source == "guess":
        return _no_power(clock_Hz)
    power, _ = fit_power(loads, clock_Hz, fit_leakage(profile.thermal, thermal, source), source)
    return power, fit_governor(loads, profile.operators, chip, cap_W, source)


def _no_power(clock_Hz: float) -> tuple[PowerFit, GovernorFit]:
    source = "the profile has no power readings: power is not modelled"
    names = {**UNITS, "leak_W_per_C": "W/K", "rise_per_C": "1/K", "leak_reference_C": "C", "voltage_slope": "1"}
    parameters = {name: Parameter.assumed(0.0, unit, source) for name, unit in names.items()}
    parameters["knee_Hz"] = Parameter.assumed(clock_Hz, "Hz", source)
    return (
        PowerFit(parameters=parameters, log_error=1.0, points=0),  # large: nothing is known
        GovernorFit(parameters=no_governor(source), log_error=0.1),
    )


def _host(profile: Profile, source: str) -> list[HostLane]:
    """Host time of blocks, averaged over the option sets they were measured with."""
    if not len(profile.host):
        return []
    table = profile.host.frame()
    others = table[~table["block"].isin(["optimizer_layer", "optimizer_tensor"])]
    means = others.groupby(["block", "direction"])["host_time_s"].mean()
    layer_of = {
        detail: block
        for detail, block, direction in zip(table["detail"], table["block"], table["direction"], strict=True)
        if "layer" in block and direction == "forward"
    }
    values = {"/".join(key): float(value) for key, value in zip(means.index.to_list(), means, strict=True)}
    steps = table[table["block"] == "optimizer_layer"].groupby("detail")["host_time_s"].mean()
    for detail, host_time_s in steps.items():
        if detail in layer_of:
            values[f"{layer_of[detail]}/step"] = float(host_time_s)
    blocks = {name: _host_time(value, source) for name, value in sorted(values.items())}
    return [HostLane(backend="torch", blocks=blocks, log_error=_HOST_LOG_ERROR)]


def _host_time(value_s: float, source: str) -> Parameter:
    """A block's time; a difference of two models' times that came out below zero is nothing that can be told."""
    if value_s > 0:
        return Parameter.measured(value_s, "s", source)
    return Parameter.assumed(
        0.0, "s", f"lost in the noise of the host's times ({value_s:.2g} s), so it counts for nothing: {source}"
    )


def _memory(profile: Profile, source: str) -> MemoryFit:
    context_B = profile.manifest.host.get("context_B")
    context = (
        Parameter.measured(
            float(context_B), "B", f"{source}: used as the driver counts, less what the allocator reserved"
        )
        if context_B
        else Parameter.assumed(1e9, "B", "a CUDA context with libraries loaded")  # an H100's is 1.26 GB, measured
    )
    return MemoryFit(
        parameters={
            "context": context,
            # cuBLAS' 32 MiB (PyTorch, CublasHandlePool.cpp); the 8 MiB beside them are assumed
            "workspace": Parameter.assumed(
                32 * 2**20 + 8192 * 1024, "B", "cuBLAS workspaces that PyTorch keeps on Hopper"
            ),
            "fragmentation": Parameter.assumed(
                0.03, "1", "what a caching allocator under pressure cannot reuse"
            ),  # no evidence
            "log_error": Parameter.assumed(
                0.02, "1", "allocator rounding and library workspaces; docs/accuracy.md has the errors"
            ),
        }
    )
