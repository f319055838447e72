"""What is kept of a training run's routers: a small JSON of how uneven they were, layer by layer, in time.

Skew is rows of the busiest expert over the mean of all, of one layer in one step, of the tokens of rank 0.
Shapes: L layers, S steps, Q of `QUANTILES`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.core.documents import Strict, read_json
from moemodel.model.core.errors import InputError
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.routing import balancing_of
from moemodel.model.plan.spec import Plan
from moemodel.model.records.routing_statistics import Balancing
from moemodel.model.records.run import MANIFEST, RESULT, RoutingRecord, RunManifest, RunResult, routing_file

INITIAL_STEPS = 10  # the first ones
LAST_SHARE = 0.1  # of the steps, which are those of a trained router
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_EDGES = (1, 2, 5)  # times powers of ten, of windows


class Window(Strict):
    """Skews of some steps in a row.

    Attributes:
        begin, end: of the steps, counted from the first measured one; the end is not in it.
        quantiles_LQ: of each layer.
    """

    begin: int
    end: int
    quantiles_LQ: list[list[float]]


class KeptRouting(Strict):
    """What routers of one run did.

    Attributes:
        name: of the run.
        experts, top_k: of a layer, and of a token.
        hidden: width of the model.
        balancing: whether a loss or biases balanced, with `balance_loss` its coefficient, `bias_rate` their step.
        tokens: whose loads one skew is of.
        steps, warmup_steps: measured, and before them.
        learning_rate, seed, data, gpu, versions: as the run's manifest says.
        task_loss_first, task_loss_last: of the first measured step, and the mean of the last tenth.
        initial_LS, trained_LS: skews of the first ten steps, and of the last tenth; the latter none of a short run.
        windows: all steps, in a few parts that grow.
    """

    schema_version: Literal[1] = 1
    name: str
    experts: int
    top_k: int
    hidden: int
    balancing: Balancing
    balance_loss: float
    bias_rate: float
    tokens: int
    steps: int
    warmup_steps: int
    learning_rate: float
    seed: int
    data: dict[str, Any]
    gpu: str
    versions: dict[str, str]
    task_loss_first: float | None
    task_loss_last: float | None
    initial_LS: list[list[float]]
    trained_LS: list[list[float]]
    windows: list[Window]


def keep(folder: Path) -> KeptRouting:
    """Of a run's folder.

    Raises:
        InputError: the run is not done, or its model has no experts, or a file is damaged.
    """
    manifest, result = read_json(folder / MANIFEST, RunManifest), read_json(folder / RESULT, RunResult)
    if result.status != "done":
        raise InputError(f"{folder}: found a run that is {result.status}; allowed: done")
    plan = Plan.model_validate(yaml.safe_load(manifest.plan_yaml))
    architecture = architecture_of(plan)
    block, skews_LS = _experts(architecture, folder), skews(folder)
    steps = skews_LS.shape[1]
    first_trained = max(INITIAL_STEPS, math.floor((1 - LAST_SHARE) * steps + 1e-9))
    return KeptRouting(
        name=manifest.name,
        experts=block.experts,
        top_k=block.top_k,
        hidden=architecture.hidden,
        balancing=balancing_of(plan.routing),
        balance_loss=plan.routing.balance_loss,
        bias_rate=plan.routing.bias_rate,
        tokens=plan.global_batch // plan.parallel.dp * plan.sequence_length,
        steps=steps,
        warmup_steps=manifest.warmup_steps,
        learning_rate=manifest.learning_rate,
        seed=manifest.seed,
        data=manifest.data,
        gpu=manifest.gpu,
        versions=manifest.versions,
        task_loss_first=result.task_loss_first,
        task_loss_last=result.task_loss_last,
        initial_LS=_rounded(skews_LS[:, :INITIAL_STEPS]),
        trained_LS=_rounded(skews_LS[:, first_trained:]),
        windows=[_window(skews_LS, *edges) for edges in window_edges(steps)],
    )


def _experts(architecture: Architecture, folder: Path) -> Moe:
    """The block of experts that all layers with experts have.

    Raises:
        InputError: there is none.
    """
    blocks = [layer.feed_forward for layer in architecture.layers if isinstance(layer.feed_forward, Moe)]
    if not blocks:
        raise InputError(f"{folder}: {architecture.name} has no experts; allowed: runs of models with experts")
    return blocks[0]


def skews(folder: Path) -> NDArray[np.float64]:
    """Of a run's routers [L, S], layers and steps in order.

    Raises:
        InputError: the file is missing, or of a layer other steps than of another.
    """
    by_layer: dict[int, dict[int, float]] = defaultdict(dict)
    for record in _records(folder / routing_file(0)):
        by_layer[record.layer][record.step] = max(record.rows_E) * len(record.rows_E) / sum(record.rows_E)
    steps = {tuple(sorted(of_layer)) for of_layer in by_layer.values()}
    if len(steps) != 1 or steps != {tuple(range(len(next(iter(by_layer.values())))))}:
        raise InputError(f"{folder / routing_file(0)}: found layers of other steps; allowed: each step of each layer")
    return np.array([[of_layer[step] for step in sorted(of_layer)] for _, of_layer in sorted(by_layer.items())])


def _records(file: Path) -> Iterator[RoutingRecord]:
    if not file.exists():
        raise InputError(f"{file}: it is missing; allowed: a run whose routers were counted")
    for line in file.read_text(encoding="utf-8").splitlines():
        record = RoutingRecord.model_validate_json(line)
        if not sum(record.rows_E):
            raise InputError(f"{file}: found no rows in step {record.step}, layer {record.layer}; allowed: some")
        yield record


def window_edges(steps: int) -> list[tuple[int, int]]:
    """Begin and end of the windows: from 0, 10, 20, 50, 100 and so on, the last tenth by itself."""
    last = max(INITIAL_STEPS, math.floor((1 - LAST_SHARE) * steps + 1e-9))
    marks = [digit * 10**power for power in range(1, 7) for digit in _EDGES]
    edges = [0, *(mark for mark in marks if mark < min(last, steps)), *([last] if last < steps else []), steps]
    return list(pairwise(edges))


def _window(skews_LS: NDArray[np.float64], begin: int, end: int) -> Window:
    return Window(begin=begin, end=end, quantiles_LQ=_rounded(np.quantile(skews_LS[:, begin:end], QUANTILES, axis=1).T))


def _rounded(values: NDArray[np.float64]) -> list[list[float]]:
    return [[round(float(value), 4) for value in row] for row in values]


def write_kept(kept: KeptRouting, folder: Path) -> Path:
    """Into a folder that is made if missing; the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{kept.name.replace('architecture-', '').replace('.json', '')}.json"
    file.write_text(kept.model_dump_json() + "\n", encoding="utf-8")
    return file


def read_kept(folder: Path) -> list[KeptRouting]:
    """All of a folder, by name; none where there is no folder.

    Raises:
        InputError: one is damaged, with the place.
    """
    return [read_json(file, KeptRouting) for file in sorted(folder.glob("*.json"))]
