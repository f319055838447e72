"""Work on parts of large arrays, on as many cores as the process may use: numpy lets others run while it computes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")

_MOST = 8  # assumed: more wait for the memory's bandwidth, and for the interpreter's lock


def cores() -> int:
    """How many the process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(function: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
    """What a function makes of each part, in their order; of few at a time, so that memory stays bounded."""
    threads = min(cores(), _MOST)
    if threads == 1:
        yield from map(function, parts)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="moemodel") as pool:
        ahead: deque[Future[Result]] = deque()
        try:
            for part in parts:
                ahead.append(pool.submit(function, part))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
