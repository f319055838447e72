"""Plans at the door: what is refused, with which words."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import moemodel
from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.plan.batch import PlanBatch, batch_of
from moemodel.model.plan.checks import check_architecture
from moemodel.model.plan.spec import Plan, read_plan
from moemodel.model.records.calibration import Calibration

MakePlan = Callable[..., Plan]

WHOLE = """\
name: whole
architecture: olmoe-1b-7b
layers: 8
sequence_length: 4096
global_batch: 64
micro_batch: 2
precision: bf16
recompute: selective
schedule: gpipe
backend: megatron
cluster:
  gpu: h100
  gpus: 16
  gpus_per_node: 4
  internode: {bandwidth_GBps: 25, latency_us: 3}
parallel: {dp: 2, tp: 2, pp: 2, cp: 2, ep: 4, zero_stage: 1, sequence_parallel: true}
routing: {skew: 1.5}
clock_MHz: 1200
power_cap_W: 500
site: {region: FRA, pue: 1.1, price_per_kWh: 0.1, gpu_hour_price: 2, currency: EUR, host_power_W: 100}
tokens: 1e12
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write_plan(text: str) -> Path:
        path = tmp_path / "plan.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_plan


def test_every_key_is_read(write: Callable[[str], Path]) -> None:
    plan = read_plan(write(WHOLE))
    assert plan.model_dump(exclude_defaults=True) == yaml.safe_load(WHOLE) | {"tokens": 1e12}
    row = batch_of(plan)
    assert len(row) == 1
    assert row.gpus.item() == 16
    assert row.micro_batches.item() == 16
    assert row.clock_Hz.item() == 1.2e9


# What is wrong, the line that says so, and the words of the error.
REFUSED = {
    "product of degrees": ("gpus: 16", "gpus: 12", r"dp 2 x tp 2 x pp 2 x cp 2 = 16, but cluster.gpus is 12"),
    "ep over dp x cp": ("ep: 4", "ep: 3", r"parallel.ep 3 must divide dp x cp = 4"),
    "global batch": ("global_batch: 64", "global_batch: 30", r"global_batch 30 must be a multiple of .* = 4"),
    "virtual stages": (
        "cp: 2,",
        "cp: 2, virtual_stages: 2,",
        r"virtual_stages 2: found schedule gpipe; allowed: 1f1b, zero-bubble",
    ),
}


@pytest.mark.parametrize(("good", "bad", "words"), REFUSED.values(), ids=REFUSED)
def test_degrees_that_contradict_each_other(good: str, bad: str, words: str, write: Callable[[str], Path]) -> None:
    path = write(WHOLE.replace(good, bad))
    with pytest.raises(InputError, match=words) as caught:
        read_plan(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


# The line changed, its number, what the error says behind file and line.
MISTAKES: dict[str, tuple[str, str, int, str]] = {
    "unknown key": ("layers: 8", "layerz: 8", 3, "unknown key 'layerz'; allowed here: .*layers"),
    "unknown nested key": ("  gpus: 16", "  gpu_count: 16", 13, "unknown key 'cluster.gpu_count'; allowed here: .*gpu"),
    "not a number": ("micro_batch: 2", "micro_batch: two", 6, "micro_batch: found 'two'; input should be a valid int"),
    "below the range": ("micro_batch: 2", "micro_batch: 0", 6, "micro_batch: found 0; input should be greater than 0"),
    "not a choice": ("recompute: selective", "recompute: all", 8, "recompute: found 'all'; .*'none', 'selective' or"),
    "not finite": ("clock_MHz: 1200", "clock_MHz: .inf", 18, "clock_MHz: found inf; input should be a finite number"),
    "skew below 1": (
        "skew: 1.5",
        "skew: 0.5",
        17,
        "routing.skew: found 0.5; allowed: a number of 1 or more, balanced, initial, trained, null, or the path",
    ),
    "skew no number": ("skew: 1.5", "skew: [1]", 17, "routing.skew: .*allowed: a number of 1 or more, balanced"),
    "link": ("latency_us: 3", "latency_us: -3", 15, "cluster.internode.latency_us: found -3; input should be greater"),
    "link without latency": (", latency_us: 3", "", 15, "the key 'cluster.internode.latency_us' is missing$"),
    "true is no count": ("global_batch: 64", "global_batch: true", 5, "global_batch: found True; .* valid integer"),
    "true is no rate": ("power_cap_W: 500", "power_cap_W: true", 19, "power_cap_W: found True; .* valid number"),
    "half a count": (
        "micro_batch: 2",
        "micro_batch: 2.5",
        6,
        "micro_batch: found 2.5; input should be a valid integer",
    ),
    "control characters": (
        "name: whole",
        'name: "a\\e[31mb"',
        1,
        r"name: found 'a\\x1b\[31mb'; allowed: characters that can be printed, on one line",
    ),
    "twice": ("layers: 8", "layers: 8\nlayers: 9", 4, "the key 'layers' stands twice"),
    "not YAML": ("layers: 8", "layers: [8", 4, "not YAML"),
}


@pytest.mark.parametrize(("good", "bad", "line", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_its_file_and_line(
    good: str, bad: str, line: int, words: str, write: Callable[[str], Path]
) -> None:
    path = write(WHOLE.replace(good, bad))
    with pytest.raises(InputError, match=words) as caught:
        read_plan(path)
    first = str(caught.value).splitlines()[0]
    assert first.startswith(f"{path}:{line}: ") or f"line {line}: " in first


def test_a_missing_key_is_named(write: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=r"the key 'cluster.gpu' is missing"):
        read_plan(write(WHOLE.replace("  gpu: h100\n", "")))


def test_all_mistakes_come_at_once(write: Callable[[str], Path]) -> None:
    text = WHOLE.replace("layers: 8", "layers: -1").replace("pue: 1.1", "pue: 0.5")
    with pytest.raises(InputError) as caught:
        read_plan(write(text))
    assert len(str(caught.value).splitlines()) == 2


# Changes to a legal plan of 16 GPUs, the architecture, the words of the error.
INDIVISIBLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "heads by tp": (
        "opt-350m",
        {"parallel": {"tp": 3}, "cluster": {"gpus": 3}},
        r"parallel.tp 3 .* attention heads 16",
    ),
    "experts by ep": (
        "mixtral-8x7b",
        {"parallel": {"dp": 16, "ep": 16}, "cluster": {"gpus": 16}},
        r"parallel.ep 16 does not divide the experts 8; allowed: divisors of 8",
    ),
    "layers by pp": (
        "opt-350m",
        {"parallel": {"pp": 32}, "cluster": {"gpus": 32}},
        r"parallel.pp x virtual_stages 32 is more than the 24 layers; allowed: at most 24",
    ),
    "experts of a dense model": (
        "opt-350m",
        {"parallel": {"dp": 2, "ep": 2}, "cluster": {"gpus": 2}},
        r"parallel.ep 2: opt-350m has no experts; use ep 1",
    ),
    "positions": ("opt-350m", {"sequence_length": 8192}, r"sequence_length 8192: .* at most that"),
    "sequence by cp": (
        "llama-3-8b",
        {"parallel": {"cp": 3}, "cluster": {"gpus": 3}, "sequence_length": 2048},
        r"parallel.cp 3: twice cp, 6, does not divide sequence_length 2048",
    ),
}


@pytest.mark.parametrize(("name", "changes", "words"), INDIVISIBLE.values(), ids=INDIVISIBLE)
def test_degrees_that_do_not_divide_the_architecture(
    name: str, changes: dict[str, Any], words: str, plan_of: MakePlan
) -> None:
    with pytest.raises(InfeasiblePlanError, match=words):
        check_architecture(plan_of(architecture=name, **changes), read_architecture(name))


@pytest.mark.parametrize("schedule", ["1f1b", "zero-bubble"])
def test_layers_need_not_divide_into_stages(schedule: str, plan_of: MakePlan) -> None:
    parallel, cluster = {"pp": 5, "virtual_stages": 2}, {"gpus": 5}
    plan = plan_of(parallel=parallel, cluster=cluster, global_batch=20, schedule=schedule)
    check_architecture(plan, read_architecture("opt-350m"))


def test_a_legal_plan_passes(plan_of: MakePlan) -> None:
    plan = plan_of(architecture="olmoe-1b-7b", cluster={"gpus": 16}, parallel={"dp": 4, "tp": 2, "pp": 2, "ep": 4})
    check_architecture(plan, read_architecture("olmoe-1b-7b"))


def test_a_batch_broadcasts_and_takes(batch: Callable[..., PlanBatch]) -> None:
    plans = batch(dp=[1, 2, 4], micro_batch=2, global_batch=64)
    assert len(plans) == 3
    assert plans.micro_batches.tolist() == [32, 16, 8]
    assert plans.take(np.array([2, 0])).dp.tolist() == [4, 1]
    assert plans.take(plans.dp > 1).dp.tolist() == [2, 4]


# ---- numbers that none has ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        ("global_batch: 64", "global_batch: 2560000000000000", "global_batch: found 2560000000000000; .* 1000000000$"),
        ("sequence_length: 4096", "sequence_length: 9223372036854775808", "less than or equal to 100000000$"),
        ("gpus_per_node: 4", "gpus_per_node: 999999999999999999999", "cluster.gpus_per_node: .* or equal to 1000000$"),
        ("dp: 2", "dp: 9223372036854775807", "parallel.dp: found 9223372036854775807; "),
        ("pue: 1.1", "pue: 1e308", "site.pue: found 1e\\+308; input should be less than or equal to 10$"),
        ("price_per_kWh: 0.1", "price_per_kWh: 1e300", "site.price_per_kWh: "),
        ("bandwidth_GBps: 25", "bandwidth_GBps: true", "internode.bandwidth_GBps: found True; .* valid number"),
        ("bandwidth_GBps: 25", "bandwidth_GBps: '25'", "internode.bandwidth_GBps: found '25'; .* valid number"),
        ("tokens: 1e12", "tokens: 1e300", "tokens: found 1e\\+300; "),
        (
            "tokens: 1e12",
            "tokens: 262143",
            "tokens: found 262143; allowed: one step or more, which is 64 sequences of 4096 tokens: 262,144$",
        ),
        ("sequence_parallel: true", "sequence_parallel: 1", "parallel.sequence_parallel: found 1; .* valid boolean"),
    ],
)
def test_numbers_that_no_plan_has(good: str, bad: str, words: str, write: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=words):
        read_plan(write(WHOLE.replace(good, bad)))


def test_degrees_whose_product_would_wrap_around(write: Callable[[str], Path]) -> None:
    """2^16 x 2^12 x 2^13 x 2^15 GPUs are 2^56, not what is left of a product of 64 bits."""
    text = WHOLE.replace("dp: 2, tp: 2, pp: 2, cp: 2", "dp: 65536, tp: 4096, pp: 8192, cp: 32768")
    with pytest.raises(InputError, match=rf"= {2**56}, but cluster.gpus is 16"):
        read_plan(write(text))


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("on", True), ("no", False), ("off", False)])
def test_switches_as_yaml_had_them(text: str, value: bool, write: Callable[[str], Path]) -> None:
    plan = read_plan(write(WHOLE.replace("sequence_parallel: true", f"sequence_parallel: {text}")))
    assert plan.parallel.sequence_parallel is value


def test_a_bad_plan_raises_this_packages_error_however_it_is_made(write: Callable[[str], Path]) -> None:
    plan = read_plan(write(WHOLE))
    for make in (
        lambda: Plan(architecture="opt-350m"),  # type: ignore[call-arg]
        lambda: Plan.model_validate({"architecture": 1}),
        lambda: plan.model_copy(update={"power_cap_W": -5.0}),
        lambda: plan.model_copy(update={"power_cap": 500.0}),
        lambda: plan.model_copy(update={"micro_batch": 3}),
    ):
        with pytest.raises(InputError, match=r"^Plan: "):
            make()
    assert plan.model_copy(update={"power_cap_W": 300.0}).power_cap_W == 300.0


# ---- files that a plan names ----------------------------------------------------------------------------------------

PRESETS = Path(__file__).parents[3] / "model" / "presets"


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a plan, files that it names lying nowhere yet; the working directory is another."""
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    text = WHOLE.replace("architecture: olmoe-1b-7b", "architecture: own/config.json").replace(
        "gpu: h100", "gpu: g.json"
    )
    text = re.sub("internode: {.*}", "internode: cluster.yaml", text)
    (tmp_path / "there" / "plan.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "there"


def _put_files(folder: Path) -> None:
    (folder / "own").mkdir()
    shutil.copy(PRESETS / "architectures" / "olmoe-1b-7b.json", folder / "own" / "config.json")
    shutil.copy(PRESETS / "gpus" / "h100-sxm-80gb.json", folder / "g.json")
    (folder / "cluster.yaml").write_text("gpus_per_node: 4\n", encoding="utf-8")


def test_files_are_beside_the_plan(beside: Path, calibration: Calibration) -> None:
    _put_files(beside)
    for path in (beside / "plan.yaml", Path("../there/plan.yaml")):
        plan = read_plan(path)
        assert plan.file_notes == ()
        assert plan.architecture == str(path.parent / "own/config.json")
        answer = moemodel.predict(path, calibration, even_if_it_does_not_fit=True)
        assert not any("working directory" in note for note in answer.notes)


def test_files_of_the_working_directory_are_taken_with_a_note(beside: Path, calibration: Calibration) -> None:
    _put_files(Path())
    answer = moemodel.predict(beside / "plan.yaml", calibration, even_if_it_does_not_fit=True)
    notes = [note for note in answer.notes if "working directory" in note]
    assert [note.split(":")[0] for note in notes] == ["architecture", "gpu", "internode"]


def test_a_file_that_is_nowhere_is_a_missing_file(beside: Path) -> None:
    with pytest.raises(InputError, match=r"own/config\.json: no such file"):
        read_architecture(read_plan(beside / "plan.yaml").architecture)
    _put_files(beside)
    (beside / "g.json").unlink()
    with pytest.raises(InputError, match=r"cluster.gpu: .*/there/g\.json: no such file"):
        moemodel.predict(beside / "plan.yaml")
    for name in ("nope.json", "./nope", "/nope/config.json"):
        with pytest.raises(InputError, match=rf"^architecture: {name}: no such file$"):
            read_architecture(name)
    with pytest.raises(InputError, match=r"^architecture: found 'olmo-1b-7b'; allowed: .* did you mean 'olmoe-1b-7b'"):
        read_architecture("olmo-1b-7b")


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"micro_batches_per_round": 5}, None),
        ({"micro_batches_per_round": 6}, None),  # the last round has four
        ({}, "10 micro-batches .* are no multiple of pp 4"),
        ({"micro_batches_per_round": 7}, r"found 7; allowed: 4 \(pp\) to 10 .*, of which none are left over, or 4"),
        ({"micro_batches_per_round": 3}, r"found 3; allowed: 4 \(pp\) to 10"),
        ({"micro_batches_per_round": 11}, r"found 11; allowed: 4 \(pp\) to 10"),
        ({"micro_batches_per_round": 5, "schedule": "zero-bubble"}, "found 5 with schedule zero-bubble"),
    ],
)
def test_rounds_may_be_longer_than_the_pipeline(keys: dict[str, Any], why: str | None) -> None:
    document = {
        "architecture": "opt-350m",
        "sequence_length": 1024,
        "global_batch": 10,
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 4},
        "parallel": {"pp": 4, "virtual_stages": 3},
    }
    if why is None:
        assert Plan.model_validate(document | keys).micro_batches_per_round == keys["micro_batches_per_round"]
        return
    with pytest.raises(InputError, match=why):
        Plan.model_validate(document | keys)
