"""What a validation keeps in its folder: going on, other questions, damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moemodel.model.core.errors import InputError
from moemodel.model.plan.spec import Plan
from moemodel.model.results.validation import Failed, Visit
from moemodel.profiler.store.folder_lock import folder_lock
from moemodel.validation.records.session import (
    QUESTION,
    VISITS,
    RunRecord,
    Session,
    ValidationSpec,
    read_spec,
)

Ask = Callable[..., ValidationSpec]


def _visited(plan: str, repeat: int) -> RunRecord:
    visit = Visit(repeat=repeat, clock_held=None, seconds=1.0, rows=({"step_time_s": 0.1},))
    return RunRecord(plan=plan, visit=visit)


def test_every_round_runs_every_plan_once_in_another_order(ask: Ask, tmp_path: Path) -> None:
    left = Session(tmp_path / "v", ask(repeats=5)).left()
    rounds = [[asked.name for asked, repeat in left if repeat == r] for r in range(5)]
    assert all(sorted(names) == ["one", "tensor", "two"] for names in rounds)
    assert [repeat for _, repeat in left] == sorted(repeat for _, repeat in left)
    assert len({tuple(names) for names in rounds}) > 1


def test_the_seed_decides_the_order(ask: Ask) -> None:
    orders = [[(a.name, r) for a, r in ask(repeats=4, seed=seed).order()] for seed in (1, 1, 2)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_it_goes_on_with_what_is_left(ask: Ask, tmp_path: Path) -> None:
    session = Session(tmp_path / "v", ask())
    first = session.left()
    session.add(_visited(first[0][0].name, 0))
    session.add(_visited(first[1][0].name, 0))
    again = Session(tmp_path / "v", ask())
    assert again.resumed
    assert again.records == session.records
    assert again.left() == first[2:]


def test_a_plan_that_failed_is_not_run_again(ask: Ask, tmp_path: Path) -> None:
    session = Session(tmp_path / "v", ask())
    session.add(RunRecord(plan="two", failed=Failed(repeat=0, kind="crashed", reason="it did")))
    assert {asked.name for asked, _ in session.left()} == {"one", "tensor"}


@pytest.mark.parametrize(("kind", "again"), [("crashed", True), ("no progress", True), ("out of memory", False)])
def test_what_the_machine_may_have_caused_is_tried_again(kind: str, again: bool, ask: Ask, tmp_path: Path) -> None:
    Session(tmp_path / "v", ask()).add(RunRecord(plan="two", failed=Failed(repeat=0, kind=kind, reason="it did")))
    assert ("two" in {asked.name for asked, _ in Session(tmp_path / "v", ask()).left()}) == again


def test_a_line_that_was_cut_off_is_made_again(ask: Ask, tmp_path: Path) -> None:
    session = Session(tmp_path / "v", ask())
    session.add(_visited("one", 0))
    whole = (tmp_path / "v" / VISITS).read_bytes()
    (tmp_path / "v" / VISITS).write_bytes(whole + whole[:20])
    again = Session(tmp_path / "v", ask())
    assert [record.plan for record in again.records] == ["one"]
    assert (tmp_path / "v" / VISITS).read_bytes() == whole


def test_a_damaged_line_is_named(ask: Ask, tmp_path: Path) -> None:
    Session(tmp_path / "v", ask()).add(_visited("one", 0))
    path = tmp_path / "v" / VISITS
    path.write_text(path.read_text(encoding="utf-8") + "nonsense\n", encoding="utf-8")
    with pytest.raises(InputError, match=rf"^{path}:2: is no run of a validation; name a new folder"):
        Session(tmp_path / "v", ask()).left()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"repeats": 4}, "repeats: found 3, asked for 4"),
        ({"seconds": 9.0}, "seconds: found 3.0, asked for 9.0"),
        ({"seed": 7}, "seed: found 0, asked for 7"),
        ({"clocks": "passive"}, "asked_clocks: found auto, asked for passive"),
    ],
)
def test_another_question_is_refused(change: dict[str, Any], says: str, ask: Ask, tmp_path: Path) -> None:
    folder = tmp_path / "v"
    Session(folder, ask())
    with pytest.raises(InputError) as caught:
        Session(folder, ask(**change))
    assert str(caught.value) == (
        f"{folder}: holds another validation: {says}. Ask the same to go on with it, or name a new folder with -o"
    )
    assert read_spec(folder) == ask()


def test_other_plans_are_another_question(ask: Ask, plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    Session(tmp_path / "v", ask())
    with pytest.raises(InputError, match="plans: found one, two, tensor, asked for one"):
        Session(tmp_path / "v", ask(plan_of(name="one")))


def test_a_plan_that_changed_is_named_with_what_it_is(ask: Ask, plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    Session(tmp_path / "v", ask(plan_of(name="one")))
    with pytest.raises(InputError, match=r"plan one: found name: one, .* asked for name: one, .*micro_batch: 2"):
        Session(tmp_path / "v", ask(plan_of(name="one", micro_batch=2)))


def test_another_gpu_is_another_question(ask: Ask, tmp_path: Path) -> None:
    spec = ask()
    Session(tmp_path / "v", spec)
    device = spec.environment.device.model_copy(update={"uuid": "GPU-2"})
    environment = spec.environment.model_copy(update={"device": device, "host": {"cores": 1}})
    with pytest.raises(InputError, match="uuid: found GPU-1, asked for GPU-2"):
        Session(tmp_path / "v", spec.model_copy(update={"environment": environment}))


def test_the_same_gpu_on_another_day_is_the_same_question(ask: Ask, tmp_path: Path) -> None:
    spec = ask()
    Session(tmp_path / "v", spec)
    environment = spec.environment.model_copy(update={"host": {"cores": 1}})
    changed = spec.model_copy(update={"environment": environment, "notes": ("new",)})
    assert not Session(tmp_path / "v", changed).resumed


def test_a_folder_of_something_else_is_left_alone(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="is not empty, and holds no validation to go on with"):
        Session(tmp_path, ask())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_question_that_is_none(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / QUESTION).write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="the key 'plans' is missing"):
        Session(tmp_path, ask())


def test_one_at_a_time(ask: Ask, tmp_path: Path) -> None:
    Session(tmp_path / "v", ask())
    with (
        folder_lock(tmp_path / "v", "validate"),
        pytest.raises(InputError, match="another `moemodel validate` is at work in it"),
    ):
        folder_lock(tmp_path / "v", "validate").__enter__()
    with folder_lock(tmp_path / "v", "validate"):
        pass
