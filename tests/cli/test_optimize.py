"""`moemodel optimize`: what it prints and writes, and what it says to a search that is wrong."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from moemodel import api
from moemodel.cli import optimize, plan_folder, search_progress
from moemodel.cli.search_report import runs
from moemodel.model.plan.spec import read_plan
from moemodel.model.search.problem import summary
from moemodel.model.search.result import DEFAULT_FILE, read_search_result

Run = Callable[..., Result]

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("search-*.yaml"))

SEARCH = """\
name: small
architecture: opt-350m
sequence_length: 2048
global_batch: 64
cluster: {gpu: h100-sxm-80gb, gpus: 8}
search:
  tp: [1, 2]
  pp: 1
  cp: 1
  micro_batch: [1, 2, 4]
  recompute: none
clocks_MHz: [null, 1200, 1500]
limits: {step_time_s: 5}
tokens: 1e10
"""


@pytest.fixture
def searched(folder: Path) -> Path:
    """The folder, with `search.yaml`."""
    (folder / "search.yaml").write_text(SEARCH, encoding="utf-8")
    return folder


def test_it_prints_the_front_and_what_it_rests_on(moemodel: Run, searched: Path, calibration_file: Path) -> None:
    result = moemodel("optimize", "search.yaml", "--calibration", calibration_file)
    assert result.exit_code == 0, result.output
    for figure in (
        *("time", "GPU", "IT", "energy", "hours", "CO2e", "alike", "MHz", "auto", "dp 8 zero"),
        *("fastest", "least energy within 5%", "knee", "90 % interval"),
        *("against the reference", "Refused, by the first reason", "sequence_parallel needs tp > 1"),
        *(
            "combinations",
            "predicted",
            "feasible",
            "on the front",
            "Plans are alike where",
            "wrote moemodel-search.json",
        ),
    ):
        assert figure in result.stdout, figure
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "\x1b" not in result.stdout
    assert read_search_result(searched / DEFAULT_FILE).search.name == "small"


def test_it_prints_for_machines_what_it_writes(moemodel: Run, searched: Path, calibration_file: Path) -> None:
    result = moemodel("optimize", "search.yaml", "--json", "-o", "found.json", "--calibration", calibration_file)
    assert result.exit_code == 0
    assert result.stdout == (searched / "found.json").read_text(encoding="utf-8")
    answer = json.loads(result.stdout)
    assert answer["calibration"]["name"] == "test-h100"
    assert answer["counts"]["feasible"] > 0
    assert answer["front"][0]["step_time_s"]["interval"][0] < answer["front"][0]["step_time_s"]["value"]
    assert not (searched / DEFAULT_FILE).exists()


def test_what_it_found_before_is_replaced(moemodel: Run, searched: Path, calibration_file: Path) -> None:
    for name in ("small", "other"):
        (searched / "search.yaml").write_text(SEARCH.replace("small", name), encoding="utf-8")
        assert moemodel("optimize", "search.yaml", "--calibration", calibration_file).exit_code == 0
        assert read_search_result(searched / DEFAULT_FILE).search.name == name


def test_plans_that_it_writes_predict_the_same(moemodel: Run, searched: Path, calibration_file: Path) -> None:
    result = moemodel("optimize", "search.yaml", "--write-plans", "best", "--calibration", calibration_file)
    assert result.exit_code == 0
    front = read_search_result(searched / DEFAULT_FILE).front
    assert sorted(path.name for path in (searched / "best").iterdir()) == [f"plan-{e.number:02d}.yaml" for e in front]
    for entry in front:
        path = searched / "best" / f"plan-{entry.number:02d}.yaml"
        assert read_plan(path) == entry.plan
        predicted = moemodel("predict", path, "--json", "--calibration", calibration_file)
        assert json.loads(predicted.stdout)["step"]["step_time_s"]["value"] == entry.step_time_s.value


def test_plans_are_not_mixed_with_others(moemodel: Run, searched: Path, calibration_file: Path) -> None:
    (searched / "best").mkdir()
    (searched / "best" / "mine.yaml").write_text("")
    result = moemodel("optimize", "search.yaml", "--write-plans", "best", "--calibration", calibration_file)
    assert result.exit_code == 2
    assert result.stderr == "moemodel: --write-plans best: is not empty; name a new folder\n"
    assert not (searched / DEFAULT_FILE).exists()


def test_plans_name_files_from_their_own_folder(moemodel: Run, searched: Path, calibration_file: Path) -> None:
    """A model's file beside the search, plans in another folder, and moemodel run in a third."""
    (searched / "mine").mkdir()
    config = (ROOT / "model" / "presets" / "architectures" / "opt-350m.json").read_text(encoding="utf-8")
    (searched / "mine" / "my model.json").write_text(config, encoding="utf-8")
    text = SEARCH.replace("architecture: opt-350m", "architecture: my model.json")
    (searched / "mine" / "search.yaml").write_text(text, encoding="utf-8")
    options = ("--write-plans", "deep/best", "--calibration", calibration_file)
    assert moemodel("optimize", "mine/search.yaml", *options).exit_code == 0
    plan = searched / "deep" / "best" / "plan-01.yaml"
    assert "architecture: ../../mine/my model.json" in plan.read_text(encoding="utf-8")
    predicted = moemodel("predict", plan, "--calibration", calibration_file)
    assert predicted.exit_code == 0, predicted.output
    assert "working directory" not in predicted.stdout


@pytest.mark.parametrize("name", ["plan.yaml", "search.yaml"])
def test_nothing_but_a_result_is_replaced(name: str, moemodel: Run, searched: Path, calibration_file: Path) -> None:
    before = (searched / name).read_bytes()
    result = moemodel("optimize", "search.yaml", "-o", name, "--calibration", calibration_file)
    assert result.exit_code == 2
    assert result.stderr == f"moemodel: -o {name}: is there already and is no result of a search; name another file\n"
    assert (searched / name).read_bytes() == before


@pytest.mark.parametrize("full", ["plan-02.yaml", DEFAULT_FILE])
def test_plans_are_written_whole_or_not_at_all(
    full: str, moemodel: Run, searched: Path, calibration_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full at the second plan, or at the result."""

    def write(path: Path, *_: object, **__: object) -> None:
        if path.name == full:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        path.write_text("")

    for module in (optimize, plan_folder):
        monkeypatch.setattr(module, "write_atomic", write)
    result = moemodel("optimize", "search.yaml", "--write-plans", "best", "--calibration", calibration_file)
    assert result.exit_code == 2
    named = DEFAULT_FILE if full == DEFAULT_FILE else "best"
    assert result.stderr == f"moemodel: {named}: No space left on device\n"
    assert sorted(path.name for path in searched.iterdir()) == ["plan.yaml", "search.yaml"]


def test_an_interrupted_search_leaves_nothing(
    moemodel: Run, searched: Path, calibration_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "search", interrupted)
    result = moemodel("optimize", "search.yaml", "--write-plans", "best", "--calibration", calibration_file)
    assert result.exit_code != 0
    assert "Traceback" not in result.output
    assert sorted(path.name for path in searched.iterdir()) == ["plan.yaml", "search.yaml"]


def test_a_short_search_says_nothing_of_itself(moemodel: Run, searched: Path, calibration_file: Path) -> None:
    assert searched.exists()
    assert moemodel("optimize", "search.yaml", "--calibration", calibration_file).stderr == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_search_says_what_lies_ahead(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A terminal is shown a bar too; where there is none, only what takes more than ten seconds is told."""
    now_s = iter([0.0, 0.0, 0.5, 1.0, 11.0, 30.0, 40.0, 50.0])
    monkeypatch.setattr(search_progress, "monotonic", lambda: next(now_s))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with search_progress.SearchProgress() as progress:
        progress("memory", 0, 100)
        progress("memory", 50, 100)  # half a second to go
        progress("prediction", 0, 60_000)
        progress("prediction", 10_000, 60_000)  # in ten seconds
        progress("prediction", 30_000, 60_000)
        progress("front", 0, 20)
    told = capsys.readouterr().err
    assert told.count("60,000 predictions, of every plan that fits at every clock, in at most about 50 s") == 1
    assert ("time and energy" in told) == terminal
    assert "legal plans" not in told


def test_top_prints_fewer_and_stores_all(moemodel: Run, searched: Path, calibration_file: Path) -> None:
    text = (
        SEARCH.replace("[null, 1200, 1500]", "{from: 1100, to: 1900, step: 50}")
        + "objectives: [step_time_s, memory_B]\n"
    )
    (searched / "search.yaml").write_text(text, encoding="utf-8")
    rows, kept = [], []
    for top in ((), ("--top", 1)):
        result = moemodel("optimize", "search.yaml", *top, "--calibration", calibration_file)
        assert result.exit_code == 0
        rows.append(result.stdout[: result.stdout.index("Behind")].count(" zero "))
        kept.append(len(read_search_result(searched / DEFAULT_FILE).front))
    assert 0 < rows[1] <= 4 < rows[0]
    assert kept[0] == kept[1] >= rows[0]


def test_plans_that_differ_in_clock_alone_are_one(moemodel: Run, searched: Path, calibration_file: Path) -> None:
    text = SEARCH.replace("[null, 1200, 1500]", "{from: 1100, to: 1900, step: 50}")
    (searched / "search.yaml").write_text(text, encoding="utf-8")
    result = moemodel("optimize", "search.yaml", "--calibration", calibration_file)
    front = read_search_result(searched / DEFAULT_FILE).front
    shown = result.stdout[: result.stdout.index("Behind")].splitlines()
    choices = [summary(entry.plan, clock=False) for entry in front]
    assert len(front) > len(set(choices))
    for plan in set(choices):
        mine = [entry for entry, choice in zip(front, choices, strict=True) if choice == plan]
        (line,) = (number for number, line in enumerate(shown) if line.split(":")[0] == plan)
        ends = [mine[0], mine[-1]] if len(mine) > 1 else mine
        for below, entry in enumerate(ends, start=1):
            number, *figures = shown[line + below].split()
            assert number == str(entry.number)
            assert f"{entry.plan.clock_MHz or 'auto'}".removesuffix(".0") in figures
        assert len(mine) == 1 or shown[line].endswith("MHz")


def test_several_numbers_of_gpus_are_told_apart(moemodel: Run, searched: Path, calibration_file: Path) -> None:
    (searched / "search.yaml").write_text(SEARCH.replace("gpus: 8", "gpus: [4, 8]"), encoding="utf-8")
    result = moemodel("optimize", "search.yaml", "--calibration", calibration_file)
    assert result.exit_code == 0
    assert "opt-350m on 4, 8 x h100-sxm-80gb" in result.stdout
    assert "8 GPUs dp 8" in result.stdout


# What a search says instead, and the words of the one message.
BAD_SEARCHES: dict[str, tuple[str, str, str]] = {
    "unknown key": ("  pp: 1", "  ppp: 1", "search.yaml:8: unknown key 'search.ppp'; allowed here: cp, dispatch"),
    "word": ("  tp: [1, 2]", "  tp: all", "search.yaml:7: search.tp: found 'all'; input should be a valid integer"),
    "not YAML": ("{step_time_s: 5}", "{step_time_s: 5", "search.yaml:14: not YAML"),
    "gpu": ("gpu: h100-sxm-80gb", "gpu: h900", "moemodel: search.yaml: cluster.gpu: found 'h900'; allowed: a100"),
    "region": ("tokens:", "site: {region: atlantis}\ntokens:", "moemodel: search.yaml: site.region: found 'atlantis'"),
    "limit": ("step_time_s: 5", "step_time_s: 1e-3", "search.yaml: no plan is feasible. Of 144 combinations: "),
    "heads": ("  tp: [1, 2]", "  tp: 3", "no plan is feasible. Of 72 combinations: 72 tp does not divide the att"),
    "clock": ("[null, 1200, 1500]", "1201", "48 clocks_MHz 1201: h100-sxm-80gb has 345 to 1980 in steps of 15."),
    "memory": ("opt-350m", "llama-3-70b", "nearest miss: dp 4 tp 2 sp zero 3 micro 1 needs "),
    "control characters": ("name: small", 'name: "a\\x1b[31mb"', r"name: found 'a\x1b[31mb'; allowed: characters"),
}


@pytest.mark.parametrize(("good", "bad", "message"), BAD_SEARCHES.values(), ids=BAD_SEARCHES)
def test_a_bad_search_gets_one_message(
    good: str, bad: str, message: str, moemodel: Run, searched: Path, calibration_file: Path
) -> None:
    assert good in SEARCH
    (searched / "search.yaml").write_text(SEARCH.replace(good, bad), encoding="utf-8")
    result = moemodel("optimize", "search.yaml", "--calibration", calibration_file, "--write-plans", "best")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("moemodel: ") == 1
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert sorted(path.name for path in searched.iterdir()) == ["plan.yaml", "search.yaml"]


def test_a_search_that_is_not_there(moemodel: Run) -> None:
    result = moemodel("optimize", "other.yaml")
    assert result.exit_code == 2
    assert result.stderr == "moemodel: other.yaml: no such file\n"


def test_a_folder_that_is_not_there(moemodel: Run, searched: Path, calibration_file: Path) -> None:
    result = moemodel("optimize", "search.yaml", "-o", "no/where.json", "--calibration", calibration_file)
    assert result.exit_code == 2
    assert result.stderr == "moemodel: no/where.json: No such file or directory\n"
    assert sorted(path.name for path in searched.iterdir()) == ["plan.yaml", "search.yaml"]


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_examples_are_searched(example: Path, moemodel: Run, calibration_file: Path) -> None:
    result = moemodel("optimize", example, "--calibration", calibration_file)
    assert result.exit_code == 0, result.output


def test_a_search_imports_nothing_heavy(searched: Path, calibration_file: Path, environment: dict[str, str]) -> None:
    code = (
        "import sys; from moemodel.cli import main\n"
        f"main(['optimize', 'search.yaml', '--calibration', {str(calibration_file)!r}], standalone_mode=False)\n"
        "heavy = {'torch', 'pandas', 'sklearn', 'scipy', 'networkx', 'pynvml', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=searched, env=environment)


@pytest.mark.parametrize(
    ("numbers", "text"), [((), ""), ((3,), "3"), ((1, 2, 3, 5), "1-3,5"), ((1, 3, 4), "1,3-4"), ((2, 4), "2,4")]
)
def test_numbers_in_short(numbers: tuple[int, ...], text: str) -> None:
    assert runs(numbers) == text


# ---- goals and explanations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "goal", ["goal: fewest-gpus", "goal: least-power", "objectives: [peak_node_power_W, run_hours]"]
)
def test_goals_are_printed(goal: str, searched: Path, moemodel: Run, calibration_file: Path) -> None:
    text = SEARCH.replace("gpus: 8", "gpus: {from: 4, to: 8, step: 4}").replace("5}", "5, deadline: 20 days}")
    (searched / "search.yaml").write_text(text + goal + "\n", encoding="utf-8")
    result = moemodel("optimize", "search.yaml", "--calibration", calibration_file)
    assert result.exit_code == 0, result.output
    for words in ("Against the fastest of the front", "instead of", "Energy of a step goes to", "backward"):
        assert words in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    found = read_search_result(searched / DEFAULT_FILE)
    assert found.differences
    assert {gpus.plan.cluster.gpus for gpus in found.front} <= {4, 8}


def test_what_to_relax_is_said(searched: Path, moemodel: Run, calibration_file: Path) -> None:
    (searched / "search.yaml").write_text(SEARCH.replace("5}", "0.01}"), encoding="utf-8")
    result = moemodel("optimize", "search.yaml", "--calibration", calibration_file)
    assert result.exit_code == 2
    found = re.search(r"limits.step_time_s (\S+) instead of 0.01", result.stderr)
    assert found is not None
    (searched / "search.yaml").write_text(SEARCH.replace("5}", f"{found[1]}}}"), encoding="utf-8")
    assert moemodel("optimize", "search.yaml", "--calibration", calibration_file).exit_code == 0


def test_a_plan_is_explained(searched: Path, moemodel: Run, calibration_file: Path) -> None:
    result = moemodel("optimize", "search.yaml", "--explain", "plan.yaml", "--calibration", calibration_file)
    assert result.exit_code == 0, result.output
    first, *others = result.stdout.splitlines()
    assert re.fullmatch(r"dp 8 zero 1 micro 4: (beaten|refused|on the front)", first)
    assert others
    assert not (searched / "moemodel-search.json").exists()
    told = moemodel("optimize", "search.yaml", "--explain", "plan.yaml", "--json", "--calibration", calibration_file)
    assert json.loads(told.stdout)["summary"] == "dp 8 zero 1 micro 4"


def test_a_plan_whose_degrees_do_not_go_together_is_explained(
    searched: Path, moemodel: Run, calibration_file: Path
) -> None:
    text = (searched / "plan.yaml").read_text(encoding="utf-8")
    (searched / "plan.yaml").write_text(text.replace("dp: 8", "dp: 3"), encoding="utf-8")
    result = moemodel("optimize", "search.yaml", "--explain", "plan.yaml", "--calibration", calibration_file)
    assert result.exit_code == 0, result.output
    assert "but cluster.gpus is 8" in result.stdout
    (searched / "plan.yaml").write_text(text.replace("dp: 8", "dq: 3"), encoding="utf-8")
    wrong = moemodel("optimize", "search.yaml", "--explain", "plan.yaml", "--calibration", calibration_file)
    assert wrong.exit_code == 2
    assert "unknown key 'parallel.dq'" in wrong.stderr


def test_clocks_by_stage_are_sought_and_shown(moemodel: Run, searched: Path, calibration_file: Path) -> None:
    text = SEARCH.replace("pp: 1", "pp: 2").replace("[null, 1200, 1500]", "{per: stage, clocks: 1500}")
    text = text.replace("tp: [1, 2]", "tp: 1\n  virtual_stages: 1\n  zero_stage: 0").replace("[1, 2, 4]", "4")
    (searched / "search.yaml").write_text(text, encoding="utf-8")
    result = moemodel("optimize", "search.yaml", "--calibration", calibration_file)
    assert result.exit_code == 0, result.output
    assert re.search(r"\d{4}-\d{4}", result.stdout)
    assert "Clocks by stage were sought by a descent from 1 plans" in " ".join(result.stdout.split())
    front = read_search_result(searched / DEFAULT_FILE).front
    assert any(entry.plan.clock_MHz not in (None, 1500.0) for entry in front)


@pytest.mark.parametrize("part", ["memory", "bounds", "prediction", "clocks", "front", "limits"])
def test_every_part_of_a_search_has_words(part: str) -> None:
    assert "{" in search_progress._AHEAD[part]
    assert search_progress._PARTS[part]
