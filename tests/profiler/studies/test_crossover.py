"""The models of the crossover study: what they compute, and that they are measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.core.errors import DeviceError
from moemodel.model.layers.parameters import parameters
from moemodel.model.results.crossover import FORMS, SIZES, architecture_name
from moemodel.profiler.studies import crossover
from moemodel.profiler.studies.perceptrons import Mixture, build

CPU = torch.device("cpu")


def narrow(name: str) -> Architecture:
    architecture = read_architecture(name)
    layer = architecture.decoder[0]
    return replace(architecture, decoder=(replace(layer, feed_forward=replace(layer.feed_forward, width=12)),))


def by_hand(mixture: Mixture, x_BD: torch.Tensor) -> torch.Tensor:
    """Sample by sample, choice by choice."""
    rows = []
    for x_D in x_BD:
        scores_E = mixture.gate(x_D)
        best = scores_E.argsort(descending=True)[: mixture.choices]
        weights = torch.softmax(scores_E[best], dim=0)
        rows.append(sum(w * mixture.experts[int(e)](x_D) for w, e in zip(weights, best, strict=True)))
    return torch.stack(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", SIZES)
def test_both_forms_compute_the_same_as_by_hand(size: str) -> None:
    architecture = narrow(architecture_name(size, "every"))
    forms = build(architecture, CPU)
    x_BD = torch.randn(9, architecture.hidden)
    with torch.no_grad():
        expected = by_hand(forms["every"].mixture, x_BD)
        for form in forms.values():
            torch.testing.assert_close(form(x_BD), expected)
    assert expected.shape == (9, 10)


@pytest.mark.parametrize("form", ["dense", "every"])
def test_models_have_as_many_parameters_as_the_study_says(form: str) -> None:
    published = {"dense": 2_687_737, "every": 2_687_192}  # its small models
    architecture = read_architecture(architecture_name("small", form))  # type: ignore[arg-type]
    model = next(iter(build(architecture, CPU).values()))
    assert sum(p.numel() for p in model.parameters()) == parameters(architecture).total == published[form]


def test_an_expert_without_rows_is_left_out() -> None:
    architecture = narrow("mlp-moe-small")
    block = architecture.decoder[0].feed_forward
    assert isinstance(block, Moe)
    forms = build(architecture, CPU)
    mixture = forms["every"].mixture
    with torch.no_grad():
        mixture.gate.bias[:2] += 100.0  # everybody's two choices
        x_BD = torch.randn(5, architecture.hidden)
        torch.testing.assert_close(forms["every"](x_BD), forms["chosen"](x_BD))
        torch.testing.assert_close(forms["every"](x_BD), by_hand(mixture, x_BD))


def test_every_model_is_measured(tmp_path: Path) -> None:
    crossover.main([str(tmp_path / "out.json"), "--device", "cpu", "--seconds", "0.02", "--repeats", "2", "--tiny"])
    found = json.loads((tmp_path / "out.json").read_text())
    assert [(case["size"], case["form"]) for case in found["cases"]] == [(s, f) for s in SIZES for f in FORMS]
    for case in found["cases"]:
        assert case["inferences_per_s"] == pytest.approx(128 / case["pass_time_s"])
        assert case["passes"] >= 1
        if case["form"] != "dense":
            assert case["skew"] >= 1
    assert found["tiny"]
    assert not found["tf32"]


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(DeviceError, match="found gpu7; allowed"):
        crossover.device_of("gpu7")
