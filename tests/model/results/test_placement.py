"""What placing experts does to a plan, by loads whose best placement is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.core.errors import InputError
from moemodel.model.plan.spec import Plan
from moemodel.model.results.outcome import outcome
from moemodel.model.results.placement import PlacementResult, drawn_loads, place, read_loads

LAYERS, EXPERTS = 2, 8


def plan(**changes: Any) -> Plan:
    document: dict[str, Any] = {
        "architecture": "mixtral-8x7b",
        "layers": LAYERS,
        "sequence_length": 4096,
        "global_batch": 8,
        "micro_batch": 2,
        "backend": "megatron",
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 4},
        "parallel": {"dp": 4, "ep": 4, "zero_stage": 1},
    }
    return Plan.model_validate(document | changes)


def placed(loads: Path | None = None, copies: int = 0, **changes: Any) -> PlacementResult:
    return place(plan(**changes), shipped("h100-sxm-80gb"), loads, copies=copies)


def records(folder: Path, rows: list[list[list[int]]], rank: int = 0) -> Path:
    """Of steps, of layers."""
    file = folder / f"routing-rank{rank}.jsonl"
    lines = [
        json.dumps({"step": step, "layer": layer, "rows_E": own, "dropped": 0, "entropy": None})
        for step, layers in enumerate(rows)
        for layer, own in enumerate(layers)
    ]
    file.write_text("\n".join(lines) + "\n")
    return file


HOT = [30, 30, 10, 10, 10, 10, 20, 20]  # in order 60 of 140 on the first of four ranks; at best 40 (30 + 10)


def test_what_is_hot_together_is_taken_apart(tmp_path: Path) -> None:
    found = placed(records(tmp_path, [[HOT, HOT]] * 4))
    assert found.before.rank_skew == pytest.approx(60 / 35)
    assert found.after.rank_skew == pytest.approx(40 / 35)
    assert found.after.step_time_s < found.before.step_time_s
    assert found.after.energy_J < found.before.energy_J
    assert found.after.all_to_all_s < found.before.all_to_all_s
    assert found.after.memory_B < found.before.memory_B  # the busiest rank keeps fewer rows
    assert [sorted(expert for rank in layer.ranks for expert in rank) for layer in found.layers] == [list(range(8))] * 2


def test_even_loads_are_the_ordinary_prediction(tmp_path: Path) -> None:
    found = placed(records(tmp_path, [[[10] * EXPERTS] * LAYERS] * 2))
    ordinary = outcome(plan(routing={"skew": "balanced"}), shipped("h100-sxm-80gb"))
    assert found.before == found.after
    assert found.before.step_time_s == pytest.approx(ordinary.step_time_s.value, rel=1e-12)
    assert found.before.energy_J == pytest.approx(ordinary.energy.gpu_J.value, rel=1e-12)
    assert found.before.memory_B == pytest.approx(ordinary.memory_B.value, rel=1e-12)


def test_a_rank_of_one_expert_is_as_busy_as_the_ordinary_prediction_has_it(tmp_path: Path) -> None:
    """With as many ranks as experts the busiest rank has the busiest expert, whatever theory makes of fewer."""
    eight: dict[str, Any] = {
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 8},
        "parallel": {"dp": 8, "ep": 8, "zero_stage": 1},
    }
    eight |= {"micro_batch": 1}
    found = placed(records(tmp_path, [[HOT, HOT]]), **eight)
    ordinary = outcome(plan(routing={"skew": 30 * 8 / 140}, **eight), shipped("h100-sxm-80gb"))
    assert found.before.step_time_s == pytest.approx(ordinary.step_time_s.value, rel=1e-9)


def test_a_placement_is_judged_by_steps_that_it_was_not_chosen_by(tmp_path: Path) -> None:
    """Loads that turn round in the second half make the placement of the first no better than another."""
    turned = [20, 30, 10, 20, 30, 10, 10, 10]
    found = placed(records(tmp_path, [[HOT, HOT], [turned, turned]]))
    ranks = found.layers[0].ranks
    loads = [sum(turned[expert] for expert in rank) for rank in ranks]
    assert found.layers[0].rank_skew_after == pytest.approx(max(loads) / 35)
    assert found.layers[0].rank_skew_before == pytest.approx(50 / 35)


def test_copies_take_memory_and_their_gradients_time(tmp_path: Path) -> None:
    hottest = [70, 10, 10, 10, 10, 10, 10, 10]
    file = records(tmp_path, [[hottest, hottest]] * 2)
    without, with_copies = placed(file), placed(file, copies=4)
    assert with_copies.after.rank_skew < without.after.rank_skew
    assert without.after.copies_s == 0 < with_copies.after.copies_s
    assert max(len(rank) for rank in with_copies.layers[0].ranks) == 3
    # room for an expert a rank and layer more, less what the busiest rank keeps in rows: of 16-bit weights
    # and 32-bit gradients, half of them at least
    expert = 3 * 4096 * 14336
    assert with_copies.after.memory_B - without.after.memory_B > LAYERS * expert * 6 * 0.5
    # of two copies each rank sends its 32-bit gradients once, over 450 GB/s at best; of more up to twice
    assert with_copies.after.copies_s > LAYERS * 4 * expert / 450e9


def test_ranks_of_a_run_are_added_up(tmp_path: Path) -> None:
    records(tmp_path, [[[1, 2], [3, 4]], [[0, 0], [5, 6]]], rank=0)
    records(tmp_path, [[[10, 20], [30, 40]], [[0, 0], [50, 60]]], rank=1)
    found = read_loads(tmp_path)
    assert found[0].tolist() == [[11, 22]]  # a step without rows is none
    assert found[1].tolist() == [[33, 44], [55, 66]]


def test_records_that_are_not_of_one_run_are_refused(tmp_path: Path) -> None:
    records(tmp_path, [[[1, 2]], [[3, 4]]], rank=0)
    records(tmp_path, [[[1, 2]]], rank=1)
    with pytest.raises(InputError, match=r"rank1\.jsonl: found other steps, layers or experts than routing-rank0"):
        read_loads(tmp_path)
    twice = tmp_path / "routing-rank0.jsonl"
    twice.write_text(twice.read_text() * 2)
    with pytest.raises(InputError, match=r"rank0\.jsonl:3: found step 0 of layer 0 again"):
        read_loads(twice)


def test_drawn_loads_are_as_uneven_as_asked_for() -> None:
    for skew in (1.2, 2.0, 6.0):
        loads = drawn_loads(64, skew)
        assert loads.mean() == pytest.approx(1)
        assert loads.max() == pytest.approx(skew)
        assert (np.diff(loads) <= 0).all()
    stated = placed(routing={"skew": 1.5})
    assert "busiest expert 1.50 times the mean, the plan's skew" in stated.notes[0]
    assert "trained routers" in placed().notes[0]


def test_padding_leaves_nothing_to_gain_and_a_note_says_so(tmp_path: Path) -> None:
    file = records(tmp_path, [[HOT, HOT]])
    found = placed(file, backend="deepspeed")
    assert found.after.step_time_s == pytest.approx(found.before.step_time_s)
    assert "a placement changes nothing" in "\n".join(found.notes)


@pytest.mark.parametrize(
    ("rows", "changes", "words"),
    [
        ([[HOT]], {}, "found loads of layers 0; allowed: of layers 0, 1"),
        ([[[1, 2], [1, 2]]], {}, "found loads of 2 experts in layer 0; allowed: of the 8 of"),
        ([[[0] * 8] * 2], {}, "found no rows of any expert"),
        ([[HOT, HOT]], {"parallel": {"dp": 4}}, "parallel.ep: found 1"),
    ],
)
def test_loads_of_another_model_are_refused(
    tmp_path: Path, rows: list[list[list[int]]], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        placed(records(tmp_path, rows), **changes)


def test_a_dense_model_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="which has no experts"):
        placed(architecture="llama-3-8b", layers=2, parallel={"dp": 4})
    with pytest.raises(InputError, match=r"found no routing-rank\*\.jsonl"):
        placed(tmp_path)
