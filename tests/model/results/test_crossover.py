"""The crossover study, predicted."""

from __future__ import annotations

from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.results.crossover import Form, Rate, Rates, predicted, rates_json, rates_of, turns_at, winner


def rates(**dense_and_mixture: tuple[float, float]) -> Rates:
    found: dict[tuple[str, Form], Rate] = {}
    for size, (dense, mixture) in dense_and_mixture.items():
        found[size, "dense"] = Rate(inferences_per_s=None, power_W=None, inferences_per_J=dense)
        found[size, "every"] = Rate(inferences_per_s=None, power_W=None, inferences_per_J=mixture)
    return found


def test_it_turns_where_the_mixture_goes_on_winning() -> None:
    found = rates(small=(9, 1), medium=(5, 6), large=(4, 3), xlarge=(1, 2))
    assert [winner(found, size, "every") for size in ("small", "medium", "large", "xlarge")] == [
        "dense",
        "moe",
        "dense",
        "moe",
    ]
    assert turns_at(found, "every") == "xlarge"
    assert turns_at(rates(small=(9, 1), medium=(5, 4)), "every") is None
    assert turns_at(rates(small=(1, 2), medium=(1, 2)), "every") == "small"


def test_documents_come_back() -> None:
    calibration = load_calibration(None, "h100-sxm-80gb", key="gpu")
    forms: tuple[Form, ...] = ("dense", "every", "chosen")
    found = {("small", form): predicted("small", form, calibration) for form in forms}
    assert rates_of(rates_json(found)["cases"]) == found


def test_a_loop_waits_for_its_host_and_a_large_mlp_for_nothing() -> None:
    calibration = load_calibration(None, "h100-sxm-80gb", key="gpu")
    small, large = predicted("small", "every", calibration), predicted("xlarge", "dense", calibration)
    assert small.waits_for_host is not None
    assert large.waits_for_host is not None
    assert small.waits_for_host > 0.5
    assert large.waits_for_host < 0.01
    flops = 2 * 2_789_253_815 * (large.inferences_per_s or 0.0)
    assert 0.5 < flops / 66.9e12 < 1.0  # of the FP32 pipes' peak
