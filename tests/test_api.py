"""The public functions: what they take, what they refuse, and the uses in their docstrings."""

from __future__ import annotations

import doctest
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import moemodel
from moemodel.calibration.fit import calibration as fit
from moemodel.calibration.fit.operators import HeldOut
from moemodel.calibration.update import from_reports
from moemodel.calibration.update.from_reports import Update
from moemodel.model.operators.work import Kind, Pass
from moemodel.model.records.calibration import Calibration
from tests.run_folders import MadeRun, write_matrix
from tests.small_plans import CONFIG

ROOT = Path(__file__).parents[1]
PLAN: dict[str, Any] = {
    "name": "small",
    "architecture": "opt-350m",
    "sequence_length": 2048,
    "global_batch": 64,
    "micro_batch": 4,
    "cluster": {"gpu": "h100-sxm-80gb", "gpus": 8},
    "parallel": {"dp": 8, "zero_stage": 1},
}
SEARCH: dict[str, Any] = {
    "name": "few",
    "architecture": "opt-350m",
    "sequence_length": 2048,
    "global_batch": 64,
    "cluster": {"gpu": "h100-sxm-80gb", "gpus": 8},
    "search": {"dp": 8, "cp": 1, "zero_stage": 1, "micro_batch": [4, 8], "recompute": "none"},
    "clocks_MHz": None,
}
Forms = Callable[[Mapping[str, Any], Any], list[Any]]


@pytest.fixture
def forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Forms:
    """A document in all forms that are allowed: files by path and by name, YAML, a dict, itself."""
    monkeypatch.chdir(tmp_path)

    def all_of(document: Mapping[str, Any], itself: Any) -> list[Any]:
        for name in ("given.yaml", "given.yml", "given.json", "given"):
            Path(name).write_text(json.dumps(document), encoding="utf-8")
        block = yaml.safe_dump(dict(document))
        flow = yaml.safe_dump(dict(document), default_flow_style=True, width=10_000)
        files = [Path("given.yaml"), tmp_path / "given", "given.yaml", "given.yml", "given.json", "./given", "given"]
        return [*files, block, flow, dict(document), itself]

    return all_of


def test_a_plan_is_taken_in_every_form(forms: Forms, calibration: Calibration) -> None:
    plan = moemodel.Plan.model_validate(PLAN)
    answers = [moemodel.predict(form, calibration) for form in forms(PLAN, plan)]
    assert all(answer == answers[-1] for answer in answers)
    assert answers[0].plan == plan


def test_a_search_is_taken_in_every_form(forms: Forms, calibration: Calibration) -> None:
    document = moemodel.Search.model_validate(SEARCH)
    path, *_, block, flow, mapping, itself = forms(SEARCH, document)
    found = [moemodel.search(form, calibration) for form in (path, block, flow, mapping, itself)]
    assert all(one == found[-1] for one in found)
    assert found[0].search == document


def test_a_calibration_is_taken_in_every_form(calibration: Calibration, calibration_file: Path) -> None:
    answers = [moemodel.predict(PLAN, form) for form in (calibration, calibration_file, str(calibration_file))]
    assert all(answer == answers[0] for answer in answers)
    shipped = [moemodel.predict(PLAN, form) for form in (None, "h100-sxm-80gb", moemodel.shipped("h100-sxm-80gb"))]
    assert all(answer == shipped[0] for answer in shipped)


def test_a_last_line_that_names_a_file_is_still_yaml(calibration: Calibration) -> None:
    """YAML text may end in ".yaml", or hold a slash."""
    text = "sequence_length: 2048\nglobal_batch: 64\ncluster: {gpu: h100}\narchitecture: ./none.yaml"
    with pytest.raises(moemodel.InputError, match=r"none\.yaml") as caught:
        moemodel.predict(text, calibration)
    assert not str(caught.value).startswith("sequence_length")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (7, r"^plan: found int; allowed: a path, YAML text, a dict, or a Plan$"),
        (None, r"^plan: found NoneType; allowed"),
        ([PLAN], r"^plan: found list; allowed"),
        ("plan", r"^plan: found 'plan', no such file; allowed: a path"),
        ("", r"^plan: found '', no such file; allowed"),
        ("none.yaml", r"^none\.yaml: no such file$"),
        ("folder/none", r"^folder/none: no such file$"),
        (Path("none"), r"^none: no such file$"),
        ("a: 1\nb: [", r"^plan:2: not YAML"),
        ("- 1\n- 2", r"^plan: found list; a mapping of keys is expected$"),
        (PLAN | {"micro_batch": 0}, r"^plan: micro_batch: found 0; input should be greater than 0$"),
        (PLAN | {"microbatch": 4}, r"^plan: unknown key 'microbatch'; allowed here: .*micro_batch"),
        (PLAN | {"parallel": {"dp": 4}}, r"^plan: parallel: dp 4 x .* = 4, but cluster\.gpus is 8"),
        ({1: 2}, r"^plan: "),
    ],
)
def test_what_is_no_plan_is_refused(
    given: Any, message: str, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(moemodel.InputError, match=message):
        moemodel.predict(given, calibration)


def test_an_error_names_the_file(calibration: Calibration, tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(PLAN | {"layers": 99}), encoding="utf-8")
    with pytest.raises(moemodel.InputError, match=r"plan\.yaml: layers: found 99"):
        moemodel.predict(file, calibration)
    with pytest.raises(moemodel.InputError, match=r"^layers: found 99"):
        moemodel.predict(PLAN | {"layers": 99}, calibration)


def test_what_does_not_fit_is_refused_unless_asked_for(calibration: Calibration) -> None:
    huge = PLAN | {"micro_batch": 256, "global_batch": 2048}
    with pytest.raises(moemodel.InfeasiblePlanError):
        moemodel.predict(huge, calibration)
    assert not moemodel.predict(huge, calibration, even_if_it_does_not_fit=True).fits


def test_documents_are_read_by_name_or_path(
    tmp_path: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text(yaml.safe_dump(PLAN), encoding="utf-8")
    Path("search.yaml").write_text(yaml.safe_dump(SEARCH), encoding="utf-8")
    Path("c.json").write_text(calibration.model_dump_json(), encoding="utf-8")
    Path("found.json").write_text(moemodel.search(SEARCH, calibration).to_json(), encoding="utf-8")
    for read, name in (
        (moemodel.read_plan, "plan.yaml"),
        (moemodel.read_search, "search.yaml"),
        (moemodel.read_calibration, "c.json"),
        (moemodel.read_search_result, "found.json"),
    ):
        assert read(name) == read(Path(name))


def test_schedule_as_its_docstring_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _run("schedule")


def test_nothing_to_work_on() -> None:
    with pytest.raises(moemodel.InputError, match="found no profile"):
        moemodel.calibrate()
    with pytest.raises(moemodel.InputError, match="found no report"):
        moemodel.recalibrate()
    with pytest.raises(moemodel.InputError, match="found no file"):
        moemodel.calibrate_readings()


# ---- the uses in docstrings -----------------------------------------------------------------------------------------


def _examples(name: str) -> doctest.DocTest:
    finder = doctest.DocTestFinder(recurse=False)
    (found,) = (test for test in finder.find(getattr(moemodel, name), name, globs={}) if test.examples)
    return found


def _run(name: str) -> None:
    result = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF).run(_examples(name))
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize(
    "name",
    [
        "predict",
        "predict_runs",
        "search",
        "strategies",
        "Plan",
        "Search",
        "Outcome",
        "SearchResult",
        "Calibration",
        "Meter",
    ],
)
def test_a_docstring_is_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _run(name)


def test_the_docstring_of_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the simulated GPU that it names."""
    monkeypatch.chdir(tmp_path)
    _run("profile")


def test_the_docstring_of_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the processor, of a small model."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.chdir(tmp_path)
    _run("run")


def test_the_docstring_of_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two frameworks, three repeats each; the faster takes less."""
    monkeypatch.chdir(tmp_path)
    noise = (1.0, 1.01, 0.99)
    pairs = [(backend, repeat) for backend in ("torch", "deepspeed") for repeat in range(3)]
    write_matrix(Path("runs"), [MadeRun(backend=b, repeat=r, samples=64, slower=noise[r]) for b, r in pairs])
    _run("compare")


def test_the_docstring_of_calibrate(calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fit of a whole profile takes minutes: here its result is known."""
    errors = [HeldOut(kind=Kind.GEMM, direction=Pass.FORWARD, shapes=12, median=0.03, mean=0.04, p90=0.09, worst=0.2)]

    def fitted(folder: Path, **_: Any) -> tuple[Calibration, list[HeldOut]]:
        assert folder == Path("my-profile")
        return calibration, errors

    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text(yaml.safe_dump(PLAN), encoding="utf-8")
    monkeypatch.setattr(fit, "calibrate_profile", fitted)
    _run("calibrate")


def test_the_docstring_of_calibrate_readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a hundred made-up products."""
    rows = [
        f"bfloat16,{m},{n},{k},{5e-3 + 2e-9 * m * n * k / 800e3},b200"
        for m in (128, 512, 2048, 8192)
        for n in (512, 1024, 2048, 4096, 8192)
        for k in (512, 1024, 2048, 4096, 8192)
    ]
    monkeypatch.chdir(tmp_path)
    Path("gemm.csv").write_text("\n".join(["gemm_dtype,m,n,k,latency_ms,system", *rows]) + "\n", encoding="utf-8")
    _run("calibrate_readings")


@pytest.fixture
def at_hand(made_up_gpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    """A folder with `plan.yaml`, and GPUs that run it."""
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text(yaml.safe_dump(PLAN), encoding="utf-8")


@pytest.mark.usefixtures("at_hand")
def test_the_docstring_of_validate() -> None:
    """Its processes and its GPUs are made up; what is chosen, predicted and reported is not."""
    _run("validate")


@pytest.mark.usefixtures("at_hand")
def test_the_docstring_of_a_report() -> None:
    moemodel.validate("plan.yaml", folder="validation", repeats=1, controls=False)
    _run("Report")


@pytest.mark.usefixtures("at_hand")
def test_plans_and_searches_are_validated_in_every_form(forms: Forms, calibration: Calibration) -> None:
    plan = moemodel.Plan.model_validate(PLAN)
    how: dict[str, Any] = {"calibration": calibration, "repeats": 1, "controls": False}
    for number, form in enumerate(forms(PLAN, plan)):
        (found,) = moemodel.validate(form, folder=f"v{number}", **how).report.plans
        assert found.plan == plan
        assert found.roles == (("plan small",) if form is plan or not _is_file(form) else (f"file {form}",))
    result = moemodel.search(SEARCH, calibration)
    Path("found.json").write_text(result.to_json(), encoding="utf-8")
    reports = [
        moemodel.validate(search=given, folder=name, top=1, **how).report
        for name, given in (("a", result), ("b", "found.json"), ("c", Path("found.json")))
    ]
    assert all(one.search == "few" and one.plans == reports[0].plans for one in reports)


def _is_file(form: Any) -> bool:
    return isinstance(form, Path) or (isinstance(form, str) and len(form) < 100 and Path(form).exists())


@pytest.mark.usefixtures("at_hand")
def test_the_docstring_of_recalibrate(calibration: Calibration, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refit is made up: a report of one plan would be refused."""
    moemodel.validate("plan.yaml", folder="validation", calibration=calibration, repeats=1, controls=False)

    def updated(start: Calibration, reports: Any, source: str, *, force: bool) -> Update:
        assert (len(reports), source, force) == (1, "validation", False)
        return Update(calibration=start, parts=(), kept=("memory",), plans=3, left_out="3 plans")

    monkeypatch.setattr(from_reports, "update", updated)
    _run("recalibrate")
    assert moemodel.read_calibration(Path("new.json")) == moemodel.shipped("h100-sxm-80gb")


def test_every_public_function_shows_a_use() -> None:
    own = [name for name in moemodel.__all__ if getattr(getattr(moemodel, name), "__module__", "") == "moemodel.api"]
    calibrating = ["calibrate", "calibrate_readings", "recalibrate"]
    assert sorted(own) == sorted(
        [
            *calibrating,
            "compare",
            "explain",
            "import_megatron",
            "iteration",
            "place",
            "predict",
            "predict_runs",
            "profile",
            "run",
            "schedule",
            "search",
            "search_many",
            "strategies",
            "validate",
        ]
    )
    for name in own:
        text = getattr(moemodel, name).__doc__
        assert all(part in text for part in ("Args:", "Returns:", "Raises:")), name
