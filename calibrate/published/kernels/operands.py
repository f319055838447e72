"""What published readings of 16-bit products multiplied, told by their rates.

Nobody filled the weights (ai-dynamo/aiconfigurator, collector/vllm/collect_gemm.py): fresh memory holds zeros, or what
was left there, and zeros hardly draw power. Under a power limit one amount of work reads 1,234 TFLOP/s at 1,165 W and
1,861 at 775 W on a GB200. The slowest hundredth of large products are of random operands, as training's are: on an H200
within a per cent of what this project measured with such. So the energy of a reading is that of random operands times
the factor at which a large product settles as much above the slowest hundredth as the median reading does.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from moemodel.calibration.derive.large_product import LargeProduct
from moemodel.model.device.power import power_model
from moemodel.model.records.calibration import Calibration

_HELD = 0.95  # of the limit; assumed: from there a reading is held by it
_WIDE, _LARGE_FLOPS = 2048, 2e11  # assumed: sides and work of products that fill every GPU here, for 0.1 ms and more
_SLOWEST = 0.01  # of large products
_FEWEST = 100  # large products of which a hundredth is one
_LEAST_ENERGY, _FACTORS = 0.2, 33  # zeros took an H200 half of what random numbers do, a GB200 about a quarter


def operands_energy(calibration: Calibration, table: pd.DataFrame, limit_W: float) -> float:
    """Energy of products of what the median reading multiplied, over that of random numbers.

    Args:
        calibration: of the readings' GPU; its energies are of random numbers.
        table: columns m, n, k, latency_ms and power_W, a reading each.
        limit_W: power limit under which they were repeated.

    Returns:
        The factor, 0.2 to 1; 1 where fewer than 100 large products were held by the limit.
    """
    m, n, k = (table[name].to_numpy(dtype=np.float64) for name in ("m", "n", "k"))
    flops, held = 2 * m * n * k, table["power_W"].to_numpy(dtype=np.float64) > _HELD * limit_W
    large = held & (np.minimum(np.minimum(m, n), k) >= _WIDE) & (flops >= _LARGE_FLOPS)
    if large.sum() < _FEWEST:
        return 1.0
    rate = flops[large] / table["latency_ms"].to_numpy(dtype=np.float64)[large]
    return _energy_of(calibration, float(np.median(rate) / np.quantile(rate, _SLOWEST)), limit_W)


def _energy_of(calibration: Calibration, faster: float, limit_W: float) -> float:
    """The factor on energy at which a large product settles at so many times its rate."""
    power, product = power_model(calibration), LargeProduct.of(calibration)
    held_W = calibration.governor.parameters["sustained_share"].value * limit_W
    wanted = faster * product.sustained_flops_per_s(power, held_W)
    factors = np.geomspace(_LEAST_ENERGY, 1.0, _FACTORS)
    found = [product.times_energy(float(factor)).sustained_flops_per_s(power, held_W) for factor in factors]
    return float(np.interp(-wanted, -np.array(found), factors))
