"""Figures of published runs against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest

from moemodel.model.plan.spec import Plan
from moemodel.model.results.estimate import Estimate
from studies.public.answers import answers
from studies.public.figures import figures
from studies.public.run import Answer, PublicRun, answer_to


def run(time_s: float, job: str = "job", *, ran: bool = True) -> PublicRun:
    return PublicRun(label="", plans=(), time_s=(time_s,) if ran else (), job=job, ran=ran, memory_B=10.0)


def answer(time_s: float, likely: float = 1.0, memory_B: float = 11.0) -> Answer:
    verdict = "fits" if likely > 0.9 else "does not fit"
    time = Estimate(value=time_s, low=time_s / 1.2, high=time_s * 1.2)
    return Answer(time=time, fit_probability=likely, verdict=verdict, memory_B=memory_B)


def test_order_and_regret_of_a_job() -> None:
    # of six pairs one is in the wrong order; the first choice takes 2 s, the fastest 1 s
    group = [(run(m), answer(p)) for m, p in ((1.0, 1.5), (2.0, 1.0), (3.0, 3.0), (4.0, 4.0))]
    found = figures(group)
    assert found["tau"] == pytest.approx((5 - 1) / 6)
    assert found["regret"] == pytest.approx(1.0)
    assert found["mape"] == pytest.approx((0.5 + 0.5) / 4)
    assert found["inside"] == pytest.approx(0.5)
    assert found["memory_mape"] == pytest.approx(0.1)


def test_the_first_choice_is_none_that_is_refused() -> None:
    group = [(run(1.0), answer(2.0)), (run(2.0), answer(1.0, likely=0.0)), (run(3.0), answer(3.0))]
    found = figures(group)
    assert found["regret"] == 0.0
    assert found["refused"] == 1


def test_verdicts_count_equally_whichever_is_rarer() -> None:
    ran = [(run(1.0), answer(1.0))] * 9 + [(run(1.0), answer(1.0, likely=0.0))]
    failed = [(run(0.0, ran=False), answer(1.0, likely=0.0)), (run(0.0, ran=False), answer(1.0))]
    assert figures(ran + failed)["oom_balanced"] == pytest.approx((0.9 + 0.5) / 2)


def test_runs_predicted_together_are_predicted_as_alone() -> None:
    document = {
        "architecture": "opt-350m",
        "sequence_length": 512,
        "global_batch": 64,
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 8},
    }
    degrees = [(8, 1, 1), (4, 2, 1), (2, 2, 2), (2, 4, 1)]
    some = [
        PublicRun(
            label="",
            plans=(Plan.model_validate(document | {"micro_batch": m, "parallel": {"dp": dp, "tp": tp, "pp": pp}}),),
            memory_B=1e9,
        )
        for m in (1, 2, 4, 8)
        for dp, tp, pp in degrees
    ]
    many = answers(some * 2)[: len(some)]
    for together, one in zip(many, some, strict=True):
        alone = answer_to(one)
        assert together.time is not None
        assert alone.time is not None
        np.testing.assert_allclose(
            [together.time.value, together.time.low, together.memory_B, together.fit_probability],
            [alone.time.value, alone.time.low, alone.memory_B, alone.fit_probability],
            rtol=1e-9,
        )
