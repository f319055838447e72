"""What placing experts by their loads does to a plan: time, energy, memory and all-to-all before and after.

Loads come from a run (`routing-rankN.jsonl`), layer by layer and step by step; those of all ranks are added up. The
experts of a layer are placed by the mean of the first half of the steps. Both placements, this one and the frameworks'
own (experts in order), are predicted by what their ranks had to do in the second half, so that what a placement was
chosen by is not what it is judged by. Without records loads are drawn: log-normal, as uneven as the plan's skew.

A block then carries the skew of its experts and of its ranks (`layers.routing.PlacedMoe`) into the ordinary prediction:
a rank's experts with copies take memory and their share of the exchange of gradients over data-parallel ranks. Beside
that the copies of an expert add up their gradients among themselves, once a step, behind nothing: of the rank with most
of them, over ranks as far apart as the group of expert parallelism reaches; it counts at the mean power of the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

import numpy as np

from moemodel.model.architecture.spec import Architecture, Layer, Moe
from moemodel.model.core.arrays import FloatArray
from moemodel.model.core.documents import parse_data, read_text
from moemodel.model.core.errors import InputError
from moemodel.model.core.json_text import json_data
from moemodel.model.layers.mlp import mlp_parameters
from moemodel.model.layers.routing import PlacedMoe
from moemodel.model.network.collectives import Collective
from moemodel.model.plan.batch import PlanBatch, batch_of
from moemodel.model.plan.checks import architecture_of, check_architecture
from moemodel.model.plan.expert_placement import Placement, check_copies, exact, greedy, in_order
from moemodel.model.plan.mesh import ParallelMesh
from moemodel.model.plan.skew import experts_of, forecast
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration
from moemodel.model.records.routing_statistics import prior
from moemodel.model.records.run import RoutingRecord
from moemodel.model.results.routing_cost import all_to_all_times_s
from moemodel.model.step.communication_groups import Groups
from moemodel.model.step.system import System, system_of

_RECORDS = "routing-rank*.jsonl"
_SEED = 1  # of the order in which drawn loads lie


@dataclass(frozen=True, kw_only=True)
class PlacedStep:
    """A step with experts placed in one way.

    Attributes:
        step_time_s, energy_J: of it, of all GPUs.
        memory_B: peak of the fullest GPU; `fits` tells whether there is as much.
        all_to_all_s: of it, of the mean GPU, hidden or not.
        copies_s: of it, for gradients of copies.
        rank_skew: rows of the busiest rank over the mean, the mean over layers.
    """

    step_time_s: float
    energy_J: float
    memory_B: float
    fits: bool
    all_to_all_s: float
    copies_s: float
    rank_skew: float


@dataclass(frozen=True, kw_only=True)
class PlacedLayer:
    """One layer's placement, and what its busiest rank has over the mean before and after.

    Attributes:
        layer: of the model, an encoder's first.
        ranks: experts of each expert-parallel rank.
        rank_skew_before, rank_skew_after: on steps that it was not chosen by, where there are several.
        gap: of the busiest rank over what no placement gets below; None: not asked for.
    """

    layer: int
    ranks: tuple[tuple[int, ...], ...]
    rank_skew_before: float
    rank_skew_after: float
    gap: float | None


@dataclass(frozen=True, kw_only=True)
class PlacementResult:
    """A plan with its experts in order, and placed.

    Attributes:
        plan: its name.
        copies: of experts of a layer, beyond one each.
        method: greedy or exact.
        before, after: a step.
        layers: by layer.
        notes: what to know.
    """

    plan: str
    copies: int
    method: str
    before: PlacedStep
    after: PlacedStep
    layers: tuple[PlacedLayer, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Units in the names."""
        return asdict(self)


Loads = Mapping[int, FloatArray]  # of each layer with experts, [steps, E]


def place(
    plan: Plan,
    calibration: Calibration,
    loads: Path | None = None,
    *,
    copies: int = 0,
    optimal: bool = False,
    seconds: float = 10.0,
    progress: Callable[[int, int, str], None] | None = None,
) -> PlacementResult:
    """Place a plan's experts by loads, and predict it before and after.

    Args:
        plan: with ep of 2 at least.
        calibration: of its GPU.
        loads: a run's `routing-rankN.jsonl`, or the folder of the run; None: drawn, as uneven as the plan says.
        copies: of experts, in each layer, beyond one of each.
        optimal: by the integer programme, for so many `seconds` over all layers.
        progress: called with layers done, how many there are, and which is next.

    Raises:
        InputError: no experts, one rank, copies that no placement holds, or records that are of another model.
        InfeasiblePlanError: degrees that don't divide the model.
        CalibrationError: the calibration is of another GPU, or lacks an operator.
        MissingExtraError: scipy is not installed, which `optimal` needs.
    """
    architecture = architecture_of(plan)
    check_architecture(plan, architecture)
    blocks = _blocks(plan, architecture)
    for moe in blocks.values():
        check_copies(moe.experts, plan.parallel.ep, copies)
    machine = system_of(plan, calibration)
    known, notes = _loads(plan, architecture, blocks, loads)
    known = {index: _within_capacity(rows, blocks[index], machine) for index, rows in known.items()}
    layers, after = [], {}
    each = seconds / len(known) if optimal else None
    for done, (index, rows) in enumerate(known.items()):
        if progress is not None:
            progress(done, len(known), f"layer {index}")
        layer, placed = _placed_layer(index, rows, plan.parallel.ep, copies, each)
        layers.append(layer)
        after[index] = placed
    before = {index: in_order(moe.experts, plan.parallel.ep) for index, moe in blocks.items()}
    judged = {index: _halves(rows)[1] for index, rows in known.items()}
    return PlacementResult(
        plan=plan.name,
        copies=copies,
        method="exact" if optimal else "greedy",
        before=_step(plan, architecture, machine, before, judged),
        after=_step(plan, architecture, machine, after, judged),
        layers=tuple(layers),
        notes=(*notes, *_notes(blocks, machine)),
    )


def _blocks(plan: Plan, architecture: Architecture) -> dict[int, Moe]:
    """Of each layer with experts."""
    found = {i: layer.feed_forward for i, layer in enumerate(architecture.layers) if _has_experts(layer)}
    blocks = {index: block for index, block in found.items() if isinstance(block, Moe)}
    if not blocks:
        raise InputError(f"architecture: found {architecture.name}, which has no experts; allowed: one that has")
    if plan.parallel.ep == 1:
        raise InputError("parallel.ep: found 1, a rank that holds all experts; allowed: 2 or more")
    return blocks


def _has_experts(layer: Layer) -> bool:
    return isinstance(layer.feed_forward, Moe)


def _within_capacity(rows: FloatArray, moe: Moe, machine: System) -> FloatArray:
    """Rows that are kept where experts take no more than a capacity."""
    factor = moe.capacity_factor
    if factor is None or machine.framework.moe.padding != "never":
        return rows
    return np.asarray(np.minimum(rows, factor * rows.mean(axis=-1, keepdims=True)))


def _placed_layer(
    index: int, rows: FloatArray, ranks: int, copies: int, seconds: float | None
) -> tuple[PlacedLayer, Placement]:
    chosen_by, judged = _halves(rows)
    mean = chosen_by.mean(axis=0)
    gap = None
    if seconds is not None:
        found = exact(mean, ranks, copies, seconds=seconds)
        placement, gap = found.placement, found.gap
    else:
        placement = greedy(mean, ranks, copies)
    layer = PlacedLayer(
        layer=index,
        ranks=placement.ranks,
        rank_skew_before=in_order(rows.shape[1], ranks).rank_skew(judged),
        rank_skew_after=placement.rank_skew(judged),
        gap=gap,
    )
    return layer, placement


def _halves(rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Steps that a placement is chosen by, and those that it is judged by; one step is both."""
    middle = len(rows) // 2
    return (rows[:middle], rows[middle:]) if middle else (rows, rows)


# ---- predicted ------------------------------------------------------------------------------------------------------


def _step(
    plan: Plan,
    architecture: Architecture,
    machine: System,
    placements: Mapping[int, Placement],
    loads: Loads,
) -> PlacedStep:
    """With each layer's experts where a placement puts them."""
    placed = _with_experts(architecture, lambda index, moe: _placed(moe, placements[index], loads[index]))
    batch = batch_of(plan)
    found = predict(placed, batch, machine)
    copies_s = _copies_s(plan, architecture, machine, batch, placements)
    step_s, power_W = float(found.step_time_s[0]), float(found.power_W[0])
    return PlacedStep(
        step_time_s=step_s + copies_s,
        energy_J=float(found.energy_J[0]) + plan.cluster.gpus * power_W * copies_s,
        memory_B=float(found.memory_B[0]),
        fits=bool(found.fits[0]),
        all_to_all_s=float(all_to_all_times_s(placed, machine, batch)[0]),
        copies_s=copies_s,
        rank_skew=fmean(placements[index].rank_skew(rows) for index, rows in loads.items()),
    )


def _placed(moe: Moe, placement: Placement, loads: FloatArray) -> PlacedMoe:
    own = {f.name: getattr(moe, f.name) for f in fields(Moe)}
    return PlacedMoe(
        **own,
        slots=placement.slots,
        expert_skew=placement.expert_skew(loads),
        rank_skew=placement.rank_skew(loads),
    )


def _with_experts(architecture: Architecture, change: Callable[[int, Moe], Moe]) -> Architecture:
    """With every block of experts changed, by its layer's number."""

    def changed(layers: Sequence[Layer], first: int) -> tuple[Layer, ...]:
        return tuple(
            replace(layer, feed_forward=change(first + i, layer.feed_forward))
            if isinstance(layer.feed_forward, Moe)
            else layer
            for i, layer in enumerate(layers)
        )

    encoder = changed(architecture.encoder, 0)
    return replace(architecture, encoder=encoder, decoder=changed(architecture.decoder, len(encoder)))


def _copies_s(
    plan: Plan,
    architecture: Architecture,
    machine: System,
    batch: PlanBatch,
    placements: Mapping[int, Placement],
) -> float:
    """For gradients of copies, of the stage with the mean share of the layers."""
    mesh = ParallelMesh.of(plan.parallel, shards_experts=machine.framework.shards_experts)
    groups = Groups(batch, machine.network, shards_experts=machine.framework.shards_experts)
    wire_B, layers, total = machine.framework.wire_B(machine.precision), architecture.layers, 0.0
    for index, placement in placements.items():
        block = layers[index].feed_forward
        assert isinstance(block, Moe)
        size_B = wire_B * mlp_parameters(block, architecture.hidden) / mesh.etp
        total += max(_rank_copies_s(rank, placement, size_B, mesh, groups) for rank in placement.ranks)
    return total / plan.parallel.pp


def _rank_copies_s(
    rank: Iterable[int], placement: Placement, size_B: float, mesh: ParallelMesh[int], groups: Groups
) -> float:
    """For those experts of a rank that others hold too."""
    total = 0.0
    for copies in (placement.copies[expert] for expert in rank):
        if copies > 1:
            ranks, stride = np.array([copies]), np.array([mesh.etp * (mesh.ep // copies)])
            group = (ranks, groups.network.route(ranks, stride))
            total += float(groups.time_s(Collective.ALL_REDUCE, size_B, group)[0])
    return total


# ---- loads ----------------------------------------------------------------------------------------------------------


def _loads(
    plan: Plan, architecture: Architecture, blocks: Mapping[int, Moe], path: Path | None
) -> tuple[Loads, list[str]]:
    """Of each layer, and what to know of them.

    Raises:
        InputError: as `place`.
    """
    if path is None:
        return _drawn(plan, architecture, blocks)
    known = read_loads(path)
    for index, moe in blocks.items():
        if index not in known:
            raise InputError(f"{path}: found loads of layers {_listed(known)}; allowed: of layers {_listed(blocks)}")
        if known[index].shape[1] != moe.experts:
            raise InputError(
                f"{path}: found loads of {known[index].shape[1]} experts in layer {index}; allowed: of the "
                f"{moe.experts} of {architecture.name}"
            )
    steps = min(len(rows) for rows in known.values())
    notes = [f"Loads of {steps} steps of {path.name}: placed by the first half, judged by the second."]
    if steps == 1:
        notes = [f"Loads of one step of {path.name}: the placement is judged by what it was chosen by."]
    return {index: known[index] for index in blocks}, notes


def _listed(layers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(layers))) or "none"


def read_loads(path: Path) -> dict[int, FloatArray]:
    """Rows of every expert by layer, [steps, E], of a run's records: a file of one rank, or the run's folder, whose
    ranks are added up. Steps in which a layer routed nothing are left out.

    Raises:
        InputError: nothing there, or malformed, with the place.
    """
    files = sorted(path.glob(_RECORDS)) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: found no {_RECORDS}; allowed: a run's folder, or one such file")
    rows, seen = _of_file(files[0]), files[0].name
    for file in files[1:]:
        more = _of_file(file)
        if {key: len(own) for key, own in more.items()} != {key: len(own) for key, own in rows.items()}:
            raise InputError(f"{file}: found other steps, layers or experts than {seen} has; allowed: those of one run")
        rows = {key: rows[key] + own for key, own in more.items()}
    return _by_layer(rows, path)


def _of_file(file: Path) -> dict[tuple[int, int], FloatArray]:
    """Rows of every expert that one rank recorded, by layer and step."""
    rows: dict[tuple[int, int], FloatArray] = {}
    for place, record in _records(file):
        key = (record.layer, record.step)
        if key in rows:
            raise InputError(f"{place}: found step {record.step} of layer {record.layer} again; allowed: once")
        rows[key] = np.array(record.rows_E, dtype=np.float64)
    return rows


def _records(file: Path) -> Iterable[tuple[str, RoutingRecord]]:
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if line.strip():
            place = f"{file}:{number}"
            yield place, parse_data(json_data(line, place), RoutingRecord, place)


def _by_layer(rows: Mapping[tuple[int, int], FloatArray], path: Path) -> dict[int, FloatArray]:
    layers: dict[int, list[FloatArray]] = {}
    for layer, step in sorted(rows):
        if rows[layer, step].sum():
            layers.setdefault(layer, []).append(rows[layer, step])
    for layer, found in layers.items():
        if len({len(one) for one in found}) > 1:
            raise InputError(f"{path}: found loads of several numbers of experts in layer {layer}; allowed: of one")
    if not layers:
        raise InputError(f"{path}: found no rows of any expert; allowed: records of a model with experts")
    return {layer: np.array(found) for layer, found in layers.items()}


def _drawn(plan: Plan, architecture: Architecture, blocks: Mapping[int, Moe]) -> tuple[Loads, list[str]]:
    """Log-normal loads, the busiest as much over the mean as the plan's skew says, in an order by chance."""
    given = forecast(plan.routing, architecture).value
    loads = {}
    skews = []
    for index, moe in blocks.items():
        skew = given if given > 1 else prior(moe.experts, moe.top_k, "trained").skew
        skews.append(skew)
        order = np.random.default_rng(_SEED + index).permutation(moe.experts)
        loads[index] = drawn_loads(moe.experts, skew)[order][None]
    what = "the plan's skew" if given > 1 else "what trained routers were seen to do, since the plan says no skew"
    assert len(skews) == len(experts_of(architecture))
    return loads, [
        f"No loads were given: they are drawn (log-normal, busiest expert {fmean(skews):.2f} times the mean, {what}); "
        "which experts are hot is by chance."
    ]


def drawn_loads(experts: int, skew: float) -> FloatArray:
    """Quantiles of a log-normal distribution, descending, of mean 1, the largest of which is `skew`, [E]."""
    places = (np.arange(experts) + 0.5) / experts
    z = np.array([NormalDist().inv_cdf(1 - p) for p in places])

    def loads(s: float) -> FloatArray:
        values = np.exp(s * (z - z[0]))  # the largest is 1, so that nothing overflows
        return np.asarray(values / values.mean())

    low, high = 0.0, 60.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if loads(middle)[0] < skew else (low, middle)
    return loads(high)


def _notes(blocks: Mapping[int, Moe], machine: System) -> list[str]:
    """What the prediction leaves out, or makes of the framework's padding."""
    said = ["Which experts tokens choose together is not known: rows between nodes are taken to fall evenly."]
    form = machine.framework.moe
    padded = form.padding == "always" or any(
        m.capacity_factor is not None and form.padding != "never" for m in blocks.values()
    )
    chosen = any(moe.router == "expert_choice" for moe in blocks.values())
    if padded or chosen:
        said.append(
            "Every expert gets as many rows here, by padding or since experts choose tokens: a placement changes "
            "nothing but what copies take."
        )
    return said
