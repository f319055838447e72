"""Energy to emissions and cost, and the table of grids."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moemodel.model.core.errors import InputError
from moemodel.model.results.carbon import Footprint, footprint, grid_intensity
from moemodel.model.results.regions import list_regions


def test_a_kilowatt_hour_at_the_meter() -> None:
    assert footprint(3.6e6) == Footprint(energy_kWh=1.0, emissions_kg=None, cost=None)


def test_energy_grows_with_pue_and_carries_emissions_and_cost() -> None:
    result = footprint(7.2e6, pue=1.5, intensity_kg_per_kWh=0.4, price_per_kWh=0.1)
    assert result.energy_kWh == pytest.approx(3.0)
    assert result.emissions_kg == pytest.approx(1.2)
    assert result.cost == pytest.approx(0.3)


def test_many_plans_are_one_plan_many_times() -> None:
    energy_J = np.array([3.6e6, 7.2e6])
    many = footprint(energy_J, pue=1.2, intensity_kg_per_kWh=0.5, price_per_kWh=0.2)
    each = [footprint(float(e), pue=1.2, intensity_kg_per_kWh=0.5, price_per_kWh=0.2) for e in energy_J]
    assert many.emissions_kg is not None
    assert many.energy_kWh.tolist() == pytest.approx([one.energy_kWh for one in each])
    assert many.emissions_kg.tolist() == pytest.approx([one.emissions_kg for one in each])


@pytest.mark.parametrize("pue", [0.99, 0.0, -1.0, math.nan])
def test_a_site_cannot_use_less_than_its_computers(pue: float) -> None:
    with pytest.raises(InputError, match=r"pue: found .*; allowed: 1 or more"):
        footprint(1.0, pue=pue)


@pytest.mark.parametrize(
    ("region", "kg_per_kWh"),
    [
        ("world", 0.475),  # IEA, as CodeCarbon has it
        ("FRA", 0.056039),
        ("CAN", 0.17004),
        ("CAN-quebec", (0.2 * 0.7438415916 + 0.3 * 0.8166885263) / 100.01),
        ("USA", 0.36947),
        ("USA-california", 394.769 * 0.45359237 / 1000),
        ("SWE-SE3", 0.027),
        ("CHN-guangdong", 0.4419),
    ],
)
def test_intensities_are_codecarbons(region: str, kg_per_kWh: float) -> None:
    assert grid_intensity(region) == pytest.approx(kg_per_kWh, rel=1e-4)


@pytest.mark.parametrize("name", ["CAN-British-Columbia", "can-british columbia", " CAN-british-columbia "])
def test_case_and_spaces_do_not_matter(name: str) -> None:
    assert grid_intensity(name) == grid_intensity("CAN-british-columbia")


def test_a_country_goes_by_its_name_too() -> None:
    assert grid_intensity("france") == grid_intensity("FRA")
    assert grid_intensity("Georgia") == grid_intensity("GEO") != grid_intensity("USA-georgia")


def test_the_table_covers_countries_states_and_provinces() -> None:
    regions = list_regions()
    assert sum(region.startswith("USA-") for region in regions) == 51  # states and the district of Columbia
    assert sum(region.startswith("CAN-") for region in regions) == 13
    assert sum(region.startswith("CHN-") for region in regions) == 30  # of 31: of Tibet nothing is published
    assert sum(region.startswith(("SWE-", "NOR-")) for region in regions) == 9
    assert sum(len(region) == 3 for region in regions) > 200


def test_an_error_names_the_key_that_the_region_stands_under() -> None:
    with pytest.raises(InputError, match=r"^site\.region: found 'atlantis'"):
        grid_intensity("atlantis", key="site.region")
