"""What a reader has to know before relying on a prediction: assumptions, extrapolation, provenance."""

from __future__ import annotations

from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.device.host_overhead import HostModel
from moemodel.model.plan.clock import Auto
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.prediction import Prediction
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.carbon import grid_intensity
from moemodel.model.results.feasibility import verdict_of
from moemodel.model.step.system import System

_SHARE_WORTH_SAYING = 0.01  # of the device time outside what was measured: less hardly widens an interval
_CLOCK_TOLERANCE = 0.995  # 10 MHz of an H100's 1980, less than a step of its clock
_CLOCK_EXCESS = 1.01  # of the power cap: sustained loads settle within 1 % of it
_HELD = 0.97  # assumed, of the power limit: mean of a step that it holds back; stretches of little power give some away


def notes(plan: Plan, architecture: Architecture, machine: System, prediction: Prediction) -> tuple[str, ...]:
    """Notes on a prediction of one plan, a sentence or two each."""
    calibration = machine.calibration
    found = [
        _memory(machine, prediction),
        _outside(prediction),
        _clock(plan, machine, prediction),
        _extrapolated_clock(calibration, prediction),
        _vocabulary(plan, architecture),
        _routing(plan, architecture),
        _positions(plan, architecture),
        _encoder(architecture),
        _links_in_node(plan, machine),
        _links_between_nodes(plan, machine),
        _host(calibration, plan),
        _former_backend(plan),
        _power(calibration),
        _carbon(plan),
        f"Calibration {calibration.name}: {calibration.provenance}",
    ]
    return tuple(note for note in found if note)


def _power(calibration: Calibration) -> str:
    if calibration.power.points == 0:
        return "Power was not measured on this device, so there is no energy either."
    return (
        "Power, clock and energy are those of the steady state of a long run; a run of seconds, on a die that is still "
        "cool, draws a few per cent less."
    )


def _memory(machine: System, prediction: Prediction) -> str | None:
    probability = float(prediction.fit_probability[0])
    needed_B, held_B = float(prediction.memory_B[0]), machine.memory_B
    figures = f"it needs {needed_B / 1e9:.1f} GB, the GPU has {held_B / 1e9:.1f} GB"
    match verdict_of(probability):
        case "fits":
            return None
        case "does not fit":
            return f"This plan does not fit in memory: {figures}. It cannot run."
    open_choices = machine.framework.program_chooses and needed_B > held_B
    depends = (
        " With cross_entropy: fused, or fewer micro-batches_per_schedule, where your program does so, it may need less."
        if open_choices
        else ""
    )
    return f"This plan may not fit in memory (it fits with a probability of {probability:.0%}): {figures}.{depends}"


def _outside(prediction: Prediction) -> str | None:
    share = float(prediction.outside[0])
    if share < _SHARE_WORTH_SAYING:
        return None
    return (
        f"{share:.0%} of the device time is in operator shapes outside what was measured; intervals are widened there."
    )


def _clock(plan: Plan, machine: System, prediction: Prediction) -> str | None:
    """Whether the power limit keeps the clock below what was asked for."""
    asked_Hz = plan.clock.highest_Hz(machine.calibration.clock_range_Hz[1])
    kept_Hz = float(prediction.clock_Hz[0])
    if kept_Hz >= _CLOCK_TOLERANCE * asked_Hz:
        return None
    cap_W = machine.power_limit_W if plan.power_cap_W is None else plan.power_cap_W
    drawn_W = float(prediction.hottest_power_W[0])
    if drawn_W > _CLOCK_EXCESS * cap_W:
        return f"A power limit of {cap_W:g} W cannot be held: at its lowest clock the GPU still draws {drawn_W:.0f} W."
    limit = "its highest" if isinstance(plan.clock, Auto) else "asked for"
    below = f"{kept_Hz / 1e6:.0f} MHz, below the {asked_Hz / 1e6:.0f} MHz that are {limit}"
    if drawn_W < _HELD * machine.sustained_share * cap_W:
        return f"Tensor cores skip cycles, so that the mean clock is {below}."
    return f"Under the power limit of {cap_W:g} W the GPU sustains {below}."


def _extrapolated_clock(calibration: Calibration, prediction: Prediction) -> str | None:
    low_Hz, high_Hz = calibration.clock_measured_Hz
    clock_Hz = float(prediction.clock_Hz[0])
    if low_Hz * _CLOCK_TOLERANCE <= clock_Hz <= high_Hz / _CLOCK_TOLERANCE:
        return None
    return (
        f"The clock of {clock_Hz / 1e6:.0f} MHz lies outside the {low_Hz / 1e6:.0f} to {high_Hz / 1e6:.0f} MHz that "
        "were measured; time and power there are extrapolated."
    )


def _vocabulary(plan: Plan, architecture: Architecture) -> str | None:
    shard = architecture.vocab / plan.parallel.tp
    if not architecture.has_head or shard % 8 == 0:  # 16 bytes of 16-bit elements, as `model.device.roofline.ALIGNED`
        return None
    return (
        f"The vocabulary of {architecture.vocab} over tp {plan.parallel.tp} is no multiple of 8: its products "
        "run at a fraction of their rate. Training code pads it; give the padded one in config.json."
    )


def _routing(plan: Plan, architecture: Architecture) -> str | None:
    experts = [layer.feed_forward for layer in architecture.layers if isinstance(layer.feed_forward, Moe)]
    capacities = {moe.capacity_factor for moe in experts if moe.capacity_factor is not None}
    if capacities:
        factor = ", ".join(f"{c:g}" for c in sorted(capacities))
        return (
            f"Every expert is padded to capacity factor {factor}, whatever the router does; routing.skew changes "
            "nothing, and tokens beyond the capacity are dropped."
        )
    if plan.routing.skew != "balanced" or not experts:
        return None
    return (
        "Routing is assumed balanced: every expert gets as many tokens. Give routing.skew (rows of the busiest expert "
        "over the mean) where it isn't."
    )


def _encoder(architecture: Architecture) -> str | None:
    if not architecture.encoder:
        return None
    return (
        "Tokens are those of the decoder; the encoder reads as many beside them, and its time and energy are included."
    )


def _positions(plan: Plan, architecture: Architecture) -> str | None:
    if architecture.max_seq is None or plan.sequence_length <= architecture.max_seq:
        return None
    return (
        f"sequence_length {plan.sequence_length} is beyond the {architecture.max_seq} that {architecture.name} states."
    )


def _links_in_node(plan: Plan, machine: System) -> str | None:
    parameters = machine.calibration.network.parameters.values()
    unmeasured = sorted({p.origin for p in parameters if p.origin in ("datasheet", "assumed")})
    if plan.cluster.gpus == 1 or not unmeasured:
        return None
    return f"Some figures of the links inside a node are not measured ({', '.join(unmeasured)})."


def _links_between_nodes(plan: Plan, machine: System) -> str | None:
    if plan.cluster.gpus <= machine.network.gpus_per_node:
        return None
    internode, link = machine.internode, machine.internode.link
    if internode.tested:
        measured = sorted({str(test.collective) for test in internode.tests if test.nodes > 1})
        return (
            f"Links between nodes: {', '.join(measured)} by the nccl-tests of {internode.source}; others from "
            f"{link.bandwidth_GBps:g} GB/s a GPU and {link.latency_us:g} us ({link.source})."
        )
    return (
        f"Links between nodes are not measured: {link.bandwidth_GBps:g} GB/s a GPU and {link.latency_us:g} us "
        f"from {link.source}."
    )


def _host(calibration: Calibration, plan: Plan) -> str | None:
    if HostModel(calibration, plan.backend).known:
        return None
    return (
        f"The calibration has no host times for the backend {plan.backend}; a step that waits for its host "
        "(small layers, small micro-batches) takes longer than predicted."
    )


def _former_backend(plan: Plan) -> str | None:
    if plan.former_backend is None:
        return None
    return (
        f"backend {plan.former_backend} is now written backend: {plan.backend} with precision: {plan.precision}; "
        "the former name goes on working."
    )


def _carbon(plan: Plan) -> str | None:
    if plan.tokens is None:
        return None
    intensity = grid_intensity(plan.site.region)
    return (
        f"Emissions use the yearly mean of the grid of {plan.site.region}, {intensity:.3f} kgCO2e/kWh; "
        "a given hour can be several times off."
    )
