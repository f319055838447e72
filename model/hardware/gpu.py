"""GPU descriptions: what datasheets and drivers say of a GPU. One JSON file each, every value with its source.

A description holds published figures only; what a GPU reaches in practice belongs to a calibration. Adding a GPU is
adding a file to `presets/gpus`, or naming a file of one's own. A value that is not known is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import Field, model_validator

from moemodel.model.core.documents import Real, Strict, Whole, read_json
from moemodel.model.core.dtypes import Dtype
from moemodel.model.core.errors import InputError
from moemodel.model.core.files import is_path, is_there
from moemodel.model.core.suggest import unknown

_PRESETS = Path(__file__).parents[1] / "presets" / "gpus"

T = TypeVar("T", covariant=True)


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Highest published dense rate of one data type (no sparsity), and the SM clock at which it holds.

    On tensor cores (AMD: matrix cores) where they take the type, else on the SIMD pipes: fp32 on every NVIDIA GPU, fp64
    on those without fp64 tensor cores.
    """

    flops_per_s: float
    clock_Hz: float

    @property
    def flops_per_cycle(self) -> float:
        """Operations in one cycle of all multiprocessors together."""
        return self.flops_per_s / self.clock_Hz


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU. None stands for what is not known, or makes no sense (multiprocessors of a CPU).

    Attributes:
        name: of the description, such as h100-sxm-80gb.
        product: the vendor's name for it.
        aliases: other names that mean it: what NVML (AMD: the driver) calls the device, short names.
        architecture: the vendor's name of the generation, in lower case; of dies whose multiprocessors are not those of
            the generation's largest (GA10x beside GA100: half the tensor cores' rate, twice the fp32 lanes, another
            foundry), with theirs.
        multiprocessors: streaming multiprocessors (SMs); AMD's compute units (CUs).
        simd_lanes: fp32 lanes of one multiprocessor, each of which multiplies and adds once a cycle.
        tiles: rows and columns of the output tiles that products of the vendor's libraries are built of.
        memory_B: device memory as the driver reports it.
        memory_bandwidth_Bps: peak bytes a second of device memory.
        l2_B: second-level cache, of all dies together.
        memory_cache_B: third-level cache in front of the memory (AMD's Infinity Cache).
        peaks: highest rate of each data type that the GPU computes with.
        clock_min_Hz, clock_max_Hz, clock_step_Hz: SM clocks that the driver lets a user set.
        power_limit_W: limit it ships with.
        power_limit_min_W, power_limit_max_W: range that a user may set.
        idle_power_W: drawn with a context open and nothing running.
        slowdown_C: die temperature at which the hardware slows the clock.
        nvlink_links: NVLink links to other GPUs; AMD's Infinity Fabric (xGMI) links.
        nvlink_Bps: bytes a second of all these links together, in each direction.
        pcie_generation: of the host link.
        pcie_Bps: bytes a second of the host link, in each direction.
        gpus_per_node: how many a node (an NVLink domain, be it of several hosts) has unless a plan says otherwise.
        gpus_per_host: how many a host has, where a node is several.
        sources: where each value comes from, by attribute; a peak's is `peaks.bf16`.
    """

    name: str
    product: str
    aliases: tuple[str, ...]
    architecture: str
    multiprocessors: int | None
    simd_lanes: int | None = None
    tiles: tuple[tuple[int, int], ...] | None = None
    memory_B: int | None
    memory_bandwidth_Bps: float | None
    l2_B: int | None
    memory_cache_B: int | None = None
    peaks: Mapping[Dtype, Peak] = field(hash=False)
    clock_min_Hz: float | None
    clock_max_Hz: float | None
    clock_step_Hz: float | None
    power_limit_W: float | None
    power_limit_min_W: float | None
    power_limit_max_W: float | None
    idle_power_W: float | None
    slowdown_C: float | None
    nvlink_links: int | None
    nvlink_Bps: float | None
    pcie_generation: int | None
    pcie_Bps: float | None
    gpus_per_node: int
    gpus_per_host: int | None = None
    sources: Mapping[str, str] = field(hash=False, repr=False)

    @property
    def peak_16_bit(self) -> Peak | None:
        """That of bf16, or of fp16 where there is no bf16; None: neither is known."""
        return self.peaks.get("bf16") or self.peaks.get("fp16")

    def peak(self, dtype: str) -> Peak:
        """The highest rate of a data type.

        Raises:
            InputError: the GPU doesn't compute with it, or its rate isn't known.
        """
        for known, peak in self.peaks.items():
            if known == dtype:
                return peak
        raise unknown(f"gpu {self.name}: dtype", dtype, self.peaks)


class _HasValue(Protocol[T]):
    @property
    def value(self) -> T: ...


class _Fact(Strict):
    """A value and the key of its source. Not generic: pydantic builds each parametrized model when it is imported."""

    source: str


# Bounds are assumed: a hundred times beyond any GPU and more; what is outside is in another unit, or a typing error.
_Clock_Hz = Annotated[Real, Field(ge=1e6, le=1e12)]
_Power_W = Annotated[Real, Field(ge=0, le=1e5)]


class _Count(_Fact):
    value: Annotated[Whole, Field(gt=0, le=1_000_000)]


_Tile_Side = Annotated[Whole, Field(gt=0, le=4096)]


class _Tiles(_Fact):
    value: Annotated[tuple[tuple[_Tile_Side, _Tile_Side], ...], Field(min_length=1)]


class _Bytes(_Fact):
    value: Annotated[Whole, Field(gt=0, le=10**15)]


class _BytesPerSecond(_Fact):
    value: Annotated[Real, Field(ge=1e3, le=1e18)]


class _Hertz(_Fact):
    value: _Clock_Hz


class _HertzOfStep(_Fact):
    value: Annotated[Real, Field(ge=1.0, le=1e12)]


class _Watts(_Fact):
    value: Annotated[_Power_W, Field(gt=0)]


class _WattsOrNone(_Fact):
    value: _Power_W


class _Celsius(_Fact):
    value: Annotated[Real, Field(gt=0, le=300)]


class _PeakFact(Strict):
    flops_per_s: Annotated[Real, Field(ge=1e6, le=1e21)]
    clock_Hz: _Clock_Hz
    source: str


class _Description(Strict):
    """A file of `presets/gpus`. Keys without a default have to be there: what is not known is null, on purpose.

    Those with one came later; files from before them stay valid.
    """

    name: str
    product: str
    aliases: tuple[str, ...]
    architecture: str
    sources: dict[str, str]
    multiprocessors: _Count | None
    simd_lanes: _Count | None = None
    tiles: _Tiles | None = None
    memory_B: _Bytes | None
    memory_bandwidth_Bps: _BytesPerSecond | None
    l2_B: _Bytes | None
    memory_cache_B: _Bytes | None = None
    peaks: dict[Dtype, _PeakFact]
    clock_min_Hz: _Hertz | None
    clock_max_Hz: _Hertz | None
    clock_step_Hz: _HertzOfStep | None
    power_limit_W: _Watts | None
    power_limit_min_W: _Watts | None
    power_limit_max_W: _Watts | None
    idle_power_W: _WattsOrNone | None
    slowdown_C: _Celsius | None
    nvlink_links: _Count | None
    nvlink_Bps: _BytesPerSecond | None
    pcie_generation: _Count | None
    pcie_Bps: _BytesPerSecond | None
    gpus_per_node: _Count
    gpus_per_host: _Count | None = None

    def cited(self) -> dict[str, str]:
        """The key of the source of every value, by name."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        facts = {name: value.source for name, value in values.items() if isinstance(value, _Fact)}
        return facts | {f"peaks.{dtype}": peak.source for dtype, peak in self.peaks.items()}

    @model_validator(mode="after")
    def _sources_are_listed(self) -> _Description:
        for name, source in self.cited().items():
            if source not in self.sources:
                known = ", ".join(sorted(self.sources)) or "none yet: add one under 'sources'"
                raise ValueError(f"{name}.source: found {source!r}; allowed: a key of 'sources' ({known})")
        return self

    @model_validator(mode="after")
    def _hosts_fill_a_node(self) -> _Description:
        if self.gpus_per_host and self.gpus_per_node.value % self.gpus_per_host.value:
            found, node = self.gpus_per_host.value, self.gpus_per_node.value
            raise ValueError(f"gpus_per_host: found {found}; allowed: a divisor of gpus_per_node ({node})")
        return self

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> _Description:
        for low, high in (("clock_min_Hz", "clock_max_Hz"), ("power_limit_min_W", "power_limit_max_W")):
            lowest, highest = getattr(self, low), getattr(self, high)
            if lowest and highest and lowest.value > highest.value:
                raise ValueError(f"{low}: found {lowest.value:g}; allowed: at most {high} ({highest.value:g})")
        return self


@cache
def list_gpus() -> tuple[str, ...]:
    """Names of the descriptions that ship, sorted."""
    return tuple(sorted(path.stem for path in _PRESETS.glob("*.json")))


def is_known_gpu(name: str) -> bool:
    """Whether it is the name or an alias of a preset."""
    return name in list_gpus() or name.casefold() in _presets_by_name()


class GpuVariant(Strict):
    """In what a GPU differs from its description: a board with other memory, links or limits.

    Attributes:
        memory_GB, memory_bandwidth_TBps, multiprocessors: of the GPU.
        clock_max_MHz: highest SM clock.
        power_limit_W: that it ships with, which no plan's cap exceeds.
        links_GBps: of all links to other GPUs together, in each direction: NVLink's, or PCIe's where there is none.
    """

    memory_GB: Annotated[Real, Field(gt=0, le=1e5)] | None = None
    memory_bandwidth_TBps: Annotated[Real, Field(gt=0, le=1e4)] | None = None
    multiprocessors: Annotated[Whole, Field(gt=0, le=1_000_000)] | None = None
    clock_max_MHz: Annotated[Real, Field(gt=0, le=1e5)] | None = None
    power_limit_W: Annotated[Real, Field(gt=0, le=1e5)] | None = None
    links_GBps: Annotated[Real, Field(gt=0, le=1e6)] | None = None

    def of(self, gpu: Gpu) -> Gpu:
        """The GPU as it is."""
        links = "pcie_Bps" if gpu.nvlink_Bps is None else "nvlink_Bps"
        given: dict[str, Any] = {
            "memory_B": None if self.memory_GB is None else round(self.memory_GB * 1e9),
            "memory_bandwidth_Bps": _times(self.memory_bandwidth_TBps, 1e12),
            "multiprocessors": self.multiprocessors,
            "clock_max_Hz": _times(self.clock_max_MHz, 1e6),
            "power_limit_W": self.power_limit_W,
            "power_limit_max_W": self.power_limit_W,
            links: _times(self.links_GBps, 1e9),
        }
        return replace(gpu, **{name: value for name, value in given.items() if value is not None})


def _times(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit


def read_gpu(name_or_path: str | Path, *, key: str = "gpu") -> Gpu:
    """Read a GPU description.

    Args:
        name_or_path: the name of a preset (`list_gpus`) or one of its aliases, such as h100 or what NVML calls the
            device, in any case; or the path of a JSON file of the same form.
        key: what an error calls the place where the name stands.

    Raises:
        InputError: no such preset or file, or a file with a missing, unknown or impossible key.
    """
    if name_or_path in list_gpus():
        return _preset(str(name_or_path))
    if isinstance(name_or_path, str) and name_or_path.casefold() in _presets_by_name():
        return _presets_by_name()[name_or_path.casefold()]
    path = Path(name_or_path)
    if not is_there(path) and is_path(str(name_or_path)):
        raise InputError(f"{key}: {name_or_path}: no such file")
    if not is_there(path):
        aliases = [alias for gpu in _presets_by_name().values() for alias in gpu.aliases]
        raise unknown(key, str(name_or_path), list_gpus(), aliases=aliases, or_else="the path of a GPU description")
    return _read(path)


@cache
def _preset(name: str) -> Gpu:
    return _read(_PRESETS / f"{name}.json")


@cache
def _presets_by_name() -> dict[str, Gpu]:
    gpus = [_preset(name) for name in list_gpus()]
    return {name.casefold(): gpu for gpu in gpus for name in (gpu.name, *gpu.aliases)}


def _read(path: Path) -> Gpu:
    d = read_json(path, _Description)
    return Gpu(
        name=d.name,
        product=d.product,
        aliases=d.aliases,
        architecture=d.architecture,
        multiprocessors=_value(d.multiprocessors),
        simd_lanes=_value(d.simd_lanes),
        tiles=_value(d.tiles),
        memory_B=_value(d.memory_B),
        memory_bandwidth_Bps=_value(d.memory_bandwidth_Bps),
        l2_B=_value(d.l2_B),
        memory_cache_B=_value(d.memory_cache_B),
        peaks={dtype: Peak(flops_per_s=peak.flops_per_s, clock_Hz=peak.clock_Hz) for dtype, peak in d.peaks.items()},
        clock_min_Hz=_value(d.clock_min_Hz),
        clock_max_Hz=_value(d.clock_max_Hz),
        clock_step_Hz=_value(d.clock_step_Hz),
        power_limit_W=_value(d.power_limit_W),
        power_limit_min_W=_value(d.power_limit_min_W),
        power_limit_max_W=_value(d.power_limit_max_W),
        idle_power_W=_value(d.idle_power_W),
        slowdown_C=_value(d.slowdown_C),
        nvlink_links=_value(d.nvlink_links),
        nvlink_Bps=_value(d.nvlink_Bps),
        pcie_generation=_value(d.pcie_generation),
        pcie_Bps=_value(d.pcie_Bps),
        gpus_per_node=d.gpus_per_node.value,
        gpus_per_host=_value(d.gpus_per_host),
        sources={name: d.sources[key] for name, key in d.cited().items()},
    )


def _value(fact: _HasValue[T] | None) -> T | None:
    return None if fact is None else fact.value
