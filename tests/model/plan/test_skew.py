"""How unevenly routers load experts: words, numbers and files of a plan's `routing.skew`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import check_architecture
from moemodel.model.plan.routing import RoutingSpec
from moemodel.model.plan.skew import forecast, skew_of
from moemodel.model.plan.spec import Plan, plan_text, read_plan
from moemodel.model.records import routing_statistics
from moemodel.model.records.routing_statistics import RoutingStatistics, prior, priors

LOADS = {
    "experts": 64,
    "top_k": 8,
    "state": "trained",
    "skew": 1.5,
    "low": 1.2,
    "high": 2.0,
    "count": 10,
    "tokens": 4096,
    "measured": True,
    "source": "made up",
}


def plan(skew: Any, architecture: str = "olmoe-1b-7b") -> Plan:
    return Plan.model_validate(
        {
            "architecture": architecture,
            "sequence_length": 2048,
            "global_batch": 8,
            "cluster": {"gpu": "h100-sxm-80gb"},
            "routing": {} if skew is ... else {"skew": skew},
        }
    )


def file_of(folder: Path, *loads: dict[str, Any]) -> str:
    path = folder / "loads.json"
    path.write_text(json.dumps({"name": "test", "loads": list(loads)}), encoding="utf-8")
    return str(path)


def test_an_unknown_skew_is_predicted_as_balanced_and_may_be_what_was_seen() -> None:
    architecture = read_architecture("mixtral-8x7b")
    unknown, stated = (forecast(RoutingSpec(**given), architecture) for given in ({}, {"skew": "balanced"}))
    assert (unknown.value, stated.value, stated.high) == (1, 1, 1)
    assert unknown.high == pytest.approx(4, rel=0.01)  # all tokens on two of eight experts: bench/measured
    assert skew_of(plan(..., "mixtral-8x7b")) == 1


@pytest.mark.parametrize("state", ["initial", "trained"])
def test_a_state_is_what_was_seen_of_it(state: str) -> None:
    assert batch_of(plan(state)).skew.tolist() == [prior(64, 8, state, "none").skew]  # type: ignore[arg-type]


@pytest.fixture
def ship(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Priors that take the place of those that ship, a file each."""

    def forget() -> None:
        routing_statistics.priors.cache_clear()
        routing_statistics._all_priors.cache_clear()

    def shipped(**files: list[dict[str, Any]]) -> None:
        for name, loads in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps({"name": name, "loads": loads}), encoding="utf-8")
        monkeypatch.setattr(routing_statistics, "PRIORS", tmp_path)
        forget()

    yield shipped
    monkeypatch.undo()
    forget()


def loads(experts: int, top_k: int, skew: float, **others: Any) -> dict[str, Any]:
    """Whose percentiles lie 0.1 about the median."""
    around = {"skew": skew, "low": skew - 0.1, "high": skew + 0.1}
    return LOADS | {"experts": experts, "top_k": top_k} | around | others


def test_what_was_not_seen_is_scaled_by_what_can_be(ship: Callable[..., None]) -> None:
    """Top 2 of 16 has experts over those of a token as top 8 of 64 has; top 1 of 16 as top 8 of 128."""
    ship(seen=[loads(64, 8, 3.0), loads(128, 8, 9.0)])
    assert prior(16, 2, "trained").skew == 3
    assert prior(16, 1, "trained").skew == 9
    assert prior(256, 1, "trained").skew == pytest.approx(1 + 255 * 8 / 15)


def test_of_ratios_alike_the_nearest_number_is_taken(ship: Callable[..., None]) -> None:
    ship(seen=[loads(8, 1, 2.0), loads(16, 2, 2.1), loads(64, 8, 2.2)])
    assert [prior(experts, experts // 8, "trained").skew for experts in (8, 24, 48, 128)] == [2.0, 2.1, 2.2, 2.2]


def test_a_plan_is_told_by_what_balances_it(ship: Callable[..., None]) -> None:
    measured = {"none": 4.0, "loss": 1.5, "bias": 1.2}
    ship(seen=[loads(64, 8, skew, balancing=rule) for rule, skew in measured.items()])
    olmoe = read_architecture("olmoe-1b-7b")
    keys: dict[str, dict[str, Any]] = {
        "none": {"z_loss": 0.1},
        "loss": {"balance_loss": 0.01},
        "bias": {"bias_rate": 1e-3},
    }
    for rule, skew in measured.items():
        found = forecast(RoutingSpec.model_validate({"skew": "trained"} | keys[rule]), olmoe)
        assert (found.value, found.high) == (skew, pytest.approx(skew + 0.1))


def test_a_rule_that_was_not_measured_is_the_other_rule_before_none(ship: Callable[..., None]) -> None:
    ship(seen=[loads(64, 8, 4.0, balancing="none"), loads(16, 2, 1.5, balancing="loss")])
    assert prior(64, 8, "trained", "bias").skew == 1.5
    assert prior(16, 2, "trained", "none").skew == 4.0


def test_wider_models_come_before_narrow_ones_and_intervals_hold_both(ship: Callable[..., None]) -> None:
    narrow = loads(64, 8, 6.5, hidden=256, state="initial", source="narrow", balancing="loss")
    wide = loads(64, 8, 5.0, hidden=2048, state="initial", source="wide", balancing="none")
    ship(a=[narrow], b=[wide])
    for keys in ({}, {"balance_loss": 0.01}):  # from random weights no rule has had time
        found = forecast(RoutingSpec.model_validate({"skew": "initial"} | keys), read_architecture("olmoe-1b-7b"))
        assert (found.value, found.high, found.sources) == (5.0, pytest.approx(6.6), ("wide", "narrow"))


def test_an_unknown_skew_may_be_all_that_was_seen(ship: Callable[..., None]) -> None:
    ship(
        a=[loads(64, 8, 3.0, state="initial", source="a"), loads(64, 8, 5.0, balancing="none", source="b")],
        b=[loads(64, 8, 1.3, balancing="loss", source="c"), loads(64, 8, 1.1, measured=False, source="theory")],
    )
    olmoe = read_architecture("olmoe-1b-7b")
    found = forecast(RoutingSpec(), olmoe)
    assert (found.value, found.high, found.sources, found.measured) == (1.0, pytest.approx(5.1), ("a", "b"), True)
    balanced = forecast(RoutingSpec(balance_loss=0.01), olmoe)
    assert (balanced.value, balanced.high, balanced.sources) == (1.0, pytest.approx(3.1), ("a", "c"))


def test_no_router_without_a_rule_is_more_even_than_chance(ship: Callable[..., None]) -> None:
    theory = loads(64, 8, 1.5, measured=False, source="theory")
    ship(a=[loads(64, 8, 1.2, balancing="none"), loads(64, 8, 1.3, balancing="loss")], b=[theory])
    assert prior(64, 8, "trained", "none").skew == 1.5
    assert prior(64, 8, "trained", "loss").skew == 1.3


def test_sizes_that_were_not_measured_have_theirs_of_chance(ship: Callable[..., None]) -> None:
    ship(
        a=[loads(64, 8, 3.0, balancing="none")],
        b=[loads(128, 8, 1.5, measured=False), loads(64, 8, 1.2, measured=False)],
    )
    assert [prior(experts, 8, "trained", "none").skew for experts in (64, 128)] == [3.0, 1.5]


def test_a_model_without_experts_has_none() -> None:
    assert batch_of(plan("initial", "opt-350m")).skew.tolist() == [1]


def test_a_file_beside_the_plan_is_read(tmp_path: Path) -> None:
    file_of(tmp_path, LOADS)
    (tmp_path / "plan.yaml").write_text(plan_text(plan("loads.json")), encoding="utf-8")
    read = read_plan(tmp_path / "plan.yaml")
    assert batch_of(read).skew.tolist() == [1.5]
    assert forecast(read.routing, read_architecture("olmoe-1b-7b")).high == 2.0


def test_records_of_a_run_are_read(tmp_path: Path) -> None:
    rows = np.full(64, 100)
    rows[3] = 200
    record = {"step": 0, "layer": 0, "rows_E": rows.tolist(), "dropped": 0, "entropy": 4.0}
    path = tmp_path / "routing-rank0.jsonl"
    path.write_text("\n".join(json.dumps(record | {"layer": layer}) for layer in range(3)), encoding="utf-8")
    assert skew_of(plan(str(path))) == pytest.approx(200 / rows.mean())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "loads.json:1: "),
        (json.dumps({"name": "x", "loads": []}), "loads"),
        (json.dumps({"name": "x", "loads": [LOADS | {"skew": 0.5}]}), r"loads\.0\.skew: found 0\.5|loads\[0\]\.skew"),
        (json.dumps({"name": "x", "loads": [LOADS | {"high": 9.0}]}), "high 9; allowed: in this order, and at most"),
        (json.dumps({"name": "x", "loads": [LOADS | {"low": 1.9}]}), "low 1.9, skew 1.5"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "loads.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        skew_of(plan(str(path)))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match=r"nowhere\.json"):
        skew_of(plan("nowhere.json"))


@pytest.mark.parametrize("skew", ["even", "loads.yaml", True, 0.99, "2", [1]])
def test_what_is_no_skew_is_refused(skew: Any) -> None:
    with pytest.raises(
        InputError, match="allowed: a number of 1 or more, balanced, initial, trained, null, or the path"
    ):
        plan(skew)


def test_a_skew_beyond_all_tokens_is_refused(tmp_path: Path) -> None:
    asked = plan(8.5)
    with pytest.raises(InfeasiblePlanError, match="allowed: at most 8"):
        check_architecture(asked, read_architecture("olmoe-1b-7b"))
    within = plan(file_of(tmp_path, LOADS | {"experts": 8, "top_k": 1, "skew": 7.9, "high": 8.0}))
    check_architecture(within, read_architecture("olmoe-1b-7b"))


def test_priors_ship_for_what_plans_ask_for() -> None:
    assert {"random weights", "even chance"} <= {file.name for file in priors()}
    for experts in (8, 16, 64, 128):
        for top_k in (1, 2, 8):
            if top_k < experts:
                for state in ("initial", "trained"):
                    found = prior(experts, top_k, state)  # type: ignore[arg-type]
                    assert 1 <= found.low <= found.skew <= found.high <= experts / top_k
    measured = [loads.measured for file in priors() for loads in file.loads]
    assert any(measured)
    assert not all(measured)


def test_the_least_skew_is_that_of_even_chance() -> None:
    """Balls into bins, without repetition, drawn one by one."""
    (theory,) = (file for file in priors() if not file.loads[0].measured)
    dice = np.random.default_rng(1)
    for experts, top_k in ((8, 2), (64, 8)):
        shipped = theory.of(experts, top_k, "trained")
        assert shipped is not None
        scores = dice.random((20, shipped.tokens, experts))
        chosen = np.argpartition(scores, -top_k, axis=-1)[..., -top_k:]
        loads = np.array([np.bincount(one.ravel(), minlength=experts) for one in chosen])
        drawn = np.median(loads.max(axis=1) / loads.mean(axis=1))
        assert shipped.skew - 1 == pytest.approx(drawn - 1, rel=0.15)


def test_the_nearest_ratio_is_scaled() -> None:
    file = RoutingStatistics.model_validate({"name": "x", "loads": [LOADS]})
    found = file.of(128, 8, "trained")
    assert found is not None
    assert (found.skew - 1) / 15 == pytest.approx(0.5 / 7)
    assert file.of(128, 8, "initial") is None
