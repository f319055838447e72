"""What a validation keeps in its folder: going on, other questions, damage."""

from __future__ import annotations

import json
import re
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
    row = {"rank": 0, "step_time_s": 0.1, "power_W": None, "temperature_C": 48.0, "wall_s": 1_795_000_000.0}
    visit = Visit(repeat=repeat, clock_held=None, seconds=1.0, rows=(row,))
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


# ---- what a kill, a full disk or a damaged disk leaves behind --------------------------------------------------------


def _failed_with(reason: str) -> RunRecord:
    return RunRecord(plan="two", failed=Failed(repeat=0, kind="out of memory", reason=reason))


def test_cutting_off_a_line_loses_no_whole_one(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is cut in place: there is no moment at which whole lines are not on the disk."""
    session = Session(tmp_path / "v", ask())
    for repeat in range(3):
        session.add(_visited("one", repeat))
    path = tmp_path / "v" / VISITS
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"plan":"one","vis')

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr(Path, "write_bytes", full)
    assert len(Session(tmp_path / "v", ask()).records) == 3
    assert path.read_bytes() == whole


def test_a_line_cut_off_within_a_character(ask: Ask, tmp_path: Path) -> None:
    Session(tmp_path / "v", ask()).add(_visited("one", 0))
    path = tmp_path / "v" / VISITS
    line = _failed_with("zu groß").model_dump_json().encode()
    path.write_bytes(path.read_bytes() + line[: line.index("ß".encode()) + 1])
    assert [record.plan for record in Session(tmp_path / "v", ask()).records] == ["one"]


def test_a_line_that_lacks_only_its_end_is_kept(ask: Ask, tmp_path: Path) -> None:
    session = Session(tmp_path / "v", ask())
    session.add(_visited("one", 0))
    session.add(_visited("one", 1))
    path = tmp_path / "v" / VISITS
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    again = Session(tmp_path / "v", ask())
    assert again.records == session.records
    assert path.read_bytes() == whole


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_separators_in_a_reason_end_no_line(separator: str, ask: Ask, tmp_path: Path) -> None:
    record = _failed_with(f"one{separator}two")
    Session(tmp_path / "v", ask()).add(record)
    assert Session(tmp_path / "v", ask()).records == [record]


@pytest.mark.parametrize("left", [f".{QUESTION}.abc.tmp", f".{QUESTION}.part", ".lock"])
def test_one_that_was_ended_before_it_began_begins(left: str, ask: Ask, tmp_path: Path) -> None:
    (tmp_path / left).write_text("half", encoding="utf-8")
    assert not Session(tmp_path, ask()).resumed
    assert read_spec(tmp_path) == ask()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"plan": "three"}, ":1: found plan 'three', round 1, which this validation does not run"),
        ({"visit": None}, ":1: is no run of a validation"),
        ({"visit": {"repeat": 7, "clock_held": None, "seconds": 1, "rows": [{"power_W": 1}]}}, "round 8, which this"),
        (
            {"visit": {"repeat": 0, "clock_held": None, "seconds": 1, "rows": [{"power_W": -10_700.0}]}},
            ":1: power_W: found -10700; allowed: 0.001 to 1e+07",
        ),
        (
            {"visit": {"repeat": 0, "clock_held": None, "seconds": 1, "rows": [{"step_time_s": 0}]}},
            ":1: step_time_s: found 0",
        ),
    ],
)
def test_lines_of_something_else_are_named(change: dict[str, Any], says: str, ask: Ask, tmp_path: Path) -> None:
    Session(tmp_path / "v", ask())
    line = _visited("one", 0).model_dump() | change
    (tmp_path / "v" / VISITS).write_text(json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(says)):
        _ = Session(tmp_path / "v", ask()).records
