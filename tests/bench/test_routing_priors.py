"""`bench/routing_priors.py` and what it keeps of runs: counts made by hand, whose skews are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import routing_priors
from kept_routing import keep, read_kept, skews, window_edges, write_kept

from moemodel.model.core.errors import InputError
from moemodel.model.plan.spec import Plan, plan_text
from moemodel.model.records.run import RoutingRecord, RunManifest, RunResult

STEPS, TOKENS = 200, 64


def rows(busiest: int) -> list[int]:
    """Of 128 choices, 64 tokens' of 2 experts each of 8; the first expert gets so many."""
    others, rest = divmod(128 - busiest, 7)
    return [busiest, *(others + (i < rest) for i in range(7))]


def busiest(step: int, layer: int) -> int:
    """4 times the mean of 16 in the first ten steps, then 2 times, 1.5 times in the last 20; 8 rows less in layer 1."""
    return (64 if step < 10 else 32 if step < 180 else 24) - 8 * layer


def run(folder: Path, *, routing: dict[str, float] | None = None, status: str = "done", steps: int = STEPS) -> Path:
    folder.mkdir()
    plan = Plan.model_validate(
        {
            "architecture": "mixtral-8x7b",
            "layers": 2,
            "sequence_length": 16,
            "global_batch": 4,
            "cluster": {"gpu": "h100-sxm-80gb"},
            "routing": routing or {},
        }
    )
    manifest = RunManifest(
        name=folder.name, cell={}, plan_yaml=plan_text(plan), samples=4 * steps, steps=steps, warmup_steps=1,
        learning_rate=1e-3, data={"source": "corpus"}, seed=0, gpu="none", versions={}, started="now",
    )  # fmt: skip
    lines = [
        RoutingRecord(step=step, layer=layer, rows_E=rows(busiest(step, layer)), dropped=0, entropy=None)
        for step in range(steps)
        for layer in range(2)
    ]
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    (folder / "result.json").write_text(RunResult.model_validate({"status": status}).model_dump_json())
    (folder / "routing-rank0.jsonl").write_text("".join(line.model_dump_json() + "\n" for line in lines))
    return folder


def test_a_skew_is_the_busiest_over_the_mean(tmp_path: Path) -> None:
    found = skews(run(tmp_path / "a"))
    assert found.shape == (2, STEPS)
    assert found[:, [0, 9, 10, 179, 180, 199]].tolist() == [
        [4, 4, 2, 2, 1.5, 1.5],
        [3.5, 3.5, 1.5, 1.5, 1.0, 1.0],
    ]


def test_a_run_is_kept_in_a_few_numbers(tmp_path: Path) -> None:
    kept = keep(run(tmp_path / "a", routing={"balance_loss": 0.01}))
    assert (kept.experts, kept.top_k, kept.hidden, kept.tokens) == (8, 2, 4096, TOKENS)
    assert (kept.balancing, kept.balance_loss, kept.bias_rate) == ("loss", 0.01, 0)
    assert kept.initial_LS == [[4.0] * 10, [3.5] * 10]
    assert kept.trained_LS == [[1.5] * 20, [1.0] * 20]
    assert [(w.begin, w.end) for w in kept.windows] == [(0, 10), (10, 20), (20, 50), (50, 100), (100, 180), (180, 200)]
    assert kept.windows[1].quantiles_LQ == [[2.0] * 5, [1.5] * 5]
    file = write_kept(kept, tmp_path / "kept")
    assert read_kept(tmp_path / "kept") == [kept]
    assert file.stat().st_size < 2000


@pytest.mark.parametrize(
    ("routing", "rule"),
    [({}, "none"), ({"z_loss": 0.1}, "none"), ({"balance_loss": 0.1}, "loss"), ({"bias_rate": 0.1}, "bias")],
)
def test_what_balances_is_the_plans(tmp_path: Path, routing: dict[str, float], rule: str) -> None:
    assert keep(run(tmp_path / "a", routing=routing)).balancing == rule


def test_windows_hold_each_step_once() -> None:
    for steps in (1, 9, 10, 11, 25, 200, 1000):
        edges = window_edges(steps)
        assert [step for begin, end in edges for step in range(begin, end)] == list(range(steps))


def test_priors_are_quantiles_of_layers_and_steps(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a"), run(tmp_path / "b", routing={"balance_loss": 0.01}), run(tmp_path / "c")]
    file = routing_priors.of_kept([keep(one) for one in runs], "test")
    assert file is not None
    found = {(one.balancing, one.state): one for one in file.loads}
    assert set(found) == {(rule, state) for rule in ("none", "loss") for state in ("initial", "trained")}
    trained = found["none", "trained"]
    assert (trained.low, trained.skew, trained.high) == (1.0, pytest.approx(1.25), 1.5)
    assert (trained.count, found["loss", "trained"].count, trained.tokens, trained.hidden) == (80, 40, TOKENS, 4096)
    assert "2 training runs of 2 layers of width 4096, on Python's documentation, with no balancing" in trained.source
    assert "last 20 of 200 steps" in trained.source
    assert found["loss", "initial"].high == 4.0


def test_a_short_run_tells_of_the_beginning_alone(tmp_path: Path) -> None:
    file = routing_priors.of_kept([keep(run(tmp_path / "a", steps=8))], "test")
    assert file is not None
    assert [(one.state, one.count) for one in file.loads] == [("initial", 16)]
    assert routing_priors.of_kept([], "none") is None


def test_what_cannot_be_kept_is_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = run(tmp_path / "good"), run(tmp_path / "bad", status="failed")
    routing_priors.main(["--keep", str(tmp_path / "kept"), str(bad), str(good), str(tmp_path / "none")])
    out = capsys.readouterr().out
    assert "bad: found a run that is failed; allowed: done" in out
    assert "none" in out
    assert [one.name for one in read_kept(tmp_path / "kept")] == ["good"]


@pytest.mark.parametrize("damage", ["step", "rows"])
def test_damaged_counts_are_refused(tmp_path: Path, damage: str) -> None:
    folder = run(tmp_path / "a")
    file = folder / "routing-rank0.jsonl"
    lines = file.read_text().splitlines()
    last = json.loads(lines[-1])
    lines[-1] = json.dumps(last | ({"step": 300} if damage == "step" else {"rows_E": [0] * 8}))
    file.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"other steps|found no rows in step 199, layer 1"):
        keep(folder)


def test_shipped_priors_are_those_of_what_is_kept() -> None:
    """Whoever adds a run must write the priors again: `--write`."""
    shipped = {path.stem: json.loads(path.read_text()) for path in routing_priors.PRIORS.glob("*.json")}
    made = routing_priors.measured_files()
    assert set(shipped) == {*made, "even-chance"}
    assert {name: shipped[name] for name in made} == {
        name: json.loads(file.model_dump_json(exclude_none=True)) for name, file in made.items()
    }
