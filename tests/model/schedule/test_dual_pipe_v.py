"""DualPipeV against the longest path of torch's order, the published bubble, and what its stages hold."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.core.errors import InputError
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.iteration import iteration
from moemodel.model.results.outcome import outcome
from moemodel.model.schedule import registry
from moemodel.model.schedule.base import Sizes, StageTimes, Work
from moemodel.model.schedule.batch import PlanSchedules
from moemodel.model.schedule.pipeline_layout import members, stages
from moemodel.model.step.system import system_of

Pieces = Callable[[int, int], list[list[tuple[Work, ...]]]]
Times = list[float]


def longest_path(pieces: list[list[tuple[Work, ...]]], forward: Times, inputs: Times, weights: Times) -> float:
    """Of the graph of pieces, each as long as its work; times of the chunks of a stage."""
    n = len(pieces)
    took = {"F": forward, "B": inputs, "W": weights}
    graph: nx.DiGraph[tuple[Work, ...]] = nx.DiGraph()
    of_work = {work: piece for own in pieces for piece in own for work in piece}
    for own in pieces:
        graph.add_nodes_from(own)
        graph.add_edges_from(pairwise(own))
    for work, piece in of_work.items():
        if work.kind == "F" and work.chunk:
            graph.add_edge(of_work[Work("F", work.chunk - 1, work.micro_batch)], piece)
        if work.kind == "B":
            last = work.chunk == 2 * n - 1
            needed = Work("F", work.chunk, work.micro_batch) if last else work._replace(chunk=work.chunk + 1)
            graph.add_edge(of_work[needed], piece)
    end = (Work("W", 2 * n, 0),)
    graph.add_edges_from([(piece, end) for piece in list(graph)])
    for piece, _, data in graph.edges(data=True):
        data["time_s"] = sum(took[work.kind][min(work.chunk, 2 * n - 1 - work.chunk)] for work in piece)
    return float(nx.dag_longest_path_length(graph, weight="time_s"))


def ours(forward: Times, inputs: Times, weights: Times, m: int) -> float:
    """Times of a chunk's passes, of which a stage has two."""
    n = len(forward)
    backward = [b + w for b, w in zip(inputs, weights, strict=True)]
    times = StageTimes(
        forward_s=[np.array([[2 * f]]) for f in forward],
        backward_s=[np.array([[2 * b]]) for b in backward],
        weight_share=[np.array([[w / b]]) for w, b in zip(weights, backward, strict=True)],
        counts=[1] * n,
    )
    sizes = Sizes(stages=np.array([n]), virtual=np.array([2]), micro_batches=np.array([m]))
    return float(PlanSchedules(np.array([registry.number("dualpipe-v")]), sizes).makespan(times).item())


@pytest.mark.parametrize("seed", range(12))
def test_a_step_is_the_longest_path(seed: int, torch_pieces: Pieces) -> None:
    dice = np.random.default_rng(seed)
    n = int(dice.integers(1, 6))
    m = 2 * n + int(dice.integers(0, 4 * n))
    times = [dice.uniform(1, 2, n).tolist() for _ in range(3)]
    assert ours(*times, m) == pytest.approx(longest_path(torch_pieces(n, m), *times))


def test_many_micro_batches_of_unlike_stages(torch_pieces: Pieces) -> None:
    """Beyond those that are walked, the slowest stage decides."""
    times = [[1.0, 1.1, 1.4, 1.0], [1.1, 1.2, 1.3, 1.0], [0.9, 1.1, 1.3, 1.0]]
    assert ours(*times, 96) == pytest.approx(longest_path(torch_pieces(4, 96), *times), rel=1e-4)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (4, 40), (8, 16), (8, 200)])
@pytest.mark.parametrize("each", [1.0, 0.3])
def test_the_bubble_is_the_published_one(n: int, m: int, each: float) -> None:
    """(PP / 2 - 1) (F&B + B - 3 W), of times of chunks, B the whole backward pass (DeepSeek-V3, table 2), F&B as long
    as both: for passes of which forward, inputs and weights take as long."""
    found = ours([each] * n, [each] * n, [each] * n, m)
    assert found - 2 * m * 3 * each == pytest.approx((n - 1) * (3 + 2 - 3) * each)


def test_the_first_stage_holds_both_ends() -> None:
    """Chunks s and 2 n - 1 - s of 2 n: of 24 layers in six chunks, four each."""
    opt = read_architecture("opt-350m")
    folded, looped = stages(opt, 3, 2, True), stages(opt, 3, 2)
    assert [(stage.embedding, stage.head) for stage in folded] == [(True, True), (False, False)]
    assert [(stage.embedding, stage.head) for stage in looped] == [(True, False), (False, False), (False, True)]
    assert sum(sum(stage.layers) * stage.count for stage in folded) == 24
    assert members(opt, 3, 2, True) == ((0,), (1, 2))


JOB = {
    "architecture": "olmoe-1b-7b",
    "layers": 16,
    "sequence_length": 1024,
    "global_batch": 32,
    "backend": "megatron-core",
    "cluster": {"gpu": "h100-sxm-80gb", "gpus": 16},
}


def plan(schedule: str, virtual: int = 2, **changes: object) -> Plan:
    degrees = {"dp": 4, "pp": 4, "ep": 4, "zero_stage": 1, "virtual_stages": virtual}
    return Plan.model_validate(JOB | {"schedule": schedule, "parallel": degrees} | changes)


def test_a_plan_may_name_it(calibration: Calibration) -> None:
    """Its bubble is the smallest; it holds more activations than the first stage of 1F1B."""
    found = {name: outcome(plan(name, v), calibration) for name, v in (("1f1b", 1), ("dualpipe-v", 2))}
    assert found["dualpipe-v"].step_time_s.value < found["1f1b"].step_time_s.value
    assert found["dualpipe-v"].memory_terms_B["activations"] > found["1f1b"].memory_terms_B["activations"]


def test_its_step_can_be_drawn(calibration: Calibration) -> None:
    drawn = iteration(plan("dualpipe-v"), calibration)
    answer = outcome(plan("dualpipe-v"), calibration)
    ends = [max(one.end_s for one in stage.slices) for stage in drawn.stages]
    assert max(ends) == pytest.approx(answer.step_time_s.value, rel=1e-6)
    assert len(drawn.stages) == 4


def test_rows_run_beside_the_other_direction(calibration: Calibration) -> None:
    usual, paired = (
        outcome(plan("dualpipe-v", routing={"dispatch_overlap": overlap}), calibration) for overlap in (False, True)
    )
    assert paired.exposed_communication_s.value < usual.exposed_communication_s.value
    assert system_of(plan("dualpipe-v"), calibration).framework.name == "megatron-core"


@pytest.mark.parametrize(
    ("virtual", "changes", "message"),
    [
        (1, {}, r"schedule dualpipe-v: found parallel.virtual_stages 1 with pp 4; allowed: 2"),
        (4, {}, r"schedule dualpipe-v: found parallel.virtual_stages 4 with pp 4; allowed: 2"),
        (2, {"global_batch": 28}, r"schedule dualpipe-v: found 7 micro-batches .* with pp 4; allowed: 8 or more"),
        (2, {"micro_batches_per_schedule": 4}, r"found 4; allowed with schedule dualpipe-v and pp 4: 8 or more"),
    ],
)
def test_what_it_is_not_for(virtual: int, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan("dualpipe-v", virtual, **changes)
