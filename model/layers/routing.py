"""How unevenly a router loads experts and the ranks that hold them, and what a framework makes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

from moemodel.model.architecture.spec import Moe
from moemodel.model.core.arrays import FloatArray, distinct_rows
from moemodel.model.frameworks.moe_form import MoeForm

_NORMAL = NormalDist()


@dataclass(frozen=True, kw_only=True)
class PlacedMoe(Moe):
    """A block whose loads are known expert by expert, and whose experts lie where a placement puts them
    (`plan.expert_placement`).

    Attributes:
        slots: experts that all ranks hold together, copies among them.
        expert_skew: rows of the busiest copy of an expert over the mean of all slots.
        rank_skew: rows of the busiest rank over the mean.
    """

    slots: int
    expert_skew: float
    rank_skew: float


def expert_slots(moe: Moe) -> int:
    """Experts of a block that all expert-parallel ranks hold together, copies among them."""
    return moe.slots if isinstance(moe, PlacedMoe) else moe.experts


def routed_skew(moe: Moe, skew: FloatArray) -> FloatArray:
    """Rows of the busiest expert over the mean, where loads are known those, else as the plan has it. [P]"""
    return np.full_like(skew, moe.expert_skew) if isinstance(moe, PlacedMoe) else skew


def busiest_rank(moe: Moe, skew: FloatArray, ep: FloatArray) -> FloatArray:
    """Rows of the busiest expert-parallel rank over the mean, where the rows of experts differ at all. [P]

    Args:
        moe: the block.
        skew: of its experts, as the framework pads or cuts their rows.
        ep: ranks.
    """
    if isinstance(moe, PlacedMoe):
        return np.where((skew > 1) & (np.asarray(ep) > 1), moe.rank_skew, 1.0)
    return expert_rank_skew(skew, ep, moe.experts)


@dataclass(frozen=True, kw_only=True)
class ExpertRows:
    """Rows that experts compute. [P] each.

    Attributes:
        slots: of a token, over all experts, padding included.
        filled: share of them that are rows of tokens; the others are zeros.
        skew: of the busiest expert over the mean.
    """

    slots: FloatArray
    skew: FloatArray
    filled: FloatArray | float = 1.0


def places_reached(moe: Moe, places: FloatArray, *, nodes: FloatArray, node_limit: FloatArray) -> FloatArray:
    """Of some places that hold as many experts each, those that a token's experts lie on, in the mean over tokens, if
    all experts and sets of groups are as likely as others. [P]

    With k of E experts in the best M of G groups (G = 1 without groups), h = min(M, G (1 - C(E - E/G, k) / C(E, k)))
    groups that hold any, and n places:

        n <= G    n (1 - C(G - G/n, h) / C(G, h))
        n > G     h + h (s - 1) (1 - C(h e - h - E/n, k - h) / C(h e - h, k - h))       e = E/G, s = n/G

    since a group is among the best for experts that are, so that each of the M holds one of the k, unless k drawn
    without limit reach fewer; the other k - h fall where they may. Without groups the second is n (1 - C(E - E/n, k) /
    C(E, k)), of k drawn without repetition. Drawn scores come within 3 % (tests).

    Args:
        moe: the block.
        places: n: ranks, or nodes.
        nodes: over which the experts are spread.
        node_limit: nodes that the plan lets a token's experts lie on; 0: the block's own groups count.
    """
    limited = (node_limit > 0) & (node_limit < nodes)
    groups = np.where(limited, nodes, float(moe.groups))
    most = np.where(limited, node_limit, float(moe.top_groups))
    columns = np.broadcast_arrays(places, groups, most)
    found = [_places_reached(moe.experts, moe.top_k, *one) for one in zip(*(c.tolist() for c in columns), strict=True)]
    return np.array(found)


@cache
def _places_reached(experts: int, top_k: int, places: float, groups: float, most: float) -> float:
    best = min(most, groups * (1 - _no_hit(experts, experts / groups, top_k)))
    if places <= groups and groups > 1:
        return places * (1 - _no_hit(groups, groups / places, best))
    each = experts / groups
    others = best * (places / groups - 1) * (1 - _no_hit(best * each - best, experts / places, top_k - best))
    return best + others


def _no_hit(things: float, marked: float, drawn: float) -> float:
    """Probability that none of so many drawn without repetition is marked: C(things - marked, drawn) / C(things,
    drawn)."""
    if drawn <= 0:
        return 1.0
    if things - marked < drawn:
        return 0.0
    terms = (things - marked, things - marked - drawn, things, things - drawn)
    free, left, all_of_them, rest = (math.lgamma(n + 1) for n in terms)
    return math.exp(free - left - all_of_them + rest)


def expert_rows(moe: Moe, form: MoeForm, tokens: FloatArray, skew: FloatArray) -> ExpertRows:
    """Rows of a block's experts.

        dropless                 top_k a token, as the router has them
        padded to the busiest    skew top_k, all experts alike
        padded to a capacity     E max(ceil(T top_k c / E), least) / T, all experts alike
        cut at a capacity        top_k times the share that is kept (`kept_share`)

    A router by expert choice (Zhou et al. 2022, section 3.1) gives every expert as many rows: T top_k c / E.

    Args:
        moe: the block.
        form: of the framework.
        tokens: T that one rank routes, [P].
        skew: rows of the busiest expert over the mean, as the router has them, [P].
    """
    even, factor = np.ones_like(skew), moe.capacity_factor
    if moe.router == "expert_choice":
        return ExpertRows(slots=even * (moe.top_k * (factor or 1.0)), skew=even)
    if factor is None:
        if form.padding == "always":
            return ExpertRows(slots=moe.top_k * skew, skew=even, filled=1 / skew)
        return ExpertRows(slots=even * moe.top_k, skew=skew)
    if form.padding == "never":
        kept = kept_share(skew, factor, moe.experts)
        return ExpertRows(slots=moe.top_k * kept, skew=np.asarray(np.minimum(skew, factor) / kept))
    slots = even * (moe.top_k * factor)
    if form.min_capacity:
        capacity = np.maximum(np.ceil(tokens * moe.top_k * factor / moe.experts), form.min_capacity)
        slots = np.asarray(moe.experts * capacity / tokens)
    filled = np.minimum(moe.top_k * kept_share(skew, factor, moe.experts) / slots, 1.0)
    return ExpertRows(slots=slots, skew=even, filled=filled)


def kept_share(skew: FloatArray, factor: float, experts: int) -> FloatArray:
    """Share of the rows that are kept where an expert takes no more than `factor` times the mean.

    For loads that vary like draws from a log-normal distribution of mean 1 and deviation s of their logarithm, of which
    the largest of E is `exp(s m(E) - s^2 / 2)`, m(E) the mean of the largest of E normal ones: the mean of
    min(load, factor), `Phi((ln c - s^2/2) / s) + c Phi(-(ln c + s^2/2) / s)`. Where the skew is more than any such
    draws reach, at the widest; nothing is dropped where the busiest expert has room.

    Args:
        skew: rows of the busiest expert over the mean, [P].
        factor: rows that an expert takes over the mean, c.
        experts: E of a layer.
    """
    first, place = distinct_rows([np.ravel(skew)])
    shares = [_kept_share(value, factor, experts) for value in np.ravel(skew)[first]]
    return np.asarray(np.array(shares)[place.reshape(np.shape(skew))])


@cache
def _kept_share(skew: float, factor: float, experts: int) -> float:
    if skew <= factor or experts < 2:
        return min(1.0, factor)
    largest = _largest_of(experts)
    s = largest - math.sqrt(max(largest**2 - 2 * math.log(skew), 0.0))
    log_factor = math.log(factor)
    kept = _NORMAL.cdf((log_factor - s**2 / 2) / s) + factor * _NORMAL.cdf(-(log_factor + s**2 / 2) / s)
    return min(kept, 1 - (skew - factor) / experts)  # what the busiest expert alone loses


def expert_rank_skew(skew: FloatArray, ep: FloatArray, experts: int) -> FloatArray:
    """Rows of the busiest expert-parallel rank over the mean.

    A rank sums experts / ep loads. If loads vary like draws from a normal distribution that add up to all rows, a
    rank's deviate by sqrt((ep - 1) / (experts - 1)) of an expert's, and the largest of n such that add up to nothing is
    m(n) sqrt(n / (n - 1)) deviations, m(n) the mean of the largest of n normal ones (Blom 1958, section 6.9):
    `1 + (skew - 1) sqrt(ep / experts) m(ep) / m(experts)`, exact at ep = 1 and at ep = experts.
    Leaves out routers that load neighbouring experts together.

    Args:
        skew: rows of the busiest expert over the mean, [P].
        ep: ranks of expert parallelism, [P].
        experts: of a layer.
    """
    if experts < 2:
        return np.ones(np.broadcast(skew, ep).shape)
    first, place = distinct_rows([np.ravel(ep)])
    largest = np.array([_largest_of(n) for n in np.ravel(ep)[first]])[place.reshape(np.shape(ep))]
    return np.asarray(1 + (skew - 1) * np.sqrt(ep / experts) * largest / _largest_of(experts))


@cache
def _largest_of(count: float) -> float:
    """Mean of the largest of so many draws from a standard normal distribution: Blom's approximation, within 5 %."""
    return _NORMAL.inv_cdf((count - 0.375) / (count + 0.25))
