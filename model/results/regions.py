"""Where a run takes place, by whatever a person or a program calls it: one table for prediction and for metering.

    DEU, DE, Germany, Deutschland     countries: ISO 3166-1, names in common use
    USA-virginia, US-VA, Virginia     states of the USA, provinces of Canada and China: names and ISO 3166-2
    SWE-SE3, SE3, SE-SE3              bidding zones of Sweden and Norway
    us-east-1, eastus2, us-central1   regions of AWS, Azure and Google Cloud; with a zone's letter, too
    US-CAL-CISO, DK-DK1               zone codes of Electricity Maps, where one state or country holds them
    world

An ISO code means a country before all else: CA is Canada, and Georgia is the country. Intensities are CodeCarbon's
(`presets/grids.json`), names and cloud regions in `presets/regions.json`, each with its source. What is unknown is not
guessed at by its letters, but for a slip in a long name or in a cloud's region: short codes that look alike lie far
apart.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from moemodel.model.core.documents import Strict, read_json
from moemodel.model.core.errors import InputError

_PRESETS = Path(__file__).parents[1] / "presets"
_PROVIDERS = {"aws": "AWS", "azure": "Azure", "gcp": "Google Cloud"}
_AVAILABILITY_ZONE = re.compile(r"(.*\d)-?[a-z]")  # us-east-1a, us-central1-f
_CODE = re.compile(r"(.+)[-_:/,][^-_:/,]*")  # and what stands before its last part
_LONG_NAME = 5  # letters, assumed: shorter names that are one slip apart are names of different places
_SLIP = 0.85  # likeness of a name with a slip in it to the name that is meant: one letter of five or more
_CLOUD_SLIP = 0.88  # the same of a cloud's region: two letters that changed places in nine or more
_LONG_CLOUD = 9
_MOST_NAMED = 8  # places in a hint, what a person reads
_ALLOWED = "ISO codes and names of countries, states, provinces, grid zones, regions of AWS, Azure and Google Cloud"


@dataclass(frozen=True, kw_only=True)
class Region:
    """A place whose grid is known.

    Attributes:
        code: of `list_regions`.
        name: for a reader.
        kgCO2e_per_kWh: yearly mean of what is generated there, `year`.
        table: where the intensity comes from.
        mean_of_more: it is the mean of more than the place that was asked for, of which nothing is known alone.
    """

    code: str
    name: str
    kgCO2e_per_kWh: float
    year: int
    table: str
    mean_of_more: bool = False

    @property
    def country(self) -> str:
        """ISO 3166-1 alpha-3; "world"."""
        return self.code.partition("-")[0]

    @property
    def part(self) -> str | None:
        """State, province or zone, as CodeCarbon calls it; None: the whole country."""
        name = self.code.partition("-")[2]
        return (name if name.isupper() else name.replace("-", " ")) or None


class _Grid(Strict):
    """One region. `table` names where the value comes from."""

    name: str
    kgCO2e_per_kWh: Annotated[float, Field(ge=0)]
    year: int
    table: str


class _Grids(Strict):
    """The file of intensities."""

    licence: str
    source: str
    tables: dict[str, str]
    regions: dict[str, _Grid]


Cloud = dict[str, tuple[str, str]]


class _Names(Strict):
    """The file of names.

    Attributes:
        sources: of each of the others.
        countries: alpha-3 -> alpha-2 and names, the first of which is for a reader.
        parts: code of a state, province or zone -> what else it is called.
        aws, azure, gcp: region -> code of the place that it lies in, and the nearest town or the state.
        zones: zone, or part of a country, that has no intensity of its own -> code of what holds it.
        spanning: zone -> codes of the states that it serves.
        fed: place without an intensity -> whose grid feeds it.
    """

    sources: dict[str, str]
    countries: dict[str, tuple[str, ...]]
    parts: dict[str, tuple[str, ...]]
    aws: Cloud
    azure: Cloud
    gcp: Cloud
    zones: dict[str, str]
    spanning: dict[str, tuple[str, ...]]
    fed: dict[str, str]

    def clouds(self) -> Iterator[tuple[str, Cloud]]:
        """By provider."""
        return ((provider, getattr(self, provider)) for provider in _PROVIDERS)


def list_regions() -> tuple[str, ...]:
    """Regions whose grid is known: "world", ISO 3166-1 alpha-3 codes, and `USA-…`, `CAN-…`, `CHN-…`, `SWE-…`, `NOR-…`
    for states, provinces and zones.
    """
    return tuple(_grids().regions)


def parts_of(country: str) -> tuple[str, ...]:
    """Codes of the states, provinces or zones of a country, alpha-3; none where only its mean is known."""
    return tuple(code for code in list_regions() if code.startswith(f"{country}-"))


def find_region(named: str, *, key: str = "region") -> Region:
    """The place that is meant.

    Args:
        named: see the head of this file; in any case, with spaces or hyphens, with accents or without.
        key: what an error calls the place where it stands.

    Raises:
        InputError: no such place, or none of which an intensity is known; with what is near it in truth.
    """
    place = _find(named)
    if place is None:
        raise InputError(
            f"{key}: found {named!r}; allowed: one of {len(list_regions())} names or what else they are called "
            f"({_ALLOWED}){_hint(named)}"
        )
    return place.region()


def find_part(country: str, named: str | None, *, key: str = "region") -> Region:
    """The place that is meant by a country and, with a name, a part of it.

    Args:
        country: as `find_region` takes it.
        named: state, province, zone or cloud region; None: the whole country.
        key: what an error calls the part.

    Raises:
        InputError: no such country, or no such part of it; `world`. A part of which nothing is known alone is answered
            by what holds it, as `find_region` answers it (`mean_of_more`).
    """
    whole = find_region(country, key="country")
    if whole.code == "world":
        raise InputError("country: found 'world'; allowed: a country, of which CodeCarbon takes the grid")
    if named is None:
        return whole
    place = _find(f"{whole.country}-{named}") or _find(named)
    code = None if place is None else place.code
    known = parts_of(whole.country)
    if whole.part is not None and code != whole.code:
        raise InputError(f"{key}: found {named!r}; country names {whole.code} already: leave {key} out")
    if place is None or place.code.partition("-")[0] != whole.country:
        elsewhere = "" if code is None else f"; {named} is in {_grids().regions[code].name} ({code})"
        allowed = ", ".join(code.partition("-")[2] for code in known)
        rest = f"allowed: {allowed}" if known else f"of {whole.name} only the mean is known: leave {key} out"
        raise InputError(f"{key}: found {named!r}; {rest}{elsewhere}")
    return place.region()


# ---- looking up -----------------------------------------------------------------------------------------------------


@cache
def _grids() -> _Grids:
    return read_json(_PRESETS / "grids.json", _Grids)


@cache
def _names() -> _Names:
    return read_json(_PRESETS / "regions.json", _Names)


def _folded(name: str) -> str:
    """A name without case, accents and punctuation."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().casefold()
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\bst\.? ", "saint ", plain)).strip("-")


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A place with a known grid: its code, and whether it is more than what was named."""

    code: str
    is_larger: bool = False

    def region(self) -> Region:
        """All that is known of it."""
        grid = _grids().regions[self.code]
        return Region(
            code=self.code,
            name=grid.name,
            kgCO2e_per_kWh=grid.kgCO2e_per_kWh,
            year=grid.year,
            table=_grids().tables[grid.table],
            mean_of_more=self.is_larger,
        )


def _find(named: str) -> _Place | None:
    """A place with a known grid; None: unknown."""
    folded = _folded(named)
    place = _named(folded) or _in_a_cloud(folded)
    if place is None and "," in named:  # Virginia, US
        part, _, whole = named.rpartition(",")
        place = _in_a_country(_folded(f"{whole}-{part}"))
    return place or _in_a_country(folded)


def _named(folded: str) -> _Place | None:
    """A place by its own name, or by that of a zone of it."""
    code = _places().get(folded)
    return None if code is None else _Place(code=code, is_larger=folded in _zones())


def _in_a_cloud(folded: str) -> _Place | None:
    """The place of a cloud's region, or of an availability zone of one."""
    code = _clouds().get(folded) or _azure().get(folded.replace("-", ""))
    if code is None and (zone := _AVAILABILITY_ZONE.fullmatch(folded)):
        code = _clouds().get(zone[1])
    return None if code is None else _Place(code=code)


def _in_a_country(folded: str) -> _Place | None:
    """A part behind any name of its country: `us-virginia`, `sweden-se3`, `canada-qc`."""
    for place, _ in enumerate(folded):
        if folded[place] == "-" and (whole := _places().get(folded[:place])) and whole in _names().countries:
            rest = folded[place + 1 :]
            alpha2 = _folded(_names().countries[whole][0])
            for part in (_named(f"{alpha2}-{rest}"), _named(rest), _in_a_cloud(rest)):
                if part is not None and part.code.startswith(f"{whole}-"):
                    return part
    return None


@cache
def _places() -> dict[str, str]:
    """What every place with a known grid is called, folded -> code; countries before their parts of the same name."""
    names, regions = _names(), _grids().regions
    found = {_folded(zone): code for zone, code in names.zones.items()}
    found |= {_folded(name): code for code, called in names.parts.items() for name in called}
    found |= {_folded(grid.name): code for code, grid in regions.items()}
    found |= {_folded(code): code for code in regions}
    found |= {_folded(name): code for code, called in names.countries.items() if code in regions for name in called}
    return found


@cache
def _clouds() -> dict[str, str]:
    """Region of a cloud, with its provider before it or not -> code."""
    found: dict[str, str] = {}
    for provider, cloud in _names().clouds():
        found |= {region: code for region, (code, _) in cloud.items()}
        found |= {f"{provider}-{region}": code for region, (code, _) in cloud.items()}
    return found


@cache
def _azure() -> dict[str, str]:
    """Azure's display names are its regions with spaces: East US 2."""
    return {f"{before}{region}": code for region, (code, _) in _names().azure.items() for before in ("", "azure")}


@cache
def _zones() -> frozenset[str]:
    """Names, folded, of what has no intensity of its own: a state's zone, a country's part."""
    return frozenset(map(_folded, _names().zones))


# ---- hints ----------------------------------------------------------------------------------------------------------


def _hint(named: str) -> str:
    """What is near a place in truth: the states of its zone, the region of its town, the country before its name."""
    folded, names = _folded(named), _names()
    if not folded:
        return ""
    for zone, codes in names.spanning.items():
        if folded == _folded(zone):
            return f"; {zone} serves several: name one of {', '.join(codes)}"
    for code, called in names.countries.items():
        if folded in {_folded(code), *map(_folded, called)}:  # a place without an intensity
            feeder = names.fed.get(code)
            other = f"; most of its electricity is of {feeder}" if feeder else ""
            return f"; of {called[1]} ({code}) no intensity is known{other}"
    series = [region for _, cloud in names.clouds() for region in cloud if _series(region) == _series(folded)]
    if series and folded[-1].isdigit():
        return f"; there are {', '.join(series)}"
    near = _near(folded)
    return f"; did you mean {' or '.join(near[:_MOST_NAMED])}?" if near else _of_its_country(named)


def _series(region: str) -> str:
    """A cloud's region without its number."""
    return region.rstrip("0123456789")


def _near(folded: str) -> list[str]:
    """Places that a name may mean: by its town, by its abbreviation, or with a slip in it; last a cloud's regions."""
    names, regions = _names(), _grids().regions

    def shown(code: str) -> str:
        return f"{code!r} ({regions[code].name})"

    towns = {code: None for _, cloud in names.clouds() for code, town in cloud.values() if _folded(town) == folded}
    if towns:
        return [shown(code) for code in towns]
    short = [code for code, called in names.parts.items() if _folded(called[0]).partition("-")[2] == folded]
    if short:
        return [shown(code) for code in short]
    if len(folded) < _LONG_NAME:
        return []
    long = [name for name in _places() if len(name) >= _LONG_NAME and not any(c.isdigit() for c in name)]
    slips = dict.fromkeys(_places()[name] for name in difflib.get_close_matches(folded, long, n=3, cutoff=_SLIP))
    if slips:
        return [shown(code) for code in slips]
    clouds = {region: code for _, cloud in names.clouds() for region, (code, _) in cloud.items()}
    near = difflib.get_close_matches(folded, clouds, n=3, cutoff=_CLOUD_SLIP) if len(folded) >= _LONG_CLOUD else []
    return [f"{region!r} ({regions[clouds[region]].name})" for region in near if _numbered(region) == _numbered(folded)]


def _numbered(region: str) -> str:
    """A cloud's region's number: another one is another place."""
    return region[len(_series(region)) :]


def _of_its_country(named: str) -> str:
    """What is known of the country that a code begins with: DE-BE; words apart are of a name of its own."""
    head = named
    while cut := _CODE.fullmatch(head):
        head = cut[1]
        code = _places().get(_folded(head))
        if code is not None and code in _names().countries:
            known = parts_of(code)
            if not known:
                return f"; of {_grids().regions[code].name} only the mean is known: {code!r}"
            more = ", …" if len(known) > _MOST_NAMED else ""
            return f"; of {_grids().regions[code].name} there are {', '.join(known[:_MOST_NAMED])}{more}"
    return ""
