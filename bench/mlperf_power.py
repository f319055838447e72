"""Power and energy of MLPerf Training's metered runs, predicted before anybody here compared them.

python bench/mlperf_power.py --predict      write what is predicted of every system, once
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from moemodel.api import predict
from moemodel.model.core.files import write_atomic
from moemodel.model.plan.spec import Plan
from studies.public.mlperf_power import GPUS_OF_NODE, plans

_MEASURED = Path(__file__).parent / "measured"
_PREDICTED = _MEASURED / "mlperf-power-predicted.json"


def forecast(plan: Plan) -> dict[str, Any]:
    """What is predicted of a plan: of a step, and of a node in the mean."""
    told = predict(plan, even_if_it_does_not_fit=True)
    nodes = plan.cluster.gpus / GPUS_OF_NODE
    it_J = told.energy.it_J
    return {
        "step_time_s": told.step_time_s.value,
        "step_time_interval_s": [told.step_time_s.low, told.step_time_s.high],
        "gpu_power_W": told.power_W.value,
        "gpu_energy_J": told.energy.gpu_J.value,
        "host_power_W": plan.site.host_power_W,
        "it_energy_J": it_J.value,
        "it_energy_interval_J": [it_J.low, it_J.high],
        "node_power_W": it_J.value / told.step_time_s.value / nodes,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predict", action="store_true", help="write predictions, where there are none")
    options = parser.parse_args()
    if options.predict and not _PREDICTED.exists():
        told = {name: forecast(plan) for name, plan in plans().items()}
        write_atomic(_PREDICTED, json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
