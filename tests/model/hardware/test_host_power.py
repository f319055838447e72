"""Hosts by name: each is what was measured of its node, less what its GPUs may draw."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import fmean

import pytest

import moemodel
from moemodel.model.core.errors import InputError
from moemodel.model.hardware.host_power import host_power_W, hosts
from moemodel.model.search.document import Search

ROOT = Path(__file__).parents[3]
PLAN = {
    "architecture": "opt-350m",
    "sequence_length": 2048,
    "global_batch": 64,
    "cluster": {"gpu": "h100-sxm-80gb", "gpus": 8},
    "parallel": {"dp": 8},
}


def test_an_immersed_node_is_what_mlperf_s_table_says() -> None:
    rows = csv.DictReader((ROOT / "bench" / "measured" / "mlperf-power.csv").read_text().splitlines())
    node_W = fmean(float(row["node_ac_W"]) for row in rows if row["system"] == "smc-1-lora")
    assert host_power_W("h100-node-immersion") == pytest.approx((node_W - 8 * 700) / 8, abs=0.5)


def test_a_node_in_air_is_what_was_published() -> None:
    assert host_power_W("h100-node-air") * 8 + 8 * 700 == 8400  # arXiv 2412.08602, abstract


def test_a_plan_names_a_node_and_keeps_its_power() -> None:
    plan = moemodel.Plan.model_validate(PLAN | {"site": {"host_power_W": "h100-node-air"}})
    assert plan.site.host_power_W == hosts()["h100-node-air"].power_W
    assert moemodel.Plan.model_validate(plan.model_dump()) == plan
    named, number = (moemodel.predict(PLAN | {"site": {"host_power_W": host}}) for host in ("h100-node-air", 350.0))
    assert named.energy.it_J == number.energy.it_J


def test_an_unknown_node_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"site\.host_power_W: found 'h100-node-oil'; allowed: .*, or a power in W"):
        moemodel.Plan.model_validate(PLAN | {"site": {"host_power_W": "h100-node-oil"}})


@pytest.mark.parametrize("document", [moemodel.Plan, Search])
@pytest.mark.parametrize(
    ("gpu", "stands"), [("a100-sxm-80gb", False), ("gb200-186gb", False), ("h200-sxm-141gb", True)]
)
def test_a_node_of_other_gpus_is_refused(document: type[moemodel.Plan | Search], gpu: str, stands: bool) -> None:
    said = PLAN | {"cluster": {"gpu": gpu, "gpus": 8}, "site": {"host_power_W": "h100-node-air"}}
    said = said if document is moemodel.Plan else {key: value for key, value in said.items() if key != "parallel"}
    if stands:
        assert document.model_validate(said).site.host_power_W == 350
        return
    words = rf"site\.host_power_W: found h100-node-air with cluster\.gpu {gpu}; allowed: a power in W, or with h100-sxm"
    with pytest.raises(InputError, match=words):
        document.model_validate(said)


def test_every_node_states_its_source() -> None:
    presets = json.loads((ROOT / "model" / "presets" / "hosts.json").read_text())
    assert all(set(entry) == {"power_W", "gpus", "source"} for name, entry in presets.items() if name != "_about")
