"""Which of the GPUs that torch sees are this process's own (`jobs.place` says which process of a job it is)."""

from __future__ import annotations

import torch

from moemodel.profiler.jobs.place import Place

_ONE_GPU_EACH = ("torchrun", "Lightning", "LOCAL_RANK")  # what starts a process for each GPU


def own_gpus(place: Place, count: int) -> tuple[list[int], list[str]]:
    """Which of the GPUs that torch sees are this process's, and what is doubtful about it.

    Args:
        place: of the process.
        count: of GPUs that torch sees.
    """
    every = list(range(count))
    begun = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    chosen = torch.cuda.current_device() if begun else None
    name = "name this process's GPUs by Meter(devices=[...])"
    if count <= 1 or (place.alone and not place.notes):
        return every, []
    bound = _bound_gpu()
    if bound is not None:
        return [bound], []
    if chosen:  # a script that has called set_device knows best
        return [chosen], []
    if place.size == 1 and place.source not in _ONE_GPU_EACH:
        return (every if chosen is None or place.source is not None else [chosen]), []
    local = place.local_rank
    if local is None:
        guess = place.rank % count
        note = (
            f"rank {place.rank} of {place.size}: nothing says which of the {count} GPUs here is its own; cuda:{guess} "
            f"is metered. Call torch.cuda.set_device before the meter starts, or {name}"
        )
        return [guess], [] if guess == chosen else [note]
    if local >= count:
        return [local % count], [
            f"process {local} of this machine, but torch sees {count} GPUs: cuda:{local % count} is metered, maybe by "
            f"another process too, so that sums over ranks count it twice; {name}"
        ]
    if place.local_size == 1 and place.size > 1 and place.source not in _ONE_GPU_EACH:
        note = f"the only process on this machine, so that all {count} GPUs are metered; if it works on fewer, {name}"
        return every, [note]
    return [local], []


def _bound_gpu() -> int | None:
    """The GPU that the process group was told to be this process's (`init_process_group(device_id=...)`)."""
    try:
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()):
            return None
        bound = getattr(dist.group.WORLD, "bound_device_id", None)
    except (RuntimeError, ValueError):
        return None
    index = bound.index if isinstance(bound, torch.device) and bound.type == "cuda" else None
    return None if index is None else int(index)
