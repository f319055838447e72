"""Figures of a comparison against pandas and scipy, on the files themselves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from moemodel.validation.compare.comparison import Comparison, compare_folders
from moemodel.validation.compare.differences import Difference
from moemodel.validation.compare.findings import findings
from tests.run_folders import POWER_W, MadeRun, write_matrix, write_run


def _frame(folder: Path) -> pd.DataFrame:
    """Every measured step below a folder, with what its plan says."""
    frames = []
    for file in folder.rglob("steps-rank*.jsonl"):
        manifest = json.loads((file.parent / "manifest.json").read_text())
        frames.append(pd.read_json(file, lines=True).assign(run=file.parent.name, rank=file.stem, **manifest["cell"]))
    return pd.concat(frames, ignore_index=True)


def _cell(comparison: Comparison, **settings: Any) -> Any:
    found = [c for c in comparison.cells if all(c.settings[key] == value for key, value in settings.items())]
    assert len(found) == 1
    return found[0]


def _difference(comparison: Comparison, quantity: str, a: str, b: str) -> Difference:
    return next(d for d in comparison.differences if (d.quantity, d.a, d.b) == (quantity, a, b))


def test_means_and_deviations_are_those_of_pandas(matrix: Path, comparison: Comparison) -> None:
    steps = _frame(matrix)
    keys = ["backend", "global_batch", "architecture"]
    of_run = steps.groupby([*keys, "run"]).agg(energy=("energy_J", "sum"), duration=("time_s", "sum")).reset_index()
    expected = of_run.groupby(keys)[["energy", "duration"]].agg(["mean", "std", "count"])
    assert len(expected) == len(comparison.cells) == 11
    for (backend, batch, model), row in expected.iterrows():
        cell = _cell(comparison, backend=backend, global_batch=batch, model=model)
        for name in ("energy", "duration"):
            found = cell.spread(name)
            assert (found.mean, found.std) == pytest.approx((row[name, "mean"], row[name, "std"]))
            assert found.runs == row[name, "count"]


def test_the_loss_is_the_tasks_over_the_last_tenth(matrix: Path, comparison: Comparison) -> None:
    steps = _frame(matrix).query("backend == 'torch' and global_batch == 8 and architecture == 'olmoe-1b-7b'")
    expected = [of_run["task_loss"].iloc[-4:].mean() for _, of_run in steps.groupby("run")]  # of 40 steps
    found = _cell(comparison, backend="torch", global_batch=8, model="olmoe-1b-7b").spread("loss")
    assert found.mean == pytest.approx(np.mean(expected))
    assert found.std == pytest.approx(np.std(expected, ddof=1))


def test_differences_are_welchs_of_scipy(matrix: Path, comparison: Comparison) -> None:
    of_run = _frame(matrix).groupby(["backend", "global_batch", "architecture", "run"])["energy_J"].sum()
    a, b = of_run["deepspeed", 8, "olmoe-1b-7b"], of_run["torch", 8, "olmoe-1b-7b"]
    expected = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.9)
    found = _difference(comparison, "energy", "deepspeed, olmoe-1b-7b, batch 8", "torch, olmoe-1b-7b, batch 8")
    assert found.factor == "framework"
    assert found.share == pytest.approx(b.mean() / a.mean() - 1)
    assert found.interval == pytest.approx((expected.low / a.mean(), expected.high / a.mean()), rel=1e-4)
    assert found.verdict == "less"


def test_pairs_differ_in_one_thing(comparison: Comparison) -> None:
    """Of 12 cells, one of which has no run that is done: by framework 4 x 3 - 2, by batch 6 - 1, by model 6 - 1."""
    factors = [one.factor for one in comparison.differences if one.quantity == "energy"]
    assert {factor: factors.count(factor) for factor in set(factors)} == {"framework": 10, "batch": 5, "model": 5}


def test_a_difference_inside_the_spread_is_none(tmp_path: Path) -> None:
    """0.5 % apart, with a spread of 2 %; then 20 % apart."""
    noise = (0.98, 1.0, 1.02)
    for name, factor, verdict in (("near", 1.005, "none"), ("far", 1.2, "more")):
        torch = [MadeRun(repeat=i, slower=n) for i, n in enumerate(noise)]
        others = [MadeRun(backend="deepspeed", repeat=i, slower=0.8 * n * factor) for i, n in enumerate(noise)]
        found = compare_folders([write_matrix(tmp_path / name, [*torch, *others])])
        one = _difference(found, "energy", "deepspeed", "torch")
        assert one.verdict == ("none" if verdict == "none" else "less")
        texts = [finding.text for finding in findings(found, ["energy"])]
        assert len(texts) == 1
        assert ("none, it is inside the spread" in texts[0]) == (verdict == "none")


def test_of_single_runs_nothing_is_told(tmp_path: Path) -> None:
    found = compare_folders([write_matrix(tmp_path / "m", [MadeRun(), MadeRun(backend="deepspeed")])])
    assert {one.verdict for one in found.differences} == {"not told"}
    assert {one.interval for one in found.differences} == {None}
    assert any(note.startswith("Run once, so without a spread") for note in found.notes)
    assert all("is not told: run once" in finding.text for finding in findings(found))


def test_two_repeats_are_called_few(comparison: Comparison) -> None:
    """One of three ran out of memory."""
    few = {one.few for one in comparison.differences if "deepspeed, olmoe-1b-7b, batch 16" in (one.a, one.b)}
    assert few == {True}
    assert any("Few repeats (two)" in note and "deepspeed, olmoe-1b-7b, batch 16" in note for note in comparison.notes)


def test_unequal_samples_are_compared_at_the_fewest(tmp_path: Path) -> None:
    """320 and 96 samples: of the longer run the first 12 steps count, as pandas adds them up."""
    long, short = (
        write_run(tmp_path / "long", MadeRun()),
        write_run(tmp_path / "short", MadeRun(backend="deepspeed", samples=96)),
    )
    found = compare_folders([long, short])
    assert found.samples == 96
    steps = pd.read_json(long / "steps-rank0.jsonl", lines=True).iloc[:12]
    (one,) = _cell(found, backend="torch").runs
    assert one.values["energy"] == pytest.approx(steps["energy_J"].sum())
    assert one.values["duration"] == pytest.approx(steps["time_s"].sum())
    assert one.values["loss"] == pytest.approx(steps["task_loss"].iloc[-1:].mean())
    result = json.loads((long / "result.json").read_text())
    assert one.values["emissions"] == pytest.approx(result["emissions_kg"] * 96 / 320)
    assert one.phases["forward"].energy_J == pytest.approx(result["ranks"][0]["phases"]["forward"]["energy_J"] * 0.3)
    assert any("1 of the runs went on to more samples" in note and "emissions, phases" in note for note in found.notes)


def test_a_last_step_counts_by_its_part(tmp_path: Path) -> None:
    """40 samples are two and a half steps of 16."""
    folders = [write_run(tmp_path / "a", MadeRun(samples=40)), write_run(tmp_path / "b", MadeRun(batch=16, samples=64))]
    found = compare_folders(folders)
    times_s = pd.read_json(folders[1] / "steps-rank0.jsonl", lines=True)["time_s"]
    assert _cell(found, global_batch=16).spread("duration").mean == pytest.approx(
        times_s[0] + times_s[1] + times_s[2] / 2
    )
    assert any("no whole number of steps" in note and "batch 16" in note for note in found.notes)


def test_the_slowest_rank_is_the_runs_time_and_all_ranks_its_energy(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "two", MadeRun(gpus=2))
    ranks_s = [pd.read_json(folder / f"steps-rank{r}.jsonl", lines=True)["time_s"].sum() for r in range(2)]
    (cell,) = compare_folders([folder]).cells
    assert cell.spread("duration").mean == pytest.approx(max(ranks_s))  # type: ignore[union-attr]
    assert cell.spread("energy").mean == pytest.approx(POWER_W * sum(ranks_s))  # type: ignore[union-attr]


def test_a_gpu_without_a_sensor_has_no_energy_and_that_is_said(tmp_path: Path) -> None:
    (cell,) = (found := compare_folders([write_run(tmp_path / "one", MadeRun(energy=False))])).cells
    assert cell.spread("energy") is cell.spread("emissions") is None
    assert cell.spread("duration") is not None
    assert cell.phase("forward") is None
    assert any(note == "Not measured: energy of the GPUs, of: torch." for note in found.notes)


def test_phases_and_what_is_between_them_are_the_whole(comparison: Comparison) -> None:
    for cell in comparison.cells:
        for run in cell.runs:
            energies_J = [phase.energy_J or math.nan for phase in run.phases.values()]
            assert sum(energies_J) == pytest.approx(run.values["energy"])
            assert list(run.phases) == ["forward", "backward", "optimizer", "rest"]


def test_routing_is_that_of_the_files(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", MadeRun(samples=64, dropped=0.05, skew=3.0))
    lines = pd.read_json(folder / "routing-rank0.jsonl", lines=True)
    skews = lines["rows_E"].map(lambda rows: max(rows) / np.mean(rows))
    dropped = lines.groupby("step").apply(lambda s: s["dropped"].sum() / s["rows_E"].map(sum).sum()).mean()
    (cell,) = compare_folders([folder]).cells
    (run,) = cell.runs
    assert run.values["skew"] == pytest.approx(skews.mean())
    assert run.values["dropped"] == pytest.approx(dropped)
    assert run.values["entropy"] == pytest.approx(3.85)
    assert run.run.routing is not None
    expected = np.sum(lines.query("layer == 1")["rows_E"].tolist(), axis=0)
    assert run.run.routing.rows_E(1, 8).tolist() == expected.tolist()


def test_what_was_predicted_stands_beside_what_was_measured(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", MadeRun(predicted=1.2))
    found = compare_folders([folder])
    checks = {check.quantity: check for check in found.checks}
    result = json.loads((folder / "result.json").read_text())
    assert checks["step_time"].error == pytest.approx(0.120 / (result["duration_s"] / 40) - 1)
    assert checks["energy"].error == pytest.approx(0.120 * POWER_W / (result["energy_J"] / 40) - 1)
    assert checks["memory"].error == pytest.approx(0.2)
    assert checks["energy"].inside is False
    assert checks["backward"].measured.mean == pytest.approx(0.55 * 1.05 * result["energy_J"] / 40)


def test_a_prediction_for_another_gpu_is_left_out(tmp_path: Path) -> None:
    found = compare_folders([write_run(tmp_path / "one", MadeRun(gpu="cpu"))])
    assert found.checks == ()
    assert any("left out: torch (for h100-sxm-80gb, run on cpu)" in note for note in found.notes)
    without = compare_folders([write_run(tmp_path / "two", MadeRun(predicted=None))])
    assert any(note == "Nothing was predicted of: torch." for note in without.notes)


def test_runs_that_did_not_end_well_are_results(comparison: Comparison) -> None:
    ended = {one.status: one for one in comparison.ended}
    assert sorted(ended) == ["cut short", "failed", "out of memory", "refused"]
    memory = ended["out of memory"]
    assert (memory.label, memory.largest_term) == ("deepspeed, olmoe-1b-7b, batch 16", "activations")
    assert memory.predicted_B == pytest.approx(33.6e9)
    assert memory.reason == "CUDA out of memory: tried to allocate 2.0 GiB"
    assert comparison.done + len(comparison.ended) == 36


def test_where_none_is_done_that_is_said(tmp_path: Path) -> None:
    found = compare_folders([write_run(tmp_path / "one", MadeRun(status="refused", reason="no"))])
    assert (found.samples, found.cells) == (None, ())
    assert found.notes == ("No run is done: there is nothing to compare.",)
    assert found.ended[0].reason == "no"


def test_losses_on_other_sequences_are_not_compared(tmp_path: Path) -> None:
    keys = {"sequence_length": 128}
    folders = [write_run(tmp_path / "a", MadeRun()), write_run(tmp_path / "b", MadeRun(keys=keys))]
    quantities = {one.quantity for one in compare_folders(folders).differences}
    assert "energy" in quantities
    assert "loss" not in quantities


def test_it_is_json(comparison: Comparison) -> None:
    data = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert data["samples"] == 320
    assert len(data["cells"]) == 11
    assert {one["status"] for one in data["ended"]} == {"cut short", "failed", "out of memory", "refused"}


def test_what_a_run_that_was_not_done_says_of_its_gpu_is_no_difference(tmp_path: Path) -> None:
    """Its driver was never asked: the manifest has the GPU as the user named it."""
    refused = MadeRun(batch=16, status="refused", reason="no", gpu="cpu")
    runs = [MadeRun(), MadeRun(backend="deepspeed"), refused]
    found = compare_folders([write_matrix(tmp_path / "m", runs)])
    assert not [note for note in found.notes if "differs in" in note and "gpu" in note]
    alike = [MadeRun(), MadeRun(backend="deepspeed", gpu="NVIDIA A100-SXM4-80GB")]
    other = compare_folders([write_matrix(tmp_path / "n", alike)])
    assert [note for note in other.notes if "differs in" in note and "gpu" in note]
