"""Several searches at once, in this process, in others, and on workers of a Dask cluster: the same answers."""

from __future__ import annotations

import sys
from typing import Any

import pytest

import moemodel
from moemodel.model.core.errors import InfeasiblePlanError, InputError, MissingExtraError
from moemodel.model.search.result import SearchResult


def documents() -> list[dict[str, Any]]:
    """Two models on two clusters each at two sites, small; of one nothing fits."""
    document: dict[str, Any] = {"sequence_length": 2048, "global_batch": 64, "tokens": 1e9}
    document |= {"keep": 2, "layers": 4}
    document["search"] = {
        "tp": 1,
        "pp": 1,
        "cp": 1,
        "ep": 1,
        "zero_stage": 1,
        "micro_batch": [1, 4],
        "recompute": "none",
    }
    found = [
        document
        | {"architecture": model, "cluster": {"gpu": "h100-sxm-80gb", "gpus": gpus}, "site": {"region": region}}
        for model, gpus, region in [
            ("opt-350m", 8, "FRA"),
            ("olmoe-1b-7b", 8, "FRA"),
            ("opt-350m", 16, "POL"),
            ("olmoe-1b-7b", 16, "POL"),
        ]
    ]
    return [*found, found[0] | {"architecture": "gpt3-175b", "layers": 96}]


def answers(found: list[SearchResult | InfeasiblePlanError]) -> list[str]:
    return [one.to_json() if isinstance(one, SearchResult) else str(one) for one in found]


@pytest.fixture(scope="module")
def alone() -> list[str]:
    """What each search finds by itself."""
    found = list[SearchResult | InfeasiblePlanError]()
    for document in documents():
        try:
            found.append(moemodel.search(document))
        except InfeasiblePlanError as error:
            found.append(error)
    return answers(found)


def test_one_job_needs_no_joblib(alone: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "joblib", None)
    assert answers(moemodel.search_many(documents(), jobs=1)) == alone


@pytest.mark.parametrize("backend", [None, "threading"])
def test_several_jobs_find_the_same(backend: str | None, alone: list[str]) -> None:
    pytest.importorskip("joblib", reason="joblib is not installed: extra `parallel`")
    assert answers(moemodel.search_many(documents(), jobs=2, backend=backend)) == alone


def test_an_infeasible_search_keeps_its_advice_across_processes() -> None:
    pytest.importorskip("joblib", reason="joblib is not installed: extra `parallel`")
    limited = documents()[0] | {"limits": {"step_time_s": 1e-3}}
    here, there = (moemodel.search_many([limited, limited], jobs=jobs)[0] for jobs in (1, 2))
    assert isinstance(there, InfeasiblePlanError)
    assert there.__dict__ == here.__dict__ != {}


def test_workers_of_a_dask_cluster_find_the_same(alone: list[str]) -> None:
    """Three worker processes, each of which runs some of the searches."""
    distributed = pytest.importorskip("distributed", reason="Dask is not installed: extra `dask`")
    with (
        distributed.LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.wait_for_workers(3)
        assert answers(moemodel.search_many(documents(), backend="dask")) == alone
        tasks = client.run(lambda dask_worker: dask_worker.state.executed_count)
    assert sum(count > 0 for count in tasks.values()) >= 2


def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    two = documents()[:2]
    with pytest.raises(InputError, match=r"jobs: found 0; allowed: 1 or more"):
        moemodel.search_many(two, jobs=0)
    with pytest.raises(InputError, match="sequence_length"):
        moemodel.search_many([two[0], {"architecture": "opt-350m"}], jobs=2)
    monkeypatch.setitem(sys.modules, "joblib", None)
    with pytest.raises(MissingExtraError, match="parallel"):
        moemodel.search_many(two, jobs=2)


def test_an_unknown_backend_is_refused() -> None:
    pytest.importorskip("joblib", reason="joblib is not installed: extra `parallel`")
    with pytest.raises(InputError, match="joblib backend: found nowhere"):
        moemodel.search_many(documents()[:2], jobs=2, backend="nowhere")
