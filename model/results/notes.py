"""What a reader has to know before relying on a prediction: assumptions, extrapolation, provenance."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from moemodel.model.architecture.spec import Architecture
from moemodel.model.device.host_overhead import HostModel
from moemodel.model.device.precision import KERNELS
from moemodel.model.device.thermal import thermal_model
from moemodel.model.frameworks.torch_native import TORCH
from moemodel.model.frameworks.track_record import TrackRecord, track_records, widest
from moemodel.model.layers.multi_token import multi_token_note
from moemodel.model.network.cluster import notes_on_tests
from moemodel.model.operators.work import Kind, Pass
from moemodel.model.plan.clock import Auto, ByStage
from moemodel.model.plan.failures import CHECKPOINT_S, RESTART_S
from moemodel.model.plan.skew import experts_of, forecast
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.chips import straggler_factor
from moemodel.model.predict.prediction import Prediction
from moemodel.model.records.calibration import Calibration, KernelFit
from moemodel.model.results.choice_notes import choice_notes
from moemodel.model.results.clock_changes import change_worth
from moemodel.model.results.defaults import choices_by_default, inlet_by_default, site_by_default
from moemodel.model.results.dispatch_notes import dispatch_notes
from moemodel.model.results.feasibility import verdict_of
from moemodel.model.results.goodput import run_time
from moemodel.model.results.inlet_sensitivity import InletSensitivity
from moemodel.model.results.routing_cost import RoutingCost
from moemodel.model.results.stage_clocks import notes_on_stage_clocks
from moemodel.model.step.system import System

_ABOVE_LIMIT = 1.005  # of the power limit: less is rounding
_SHARE_WORTH_SAYING = 0.01  # of the device time outside what was measured: less hardly widens an interval
_CLOCK_TOLERANCE = 0.995  # 10 MHz of an H100's 1980, less than a step of its clock
_SAME_C = 0.5  # of a die: what rounding shows
_CLOCK_EXCESS = 1.01  # of the power cap: sustained loads settle within 1 % of it
_NEVER_ENDS = 0.01  # assumed, of goodput: nobody waits for a hundredfold
_HELD = 0.97  # assumed, of the power limit: mean of a step that it holds back; stretches of little power give some away


def notes(
    plan: Plan,
    architecture: Architecture,
    machine: System,
    prediction: Prediction,
    warmer: InletSensitivity | None,
    routing: RoutingCost | None = None,
) -> tuple[str, ...]:
    """Notes on a prediction of one plan, a sentence or two each."""
    calibration = machine.calibration
    cap_W = machine.power_limit_W if plan.power_cap_W is None else plan.power_cap_W
    found = [
        calibration.trial,
        _memory(plan, architecture, machine, float(prediction.memory_B[0]), float(prediction.fit_probability[0])),
        _description(machine),
        _lowest_cap(plan, machine),
        _track_record(plan, machine, architecture),
        _narrow_products(plan, machine),
        _outside(prediction),
        _clock(plan, machine, prediction),
        _receives(plan, machine),
        *notes_on_stage_clocks(plan, cap_W, prediction, change_worth(plan, architecture, machine, prediction)),
        _bursts(plan, machine, prediction),
        _extrapolated_clock(calibration, prediction),
        _vocabulary(plan, architecture),
        *architecture.notes,
        multi_token_note(architecture, plan.sequence_length),
        _forward_only(plan),
        _pipes(plan, machine),
        _routing(plan, architecture, machine, routing),
        _positions(plan, architecture),
        _encoder(plan, architecture),
        _links_in_node(plan, machine),
        _links_between_nodes(plan, machine),
        _part_of_a_node(plan, machine),
        *dispatch_notes(plan, architecture, machine),
        *choice_notes(plan, architecture, machine),
        *notes_on_tests(machine.internode, machine.network, plan.cluster.gpus),
        _host(calibration, plan),
        _mfu(plan, machine),
        _former_backend(plan),
        *plan.file_notes,
        choices_by_default(plan, architecture, machine),
        _power(calibration),
        inlet_by_default(plan, warmer),
        *site_by_default(plan, machine),
        *_failures(plan, prediction),
        f"Calibration {calibration.name}: {calibration.provenance}",
    ]
    return tuple(note for note in found if note)


def _failures(plan: Plan, p: Prediction) -> Iterator[str]:
    """What failures were reckoned with, and whether the run can end."""
    failures = plan.failures
    if failures is None:
        return
    if plan.tokens is None:
        yield "`failures` counts in the totals of the run alone: give `tokens`."
        return
    steps = np.ceil(plan.tokens / p.tokens)
    run = run_time(failures, steps=steps, step_time_s=p.step_time_s, gpus=np.array([float(plan.cluster.gpus)]))
    interval = "given" if failures.checkpoint_interval_s is not None else "Daly's (2006), the best for these"
    known = {"checkpoint_s": CHECKPOINT_S, "restart_s": RESTART_S}
    defaults = [name for name, value in known.items() if getattr(failures, name) == value]
    assumed = f"; {' and '.join(defaults)} by default (assumed)" if defaults else ""
    yield (
        f"The run is taken to fail every {failures.mtbf_s(plan.cluster.gpus) / 3600:.3g} hours, at random, and to lose "
        f"what it did since its last checkpoint; a checkpoint every {float(run.interval_s[0]):,.0f} s of training "
        f"({interval}) takes {failures.checkpoint_s:g} s, a restart {failures.restart_s:g} s{assumed}. GPUs idle "
        "meanwhile. Spare GPUs are taken to be there."
    )
    if float(run.goodput[0]) < _NEVER_ENDS:
        yield (
            f"Such a run is not expected to end: {float(run.goodput[0]):.1g} of its time makes progress. Hours, "
            "energy, emissions and cost are lower bounds; shorten checkpoint_interval_s, checkpoint_s or restart_s."
        )


def _forward_only(plan: Plan) -> str | None:
    if plan.mode != "inference":
        return None
    return (
        "A step is forward passes alone, and the host waits for each before it queues the next. Its time is taken from "
        "the forward passes of training, in which autograd records: without that it takes less, so that what waits "
        "for the host is faster than predicted."
    )


def _pipes(plan: Plan, machine: System) -> str | None:
    if machine.framework.precisions[plan.precision].matmul_dtype != "fp32":
        return None
    return (
        "Products in fp32 are taken to run on the FP32 pipes, without TF32, at the data sheet's rate and at the power "
        "of tensor cores; the calibration has measured none."
    )


def _bursts(plan: Plan, machine: System, p: Prediction) -> str | None:
    """Phases whose kernels draw more than the power limit."""
    limit_W = machine.power_limit_W if plan.power_cap_W is None else plan.power_cap_W
    phases = {"forward": (p.forward_J, p.forward_s), "backward": (p.backward_J, p.backward_s)}
    phases["optimizer"] = (p.optimizer_J, p.optimizer_s)
    drawn_W = {name: float(J[0] / s[0]) / plan.cluster.gpus for name, (J, s) in phases.items() if s[0] > 0}
    above = [f"{name} {watts:.0f} W" for name, watts in drawn_W.items() if watts > _ABOVE_LIMIT * limit_W]
    if not above:
        return None
    return (
        f"While their kernels run, phases draw more a GPU than the limit of {limit_W:g} W: {', '.join(above)}. The "
        "limit holds mean power over about a second, in which a GPU communicates and waits too."
    )


def notes_without_times(
    plan: Plan, architecture: Architecture, machine: System, peak_B: float, probability: float
) -> tuple[str, ...]:
    """Notes on what can be said of a plan without a calibration of its GPU."""
    name = machine.gpu.name
    found = [
        f"There is no calibration of {name}, so there is no time, power or energy, and nothing that follows from them. "
        "`moemodel profile` on such a GPU and `moemodel calibrate` make one.",
        _memory(plan, architecture, machine, peak_B, probability, always=True),
        _tensor_cores(plan, machine),
        _vocabulary(plan, architecture),
        _routing(plan, architecture, machine, None),
        _positions(plan, architecture),
        _encoder(plan, architecture),
        _former_backend(plan),
        choices_by_default(plan, architecture, machine),
        "FLOPs and bytes are the least that the operators need; bytes sent are those of rings over each group.",
        f"Calibration: {machine.calibration.provenance}",
    ]
    return tuple(note for note in found if note)


def _tensor_cores(plan: Plan, machine: System) -> str | None:
    """That the GPU has no tensor cores for the products' type, as far as its description goes."""
    dtype = machine.framework.precisions[plan.precision].matmul_dtype
    if not machine.gpu.peaks or dtype in machine.gpu.peaks:
        return None
    instead = "; products take the rate of fp16" if dtype == "bf16" and "fp16" in machine.gpu.peaks else ""
    peaks = ", ".join(machine.gpu.peaks)
    return f"{machine.gpu.name} does not compute in {dtype} by its description (peaks: {peaks}){instead}."


def _lowest_cap(plan: Plan, machine: System) -> str | None:
    """That nobody says whether a GPU can be set to a cap."""
    if plan.power_cap_W is None or machine.gpu.power_limit_min_W is not None:
        return None
    return (
        f"The lowest limit that {machine.gpu.name} can be set to isn't known: {plan.power_cap_W:g} W may be below it."
    )


def _description(machine: System) -> str | None:
    """What was changed for a description that differs from what the calibration was made on."""
    if not machine.changes:
        return None
    return (
        f"The description of {machine.gpu.name} is not what the calibration was made on: "
        f"{', '.join(map(str, machine.changes))}. The calibration is rescaled to it and the intervals reach to where "
        "kernels do not follow."
    )


def _track_record(plan: Plan, machine: System, architecture: Architecture) -> str | None:
    """How predictions of the framework have done, where the calibration is not of it; of other code on it, else."""
    name = machine.framework.name
    record, of_all = machine.framework_record(experts=architecture.has_experts), track_records().get(name)
    known = None if of_all is None else of_all.of(experts=architecture.has_experts)
    if record is None:
        own = f"Intervals are of this project's own code on {name}."
        if known is not None:
            return f"{own} {_done(known)}: other code is not held by them."
        return f"{own} Other code is not held by them." if name == TORCH.name else None
    if known is None:
        return (
            f"No run of backend {name} was ever held against a prediction; intervals are as wide as those of "
            f"{widest()[0]}, the worst that was. {_done(record)}."
        )
    missed = f"intervals hold what predictions of it missed. {_done(known)}"
    on_one = machine.framework.data_parallel_only and plan.cluster.gpus > 1
    alone = " None of them was on several GPUs, which share out states and exchange as under torch." if on_one else ""
    return f"Backend {name} was not measured with this calibration; {missed}.{alone}"


def _done(record: TrackRecord) -> str:
    """A framework's record in a sentence, without its full stop."""
    longer = math.expm1(-record.mean_log)
    mean = f"{abs(longer):.0%} {'longer' if longer > 0 else 'shorter'} in the mean"
    return (
        f"Of {record.runs} runs ({', '.join(record.sources)}) nine in ten took within a factor of "
        f"{math.exp(record.within_log):.2f} of the time predicted without a fit, {mean}"
    )


def _narrow_products(plan: Plan, machine: System) -> str | None:
    """What products of fewer bits than 16 are priced by."""
    dtype, calibration = machine.framework.precisions[plan.precision].matmul_dtype, machine.calibration
    if dtype not in KERNELS:
        return None
    fit = calibration.operator(Kind.GEMM, Pass.FORWARD)
    if not isinstance(fit, KernelFit):
        return (
            f"No kernels in {dtype} were ever fitted for {machine.gpu.name}: products in it are those of 16 bits, "
            "faster by the ratio of the data sheet's peaks, which real kernels fall short of."
        )
    as_dtype = "" if fit.dtype == dtype else f", as their products in {fit.dtype}"
    return (
        f"Products in {dtype} are as fast as an inference engine's kernels{as_dtype}: "
        f"{fit.parameters['p'].source}. That a library for training has kernels as good is assumed."
    )


def _mfu(plan: Plan, machine: System) -> str | None:
    dtype = machine.framework.precisions[plan.precision].matmul_dtype
    if dtype == "bf16" or math.isnan(machine.peak_flops_per_s):
        return None
    return f"MFU is over the GPU's peak in bf16, though precision {plan.precision} multiplies in {dtype}."


def _power(calibration: Calibration) -> str:
    if calibration.power.points == 0:
        return "Power was not measured on this device, so there is no energy either."
    return (
        "Power, clock and energy are those of the steady state of a long run; a run of seconds, on a die that is still "
        "cool, draws a few per cent less."
    )


def _memory(
    plan: Plan,
    architecture: Architecture,
    machine: System,
    needed_B: float,
    probability: float,
    *,
    always: bool = False,
) -> str | None:
    """Whether a plan fits in memory; where it does, only if it is always to be said."""
    held_B = machine.memory_B
    if math.isinf(held_B):
        return f"The memory of {machine.gpu.name} is not known: whether the plan fits remains open." if always else None
    figures = f"the fullest GPU needs {needed_B / 1e9:.1f} GB, {machine.gpu.name} has {held_B / 1e9:.1f} GB"
    match verdict_of(probability):
        case "fits":
            return f"This plan fits in memory: {figures}." if always else None
        case "does not fit":
            return f"This plan does not fit in memory: {figures}. It cannot run."
    left_open = _left_to_the_program(plan, architecture, machine) if needed_B > held_B else []
    depends = f" With {' or '.join(left_open)}, where your program does so, it may need less." if left_open else ""
    return f"This plan may not fit in memory (it fits with a probability of {probability:.0%}): {figures}.{depends}"


def _left_to_the_program(plan: Plan, architecture: Architecture, machine: System) -> list[str]:
    """What would take less memory and what neither the plan nor the framework settles, as keys of a plan."""
    if not machine.framework.program_chooses:
        return []
    found = ["cross_entropy: fused"] if plan.cross_entropy is None and architecture.has_head else []
    pp, m = plan.parallel.pp, plan.micro_batches
    if plan.micro_batches_per_schedule is None and 1 < pp < m and m % pp == 0:  # as `thriftiest_B` runs it
        found.append(f"micro_batches_per_schedule: {pp}")
    return found


def _receives(plan: Plan, machine: System) -> str | None:
    """What torch's schedules of several chunks a stage take more: traced on two H200, kernels of receives waited on 16
    of 132 SMs for 31 % of a step, and grouped products, whose blocks stay on their SM, took 1.7 to 1.8 times as long
    beside them."""
    if machine.framework.pipeline != "torch" or plan.parallel.virtual_stages == 1:
        return None
    return (
        "Steps of torch's schedules with several chunks a stage took 5 to 15 % longer than predicted (three plans on "
        "two GPUs): receives wait on SMs beside the passes, which is not modelled."
    )


def _outside(prediction: Prediction) -> str | None:
    share = float(prediction.outside[0])
    if share < _SHARE_WORTH_SAYING:
        return None
    return (
        f"{share:.0%} of the device time is in operator shapes outside what was measured; intervals are widened there."
    )


def _clock(plan: Plan, machine: System, prediction: Prediction) -> str | None:
    """What keeps the clock below what was asked for: the power limit, heat, or the tensor cores' own limit."""
    if isinstance(plan.clock, ByStage):
        return None  # of which `notes_on_stage_clocks` speak
    asked_Hz = plan.clock.highest_Hz(machine.calibration.clock_range_Hz[1])
    kept_Hz = float(prediction.clock_Hz[0])
    if kept_Hz >= _CLOCK_TOLERANCE * asked_Hz:
        return None
    limit = "its highest" if isinstance(plan.clock, Auto) else "asked for"
    below = f"{kept_Hz / 1e6:.0f} MHz, below the {asked_Hz / 1e6:.0f} MHz that are {limit}"
    lowest = f"the lowest clock, {machine.calibration.clock_range_Hz[0] / 1e6:.0f} MHz"
    cap_W = machine.power_limit_W if plan.power_cap_W is None else plan.power_cap_W
    held_W, heat_W = machine.sustained_share * cap_W, _heat_limit_W(machine)
    drawn_W, die_C = float(prediction.hottest_power_W[0]), float(prediction.temperature_C[0])
    if drawn_W < _HELD * min(held_W, heat_W):
        return f"Tensor cores skip cycles, so that the mean clock is {below}."
    if heat_W < held_W:
        slows = f"{machine.slowdown_C:.0f} C at which the hardware slows the clock"
        if die_C > machine.slowdown_C + _SAME_C:
            return (
                f"Heat cannot be held: even at {lowest}, the die that draws most would settle at {die_C:.0f} C, above "
                f"the {slows}: this air does not cool it. The mean clock is {below}."
            )
        return f"Heat holds the clock back: at the {slows} the GPU sustains {below}."
    if drawn_W > _CLOCK_EXCESS * cap_W:
        return (
            f"A power limit of {cap_W:g} W cannot be held: even at {lowest}, the GPU that draws most takes "
            f"{drawn_W:.0f} W. The mean clock of all GPUs and phases is {below}."
        )
    return f"Under the power limit of {cap_W:g} W the GPU sustains {below}.{_unlike(plan)}"


def _unlike(plan: Plan) -> str:
    """That chips differ, where several wait for each other."""
    chips = plan.cluster.gpus // plan.parallel.pp
    if chips == 1:
        return ""
    more = straggler_factor(chips) - 1
    return f" Of {chips} chips the one that needs most for its work, {more:.1%} above the mean, sets the pace."


def _heat_limit_W(machine: System) -> float:
    """Power at which the die reaches the temperature that slows the clock, in the steady state; infinite: none."""
    thermal = thermal_model(machine.calibration)
    if thermal.total_C_per_W == 0:
        return math.inf
    inlet_C = thermal.inlet_C if machine.inlet_C is None else machine.inlet_C
    return max(0.0, (machine.slowdown_C - inlet_C) / thermal.total_C_per_W)


def _extrapolated_clock(calibration: Calibration, prediction: Prediction) -> str | None:
    low_Hz, high_Hz = calibration.clock_measured_Hz
    clock_Hz = float(prediction.clock_Hz[0])
    if low_Hz * _CLOCK_TOLERANCE <= clock_Hz <= high_Hz / _CLOCK_TOLERANCE:
        return None
    base = calibration.derived_from
    measured = "were measured" if base is None else f"stand for those measured on {base}"
    return (
        f"The clock of {clock_Hz / 1e6:.0f} MHz lies outside the {low_Hz / 1e6:.0f} to {high_Hz / 1e6:.0f} MHz that "
        f"{measured}; time and power there are extrapolated."
    )


def _vocabulary(plan: Plan, architecture: Architecture) -> str | None:
    shard = architecture.vocab / plan.parallel.tp
    if (
        not architecture.has_head or architecture.classes or shard % 8 == 0
    ):  # 16 bytes of 16-bit elements, as `model.device.roofline.ALIGNED`
        return None
    return (
        f"The vocabulary of {architecture.vocab} over tp {plan.parallel.tp} is no multiple of 8: its products "
        "run at a fraction of their rate. Training code pads it; give the padded one in config.json."
    )


def _routing(plan: Plan, architecture: Architecture, machine: System, routing: RoutingCost | None) -> str | None:
    """What is taken for granted of how evenly routers load experts, and what the framework makes of it."""
    experts = experts_of(architecture)
    if not experts:
        return None
    capacities = {moe.capacity_factor for moe in experts if moe.capacity_factor is not None}
    if capacities:
        return _capacity(capacities, machine)
    always = machine.framework.moe.padding == "always"
    padded = f" Backend {plan.backend} pads every expert's rows to the busiest's." if always else ""
    skew = forecast(plan.routing, architecture) if routing is None else routing.skew
    seen = f"{'; '.join(skew.sources)}{'' if skew.measured else ' (not all of it measured)'}"
    if plan.routing.skew is None:
        slower = "" if routing is None else f", where a step takes {routing.time_reach:.2f} times as long"
        return (
            f"Routing is assumed balanced: every expert gets as many tokens. Intervals reach, to the slower side, a "
            f"busiest expert with {skew.high:.2f} times the mean{slower}, as was seen: {seen}. Give routing.skew where "
            f"you know it.{padded}"
        )
    if skew.sources:
        return f"The busiest expert gets {skew.value:.2f} times the mean ({skew.high:.2f} at most), by {seen}.{padded}"
    return padded.strip() or None


def _capacity(capacities: set[float], machine: System) -> str:
    factor = ", ".join(f"{c:g}" for c in sorted(capacities))
    if machine.framework.moe.padding == "never":
        return (
            f"Experts take capacity factor {factor}; rows beyond it are dropped, and none is padded: how many there "
            "are follows from routing.skew."
        )
    return (
        f"Every expert is padded to capacity factor {factor}, whatever the router does; routing.skew changes "
        "nothing, and tokens beyond the capacity are dropped."
    )


def _encoder(plan: Plan, architecture: Architecture) -> str | None:
    if not architecture.encoder:
        return None
    read = "as many" if plan.decoder_sequence_length is None else f"{plan.sequence_length} of a sequence"
    return (
        f"Tokens are those of the decoder; the encoder reads {read} beside them, and its time and energy are included."
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
    if plan.cluster.gpus == 1:
        return None
    measured = sorted({str(test.collective) for test in machine.internode.tests if test.nodes == 1})
    if measured:
        rest = f"; of others some figures are not measured ({', '.join(unmeasured)})" if unmeasured else ""
        return f"Links inside a node: {', '.join(measured)} by the nccl-tests of {machine.internode.source}{rest}."
    if not unmeasured:
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
    said = "stated" if link.efficiency is not None else "published nccl-tests"
    return (
        f"Links between nodes are not measured: {link.bandwidth_GBps:g} GB/s a GPU and {link.latency_us:g} us "
        f"from {link.source}; large messages reach {link.reached.share:.2f} of it ({said})."
    )


def _part_of_a_node(plan: Plan, machine: System) -> str | None:
    """That the GPUs fill no whole number of nodes (`Network.route`)."""
    each, gpus = machine.network.gpus_per_node, plan.cluster.gpus
    if gpus <= each or gpus % each == 0:
        return None
    return (
        f"{gpus} GPUs fill no whole number of nodes of {each}: groups between nodes are counted as if every node that "
        "they reach were full. Give cluster.gpus_per_node where a node has, or the job takes, another number."
    )


def _host(calibration: Calibration, plan: Plan) -> str | None:
    if HostModel(calibration, plan.backend).known:
        return None
    return (
        f"The calibration has no host times for the backend {plan.backend}: they are torch's, with what is known of "
        "its code; a step that waits for its host (small layers, small micro-batches) may well take less or more."
    )


def _former_backend(plan: Plan) -> str | None:
    if plan.former_backend is None:
        return None
    return (
        f"backend {plan.former_backend} is now written backend: {plan.backend} with precision: {plan.precision}; "
        "the former name goes on working."
    )
