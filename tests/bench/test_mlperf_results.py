"""Step times out of logs of MLPerf, and forecasts that stay as they were."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mlperf_forecast import figures, sets
from mlperf_results import of_events, rows

from studies.public.mlperf import mlperf_v4_v5

KEPT = Path(__file__).parents[2] / "bench" / "measured" / "mlperf-v4-v5-predicted.json"
HEAD = [
    ("global_batch_size", 8, 0, {}),
    ("gradient_accumulation_steps", 4, 0, {}),
    ("run_start", None, 1_000, {}),
    ("run_stop", None, 61_000, {}),
]
Said = tuple[str, Any, int, dict[str, Any]]


def events(*more: Said) -> list[dict[str, Any]]:
    return [{"key": k, "value": v, "time_ms": t, "metadata": m} for k, v, t, m in (*HEAD, *more)]


def lines(said: list[dict[str, Any]]) -> str:
    """Of two ranks, the second of which writes into a line of the first."""
    return "".join(f"0: :::MLLOG {json.dumps(event)}\n" for event in said) + ':::MLLOG {"key": "br:::SYSJSON {}\n'


def block(begin_ms: int, end_ms: int, **metadata: int) -> tuple[Said, Said]:
    return ("block_start", None, begin_ms, {}), ("block_stop", None, end_ms, metadata)


@pytest.mark.parametrize(
    ("more", "key", "median", "count"),
    [
        # a step time says more than a throughput
        ([("tracked_stats", {"train_step_time": t, "throughput": 9.0}, 0, {}) for t in (2.0, 3.0, 9.0)],
         "train_step_time", 3.0, 3),
        ([("tracked_stats", {"train_step_timing in s": 4.0}, 0, {})], "train_step_timing", 4.0, 1),
        ([("tracked_stats", {"throughput": 2.5, "loss": 1.0}, 0, {})], "throughput", 2.5, 1),
        # samples since the run began: 16 in 4 s, 32 more in 12 s, by batches of 8
        ([*block(1_000, 5_000, samples_count=16), *block(9_000, 21_000, samples_count=48)],
         "block_step_time", 2.5, 2),
        # tokens of the block alone, of 2,048 a sample: two steps each
        ([("max_sequence_length", 2048, 0, {}), *block(1, 4_001, epoch_count=2 * 8 * 2048),
          *block(5_000, 11_000, epoch_count=2 * 8 * 2048)], "block_step_time", 2.5, 2),
    ],
)  # fmt: skip
def test_what_a_log_counts_of_a_step(more: list[Said], key: str, median: float, count: int) -> None:
    (row,) = of_events(events(*more), {"round": "v9.9"})
    assert (row["stat_key"], row["median"], row["n_stats"]) == (key, median, count)
    assert (row["round"], row["gbs"], row["grad_accum"], row["run_minutes"]) == ("v9.9", 8, 4, 1.0)


def test_runs_of_a_clone(tmp_path: Path) -> None:
    """Of NVIDIA's GPUs, without those whose power was measured, and without what a round before had; of the round that
    the clone is named for, wherever it lies."""
    clone = tmp_path / "v1.0" / "training_results_v4.1"
    log = lines(events(("tracked_stats", {"train_step_time": 2.0}, 0, {})))
    for number, system in enumerate(("one", "copied", "other-power", "tpu")):
        accelerator = "TPU" if system == "tpu" else "NVIDIA H100"
        described = {"number_of_nodes": "2", "accelerators_per_node": 8, "accelerator_model_name": accelerator}
        written = {f"A/systems/{system}.json": json.dumps(described)}
        written |= {f"A/results/{system}/gpt3/result_0.txt": log.replace("1000", str(1000 + number))}
        for name, text in written.items():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_text(text, encoding="utf-8")
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a", "commit", "-qm", "a"]):
        subprocess.run(["git", "-C", str(clone), *command], check=True)
    (found,) = rows(clone, {("A copied", 1001)})
    assert (found["round"], found["system"], found["nodes"], found["acc_per_node"]) == ("v4.1", "one", 2, 8)
    assert (found["benchmark"], found["result_file"], found["median"]) == ("gpt3", "result_0.txt", 2.0)


def test_errors_of_forecasts() -> None:
    said = {"step_time_s": 1.1, "interval_s": [1.0, 1.2], "verdict": "fits"}
    wide = said | {"step_time_s": 1.8, "interval_s": [1.0, 2.5], "verdict": "does not fit"}
    found = figures([(1.0, said), (2.0, wide), (3.0, {"reason": "no"})])
    assert found == pytest.approx({"mape": 0.1, "signed": 0.0, "inside": 1.0, "runs": 2, "refused": 2})
    assert figures([(1.0, {"reason": "no"})]) == {"runs": 0, "refused": 1}


def test_every_run_was_forecast_and_is_seen_or_not() -> None:
    runs = [run for run in mlperf_v4_v5() if run.is_read]
    forecast = json.loads(KEPT.read_text(encoding="utf-8"))
    assert forecast.keys() == {run.label for run in runs}
    of_sets = [set(sets(run)) for run in runs]
    assert all(len(found & {"seen", "unseen"}) == 1 and "all" in found for found in of_sets)
    assert sum("seen" in found for found in of_sets) == 29
