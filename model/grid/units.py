"""Units of a series: of carbon intensity or of a price, and what makes kilograms, or money, per kWh of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from moemodel.model.core.errors import InputError
from moemodel.model.core.shown import shown

Kind = Literal["carbon", "price"]

# of an avoirdupois pound, by definition (international yard and pound agreement, 1959)
_KG_PER_LB = 0.45359237
# kg per kWh of one of each; spelled without the gas, which is left out on the way here
_CARBON = {
    "g/kwh": 1e-3,
    "kg/kwh": 1.0,
    "kg/mwh": 1e-3,
    "t/mwh": 1.0,
    "lb/mwh": _KG_PER_LB * 1e-3,
    "lbs/mwh": _KG_PER_LB * 1e-3,
}
_GAS = re.compile(r"(?<=[a-z])[ _]?co2[ _]?(eq|e)?(?=[ _/]|$)")
_PRICE = re.compile(r"([A-Za-z]{3})/([kKmM][wW][hH])")
_IN_A_NAME = re.compile(r"[\w₂]+(?: ?co[2₂](?:eq|e)?)?/[kKmM][wW][hH]", re.IGNORECASE)
ALLOWED = "gCO2eq/kWh, kgCO2eq/kWh, kgCO2eq/MWh, tCO2eq/MWh, lbs/MWh, or a currency per kWh or MWh such as EUR/MWh"


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What a series is in.

    Attributes:
        kind: of what it is.
        factor: makes kg, or money, per kWh of it.
        said: as it was written.
        currency: of a price, in capitals; None of carbon.
    """

    kind: Kind
    factor: float
    said: str
    currency: str | None = None

    @property
    def made(self) -> str:
        """What it is converted to."""
        return "kgCO2eq/kWh" if self.currency is None else f"{self.currency}/kWh"


def unit_of(text: str, *, key: str = "unit") -> Unit:
    """A unit by its name.

    Raises:
        InputError: no unit of carbon intensity or price.
    """
    found = _known(text.strip())
    if found is None:
        raise InputError(f"{key}: found {shown(text)}; allowed: {ALLOWED}")
    return found


def unit_in(name: str) -> Unit | None:
    """The unit that stands in a column's name; None: none does."""
    found = (_known(match[0]) for match in _IN_A_NAME.finditer(name))
    return next((unit for unit in found if unit is not None), None)


def _known(text: str) -> Unit | None:
    plain = text.replace("₂", "2").casefold().replace("_per_", "/").replace(" per ", "/")
    plain = _GAS.sub("", plain).replace(" ", "").replace("_", "")
    if plain in _CARBON:
        return Unit(kind="carbon", factor=_CARBON[plain], said=text)
    price = _PRICE.fullmatch(text.strip())
    if price is None:
        return None
    currency, per = price[1].upper(), price[2].casefold()
    return Unit(kind="price", factor=1.0 if per == "kwh" else 1e-3, said=text, currency=currency)
