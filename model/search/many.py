"""Many searches at once: other models, clusters and sites, on the cores of this machine or on other machines.

joblib spreads them: each search is a task, and joblib's backends (its own processes, Dask, Ray) say where tasks run. A
search is the same wherever it runs, and results come in the order in which they were asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.core.extras import needs_extra
from moemodel.model.core.threads import cores
from moemodel.model.records.calibration import Calibration
from moemodel.model.search.document import Search
from moemodel.model.search.result import SearchResult
from moemodel.model.search.search import search

Found = SearchResult | InfeasiblePlanError
_WHO = "a search with several jobs"


def search_all(
    asked: Sequence[tuple[Search, Calibration]], *, jobs: int | None = None, backend: str | None = None
) -> list[Found]:
    """The result of each of some searches, in their order; where nothing is feasible, the error that says so.

    Args:
        asked: searches, each with the calibration of its GPU. Files that they name have to be where they run.
        jobs: how many run at once; None: as many as there are cores, or with `dask` as it has workers' threads.
        backend: of joblib, by name: its own (`loky`, `threading`), `dask`, `ray`, or one that was registered with it;
            None: joblib's choice, and none where one job runs at a time.

    Raises:
        InputError: joblib has no such backend, or `jobs` is not positive; what `search` raises.
        MissingExtraError: joblib, or what the backend needs, isn't installed.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs: found {jobs}; allowed: 1 or more")
    if backend is None and (jobs or min(cores(), len(asked))) == 1:
        return [_found(*one) for one in asked]
    with needs_extra(_WHO, "parallel"):
        import joblib
    with _backend(backend, jobs):
        run = joblib.Parallel(n_jobs=_ALL if jobs is None else jobs)
        return list(run(joblib.delayed(_found)(*one) for one in asked))


_ALL = -1  # joblib's word for as many as there are


def _found(document: Search, calibration: Calibration) -> Found:
    """One search, wherever it runs; that it is infeasible is an answer."""
    try:
        return search(document, calibration)
    except InfeasiblePlanError as error:
        return error


@contextmanager
def _backend(name: str | None, jobs: int | None) -> Iterator[None]:
    """joblib with this backend; what it needs beside joblib is there while it lasts."""
    import joblib

    if name is None:
        yield
        return
    with needs_extra(f"joblib's backend {name}", _EXTRAS.get(name, "")):
        opened = _OPENED[name](jobs) if name in _OPENED else _nothing()
    with opened:
        try:
            config = joblib.parallel_config(backend=name)
        except ValueError as error:
            raise InputError(f"joblib backend: found {name}; {error}") from None
        with config:
            yield


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _dask(jobs: int | None) -> Any:
    """The client of whoever called; else one of the scheduler that Dask's configuration names
    ($DASK_SCHEDULER_ADDRESS); else one with workers on this machine, for as long as it takes."""
    import distributed

    client: Any = distributed.Client  # which says nothing of its types
    try:
        distributed.get_client()
    except ValueError:
        import dask

        if dask.config.get("scheduler-address", None):
            return client()
        return client(n_workers=jobs or cores(), threads_per_worker=1, dashboard_address=None)
    return _nothing()


def _ray(jobs: int | None) -> Any:  # noqa: ARG001 - Ray has as many as its cluster
    try:
        from ray.util.joblib import register_ray
    except ModuleNotFoundError:
        raise InputError("joblib backend: found ray; it needs the package ray, which is not installed") from None
    register_ray()
    return _nothing()


_OPENED = {"dask": _dask, "ray": _ray}
_EXTRAS = {"dask": "dask"}
