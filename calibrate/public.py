"""Calibrations of the A100 from data that others published. Nothing here was measured by this project.

    python -m moemodel.calibrate.public DATA [--output FOLDER]

DATA is a folder laid out as `../shared/data` (see `published`). Written are `a100-sxm-80gb.json` and `-40gb.json`:

    products, elementwise kernels, host   iteration times that vTrain published (`steps`)
    links                                 its NCCL all-reduce tables
    other streaming operators             a stream benchmark at 61 locked clocks
    power, voltage, temperature           activity counters and power of 12 programs at 61 locked clocks
    flash attention                       the rates that FlashAttention-2 states, and how they rise with the sequence
    the rest                              datasheets, or carried over from this project's H100, marked as assumed
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

import moemodel
from moemodel.calibrate.catalogue import list_calibrations, shipped
from moemodel.calibrate.files import write_calibration
from moemodel.calibrate.links import network_fit
from moemodel.calibrate.power import _LEAK_REFERENCE_C, _LEAK_W_PER_C, Loads, PowerSolution, solve_power
from moemodel.calibrate.published import (
    ACTIVITY,
    ALL_REDUCE,
    DVFS,
    FLASH_PAPER,
    FLASH_RATES,
    FLASH_SEQ,
    FLASH_TABLE,
    ITERATIONS,
    STREAM,
    VTRAIN,
    Activities,
    Rows,
    read_activities,
    read_all_reduce,
    read_rows,
    read_stream,
)
from moemodel.calibrate.steps import (
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
from moemodel.model.calibration import (
    SCHEMA_VERSION,
    Calibration,
    GovernorFit,
    HostLane,
    MemoryFit,
    NetworkFit,
    OperatorFit,
    Origin,
    Parameter,
    PowerFit,
    ThermalFit,
)
from moemodel.model.compute import FEATURES, form_of
from moemodel.model.gpu import Gpu, read_gpu
from moemodel.model.operators import PASSES, Kind, Pass, Shape, work

FloatArray = NDArray[np.float64]

GPUS = ("a100-sxm-80gb", "a100-sxm-40gb")  # the first is the one that the data are of
_H100 = "h100-sxm-80gb"
_SHIPPED = Path(__file__).parent / "shipped"

_STEPS_SOURCE = (
    f"fitted to 1,440 iteration times of {VTRAIN}; that simulator's arithmetic on 32 traced steps gives them exactly"
)
_STREAM_SOURCE = f"stream benchmark at 61 locked SM clocks on an A100 80 GB, {DVFS}"
_POWER_SOURCE = f"DCGM activity and power of 12 programs at 61 locked SM clocks on an A100 80 GB, {DVFS}"
_PROVENANCE = (
    "Not measured by this project: fitted to what others published. Products, elementwise kernels, optimizer and the "
    "host lane of megatron-v2 are fitted to the iteration times that vTrain published (MIT), which turned out to be "
    "reproduced exactly by that simulator's own arithmetic from single traced steps, so their host times include "
    "tracing; links are fitted to its NCCL all-reduce tables; power, voltage and memory bandwidth to the readings of a "
    "DVFS study (ghazanfarttu, BSD-3-Clause) on an A100 80 GB; flash attention follows the rates that its paper "
    "states; the rest is datasheet or assumed, as each parameter says.{extra}"
)

# Elementwise kernels that the rows' model ran; the other streams take the bandwidth of the stream benchmark.
_IN_THE_ROWS = frozenset(
    {Kind.LAYER_NORM, Kind.GELU, Kind.RESIDUAL_ADD, Kind.BIAS, Kind.COPY, Kind.CROSS_ENTROPY, Kind.EMBEDDING}
)
_LIKE_THE_ROWS = frozenset({Kind.RMS_NORM, Kind.RELU, Kind.SWIGLU, Kind.ROTARY})  # kernels of the same make
_OPTIMIZER = frozenset({Kind.ADAMW, Kind.ADAMW_MIXED, Kind.GRAD_NORM})

LAUNCH_S = 4e-6  # of a kernel that is not traced
_LAUNCH_SOURCE = (
    "launch and tail of a kernel, of the order fitted on this project's H100; the rows' own includes tracing"
)
_ROWS_ERROR = 0.10  # log; left-out errors of whole micro-batch sizes, widths and tensor-parallel degrees
_ASSUMED_ERROR = 0.25  # log; assumed: operators that no data of this GPU show
_NO_LIMIT_W = 1e4  # no fast limit is known: none is applied
_LANES_FP32, _LANES_FP64 = 64, 32  # of an SM (A100 whitepaper, table 4)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Time of a streaming kernel against the SM clock: `memory` share of bandwidth far above `issue` bound, p-norm p.

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
    power: PowerSolution
    power_error: float
    loads: int
    thermal: tuple[float, float]  # K/W, inlet in degrees


def fit_steps(rows: Rows, links: Links, gpu: Gpu) -> tuple[dict[str, float], FloatArray]:
    """Constants of `steps`, and log(predicted / measured) of every row."""
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

    fit = least_squares(errors, np.log([0.87, 1.5, 8.0]), bounds=(np.log([0.5, 0.5, 1.0]), np.log([1.0, 10.0, 20.0])))
    memory, issue, p = np.exp(fit.x)
    return Stream(memory=float(memory), issue_Bps=float(issue * bandwidth), p=float(p))


def loads_of_activities(data: Activities, gpu: Gpu) -> Loads:
    """Activity counters as rates of work.

    A busy tensor pipe counts as the 16-bit rate of its cycles, whatever it multiplies: the data's matrix program is
    FP64, and a busy pipe is assumed to draw the same for either. FP32 and FP64 pipes count their lanes, DRAM its peak.
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


def left_out_power(data: Activities, gpu: Gpu) -> float:
    """Root mean square log error of a program that the fit left out; the median over programs.

    The median, since one program alone shows what tensor cores draw, and leaving it out asks what no other can say.
    """
    names = np.array(data.application)
    errors = []
    for name in np.unique(names):
        seen, unseen = (loads_of_activities(_take(data, rows), gpu) for rows in (names != name, names == name))
        solution = solve_power(seen, gpu.peak("bf16").clock_Hz)
        errors.append(np.sqrt(np.mean(np.square(np.log(solution.power_W(unseen, {}) / unseen.power_W)))))
    return float(np.median(errors))


def _take(data: Activities, rows: NDArray[np.bool_]) -> Activities:
    names = [name for name, take in zip(data.application, rows, strict=True) if take]
    arrays = {name: values[rows] for name, values in vars(data).items() if name != "application"}
    return Activities(application=names, **arrays)


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
        power=solve_power(loads_of_activities(activities, gpu), gpu.peak("bf16").clock_Hz),
        power_error=left_out_power(activities, gpu),
        loads=len(activities.power_W),
        thermal=(float(rise), float(inlet)),
    )


# ---- writing it down ------------------------------------------------------------------------------------------------


def calibration_of(data: Published, gpu: Gpu) -> Calibration:
    """The calibration of a GPU: of the one that the data are of, or of its sibling with other memory."""
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
        clock_measured_Hz=(510e6, clock_Hz),  # locked clocks of the DVFS study; iteration times have no clock
        composition_error=_fitted(float(np.sqrt(np.mean(np.square(data.errors)))), "1", _STEPS_SOURCE),
        chip=chip_parameters(gpu),
        operators=[_operator(kind, direction, data, gpu) for kind in Kind for direction in PASSES[kind]],
        host=_host(data),
        power=_power(data),
        governor=GovernorFit(
            parameters={
                "fast_limit": _assumed(_NO_LIMIT_W, "W", "no fast limit of this GPU is known: none is applied"),
                "sustained_share": _assumed(1.0, "1", "mean power is taken to reach the cap"),
            },
            log_error=0.05,
        ),
        thermal=_thermal(data),
        network=_network(data, gpu),
        memory=_memory(),
    )


def _parameter(value: float, unit: str, origin: Origin, source: str, error: float | None = None) -> Parameter:
    return Parameter(value=value, unit=unit, origin=origin, source=source, error=error)


def _fitted(value: float, unit: str, source: str) -> Parameter:
    return _parameter(value, unit, "fitted", source)


def _assumed(value: float, unit: str, source: str) -> Parameter:
    return _parameter(value, unit, "assumed", source)


def _operator(kind: Kind, direction: Pass, data: Published, gpu: Gpu) -> OperatorFit:
    form = form_of(kind)
    box = data.boxes.get((kind, direction)) if kind in _IN_THE_ROWS or kind is Kind.GEMM else None
    names = FEATURES[form]
    if form == "attention":
        parameters = _attention(kind, direction)
    elif form in ("product", "grouped"):
        parameters = _product(kind, data.constants)
    else:
        parameters = _stream(kind, direction, data, gpu)
    return OperatorFit(
        kind=kind,
        direction=direction,
        parameters=parameters,
        log_error=_ROWS_ERROR if box else _ASSUMED_ERROR,
        measured={n: (round(2**low, 3), round(2**high, 3)) for n, (low, high) in zip(names, box or [], strict=False)},
        points=32 if box else 0,
    )


_PRODUCT_FITTED = ("alignment", "efficiency_256x128")


def _product(kind: Kind, constants: Mapping[str, float]) -> dict[str, Parameter]:
    grouped = kind is Kind.GROUPED_GEMM
    values = operator_parameters(kind, constants) | {"t0": LAUNCH_S}
    out = {}
    for name, value in values.items():
        if name == "t0":
            out[name] = _assumed(value, "s", _LAUNCH_SOURCE)
        elif name in _PRODUCT_FITTED and not grouped:
            out[name] = _fitted(value, "1", _STEPS_SOURCE)
        elif name == "memory_efficiency":
            out[name] = _fitted(value, "1", f"elementwise kernels, {_STEPS_SOURCE}")
        else:
            source = (
                "as of single products" if grouped else "held: iteration times don't determine it (calibrate/steps.py)"
            )
            out[name] = _assumed(value, "1", source)
    return out


_FLASH_BEST = {Pass.FORWARD: 0.73, Pass.BACKWARD: 0.60}
_FLASH_HEAD0 = 16.0


def _attention(kind: Kind, direction: Pass) -> dict[str, Parameter]:
    """FlashAttention-2: its best rate at head width 128 and long sequences; the rise with the sequence from a table."""
    mask = "causal" if kind is Kind.ATTENTION else "full"
    curve = FLASH_RATES.get(f"{mask}/{direction}", FLASH_RATES[f"causal/{direction}"])
    seq0 = rise_with_sequence(curve)
    longest = FLASH_SEQ[-1]
    wide = 128.0
    best = _FLASH_BEST[direction] * (1 + _FLASH_HEAD0 / wide) * (1 + seq0 / longest)
    forward = direction is Pass.FORWARD
    why = FLASH_PAPER if forward else f"assumed within {FLASH_PAPER}; backward is the slower pass"
    assumed = {
        "head_dim0": (_FLASH_HEAD0, "assumed: narrow heads leave a part of the tensor cores' depth unused"),
        "quantisation": (0.5, "assumed: a half-filled last wave costs half of a whole one"),
        "memory_efficiency": (0.8, "assumed: attention is not bound by memory at training lengths"),
        "p": (4.0, "assumed"),
    }
    return {
        "t0": _assumed(LAUNCH_S, "s", _LAUNCH_SOURCE),
        "efficiency": _parameter(best, "1", "fitted" if forward else "assumed", why),
        "seq0": _fitted(seq0, "1", FLASH_TABLE),
        **{name: _assumed(value, "1", source) for name, (value, source) in assumed.items()},
    }


def rise_with_sequence(rates: tuple[float, ...]) -> float:
    """s0 of rate ~ seq / (seq + s0), by least squares on the reciprocals: 1/rate = a (1 + s0/seq)."""
    seq = np.array(FLASH_SEQ[: len(rates)])
    slope, level = np.polyfit(1 / seq, 1 / np.array(rates), 1)
    return float(max(slope / level, 1.0))


def _stream(kind: Kind, direction: Pass, data: Published, gpu: Gpu) -> dict[str, Parameter]:
    """Memory-bound kernels; all issue loads as the stream benchmark does, so many bytes a cycle."""
    if kind in _OPTIMIZER:
        share, source = data.constants["optimizer"], _STEPS_SOURCE
    elif kind in _IN_THE_ROWS:
        share, source = data.constants["elementwise"], _STEPS_SOURCE
    elif kind in _LIKE_THE_ROWS:
        share, source = data.constants["elementwise"], f"as other elementwise kernels, {_STEPS_SOURCE}"
    else:
        share, source = data.stream.memory, _STREAM_SOURCE
    one = work(kind, direction, Shape(m=1024, n=1024, k=1024, experts=8, top_k=2))
    lanes = float(gpu.multiprocessors or 1) * 128 * gpu.peak("bf16").clock_Hz
    # the same bytes a cycle for every kernel: Tc = bytes / issue rate
    per_byte = float(one.vector_ops / one.bytes_B)
    issue = per_byte * data.stream.issue_Bps / lanes
    return {
        "t0": _assumed(LAUNCH_S, "s", _LAUNCH_SOURCE),
        "p": _fitted(data.stream.p, "1", _STREAM_SOURCE),
        "memory_efficiency": _fitted(share, "1", source),
        "cache_efficiency": _assumed(share, "1", "no data: tensors in the cache are taken to move as those in memory"),
        "cache_size": _assumed(0.6, "1", "without effect, since the cache is taken to be no faster"),
        "issue_efficiency": _fitted(issue, "1", f"as many bytes a cycle as the {_STREAM_SOURCE}"),
    }


def _host(data: Published) -> list[HostLane]:
    """The rows' host, and the torch lane of the H100's machine for want of one of an A100's."""
    blocks = {name: _fitted(value, "s", _STEPS_SOURCE) for name, value in host_parameters(data.constants).items()}
    lanes = [HostLane(backend=BACKEND, blocks=blocks, log_error=0.3)]
    if _H100 in list_calibrations():
        for lane in shipped(_H100).host:
            carried = {
                name: _assumed(p.value, p.unit, f"as on the machine of {_H100}, no A100's is known: {p.source}")
                for name, p in lane.blocks.items()
            }
            lanes.append(HostLane(backend=lane.backend, blocks=carried, log_error=max(0.35, lane.log_error)))
    return lanes


def _power(data: Published) -> PowerFit:
    names = {
        "base_W": "W",
        "active_W": "W",
        "flop_J": "J",
        "vector_op_J": "J",
        "cache_J_per_B": "J/B",
        "dram_J_per_B": "J/B",
    }
    energies = zip(names.items(), data.power.coefficients, strict=True)
    return PowerFit(
        parameters={
            **{name: _fitted(float(value), unit, _POWER_SOURCE) for (name, unit), value in energies},
            "leak_W_per_C": _assumed(_LEAK_W_PER_C, "W/K", "as on this project's H100"),
            "leak_reference_C": _assumed(_LEAK_REFERENCE_C, "C", "the temperature that base_W is for"),
            "knee_Hz": _fitted(data.power.voltage.knee_Hz, "Hz", _POWER_SOURCE),
            "voltage_slope": _fitted(data.power.voltage.slope, "1", _POWER_SOURCE),
        },
        log_error=data.power_error,
        points=data.loads,
    )


def _thermal(data: Published) -> ThermalFit:
    source = (
        f"line through temperature and power of all readings, {_POWER_SOURCE}; of runs of seconds, so it is a low guess"
    )
    rise, inlet = data.thermal
    return ThermalFit(
        parameters={"thermal_C_per_W": _fitted(rise, "K/W", source), "inlet_C": _fitted(inlet, "C", source)}
    )


def _network(data: Published, gpu: Gpu) -> NetworkFit:
    """All-reduce, start and step fitted; the rest as links carry it over from the H100."""
    source = f"NCCL all-reduce of 2 to 8 A100 of one node, 1 MiB to 1 GiB, {VTRAIN}"
    carried = network_fit(gpu).parameters
    ring = {
        f"efficiency_{name}": _assumed(data.links.efficiency, "1", f"as of the {source}")
        for name in ("reduce_scatter", "all_gather")
    }
    return NetworkFit(
        parameters={
            **carried,
            **ring,
            "efficiency_all_reduce": _fitted(data.links.efficiency, "1", source),
            "start_latency": _fitted(data.links.start_s, "s", source),
            "step_latency": _fitted(data.links.step_s, "s", source),
        },
        log_error=max(data.links.log_error, 0.1),
    )


def _memory() -> MemoryFit:
    return MemoryFit(
        parameters={
            "context": _assumed(0.5e9, "B", "a CUDA context with libraries loaded, not measured on an A100"),
            "workspace": _assumed(
                8.0 * 2**20 + 16 * 8 * 1024, "B", "cuBLAS workspaces that PyTorch keeps before Hopper"
            ),
            "fragmentation": _assumed(0.03, "1", "what a caching allocator under pressure cannot reuse"),
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
    print(f"power: {data.power.coefficients}, {data.power.voltage}, left-out programs {data.power_error:.1%}")
    for name in GPUS:
        path = options.output / f"{name}.json"
        write_calibration(calibration_of(data, read_gpu(name)), path)
        print(path)


if __name__ == "__main__":
    main()
