"""Whether a calibration is good for more than trying the commands."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moemodel.calibration.fit.operators import HeldOut
from moemodel.model.core.interval import Z
from moemodel.model.records.calibration import OperatorFit

# Log error at which the 90 % interval of a time reaches from half to twice the value: beyond it no two plans that
# anybody would compare can be told apart.
_USELESS_LOG_ERROR = math.log(2) / Z
# By choice: none of the 42 fits to the H100 profiles that ship is as bad, and more than half of those to a processor's.
_MOST_USELESS = 0.25


def trial_reason(fits: Sequence[OperatorFit], errors: Sequence[HeldOut]) -> str | None:
    """Why predictions are for trying the commands only, as a sentence for their notes; None where they are not.

    Args:
        fits: of every operator and pass.
        errors: of shapes that were held out of each.
    """
    useless = [fit for fit in fits if fit.log_error > _USELESS_LOG_ERROR]
    if len(useless) <= _MOST_USELESS * len(fits):
        return None
    worst = max(errors, key=lambda error: error.worst)
    return (
        f"For trying the commands only: the times of {len(useless)} of {len(fits)} operators and passes are known to "
        f"within a factor of two or worse; of shapes held out, the worst was {worst.worst:.0%} off "
        f"({worst.kind} {worst.direction})."
    )
