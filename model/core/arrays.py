"""Arrays by the type of their elements; the axes of one stand in its name (`time_s_PK`: plans, clocks)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
