"""What is kept of a prediction, as columns of float64, and how a stored row becomes a plan again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import numpy as np

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.core.arrays import FloatArray
from moemodel.model.plan.batch import PlanBatch, batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.predict.prediction import Prediction
from moemodel.model.results.outcome import outcome
from moemodel.model.step.system import system_of

# column of the table -> attribute of `Prediction`
_LATER = ("gating_s", "forward_idle_J", "backward_idle_J", "optimizer_idle_J")  # than what was recorded
_FIGURES = {f.name: f.name for f in fields(Prediction) if f.name not in ("memory_terms_B", "fits", *_LATER)}


def predicted(documents: list[dict[str, Any]]) -> dict[str, FloatArray]:
    """Figures of plans that share everything but the choices of a batch (`group_of`), by name. [P]."""
    plans = [Plan.model_validate(document) for document in documents]
    first = plans[0]
    machine = system_of(first, shipped(first.cluster.gpu))
    found = predict(architecture_of(first), _together([batch_of(plan) for plan in plans]), machine)
    columns = {name: np.asarray(getattr(found, attribute)) for name, attribute in _FIGURES.items()}
    terms = {f"memory_terms_B.{name}": size_B for name, size_B in found.memory_terms_B.items()}
    return columns | {"fits": found.fits.astype(np.float64)} | terms


def answered(document: dict[str, Any]) -> dict[str, Any]:
    """All of `moemodel predict --json` for a plan, but what names versions and sources in words."""
    plan = Plan.model_validate(document)
    answer = outcome(plan, shipped(plan.cluster.gpu), even_if_it_does_not_fit=True).to_json()
    return {name: part for name, part in answer.items() if name not in ("plan", "notes", "provenance", "routing")}


def group_of(document: dict[str, Any]) -> str:
    """What plans must share to be predicted in one batch."""
    shared = ("architecture", "backend", "precision", "cluster", "site")
    return json.dumps({name: document[name] for name in shared}, sort_keys=True)


def _together(batches: Iterable[PlanBatch]) -> PlanBatch:
    listed = list(batches)
    return PlanBatch(**{f.name: np.concatenate([getattr(b, f.name) for b in listed]) for f in fields(PlanBatch)})
