"""Every YAML, every Python and every command of the README and of docs/ is run.

Commands stand indented by four spaces, a comment behind two spaces or more; or in a line of text, in backticks. Those
of one document are run in its order, in one folder (`_folder` says what lies in it), by the click commands themselves.
What needs a GPU or minutes is run otherwise: `INSTEAD` and `MADE_UP` say how.
"""

from __future__ import annotations

import itertools
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

import moemodel
from moemodel.cli import main
from moemodel.model.records.calibration import Calibration
from tests.run_folders import MadeRun, write_matrix

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    Path("README.md"),
    Path("CONTRIBUTING.md"),
    *sorted(path.relative_to(ROOT) for path in (ROOT / "docs").glob("*.md")),
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# A command -> what is run in its place, and why.
INSTEAD: dict[str, str] = {
    # no GPU here: the simulated one, and of it the section that takes no time
    "moemodel profile --gpu h100 -o DIR": "moemodel profile --gpu sim:h100 --sections host -o DIR",
    "moemodel profile --gpu h100 -o my-profile": "moemodel profile --gpu sim:h100 --sections host -o my-profile",
    # written above, and not replaced without being asked
    "moemodel init": "moemodel init --force",
    # a search of that name lies there, with few choices
    "moemodel init --search": "moemodel init --search -o commented.yaml",
    # a sentence about what is refused: the exit code of that is 2
    "moemodel profile --gpu replay:FILE": "! moemodel profile --gpu replay:FILE",
    # a search of half a million plans takes 15 s: one of the same document with few choices
    "moemodel optimize search.yaml": "moemodel optimize small.yaml",
    # the same figures that `moemodel compare RUNS` draws before them
    "moemodel compare RUNS -o comparison": "moemodel compare RUNS -o comparison --no-figures",
    "moemodel compare RUNS -o comparison --json": "moemodel compare RUNS -o comparison --json --no-figures",
    # any name: one that there is
    "moemodel gpus NAME": "moemodel gpus h200",
    "moemodel profile --gpu NAME -o DIR": "moemodel profile --gpu sim:h100 --sections host -o DIR",
}
# What takes minutes or a GPU, and is made up while all commands run; tests of its own room run it.
MADE_UP = {
    "moemodel.calibration.fit.calibration.calibrate_profile": "gives the shipped calibration: a fit takes minutes",
    "moemodel.calibration.update.from_reports.update": "gives what it is given: a fit takes a minute",
    "made_up_gpus": "hardware and runs of `moemodel validate`",
}
NAMED = [
    ["predict"],
    ["optimize"],
    ["profile"],
    ["calibrate"],
    ["validate"],
    ["run"],
    ["compare"],
    ["schedule"],
    ["strategies"],
    ["import", "megatron"],
]  # they need more than their name
# The driver's (there is no GPU to reset), PyTorch's, and pre-commit's, which is not installed for the tests.
NOT_OURS = (
    "nvidia-smi -rgc",
    "pip install torch --index-url https://download.pytorch.org/whl/cpu",
    "pip install pre-commit",
    "pre-commit install",
)
_PROGRAMS = ("moemodel", "python", "pip", "make", "pre-commit", "nvidia-smi", "eval", r"_MOEMODEL_COMPLETE=\S+")
_COMMAND = re.compile(rf"(?:{'|'.join(_PROGRAMS)}) .+")


# ---- what a document holds ------------------------------------------------------------------------------------------


def fenced(text: str) -> Iterator[tuple[str, str]]:
    """Language and text of every fenced block."""
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield match[1], match[2]


def commands(text: str) -> list[str]:
    """Commands in the order in which they stand."""
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    found: list[str] = []
    for line in re.findall(r"^    \S.*$|`[^`\n]+`", plain, re.MULTILINE):
        said = re.split(r"\s{2,}(?:or: |once, then: )?", line.strip("` \n"))
        found += [part for part in said if _COMMAND.fullmatch(part)]
    return found


def calls(text: str) -> list[str]:
    """Calls of Python in a line of text."""
    return re.findall(r"`(moemodel\.\w+\([^`]*\))`", text)


def test_what_is_looked_for_is_found() -> None:
    text = "`make x`, `a.py`, `moemodel.f(1)`\n\n    moemodel init -o a   or: moemodel init\n    no command\n\n"
    assert commands(text) == ["make x", "moemodel init -o a", "moemodel init"]
    assert calls(text) == ["moemodel.f(1)"]
    assert list(fenced("```yaml\na: 1\n```\n\n```\nb\n```\n")) == [("yaml", "a: 1\n"), ("", "b\n")]


def test_every_stand_in_stands_for_something() -> None:
    written = {command for path in DOCUMENTS for command in commands((ROOT / path).read_text(encoding="utf-8"))}
    assert set(INSTEAD) <= written
    assert set(NOT_OURS) <= written


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_file_that_is_named_is_there(document: Path) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    linked = [(ROOT / document).parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)]
    named = [ROOT / name for name in re.findall(r"`((?:[a-z_]+/)+[a-z_0-9-]+\.(?:py|md|yaml|json))`", text)]
    assert [path for path in linked + named if not path.exists()] == []


def test_floors_are_drawn_as_they_are_held() -> None:
    """Tables of docs/architecture.md against the contracts that `make lint` holds."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    contracts = {contract["name"]: contract for contract in PROJECT["tool"]["importlinter"]["contracts"]}
    for room in ("model", "profiler", "calibrate", "validate"):
        table = text.partition(f"`{room}/`:\n\n")[2].partition("\n\n")[0]
        drawn = [set(re.findall(r"`(\w+)`", row.split("|")[1])) for row in table.splitlines()[2:]]
        held = [set(re.findall(r"\w+", layer)) for layer in contracts[f"floors of {room}/"]["layers"]]
        assert drawn == held[: len(drawn)], room
        assert all(layer.startswith("(") for layer in contracts[f"floors of {room}/"]["layers"][len(drawn) :]), room


# ---- commands -------------------------------------------------------------------------------------------------------


@pytest.fixture
def _made_up(made_up_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001 - see MADE_UP
    from moemodel.calibration.fit import calibration as fit
    from moemodel.calibration.update import from_reports
    from moemodel.profiler.runs import execute
    from moemodel.profiler.runs.document import RunDocument, cells

    def calibrate_profile(*folders: Path, **_: Any) -> tuple[Calibration, list[Any]]:
        assert all(folder.is_dir() for folder in folders)
        return moemodel.shipped("h100-sxm-80gb"), []

    def update(start: Calibration, reports: Any, *_: Any, **__: Any) -> from_reports.Update:
        assert reports
        return from_reports.Update(calibration=start, parts=(), kept=("memory",), plans=3, left_out="3 plans")

    def run_matrix(document: RunDocument, folder: Path, *_: Any, **__: Any) -> execute.MatrixResult:
        assert cells(document, Path())
        return execute.MatrixResult(folder=folder)

    monkeypatch.setattr(fit, "calibrate_profile", calibrate_profile)
    monkeypatch.setattr(from_reports, "update", update)
    monkeypatch.setattr(execute, "run_matrix", run_matrix)


@pytest.fixture
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What users are taken to have: plans, a search, profiles, a validation, a recording, readings, examples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOEMODEL_CLOCKS", raising=False)
    for name in ("examples", "model", "bench"):
        Path(name).symlink_to(ROOT / name)
    for name in ("plan", "a", "b"):
        shutil.copy(ROOT / "examples" / "opt-350m.yaml", f"{name}.yaml")
    document = yaml.safe_load((ROOT / "examples" / "search-two-gpus.yaml").read_text(encoding="utf-8"))
    for name in ("search", "small"):
        Path(f"{name}.yaml").write_text(yaml.safe_dump(document | {"search": FEW}), encoding="utf-8")
    for name in ("A", "B"):
        Path(name).mkdir()
    shutil.copy(ROOT / "bench" / "measured" / "h100-sxm-80gb-attribution.jsonl", "session.jsonl")
    sizes = list(itertools.product((128, 512, 2048, 8192), *[(512, 1024, 2048, 4096, 8192)] * 2))
    readings = pd.DataFrame(sizes, columns=["m", "n", "k"])
    readings["latency_ms"] = 5e-3 + 2.5e-15 * readings["m"] * readings["n"] * readings["k"] * 1e3
    readings.assign(gemm_dtype="bfloat16", system="b200").to_parquet("gemm.parquet")
    moemodel.validate("a.yaml", folder="FOLDER", controls=False)
    shutil.copy(ROOT / "examples" / "run-experts.yaml", "RUN.yaml")
    write_matrix(Path("RUNS"), [MadeRun(backend=name, samples=32) for name in ("torch", "deepspeed")])


FEW = {"dp": 2, "cp": 1, "zero_stage": 1, "micro_batch": [2, 4], "recompute": "none"}


def _ours(words: list[str]) -> None:
    """A command of ours; one that a sentence only names, without what it needs, shows its help."""
    expected = 0
    if words[0] == "!":
        expected, words = 2, words[1:]
    arguments = [*words[1:], "--help"] if words[1:] in NAMED else words[1:]
    result = CliRunner().invoke(main, arguments, prog_name="moemodel")
    assert result.exit_code == expected, f"{' '.join(words)}: {result.output} {result.exception}"


def _completion(shell: str) -> None:
    result = CliRunner().invoke(main, [], prog_name="moemodel", env={"_MOEMODEL_COMPLETE": shell})
    assert result.exit_code == 0
    assert "_moemodel_completion" in result.output


def _script(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A script takes its options; what it measures takes minutes, or a GPU, and is tested in tests/bench."""
    monkeypatch.setattr(sys, "argv", [words[1], "--help"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    assert done.value.code == 0
    said = capsys.readouterr().out
    assert all(word in said for word in words[2:] if word.startswith("-")), words


def _install(words: list[str]) -> None:
    """What is installed or built is this project, and its extras are there; tests/test_wheel.py builds it."""
    assert words[1] in ("install", "wheel")
    named = re.fullmatch(r"(?:\.|moemodel)(?:\[([\w,]+)\])?(?: @ git\+URL)?", words[-1])
    assert named, words
    assert set((named[1] or "dev").split(",")) <= set(PROJECT["project"]["optional-dependencies"])


def _make(words: list[str]) -> None:
    """A target of the Makefile; that which shows something runs an example, whose command is run here."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in [word for word in words[1:] if "=" not in word]:
        recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)*)", makefile, re.MULTILINE)
        assert recipe, target
        for example in re.findall(r"bin/(moemodel .*)", recipe[1]):
            _ours(shlex.split(example))


def run(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A command as it is written, or what INSTEAD says."""
    if command in NOT_OURS:
        return
    completion = re.search(r"_MOEMODEL_COMPLETE=(\w+)", command)
    words = shlex.split(INSTEAD.get(command, command))
    first = words[1] if words[0] == "!" else words[0]
    if completion:
        _completion(completion[1])
    elif first == "python":
        _script(words, monkeypatch, capsys)
    elif first == "pip":
        _install(words)
    elif first == "make":
        _make(words)
    else:
        assert first == "moemodel", command
        _ours(words)


@pytest.mark.usefixtures("_made_up", "_folder")
@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_command(document: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for command in dict.fromkeys(commands(text)):
        run(command, monkeypatch, capsys)
    for call in dict.fromkeys(calls(text)):
        assert eval(call, {"moemodel": moemodel}) is not None  # it is our own document


def test_completion_completes(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"_MOEMODEL_COMPLETE": "bash_complete", "COMP_WORDS": "moemodel pre", "COMP_CWORD": "1"}
    monkeypatch.delenv("MOEMODEL_CLOCKS", raising=False)
    assert CliRunner().invoke(main, [], prog_name="moemodel", env=words).stdout == "plain,predict\n"


# ---- blocks ---------------------------------------------------------------------------------------------------------

BLOCKS = [
    (document, number, language, text)
    for document in DOCUMENTS
    for number, (language, text) in enumerate(fenced((ROOT / document).read_text(encoding="utf-8")), start=1)
]


def test_blocks_are_of_languages_that_are_run() -> None:
    assert {language for _, _, language, _ in BLOCKS} <= {"", "python", "yaml"}  # "": drawings


YAML = [pytest.param(text, id=f"{document}-{number}") for document, number, kind, text in BLOCKS if kind == "yaml"]


@pytest.mark.parametrize("text", YAML)
def test_every_yaml(text: str) -> None:
    from moemodel.profiler.runs.document import RunDocument, cells

    if "samples:" not in text:
        assert moemodel.predict(text).fits
        return
    for cell in cells(RunDocument.model_validate(yaml.safe_load(text)), Path()):
        assert moemodel.predict(cell.plan).fits


class _Base:
    """What a callback of a Trainer derives from."""


class _Model:
    """Stands for a model of Hugging Face: a batch in, an output with a loss out."""

    def __init__(self) -> None:
        import torch

        self.linear = torch.nn.Linear(4, 1)

    def __call__(self, batch: Any) -> Any:
        return SimpleNamespace(loss=self.linear(batch).sum())


def _names() -> dict[str, Any]:
    """What the blocks take as given: a loop's loader, model and optimizer, and the Trainers of two libraries."""
    import torch

    model = _Model()
    trainer = SimpleNamespace(Trainer=lambda *_, callbacks, **__: callbacks)
    return {
        "loader": [torch.ones(2, 4)] * 3,
        "model": model,
        "optimizer": torch.optim.SGD(model.linear.parameters()),
        "transformers": trainer,
        "lightning": trainer,
    }


@pytest.fixture
def _libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Hugging Face nor Lightning is installed for the tests."""
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(TrainerCallback=_Base))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", SimpleNamespace(Callback=_Base))


@pytest.mark.usefixtures("_made_up", "_folder", "_libraries")
@pytest.mark.parametrize("document", dict.fromkeys(b[0] for b in BLOCKS if b[2] == "python"), ids=str)
def test_every_python(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The blocks of a document, in order: a later one may use what an earlier one has imported."""
    names = _names()
    for _, number, _, text in (b for b in BLOCKS if b[0] == document and b[2] == "python"):
        if "codecarbon" in text:
            pytest.importorskip("codecarbon")
        exec(compile(text, f"{document}, block {number}", "exec"), names)
        assert "print(" not in text or capsys.readouterr().out
