"""`moemodel predict`: what it prints, and what it says to a plan that is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from moemodel.calibration.store.catalogue import list_calibrations
from moemodel.model.records.calibration import SCHEMA_VERSION

Run = Callable[..., Result]

EXAMPLES = sorted(
    path
    for path in (Path(__file__).parents[2] / "examples").glob("*.yaml")
    if not path.name.startswith(("search-", "run-"))  # for `moemodel optimize`, `moemodel run`
)


def test_prints_every_figure_at_80_columns(moemodel: Run, calibration_file: Path) -> None:
    result = moemodel("predict", "plan.yaml", "--calibration", calibration_file)
    assert result.exit_code == 0
    for figure in (
        *("tokens/s per GPU", "MFU", "sustained SM clock", "power per GPU", "energy per token", "memory per GPU"),
        *("exposed communication", "pipeline bubble", "90 % interval"),
        *("forward", "backward", "optimizer", "communication", "idle"),
        *("activations", "of 85.5 available", "hours", "kWh", "kgCO2e", "Calibration test-h100"),
    ):
        assert figure in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "\x1b" not in result.stdout


def test_prints_the_same_for_machines(moemodel: Run, calibration_file: Path) -> None:
    result = moemodel("predict", "plan.yaml", "--json", "--calibration", calibration_file)
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["plan"]["name"] == "small"
    assert answer["step"]["step_time_s"]["interval"][0] < answer["step"]["step_time_s"]["value"]
    assert answer["run"]["hours"]["value"] > 0


def test_prints_what_routing_costs(moemodel: Run) -> None:
    example = next(path for path in EXAMPLES if path.stem == "olmoe-1b-7b")
    result = moemodel("predict", example)
    table = result.stdout.partition("\nRouting ")[2].partition("\n\n")[0]
    assert re.search(r"balanced +skew \S+ +costs", table.splitlines()[0])
    assert re.search(r"step +\S+ \S+ +\S+ \S+ +\+\d+%", table)
    assert re.search(r"gating +\S+ \S+, \d+% of the step", table)
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_examples_predict(example: Path, moemodel: Run) -> None:
    from moemodel.model.hardware.gpu import read_gpu
    from moemodel.model.plan.spec import read_plan

    gpu = read_gpu(read_plan(example).cluster.gpu).name
    if gpu not in list_calibrations():
        pytest.skip(f"no calibration of {gpu} ships")
    assert moemodel("predict", example).exit_code == 0


# What a plan says instead, and the words of the one message: file, key or line, what was found, what is allowed.
BAD_PLANS: dict[str, tuple[str, str, str]] = {
    "product of degrees": (
        "{dp: 8,",
        "{dp: 6,",
        "plan.yaml:7: parallel: dp 6 x tp 1 x pp 1 x cp 1 = 6, but cluster.gpus is 8",
    ),
    "heads by tp": (
        "gpus: 8}\nparallel: {dp: 8,",
        "gpus: 3}\nparallel: {tp: 3,",
        "plan.yaml: small: parallel.tp 3 does not divide the attention heads 16; allowed: divisors of 16",
    ),
    "experts by ep": (
        "opt-350m\nsequence_length: 2048\nglobal_batch: 64\nmicro_batch: 4\n"
        "cluster: {gpu: h100-sxm-80gb, gpus: 8}\nparallel: {dp: 8,",
        "olmoe-1b-7b\nsequence_length: 2048\nglobal_batch: 96\nmicro_batch: 1\n"
        "cluster: {gpu: h100-sxm-80gb, gpus: 48}\nparallel: {dp: 48, ep: 48,",
        "plan.yaml: small: parallel.ep 48 does not divide the experts 64; allowed: divisors of 64",
    ),
    "layers by pp": (
        "gpus: 8}\nparallel: {dp: 8,",
        "gpus: 32}\nparallel: {pp: 32,",
        "plan.yaml: small: parallel.pp x virtual_stages 32 is more than the 24 layers",
    ),
    "global batch": (
        "global_batch: 64",
        "global_batch: 60",
        "global_batch 60 must be a multiple of micro_batch x dp = 32",
    ),
    "unknown key": ("micro_batch: 4", "micro_batches: 4", "plan.yaml:5: unknown key 'micro_batches'; allowed here: "),
    "clock": (
        "tokens: 1e10",
        "clock_MHz: 2500",
        "plan.yaml: clock_MHz: found 2500; allowed on h100-sxm-80gb: 345 to 1980 in steps of 15",
    ),
    "memory": (
        "architecture: opt-350m",
        "architecture: llama-3-70b",
        "plan.yaml: small does not fit in memory: the fullest GPU needs",
    ),
    "not YAML": ("parallel: {dp: 8,", "parallel: {dp: 8", "plan.yaml:7: not YAML"),
    "gpu": (
        "gpu: h100-sxm-80gb",
        "gpu: h900",
        "moemodel: plan.yaml: cluster.gpu: found 'h900'; allowed: a100-pcie-40gb",
    ),
    "region": (
        "tokens: 1e10",
        "site: {region: atlantis}\ntokens: 1e10",
        "moemodel: plan.yaml: site.region: found 'atlantis'; allowed: one of",
    ),
    "control characters": ("name: small", 'name: "a\\x1b[31mb"', r"name: found 'a\x1b[31mb'; allowed: characters"),
}


@pytest.mark.parametrize(("good", "bad", "message"), BAD_PLANS.values(), ids=BAD_PLANS)
def test_a_bad_plan_gets_one_message(
    good: str, bad: str, message: str, moemodel: Run, folder: Path, calibration_file: Path
) -> None:
    plan = folder / "plan.yaml"
    text = plan.read_text(encoding="utf-8")
    assert good in text
    plan.write_text(text.replace(good, bad), encoding="utf-8")
    result = moemodel("predict", "plan.yaml", "--calibration", calibration_file)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("moemodel: ") == 1
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert [path.name for path in folder.iterdir()] == ["plan.yaml"]


def test_a_plan_too_large_is_answered_if_asked(moemodel: Run, folder: Path, calibration_file: Path) -> None:
    plan = folder / "plan.yaml"
    plan.write_text(plan.read_text().replace("opt-350m", "llama-3-70b"))
    result = moemodel("predict", "plan.yaml", "--calibration", calibration_file, "--even-if-it-does-not-fit")
    assert result.exit_code == 0
    assert "This plan does not fit in memory" in result.stdout


def test_a_doubtful_verdict_says_the_probability_that_it_fits(
    moemodel: Run, folder: Path, calibration_file: Path
) -> None:
    """On a GPU with a little more memory than the peak, which is as sure as a calibration without an error of it is."""
    command = ("predict", "plan.yaml", "--calibration", calibration_file)
    peak_B = json.loads(moemodel(*command, "--json").stdout)["memory"]["peak_B"]["value"]
    gpu = json.loads((Path(__file__).parents[2] / "model/presets/gpus/h100-sxm-80gb.json").read_text())
    gpu["memory_B"]["value"] = int(peak_B * 1.1)
    (folder / "gpu.json").write_text(json.dumps(gpu))
    plan = folder / "plan.yaml"
    plan.write_text(plan.read_text().replace("h100-sxm-80gb", "gpu.json"))
    likely = json.loads(moemodel(*command, "--json").stdout)["memory"]["fit_probability"]
    assert 0.75 < likely < 0.9
    words = " ".join(moemodel(*command).stdout.split())
    assert f"may not fit (it fits with a probability of {likely:.0%})" in words
    assert f"may not fit in memory (it fits with a probability of {likely:.0%})" in words


def test_a_plan_that_is_not_there(moemodel: Run) -> None:
    result = moemodel("predict", "other.yaml")
    assert result.exit_code == 2
    assert result.stderr == "moemodel: other.yaml: no such file\n"


def test_a_calibration_of_another_schema_version(moemodel: Run, folder: Path, calibration_file: Path) -> None:
    document = json.loads(calibration_file.read_text()) | {"schema_version": SCHEMA_VERSION + 1}
    (folder / "old.json").write_text(json.dumps(document))
    result = moemodel("predict", "plan.yaml", "--calibration", "old.json")
    assert result.exit_code == 2
    assert (
        f"old.json: schema_version: found {SCHEMA_VERSION + 1}; this moemodel reads {SCHEMA_VERSION}" in result.stderr
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "bad.json:1: not JSON"),
        ("{}", "bad.json: the key 'schema_version' is missing"),
        (f'{{"schema_version": {SCHEMA_VERSION}}}', "bad.json: the key 'name' is missing"),
        ("[1]", "bad.json"),
    ],
)
def test_a_calibration_that_is_none(text: str, message: str, moemodel: Run, folder: Path) -> None:
    (folder / "bad.json").write_text(text)
    result = moemodel("predict", "plan.yaml", "--calibration", "bad.json")
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_calibration_of_another_gpu(moemodel: Run, folder: Path, calibration_file: Path) -> None:
    plan = folder / "plan.yaml"
    plan.write_text(plan.read_text().replace("h100-sxm-80gb", "a100"))
    result = moemodel("predict", "plan.yaml", "--calibration", calibration_file)
    assert result.exit_code == 2
    assert "test-h100 is of h100-sxm-80gb, but cluster.gpu is a100-sxm-80gb" in result.stderr


def test_norways_code_is_no_truth_value(moemodel: Run, folder: Path, calibration_file: Path) -> None:
    plan = folder / "plan.yaml"
    plan.write_text(plan.read_text() + "site: {region: NO}\n")
    result = moemodel("predict", "plan.yaml", "--calibration", calibration_file)
    assert "grid of Norway (NOR), 0.030 kgCO2e/kWh" in " ".join(result.stdout.split())


def test_an_unknown_gpu_is_refused(moemodel: Run, folder: Path) -> None:
    plan = folder / "plan.yaml"
    plan.write_text(plan.read_text().replace("h100-sxm-80gb", "b100"))
    result = moemodel("predict", "plan.yaml")
    assert result.exit_code == 2
    assert result.stderr.startswith("moemodel: plan.yaml: cluster.gpu: found 'b100'; allowed: a100-pcie-40gb")


@pytest.fixture
def own_gpu(folder: Path) -> str:
    """The path of a description from which nothing can be derived."""
    document = json.loads(
        (Path(__file__).parents[2] / "model" / "presets" / "gpus" / "v100-sxm-32gb.json").read_text(encoding="utf-8")
    )
    document |= {"name": "own-v100", "aliases": [], "l2_B": None}
    (folder / "own.json").write_text(json.dumps(document), encoding="utf-8")
    return "own.json"


@pytest.mark.parametrize("gpu", ["cpu", "own-v100"])
def test_a_gpu_without_a_calibration_is_answered_for(gpu: str, own_gpu: str, moemodel: Run, folder: Path) -> None:
    plan = folder / "plan.yaml"
    plan.write_text(plan.read_text().replace("h100-sxm-80gb", own_gpu if gpu == "own-v100" else gpu))
    result = moemodel("predict", "plan.yaml")
    assert result.exit_code == 0
    said = " ".join(result.stdout.split())
    for words in ("model FLOPs", "device memory traffic", "sent over dp", "Memory of the fullest GPU", "peak"):
        assert words in said
    assert f"There is no calibration of {gpu}, so there is no time, power or energy" in said
    verdict = f"This plan fits in memory: the fullest GPU needs [0-9.]+ GB, {gpu} has [0-9.]+ GB"
    assert re.search(verdict if gpu != "cpu" else "The memory of cpu is not known", said)
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_a_gpu_without_a_calibration_for_machines(own_gpu: str, moemodel: Run, folder: Path) -> None:
    """Also of a plan that does not fit: whether it does is what was asked."""
    plan = folder / "plan.yaml"
    plan.write_text(plan.read_text().replace("h100-sxm-80gb", own_gpu).replace("opt-350m", "llama-3-8b"))
    result = moemodel("predict", "plan.yaml", "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout, parse_constant=pytest.fail)
    assert answer["calibration"] is None
    assert answer["memory"]["fits"] is False
    assert answer["memory"]["available_B"] == 32 << 30
    assert answer["memory"]["peak_B"]["value"] > 32 << 30
    assert answer["step"]["step_time_s"] == answer["step"]["gpu_energy_J"] == {"value": None, "interval": None}
    assert answer["run"] is None
    assert answer["work"]["model_flops"] == pytest.approx(6 * 8.03e9 * 64 * 2048, rel=0.15)
    assert set(answer["work"]["sent_per_gpu_B"]) == {"dp", "tp", "pp", "ep", "cp"}
    assert any("own-v100 does not compute in bf16" in note for note in answer["notes"])


def test_a_search_without_a_calibration_says_what_is_known_without(own_gpu: str, moemodel: Run, folder: Path) -> None:
    document = "architecture: opt-350m\nsequence_length: 2048\nglobal_batch: 64\n"
    document += f"cluster: {{gpu: {own_gpu}, gpus: 8}}\n"
    (folder / "search.yaml").write_text(document)
    result = moemodel("optimize", "search.yaml")
    assert result.exit_code == 2
    assert "no calibration of own-v100 ships; those that do: " in result.stderr
    for name in (*list_calibrations(), "`moemodel profile`", "`moemodel calibrate`", "--calibration", "memory, FLOPs"):
        assert name in result.stderr


def test_a_parameter_that_is_missing_is_named(moemodel: Run, folder: Path, calibration_file: Path) -> None:
    document = json.loads(calibration_file.read_text())
    del document["power"]["parameters"]["knee_Hz"]
    (folder / "bad.json").write_text(json.dumps(document))
    result = moemodel("predict", "plan.yaml", "--calibration", "bad.json")
    assert result.exit_code == 2
    assert result.stderr.startswith("moemodel: bad.json: power.parameters: missing: knee_Hz (required: base_W, ")
    assert "Traceback" not in result.stderr


def test_an_unknown_calibration_lists_the_known_ones(moemodel: Run) -> None:
    result = moemodel("predict", "plan.yaml", "--calibration", "h1000")
    assert result.exit_code == 2
    assert "calibration: found 'h1000'; allowed: " in result.stderr


def test_a_plan_is_data(moemodel: Run, folder: Path, calibration_file: Path) -> None:
    plan = folder / "plan.yaml"
    plan.write_text(plan.read_text() + "name2: !!python/object/apply:os.mkdir [ran]\n")
    assert moemodel("predict", "plan.yaml", "--calibration", calibration_file).exit_code == 2
    assert not (folder / "ran").exists()


def test_a_reader_that_goes_away_is_no_error(folder: Path, calibration_file: Path, environment: dict[str, str]) -> None:
    command = f"{sys.executable} -m moemodel predict plan.yaml --calibration {calibration_file} | head -1"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=True, cwd=folder, env=environment
    )
    assert done.stdout == "small\n"
    assert "Traceback" not in done.stderr


def test_a_trace_is_written(moemodel: Run, folder: Path, calibration_file: Path) -> None:
    result = moemodel("predict", "plan.yaml", "--trace", "trace.json", "--calibration", calibration_file)
    assert result.exit_code == 0, result.output
    assert "wrote trace.json" in result.stdout
    trace = json.loads((folder / "trace.json").read_text(encoding="utf-8"))
    step_s = trace["otherData"]["step_time_s"]
    assert sum(e["dur"] for e in trace["traceEvents"] if e["ph"] == "X") * 1e-6 == pytest.approx(step_s)
    again = moemodel("predict", "plan.yaml", "--json", "--trace", "trace.json", "--calibration", calibration_file)
    assert json.loads(again.stdout)["step"]["step_time_s"]["value"] == pytest.approx(step_s)
    refused = moemodel("predict", "plan.yaml", "--trace", "plan.yaml", "--calibration", calibration_file)
    assert refused.exit_code == 2
    assert "is there already and is no trace" in refused.stderr
