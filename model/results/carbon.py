"""From energy at the GPUs to kilowatt-hours at the meter, emissions and cost.

    E = e · PUE / 3.6e6        m = E · c        k = E · p

    e  energy of the computing equipment, J            E  energy at the meter, kWh
    PUE  power usage effectiveness: energy of the site over energy of its computing equipment (ISO/IEC 30134-2)
    c  carbon intensity of the grid, kgCO2e/kWh        m  emissions, kg        p  price per kWh        k  cost

Left out: the making of the hardware, and losses between power plant and meter. The intensities are CodeCarbon's
(`presets/grids.json`): yearly means of what is generated in a region. At a given hour a grid can be several times off.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from moemodel.model.core.documents import Strict, read_json
from moemodel.model.core.errors import InputError
from moemodel.model.core.suggest import unknown

JOULES_PER_KWH = 3.6e6

_GRIDS = Path(__file__).parents[1] / "presets" / "grids.json"


Energy = TypeVar("Energy", float, NDArray[np.float64])  # one plan, or many


@dataclass(frozen=True, kw_only=True)
class Footprint(Generic[Energy]):
    """What some energy means outside the machine; arrays where the energy was an array.

    Attributes:
        energy_kWh: at the meter.
        emissions_kg: CO2-equivalent; None where no carbon intensity was given.
        cost: in the currency of the price; None where no price was given.
    """

    energy_kWh: Energy
    emissions_kg: Energy | None
    cost: Energy | None


class _Grid(Strict):
    """One region. `table` names where the value comes from."""

    name: str
    kgCO2e_per_kWh: Annotated[float, Field(ge=0)]
    year: int
    table: str


class _Grids(Strict):
    """The file of regions."""

    licence: str
    source: str
    tables: dict[str, str]
    regions: dict[str, _Grid]


def list_regions() -> tuple[str, ...]:
    """Regions whose grid is known: "world", ISO 3166 alpha-3 codes, and `USA-…`, `CAN-…` for states and provinces."""
    return tuple(_grids().regions)


def grid_intensity(region: str, *, key: str = "region") -> float:
    """Carbon intensity of a region's grid, kgCO2e per kWh: a yearly mean.

    Args:
        region: one of `list_regions` or a country's English name, in any case, spaces or hyphens: "CAN", "CAN-quebec",
            "USA-new-york", "france", "world".
        key: what an error calls the place where the region stands.

    Raises:
        InputError: no such region; the message guesses which was meant.
    """
    grid = _by_any_name().get(_folded(region))
    if grid is None:
        names = [known.name for known in _grids().regions.values()]
        raise unknown(key, region, list_regions(), aliases=names)
    return grid.kgCO2e_per_kWh


def footprint(
    energy_J: Energy,
    *,
    pue: float = 1.0,
    intensity_kg_per_kWh: float | None = None,
    price_per_kWh: float | None = None,
) -> Footprint[Energy]:
    """Energy at the meter, emissions and cost of some energy at the GPUs.

    Args:
        energy_J: of the computing equipment, a number or an array.
        pue: power usage effectiveness of the site, 1 or more.
        intensity_kg_per_kWh: carbon intensity, such as `grid_intensity` gives.
        price_per_kWh: in any currency.

    Raises:
        InputError: a PUE below 1.
    """
    if not pue >= 1.0:
        raise InputError(f"pue: found {pue}; allowed: 1 or more (energy of the whole site over that of its computers)")
    energy_kWh = energy_J * pue / JOULES_PER_KWH
    return Footprint(
        energy_kWh=energy_kWh,
        emissions_kg=None if intensity_kg_per_kWh is None else energy_kWh * intensity_kg_per_kWh,
        cost=None if price_per_kWh is None else energy_kWh * price_per_kWh,
    )


@cache
def _grids() -> _Grids:
    return read_json(_GRIDS, _Grids)


@cache
def _by_any_name() -> dict[str, _Grid]:
    regions = _grids().regions
    return {_folded(grid.name): grid for grid in regions.values()} | {_folded(key): regions[key] for key in regions}


def _folded(region: str) -> str:
    return region.strip().casefold().replace(" ", "-")
