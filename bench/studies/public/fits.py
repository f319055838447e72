"""Groups of public runs predicted with constants that were fitted on the other groups alone.

Constants are properties of hardware or of a framework's host code, never of a group, model or row:

    products                            rate of products over what is calibrated, one a generation of GPU
    attention, elementwise              the same of those, which are the framework's: one a generation and framework
    internode                           bandwidth between nodes over the data sheet's, one a network
    host                                time that a framework's host code takes over what is calibrated, one a
                                        generation, which stands for the processors beside it, and framework

Logarithms of step times are taken as linear in logarithms of constants about what ships; a robust least squares with a
weak prior there finds them, every source with the same weight however many runs it has. The group itself is predicted
in full at what is found. Groups of one source are left out together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moemodel.calibration.least_squares import minimise
from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.arrays import FloatArray
from moemodel.model.network.cluster import read_internode
from moemodel.model.plan.batch import PlanBatch, joined
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration
from moemodel.model.step.system import system_of
from studies.public.answers import alike
from studies.public.figures import Group, nearest_s
from studies.runs import rates_changed

# What groups are of one source, by how their names begin: they say the same runs again, or are of the same tables
_SOURCES: dict[str, str] = {
    **dict.fromkeys(("g1-", "cases"), "Selene, and single runs of all"),
    **dict.fromkeys(("g5-", "foundry"), "llm-foundry"),
    **dict.fromkeys(("mlperf",), "MLPerf Training"),
    **dict.fromkeys(("g8-", "mem-bridge", "bridge"), "Megatron-LM and Megatron-Bridge"),
}
_OF_THE_HOST = ("golden",)  # small models, whose times are mostly the host's and say nothing of rates
_KERNELS = ("attention", "elementwise")
_BOUND = np.log(4.0)  # assumed: no constant is more than four times off
_STEP = -1e-2  # of a logarithm, for differences; slower, since rates that exceed a peak are cut off
_PRIOR = 0.2  # assumed: log error of one row that weighs as much as a constant moved by a factor e
_SCALE = 0.05  # assumed: log error beyond which a row counts less
_ROWS = 20.0  # that every source counts as


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Runs that can be predicted together: [P]."""

    architecture: Architecture
    plans: PlanBatch
    plan: Plan
    calibration: Calibration
    rows: list[int]

    @property
    def names(self) -> dict[str, str]:
        """Constants that its times may depend on: kind -> name."""
        chip = generation(self.plan.cluster.gpu)
        backend = self.plan.backend
        names = {"products": f"products {chip}", "host": f"host {chip} {backend}"}
        names |= {kind: f"{kind} {chip} {backend}" for kind in _KERNELS}
        named = self.plan.cluster.internode
        network = named if isinstance(named, str) else f"of {named.bandwidth_GBps:g} GB/s, {named.latency_us:g} us"
        return names | ({"internode": f"internode {network}"} if self.plan.cluster.gpus > 8 else {})

    def time_s(self, constants: Mapping[str, float]) -> FloatArray:
        """Step times at some constants, by kind."""
        link = read_internode(self.plan.cluster.internode).link
        wide = link.model_copy(update={"bandwidth_GBps": link.bandwidth_GBps * constants.get("internode", 1.0)})
        cluster = self.plan.cluster.model_copy(update={"internode": wide})
        system = system_of(
            self.plan.model_copy(update={"cluster": cluster}), rates_changed(self.calibration, constants)
        )
        return predict(self.architecture, self.plans, system).step_time_s


def generation(gpu: str) -> str:
    """Of a GPU: Hopper's all share their SMs, Blackwell's likewise."""
    return {"a": "A100", "h": "Hopper", "g": "Hopper"}.get(gpu[:1], "Blackwell") if gpu[:2] != "gb" else "Blackwell"


def _batches(plans: Sequence[Plan]) -> list[_Batch]:
    together: dict[str, list[int]] = {}
    for row, plan in enumerate(plans):
        together.setdefault(alike(plan), []).append(row)
    return [
        _Batch(
            architecture=architecture_of(plans[rows[0]]),
            plans=joined([plans[row] for row in rows]),
            plan=plans[rows[0]],
            calibration=load_calibration(None, plans[rows[0]].cluster.gpu),
            rows=rows,
        )
        for rows in together.values()
    ]


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A group at constants of the others: predicted over published, [P], and the constants that it depends on."""

    ratio: FloatArray
    constants: dict[str, float]

    @property
    def figures(self) -> dict[str, float]:
        """What `--json` adds to a group's figures."""
        off = self.ratio - 1
        return {"mape_left_out": float(np.abs(off).mean()), "signed_left_out": float(off.mean())}


def left_out(groups: Mapping[str, Group]) -> dict[str, LeftOut]:
    """Each group that has times, at constants fitted without its source."""
    rows = list(_timed(groups))
    batches = _batches([plan for _, plan, _ in rows])
    published_s = np.array([time_s for _, _, time_s in rows])
    group = np.array([name for name, _, _ in rows])
    source = np.array([source_of(name) for name in group])
    names = sorted({name for batch in batches for name in batch.names.values()})
    log0, slopes = _linear(batches, names, len(rows))
    of_host = np.array([name.startswith("host") for name in names])
    slopes[np.ix_(np.isin(group, _OF_THE_HOST), ~of_host)] = 0.0
    found = {}
    for name in dict.fromkeys(group.tolist()):
        others = source != source_of(name)
        others &= group != "cases"  # they say runs of other groups again
        x = _fit((log0 - np.log(published_s))[others], slopes[others], source[others])
        constants = dict(zip(names, np.exp(x).tolist(), strict=True))
        here = np.flatnonzero(group == name)
        own = _batches([rows[row][1] for row in here])
        ratio = _times(own, constants, len(here)) / published_s[here]
        used = {constant for batch in own for constant in batch.names.values()}
        found[name] = LeftOut(ratio=ratio, constants={key: constants[key] for key in sorted(used)})
    return found


def source_of(group: str) -> str:
    """Whose runs a group's are."""
    return next((source for start, source in _SOURCES.items() if group.startswith(start)), group)


def _timed(groups: Mapping[str, Group]) -> Iterator[tuple[str, Plan, float]]:
    for name, group in groups.items():
        for run, answer in group:
            published_s = nearest_s(run, answer)
            if published_s is not None and answer.plan is not None:
                yield name, answer.plan, published_s


def _times(batches: Sequence[_Batch], constants: Mapping[str, float], rows: int) -> FloatArray:
    time_s = np.zeros(rows)
    for batch in batches:
        time_s[batch.rows] = batch.time_s({kind: constants[name] for kind, name in batch.names.items()})
    return time_s


def _linear(batches: Sequence[_Batch], names: Sequence[str], rows: int) -> tuple[FloatArray, FloatArray]:
    """Logarithms of step times as shipped, [N], and their slopes over logarithms of constants, [N, K]."""
    log0, slopes = np.zeros(rows), np.zeros((rows, len(names)))
    for batch in batches:
        log0[batch.rows] = np.log(batch.time_s({}))
        for kind, name in batch.names.items():
            # more host time is slower, and so are lower rates: steps go where something may change
            step = -_STEP if kind == "host" else _STEP
            moved = np.log(batch.time_s({kind: float(np.exp(step))}))
            slopes[batch.rows, names.index(name)] = (moved - log0[batch.rows]) / step
    return log0, slopes


def _fit(off: FloatArray, slopes: FloatArray, source: np.ndarray) -> FloatArray:
    """Logarithms of constants that leave least of some errors. [K]"""
    counts = {name: int((source == name).sum()) for name in set(source.tolist())}
    weight = np.sqrt([_ROWS / counts[name] for name in source.tolist()])
    prior = _PRIOR * np.eye(slopes.shape[1])
    return minimise(
        lambda x: np.append(weight * (off + slopes @ x), prior @ x),
        np.zeros(slopes.shape[1]),
        low=-_BOUND,
        high=_BOUND,
        loss="soft_l1",
        scale=_SCALE,
        slopes=lambda _: np.vstack([weight[:, None] * slopes, prior]),
    )
