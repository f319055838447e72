"""Who is who among the ranks of a plan, in whole numbers; no torch here.

Ranks are numbered with tensor parallelism innermost, then data and pipeline parallelism, as `model.communication`
counts them; experts spread over neighbouring data-parallel ranks. Pipeline stages are cut as `model.stages` says.
"""

from __future__ import annotations

from dataclasses import dataclass

from moemodel.model.plan.spec import ParallelSpec


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The degrees of a plan, and one of its ranks.

    Attributes:
        rank: among those of the plan.
        tp, dp, pp, ep: degrees; experts spread over `ep` of the `dp` ranks.
    """

    rank: int
    tp: int
    dp: int
    pp: int
    ep: int

    @classmethod
    def of(cls, parallel: ParallelSpec, rank: int) -> Layout:
        """The place of a rank in a plan."""
        return cls(rank=rank, tp=parallel.tp, dp=parallel.dp, pp=parallel.pp, ep=parallel.ep)

    @property
    def size(self) -> int:
        """Ranks of the plan."""
        return self.tp * self.dp * self.pp

    @property
    def tp_rank(self) -> int:
        return self.rank % self.tp

    @property
    def dp_rank(self) -> int:
        return self.rank // self.tp % self.dp

    @property
    def pp_rank(self) -> int:
        return self.rank // (self.tp * self.dp)

    @property
    def ep_rank(self) -> int:
        return self.dp_rank % self.ep

    def groups(self) -> dict[str, list[tuple[int, ...]]]:
        """Every group of every kind, each rank in one of each kind; the same on all ranks.

        `experts`: ranks that share out the experts. `copies`: ranks that hold the same experts. `ends`: the first and
        the last stage; ranks of other stages are in none.
        """
        tp, dp, pp, ep = self.tp, self.dp, self.pp, self.ep
        stage = tp * dp
        data = [(s * stage + t, s * stage + t + tp * dp) for s in range(pp) for t in range(tp)]
        data_ranks = [tuple(range(first, stop, tp)) for first, stop in data]
        return {
            "all": [tuple(range(self.size))],
            "tp": [tuple(range(first, first + tp)) for first in range(0, self.size, tp)],
            "dp": data_ranks,
            "pp": [tuple(range(first, self.size, stage)) for first in range(stage)],
            "experts": [ranks[i : i + ep] for ranks in data_ranks for i in range(0, dp, ep)],
            "copies": [ranks[i::ep] for ranks in data_ranks for i in range(ep)],
            "ends": [(first, first + (pp - 1) * stage) for first in range(stage)] if pp > 1 else [],
        }

    def own(self, kind: str) -> tuple[int, ...]:
        """The group of a kind that this rank is in; empty if it is in none."""
        return next((ranks for ranks in self.groups()[kind] if self.rank in ranks), ())
