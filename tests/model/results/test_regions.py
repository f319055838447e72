"""Names of places: what is known by which name, what is refused, and where a refusal points."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import pytest

from moemodel.model.core.errors import InputError
from moemodel.model.results.regions import find_part, find_region, list_regions, parts_of

# What people and programs call a place, and the code of the place.
KNOWN = {
    "GBR": ("UK", "GB", "gbr", "U.K.", "United Kingdom", "great britain", "eu-west-2", "uksouth", "europe-west2"),
    "SWE": ("SE", "Sweden", "Sverige"),
    "FIN": ("FI", "Finland", "europe-north1", "FI-FI"),
    "DEU": (
        "Federal Republic of Germany",
        "DE",
        "Germany",
        "Deutschland",
        "eu-central-1",
        "eu-central-1b",
        "Germany West Central",
        "europe-west3-a",
    ),
    "AUT": ("AT", "Österreich", "austriaeast"),
    "AUS": ("AU", "Australia", "ap-southeast-2"),
    "CAN": ("CA", "Canada"),
    "GEO": ("GE", "Georgia"),
    "LCA": ("St. Lucia", "St Lucia", "Saint Lucia"),
    "KOR": ("KR", "Korea", "South Korea", "Korea, Republic of", "asia-northeast3"),
    "TUR": ("TR", "Turkey", "Türkiye"),
    "CIV": ("CI", "Ivory Coast", "Côte d'Ivoire"),
    "HKG": ("HK", "Hong Kong", "eastasia", "asia-east2", "ap-east-1"),
    "USA": ("US", "usa", "United States", "United States of America"),
    "USA-virginia": (
        "Virginia, US",
        "us-east-1",
        "US-EAST-1",
        "us-east-1a",
        "eastus",
        "East US 2",
        "us-east4",
        "us-east4-c",
        "US-VA",
    ),
    "USA-ohio": ("us-east-2", "us-east5", "Ohio", "USA-OH", "aws us-east-2"),
    "USA-south-carolina": ("us-east1", "US-SC"),
    "USA-oregon": ("us-west-2", "us-west1"),
    "USA-california": ("us-west-1", "us-west2", "westus", "California", "US-CA", "USA-CA"),
    "USA-georgia": ("US-GA", "usa-georgia", "Georgia, USA"),
    "USA-district-of-columbia": ("US-DC", "Washington DC", "Washington, D.C."),
    "USA-washington": ("Washington", "westus2", "US-WA"),
    "CAN-quebec": ("Québec", "quebec", "CA-QC", "CAN-QC", "ca-central-1", "northamerica-northeast1", "Canada East"),
    "CAN-ontario": ("canadacentral", "CA-ON"),
    "SWE-SE3": ("SE3", "se-se3", "swe-se3", "Sweden SE3", "eu-north-1", "swedencentral", "europe-north2"),
    "NOR-NO2": ("NO2", "NO-NO2", "norwaywest"),
    "CHN-beijing": ("CN-BJ", "Beijing", "cn-north-1"),
    "PRI": ("US-PR", "Puerto Rico"),
    "TWN": ("CN-TW", "Taiwan", "asia-east1"),
    "world": ("world", "World"),
}
# Zones and parts of which nothing is known alone, and what stands for them.
LARGER = {
    "England": "GBR",
    "GB-NIR": "GBR",
    "US-CAL-CISO": "USA-california",
    "US-TEX-ERCO": "USA-texas",
    "DK1": "DNK",
    "DK-DK2": "DNK",
    "AU-NSW": "AUS",
    "JP-TK": "JPN",
}
# What is no place with a known grid; words of the hint; words that would lead astray.
UNKNOWN = {
    "nonsense-region": ("", "did you mean"),
    "atlantis": ("", "did you mean"),
    "": ("", "did you mean"),
    "_source": ("", "_unit"),
    "XY": ("", "did you mean"),
    "Utopia": ("", "Ethiopia"),
    "DE-nonsense": ("of Germany only the mean is known: 'DEU'", "did you mean"),
    "DEU-nonsense-region": ("of Germany only the mean is known: 'DEU'", "did you mean"),
    "SWE-SE9": ("of Sweden there are SWE-SE1, SWE-SE2, SWE-SE3, SWE-SE4", "NOR"),
    "SE-stockholm": ("of Sweden there are SWE-SE1", "did you mean"),
    "us-east-9": ("there are us-east-1, us-east-2", "us-east1,"),
    "Frankfurt": ("did you mean 'DEU' (Germany)", "FRA"),
    "Netherlands Antilles": ("", "did you mean 'NLD'"),
    "St. Elsewhere": ("", "STP"),
    "London": ("did you mean 'GBR' (United Kingdom)", "CAN"),
    "NY": ("did you mean 'USA-new-york' (New York, USA)", "NOR"),
    "US-MIDA-PJM": ("serves several: name one of USA-pennsylvania, USA-new-jersey", "did you mean"),
    "Liechtenstein": ("of Liechtenstein (LIE) no intensity is known; most of its electricity is of CHE", "LTU"),
    "XKX": ("of Kosovo (XKX) no intensity is known", "did you mean"),
    "Grmany": ("did you mean 'DEU' (Germany)", "GRC"),
    "CAN-qubec": ("did you mean 'CAN-quebec' (Quebec, Canada)", "USA"),
    "us-esat-1": ("'us-east-1' (Virginia, USA)", "USA-alabama"),
    "me-cenrtal1": ("did you mean 'me-central1' (Qatar)", "ARE"),  # as CodeCarbon's impact.csv spells it
    "westeurop": ("did you mean 'westeurope' (Netherlands)", "northeurope"),
    "USA-califronia": ("did you mean 'USA-california' (California, USA)", "CAN"),
}


@pytest.mark.parametrize(("code", "named"), [(code, name) for code, names in KNOWN.items() for name in names])
def test_a_place_goes_by_all_its_names(code: str, named: str) -> None:
    found = find_region(named)
    assert found.code == code
    assert not found.mean_of_more or named == "FI-FI"


@pytest.mark.parametrize(("named", "code"), LARGER.items())
def test_what_stands_for_a_smaller_place_says_so(named: str, code: str) -> None:
    found = find_region(named)
    assert found.code == code
    assert found.mean_of_more


@pytest.mark.parametrize(("named", "words"), UNKNOWN.items())
def test_a_refusal_points_to_what_is_near_in_truth(named: str, words: tuple[str, str]) -> None:
    hint, astray = words
    with pytest.raises(InputError) as caught:
        find_region(named, key="site.region")
    message = str(caught.value)
    assert message.startswith(f"site.region: found {named!r}; allowed: one of {len(list_regions())} names")
    assert hint in message
    assert astray not in message.partition("; allowed")[2]


@pytest.mark.parametrize("code", list_regions())
def test_every_code_means_itself(code: str) -> None:
    found = find_region(code)
    assert found.code == code
    assert 0 <= found.kgCO2e_per_kWh < 1.5  # kg/kWh; old gas and lignite plants are the worst
    assert found.table
    if found.part:
        assert find_part(found.country, found.part).code == code


def test_every_cloud_region_of_codecarbon_is_in_its_country() -> None:
    found = importlib.util.find_spec("codecarbon")
    if found is None or found.origin is None:
        pytest.skip("CodeCarbon is not installed: its table of cloud regions is read from it")
    table = Path(found.origin).parent / "data" / "cloud" / "impact.csv"
    rows = list(csv.DictReader(table.read_text(encoding="utf-8-sig").splitlines()))
    known = [row for row in rows if row["region"] != "me-cenrtal1"]  # a slip of theirs; the hint has it right
    # Hong Kong is a row of China there, and has a grid and a code of its own
    countries = {row["region"]: "HKG" if row["city"] == "Hong Kong" else row["countryIsoCode"] for row in known}
    assert len(countries) > 30
    for region, country in countries.items():
        assert find_region(region).country == country, region


def test_no_two_places_share_a_short_code() -> None:
    """Of two letters, all mean a country; three letters are alpha-3, never a slip away from another."""
    assert find_region("GA").code == "GAB"
    assert find_region("IN").code == "IND"
    with pytest.raises(InputError) as caught:
        find_region("UKX")
    assert "did you mean" not in str(caught.value)


# A country and a part of which nothing is known alone.
WITHIN_LARGER = [
    ("GBR", "Scotland", "GBR"),
    ("DNK", "DK1", "DNK"),
    ("USA", "US-CAL-CISO", "USA-california"),
    ("USA", "CAL-CISO", "USA-california"),
    ("Australia", "AU-NSW", "AUS"),
]


@pytest.mark.parametrize(("country", "part", "code"), WITHIN_LARGER)
def test_a_part_without_an_intensity_of_its_own_is_told_of(country: str, part: str, code: str) -> None:
    found = find_part(country, part)
    assert (found.code, found.mean_of_more) == (code, True)


def test_a_part_with_an_intensity_of_its_own_is_the_mean_of_no_more() -> None:
    for country, part in (("USA", "us-east-1a"), ("USA", "virginia"), ("SWE", "SE3"), ("Canada", "QC")):
        assert not find_part(country, part).mean_of_more
    assert find_region("USA-CAL-CISO").mean_of_more


def test_parts() -> None:
    assert parts_of("SWE") == ("SWE-SE1", "SWE-SE2", "SWE-SE3", "SWE-SE4")
    assert parts_of("DEU") == ()
    assert find_part("USA", "GA").code == "USA-georgia"
    assert find_part("us-east-1", "virginia").code == "USA-virginia"
    assert find_part("Sweden", None).code == "SWE"
    with pytest.raises(InputError, match="region: found 'ohio'; country names USA-virginia already"):
        find_part("us-east-1", "ohio")
    with pytest.raises(InputError, match="region: found 'Ile-de-France'; of France only the mean is known"):
        find_part("FRA", "Ile-de-France")
