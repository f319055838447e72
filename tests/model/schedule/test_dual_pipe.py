"""DualPipe against DualPipeV of half as many stages, the published bubble, and what two copies of the model cost."""

from __future__ import annotations

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.core.errors import InputError
from moemodel.model.layers.parameters import parameters
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.predict.prediction import Prediction
from moemodel.model.results.iteration import iteration
from moemodel.model.schedule import registry
from moemodel.model.schedule.base import Sizes, StageTimes
from moemodel.model.schedule.batch import PlanSchedules
from moemodel.model.search.candidates import candidates
from moemodel.model.search.document import Search
from moemodel.model.search.problem import problem_of
from moemodel.model.step.system import system_of

JOB = {
    "architecture": "llama-3-8b",
    "sequence_length": 2048,
    "global_batch": 64,
    "backend": "megatron-core",
    "recompute": "full",
    "cluster": {"gpu": "h100-sxm-80gb", "gpus": 16},
}


def plan(schedule: str = "dualpipe", *, dp: int = 4, pp: int = 4, **changes: object) -> Plan:
    parallel = {"dp": dp, "pp": pp, "virtual_stages": 2, "zero_stage": 1} | dict(changes.pop("parallel", {}))  # type: ignore[call-overload]
    return Plan.model_validate(JOB | {"schedule": schedule, "parallel": parallel} | changes)


def predicted(made: Plan) -> Prediction:
    return predict(architecture_of(made), batch_of(made), system_of(made, shipped("h100-sxm-80gb")))


def test_it_is_a_v_of_half_as_many_stages() -> None:
    """Pairs of ranks are replicas of the stages of half a pipeline."""
    paired, folded = predicted(plan()), predicted(plan("dualpipe-v", dp=8, pp=2))
    assert paired.step_time_s[0] == pytest.approx(folded.step_time_s[0])
    assert paired.memory_B[0] == pytest.approx(folded.memory_B[0])
    assert paired.energy_J[0] == pytest.approx(folded.energy_J[0])
    assert paired.tokens[0] == folded.tokens[0]


@pytest.mark.parametrize(("pp", "m"), [(4, 8), (8, 16), (8, 64)])
def test_the_bubble_is_the_published_one(pp: int, m: int) -> None:
    """(PP / 2 - 1) (F&B + B - 3 W) beside m / 2 passes through each of two stages (DeepSeek-V3, table 2), for passes of
    which forward, inputs and weights take as long."""
    n = pp // 2
    each = [np.array([[2.0]])] * n
    times = StageTimes(
        forward_s=each, backward_s=[2 * s for s in each], weight_share=[np.array([[0.5]])] * n, counts=[1] * n
    )
    sizes = Sizes(stages=np.array([pp]), virtual=np.array([2]), micro_batches=np.array([m]))
    found = float(PlanSchedules(np.array([registry.number("dualpipe")]), sizes).makespan(times).item())
    assert found - (m / 2) * 2 * 3 == pytest.approx((pp / 2 - 1) * (3 + 2 - 3))


def test_two_copies_of_parameters() -> None:
    """A rank holds 2 / pp of the model, where DualPipeV's and 1F1B's hold 1 / pp; optimizer states are shared out over
    both copies."""
    held = {name: predicted(plan(name)).memory_terms_B for name in ("dualpipe", "dualpipe-v")}
    layers = parameters(read_architecture("llama-3-8b")).total - 2 * 128256 * 4096 - 4096
    copy_B = 2 * layers * 2 / 4
    ends_B = 2 * (2 * 128256 * 4096 + 4096)  # the first rank holds embedding and head
    assert held["dualpipe"]["parameters"][0] == pytest.approx(copy_B + ends_B)
    assert held["dualpipe-v"]["parameters"][0] == pytest.approx(copy_B / 2 + ends_B)
    assert held["dualpipe"]["optimizer_states"][0] == pytest.approx(12 / 2 / 8 * (copy_B + ends_B))


def test_activations_are_of_pp_and_one() -> None:
    """PP + 1 of a stage of 1 / PP of the model (table 2): of 4 ranks five stages'."""
    flight = registry.find("dualpipe", 2).in_flight(
        0, Sizes(stages=np.array([4]), virtual=np.array([2]), micro_batches=np.array([16]))
    )
    assert 2 * flight[0] == 5


def test_its_step_can_be_drawn() -> None:
    drawn = iteration(plan(), shipped("h100-sxm-80gb"))
    ends = [max(one.end_s for one in stage.slices) for stage in drawn.stages]
    assert max(ends) == pytest.approx(predicted(plan()).step_time_s[0], rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pp": 3, "dp": 4, "cluster": {"gpu": "h100-sxm-80gb", "gpus": 12}}, "found pp 3 and 16 micro-batches"),
        ({"global_batch": 60}, "found pp 4 and 15 micro-batches .* allowed: even numbers of both"),
        ({"global_batch": 24}, "found 6 micro-batches .* with pp 4; allowed: 8 or more"),
        ({"parallel": {"virtual_stages": 1}}, "found parallel.virtual_stages 1 with pp 4; allowed: 2"),
        ({"stage_layers": [8, 8, 8, 8]}, "schedule dualpipe: found a list of stage_layers"),
        ({"clock_MHz": {"forward": 1500, "backward": 1600, "optimizer": 1600}}, "found clock_MHz by stage or phase"),
    ],
)
def test_what_it_is_not_for(changes: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        plan(**changes)  # type: ignore[arg-type]


def test_a_search_may_list_it() -> None:
    document = Search.model_validate(
        {k: v for k, v in JOB.items() if k not in ("recompute", "cluster")}
        | {"schedule": ["1f1b", "dualpipe"], "cluster": {"gpu": "h100-sxm-80gb", "gpus": 16}, "clocks_MHz": None}
        | {
            "search": {
                "tp": 1,
                "cp": 1,
                "micro_batch": 1,
                "recompute": "full",
                "pp": [2, 4, 8],
                "virtual_stages": [1, 2],
            }
        }
    )
    calibration = shipped("h100-sxm-80gb")
    found = candidates(problem_of(document, calibration), calibration)
    row = int(np.flatnonzero(found.columns["schedule"] == registry.number("dualpipe"))[0])
    made = found.plan(document, row, None)
    assert made.schedule == "dualpipe"
    batch = found.batch(document)
    assert batch.pp[row] * 2 == made.parallel.pp
    assert batch.gpus[row] == made.cluster.gpus
