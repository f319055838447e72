"""Calibrations of the A100 from data that others published. Nothing here was measured by this project.

    python -m moemodel.calibration.published.a100 DATA [--output FOLDER]

DATA is a folder laid out as `../shared/data` (see `published.data`). Written are `a100-sxm-80gb.json` and `-40gb.json`:

    products, elementwise kernels, host   iteration times that vTrain published (`published.vtrain`)
    links                                 its NCCL all-reduce tables
    bandwidth against the SM clock        a stream benchmark at 61 locked clocks
    power, voltage, temperature           activity counters and power of 12 programs at 61 locked clocks
    flash attention                       rates by width and length that FlashAttention-2's paper shows
    other operators                       this project's H100, relative to the chip; marked as assumed
    the rest                              datasheets, or carried over from that H100
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import moemodel
from moemodel.calibration.fit.dvfs import no_governor
from moemodel.calibration.fit.network import network_fit
from moemodel.calibration.fit.power import UNITS, Loads
from moemodel.calibration.fit.thermal import LEAK_REFERENCE_C, LEAK_W_PER_C, RISE_PER_C
from moemodel.calibration.least_squares import minimise
from moemodel.calibration.published.activity_power import ActivityPower, fit_activities
from moemodel.calibration.published.data import (
    ACTIVITY,
    ALL_REDUCE,
    DVFS,
    FP64_GEMM,
    FP64_LOCKED,
    ITERATIONS,
    STREAM,
    VTRAIN,
    Activities,
    Rows,
    read_activities,
    read_all_reduce,
    read_fp64_gemm,
    read_rows,
    read_stream,
)
from moemodel.calibration.published.flash_attention import MEASURED, SECOND, fit_flash
from moemodel.calibration.published.vtrain import (
    BACKEND,
    FREE,
    Cluster,
    Links,
    StepFitter,
    chip_parameters,
    fit_links,
    groups,
    host_parameters,
    measured_boxes,
    operator_parameters,
    predicted_s,
)
from moemodel.calibration.store.catalogue import list_calibrations, shipped, write_calibration
from moemodel.model.core.arrays import FloatArray, take_rows
from moemodel.model.core.errors import CalibrationError
from moemodel.model.device.power import power_model
from moemodel.model.device.roofline import ATTENTIONS, FEATURES, PRODUCTS, RooflineChip, form_of
from moemodel.model.hardware.gpu import Gpu, read_gpu
from moemodel.model.operators.work import PASSES, Kind, Pass, Shape, Work, work
from moemodel.model.records.calibration import (
    SCHEMA_VERSION,
    Calibration,
    GovernorFit,
    HostLane,
    MemoryFit,
    NetworkFit,
    OperatorFit,
    Parameter,
    PowerFit,
    ThermalFit,
)

GPUS = ("a100-sxm-80gb", "a100-sxm-40gb")  # the first is the one that the data are of
_H100 = "h100-sxm-80gb"
_SHIPPED = Path(__file__).parents[1] / "shipped"

_STEPS_SOURCE = (
    f"fitted to 1,440 iteration times of {VTRAIN}; that simulator's arithmetic on 32 traced steps gives them exactly"
)
_STREAM_SOURCE = f"stream benchmark at 61 locked SM clocks on an A100 80 GB, {DVFS}"
# The program whose level of power an operator takes; those not here take that of "stream".
_LIKE = dict.fromkeys((*PRODUCTS, *ATTENTIONS), "dgemm")
_POWER_SOURCE = f"DCGM activity and power of 12 programs at 61 locked SM clocks on an A100 80 GB, {DVFS}"
_TENSOR_SOURCE = (
    f"{_POWER_SOURCE}, whose only matrix program is FP64; times what a cycle of busy tensor cores draws more in bf16, "
    f"which an H100 shows: bf16 as calibrated by this project, FP64 as published by {FP64_LOCKED}; of another chip, "
    "and drifting, so that it is uncertain by 15 %"
)
_ELSEWHERE = f"as measured on {_H100}, relative to the chip; not measured on an A100"
_PROVENANCE = (
    "Not measured by this project: fitted to what others published. Products, elementwise kernels, optimizer and the "
    "host lane of megatron-v2 are fitted to the iteration times that vTrain published (MIT), which turned out to be "
    "reproduced exactly by that simulator's own arithmetic from single traced steps, so their host times include "
    "tracing; links are fitted to its NCCL all-reduce tables; power, voltage and memory bandwidth to the readings of a "
    "DVFS study (ghazanfarttu, BSD-3-Clause) on an A100 80 GB; flash attention is as fast as its paper shows. "
    "Operators that none of these data show, all of the routing of experts among them, are taken to be as good, "
    "relative to the chip, as this project measured on an H100; the rest is datasheet or assumed, as each "
    "parameter says.{extra}"
)

# Kernels that make up the time of the rows' model; what else it ran is too little to show, or other code in torch.
_IN_THE_ROWS = frozenset({Kind.GELU, Kind.RESIDUAL_ADD, Kind.BIAS, Kind.COPY})
_OPTIMIZER = frozenset({Kind.ADAMW, Kind.GRAD_NORM})  # of 16-bit parameters

LAUNCH_S = 4e-6  # of a kernel that is not traced
_LAUNCH_SOURCE = (
    "launch and tail of a kernel, of the order fitted on this project's H100; the rows' own includes tracing"
)
_ROWS_ERROR = 0.10  # log; left-out errors of whole micro-batch sizes, widths and tensor-parallel degrees
_FLASH_ERROR = 0.10  # log; assumed: the figure is within 0.05 of its form, but says nothing of either pass alone
_ASSUMED_ERROR = 0.25  # log; assumed: operators that no data of this GPU show
_MEMORY_ERROR = 0.04  # log; assumed: twice that of the H100, whose allocator is the same and whose libraries aren't
_TENSOR_ERROR = 0.15  # log; assumed: below the clocks that count, the same readings give ratios up to a fifth higher
_LANES_FP32, _LANES_FP64 = 64, 32  # of an SM (A100 whitepaper, table 4)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Time of a streaming kernel against the SM clock: `memory` share of bandwidth, or as the SMs issue; p-norm p.

    `issue_Bps` is what the SMs could issue at the reference clock if memory were infinitely fast.
    """

    memory: float
    issue_Bps: float
    p: float


@dataclass(frozen=True, kw_only=True)
class Published:
    """All that was fitted to published data. `errors` are log errors of the iteration times."""

    constants: dict[str, float]
    errors: FloatArray
    boxes: dict[tuple[Kind, Pass], list[tuple[float, float]]]
    links: Links
    stream: Stream
    power: ActivityPower
    power_error: float
    tensor: float  # bf16 over FP64 energy of a busy cycle of tensor cores
    peak_flops_per_s: float  # bf16, at the reference clock
    loads: int
    thermal: tuple[float, float]  # K/W, inlet in degrees


def fit_steps(rows: Rows, links: Links, gpu: Gpu) -> tuple[dict[str, float], FloatArray]:
    """Constants of `published.vtrain`, and log(predicted / measured) of every row."""
    batches, cluster = groups(rows), Cluster(gpu=gpu, links=links)
    fitter = StepFitter(time_s=lambda c: predicted_s(batches, cluster.machine(c)), measured_s=rows.time_s)
    constants = fitter.fit()
    return constants, np.log(predicted_s(batches, cluster.machine(constants)) / rows.time_s)


def fit_stream(clock_Hz: FloatArray, rate_Bps: FloatArray, gpu: Gpu) -> Stream:
    """Bandwidth against SM clock, by least squares on its logarithm."""
    bandwidth, top_Hz = gpu.memory_bandwidth_Bps or float(rate_Bps.max()), gpu.peak("bf16").clock_Hz

    def errors(x: FloatArray) -> FloatArray:
        memory, issue, p = np.exp(x)
        slowness = ((top_Hz / clock_Hz / issue) ** p + (1 / memory) ** p) ** (1 / p)
        return np.asarray(np.log(rate_Bps / bandwidth * slowness))

    low, high = np.log([0.5, 0.5, 1.0]), np.log([1.0, 10.0, 20.0])
    memory, issue, p = np.exp(minimise(errors, np.log([0.87, 1.5, 8.0]), low=low, high=high))
    return Stream(memory=float(memory), issue_Bps=float(issue * bandwidth), p=float(p))


def loads_of_activities(data: Activities, gpu: Gpu) -> Loads:
    """Activity counters as rates of work.

    A busy tensor pipe counts as the 16-bit rate of its cycles, whatever it multiplies; the data's matrix program is
    FP64, which draws less (`tensor_ratio`). FP32 and FP64 pipes count their lanes, DRAM its peak.
    """
    sms = float(gpu.multiprocessors or 1)
    cycles = data.clock_Hz * sms
    tensor = gpu.peak("bf16").flops_per_cycle / sms
    return Loads(
        names=[f"{name}@{clock / 1e6:.0f}" for name, clock in zip(data.application, data.clock_Hz, strict=True)],
        keys=list(data.application),
        power_W=data.power_W,
        clock_Hz=data.clock_Hz,
        temperature_C=data.temperature_C,
        duty=np.minimum(data.sm, 1.0),
        rate_per_s=np.ones(len(data.power_W)),
        flops=data.tensor * tensor * cycles,
        vector_ops=(data.fp32 * _LANES_FP32 + 2 * data.fp64 * _LANES_FP64) * cycles,
        bytes_B=data.dram * (gpu.memory_bandwidth_Bps or 0.0),
    )


def tensor_ratio(clock_Hz: FloatArray, power_W: FloatArray, bf16: Calibration) -> float:
    """What a busy cycle of tensor cores draws in bf16 over what it draws in FP64, beyond static power.

    Args:
        clock_Hz, power_W: an FP64 product that keeps the tensor cores busy, at locked clocks.
        bf16: the calibration of the same kind of GPU; readings outside the clocks that it measured don't count.

    Returns:
        The median over clocks.

    Raises:
        ValueError: no clock lies in the range that the calibration measured.
    """
    low_Hz, high_Hz = bf16.clock_measured_Hz
    inside = (clock_Hz >= low_Hz) & (clock_Hz <= high_Hz)
    if not inside.any():
        raise ValueError(f"no clock lies between {low_Hz:g} and {high_Hz:g} Hz")
    clock_Hz, power_W, model = clock_Hz[inside], power_W[inside], power_model(bf16)
    cycle_flops = bf16.chip["flops_per_cycle"].value * bf16.chip["multiprocessors"].value
    second = Work(flops=cycle_flops * clock_Hz, vector_ops=np.zeros(1), bytes_B=np.zeros(1))
    one = np.ones((len(clock_Hz), len(clock_Hz)))
    dynamic_W = np.diagonal(model.dynamic_J(Kind.GEMM, Pass.FORWARD, second, clock_Hz, one))
    ratio = dynamic_W / (power_W - model.static_W(model.leak_reference_C) - model.clocked_W(clock_Hz))
    return float(np.median(ratio))


def left_out_power(data: Activities, gpu: Gpu) -> float:
    """Root mean square log error of a program that the fit left out; the median over programs.

    The median, since one program alone shows what tensor cores draw, and leaving it out asks what no other can say.
    """
    names = np.array(data.application)
    errors = []
    for name in np.unique(names):
        seen, unseen = (loads_of_activities(take_rows(data, rows), gpu) for rows in (names != name, names == name))
        found = fit_activities(seen, gpu.peak("bf16").clock_Hz)
        errors.append(np.sqrt(np.mean(np.square(np.log(found.power_W(unseen) / unseen.power_W)))))
    return float(np.median(errors))


def fit_published(folder: Path, gpu: Gpu) -> Published:
    """Everything, from the folder of published data.

    Raises:
        InputError: a file is missing.
    """
    rows, activities = read_rows(folder / ITERATIONS), read_activities(folder / ACTIVITY)
    links = fit_links(read_all_reduce(folder / ALL_REDUCE), gpu.nvlink_Bps or 1.0)
    constants, errors = fit_steps(rows, links, gpu)
    rise, inlet = np.polyfit(activities.power_W, activities.temperature_C, 1)
    return Published(
        constants=constants,
        errors=errors,
        boxes=measured_boxes(groups(rows)),
        links=links,
        stream=fit_stream(*read_stream(folder / STREAM), gpu),
        power=fit_activities(loads_of_activities(activities, gpu), gpu.peak("bf16").clock_Hz),
        power_error=left_out_power(activities, gpu),
        tensor=tensor_ratio(*read_fp64_gemm(folder / FP64_GEMM), shipped(_H100)),
        peak_flops_per_s=gpu.peak("bf16").flops_per_s,
        loads=len(activities.power_W),
        thermal=(float(rise), float(inlet)),
    )


# ---- writing it down ------------------------------------------------------------------------------------------------


def calibration_of(data: Published, gpu: Gpu) -> Calibration:
    """The calibration of a GPU: of the one that the data are of, or of its sibling with other memory."""
    elsewhere = shipped(_H100)
    clock_Hz = gpu.peak("bf16").clock_Hz
    low_Hz = gpu.clock_min_Hz or clock_Hz
    of_data = gpu.name == GPUS[0]
    extra = "" if of_data else f" All of it is of {GPUS[0]}; only memory size and bandwidth are this GPU's datasheet."
    return Calibration(
        schema_version=SCHEMA_VERSION,
        name=gpu.name,
        gpu=gpu.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        moemodel_version=moemodel.__version__,
        provenance=_PROVENANCE.format(extra=extra),
        clock_reference_Hz=clock_Hz,
        clock_range_Hz=(low_Hz, clock_Hz),
        clock_measured_Hz=(510e6, clock_Hz),  # locked clocks of the DVFS study, from 510 MHz; iteration times have none
        composition_error=Parameter.fitted(float(np.sqrt(np.mean(np.square(data.errors)))), "1", _STEPS_SOURCE),
        chip=chip_parameters(gpu),
        operators=[fit for kind in Kind for fit in _operators(kind, data, gpu, elsewhere)],
        host=_host(data),
        power=_power(data),
        governor=GovernorFit(
            parameters=no_governor("mean power is taken to reach the cap; no fast limit of this GPU is known"),
            log_error=0.05,  # assumed: of the clock
        ),
        thermal=_thermal(data, elsewhere),
        network=_network(data, gpu),
        memory=_memory(),
    )


def _operators(kind: Kind, data: Published, gpu: Gpu, elsewhere: Calibration) -> list[OperatorFit]:
    if kind in ATTENTIONS:
        return flash_operators(kind, gpu, elsewhere)
    return [_operator(kind, direction, data, gpu, elsewhere) for direction in PASSES[kind]]


def _operator(kind: Kind, direction: Pass, data: Published, gpu: Gpu, elsewhere: Calibration) -> OperatorFit:
    """From the data where they show it; else as on another GPU."""
    shown = kind is Kind.GEMM or kind in _IN_THE_ROWS or kind in _OPTIMIZER
    if not shown:
        return _carried(kind, direction, gpu, elsewhere)
    box = None if kind in _OPTIMIZER else data.boxes.get((kind, direction))
    names = FEATURES[form_of(kind)]
    return OperatorFit(
        kind=kind,
        direction=direction,
        parameters=_product(data.constants) if kind is Kind.GEMM else _stream(kind, direction, data, gpu),
        log_error=_ROWS_ERROR if box else _ASSUMED_ERROR,
        measured={n: (round(2**low, 3), round(2**high, 3)) for n, (low, high) in zip(names, box or [], strict=False)},
        points=32 if box else 0,  # the traced steps behind all rows, see `_STEPS_SOURCE`
    )


def _carried(kind: Kind, direction: Pass, gpu: Gpu, elsewhere: Calibration) -> OperatorFit:
    """Another GPU's fit, whose efficiencies are shares of the chip's rates; chains of kernels take as many cycles.

    Raises:
        CalibrationError: the other GPU's calibration lacks the operator.
    """
    fit = elsewhere.operator(kind, direction)
    if fit is None:
        raise CalibrationError(
            f"calibration {elsewhere.name}: no fit for {kind}/{direction}; there is none to carry over"
        )
    parameters = {name: Parameter.assumed(p.value, p.unit, _ELSEWHERE) for name, p in fit.parameters.items()}
    if "t1" in parameters:
        cycles = elsewhere.clock_reference_Hz / gpu.peak("bf16").clock_Hz
        parameters["t1"] = Parameter.assumed(parameters["t1"].value * cycles, "s", f"as many cycles {_ELSEWHERE}")
    return OperatorFit(kind=kind, direction=direction, parameters=parameters, log_error=_ASSUMED_ERROR, points=0)


def flash_operators(kind: Kind, gpu: Gpu, elsewhere: Calibration) -> list[OperatorFit]:
    """Both passes of attention, as fast as its paper shows; launches and waves as on the other GPU."""
    carried = {direction: _carried(kind, direction, gpu, elsewhere) for direction in PASSES[kind]}
    top_Hz = gpu.peak("bf16").clock_Hz
    chip = RooflineChip(**{name: p.value for name, p in chip_parameters(gpu).items()}, clock_Hz=top_Hz)
    found = fit_flash(carried, chip, kind)
    shown = np.array([rates for (of, _), rates in SECOND.items() if of is kind])
    changed = {"log_error": _FLASH_ERROR, "measured": MEASURED, "points": int(np.isfinite(shown).sum())}
    return [
        fit.model_copy(update={**changed, "parameters": fit.parameters | found[direction]})
        for direction, fit in carried.items()
    ]


_PRODUCT_FITTED = ("alignment", "efficiency_256x128")


def _product(constants: Mapping[str, float]) -> dict[str, Parameter]:
    values = operator_parameters(Kind.GEMM, constants) | {"t0": LAUNCH_S}
    out = {}
    for name, value in values.items():
        if name == "t0":
            out[name] = Parameter.assumed(value, "s", _LAUNCH_SOURCE)
        elif name in _PRODUCT_FITTED:
            out[name] = Parameter.fitted(value, "1", _STEPS_SOURCE)
        elif name == "memory_efficiency":
            out[name] = Parameter.fitted(value, "1", f"elementwise kernels, {_STEPS_SOURCE}")
        else:
            out[name] = Parameter.assumed(
                value, "1", "held: iteration times don't determine it (calibrate/published/vtrain.py)"
            )
    return out


def _stream(kind: Kind, direction: Pass, data: Published, gpu: Gpu) -> dict[str, Parameter]:
    """Memory-bound kernels; all issue loads as the stream benchmark does, so many bytes a cycle."""
    share = data.constants["optimizer" if kind in _OPTIMIZER else "elementwise"]
    one = work(kind, direction, Shape(m=1024, n=1024, k=1024, experts=8, top_k=2))
    lanes = float(gpu.multiprocessors or 1) * 128 * gpu.peak("bf16").clock_Hz  # as the prediction's 128, to cancel
    # the same bytes a cycle for every kernel: Tc = bytes / issue rate
    per_byte = float(one.vector_ops / one.bytes_B)
    issue = per_byte * data.stream.issue_Bps / lanes
    return {
        "t0": Parameter.assumed(LAUNCH_S, "s", _LAUNCH_SOURCE),
        "p": Parameter.fitted(data.stream.p, "1", _STREAM_SOURCE),
        "memory_efficiency": Parameter.fitted(share, "1", _STEPS_SOURCE),
        "cache_efficiency": Parameter.assumed(
            share, "1", "no data: tensors in the cache are taken to move as those in memory"
        ),
        "cache_size": Parameter.assumed(0.6, "1", "without effect, since the cache is taken to be no faster"),
        "issue_efficiency": Parameter.fitted(issue, "1", f"as many bytes a cycle as the {_STREAM_SOURCE}"),
    }


def _host(data: Published) -> list[HostLane]:
    """The rows' host, and under torch that of the H100's machine for want of one of an A100's."""
    blocks = {
        name: Parameter.fitted(value, "s", _STEPS_SOURCE) for name, value in host_parameters(data.constants).items()
    }
    lanes = [HostLane(backend=BACKEND, blocks=blocks, log_error=0.3)]  # assumed: another machine's host
    if _H100 in list_calibrations():
        for lane in shipped(_H100).host:
            carried = {
                name: Parameter.assumed(
                    p.value, p.unit, f"as on the machine of {_H100}, no A100's is known: {p.source}"
                )
                for name, p in lane.blocks.items()
            }
            # assumed: hosts of different machines were seen to differ by 1.3 to 1.8 times
            lanes.append(HostLane(backend=lane.backend, blocks=carried, log_error=max(0.35, lane.log_error)))
    return lanes


def _power(data: Published) -> PowerFit:
    """The fit of the activities, with the tensor cores' energy brought from FP64 to bf16.

    Products and attention have the level of the program that multiplies matrices, all others that of the one that
    streams.

    Of a busy cycle, the energy beyond static power is e_flop F + p_active/f0: all of it grows by the ratio.
    """
    model = data.power.model
    values = {name: float(getattr(model, name)) for name in UNITS}
    values["flop_J"] = data.tensor * values["flop_J"] + (data.tensor - 1) * values["active_W"] / data.peak_flops_per_s
    levels = data.power.levels
    return PowerFit(
        kinds={
            f"{kind}/{direction}": Parameter.fitted(levels[_LIKE.get(kind, "stream")], "1", _POWER_SOURCE)
            for kind in Kind
            for direction in PASSES[kind]
        },
        parameters={
            **{name: Parameter.fitted(values[name], unit, _POWER_SOURCE) for name, unit in UNITS.items()},
            "flop_J": Parameter.fitted(values["flop_J"], "J", _TENSOR_SOURCE, _TENSOR_ERROR),
            "leak_W_per_C": Parameter.assumed(LEAK_W_PER_C, "W/K", "as on this project's H100"),
            "rise_per_C": Parameter.assumed(RISE_PER_C, "1/K", "as on this project's H100"),
            "leak_reference_C": Parameter.assumed(LEAK_REFERENCE_C, "C", "the temperature that base_W is for"),
            "knee_Hz": Parameter.fitted(model.knee_Hz, "Hz", _POWER_SOURCE),
            "voltage_slope": Parameter.fitted(model.voltage_slope, "1", _POWER_SOURCE),
        },
        log_error=float(np.hypot(data.power_error, _TENSOR_ERROR)),
        points=data.loads,
    )


def _thermal(data: Published, elsewhere: Calibration) -> ThermalFit:
    source = (
        f"line through temperature and power of all readings, {_POWER_SOURCE}; of runs of seconds, so it is a low guess"
    )
    rise, inlet = data.thermal
    times = {
        "die_time": elsewhere.thermal.parameters["die_time"],
        "sink_time": elsewhere.thermal.parameters["sink_time"],
    }
    share = _die_share(elsewhere)
    return ThermalFit(
        parameters={
            "die_C_per_W": Parameter.fitted(
                share * rise, "K/W", f"{source}; divided between die and sink as on {_H100}"
            ),
            "sink_C_per_W": Parameter.fitted((1 - share) * rise, "K/W", f"{source}; divided as on {_H100}"),
            "inlet_C": Parameter.fitted(inlet, "C", source),
            **{name: Parameter.assumed(p.value, p.unit, f"as on {_H100}: {p.source}") for name, p in times.items()},
        }
    )


def _die_share(calibration: Calibration) -> float:
    """Of the die in the thermal resistance."""
    found = calibration.thermal.parameters
    return found["die_C_per_W"].value / (found["die_C_per_W"].value + found["sink_C_per_W"].value)


def _network(data: Published, gpu: Gpu) -> NetworkFit:
    """All-reduce, start and step fitted; the rest as links carry it over from the H100."""
    source = f"NCCL all-reduce of 2 to 8 A100 of one node, 1 MiB to 1 GiB, {VTRAIN}"
    carried = network_fit(gpu).parameters
    ring = {
        f"efficiency_{name}": Parameter.assumed(data.links.efficiency, "1", f"as of the {source}")
        for name in ("reduce_scatter", "all_gather")
    }
    return NetworkFit(
        parameters={
            **carried,
            **ring,
            "efficiency_all_reduce": Parameter.fitted(data.links.efficiency, "1", source),
            "start_latency": Parameter.fitted(data.links.start_s, "s", source),
            "step_latency": Parameter.fitted(data.links.step_s, "s", source),
        },
        log_error=max(data.links.log_error, 0.1),  # assumed, at least: collectives other than all-reduce
    )


def _memory() -> MemoryFit:
    return MemoryFit(
        parameters={
            # no evidence: an H100's is 1.26 GB, measured
            "context": Parameter.assumed(0.5e9, "B", "a CUDA context with libraries loaded, not measured on an A100"),
            # CublasHandlePool.cpp: two of 4 MiB and sixteen of 8 KiB
            "workspace": Parameter.assumed(
                8.0 * 2**20 + 16 * 8 * 1024, "B", "cuBLAS workspaces that PyTorch keeps before Hopper"
            ),
            "fragmentation": Parameter.assumed(0.03, "1", "what a caching allocator under pressure cannot reuse"),
            "log_error": Parameter.assumed(
                _MEMORY_ERROR, "1", f"twice that of {_H100}: context and workspaces are not measured"
            ),
        }
    )


def main(arguments: list[str] | None = None) -> None:
    """Fit and write the calibrations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of published data")
    parser.add_argument("--output", type=Path, default=_SHIPPED, help="default: where calibrations ship from")
    options = parser.parse_args(arguments)
    data = fit_published(options.data, read_gpu(GPUS[0]))
    for name, value in data.constants.items():
        print(f"{name:16} {value:10.4g} {FREE[name].unit:2} {FREE[name].meaning}")
    print(f"iteration times: mean error {np.abs(np.expm1(data.errors)).mean():.1%}, all rows fitted")
    print(f"links: {data.links}\nstream: {data.stream}")
    print(f"power: {data.power.model}, left-out programs {data.power_error:.1%}")
    print(f"bf16 over FP64, energy of a busy cycle: {data.tensor:.2f}")
    for name in GPUS:
        path = options.output / f"{name}.json"
        write_calibration(calibration_of(data, read_gpu(name)), path)
        print(path)


if __name__ == "__main__":
    main()
