"""`moemodel init`: the plan that it writes, and when it writes none."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import Result

from moemodel.model.plan.spec import Plan, read_plan
from moemodel.model.search.document import Limits, Ranges, Search, read_search
from moemodel.model.search.result import read_search_result

Run = Callable[..., Result]
PRESETS = Path(__file__).parents[2] / "model" / "presets"
MODELS, GPUS = PRESETS / "architectures", PRESETS / "gpus"


@pytest.mark.parametrize("name", ["olmoe-1b-7b", "opt-350m", "switch-base-128", "llama-3-70b"])
def test_what_it_writes_predicts(name: str, moemodel: Run, folder: Path, calibration_file: Path) -> None:
    made = moemodel("init", "-o", "new.yaml", "--architecture", name, "--gpus", "64", "--calibration", calibration_file)
    assert made.exit_code == 0
    assert made.stdout == f"wrote new.yaml; next: moemodel predict new.yaml --calibration {calibration_file}\n"
    assert read_plan(folder / "new.yaml").cluster.gpus == 64
    assert moemodel("predict", "new.yaml", "--calibration", calibration_file).exit_code == 0


def test_every_key_is_explained(moemodel: Run, folder: Path, calibration_file: Path) -> None:
    moemodel("init", "-o", "new.yaml", "--calibration", calibration_file)
    text = (folder / "new.yaml").read_text()
    missing = set(Plan.model_fields) - set(yaml.safe_load(text)) - {"layers"}
    assert not missing
    assert "# layers: " in text


def test_it_overwrites_nothing(moemodel: Run, folder: Path, calibration_file: Path) -> None:
    before = (folder / "plan.yaml").read_text()
    result = moemodel("init", "--calibration", calibration_file)
    assert result.exit_code == 2
    assert result.stderr == (
        "moemodel: plan.yaml: is there already; choose another name with -o, or overwrite with --force\n"
    )
    assert (folder / "plan.yaml").read_text() == before
    assert [path.name for path in folder.iterdir()] == ["plan.yaml"]


def test_it_overwrites_if_told(moemodel: Run, folder: Path, calibration_file: Path) -> None:
    assert moemodel("init", "--force", "--calibration", calibration_file).exit_code == 0
    assert read_plan(folder / "plan.yaml").architecture == "olmoe-1b-7b"
    assert [path.name for path in folder.iterdir()] == ["plan.yaml"]


def test_a_folder_that_is_not_there(moemodel: Run, calibration_file: Path) -> None:
    result = moemodel("init", "-o", "no/where/plan.yaml", "--calibration", calibration_file)
    assert result.exit_code == 2
    assert result.stderr == "moemodel: no/where/plan.yaml: No such file or directory\n"


def test_a_gpu_that_is_none(moemodel: Run, calibration_file: Path) -> None:
    for calibration in ((), ("--calibration", calibration_file)):
        result = moemodel("init", "-o", "new.yaml", "--gpu", "b900", *calibration)
        assert result.exit_code == 2
        assert "gpu: found 'b900'; allowed: " in result.stderr


def test_nothing_is_written_for_a_model_that_does_not_fit(moemodel: Run, folder: Path, calibration_file: Path) -> None:
    result = moemodel("init", "-o", "new.yaml", "--architecture", "gpt3-175b", "--calibration", calibration_file)
    assert result.exit_code == 2
    assert "use more GPUs" in result.stderr
    assert not (folder / "new.yaml").exists()


def test_why_no_plan_is_legal(moemodel: Run, folder: Path, calibration_file: Path) -> None:
    """A million GPUs take more tokens a step than the run has: more GPUs would not help."""
    made = moemodel("init", "-o", "new.yaml", "--gpus", "1000000", "--calibration", calibration_file)
    assert made.exit_code == 2
    assert "found no legal first plan; the simplest is refused: Plan: tokens: found " in made.stderr
    assert "use more GPUs" not in made.stderr
    assert not (folder / "new.yaml").exists()


@pytest.mark.parametrize("name", ["a # b", "my model: new", "a" * 60, "größe-{x}", "yes", "2024-01-01", 'it\'s "it"'])
def test_a_path_of_any_characters_reads_back(name: str, moemodel: Run, folder: Path, calibration_file: Path) -> None:
    (folder / name).mkdir()
    shutil.copy(MODELS / "opt-350m.json", folder / name / "config.json")
    shutil.copy(GPUS / "h100-sxm-80gb.json", folder / f"{name}.json")
    (folder / "plans").mkdir()
    for output in ("new.yaml", "plans/new.yaml"):
        made = moemodel(
            *("init", "-o", output, "--architecture", f"{name}/config.json", "--gpu", f"{name}.json"),
            *("--calibration", calibration_file),
        )
        assert made.exit_code == 0, made.stderr
        predicted = moemodel("predict", output, "--calibration", calibration_file)
        assert predicted.exit_code == 0, predicted.stderr
        assert "working directory" not in predicted.stdout
        for line in (folder / output).read_text(encoding="utf-8").splitlines():
            assert re.match(r"[^#]*\s#|[^#]*$|\s*#|.*['\"].*\s#|.*['\"]$", line), line


def test_more_gpus_than_there_are(moemodel: Run) -> None:
    result = moemodel("init", "--gpus", "9" * 20)
    assert result.exit_code == 2
    assert "is not in the range 1<=x<=1000000" in result.stderr


# ---- searches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "gpus"), [("olmoe-1b-7b", 8), ("opt-350m", 3), ("llama-3-70b", 64)])
def test_a_search_that_it_writes_is_searched(
    name: str, gpus: int, moemodel: Run, folder: Path, calibration_file: Path
) -> None:
    options = ("--architecture", name, "--gpus", gpus, "--calibration", calibration_file)
    made = moemodel("init", "--search", *options)
    assert made.exit_code == 0, made.output
    assert made.stdout == (f"wrote search.yaml; next: moemodel optimize search.yaml --calibration {calibration_file}\n")
    found = moemodel("optimize", "search.yaml", "--calibration", calibration_file)
    assert found.exit_code == 0, found.output
    result = read_search_result(folder / "moemodel-search.json")
    assert result.front[0].plan.cluster.gpus == gpus
    assert result.references[0].outside == ()  # the plan that `init` writes is among them


def test_every_key_of_a_search_is_explained(moemodel: Run, folder: Path, calibration_file: Path) -> None:
    moemodel("init", "--search", "--calibration", calibration_file)
    lines = (folder / "search.yaml").read_text().splitlines()
    for model, indent in ((Search, ""), (Ranges, "  "), (Limits, "  ")):
        for name in model.model_fields:
            assert any(line.startswith((f"{indent}{name}:", f"{indent}# {name}:")) for line in lines), name


def test_every_line_in_comments_may_be_added(moemodel: Run, folder: Path, calibration_file: Path) -> None:
    moemodel("init", "--search", "--calibration", calibration_file)
    text = (folder / "search.yaml").read_text().replace("price_per_kWh: null", "price_per_kWh: 0.1")
    lines = text.splitlines()
    added = 0
    for number, line in enumerate(lines):
        key = line.strip().removeprefix("# ").partition(":")[0]
        if not line.strip().startswith("# ") or not key.isidentifier() or f"{key}:" in text.replace(f"# {key}:", ""):
            continue
        (folder / "added.yaml").write_text(
            "\n".join([*lines[:number], line.replace("# ", "", 1), *lines[number + 1 :]])
        )
        read_search(folder / "added.yaml")
        added += 1
    assert added >= 15


def test_a_search_is_not_written_over_another(moemodel: Run, folder: Path, calibration_file: Path) -> None:
    (folder / "search.yaml").write_text("mine")
    result = moemodel("init", "--search", "--calibration", calibration_file)
    assert result.exit_code == 2
    assert result.stderr.startswith("moemodel: search.yaml: is there already")
    assert (folder / "search.yaml").read_text() == "mine"


# ---- GPUs that nobody calibrated ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", ["cpu"])
def test_a_gpu_without_a_calibration(gpu: str, moemodel: Run, folder: Path) -> None:
    for options, name, command in (((), "plan.yaml", "predict"), (("--search",), "search.yaml", "optimize")):
        made = moemodel("init", *options, "--gpu", gpu, "--architecture", "opt-350m", "--force")
        assert made.exit_code == 0, made.output
        for part in (
            "No calibration of",
            "moemodel profile --gpu",
            "moemodel calibrate",
            f"moemodel {command} {name} --",
        ):
            assert part in made.stdout
    assert read_plan(folder / "plan.yaml").cluster.gpus == 8
    assert read_search(folder / "search.yaml").cluster.gpus == (8,)


def test_a_gpu_whose_calibration_is_derived(moemodel: Run) -> None:
    made = moemodel("init", "--gpu", "a40-48gb", "--architecture", "opt-350m", "--force")
    assert made.exit_code == 0
    said = " ".join(made.stdout.split())
    assert (
        "next: moemodel predict plan.yaml No calibration of a40-48gb ships: times and energies are derived from" in said
    )


def test_without_a_calibration_plans_still_have_to_fit(moemodel: Run, folder: Path) -> None:
    large = moemodel("init", "-o", "a40.yaml", "--gpu", "a40-48gb", "--architecture", "llama-3-8b", "--gpus", "2")
    assert large.exit_code == 2
    assert "use more GPUs" in large.stderr
    assert (
        moemodel("init", "-o", "h200.yaml", "--gpu", "h200", "--architecture", "llama-3-8b", "--gpus", "2").exit_code
        == 0
    )
    assert not (folder / "a40.yaml").exists()


def test_a_calibration_of_another_gpu_is_refused(moemodel: Run, calibration_file: Path) -> None:
    result = moemodel("init", "-o", "new.yaml", "--gpu", "h200", "--calibration", calibration_file)
    assert result.exit_code == 2
    assert "test-h100 is of h100-sxm-80gb" in result.stderr
