"""Every default that moves a printed figure by more than 2 % is named beside it: each is set otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.core.errors import MoeModelError
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.outcome import Outcome, outcome

_MOVED = 0.02

# Plans that leave open what they can: on one GPU, a mixture of experts on two nodes, stages of two GPUs each.
PLANS: dict[str, dict[str, Any]] = {
    "one GPU": {"global_batch": 48, "tokens": 1e9},
    "experts on two nodes": {
        "architecture": "olmoe-1b-7b",
        "layers": 4,
        "global_batch": 96,
        "cluster": {"gpus": 16},
        "parallel": {"dp": 16},
        "tokens": 1e10,
        "site": {"gpu_hour_price": 2.0},
    },
    "experts that are spread": {
        "architecture": "olmoe-1b-7b",
        "backend": "megatron-core",
        "precision": "fp8",
        "layers": 4,
        "global_batch": 96,
        "cluster": {"gpus": 16},
        "parallel": {"dp": 16, "ep": 16},
        "routing": {"dispatch": "deepep"},
    },
    "a pipeline": {
        "global_batch": 48,
        "cluster": {"gpus": 16},
        "parallel": {"dp": 4, "tp": 2, "pp": 2},
        "tokens": 1e10,
    },
}
# What each default is set to instead; several where one does not go with every plan.
OTHERWISE: dict[str, list[Any]] = {
    "micro_batch": [2, 3],
    "precision": ["bf16"],
    "recompute": ["selective", "full"],
    "schedule": ["gpipe", "zero-bubble"],
    "attention": ["flash2", "cudnn", "unfused"],
    "compile": [True],
    "cuda_graphs": [True],
    "collective_checks": [True],
    "transpose_cache": [False],
    "bucket_parameters": [64],
    "gradient_checks": [True],
    "weight_checks": [True],
    "cross_entropy": ["plain", "fused"],
    "deterministic": [True],
    "gradient_dtype": ["bf16", "fp32"],
    "micro_batches_per_schedule": [2, 4],
    "micro_batches_per_round": [4, 8],
    "fp8_recipe": ["delayed", "blockwise"],
    "parameter_dtype": ["bf16", "fp8"],
    "activation_input_dtype": ["fp8"],
    "tp_comm_overlap": [True, False],
    "loss_chunks": [4],
    "cp_comm": ["a2a", "all_gather", "a2a-2+p2p"],
    "dropout": [True],
    "optimizer": [{"exp_avg": "bf16"}, {"exp_avg": "int8"}, {"name": "muon"}],
    "offload": [{"optimizer": 1.0}, {"activations": 0.5}],
    "stage_layers": [[13, 11]],
    "backend": ["megatron-core", "megatron"],
    "clock_MHz": [1200.0],
    "power_cap_W": [400.0],
    "cluster.gpus_per_node": [4, 16],
    "cluster.internode": ["ethernet-100g"],
    "parallel.ep": [2, 4],
    "parallel.etp": [1, 2],
    "routing.products": ["each"],
    "routing.dispatch": ["deepep"],
    "routing.dispatch_overlap": [True],
    "routing.dispatch_dtype": ["fp8"],
    "routing.node_limit": [1],
    "parallel.replicas": [2, 4],
    "parallel.zero_stage": [1, 3],
    "parallel.sequence_parallel": [True],
    "parallel.virtual_stages": [2],
    "routing.skew": [1.5],
    "routing.pad": [True, False],
    "site.region": ["FRA"],
    "site.pue": [1.0, 1.5],
    "site.inlet_C": [20.0, 45.0],
    "site.host_power_W": [250.0],
    "site.price_per_kWh": [0.2],
    "site.gpu_hour_price": [2.0],
}
# What is no assumption: names; what a plan trains and on how much, whether it is interrupted or waits for data, where
# nothing is cut off, and by which rule its tokens find experts; the GPU as it is described; degrees, whose product is
# the GPUs.
NO_ASSUMPTION = {
    "decoder_sequence_length",
    "name",
    "mode",
    "layers",
    "multi_token",
    "lora",
    "tokens",
    "failures",
    "site.currency",
    "cluster.gpus",
    "cluster.gpu_variant",
    "cluster.data_loading",
}
NO_ASSUMPTION |= {f"routing.{rule}" for rule in ("router", "top_k", "normalize", "capacity_factor", "residual")}
NO_ASSUMPTION |= {f"routing.{rule}" for rule in ("jitter", "temperature", "balance_loss", "z_loss", "bias_rate")}
NO_ASSUMPTION |= {f"parallel.{degree}" for degree in ("dp", "tp", "pp", "cp")}


def _defaults(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of a document that has a default."""
    for name, field in model.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            yield from _defaults(nested, f"{prefix}{name}.")
        elif not field.is_required():
            yield prefix + name


def test_no_default_is_forgotten() -> None:
    assert set(_defaults(Plan)) == OTHERWISE.keys() | NO_ASSUMPTION


def _plan(**changes: Any) -> Plan:
    """OPT-350M on one H100, with as little said as a plan needs."""
    needed = {"architecture": "opt-350m", "sequence_length": 2048, "global_batch": 16}
    cluster = {"gpu": "h100-sxm-80gb"} | changes.pop("cluster", {})
    return Plan.model_validate(needed | changes | {"cluster": cluster})


def _with(plan: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    head, _, tail = key.partition(".")
    return plan | {head: plan.get(head, {}) | {tail: value}} if tail else plan | {head: value}


def _figures(node: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every figure of an answer's JSON, but for intervals and what would be with warmer air."""
    if isinstance(node, dict):
        for name, child in node.items():
            if name not in ("plan", "interval", "interval_level", "warmer_inlet"):
                yield from _figures(child, f"{path}/{name}")
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield path, float(node)


def _moved(base: Outcome, other: Outcome) -> list[str]:
    before, after = dict(_figures(base.to_json())), dict(_figures(other.to_json()))
    return [
        name
        for name, value in before.items()
        if name in after and not math.isclose(value, after[name], rel_tol=_MOVED, abs_tol=1e-9)
    ]


@pytest.fixture(scope="module")
def h100() -> Calibration:
    return shipped("h100-sxm-80gb")


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_what_moves_a_figure_is_named(plan: dict[str, Any], h100: Calibration) -> None:
    base = outcome(_plan(**plan), h100)
    said = " ".join(base.notes)
    tried = set()
    for key, values in OTHERWISE.items():
        head, _, tail = key.partition(".")
        if tail in plan.get(head, {}) or key in plan:
            continue
        for value in values:
            try:
                other = outcome(_plan(**_with(plan, key, value)), h100, even_if_it_does_not_fit=True)
            except (ValueError, MoeModelError):  # that does not go with this plan
                continue
            tried.add(key)
            moved = _moved(base, other)
            assert not moved or key in said, f"{key} {value} moves {moved[:4]}, and no note names it"
    assert {"micro_batch", "recompute", "site.pue", "site.host_power_W", "site.region"} <= tried


def test_a_plan_that_is_stored_has_the_same_notes(h100: Calibration) -> None:
    plan = _plan(**PLANS["a pipeline"])
    assert outcome(Plan.model_validate(plan.model_dump()), h100).notes == outcome(plan, h100).notes


def test_what_is_chosen_otherwise_is_no_default(h100: Calibration) -> None:
    elsewhere = {
        "fp8_recipe",
        "parameter_dtype",
        "transpose_cache",
        "micro_batches_per_schedule",
        "micro_batches_per_round",
        "schedule",
        "stage_layers",
        "optimizer",
    }  # pipelines, master weights
    of_one_stage = {key for key in OTHERWISE if "." not in key} - elsewhere
    chosen = {key: OTHERWISE[key][0] for key in of_one_stage} | {"precision": "bf16", "backend": "megatron"}
    chosen["compile"] = False  # what goes with that backend
    answer = outcome(_plan(**chosen), h100)
    assert [note for note in answer.notes if note.startswith("At their defaults")] == [
        "At their defaults: optimizer states as megatron keeps them, schedule 1f1b."
    ]


def test_the_site_is_told(h100: Calibration) -> None:
    silent = " ".join(outcome(_plan(tokens=1e9), h100).notes)
    assert "PUE 1.2, the default (site.pue); hosts not counted (site.host_power_W 0)" in silent
    assert "grid of the world, 0.475 kgCO2e/kWh in 2018 by default (site.region);" in silent
    site = {"pue": 1.1, "host_power_W": 250.0, "region": "us-east-1", "price_per_kWh": 0.1}
    told = " ".join(outcome(_plan(tokens=1e9, site=site), h100).notes)
    assert "PUE 1.1 (site.pue); 250 W of host for every GPU (site.host_power_W)" in told
    assert "grid of Virginia, USA (USA-virginia), 0.245 kgCO2e/kWh in 2023;" in told
    assert "The cost is without the hours of the GPUs: site.gpu_hour_price is not given." in told
    part = " ".join(outcome(_plan(tokens=1e9, site={"region": "AU-NSW"}), h100).notes)
    assert "grid of Australia (AUS), 0.549 kgCO2e/kWh in 2023; nothing is known of AU-NSW alone" in part
