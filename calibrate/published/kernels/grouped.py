"""Fused layers of experts: two grouped products of the tokens that one rank's experts get, and what lies around them.

    t(f) = (t0 + sum over both products of (Tc^p + Tm^p + Ts^p)^(1/p) + streams) e^skewed
    (Tc and Ts go with f0/f; e^skewed is of uneven loads alone)
    Tc = min over tiles t of  waves 2 t 128 (K + k0) / (F f e_t) / shared^(odd/3)
    waves = (1 - q) max(c, 1) + q ceil(c)
    Tm = (experts with rows x N K b + rows (K b + 2 N)) / (BW beta),   Ts = 2 rows N K / (SMs F f s)
    streams = rows (2 H + (g + 1) I) 2 / (BW e_s) + T H 4 / (BW e_s) + T (4 E + 64 top_k) / (BW e_r)
            + T top_k (2 H / (BW e_a) + 2 (g + 1) I / (BW e_z) + per_pair)

    c      tiles over SMs; tiles of t rows by 128 columns, counted expert by expert; odd as in `device.roofline`
    N, K   g I and H of the first product, H and I of the second; I is a tensor-parallel share; g is 2 with a gate
    rows   (token, expert) pairs of rank 0; T top_k all pairs, which the kernels walk whichever rank they belong to

A table says how tokens were spread, not how many each expert got. They are drawn as the source draws them: evenly, or
by a bounded power law whose busiest rank is measured (the mean of some draws here).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from moemodel.calibration.fit.operators import BoundedParameter
from moemodel.calibration.published.kernels.forms import OPERANDS
from moemodel.calibration.published.kernels.readings import Readings
from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray, take_rows
from moemodel.model.device.roofline import RooflineChip
from moemodel.model.operators.work import Work

_TILES = (16, 32, 64, 128, 256)  # rows; of engines' kernels, tuned by the number of tokens
_COLUMNS = 128
_DRAWS = 10
_OUT_B = 2.0
_LEVELLINGS = 50  # rounds at most in which what a draw is short of is shared out
# Models of the source whose experts have no gate (Nemotron, squared ReLU): hidden and intermediate size.
_UNGATED = ((2688, 1856), (4096, 2688), (8192, 2688), (1024, 2688))

# Starts and bounds are assumed.
GROUPED = {
    "t0": BoundedParameter(start=2e-5, low=2e-7, high=5e-4, unit="s"),
    "p": BoundedParameter(start=3.0, low=1.0, high=20.0),
    "depth0": BoundedParameter(start=100.0, low=1.0, high=3000.0),
    "quantisation": BoundedParameter(start=0.5, low=0.0, high=1.0),
    "memory_efficiency": BoundedParameter(start=0.7, low=0.1, high=2.0),
    "stream_efficiency": BoundedParameter(start=0.6, low=0.02, high=4.0),
    "route_efficiency": BoundedParameter(start=0.5, low=0.01, high=20.0),
    "sustained": BoundedParameter(start=0.7, low=0.15, high=1.2),
    "ungated": BoundedParameter(start=1.5, low=0.9, high=2.1),
    "alignment": BoundedParameter(start=0.5, low=0.05, high=1.0),
    "pair_efficiency": BoundedParameter(start=0.6, low=0.02, high=20.0),
    "inner_efficiency": BoundedParameter(start=2.0, low=0.02, high=50.0),
    "per_pair": BoundedParameter(start=1e-10, low=1e-13, high=1e-7, unit="s"),
    "skewed": BoundedParameter(start=0.0, low=-0.4, high=0.4),
    "tile_16": BoundedParameter(start=0.1, low=0.005, high=0.6),
    "tile_32": BoundedParameter(start=0.2, low=0.01, high=0.8),
    "tile_64": BoundedParameter(start=0.4, low=0.02, high=1.1),
    "tile_128": BoundedParameter(start=0.6, low=0.05, high=1.2),
    "tile_256": BoundedParameter(start=0.7, low=0.05, high=1.2),
}


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Fused layers, U of them; sizes are arrays [U].

    Attributes:
        tokens, hidden, inner, top_k, experts: of the layer; `inner` of a tensor-parallel share.
        gated: 2 with a gate, 1 without.
        balanced: 1 where tokens are spread evenly.
        rows, active: pairs of rank 0, and its experts that have some.
        skew: pairs of the busiest of these over their mean.
        tiles: of each height of `_TILES`, [U, tiles].
        work, element_B, features: as in `forms.Kernels`.
    """

    tokens: FloatArray
    hidden: FloatArray
    inner: FloatArray
    top_k: FloatArray
    experts: FloatArray
    gated: FloatArray
    balanced: FloatArray
    rows: FloatArray
    active: FloatArray
    skew: FloatArray
    tiles: FloatArray
    work: Work
    element_B: float
    features: FloatArray

    @property
    def free(self) -> dict[str, BoundedParameter]:
        """Parameters of the form."""
        return GROUPED

    def take(self, rows: BoolArray | IntArray) -> Layers:
        """Some of them."""
        return take_rows(self, rows)

    def time_s(self, p: Mapping[str, float], chip: RooflineChip, clock_Hz: FloatArray) -> FloatArray:
        """Of each at clocks [U, K], or [U, 1]."""
        time_s = p["t0"] + self.device_s(p, chip, clock_Hz)
        return np.asarray(time_s * np.exp(p["skewed"] * (1 - self.balanced))[:, None])

    def device_s(self, p: Mapping[str, float], chip: RooflineChip, clock_Hz: FloatArray) -> FloatArray:
        """Of that, what lies beyond launches, loads as even ones."""
        gated = np.where(self.gated < 2, p["ungated"], 2.0)
        return np.asarray(self.products_s(p, chip, clock_Hz) + self._streams_s(p, chip, gated)[:, None])

    def products_s(self, p: Mapping[str, float], chip: RooflineChip, clock_Hz: FloatArray) -> FloatArray:
        """Of both products alone."""
        gated, slowdown = np.where(self.gated < 2, p["ungated"], 2.0), chip.clock_Hz / clock_Hz
        return self._product_s(p, chip, gated * self.inner, self.hidden, slowdown) + self._product_s(
            p, chip, self.hidden, self.inner, slowdown
        )

    def _product_s(
        self, p: Mapping[str, float], chip: RooflineChip, n: FloatArray, k: FloatArray, slowdown: FloatArray
    ) -> FloatArray:
        rate = chip.flops_per_cycle * chip.clock_Hz
        tensor_s = np.full(len(n), np.inf)
        for index, height in enumerate(_TILES):
            c = self.tiles[:, index] * np.ceil(n / _COLUMNS) / chip.multiprocessors
            waves = (1 - p["quantisation"]) * np.maximum(c, 1.0) + p["quantisation"] * np.ceil(c)
            tile_s = 2.0 * height * _COLUMNS * (k + p["depth0"]) / (rate * p[f"tile_{height}"])
            tensor_s = np.minimum(tensor_s, waves * tile_s)
        odd = sum(((np.floor(k) % a != 0) | (np.floor(n) % a != 0)).astype(np.float64) for a in (2, 4, 8))
        tensor_s = tensor_s / p["alignment"] ** (odd / 3)
        moved_B = self.active * n * k * self.element_B + self.rows * (k * self.element_B + n * _OUT_B)
        memory_s = (moved_B / (chip.bandwidth_Bps * p["memory_efficiency"]))[:, None]
        steady_s = 2 * self.rows * n * k / (chip.multiprocessors * rate * p["sustained"])
        power = p["p"]
        return np.asarray(
            ((tensor_s[:, None] * slowdown) ** power + memory_s**power + (steady_s[:, None] * slowdown) ** power)
            ** (1 / power)
        )

    def _streams_s(self, p: Mapping[str, float], chip: RooflineChip, gated: FloatArray) -> FloatArray:
        own_B = self.rows * (2 * self.hidden + (gated + 1) * self.inner) * 2 + self.tokens * self.hidden * 4
        route_B = self.tokens * (self.experts * 4 + self.top_k * 64)
        pairs = self.tokens * self.top_k
        outer_B, inner_B = 2 * pairs * self.hidden, 2 * pairs * (gated + 1) * self.inner
        slow_B = own_B / p["stream_efficiency"] + route_B / p["route_efficiency"]
        slow_B = slow_B + outer_B / p["pair_efficiency"] + inner_B / p["inner_efficiency"]
        return np.asarray(slow_B / chip.bandwidth_Bps + pairs * p["per_pair"])


def layers(readings: Readings) -> Layers:
    """Those of a table of fused layers."""
    names = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
    tokens, hidden, inter, top_k, experts, tp, ep = (readings.column(name) for name in names)
    loads = [str(load) for load in readings.table["distribution"]]
    drawn = zip(tokens, top_k, experts, ep, loads, strict=True)
    spread = np.array([_spread(int(t), int(k), int(e), int(r), load) for t, k, e, r, load in drawn])
    rows, active, busiest, tiles = spread[:, 0], spread[:, 1], spread[:, 2], spread[:, 3:]
    ungated = np.array([(int(h), int(i)) in _UNGATED for h, i in zip(hidden, inter, strict=True)])
    gated, inner, balanced = np.where(ungated, 1.0, 2.0), inter / tp, np.array([load == "balanced" for load in loads])
    element_B = OPERANDS[readings.dtype][1]
    flops = 2 * rows * hidden * inner * (gated + 1)
    bytes_B = active * (gated + 1) * hidden * inner * element_B + tokens * top_k * 2 * (2 * hidden + 3 * inner)
    mean = rows / np.maximum(active, 1)
    sizes = (
        rows,
        np.maximum(mean, 0.5),
        hidden,
        inner,
        experts / ep,
        tokens,
        np.maximum(busiest, 1) / np.maximum(mean, 0.5),
    )
    return Layers(
        tokens=tokens,
        hidden=hidden,
        inner=inner,
        top_k=top_k,
        experts=experts,
        gated=gated,
        balanced=balanced.astype(np.float64),
        rows=rows,
        active=active,
        skew=np.maximum(busiest, 1) / np.maximum(mean, 0.5),
        tiles=tiles,
        work=Work(flops=flops, vector_ops=0 * flops, bytes_B=bytes_B),
        element_B=element_B,
        # kinds count as two octaves apart; assumed, and no matter where lengths are searched
        features=np.c_[np.log2(np.maximum(np.array(sizes), 1e-9)).T, 2 * balanced, 2 * gated],
    )


@cache
def _spread(tokens: int, top_k: int, experts: int, ranks: int, load: str) -> tuple[float, ...]:
    """Pairs of rank 0, its experts with rows, rows of its busiest, and its tiles of each height; means over draws."""
    own = experts // ranks
    if load == "balanced":
        draws = [_even(tokens * top_k, experts)[:own]]
    else:
        key = f"{tokens} {top_k} {experts} {ranks} {load}"
        random = np.random.default_rng(zlib.crc32(key.encode()))
        exponent = float(load.removeprefix("power_law_"))
        drawn = (_power_law(tokens, top_k, experts, exponent, random).reshape(ranks, own) for _ in range(_DRAWS))
        draws = [by_rank[np.argmax(by_rank.sum(axis=1))] for by_rank in drawn]
    return tuple(np.mean([_counted(draw) for draw in draws], axis=0).tolist())


def _counted(rows: FloatArray) -> list[float]:
    held = rows[rows > 0.5]
    tiles = [float(np.ceil(held / height - 1e-9).sum()) for height in _TILES]
    return [float(rows.sum()), float(len(held)), float(rows.max()), *tiles]


def _even(pairs: int, experts: int) -> FloatArray:
    """Rows of each expert, as even as whole rows allow."""
    rows = np.zeros(experts)
    if pairs < experts:
        rows[np.linspace(0, experts - 1, pairs).astype(int)] = 1
        return rows
    return rows + pairs // experts + (np.arange(experts) < pairs % experts)


def _power_law(tokens: int, top_k: int, experts: int, exponent: float, random: np.random.Generator) -> FloatArray:
    """Rows of each expert by a bounded power law; none has more than there are tokens."""
    pairs = tokens * top_k
    low, high = (1.0, 0.8 * tokens) if pairs > experts else (0.01, 2.0)
    if exponent == 1:
        drawn = low * (high / low) ** random.random(experts)
    else:
        power = 1 - exponent
        drawn = ((high**power - low**power) * random.random(experts) + low**power) ** (1 / power)
    rows = np.minimum(np.round(drawn / drawn.sum() * pairs), tokens)
    for _ in range(_LEVELLINGS):
        short = pairs - rows.sum()
        if short < 1:
            break
        room = (rows < np.quantile(rows, 0.5) + 1) & (rows < tokens)
        room = room if room.any() else rows < tokens
        rows = rows + np.minimum(short / room.sum(), tokens - rows) * room
    return np.asarray(rows * (pairs / rows.sum()) if rows.sum() > pairs else rows)
