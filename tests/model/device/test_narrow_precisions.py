"""Products of 8 and 4 bits: what they keep, what they take, and which GPUs have them."""

from __future__ import annotations

import pytest

from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.core.errors import InputError
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.plan.spec import Plan
from moemodel.model.results.outcome import Outcome, outcome

PRECISIONS = ("bf16-mixed", "fp8", "mxfp8", "nvfp4")


def predicted(precision: str, gpu: str = "b200-sxm-180gb") -> Outcome:
    plan = {
        "architecture": "llama-3-70b",
        "layers": 2,
        "sequence_length": 8192,
        "global_batch": 2,
        "micro_batch": 2,
        "backend": "megatron-core",
        "precision": precision,
        "cluster": {"gpu": gpu},
    }
    return outcome(Plan.model_validate(plan), load_calibration(None, gpu), even_if_it_does_not_fit=True)


def test_narrower_products_take_less_time_and_keep_less() -> None:
    """Large products: half as wide, at most twice as fast; blocks of 32 cost a thirty-second of memory more."""
    found = {precision: predicted(precision) for precision in PRECISIONS}
    times_s = [found[precision].step_time_s.value for precision in PRECISIONS]
    assert times_s[1] == pytest.approx(times_s[2], rel=0.02)
    assert times_s[0] / 2 < times_s[1] < 0.8 * times_s[0]
    assert times_s[2] / 2 < times_s[3] < 0.9 * times_s[2]
    kept_B = {precision: answer.memory_terms_B["activations"] for precision, answer in found.items()}
    assert kept_B["nvfp4"] < kept_B["fp8"] < kept_B["mxfp8"] < kept_B["bf16-mixed"]


def test_what_a_cast_element_takes() -> None:
    """A scale of 8 bits for every 32 elements of 8 bits, and for every 16 of 4."""
    recipes = framework_of("megatron-core").precisions
    found = {precision: recipes[precision].product_input_B for precision in PRECISIONS}
    assert found == {"bf16-mixed": 2.0, "fp8": 1.0, "mxfp8": (32 * 8 + 8) / 32 / 8, "nvfp4": (16 * 4 + 8) / 16 / 8}


@pytest.mark.parametrize("precision", ["mxfp8", "nvfp4"])
def test_hopper_has_none_of_them(precision: str) -> None:
    with pytest.raises(InputError, match=rf"{precision}.*h100-sxm-80gb has peaks for .*fp8"):
        predicted(precision, "h100-sxm-80gb")
