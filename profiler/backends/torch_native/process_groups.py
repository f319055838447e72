"""Process groups of plans, opened together by all processes of the job.

They stay open until the job ends, for the plans to come: opening one takes a good part of a second, and closing one of
gloo's was seen to hang when DDP had used it. Their buffers on a GPU are outside the framework's allocator.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from moemodel.profiler.backends.torch_native.mappings import Group
from moemodel.profiler.backends.torch_native.rank_mesh import RankMesh

_OPENED: dict[tuple[int, ...], Group | None] = {}  # None: this process is not in it


class Groups:
    """The groups that one rank of a plan is in.

    All processes of the job open them, in the same order, those without a part in the plan too: a communicator is
    split off that of the whole job. Groups of the same ranks are one, and that of all processes is the job's own.

    Args:
        place: of this rank in the plan; one beyond its ranks is in no group.
    """

    def __init__(self, place: RankMesh) -> None:
        self._place = place
        self._everybody = tuple(range(dist.get_world_size()))
        for groups in place.groups().values():
            for ranks in groups:
                if len(ranks) > 1 and ranks != self._everybody and ranks not in _OPENED:
                    opened = dist.new_group(list(ranks))
                    _OPENED[ranks] = opened if dist.get_rank() in ranks else None

    def own(self, kind: str) -> Group | None:
        """This rank's group of a kind (see `ParallelMesh.groups`); None where it is alone, or in none."""
        ranks = self._place.own(kind)
        if not ranks:
            return None
        return dist.group.WORLD if ranks == self._everybody else _OPENED[ranks]


def release_comm_buffers(device: torch.device) -> None:
    """Make groups drop the tensors of their last calls; all processes of the job call it between plans.

    NCCL's groups keep what DDP gave them until their next call on this thread, so that the last plan's gradients would
    count as memory that was taken before this one.
    """
    if dist.is_initialized() and device.type == "cuda":
        for group in [dist.group.WORLD, *_OPENED.values()]:
            if group is not None:
                dist.all_reduce(torch.zeros(1, device=device), group=group)
        torch.cuda.synchronize(device)
