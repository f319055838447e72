"""Whose electricity CodeCarbon counts a run with: its plan's `site`. No torch here."""

from __future__ import annotations

from importlib.util import find_spec

from moemodel.model.core.errors import InputError, MissingExtraError
from moemodel.model.core.extras import how_to_install
from moemodel.model.plan.spec import Plan
from moemodel.model.results.regions import find_part
from moemodel.profiler.runs.orders import EmissionsPlace


def emissions_place(plan: Plan, wanted: bool | None) -> EmissionsPlace | None:
    """Where a plan's run is, for CodeCarbon; None where it is to be left out.

    Args:
        plan: of the run.
        wanted: whether CodeCarbon is to be there; None: if it is installed, and the plan names a country.

    Raises:
        MissingExtraError: it is wanted and not installed.
        InputError: it is wanted, and the plan names no country.
    """
    if wanted is False:
        return None
    if find_spec("codecarbon") is None:
        if wanted:
            raise MissingExtraError(f"codecarbon: true needs codecarbon; {how_to_install('codecarbon')}")
        return None
    try:
        place = find_part(plan.site.region, None)
    except InputError:
        if wanted:
            raise
        return None
    return EmissionsPlace(country=place.country, region=place.part, pue=plan.site.pue)
