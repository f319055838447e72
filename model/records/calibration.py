"""A calibration: what measurement taught about one GPU, as plain numbers. `calibrate` writes it, the model reads it.

Every parameter carries its unit, where it came from and its relative error; every fit carries the range of shapes
that it saw, so that a prediction outside is known to be one.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from moemodel.model.core.arrays import FloatArray
from moemodel.model.core.documents import Real, Strict, Whole, load_json, parse_data
from moemodel.model.core.errors import CalibrationError, InputError
from moemodel.model.core.shown import shortened
from moemodel.model.operators.work import Kind, Pass
from moemodel.model.records.link_residuals import LinkCurve
from moemodel.model.records.parameter_names import (
    CHIP,
    GOVERNOR,
    MEMORY,
    NETWORK,
    POWER,
    THERMAL,
    Names,
    operator_features,
    operator_names,
)

SCHEMA_VERSION = 2

Origin = Literal["measured", "fitted", "datasheet", "assumed"]

# Bounds are assumed: what is beyond them is no measurement, and would make intervals infinite.
Error = Annotated[Real, Field(ge=0, le=1e4)]
_MOST_LOG_ERROR = 20.0
LogError = Annotated[Real, Field(ge=0, le=_MOST_LOG_ERROR)]
Points = Annotated[Whole, Field(ge=0)]
Clock_Hz = Annotated[Real, Field(ge=1e3, le=1e12)]
_Bounded = Annotated[Real, Field(ge=-1e12, le=1e12)]
_HOST_S = (0.0, 1e6)  # of a block
_HOTTEST_ABOVE_INLET_C = 150.0  # assumed: silicon does not outlive more
_FACTOR = (0.0, 100.0)  # on dynamic energy


def warming_gain(leak_W_per_C: float, rise_per_C: float, C_per_W: float) -> float:
    """By how much a die warms for a kelvin that it is warmer, through what it leaks: from 1 on nothing is steady.

    Args:
        leak_W_per_C, rise_per_C: of power, and of dynamic power as a share of it.
        C_per_W: that a die is warmer for each watt.
    """
    return leak_W_per_C * C_per_W + rise_per_C * _HOTTEST_ABOVE_INLET_C


class Parameter(Strict):
    """One number.

    `origin`: "measured" on this GPU for this calibration, "fitted" to cited measurements of others, from a
    "datasheet", or "assumed" (then `source` says on what ground).
    """

    value: Real
    unit: str
    origin: Origin
    source: str
    error: Error | None = Field(default=None, description="relative standard error; null: unknown")

    @classmethod
    def measured(cls, value: float, unit: str, source: str, error: float | None = None) -> Parameter:
        """On this GPU, for this calibration."""
        return cls(value=value, unit=unit, origin="measured", source=source, error=error)

    @classmethod
    def fitted(cls, value: float, unit: str, source: str, error: float | None = None) -> Parameter:
        """To cited measurements of others."""
        return cls(value=value, unit=unit, origin="fitted", source=source, error=error)

    @classmethod
    def datasheet(cls, value: float, unit: str, source: str) -> Parameter:
        """What the vendor says."""
        return cls(value=value, unit=unit, origin="datasheet", source=source)

    @classmethod
    def assumed(cls, value: float, unit: str, source: str, error: float | None = None) -> Parameter:
        """On the ground that `source` gives."""
        return cls(value=value, unit=unit, origin="assumed", source=source, error=error)


def _checked(parameters: dict[str, Parameter], names: Names, part: str = "") -> dict[str, Parameter]:
    """The parameters of a part, if they are all there and none is unknown."""
    validate_names = names.validate_names(parameters, (parameter.value for parameter in parameters.values()))
    if validate_names:
        raise ValueError(f"{part}{validate_names}")
    return parameters


def _within(parameters: dict[str, Parameter], low: float, high: float) -> dict[str, Parameter]:
    """The parameters of one kind, if all are what they can be."""
    for name, parameter in parameters.items():
        if not low <= parameter.value <= high:
            raise ValueError(f"{shortened(name)} is {parameter.value:g}, allowed {low:g} to {high:g}")
    return parameters


def _complete(names: Names) -> AfterValidator:
    """Refuses parameters that lack a name, or have one that the model doesn't read."""
    return AfterValidator(lambda parameters: _checked(parameters, names))


class Residual(Strict):
    """What the analytic form missed, as a Gaussian process over log2 of shape features (Rasmussen & Williams, ch. 2).

    log(time / analytic) = weights . k(x, points) with the exponential kernel k = signal^2 exp(-|x - point|), distances
    in units of one length per feature: it lets neighbours differ abruptly, as they do where a library changes its
    kernel. `noise` and `signal` are standard deviations of log time.
    """

    features: list[str]
    lengths: list[Annotated[Real, Field(gt=1e-9, le=1e12)]]
    signal: LogError
    noise: LogError
    points: list[list[_Bounded]]
    weights: list[_Bounded]

    @cached_property
    def arrays(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Lengths [F], points in units of them [N, F] and their squares' sums [N], weights [N].

        A changed residual is made anew, never copied.
        """
        lengths = np.asarray(self.lengths)
        points = np.asarray(self.points) / lengths
        return lengths, points, np.square(points).sum(1), np.asarray(self.weights)

    @model_validator(mode="after")
    def _shapes(self) -> Residual:
        if len(self.lengths) != len(self.features) or any(len(p) != len(self.features) for p in self.points):
            raise ValueError(f"lengths and points must have {len(self.features)} columns, one for each feature")
        if len(self.weights) != len(self.points):
            raise ValueError(f"weights: found {len(self.weights)}; there are {len(self.points)} points")
        return self


class OperatorFit(Strict):
    """Time of one operator and pass (see `device.roofline`)."""

    kind: Kind
    direction: Pass
    parameters: dict[str, Parameter]
    residual: Residual | None = None
    log_error: LogError = Field(description="standard deviation of log(measured / predicted), held-out shapes")
    measured: dict[str, tuple[Real, Real]] = Field(
        default_factory=dict, description="smallest and largest of each feature that was measured"
    )
    points: Points = Field(description="shapes that it rests on")

    @property
    def values(self) -> dict[str, float]:
        """The parameters' values by name."""
        return {name: parameter.value for name, parameter in self.parameters.items()}

    @cached_property
    def box(self) -> FloatArray:
        """What was measured, smallest and largest of each feature in their order, [F, 2]; a changed fit has its own."""
        return np.asarray([self.measured[name] for name in operator_features(self.kind)])

    @field_validator("parameters")
    @classmethod
    def _whole(cls, parameters: dict[str, Parameter], info: ValidationInfo) -> dict[str, Parameter]:
        kind = info.data.get("kind")  # absent if it was refused itself
        if kind is None:
            return parameters
        return _checked(parameters, operator_names(kind), f"{kind}/{info.data.get('direction')}: ")

    @model_validator(mode="after")
    def _features(self) -> OperatorFit:
        allowed = operator_features(self.kind)
        part = f"{self.kind}/{self.direction}"
        backwards = [name for name, (low, high) in self.measured.items() if low > high]
        if backwards:
            raise ValueError(f"{part}: measured: {', '.join(backwards)}: the smallest comes first, then the largest")
        if self.measured and set(self.measured) != set(allowed):
            raise ValueError(f"{part}: measured: found {', '.join(self.measured)}; allowed: {', '.join(allowed)}")
        if self.residual and tuple(self.residual.features) != allowed:
            found = ", ".join(self.residual.features)
            raise ValueError(f"{part}: residual.features: found {found}; allowed, in this order: {', '.join(allowed)}")
        return self


KernelDtype = Literal["fp8", "fp8_block", "mxfp8", "nvfp4"]


class KernelFit(OperatorFit):
    """Time of a product of operands of 8 bits or fewer (see `device.precision`).

    `fp8` has a scale a tensor, `fp8_block` one for every 128 elements, which the kernel applies itself.
    """

    dtype: KernelDtype
    operand_B: Annotated[Real, Field(gt=0, le=2)] = Field(description="bytes of an operand's element with its scale")

    @field_validator("kind")
    @classmethod
    def _product(cls, kind: Kind) -> Kind:
        if kind not in (Kind.GEMM, Kind.GROUPED_GEMM):
            raise ValueError(f"found {kind}; allowed: {Kind.GEMM}, {Kind.GROUPED_GEMM}")
        return kind


class HostLane(Strict):
    """Time the host needs to queue work, per block of the backend (see `device.host_overhead`)."""

    backend: str
    blocks: dict[str, Parameter]
    log_error: LogError

    @field_validator("blocks")
    @classmethod
    def _times(cls, blocks: dict[str, Parameter]) -> dict[str, Parameter]:
        return _within(blocks, *_HOST_S)


class PowerFit(Strict):
    """Power of the GPU (see `device.power`)."""

    parameters: Annotated[dict[str, Parameter], _complete(POWER)]
    kinds: dict[str, Parameter] = Field(
        default_factory=dict, description="kind/direction -> factor on its dynamic energy, shrunk towards 1"
    )
    log_error: LogError
    points: Points

    @field_validator("kinds")
    @classmethod
    def _factors(cls, kinds: dict[str, Parameter]) -> dict[str, Parameter]:
        return _within(kinds, *_FACTOR)


class GovernorFit(Strict):
    """What clock the GPU sustains (see `device.dvfs`)."""

    parameters: Annotated[dict[str, Parameter], _complete(GOVERNOR)]
    log_error: LogError


class ThermalFit(Strict):
    """Temperature above the inlet per watt, and how power rises with it (see `device.power`)."""

    parameters: Annotated[dict[str, Parameter], _complete(THERMAL)]


class NetworkFit(Strict):
    """Links inside a node (see `network.collectives`)."""

    parameters: Annotated[dict[str, Parameter], _complete(NETWORK)]
    curves: list[LinkCurve] = Field(default_factory=list, description="what the formula misses (see `link_residuals`)")
    log_error: LogError


class MemoryFit(Strict):
    """What the framework adds to the tensors (see `step.memory`)."""

    parameters: Annotated[dict[str, Parameter], _complete(MEMORY)]


class Calibration(Strict):
    """All that is known about a GPU. `name` is what users call it; `gpu` the description it belongs to.

    >>> import moemodel
    >>> calibration = moemodel.shipped("h100-sxm-80gb")
    >>> bandwidth = calibration.chip["bandwidth_Bps"]
    >>> bandwidth.unit, bandwidth.origin, bool(bandwidth.source)
    ('B/s', 'datasheet', True)

    From a file it is read by `moemodel.read_calibration`. `moemodel.calibrate` fits one.
    """

    schema_version: Whole
    name: str
    gpu: str
    created: str
    moemodel_version: str
    provenance: str = Field(description="one paragraph for the reader: measured here, or fitted to which data")
    trial: str | None = Field(
        default=None,
        description="why predictions from it are for trying the commands only, a sentence; null: they aren't",
    )
    derived_from: str | None = Field(
        default=None,
        description="GPU whose calibration was taken over by data sheets, all or in part; null: measured, or fitted",
    )
    clock_reference_Hz: Clock_Hz = Field(description="SM clock that times at reference are for")
    clock_range_Hz: tuple[Clock_Hz, Clock_Hz] = Field(description="lowest and highest SM clock of predictions")
    clock_measured_Hz: tuple[Clock_Hz, Clock_Hz] = Field(description="lowest and highest true clock that was measured")
    composition_error: Parameter = Field(description="log error of a step beyond that of its operators")
    chip: Annotated[dict[str, Parameter], _complete(CHIP)] = Field(
        description="multiprocessors, flops_per_cycle, bandwidth_Bps, l2_B, simd_lanes that the operator fits refer to"
    )
    operators: list[OperatorFit]
    kernels: list[KernelFit] = Field(
        default_factory=list, description="products in fewer bits; those that lack are 16-bit ones scaled by peaks"
    )
    host: list[HostLane]
    power: PowerFit
    governor: GovernorFit
    thermal: ThermalFit
    network: NetworkFit
    memory: MemoryFit

    @model_validator(mode="after")
    def _ranges(self) -> Calibration:
        for name in ("clock_range_Hz", "clock_measured_Hz"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: found {low:g} to {high:g}; allowed: from the lowest clock to the highest")
        if not 0 <= self.composition_error.value <= _MOST_LOG_ERROR:
            found = self.composition_error.value
            raise ValueError(f"composition_error: found {found:g}; allowed: 0 to {_MOST_LOG_ERROR:g}")
        return self

    @model_validator(mode="after")
    def _settles(self) -> Calibration:
        """Leakage warms the die, which leaks more: something has to be steady in the end."""
        power = {name: p.value for name, p in self.power.parameters.items()}
        thermal = {name: p.value for name, p in self.thermal.parameters.items()}
        C_per_W = thermal["die_C_per_W"] + thermal["sink_C_per_W"]
        if warming_gain(power["leak_W_per_C"], power["rise_per_C"], C_per_W) >= 1:
            raise ValueError(
                f"power.parameters: leak_W_per_C {power['leak_W_per_C']:g} and rise_per_C {power['rise_per_C']:g} with "
                f"thermal.parameters of {C_per_W:g} C_per_W: a die that warms up without end; allowed: less of them"
            )
        coldest_W = power["base_W"] + power["leak_W_per_C"] * (thermal["inlet_C"] - power["leak_reference_C"])
        if coldest_W < 0:
            raise ValueError(
                f"power.parameters: base_W and leak_W_per_C are {coldest_W:g} W at the inlet's temperature; allowed: 0 "
                "or more"
            )
        return self

    @property
    def has_times(self) -> bool:
        """Whether it knows the time of any operator; one that doesn't serves for memory alone."""
        return bool(self.operators)

    def operator(self, kind: Kind, direction: Pass) -> OperatorFit | None:
        """The fit of one operator and pass, if there is one."""
        return next((fit for fit in self.operators if (fit.kind, fit.direction) == (kind, direction)), None)

    def kernel(self, dtype: KernelDtype, kind: Kind, direction: Pass) -> KernelFit | None:
        """The fit of a product in fewer bits, if there is one."""
        wanted = (dtype, kind, direction)
        return next((fit for fit in self.kernels if (fit.dtype, fit.kind, fit.direction) == wanted), None)


class _Version(Strict):
    model_config = ConfigDict(extra="ignore")
    schema_version: Whole


def read_calibration(path: Path | str) -> Calibration:
    """A calibration from its JSON file.

    Raises:
        CalibrationError: missing, not JSON, of another schema version, or malformed; with the place.
    """
    try:
        data = load_json(Path(path))
        version = parse_data(data, _Version, str(path)).schema_version
        if version != SCHEMA_VERSION:
            raise CalibrationError(
                f"{path}: schema_version: found {version}; this moemodel reads {SCHEMA_VERSION}. "
                "Fit it again from its profile with `moemodel calibrate`"
            )
        return parse_data(data, Calibration, str(path))
    except InputError as error:
        raise CalibrationError(str(error)) from None


class CalibrationRef(Strict):
    """The calibration that a search or a validation rests on; `sha256` of its contents (`fingerprint`)."""

    name: str
    gpu: str
    sha256: str


def fingerprint(calibration: Calibration) -> str:
    """SHA-256 of a calibration's contents, however its file is laid out; but for `trial`, which follows from them."""
    later = {"derived_from": calibration.derived_from, "kernels": calibration.kernels}  # as before it could be said
    unsaid = {"trial", *(name for name, value in later.items() if not value)}
    return hashlib.sha256(calibration.model_dump_json(exclude=unsaid).encode()).hexdigest()


def reference_to(calibration: Calibration) -> CalibrationRef:
    """Which calibration it is."""
    return CalibrationRef(name=calibration.name, gpu=calibration.gpu, sha256=fingerprint(calibration))
