"""The benchmark of metered runs, as users run it; its table against what its submitter adds up and nodes can draw."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
from mlperf_power import extracted

MEASURED = Path(__file__).parents[2] / "bench" / "measured"
ROWS = list(csv.DictReader((MEASURED / "mlperf-power.csv").read_text().splitlines()))

# kWh of all nodes by the submitter's own sum, power/*/total_power.txt beside the logs of 64 nodes: AC, DC
TOTALS_kWh = {
    "5848-240517221859825376616_2": (415.22, 408.44),
    "5849-240518014016374832336_1": (415.23, 408.93),
    "5849-240518014016374832336_3": (415.08, 408.75),
    "5730-240516232429153071029_3": (10.57, 10.30),
    "5731-240517004956429471933_4": (10.39, 10.11),
    "5864-240518083207394458159_6": (10.47, 10.27),
}


def test_the_table_is_made_of_logs(tmp_path: Path) -> None:
    """One run of Dell's, of a minute at 7 kW on each of two nodes; the clock of the second is 9 s ahead."""
    folder = tmp_path / "training_results_v4.1/Dell/results/8xXE9680x8H100-SXM-80GB-POWER/llama2_70b_lora"
    (folder / "power" / "result_0").mkdir(parents=True)
    told = {"run_start": 0, "block_start": 0, "block_stop": 20, "eval_start": 20, "eval_stop": 30}
    again = {"block_start": 30, "block_stop": 60, "run_stop": 60}
    run = [_event(0, "global_batch_size", 8), *(_event(at_s, key, samples_count=0) for key, at_s in told.items())]
    run += [_event(at_s, key, samples_count=80) for key, at_s in again.items()]
    (folder / "result_0.txt").write_text("\n".join(run))
    for node, ahead_s in enumerate((0, 9)):
        loads = {at_s: 3000 if 20 < at_s <= 30 else 7000 for at_s in range(-30, 80)}
        meter = "\n".join(_event(at_s - ahead_s, "power_reading", load_W) for at_s, load_W in loads.items())
        (folder / "power" / "result_0" / f"node_{node}.txt").write_text(meter)
    (row,) = csv.DictReader(extracted(tmp_path).splitlines())
    assert (row["system"], row["run"], row["steps"], row["steady_steps"]) == ("dell-8-lora", "0", "10", "10")
    assert (row["node_ac_W"], row["node_ac_spread_W"]) == ("7000.0", "0.0")
    assert float(row["run_ac_J"]) == 2 * (7000 * 50 + 3000 * 10)


def test_first_predictions_are_kept(rerun_bench: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = rerun_bench("mlperf_power.py", "--predict")
    assert done.returncode == 2
    assert "mlperf-power-predicted.json is there, and is kept as it is" in done.stderr


def _event(at_s: float, key: str, value: object = None, **metadata: object) -> str:
    return f":::MLLOG {json.dumps({'time_ms': 1e12 + at_s * 1e3, 'key': key, 'value': value, 'metadata': metadata})}"


@pytest.fixture(scope="module")
def figures(rerun_bench: Callable[..., subprocess.CompletedProcess[str]]) -> dict[str, float]:
    done = rerun_bench("mlperf_power.py", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("run", TOTALS_kWh)
def test_a_run_takes_what_its_submitter_adds_up(run: str) -> None:
    (row,) = (row for row in ROWS if row["run"] == run)
    # a run of two minutes differs by what stands at its ends, where nodes are read every 2 s
    near = 0.001 if row["system"] == "smc-64-gpt3" else 0.025
    assert [float(row[side]) / 3.6e6 for side in ("run_ac_J", "run_dc_J")] == pytest.approx(TOTALS_kWh[run], rel=near)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['system']}-{row['run']}")
def test_a_row_holds_together(row: dict[str, str]) -> None:
    nodes, run_s, ac_W = int(row["nodes"]), float(row["run_s"]), float(row["node_ac_W"])
    mean_W = float(row["run_ac_J"]) / nodes / run_s
    assert 2000 < mean_W < ac_W < 10_200  # what a DGX H100 may draw (its data sheet)
    assert float(row["steady_s"]) + float(row["evaluation_s"]) < run_s
    assert 0 < int(row["steady_steps"]) < int(row["steps"])
    if row["node_dc_W"]:
        assert 0.94 < float(row["node_dc_W"]) / ac_W < 1.0  # 80 PLUS Titanium: 0.94 to 0.96 at half of its load
        assert float(row["run_dc_J"]) < float(row["run_ac_J"])


def test_errors_are_those_of_the_table_and_the_first_predictions(figures: dict[str, float]) -> None:
    first = json.loads((MEASURED / "mlperf-power-predicted.json").read_text())
    errors = []
    for name, told in first.items():
        rows = [row for row in ROWS if row["system"] == name]
        step_s = median(float(row["steady_s"]) / int(row["steady_steps"]) for row in rows)
        all_W = median(float(row["node_ac_W"]) for row in rows) * int(rows[0]["nodes"])
        errors.append(told["it_energy_J"] / (all_W * step_s) - 1)
    assert figures["first_step_energy_signed"] == pytest.approx(sum(errors) / 5)
    assert figures["first_step_energy_mape"] == pytest.approx(sum(map(abs, errors)) / 5)


def test_what_differs_from_a_prediction_is_time_and_hosts(figures: dict[str, float]) -> None:
    """Energy over time is power, and hosts are what stands beside the GPUs: by the figures of one system alone."""
    for name in ("smc-1-lora", "smc-8-lora", "smc-64-lora", "smc-64-gpt3", "dell-8-lora"):
        time, power, energy = (1 + figures[f"{name}_{key}"] for key in ("step_time", "node_power", "step_energy"))
        assert time * power == pytest.approx(energy)
        assert figures[f"{name}_gpus_alone"] < figures[f"{name}_step_energy"]


def test_node_power_where_nothing_was_chosen_by_it(figures: dict[str, float]) -> None:
    """512 GPUs of GPT-3 by hosts of a single node, and Dell's by another laboratory's node."""
    assert abs(figures["smc-64-gpt3_node_power"]) < 0.03
    assert abs(figures["dell-8-lora_node_power"]) < 0.06
    assert figures["held_out_late_node_power_mape"] < 0.035
    assert figures["held_out_node_power_mape"] < figures["first_held_out_node_power_mape"]
