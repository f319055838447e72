"""From energy at the GPUs to kilowatt-hours at the meter, emissions and cost.

    E = e · PUE / 3.6e6        m = E · c        k = E · p

    e  energy of the computing equipment, J            E  energy at the meter, kWh
    PUE  power usage effectiveness: energy of the site over energy of its computing equipment (ISO/IEC 30134-2)
    c  carbon intensity of the grid, kgCO2e/kWh        m  emissions, kg        p  price per kWh        k  cost

Left out: the making of the hardware, and losses between power plant and meter. The intensities are CodeCarbon's
(`regions`): yearly means of what is generated in a region. At a given hour a grid can be several times off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from moemodel.model.core.errors import InputError
from moemodel.model.results.regions import find_region

JOULES_PER_KWH = 3.6e6

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


def grid_intensity(region: str, *, key: str = "region") -> float:
    """Carbon intensity of a region's grid, kgCO2e per kWh: a yearly mean.

    Args:
        region: as `regions.find_region` takes it: "CAN", "CAN-quebec", "USA-new-york", "france", "us-east-1", "world".
        key: what an error calls the place where the region stands.

    Raises:
        InputError: no such region; the message says what is near it.
    """
    return find_region(region, key=key).kgCO2e_per_kWh


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
