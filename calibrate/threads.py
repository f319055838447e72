"""Linear algebra on one thread, where matrices are too small to share.

A calibration solves thousands of systems of about a hundred rows. BLAS wakes all of its threads for each of them, and
they wait for each other longer than they calculate: fitting the pooled H100 profiles took 110 s of processor time with
two threads and 20 s with one, on the same two busy cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """One thread for BLAS and LAPACK inside; as many as before, after it. Decorates functions too."""
    with threadpool_limits(limits=1, user_api="blas"):
        yield
