"""How many parameters the adapters of a whole model have."""

from __future__ import annotations

import math

import numpy as np

from moemodel.model.architecture.spec import Architecture
from moemodel.model.frameworks.base import Framework, Precision
from moemodel.model.layers.adapters import adapter_parameters
from moemodel.model.layers.base import MicroBatch
from moemodel.model.layers.layer import layer_blocks
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.schedule.pipeline_layout import distinct_layers

_SIZES = ("dp", "tp", "pp", "ep", "cp", "virtual_stages", "micro_batch", "global_batch", "seq", "skew")


def model_adapters(architecture: Architecture, framework: Framework, precision: Precision) -> float | None:
    """Of all layers, where a plan has adapters, as the framework joins products; else None."""
    if framework.lora is None:
        return None
    off = dict.fromkeys(("zero_stage", "sequence_parallel", "recompute", "schedule"), 0)
    plans = PlanBatch.of(**dict.fromkeys(_SIZES, 1), **off, clock_Hz=math.inf, power_cap_W=math.inf)
    batch = MicroBatch.of(plans, framework, precision)
    counts = np.array([architecture.layers.count(kind) for kind in distinct_layers(architecture)])
    each = [
        adapter_parameters(layer_blocks(kind, architecture.hidden).operators(batch), batch)[0]
        for kind in distinct_layers(architecture)
    ]
    return float(counts @ np.array(each))
