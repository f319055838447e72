"""Every document that prediction reads, nearly right: an answer or one message, within seconds and megabytes.

Inputs are the same in every run. `MOEMODEL_FUZZ=2500 pytest tests/fuzz` tries as many of each kind.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz_guard import Counts, bounded_memory, reads, runs
from fuzz_mutations import PLAN, json_documents, legal_plans, scaled, texts, yaml_documents
from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Moe
from moemodel.model.network.nccl_tests import read_nccl_test
from moemodel.model.plan.spec import plan_text
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.measured import QUANTITIES, predict_as_run
from moemodel.model.results.validation import (
    Report,
    Visit,
    read_report,
    row_of,
)
from moemodel.model.search.result import read_search_result
from tests.reports import environment_of, plan_report, whole_report

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "model" / "presets" / "architectures"
GPUS = ROOT / "model" / "presets" / "gpus"
FAMILIES = ("opt-350m", "olmoe-1b-7b", "llama-3-8b", "switch-base-128", "deepseek-v3")

SEARCH: dict[str, Any] = {
    "name": "few",
    "architecture": "opt-350m",
    "layers": 4,
    "sequence_length": 2048,
    "global_batch": 64,
    "cluster": {"gpu": "h100-sxm-80gb", "gpus": [4, 8], "internode": {"bandwidth_GBps": 50, "latency_us": 5}},
    "search": {
        "dp": 4,
        "tp": [1, 2],
        "pp": 1,
        "cp": 1,
        "ep": 1,
        "zero_stage": 1,
        "micro_batch": [4],
        "recompute": "none",
    },
    "clocks_MHz": {"from": 1200, "to": 1800, "step": 300},
    "limits": {"step_time_s": 10.0, "memory_share": 0.9},
    "tokens": 1e10,
    "keep": 5,
}
CLUSTER: dict[str, Any] = {
    "nodes": 4,
    "gpus_per_node": 4,
    "nics_per_node": 2,
    "nic": {"bandwidth_GBps": 50, "latency_us": 5, "source": "a test"},
    "nccl_tests": ["all_reduce.txt", {"file": "all_reduce.txt", "collective": "all_gather", "ranks": 8, "nodes": 2}],
}
NCCL = """\
# nThread 1 nGpus 1 minBytes 1024 maxBytes 1073741824 step: 32(factor) warmup iters: 5 iters: 20
#
# Using devices
#  Rank  0 Group  0 Pid   1001 on      node0 device  0 [0x18] NVIDIA H100 80GB HBM3
#  Rank  1 Group  0 Pid   1002 on      node0 device  1 [0x2a] NVIDIA H100 80GB HBM3
#  Rank  2 Group  0 Pid   1003 on      node1 device  0 [0x18] NVIDIA H100 80GB HBM3
#  Rank  3 Group  0 Pid   1004 on      node1 device  1 [0x2a] NVIDIA H100 80GB HBM3
#
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
        1024           256     float     sum      -1    24.50    0.04    0.06      0    24.31    0.04    0.06      0
       32768          8192     float     sum      -1    30.12    1.09    1.63      0    29.94    1.09    1.64      0
     1048576        262144     float     sum      -1    61.40   17.08   25.62      0    60.87   17.23   25.84      0
    33554432       8388608     float     sum      -1   412.70   81.30  121.96      0   411.92   81.46  122.19      0
  1073741824     268435456     float     sum      -1 10250.10  104.75  157.13      0 10249.00  104.77  157.15      0
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 66.131
#
"""

Check = Callable[[Path, bytes], bool]


def fuzz(inputs: st.SearchStrategy[bytes], folder: Path, check: Check, count: int, *, damaged: bool = True) -> None:
    """Try so many inputs, the same ones every time; of damaged ones some must be refused, of legal ones answered."""
    counted = Counts()

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def one(content: bytes) -> None:
        counted.run(content, lambda: check(folder, content))

    with bounded_memory():
        one()
    print(f"{count} inputs: {counted}")
    assert not counted.faults, str(counted)
    assert counted.refused if damaged else counted.answered


def test_plans(folder: Path, calibration_path: Path, examples: int) -> None:
    wide = PLAN | {"architecture": "olmoe-1b-7b", "routing": {"skew": 1.5}, "cluster": {"gpu": "h100", "gpus": 8}}

    def check(folder: Path, content: bytes) -> bool:
        (folder / "fuzzed.yaml").write_bytes(content)
        form = ["--json"] if len(content) % 4 else []
        return runs(
            "predict", "fuzzed.yaml", "--even-if-it-does-not-fit", "--calibration", str(calibration_path), *form
        )

    fuzz(yaml_documents([PLAN, wide | {"parallel": {"dp": 8, "ep": 4}}]), folder, check, examples or 150)


def test_searches(folder: Path, calibration_path: Path, examples: int) -> None:
    def check(folder: Path, content: bytes) -> bool:
        (folder / "fuzzed.yaml").write_bytes(content)
        return runs("optimize", "fuzzed.yaml", "--calibration", str(calibration_path), "-o", "found.json")

    fuzz(yaml_documents([SEARCH]), folder, check, examples or 40)


def test_clusters(folder: Path, calibration_path: Path, examples: int) -> None:
    (folder / "all_reduce.txt").write_text(NCCL, encoding="utf-8")
    plan = PLAN | {"cluster": {"gpu": "h100", "gpus": 8, "internode": "cluster.yaml"}}
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")

    def check(folder: Path, content: bytes) -> bool:
        (folder / "cluster.yaml").write_bytes(content)
        return runs("predict", "plan.yaml", "--calibration", str(calibration_path), "--json")

    fuzz(yaml_documents([CLUSTER]), folder, check, examples or 90)


def test_nccl_tests(folder: Path, calibration_path: Path, examples: int) -> None:
    (folder / "cluster.yaml").write_text("gpus_per_node: 2\nnccl_tests: [all_reduce.txt]\n", encoding="utf-8")
    plan = PLAN | {"cluster": {"gpu": "h100", "gpus": 8, "internode": "cluster.yaml"}}
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")

    def check(folder: Path, content: bytes) -> bool:
        (folder / "all_reduce.txt").write_bytes(content)
        read = reads(lambda: read_nccl_test(folder / "all_reduce.txt"))
        return runs("predict", "plan.yaml", "--calibration", str(calibration_path), "--json") if read else False

    fuzz(texts([NCCL]), folder, check, examples or 100)


def test_configs(folder: Path, calibration_path: Path, examples: int) -> None:
    bases = [json.loads((MODELS / f"{name}.json").read_text(encoding="utf-8")) for name in FAMILIES]
    plan = PLAN | {"architecture": "config.json", "parallel": {"dp": 8}, "global_batch": 64, "sequence_length": 512}
    del plan["layers"]
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")

    def check(folder: Path, content: bytes) -> bool:
        (folder / "config.json").write_bytes(content)
        if len(content) % 4 == 0:
            return runs("models", "config.json")
        options = ("--even-if-it-does-not-fit", "--calibration", str(calibration_path))
        return runs("predict", "plan.yaml", "--json", *options)

    fuzz(json_documents(bases), folder, check, examples or 110)


def test_gpus(folder: Path, calibration_path: Path, examples: int) -> None:
    base = json.loads((GPUS / "h100-sxm-80gb.json").read_text(encoding="utf-8"))
    plan = PLAN | {"cluster": {"gpu": "gpu.json", "gpus": 8}}
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")

    def check(folder: Path, content: bytes) -> bool:
        (folder / "gpu.json").write_bytes(content)
        if len(content) % 4 == 0:
            return runs("gpus", "gpu.json")
        return runs("predict", "plan.yaml", "--calibration", str(calibration_path), "--json")

    fuzz(json_documents([base]), folder, check, examples or 90)


def test_calibrations(folder: Path, calibration: Calibration, examples: int) -> None:
    whole = json.loads(calibration.model_dump_json())
    residual = {
        "features": ["m", "n", "k", "batch"],
        "lengths": [1.0, 1.0, 1.0, 1.0],
        "signal": 0.1,
        "noise": 0.03,
        "points": [[10.0, 10.0, 10.0, 0.0], [12.0, 12.0, 12.0, 0.0]],
        "weights": [0.1, -0.1],
    }
    curve = {"collective": "all_reduce", "ranks": 2, "across": False, "size_B": [1e3, 1e6], "log_ratio": [0.1, -0.1]}
    # its parts weigh alike, so that inputs don't all change one of 40 operators
    product = next(fit for fit in whole["operators"] if fit["kind"] == "gemm")
    others = [fit for fit in whole["operators"] if fit["kind"] != "gemm"]
    few = whole | {"operators": [product | {"residual": residual}, *others[:2]]}
    few["network"] = few["network"] | {"curves": [curve]}

    def check(folder: Path, content: bytes) -> bool:
        try:
            given = json.loads(content)
            if isinstance(given, dict) and isinstance(given.get("operators"), list) and len(given["operators"]) > 2:
                kept = [fit for fit in whole["operators"] if fit["kind"] == "gemm"][1:] + others[2:]
                given["operators"] = [*given["operators"], *kept]
                content = json.dumps(given).encode(errors="surrogatepass")
        except ValueError:
            pass
        (folder / "fuzzed.json").write_bytes(content)
        form = ["--json"] if len(content) % 4 else []
        return runs("predict", "plan.yaml", "--calibration", "fuzzed.json", *form)

    fuzz(json_documents([few]), folder, check, examples or 85)


@pytest.fixture
def search_result(folder: Path, calibration_path: Path) -> dict[str, Any]:
    (folder / "search.yaml").write_text(yaml.safe_dump(SEARCH), encoding="utf-8")
    assert runs("optimize", "search.yaml", "--calibration", str(calibration_path), "-o", "found.json")
    found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_search_results(folder: Path, search_result: dict[str, Any], examples: int) -> None:
    def read(path: Path) -> None:
        found = read_search_result(path)
        for entry in (*found.front, *found.next_best):
            assert plan_text(entry.plan)
        for number in found.picks.values():
            assert plan_text(found.front[number - 1].plan)

    def check(folder: Path, content: bytes) -> bool:
        (folder / "fuzzed.json").write_bytes(content)
        return reads(lambda: read(folder / "fuzzed.json"))

    fuzz(json_documents([search_result]), folder, check, examples or 85)


def _report(calibration: Calibration) -> Report:
    from moemodel.model.plan.spec import Plan

    plans = []
    for name, micro_batch in (("one", 1), ("two", 2), ("four", 4)):
        plan = Plan.model_validate(PLAN | {"name": name, "micro_batch": micro_batch})
        values = predict_as_run(plan, calibration).values
        row = {column: values[quantity] for quantity, column in QUANTITIES.items() if quantity in values} | {"rank": 0}
        visit = Visit(repeat=0, clock_held=None, seconds=1.0, rows=(row_of(row),))
        plans.append(plan_report(plan, visit, roles=("file plan.yaml",), notes=("a note",), temperature_C=60.0))
    return whole_report(*plans, environment=environment_of(gpus=8))


def test_reports(folder: Path, calibration: Calibration, examples: int) -> None:
    def read(path: Path) -> None:
        for plan in read_report(path).plans:
            assert plan_text(plan.plan)

    def check(folder: Path, content: bytes) -> bool:
        (folder / "report.json").write_bytes(content)
        return reads(lambda: read(folder / "report.json"))

    fuzz(json_documents([json.loads(_report(calibration).to_json())]), folder, check, examples or 110)


@pytest.mark.skipif(importlib.util.find_spec("scipy") is None, reason="needs the extra calibrate")
def test_updates(folder: Path, calibration: Calibration, calibration_path: Path, examples: int) -> None:
    """What is read of a report is fitted, or refused: `moemodel calibrate --update`."""
    import moemodel

    def check(folder: Path, content: bytes) -> bool:
        (folder / "report.json").write_bytes(content)

        def update() -> None:
            made = moemodel.recalibrate(folder / "report.json", calibration=calibration_path, force=True).calibration
            moemodel.write_calibration(made, folder / "new.json")
            moemodel.read_calibration(folder / "new.json")

        return reads(update)

    fuzz(json_documents([json.loads(_report(calibration).to_json())]), folder, check, examples // 10 or 4)


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs the extra calibrate")
def test_profiles(folder: Path, examples: int) -> None:
    """The manifest of a profile; its tables are tried where they are read (`test_tables`)."""
    from moemodel.calibration.store.profile_reader import read_profile

    profile = next((ROOT / "calibrate" / "profiles").glob("*/manifest.json")).parent
    base = json.loads((profile / "manifest.json").read_text(encoding="utf-8"))
    (folder / "profile").mkdir()

    def check(folder: Path, content: bytes) -> bool:
        (folder / "profile" / "manifest.json").write_bytes(content)
        return reads(lambda: read_profile(folder / "profile"))

    fuzz(json_documents([base]), folder, check, examples or 60)


def test_names(folder: Path, calibration_path: Path, examples: int) -> None:
    """What is given on the command line, a NUL and half of a character included."""
    name = st.text(max_size=30) | st.sampled_from(
        ["a\0b", "\ud800", "x" * 5000, "\x1b[31m", "..", ".", "/", "~", "-", ""]
    )

    def check(_: Path, content: bytes) -> bool:
        given = content.decode("utf-8", errors="surrogatepass")
        command = ("predict", "models", "gpus", "optimize", "init")[len(given) % 5]
        if command == "init":
            return runs(
                "init", "--force", "-o", "new.yaml", "--calibration", str(calibration_path), "--gpu", "--", given
            )
        return runs(command, "--", given)

    fuzz(name.map(lambda text: text.encode("utf-8", errors="surrogatepass")), folder, check, examples or 75)


def as_json(documents: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    return documents.map(lambda document: json.dumps(document).encode())


def _heads_and_experts(name: str) -> tuple[int, int]:
    layer = read_architecture(name).layers[-1]
    return layer.attentions[0].heads, layer.feed_forward.experts if isinstance(layer.feed_forward, Moe) else 0


def test_plans_of_all_sizes(folder: Path, calibration_path: Path, examples: int) -> None:
    """Legal numbers of all sizes: figures stay finite, and none is below 0."""

    def check(folder: Path, content: bytes) -> bool:
        (folder / "fuzzed.yaml").write_bytes(content)
        options = ("--even-if-it-does-not-fit", "--calibration", str(calibration_path), "--json")
        return runs("predict", "fuzzed.yaml", *options)

    sizes = {name: _heads_and_experts(name) for name in FAMILIES}
    fuzz(as_json(legal_plans(PLAN, sizes)), folder, check, examples or 30, damaged=False)


def test_calibrations_of_all_sizes(folder: Path, calibration: Calibration, examples: int) -> None:
    def check(folder: Path, content: bytes) -> bool:
        (folder / "fuzzed.json").write_bytes(content)
        return runs("predict", "plan.yaml", "--calibration", "fuzzed.json", "--json")

    fuzz(as_json(scaled([json.loads(calibration.model_dump_json())])), folder, check, examples or 30)


def test_gpus_of_all_sizes(folder: Path, calibration_path: Path, examples: int) -> None:
    names = ("h100-sxm-80gb", "a100-sxm-80gb")
    bases = [json.loads((GPUS / f"{name}.json").read_text(encoding="utf-8")) for name in names]
    plan = PLAN | {"cluster": {"gpu": "gpu.json", "gpus": 8}}
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")

    def check(folder: Path, content: bytes) -> bool:
        (folder / "gpu.json").write_bytes(content)
        options = ("--even-if-it-does-not-fit", "--calibration", str(calibration_path), "--json")
        return runs("predict", "plan.yaml", *options)

    fuzz(as_json(scaled(bases)), folder, check, examples or 30)


def test_configs_of_all_sizes(folder: Path, calibration_path: Path, examples: int) -> None:
    bases = [json.loads((MODELS / f"{name}.json").read_text(encoding="utf-8")) for name in FAMILIES]
    plan = PLAN | {"architecture": "config.json", "parallel": {"dp": 8}, "sequence_length": 512}
    del plan["layers"]
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")

    def check(folder: Path, content: bytes) -> bool:
        (folder / "config.json").write_bytes(content)
        options = ("--even-if-it-does-not-fit", "--calibration", str(calibration_path), "--json")
        return runs("predict", "plan.yaml", *options) and runs("models", "config.json")

    fuzz(as_json(scaled(bases)), folder, check, examples or 30)
